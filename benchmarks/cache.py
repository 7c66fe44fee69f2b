"""What the cache of answers gives where requests come again, and what it costs where none ever does.

Servers run as processes of their own, all on the native transport over one registry: Penstock with a cache, Penstock
without, and the bare nghttp2 echo. They are driven in turn, A B C A B C …; see `lines.py` for how ratios are taken.

- *Hits*: one request again and again by h2load at 4 connections of 64 streams, against the echo of the same bytes.
- *Unique*: `POOL` requests that all differ, in turn, by the generator of `penstock bench`. The cache, of 256 KiB, is
  full of others before, and remembers a tenth of them, so each was forgotten long before it comes again.
- *Shared*: the dear model of `mixed.py`, one caller: answers found in a Redis each time, as they are too large for the
  own cache, and answers never found, as their time is up once they are made, against runs without any cache.

    python -m penstock.benchmarks.cache [--rounds 5] [--seconds 3] [--pin] [--json]

Ends with 1 if a line is missed.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from penstock.benchmarks.generators import H2load, Load, LoadFailed, PoolLoad
from penstock.benchmarks.lines import Line, Outcome
from penstock.benchmarks.mixed import WIDTH, publish_dear
from penstock.benchmarks.processes import Server
from penstock.benchmarks.seeded import FEATURES, METHOD, SEED, publish, vector_bodies
from penstock.benchmarks.sides import Side, counter, machine, penstock
from penstock.benchmarks.transports import CONNECTIONS, STREAMS, Scenario, echo_server, missed, report
from penstock.client import Client
from penstock.commands._console import errors, print_json
from penstock.errors import PenstockError
from penstock.features.embedded import find_executable

POOL, OTHERS = 1 << 18, 1 << 12
ROOM = 1 << 18  # bytes: 600 answers, and 1,600 requests seen lately, or 26,000 where few are looked up
SETTINGS = {"cached": "cache: {plain: {bytes: 67108864}}\n", "small": f"cache: {{plain: {{bytes: {ROOM}}}}}\n"}
HITS = (Line("cached", "rate", against="echo", at_least=0.8),)
UNIQUE = (Line("small", "rate", against="off", at_least=0.97),)
SHARED = (Line("found", "p50_us", against="run", at_most=0.5), Line("never", "p50_us", against="run", at_most=1.25))


def served(name: str, folder: Path, cores: str) -> Server:
    """Penstock with the settings of that name."""
    return penstock(name, folder, "native", cores, SETTINGS.get(name, ""))


def measured_sharing(folder: Path, rounds: int, seconds: float, *, pin: bool) -> Outcome:
    """The last scenario."""
    server_cores, load_cores = ("0", "1") if pin else ("", "")
    publish_dear(folder)
    with ExitStack() as stack:
        url = stack.enter_context(redis_server(folder))
        configs = {
            "found": f"cache: {{dear: {{bytes: 65536, shared: '{url}'}}}}\n",
            "never": f"cache: {{dear: {{bytes: 65536, ttl_s: 0.0001, shared: '{url}?db=1'}}}}\n",
            "run": "",
        }
        running = {
            name: stack.enter_context(penstock(name, folder, "native", server_cores, config))
            for name, config in configs.items()
        }
        clients = {name: stack.enter_context(Client(server.address)) for name, server in running.items()}
        bodies = vector_bodies("dear", "x", np.ones((1, WIDTH), np.float32))
        sides = [Side(name, running[name], bodies, counter(clients[name], "dear")) for name in running]
        outcome = Scenario("one caller, shared", sides, H2load(1), 1, SHARED).outcome(rounds, seconds, load_cores)
        check(clients, "dear", {"found": "cache_hit", "never": "cache_miss"})
        return outcome


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """The URL of a Redis that keeps nothing on disk and ends with the block."""
    socket = folder / "answers.sock"
    words = ["--port", "0", "--unixsocket", str(socket), "--dir", str(folder), "--save", ""]
    with subprocess.Popen([find_executable(), *words], stdout=subprocess.DEVNULL) as process:
        try:
            yield f"unix://{socket}"
        finally:
            process.terminate()


def measured(folder: Path, rounds: int, seconds: float, *, pin: bool) -> list[Outcome]:
    """The first two scenarios, in turn."""
    server_cores, load_cores = ("0", "1") if pin else ("", "")
    publish(folder, ("plain",))
    with ExitStack() as stack:
        running = {name: stack.enter_context(served(name, folder, server_cores)) for name in ("cached", "small", "off")}
        echo = stack.enter_context(echo_server(folder, server_cores))
        clients = {name: stack.enter_context(Client(server.address)) for name, server in running.items()}
        rows = np.random.default_rng(SEED).normal(size=(POOL + OTHERS, FEATURES)).astype(np.float32)
        bodies = vector_bodies("plain", clients["off"].config("plain").vector, rows)
        counters = {name: counter(client, "plain") for name, client in clients.items()}
        hits = [Side("cached", running["cached"], bodies[:1], counters["cached"]), Side("echo", echo, bodies[:1])]
        unique = [Side(name, running[name], bodies[:POOL], counters[name]) for name in ("small", "off")]
        many = CONNECTIONS * STREAMS
        fill(running["small"], bodies[POOL:])
        outcomes = [
            Scenario("one request", hits, H2load(1, connections=CONNECTIONS, log=False), many, HITS),
            Scenario(f"{POOL:,} requests", unique, Onward(), many, UNIQUE),
        ]
        found = [scenario.outcome(rounds, seconds, load_cores) for scenario in outcomes]
        check(clients, "plain", {"cached": "cache_hit", "small": "cache_miss"})
        return found


class Onward:
    """The pool's generator, each run of which goes on where the one before ended."""

    name = PoolLoad.name

    def __init__(self) -> None:
        self._next = 0

    def __call__(
        self, address: str, method: str, bodies: Sequence[bytes], *, callers: int, requests: int, cores: str = ""
    ) -> Load:
        """Drive `requests` of the bodies."""
        turned = [*bodies[self._next :], *bodies[: self._next]]
        self._next = (self._next + requests) % len(bodies)
        return PoolLoad(CONNECTIONS)(address, method, turned, callers=callers, requests=requests, cores=cores)


def fill(server: Server, bodies: Sequence[bytes]) -> None:
    """Have the cache full of the answers to these."""
    PoolLoad(CONNECTIONS)(server.address, METHOD, bodies, callers=STREAMS, requests=len(bodies))


def check(clients: dict[str, Client], model: str, expected: dict[str, str]) -> None:
    """Raise LoadFailed unless what each server was asked was what is expected: cache_hit or cache_miss."""
    for name, phase in expected.items():
        phases = clients[name].statistics(model)[0].phases
        share = phases[phase].count / phases["success"].count
        if share < 0.98:
            raise LoadFailed(f"{name}: only {share:.0%} of the requests were counted as {phase}")


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each side, in turn.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of one run.")] = 3.0,
    pin: Annotated[bool, typer.Option(help="Servers on core 0, load on core 1.")] = False,
    json: Annotated[bool, typer.Option(help="Figures as JSON.")] = False,
) -> None:
    """Measure hits against an echo, unique requests and shared answers against no cache; 1 if a line is missed."""
    try:
        with tempfile.TemporaryDirectory(prefix="penstock-bench-") as name:
            outcomes = measured(Path(name), rounds, seconds, pin=pin)
            outcomes.append(measured_sharing(Path(name), rounds, seconds, pin=pin))
    except PenstockError as error:
        errors.print(str(error), markup=False, highlight=False)
        raise typer.Exit(1) from None
    if json:
        print_json({"machine": machine(), "pinned": pin, "scenarios": [outcome.as_json() for outcome in outcomes]})
    else:
        report(outcomes, title="Cache")
    if lines := missed(outcomes):
        errors.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
