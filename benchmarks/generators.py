"""Closed-loop load on one method of a gRPC server: so many callers, each asking again as soon as it is answered.

`h2load` where it is installed (5-15 µs of CPU a request), else grpc.aio in a process of its own (about 200 µs). h2load
sends one body for ever, so several run side by side, each with its own. It does not see the gRPC status either, which
whoever calls must check (`overhead.py` compares the server's own count of successes).
"""

from __future__ import annotations

import asyncio
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, Protocol

import grpc.aio

from penstock._codec import decode_bytes, encode_bytes
from penstock.benchmarks.processes import pinned
from penstock.errors import PenstockError


class LoadFailed(PenstockError):  # noqa: N818 - the house's errors say what happened
    """A generator failed, or not every request was answered."""


@dataclass(frozen=True, slots=True)
class Load:
    """What a run came to: requests answered, seconds from the first to the last, median latency in µs."""

    requests: int
    seconds: float
    p50_us: float

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
    """nghttp2's load generator: up to `processes` of it, with one connection and one body each."""

    name = "h2load"

    def __init__(self, processes: int) -> None:
        self.processes = processes

    def __call__(
        self, address: str, method: str, bodies: Sequence[bytes], *, callers: int, requests: int, cores: str = ""
    ) -> Load:
        count = min(self.processes, callers, len(bodies))
        streams, each = callers // count, max(requests // count, callers // count)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            running = [
                self._start(folder, i, f"http://{address}{method}", bodies[i], streams, each, cores)
                for i in range(count)
            ]
            for process in running:
                _finish(process, each)
            return _merge([folder / f"log{i}" for i in range(count)])

    @staticmethod
    def _start(
        folder: Path, i: int, url: str, body: bytes, streams: int, requests: int, cores: str
    ) -> subprocess.Popen[str]:
        content, log = folder / f"body{i}", folder / f"log{i}"
        content.write_bytes(b"\0" + len(body).to_bytes(4, "big") + body)
        headers = ["-H", "content-type: application/grpc", "-H", "te: trailers"]
        sizes = ["-n", str(requests), "-c", "1", "-m", str(streams), "-t", "1"]
        command = [*pinned(cores), "h2load", *sizes, *headers, "-d", str(content), f"--log-file={log}", url]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


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


def best(processes: int) -> Generator:
    """h2load where it is installed, else grpc.aio."""
    return H2load(processes) if shutil.which("h2load") else GrpcAio()


def _finish(process: subprocess.Popen[str], requests: int) -> None:
    output, _ = process.communicate()
    if process.returncode or f"{requests} succeeded, 0 failed, 0 errored, 0 timeout" not in output:
        lines = [line for line in output.splitlines() if line.startswith(("requests:", "status codes:"))]
        raise LoadFailed(f"h2load: not every request was answered: {' '.join(lines) or output[-500:]}")


def _merge(logs: Sequence[Path]) -> Load:
    """One load of many logs; a line has the start in µs since the epoch, the HTTP status and the latency in µs."""
    rows = [line.split("\t") for log in logs for line in log.read_text().splitlines()]
    starts, latencies = [int(row[0]) for row in rows], [int(row[2]) for row in rows]
    end = max(start + latency for start, latency in zip(starts, latencies, strict=True))
    return Load(len(rows), (end - min(starts)) / 1e6, statistics.median(latencies))


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
