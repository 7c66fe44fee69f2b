"""Real Redis and Valkey servers of every version that can be had here, each a process that ends with its test.

`EXECUTABLES` are those that `features/embedded.py` finds (the wheels' and the system's) and those named in
PENSTOCK_REDIS_SERVERS (paths with colons between them; `scripts/redis-servers` brings some together and prints them).
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
import redis

from penstock.features.embedded import find_executable, find_executables


def _age(executable: str) -> tuple[bool, tuple[int, ...]]:
    """Whether it is a Valkey, and its version: an order in which the newest Redis stands before the oldest Valkey."""
    told = subprocess.run([executable, "--version"], capture_output=True, text=True, check=True).stdout
    version = re.search(r"v=([\d.]+)", told)[1]
    return "valkey" in told.lower(), tuple(int(part) for part in version.split("."))


def _executables() -> dict[str, str]:
    """Path by kind and version, such as "redis-7.0.15"."""
    named = os.environ.get("PENSTOCK_REDIS_SERVERS", "").split(":")
    found = {_age(path): path for path in [*named, *reversed([*find_executables()])] if path}
    kinds = ("redis", "valkey")
    return {f"{kinds[valkey]}-{'.'.join(map(str, version))}": path for (valkey, version), path in sorted(found.items())}


EXECUTABLES = _executables()
USUAL = find_executable()  # what embedded:// takes here
NEWEST = ([path for name, path in EXECUTABLES.items() if name.startswith("redis")] or [*EXECUTABLES.values()])[-1]


def _params(always: str) -> list[object]:
    """For fixtures: this one always, the others with --slow."""
    return [
        pytest.param(path, id=name, marks=[] if path == always else pytest.mark.slow)
        for name, path in EXECUTABLES.items()
    ]


VERSIONS = _params(NEWEST)
OTHERS_SELDOM = _params(USUAL)
EVERY = [pytest.param(path, id=name) for name, path in EXECUTABLES.items()]


def in_turn(seed: int) -> str:
    """One of all, for campaigns over seeds."""
    return [*EXECUTABLES.values()][seed % len(EXECUTABLES)]


def speaks_tls(executable: str) -> bool:
    """Whether it was built with TLS. With a certificate that is not there it ends at once, either way."""
    words = ["--port", "0", "--tls-port", "1", "--tls-cert-file", "/nowhere", "--save", ""]
    told = subprocess.run([executable, *words], capture_output=True, text=True, check=False, cwd=tempfile.gettempdir())
    return "Failed to configure TLS" in told.stdout


def free_port() -> int:
    """A port of loopback that nobody listens on, nor on the one of a cluster's bus, 10,000 above."""
    while True:
        port = random.randrange(20_000, 55_000)
        with contextlib.suppress(OSError), socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", port))
            other.bind(("127.0.0.1", port + 10_000))
            return port


class KeptRedis:
    """One on a unix socket that keeps an append-only file, to be killed and started again."""

    def __init__(self, executable: str, fsync: str = "always") -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="penstock-test-"))
        self.url = f"unix://{self.folder}/s"
        options = {"port": "0", "unixsocket": "s", "dir": self.folder, "save": "", "logfile": "log"}
        options |= {"appendonly": "yes", "appendfsync": fsync}
        words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
        self._command = [executable, *words]
        try:
            self.start()
        except BaseException:
            self.close()
            raise

    def start(self) -> None:
        """Start it, for the first time or again; returns when it has its rows."""
        self.process = subprocess.Popen(self._command)
        until = time.monotonic() + 20
        with self.client() as client:
            while True:
                with contextlib.suppress(redis.ConnectionError, redis.exceptions.BusyLoadingError):
                    client.ping()
                    return
                assert self.process.poll() is None, (self.folder / "log").read_text()
                assert time.monotonic() < until
                time.sleep(0.005)

    def client(self) -> redis.Redis:
        """A client of the test's own."""
        return redis.Redis.from_url(self.url)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(20)

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.folder)


class RedisProcess:
    """One redis-server (or sentinel, by `words`) on loopback. Options are as in redis.conf, with underscores."""

    def __init__(self, executable: str, *words: str, tls: bool = False, port: int = 0, **options: object) -> None:
        self.executable = executable
        self.folder = Path(tempfile.mkdtemp(prefix="penstock-test-"))
        self.port = port or free_port()
        usual = {"bind": "127.0.0.1", "dir": self.folder, "save": '""', "logfile": self.folder / "log"}
        usual |= {"repl_diskless_sync_delay": 0}
        usual |= {"port": 0, "tls_port": self.port} if tls else {"port": self.port}
        if "--sentinel" in words:
            usual = {name: usual[name] for name in ("bind", "dir", "logfile", "port")}
        lines = [f"{name.replace('_', '-')} {value}" for name, value in (usual | options).items()]
        self.config = self.folder / "redis.conf"
        self.config.write_text("\n".join(lines) + "\n")
        self._command = [executable, str(self.config), *words]
        self.start()

    def start(self) -> None:
        """Start it, for the first time or again; returns when it listens."""
        with (self.folder / "out").open("ab") as out:
            self.process = subprocess.Popen(self._command, stdout=out, stderr=out, stdin=subprocess.DEVNULL)
        until = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < until, self.log()
            time.sleep(0.01)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def client(self, **options: object) -> redis.Redis:
        """A client of the test's own."""
        return redis.Redis(port=self.port, **options)

    def log(self) -> str:
        files = [self.folder / "out", self.folder / "log"]
        return "\n".join(file.read_text() for file in files if file.exists())[-4000:]

    def kill(self) -> None:
        """As a machine does that loses its power."""
        self.process.kill()
        self.process.wait(20)

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.folder)


def wait_until(holds, within_s: float = 20.0):
    """What `holds` gives once it is true."""
    until = time.monotonic() + within_s
    while not (found := holds()):
        assert time.monotonic() < until, "it did not come to hold in time"
        time.sleep(0.02)
    return found


class ClusterProcesses:
    """A cluster of so many masters, each with about as many slots."""

    def __init__(self, executable: str, masters: int = 3, **options: object) -> None:
        self.servers: list[RedisProcess] = []
        self._executable, self._options = executable, options
        try:
            for _ in range(masters):
                self.add()
            self._join(masters)
        except BaseException:
            self.close()
            raise

    def add(self) -> RedisProcess:
        """One more node, that nobody knows yet."""
        node = RedisProcess(
            self._executable,
            cluster_enabled="yes",
            cluster_node_timeout=1000,
            cluster_config_file="nodes.conf",
            **self._options,
        )
        self.servers.append(node)
        return node

    def _join(self, masters: int) -> None:
        bounds = [round(16384 * i / masters) for i in range(masters + 1)]
        for i, server in enumerate(self.servers):
            with server.client() as client:
                client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", i + 1)
                client.execute_command("CLUSTER", "ADDSLOTS", *range(bounds[i], bounds[i + 1]))
                client.execute_command("CLUSTER", "MEET", "127.0.0.1", self.servers[0].port)
        self.wait()

    def wait(self) -> None:
        """Until every node that runs takes the cluster for whole."""
        running = [server for server in self.servers if server.process.poll() is None]
        wait_until(lambda: all(self._is_whole(server, len(self.servers)) for server in running))

    def _is_whole(self, server: RedisProcess, nodes: int) -> bool:
        with server.client() as client:
            info = client.execute_command("CLUSTER", "INFO")
        text = info if isinstance(info, bytes) else "\n".join(f"{k}:{v}" for k, v in info.items()).encode()
        return b"cluster_state:ok" in text and b"cluster_known_nodes:%d" % nodes in text

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{server.port}" for server in self.servers[:2])

    def close(self) -> None:
        for server in self.servers:
            server.close()
