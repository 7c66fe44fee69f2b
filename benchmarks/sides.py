"""What is driven and what a run of it came to: the parts that every comparison of servers shares.

A run counts only if every request was answered, by the generator's account and by the server's own count of successes.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from penstock.benchmarks.generators import Generator, LoadFailed
from penstock.benchmarks.processes import Server, cpu_s
from penstock.benchmarks.seeded import METHOD, store_url
from penstock.client import Client

LONG_ENOUGH_S = 0.2
PATIENT = "feature_timeout_ms: 5000\n"  # load that takes every core may keep Redis waiting for longer than the default


@dataclass(frozen=True)
class Run:
    """One run: requests per second, µs of CPU for each request, latencies in µs (0 where they were not asked for)."""

    rate: float
    cpu_us: float
    p50_us: float
    redis_us: float = 0.0
    p99_us: float = 0.0


@dataclass(frozen=True)
class Side:
    """What is driven: a server and the bodies to send it."""

    name: str
    server: Server
    bodies: Sequence[bytes]
    counted: Callable[[], int] | None = None  # successes the server has counted so far
    redis: Sequence[int] = ()  # process ids


def penstock(name: str, folder: Path, transport: str, cores: str, config: str = "") -> Server:
    """`penstock serve` over what `seeded.publish` put into `folder`, with these lines of configuration."""
    settings = folder / f"{name}.yaml"
    settings.write_text(PATIENT + config)
    command = [sys.executable, "-c", "from penstock.cli import main; main()", "serve", "--config", str(settings)]
    listen = ["--grpc", "127.0.0.1:0", "--http", "off", "--metrics", "off", "--transport", transport]
    words = [*command, *listen, "--registry", str(folder / "registry"), "--features", store_url(folder)]
    return Server(name, words, folder / f"{name}.json", ["--ready-file"], cores)


def measure(side: Side, generator: Generator, callers: int, requests: int, cores: str) -> Run:
    """One run; raises LoadFailed if the server did not count as many successes as there were requests."""
    successes = side.counted() if side.counted else 0
    cpu, redis = side.server.cpu_s(), cpu_s(side.redis)
    load = generator(side.server.address, METHOD, side.bodies, callers=callers, requests=requests, cores=cores)
    cpu, redis = side.server.cpu_s() - cpu, cpu_s(side.redis) - redis
    if side.counted and (counted := side.counted() - successes) < load.requests:
        raise LoadFailed(f"{side.name}: of {load.requests} requests only {counted} were answered OK")
    return Run(load.rate, cpu / load.requests * 1e6, load.p50_us, redis / load.requests * 1e6)


def requests_for(seconds: float, side: Side, generator: Generator, callers: int, cores: str) -> int:
    """How many requests take `seconds`, by runs ever longer until one is long enough to tell."""
    requests = 400 + 50 * callers
    while (rate := measure(side, generator, callers, requests, cores).rate) * LONG_ENOUGH_S > requests:
        requests *= 4
    return max(int(rate * seconds), callers)


def median_run(runs: Iterable[Run]) -> Run:
    """The median of each figure."""
    figures = [asdict(run) for run in runs]
    return Run(**{name: statistics.median(run[name] for run in figures) for name in figures[0]})


def counter(client: Client, model: str) -> Callable[[], int]:
    """Reads how many requests of a model the server answered OK."""
    return lambda: sum(entry.phases["success"].count for entry in client.statistics(model))


def machine() -> str:
    """What this is measured on, in one line."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())
    return f"{cpu}, {os.cpu_count()} cores, Python {platform.python_version()}, grpcio {version('grpcio')}"
