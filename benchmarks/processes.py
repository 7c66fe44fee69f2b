"""Servers under test as processes of their own; the CPU time they use is counted as `penstock bench` counts it."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from penstock.bench.local import cpu_s, descendants
from penstock.errors import PenstockError

__all__ = ["NotBuilt", "Server", "ServerFailed", "command_of", "compiled", "cpu_s", "descendants", "pinned", "redis_of"]

START_S = 60.0


class ServerFailed(PenstockError):  # noqa: N818 - the house's errors say what happened
    """A server under test ended, or did not start in time."""


class NotBuilt(PenstockError):  # noqa: N818 - the house's errors say what happened
    """A program of the benchmarks' own could not be compiled."""


def compiled(name: str, folder: Path) -> Path:
    """Compile `name`.c, which stands beside this file and wants libnghttp2, into `folder`; raises NotBuilt."""
    source, program = Path(__file__).with_name(f"{name}.c"), folder / name
    command = [os.environ.get("CC", "cc"), "-O2", "-o", str(program), str(source), "-lnghttp2"]
    try:
        subprocess.run(command, capture_output=True, text=True, check=True)
    except FileNotFoundError:
        raise NotBuilt(f"{source.name} needs a C compiler, {command[0]!r} not found (apt-get install gcc)") from None
    except subprocess.CalledProcessError as error:
        reason = next((line for line in error.stderr.splitlines() if "error" in line), error.stderr[-500:])
        mend = "nghttp2 and its headers (apt-get install libnghttp2-dev)"
        raise NotBuilt(f"{source.name} needs {mend}: {reason.strip()}") from None
    return program


class Server:
    """A process that writes its addresses as JSON to a ready file; use it in a `with` block.

    Args:
        name: for tables and messages.
        command: its command line without the ready file.
        ready: the ready file; the words to append to the command are `ready_arguments` and then this path.
        cores: cores to keep it on, such as "0"; empty for any.
    """

    def __init__(
        self, name: str, command: Sequence[str], ready: Path, ready_arguments: Sequence[str] = (), cores: str = ""
    ) -> None:
        self.name = name
        self._command = [*pinned(cores), *command, *ready_arguments, str(ready)]
        self._ready = ready
        self._log = ready.with_suffix(".log")
        self.address = ""

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        try:
            self._await_ready()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def cpu_s(self) -> float:
        """Seconds of CPU used so far, without those of any redis-server below it."""
        family = [pid for pid in descendants(self._process.pid) if "redis-server" not in command_of(pid)]
        return cpu_s([self._process.pid, *family])

    def _await_ready(self) -> None:
        until = time.monotonic() + START_S
        while not self._ready.exists():
            if self._process.poll() is not None or time.monotonic() > until:
                tail = self._log.read_text("utf-8", "replace")[-2000:].strip()
                raise ServerFailed(f"{self.name} did not start: {tail or 'it said nothing'}")
            time.sleep(0.02)
        self.address = json.loads(self._ready.read_text())["grpc"]


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
