"""What every test may use: a real Redis, a real server, the hypothesis profile, and `--slow` for long campaigns."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest
from hypothesis import settings

# Before anything loads OpenMP: its threads spin while they wait for each other, and on a busy machine a fit of a second
# takes a minute.
os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("penstock", derandomize=True, deadline=None, max_examples=100, database=None)
settings.load_profile("penstock")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow, too")


def pytest_configure() -> None:
    """A shell ignores SIGINT for what it runs in the background, and every process a test starts would inherit that."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow"):
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="a long campaign; run with --slow"))


def pytest_collection_finish() -> None:
    """Thousands of tests and the libraries they import stay until the end: looking at them in every garbage collection
    takes half a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def redis_executable(request: pytest.FixtureRequest) -> str:
    """The redis-server (or valkey-server) to test with: the usual one, unless a test is run with several."""
    from penstock.features.embedded import find_executable

    return getattr(request, "param", "") or find_executable()


@pytest.fixture(scope="session")
def redis_server(redis_executable: str) -> Iterator[str]:
    """unix:// URL of a Redis that runs as long as the session and keeps nothing on disk."""
    import redis

    folder = Path(tempfile.mkdtemp(prefix="penstock-test-"))  # short, for socket paths are
    options = [
        "--port",
        "0",
        "--unixsocket",
        "redis.sock",
        "--dir",
        str(folder),
        "--save",
        "",
        "--logfile",
        "redis.log",
    ]
    process = subprocess.Popen([redis_executable, *options])
    client = redis.Redis(unix_socket_path=str(folder / "redis.sock"))
    try:
        until = time.monotonic() + 20
        while True:
            with contextlib.suppress(redis.ConnectionError):
                client.ping()
                break
            assert process.poll() is None, (folder / "redis.log").read_text()
            assert time.monotonic() < until, "redis-server does not answer"
            time.sleep(0.01)
        yield f"unix://{folder}/redis.sock"
    finally:
        client.close()
        process.terminate()
        process.wait(20)
        shutil.rmtree(folder)


@pytest.fixture
def redis_url(redis_server: str) -> str:
    """The same, empty."""
    import redis

    with redis.Redis.from_url(redis_server) as client:
        client.flushall()
    return redis_server


def _issue(folder: Path, name: str, issuer: str = "", alternatives: str = "") -> None:
    """Write NAME.pem and NAME.key: signed by the issuer, or an authority of its own."""
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-days", "2"]
    words += ["-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.pem"]
    if issuer:
        words += ["-CA", f"{issuer}.pem", "-CAkey", f"{issuer}.key", "-addext", "basicConstraints=critical,CA:FALSE"]
    if alternatives:
        words += ["-addext", f"subjectAltName={alternatives}"]
    subprocess.run(words, cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of PEM files: ca, server (of this machine) and client, both signed by it, and another_ca; each .pem has
    its .key."""
    folder = tmp_path_factory.mktemp("certificates")
    _issue(folder, "ca")
    _issue(folder, "another_ca")
    _issue(folder, "server", "ca", "DNS:localhost,IP:127.0.0.1,IP:::1")
    _issue(folder, "client", "ca")
    return folder


class ServerProcess:
    """`penstock serve` as a child process on free ports; used as a context manager.

    Attributes:
        grpc: where it answers, HOST:PORT.
        metrics: where it is scraped, HOST:PORT; empty where off.
        process: the child.
    """

    def __init__(self, registry: Path | str, *arguments: str, metrics: bool = False) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="penstock-test-"))
        self._log = self._folder / "log"
        self._asked = False
        ready = self._folder / "ready.json"
        settings = ["--registry", str(registry), "--grpc", "127.0.0.1:0", "--ready-file", str(ready)]
        settings += ["--metrics", "127.0.0.1:0" if metrics else "off"]
        with self._log.open("wb") as log:
            command = [sys.executable, "-m", "penstock.cli", "serve", *settings, *arguments]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            self._wait(ready)
        except BaseException:
            self.kill()
            raise
        addresses = json.loads(ready.read_text())
        self.grpc: str = addresses["grpc"]
        self.metrics: str = addresses["metrics"]

    def _wait(self, ready: Path) -> None:
        until = time.monotonic() + 60
        while not ready.exists():
            assert self.process.poll() is None, f"the server ended before it was ready:\n{self.log()}"
            assert time.monotonic() < until, f"the server is not ready:\n{self.log()}"
            time.sleep(0.005)

    def log(self) -> str:
        """What it wrote so far."""
        return self._log.read_text()

    def terminate(self) -> None:
        """Send SIGTERM and go on."""
        self._asked = True
        self.process.send_signal(signal.SIGTERM)

    def stop(self, within_s: float = 30) -> None:
        """SIGTERM unless that was sent or it ended already; it must end by itself with 0."""
        if not self._asked and self.process.poll() is None:
            self.terminate()
        status = self.process.wait(within_s)
        assert status == 0, f"the server ended with {status}:\n{self.log()}"

    def kill(self) -> None:
        """End it whatever it does, and clean up."""
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self._folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.stop()
        finally:
            self.kill()


@pytest.fixture(scope="session")
def server_process() -> type[ServerProcess]:
    """The class, for fixtures that live longer than a test."""
    return ServerProcess


@pytest.fixture
def penstock_server() -> Iterator[Callable[..., ServerProcess]]:
    """Starts `penstock serve` over a registry, as often as it is called; each must end with 0 on SIGTERM."""
    with contextlib.ExitStack() as stack:

        def start(registry: Path | str, *arguments: str, metrics: bool = False) -> ServerProcess:
            return stack.enter_context(ServerProcess(registry, *arguments, metrics=metrics))

        yield start
