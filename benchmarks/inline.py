"""Inline runs against the lane: the same native transport, the same model, with the switch on auto and off.

Both servers run as processes of their own over one registry and are driven in turn by h2load, A B A B …; see `lines.py`
for how ratios are taken. The model is the logistic regression; one body is repeated, which costs such a model nothing
less. Answers are held against the model's source by value, before and after.

    python -m penstock.benchmarks.inline [--rounds 5] [--seconds 3] [--pin] [--json]

Ends with 1 if a line is missed.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from penstock.benchmarks.generators import H2load
from penstock.benchmarks.lines import Line, Outcome
from penstock.benchmarks.seeded import check_values, publish, vector_bodies
from penstock.benchmarks.sides import Side, counter, machine, penstock
from penstock.benchmarks.transports import Scenario, missed, report
from penstock.client import Client
from penstock.commands._console import errors, print_json
from penstock.errors import PenstockError

ONE = (Line("inline", "p50_us", against="lane", at_most=0.75),)
EIGHT = (Line("inline", "rate", against="lane", at_least=1.5),)
MANY = (Line("inline", "cpu_us", at_most=3),)


def measured(folder: Path, rounds: int, seconds: float, *, pin: bool) -> list[Outcome]:
    """Every scenario, in turn."""
    server_cores, load_cores = ("0", "1") if pin else ("", "")
    seeded = publish(folder)
    with ExitStack() as stack:
        sides = []
        for name, switch in (("inline", "auto"), ("lane", "off")):
            more = f"inline: '{switch}'\n"
            server = stack.enter_context(penstock(name, folder, "native", server_cores, more))
            client = stack.enter_context(Client(server.address))
            check_values(client, seeded)
            bodies = vector_bodies("plain", client.config("plain").vector, seeded.rows)
            sides.append(Side(name, server, bodies, counter(client, "plain")))
        asked = [
            Scenario("one caller", sides, H2load(1), 1, ONE),
            Scenario("8 callers", sides, H2load(1, connections=8, log=False), 8, EIGHT),
            Scenario("4 x 64", sides, H2load(1, connections=4, log=False), 256, MANY),
        ]
        return [scenario.outcome(rounds, seconds, load_cores) for scenario in asked]


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each side, in turn.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of one run.")] = 3.0,
    pin: Annotated[bool, typer.Option(help="Servers on core 0, load on core 1.")] = False,
    json: Annotated[bool, typer.Option(help="Figures as JSON.")] = False,
) -> None:
    """Measure inline runs against the lane; ends with 1 if a line is missed."""
    try:
        with tempfile.TemporaryDirectory(prefix="penstock-bench-") as name:
            outcomes = measured(Path(name), rounds, seconds, pin=pin)
    except PenstockError as error:
        errors.print(str(error), markup=False, highlight=False)
        raise typer.Exit(1) from None
    lines = missed(outcomes)
    if json:
        print_json({"machine": machine(), "pinned": pin, "scenarios": [outcome.as_json() for outcome in outcomes]})
    else:
        report(outcomes)
    if lines:
        errors.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
