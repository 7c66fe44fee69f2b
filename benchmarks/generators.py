"""Closed-loop load on one method of a gRPC server: so many callers, each asking again as soon as it is answered.

`h2load` where it is installed (2-15 µs of CPU a request), else grpc.aio in a process of its own (about 200 µs). h2load
sends one body for ever, so several run side by side, each with its own; more than a few at once cost more than they
measure, and where many bodies are wanted at full speed `PoolLoad` is the generator. h2load does not see the gRPC status
either, which whoever calls must check (`sides.py` compares the server's own count of successes).
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import grpc.aio
import numpy as np

from penstock._codec import decode_bytes, encode_bytes
from penstock.bench.drive import METHOD, Life, headers, kernel, outcomes_of, running, words_of
from penstock.bench.histogram import Histogram, empty
from penstock.bench.target import BenchFailed, Target
from penstock.bench.work import Expected
from penstock.benchmarks.processes import pinned
from penstock.errors import PenstockError

if TYPE_CHECKING:
    from penstock.kernels import load as compiled

PATIENCE_S = "30"  # without a byte from the server, until h2load gives a connection up


class LoadFailed(PenstockError):  # noqa: N818 - the house's errors say what happened
    """A generator failed, or not every request was answered."""


@dataclass(frozen=True, slots=True)
class Load:
    """What a run came to: requests answered, seconds from the first to the last, latency in µs (0: not told)."""

    requests: int
    seconds: float
    p50_us: float
    p90_us: float = 0.0
    p99_us: float = 0.0

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.requests / self.seconds


class Generator(Protocol):
    """Sends `requests` of the `bodies`, in turn, by `callers` in a closed loop; raises LoadFailed."""

    name: str

    def __call__(
        self, address: str, method: str, bodies: Sequence[bytes], *, callers: int, requests: int, cores: str = ""
    ) -> Load: ...


class H2load:
    """nghttp2's load generator: up to `processes` of it, each with a body of its own.

    Args:
        processes: at most so many; never more than callers or bodies.
        connections: in all, and a multiple of the processes; 0 for one each. Callers are spread over them evenly.
        log: keep a log of every request, which the median latency is read from (0 without it). It is one more system
            call a request for the generator, so leave it out where the generator is the limit.
    """

    name = "h2load"

    def __init__(self, processes: int, *, connections: int = 0, log: bool = True) -> None:
        self.processes = processes
        self.connections = connections
        self.log = log

    def __call__(
        self, address: str, method: str, bodies: Sequence[bytes], *, callers: int, requests: int, cores: str = ""
    ) -> Load:
        count = min(self.processes, callers, len(bodies))
        connections = max(self.connections // count, 1)
        each = max(requests // count, callers // count)
        streams = callers // count // connections
        sizes = ["-n", str(each), "-c", str(connections), "-m", str(streams), "-t", "1", "-N", PATIENCE_S]
        with tempfile.TemporaryDirectory() as name:
            logs = [Path(name) / f"log{i}" for i in range(count)]
            running, starts = [], []
            for log, body in zip(logs, bodies, strict=False):
                starts.append(time.monotonic())
                running.append(self._start(log, f"http://{address}{method}", body, sizes, cores))
            printed = [process.communicate()[0] for process in running]  # all of them end before one is judged
            seconds = [_finished(output, each) for output in printed]
            if self.log:
                return _merge(logs)
            end = max(start + lasted for start, lasted in zip(starts, seconds, strict=True))
            return Load(each * count, end - starts[0], 0.0)

    def _start(self, log: Path, url: str, body: bytes, sizes: Sequence[str], cores: str) -> subprocess.Popen[str]:
        content = log.with_suffix(".body")
        content.write_bytes(_message(body))
        headers = ["-H", "content-type: application/grpc", "-H", "te: trailers"]
        logging = [f"--log-file={log}"] if self.log else []
        command = [*pinned(cores), "h2load", *sizes, *headers, "-d", str(content), *logging, url]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


class PoolLoad:
    """The generator of `penstock bench`: bodies in turn over so many connections; it checks every status.

    Args:
        connections: in all; callers are spread over them.
    """

    name = "penstock bench"

    def __init__(self, connections: int) -> None:
        self.connections = connections

    def __call__(
        self, address: str, method: str, bodies: Sequence[bytes], *, callers: int, requests: int, cores: str = ""
    ) -> Load:
        count = max(requests, callers)
        asked, each = method.encode(), self.connections
        with pool(address, bodies, connections=each, callers=callers, limit=count, method=asked, cores=cores) as driven:
            load, life = driven
            load.start()
            while life.is_alive() and not any(outcomes_of(load)[1:]):
                life.join(0.05)
        latencies = empty()
        load.read_latencies(latencies)
        answered = outcomes_of(load)[0]
        if answered < count:
            said = "; ".join(f"{name}: {text}" for name, text in words_of(load).items())
            raise LoadFailed(f"only {answered} of {count} requests were answered OK: {said}")
        return Load(count, load.seconds(), Histogram(latencies).percentile(50) / 1e3)


@contextmanager
def pool(
    address: str,
    bodies: Sequence[bytes],
    *,
    connections: int,
    callers: int,
    rows: int = 1,
    outputs: Sequence[Expected] = (),
    limit: int = 0,
    method: bytes = METHOD,
    cores: str = "",
) -> Iterator[tuple[compiled.Load, Life]]:
    """The compiled generator in one thread, connected and waiting for its start; the thread is ended at the end.

    Args:
        address: HOST:PORT.
        bodies: sent in turn.
        connections: that callers are spread over.
        callers: of a closed loop.
        rows: of each body.
        outputs: what every answer must look like; none of them where answers are not looked into.
        limit: requests in all; 0 for no limit.
        method: path of the RPC.
        cores: where the thread is kept; any otherwise.

    Raises:
        LoadFailed: it cannot connect.
    """
    host, _, port = address.rpartition(":")
    target = Target(address, host, int(port), local=True)
    try:
        load = kernel()(
            host=host.encode(),
            port=target.port,
            headers=headers(target, method=method),
            bodies=bodies,
            rows=[rows] * len(bodies),
            outputs=outputs,
            connections=connections,
            callers=callers,
            limit=limit,
        )
        with running(load, 1, connections, address, cores) as (life,):
            yield load, life
    except BenchFailed as error:
        raise LoadFailed(str(error)) from None


class GrpcAio:
    """The client half of grpc.aio, on one connection for every 16 callers."""

    name = "grpc.aio"

    def __call__(
        self, address: str, method: str, bodies: Sequence[bytes], *, callers: int, requests: int, cores: str = ""
    ) -> Load:
        command = [*pinned(cores), sys.executable, "-m", __name__, address, method, str(callers), str(requests)]
        done = subprocess.run(
            command, input=len(bodies).to_bytes(4, "big") + encode_bytes(bodies), capture_output=True, check=False
        )
        if done.returncode:
            raise LoadFailed(f"the grpc.aio generator failed: {done.stderr.decode('utf-8', 'replace')[-2000:]}")
        return Load(**json.loads(done.stdout))


def _message(body: bytes) -> bytes:
    """`body` as gRPC frames it, not compressed."""
    return b"\0" + len(body).to_bytes(4, "big") + body


def best(processes: int) -> Generator:
    """h2load where it is installed, else grpc.aio."""
    return H2load(processes) if shutil.which("h2load") else GrpcAio()


def _finished(output: str, requests: int) -> float:
    """Seconds an h2load took, by what it printed; raises LoadFailed unless HTTP 200 answered each request."""
    rate = re.search(r"^finished in .*?, ([\d.]+) req/s", output, re.MULTILINE)
    answered = f"{requests} succeeded, 0 failed, 0 errored, 0 timeout" in output
    if not (rate and answered and f"status codes: {requests} 2xx" in output):
        lines = [line for line in output.splitlines() if line.startswith(("requests:", "status codes:"))]
        raise LoadFailed(f"h2load: not every request was answered: {' '.join(lines) or output[-500:]}")
    return requests / float(rate[1])


def _merge(logs: Sequence[Path]) -> Load:
    """One load of many logs; a line has the start in µs since the epoch, the HTTP status and the latency in µs."""
    rows = [line.split("\t") for log in logs for line in log.read_text().splitlines()]
    starts, latencies = [int(row[0]) for row in rows], [int(row[2]) for row in rows]
    end = max(start + latency for start, latency in zip(starts, latencies, strict=True))
    p90, p99 = np.percentile(latencies, (90, 99), method="inverted_cdf")
    return Load(len(rows), (end - min(starts)) / 1e6, statistics.median(latencies), float(p90), float(p99))


async def closed_loop(address: str, method: str, bodies: Sequence[bytes], callers: int, requests: int) -> Load:
    """The loop itself; any status but OK ends it with grpc's own error."""
    latencies: list[float] = []
    pool, left = cycle(bodies), iter(range(requests))
    channels = [
        grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
        for _ in range(-(-callers // 16))
    ]
    stubs: list[Any] = [channel.unary_unary(method) for channel in channels]

    async def caller(i: int) -> None:
        stub = stubs[i % len(stubs)]
        for _ in left:
            start = time.perf_counter()
            await stub(next(pool))
            latencies.append(time.perf_counter() - start)

    await asyncio.gather(*(stub(bodies[0]) for stub in stubs))  # connect
    start = time.perf_counter()
    await asyncio.gather(*map(caller, range(callers)))
    seconds = time.perf_counter() - start
    await asyncio.gather(*(channel.close() for channel in channels))
    return Load(requests, seconds, statistics.median(latencies) * 1e6)


def main(address: str, method: str, callers: str, requests: str) -> None:
    """Bodies from stdin, result to stdout as JSON."""
    count = int.from_bytes(sys.stdin.buffer.read(4), "big")
    bodies = decode_bytes(sys.stdin.buffer.read(), count).tolist()
    load = asyncio.run(closed_loop(address, method, bodies, int(callers), int(requests)))
    print(json.dumps({"requests": load.requests, "seconds": load.seconds, "p50_us": load.p50_us}))


if __name__ == "__main__":
    main(*sys.argv[1:])
