"""Servers under test as processes of their own, the CPU time they use and the memory they hold.

CPU time is read from the clock that Linux keeps for each process, in nanoseconds, so that runs of half a second tell;
/proc counts in ticks of ten milliseconds. Servers live in sessions of their own: Ctrl-C reaches the benchmark alone,
which then ends them, and what they leave behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from penstock.bench.local import descendants
from penstock.errors import PenstockError

START_S, END_S = 60.0, 20.0
PAGE = os.sysconf("SC_PAGE_SIZE")


class ServerFailed(PenstockError):  # noqa: N818 - the house's errors say what happened
    """A server under test ended, or did not start in time."""


class NotBuilt(PenstockError):  # noqa: N818 - the house's errors say what happened
    """A program of the benchmarks' own could not be compiled."""


def compiled(name: str, folder: Path) -> Path:
    """Compile `name`.c, which stands beside this file and wants libnghttp2, into `folder`; raises NotBuilt."""
    source, program = Path(__file__).with_name(f"{name}.c"), folder / name
    command = [os.environ.get("CC", "cc"), "-O2", "-o", str(program), str(source), "-lnghttp2"]
    build(command, source.name, "a C compiler (apt-get install gcc)", "libnghttp2-dev")
    return program


def build(command: Sequence[str], what: str, tool: str, package: str) -> None:
    """Run a compiler over `what`; NotBuilt says that it needs `tool`, or the headers of a Debian package."""
    try:
        subprocess.run(command, capture_output=True, text=True, check=True)
    except FileNotFoundError:
        raise NotBuilt(f"{what} needs {tool}: {command[0]!r} not found") from None
    except subprocess.CalledProcessError as error:
        reason = next((line for line in error.stderr.splitlines() if "error" in line), error.stderr[-500:])
        raise NotBuilt(f"{what} needs headers (apt-get install {package}): {reason.strip()}") from None


class Server:
    """A process that serves gRPC; use it in a `with` block.

    Args:
        name: for tables and messages.
        command: its command line without the ready file.
        ready: the ready file, which it writes its addresses to as JSON; the words to append to the command are
            `ready_arguments` and then this path. What it prints goes to a `.log` beside it.
        cores: cores to keep it on, such as "0"; empty for any.
        address: of a server that knows nothing of ready files: where it was told to listen.
        is_ready: asks such a server; it is asked until it is true.
        environment: variables beside our own.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        ready: Path,
        ready_arguments: Sequence[str] = (),
        cores: str = "",
        *,
        address: str = "",
        is_ready: Callable[[], bool] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.address = address
        told = [] if address else [*ready_arguments, str(ready)]
        self._command = [*pinned(cores), *command, *told]
        self._ready, self._log = ready, ready.with_suffix(".log")
        self._is_ready = is_ready or ready.exists
        self._environment = {**os.environ, **(environment or {})}

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,
            )
        try:
            self._await_ready()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        below = {pid: command_of(pid) for pid in self.family[1:]}
        self._process.terminate()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pid, command in below.items():
            if command and command_of(pid) == command:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    @property
    def family(self) -> list[int]:
        """The process and all below it, without any redis-server, which others may share."""
        below = [pid for pid in descendants(self._process.pid) if "redis-server" not in command_of(pid)]
        return [self._process.pid, *below]

    def cpu_s(self) -> float:
        """Seconds of CPU used so far."""
        return cpu_s(self.family)

    def resident_bytes(self) -> int:
        """Memory held now; what processes share counts for each."""
        return sum(map(_resident_bytes, self.family))

    def _await_ready(self) -> None:
        until = time.monotonic() + START_S
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > until:
                tail = self._log.read_text("utf-8", "replace")[-2000:].strip()
                raise ServerFailed(f"{self.name} did not start: {tail or 'it said nothing'}")
            time.sleep(0.02)
        self.address = self.address or json.loads(self._ready.read_text())["grpc"]


def cpu_s(pids: Iterable[int]) -> float:
    """Seconds of CPU that processes used; those that are gone count nothing."""
    return sum(map(_cpu_s, pids))


def _cpu_s(pid: int) -> float:
    try:
        return time.clock_gettime((~pid << 3) | 2)  # how Linux numbers the clock of a process: clock_getcpuclockid(3)
    except OSError:
        return 0.0


def _resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
    except OSError:
        return 0


def free_port() -> int:
    """A port of loopback that nobody listens on, for servers that must be told one."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def pinned(cores: str) -> list[str]:
    """The words before a command that keep it on `cores`."""
    return ["taskset", "-c", cores] if cores else []


def redis_of(folder: Path) -> list[int]:
    """The redis-servers that work in `folder`."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [pid for pid in pids if "redis-server" in command_of(pid) and _works_in(pid) == folder]


def _works_in(pid: int) -> Path | None:
    try:
        return Path(f"/proc/{pid}/cwd").readlink()
    except OSError:
        return None


def command_of(pid: int) -> str:
    """The command line of a process; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    except OSError:
        return ""
