"""The threads of the compiled generator: started, connected and ended, and a first request to see that all is well.

Sending happens in threads of `kernels.load` that never wait for Python. What they count is read in `levels.py`.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from penstock.bench.spans import OUTCOMES
from penstock.bench.target import BenchFailed, Target
from penstock.bench.work import Work
from penstock.errors import rpc_error

if TYPE_CHECKING:
    from penstock.kernels.load import Load

METHOD = b"/inference.GRPCInferenceService/ModelInfer"
CONNECT_S, PROBE_S = 5.0, 10.0
NICE = -5


def kernel() -> type[Load]:
    """The compiled generator; raises BenchFailed where it was not built."""
    try:
        from penstock.kernels.load import Load
    except ImportError as error:
        raise BenchFailed(
            f"the load generator is not built here ({error}); it needs nghttp2: apt-get install libnghttp2-dev "
            "libssl-dev, then reinstall penstock from its source"
        ) from None
    return Load


def headers(target: Target, deadline_ms: float = 0.0, method: bytes = METHOD) -> list[tuple[bytes, bytes]]:
    """Of every request."""
    sent = [
        (b":method", b"POST"),
        (b":scheme", b"https" if target.trust else b"http"),
        (b":path", method),
        (b":authority", target.authority.encode()),
    ]
    sent += [(b"te", b"trailers"), (b"content-type", b"application/grpc")]
    return [*sent, (b"grpc-timeout", b"%du" % round(deadline_ms * 1000))] if deadline_ms else sent


class Life(threading.Thread):
    """A thread of a load; `priority` is what it could raise its own to, in words, and "" where it did not."""

    def __init__(self, load: Load, index: int, cores: str, *, hurried: bool) -> None:
        super().__init__(name=f"load-{index}")
        self._load, self._index, self._cores, self._hurried = load, index, cores, hurried
        self.priority = ""

    def run(self) -> None:
        if self._cores:
            os.sched_setaffinity(0, {int(core) for core in self._cores.split(",")})  # of this thread only
        if self._hurried:
            self.priority = raised()
        self._load.run(self._index)


def raised() -> str:
    """Raise the priority of this thread as far as this user may; what it is now, in words, or "" as it was.

    Else the scheduler lets a thread that wakes up wait until others have used up their time, some milliseconds.
    """
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))  # 0 is this thread
        return "real-time priority"
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        return f"niceness {NICE}"
    return ""


@contextmanager
def running(
    load: Load, threads: int, connections: int, address: str, cores: str = "", *, hurried: bool = False
) -> Iterator[list[Life]]:
    """The load's threads, connected, on these cores ("1,3") or any; they are ended at the end.

    Where they are `hurried` they raise their priority, as far as they may.

    Raises:
        BenchFailed: they cannot connect.
    """
    lives = [Life(load, i, cores, hurried=hurried) for i in range(threads)]
    try:
        for life in lives:
            life.start()
        until = time.monotonic() + CONNECT_S
        while load.counts()["connected"] < connections:  # type: ignore[operator]
            if time.monotonic() > until or not any(life.is_alive() for life in lives):
                said = load.words().get(OUTCOMES.index("no connection"), b"no answer").decode("utf-8", "replace")
                raise BenchFailed(f"not every one of {connections} connections to {address} came about: {said}")
            time.sleep(0.001)
        yield lives
    finally:
        load.stop()
        for life in lives:
            if life.ident is not None:  # Ctrl-C may come before all of them are started
                life.join()


def probe(target: Target, work: Work) -> bytes:
    """Send one request as all will be sent, and give back its answer.

    Raises:
        RpcError: the server answers it with another status than OK.
        BenchFailed: there is no answer.
    """
    load = kernel()(
        host=target.host.encode(),
        port=target.port,
        headers=headers(target),
        bodies=work.bodies[:1],
        rows=[work.rows],
        connections=1,
        callers=1,
        limit=1,
        timeout_s=PROBE_S,
        tls=target.trust.kernel(target.name) if target.trust else None,
    )
    with running(load, 1, 1, target.address) as lives:
        load.start()
        lives[0].join(PROBE_S + 1)
    outcomes = outcomes_of(load)
    if outcomes[0] and (sample := load.sample()) is not None:
        return sample
    failed = next((i for i, count in enumerate(outcomes) if count and i), OUTCOMES.index("timed out"))
    said = words_of(load).get(OUTCOMES[failed], "")
    if failed < OUTCOMES.index("no gRPC"):
        raise rpc_error(OUTCOMES[failed], said)
    raise BenchFailed(f"{target.address}: the first request was not answered: {said or OUTCOMES[failed]}")


def words_of(load: Load) -> dict[str, str]:
    """What was first said of each kind of error."""
    return {OUTCOMES[i]: unquote(said.decode("utf-8", "replace")) for i, said in load.words().items() if i}


def outcomes_of(load: Load) -> tuple[int, ...]:
    found: Any = load.counts()["outcomes"]
    return tuple(found)
