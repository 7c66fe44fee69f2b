"""The server's process where it runs on this machine, found by the socket it listens on, and the CPU time it uses.

All from /proc: the listening socket's inode, then the process that holds it open. Containers and processes of other
users may hide it; then there is simply nothing to tell. CPU time is user and system time of processes, of their living
descendants and of children they waited for; the kernel counts in ticks of 10 ms, so measure over seconds.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
LISTEN = "0A"  # a TCP socket's state in /proc/net/tcp
IDLE = (3, 4)  # columns of /proc/stat: idle, and idle while a disk works
PROC = Path("/proc")


def listeners(port: int, path: str = "") -> list[int]:
    """Processes that listen on a TCP port, or where `port` is 0 on a Unix socket's path; none where they are hidden."""
    inodes = _tcp_inodes(port) if port else _unix_inodes(path)
    wanted = {f"socket:[{inode}]" for inode in inodes}
    pids = (int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit())
    return sorted(pid for pid in pids if wanted and not wanted.isdisjoint(_open_files(pid)))


def _tcp_inodes(port: int) -> set[str]:
    rows = [line.split() for name in ("tcp", "tcp6") for line in _lines(PROC / "net" / name)[1:]]
    return {row[9] for row in rows if row[3] == LISTEN and int(row[1].rpartition(":")[2], 16) == port}


def _unix_inodes(path: str) -> set[str]:
    rows = [line.split(maxsplit=7) for line in _lines(PROC / "net" / "unix")[1:]]
    return {row[6] for row in rows if len(row) == 8 and row[7] == path}


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _open_files(pid: int) -> set[str]:
    found = set()
    try:
        for entry in os.scandir(PROC / str(pid) / "fd"):
            try:
                found.add(os.readlink(entry.path))  # noqa: PTH115 - called for every descriptor of the machine
            except OSError:  # closed meanwhile
                continue
    except OSError:  # gone, or somebody else's
        pass
    return found


def cores_of(pids: Iterable[int]) -> set[int]:
    """The cores that any of these processes may run on; none of those that are gone or somebody else's."""
    found: set[int] = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            found |= os.sched_getaffinity(pid)
    return found


def busy_s(cores: Iterable[int]) -> float:
    """Seconds that these cores worked, for whomever, since the machine was started."""
    names = {f"cpu{core}" for core in cores}
    rows = [line.split() for line in _lines(PROC / "stat") if line.split(maxsplit=1)[0] in names]
    return sum(int(ticks) for row in rows for i, ticks in enumerate(row[1:9]) if i not in IDLE) * TICK_S


def family_cpu_s(pids: Iterable[int]) -> float:
    """Seconds of CPU of processes and all below them, each counted once."""
    roots = set(pids)
    return cpu_s(roots.union(*(descendants(pid) for pid in roots)))


def cpu_s(pids: Iterable[int]) -> float:
    """Seconds of CPU of processes and of the children they waited for; those that are gone count nothing."""
    ticks = (_stat(pid)[11:15] for pid in pids)
    return sum(int(t) for four in ticks for t in four) * TICK_S


def descendants(pid: int) -> list[int]:
    """Every living process below `pid`."""
    found: list[int] = []
    for path in (PROC / str(pid) / "task").glob("*/children"):
        try:
            children = [int(word) for word in path.read_text().split()]
        except OSError:  # the thread has ended
            continue
        for child in children:
            found += [child, *descendants(child)]
    return found


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the third on; none if the process is gone."""
    try:
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
