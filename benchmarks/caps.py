"""Whether the measured cap on runs is as good as any fixed one.

One `penstock serve` on the native transport serves each model several times, under a name for every `batch_cap`: auto,
and a range of fixed ones. Servers of equal settings differ by several percent from process to process, and versions
within one do not. The same callers ask for requests of 1, 8, 64 and 256 rows of three models: a logistic regression and
200 trees of depth 6 on 30 features, and a network 128-256-256. All rows differ, and every answer's status is checked.

Auto must reach 0.95 of every fixed cap, and noise is as large as that. So auto and a fixed cap run in turn, many times
and shortly, neither always first, and the median of the ratios of requests per second is judged. Another copy with
auto's settings is compared in the same way: the **control**, whose ratio would be 1 if there were no noise. A fixed cap
equal to the measured one is no side: it would be a second control. Medians of the server's CPU time a request stand
beside, since they are steadier where something else runs on the machine.

    python -m penstock.benchmarks.caps [--rounds 15] [--seconds 0.2] [--callers 32] [--json]
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from penstock.benchmarks.generators import PoolLoad
from penstock.benchmarks.processes import Server
from penstock.benchmarks.seeded import Seeded, publish
from penstock.benchmarks.sides import Run, Side, machine, measure, penstock, requests_for
from penstock.client import Client
from penstock.commands._console import console, errors, print_json, print_table
from penstock.registry import Draft, Registry

AUTO, CONTROL = "auto", "control"
FIXED = (8, 32, 64, 128, 256)
ROWS = (1, 8, 64, 256)
AT_LEAST = 0.95
MODELS = ("plain", "trees", "mlp")
CONNECTIONS = 4


@dataclass(frozen=True)
class Middle:
    """The median of some ratios, and the quartiles that half of them lie between."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, ratios: list[float]) -> Middle:
        low, value, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else 3 * ratios
        return cls(value, low, high)

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.2f} to {self.high:.2f})"


@dataclass(frozen=True)
class Pair:
    """Auto beside another side: the two runs of every round."""

    against: str
    runs: list[tuple[Run, Run]]

    @property
    def rate(self) -> Middle:
        """Requests a second of auto over the other's."""
        return Middle.of([auto.rate / other.rate for auto, other in self.runs])

    @property
    def cpu(self) -> Middle:
        """The server's CPU time a request, auto's over the other's."""
        return Middle.of([auto.cpu_us / other.cpu_us for auto, other in self.runs])

    @property
    def held(self) -> bool:
        return self.against == CONTROL or self.rate.value >= AT_LEAST


@dataclass(frozen=True)
class Scenario:
    """One model and size of requests: auto beside the control and every other cap."""

    name: str
    control: Pair
    fixed: list[Pair]

    @property
    def worst(self) -> Pair:
        """The fixed cap that auto does worst against."""
        return min(self.fixed, key=lambda pair: pair.rate.value)

    @property
    def auto_rate(self) -> float:
        """Requests a second of auto, the median of all its runs."""
        return statistics.median(auto.rate for pair in (self.control, *self.fixed) for auto, _ in pair.runs)


def compare(
    model: Seeded, rows: int, server: Server, against: list[str], rounds: int, seconds: float, callers: int, cores: str
) -> Scenario:
    """Drive auto beside every other side, `rounds` times."""
    generator = PoolLoad(CONNECTIONS)
    auto, *others = (Side(name, server, named(model, name).bodies(rows)) for name in (AUTO, *against))
    requests = requests_for(seconds, auto, generator, callers, cores)
    pairs = {side.name: Pair(side.name, []) for side in others}
    for i in range(rounds):
        errors.print(f"{model.name}, {rows} rows a request: round {i + 1} of {rounds}", highlight=False)
        for turn, side in enumerate(others):
            order = (auto, side) if (i + turn) % 2 else (side, auto)  # nobody is always first
            runs = {one.name: measure(one, generator, callers, requests, cores) for one in order}
            pairs[side.name].runs.append((runs[AUTO], runs[side.name]))
    return Scenario(f"{model.name}, {rows} rows", pairs.pop(CONTROL), list(pairs.values()))


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Of every pair.")] = 15,
    seconds: Annotated[float, typer.Option(min=0.05, help="Of one run.")] = 0.2,
    callers: Annotated[int, typer.Option(min=1, help="Callers in a closed loop.")] = 32,
    server_cores: Annotated[str, typer.Option(metavar="CORES", help="Keep the server there; any otherwise.")] = "",
    load_cores: Annotated[str, typer.Option(metavar="CORES", help="Keep the generator there.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Compare the measured cap with fixed ones; ends with 1 if auto is below 0.95 of one of them anywhere."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        published = publish(folder, MODELS)
        settings = copied(Registry(folder / "registry"), published)
        with penstock("caps", folder, "native", server_cores, settings) as server:
            caps = {side: measured_caps(server, published.values(), side) for side in (AUTO, CONTROL)}
            scenarios = [
                compare(model, rows, server, others(caps[AUTO][model.name]), rounds, seconds, callers, load_cores)
                for model in published.values()
                for rows in ROWS
            ]
    report(scenarios, caps, as_json)
    raise typer.Exit(0 if all(pair.held for scenario in scenarios for pair in scenario.fixed) else 1)


def named(model: Seeded, side: str) -> Seeded:
    """The model under the name that a side serves it by."""
    return replace(model, name=f"{model.name}-{side}")


def copied(registry: Registry, models: dict[str, Seeded]) -> str:
    """Publish each model once for every side; the lines of configuration that give each its cap."""
    lines = ["batch_cap:"]
    for model in models.values():
        version = registry.load(model.name, 1)
        described = version.manifest.model_dump(include=set(Draft.model_fields))
        for side in (AUTO, CONTROL, *map(str, FIXED)):
            name = named(model, side).name
            registry.publish(Draft.model_validate(described | {"model_name": name}), version.files)
            lines.append(f"  {name}: {side if side.isdigit() else AUTO}")
    return "\n".join(lines) + "\n"


def measured_caps(server: Server, models: Iterable[Seeded], side: str) -> dict[str, int]:
    """What the server found for a side of each model."""
    with Client(server.address) as client:
        found = {model.name: client.config(named(model, side).name) for model in models}
    return {name: int(config.parameters["penstock.cap"]) for name, config in found.items()}


def others(cap: int) -> list[str]:
    """All sides but auto, and the one that does what auto does."""
    return [CONTROL, *(str(fixed) for fixed in FIXED if fixed != cap)]


def as_data(pair: Pair) -> dict[str, Any]:
    """As plain data."""
    ratios = {"rate": pair.rate, "cpu": pair.cpu}
    told = {name: {"median": one.value, "quartiles": [one.low, one.high]} for name, one in ratios.items()}
    runs = [{AUTO: [a.rate, a.cpu_us], pair.against: [b.rate, b.cpu_us]} for a, b in pair.runs]
    return {"against": pair.against, **told, "held": pair.held, "runs": runs}


def report(scenarios: list[Scenario], caps: dict[str, dict[str, int]], as_json: bool) -> None:
    """As a table of each scenario's control and nearest rival, or everything as JSON."""
    if as_json:
        told = [
            {"name": one.name, "control": as_data(one.control), "fixed": [as_data(pair) for pair in one.fixed]}
            for one in scenarios
        ]
        print_json({"machine": machine(), "caps": caps, "at_least": AT_LEAST, "outcomes": told})
        return
    headers = ("What", "auto/s", "auto / control", "Best fixed", "auto / fixed", f"At least {AT_LEAST}", "CPU")
    print_table(machine(), headers, [_row(one) for one in scenarios], numeric=(*headers[1:5], headers[-1]))
    console.print("Medians of ratios, between which quartiles half of them lie.", highlight=False)
    for side, found in caps.items():
        console.print(f"Caps of {side}: " + ", ".join(f"{name} {cap}" for name, cap in found.items()), highlight=False)


def _row(scenario: Scenario) -> tuple[str, ...]:
    worst = scenario.worst
    judged = "held" if worst.held else "MISSED"
    figures = (str(scenario.control.rate), worst.against, str(worst.rate), judged, f"{worst.cpu.value:.3f}")
    return (scenario.name, f"{scenario.auto_rate:,.0f}", *figures)


if __name__ == "__main__":
    typer.run(main)
