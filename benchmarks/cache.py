"""What the cache of answers gives where requests come again, and what it costs where none ever does.

Servers run as processes of their own, all on the native transport over one registry: Penstock with a cache, Penstock
without, and the bare nghttp2 echo. They are driven in turn, A B C A B C …; see `lines.py` for how ratios are taken.

- *Hits*: one request again and again by h2load at 4 connections of 64 streams, against the echo of the same bytes.
- *Unique*: `POOL` requests that all differ, in turn, by the generator of `penstock bench`. The cache, of 256 KiB, is
  full of others before, and remembers a tenth of them, so each was forgotten long before it comes again.

    python -m penstock.benchmarks.cache [--rounds 5] [--seconds 3] [--pin] [--json]

Ends with 1 if a line is missed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from penstock.benchmarks.generators import H2load, Load, LoadFailed, PoolLoad
from penstock.benchmarks.lines import Line, Outcome
from penstock.benchmarks.processes import Server
from penstock.benchmarks.seeded import FEATURES, METHOD, SEED, publish, vector_bodies
from penstock.benchmarks.sides import Side, counter, machine, penstock
from penstock.benchmarks.transports import CONNECTIONS, STREAMS, Scenario, echo_server, missed, report
from penstock.client import Client
from penstock.commands._console import errors, print_json
from penstock.errors import PenstockError

POOL, OTHERS = 1 << 18, 1 << 12
ROOM = 1 << 18  # bytes: 600 answers, and 1,600 requests seen lately, or 26,000 where few are looked up
SETTINGS = {"cached": "cache: {plain: {bytes: 67108864}}\n", "small": f"cache: {{plain: {{bytes: {ROOM}}}}}\n"}
HITS = (Line("cached", "rate", against="echo", at_least=0.8),)
UNIQUE = (Line("small", "rate", against="off", at_least=0.97),)


def served(name: str, folder: Path, cores: str) -> Server:
    """Penstock with the settings of that name added."""
    server = penstock(name, folder, "native", cores)
    with (folder / f"{name}.yaml").open("a") as settings:
        settings.write(SETTINGS.get(name, ""))
    return server


def measured(folder: Path, rounds: int, seconds: float, *, pin: bool) -> list[Outcome]:
    """Both scenarios, in turn."""
    server_cores, load_cores = ("0", "1") if pin else ("", "")
    publish(folder)
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
        check(clients)
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


def check(clients: dict[str, Client]) -> None:
    """Raise LoadFailed unless what was measured was hits in one case and misses in the other."""
    for name, phase in (("cached", "cache_hit"), ("small", "cache_miss")):
        phases = clients[name].statistics("plain")[0].phases
        share = phases[phase].count / phases["success"].count
        if share < 0.98:
            raise LoadFailed(f"{name}: only {share:.0%} of the requests were counted as {phase}")


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each side, in turn.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of one run.")] = 3.0,
    pin: Annotated[bool, typer.Option(help="Servers on core 0, load on core 1.")] = False,
    json: Annotated[bool, typer.Option(help="Figures as JSON.")] = False,
) -> None:
    """Measure hits against a bare echo, and requests that never come again against no cache; 1 if a line is missed."""
    try:
        with tempfile.TemporaryDirectory(prefix="penstock-bench-") as name:
            outcomes: Sequence[Outcome] = measured(Path(name), rounds, seconds, pin=pin)
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
