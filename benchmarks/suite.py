"""The table: Penstock's transports, other servers and bare echoes, all asked the same by the same generator.

Every side is a process of its own and lives as long as the run. A round goes through all cells (a kind of request by so
many callers) and drives each cell's sides in turn, A B C, so that what is compared ran within seconds of each other.
Answers are checked by value before, and by status, names, datatypes and shapes while it is measured.

Five rounds of 180 runs of 0.8 s are about 18 minutes on two cores, plus what slow servers take longer; rivals are got
once, in two to three minutes. Echoes and the C++ server know the logistic regression only; by entity id only Penstock
can be asked.

    python -m penstock.benchmarks.suite [--quick] [--readme] [--against FILE]
"""

from __future__ import annotations

import platform
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Self

import typer

from penstock.benchmarks import charts, compare, table
from penstock.benchmarks.cells import Kind, Question, ask, drive, uninterrupted
from penstock.benchmarks.generators import LoadFailed
from penstock.benchmarks.processes import Server, cpu_s, redis_of
from penstock.benchmarks.results import OURS, Cell, NoResults, Results
from penstock.benchmarks.rivals import RIVALS, VERSIONS
from penstock.benchmarks.seeded import Seeded, publish
from penstock.benchmarks.sides import Run, machine
from penstock.commands._console import errors
from penstock.errors import PenstockError

ROOT = Path(__file__).resolve().parents[1]
CALLERS, ROWS, MODELS = (1, 8, 32, 128, 256), (1, 64), ("plain", "trees", "mlp", "joined")
INTERRUPTED = 130

Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What is measured, how often, and for how many seconds each time."""

    rounds: int = 5
    seconds: float = 0.8
    callers: Sequence[int] = CALLERS
    models: Sequence[str] = MODELS
    sides: Sequence[str] = tuple(RIVALS)

    @property
    def kinds(self) -> list[Kind]:
        return [Kind(name, "id" if name == "joined" else "vector", rows) for name in self.models for rows in ROWS]

    @classmethod
    def of(cls, before: Results) -> Self:
        """What gave these results."""
        models = tuple(dict.fromkeys(kind.model for kind in before.kinds))
        sides = tuple(side for side in before.titles if side in RIVALS)
        return cls(before.rounds, before.seconds, tuple(before.callers), models, sides)


QUICK = Plan(2, 0.2, (1, 32), ("plain",), ("native", "aio"))


@dataclass
class Side:
    """A server that runs, and what it is asked."""

    key: str
    server: Server
    questions: Mapping[Kind, Question]
    redis: Callable[[], float]
    failed: dict[Cell, str] = field(default_factory=dict)

    def run(self, cell: Cell, seconds: float) -> Run | None:
        """One run; None where the server cannot be asked so, or failed at it. Penstock must not fail."""
        question = self.questions.get(cell.kind)
        if question is None or cell in self.failed:
            return None
        clocks = [self.server.cpu_s] if cell.kind.by == "vector" else [self.server.cpu_s, self.redis]
        try:
            return drive(self.server.address, question, cell.callers, seconds, clocks)
        except LoadFailed as error:
            if self.key in OURS:
                raise LoadFailed(f"{self.server.name}, {cell}: {error}") from None
            self.failed[cell] = str(error)
            return None


def measured(plan: Plan, folder: Path, say: Say) -> Results:
    """Everything of the plan; raises PenstockError where there is nothing to measure with."""
    say(f"publishing {', '.join(plan.models)}")
    models, left_out = publish(folder, plan.models), dict[str, str]()
    with ExitStack() as stack:
        sides = [side for key in plan.sides if (side := _entered(stack, key, folder, models, plan, left_out, say))]
        if not sides:
            raise LoadFailed(f"no side could be started: {'; '.join(left_out.values())}")
        runs = _rounds(plan, sides, say)
        resident = {side.key: side.server.resident_bytes() for side in sides}
    for side in sides:
        left_out |= {f"{RIVALS[side.key].title}, {cell}": why for cell, why in side.failed.items()}
    titles = {side.key: RIVALS[side.key].title for side in sides} | {
        key: RIVALS[key].title for key in left_out if key in RIVALS
    }
    made = datetime.now(UTC).isoformat(timespec="seconds")
    return Results(made, machine(), versions(plan.sides), plan.seconds, titles, runs, resident, left_out)


def _entered(
    stack: ExitStack,
    key: str,
    folder: Path,
    models: Mapping[str, Seeded],
    plan: Plan,
    left_out: dict[str, str],
    say: Say,
) -> Side | None:
    """The side, started and asked for the first time; None where it cannot be had, which is noted."""
    rival = RIVALS[key]
    own = {name: model for name, model in models.items() if name in rival.models}
    if not own:
        return None
    say(f"starting {rival.title}")
    try:
        server = stack.enter_context(rival.start(folder, own, "", say))
        kinds = [kind for kind in plan.kinds if kind.model in own]
        questions = {kind: ask(server.address, kind, own[kind.model], echo=rival.echo) for kind in kinds}
    except PenstockError as error:
        if key in OURS:
            raise
        say(f"{rival.title} is left out: {error}")
        left_out[key] = str(error)
        return None
    redis = redis_of(folder / "store") if "joined" in own else []
    return Side(key, server, questions, partial(cpu_s, redis))


def _rounds(plan: Plan, sides: Sequence[Side], say: Say) -> dict[Cell, dict[str, list[Run]]]:
    """Every cell of every round, sides in turn."""
    runs: dict[Cell, dict[str, list[Run]]] = {}
    start = time.monotonic()
    with uninterrupted() as came:
        for i, kind in product(range(plan.rounds), plan.kinds):
            say(f"round {i + 1} of {plan.rounds}: {table.name_of(kind)} ({(time.monotonic() - start) / 60:.1f} min)")
            for callers, side in product(plan.callers, sides):
                cell = Cell(kind, callers)
                if came:
                    return {}
                if run := side.run(cell, plan.seconds):
                    runs.setdefault(cell, {}).setdefault(side.key, []).append(run)
    return runs


def versions(sides: Sequence[str]) -> dict[str, str]:
    """Of what was measured."""
    found = {name: version(name) for name in ("penstock", "onnxruntime")}
    found |= {name: number for side in sides for name, number in VERSIONS.get(side, {}).items()}
    return found | {"Linux": platform.release()}


# ---- The command -----------------------------------------------------------------------------------------------------


def _plan(start: Plan, rounds: int | None, seconds: float | None, callers: str, models: str, sides: str) -> Plan:
    """`start`, with what was said on the command line."""
    given: dict[str, Any] = {
        "rounds": rounds,
        "seconds": seconds,
        "callers": _numbers(callers),
        "models": _names("--models", models, MODELS),
        "sides": _names("--sides", sides, tuple(RIVALS)),
    }
    return replace(start, **{name: value for name, value in given.items() if value})


def _names(option: str, text: str, known: Sequence[str]) -> tuple[str, ...]:
    names = tuple(text.split(",")) if text else ()
    if unknown := [name for name in names if name not in known]:
        raise LoadFailed(f"{option} knows no {unknown[0]!r}; there are {', '.join(known)}")
    return names


def _numbers(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(word) for word in text.split(",")) if text else ()
    except ValueError:
        numbers = (0,)
    if not all(0 < number <= 4096 for number in numbers):
        raise LoadFailed(f"--callers is a list such as 1,8,32, of numbers from 1 to 4096; not {text!r}")
    return numbers


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM ends it as Ctrl-C does: with every server."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _written(results: Results, path: Path) -> None:
    """The JSON file, and the whole table and the plots beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(results.encode())
    path.with_suffix(".md").write_text(table.everything(results) + "\n")
    path.with_suffix(".html").write_text(charts.page(results))


def _say(text: str) -> None:
    errors.print(text, markup=False, highlight=False, soft_wrap=True)


def main(
    quick: Annotated[bool, typer.Option(help="A few seconds: two sides, one model, short runs.")] = False,
    sides: Annotated[str, typer.Option(metavar="NAME,...", help=f"Of {', '.join(RIVALS)}.")] = "",
    models: Annotated[str, typer.Option(metavar="NAME,...", help=f"Of {', '.join(MODELS)}.")] = "",
    callers: Annotated[str, typer.Option(metavar="N,...", help="1,8,32,128,256 if not said.")] = "",
    rounds: Annotated[int | None, typer.Option(min=1, help="5 if not said.")] = None,
    seconds: Annotated[float | None, typer.Option(min=0.05, help="Of each run; 0.8 if not said.")] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE.json", help="Instead of build/bench/DATE.json.")] = None,
    readme: Annotated[bool, typer.Option("--readme", help="Put the table into README.md.")] = False,
    against: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Measure the same again and say what changed; ends with 1 if for the worse."),
    ] = None,
    results: Annotated[
        Path | None, typer.Option("--from", metavar="FILE", help="Take the figures from a file instead of measuring.")
    ] = None,
) -> None:
    """Measure Penstock and other servers side by side, and print the README's table."""
    try:
        before = Results.read(against) if against else None
        start = QUICK if quick else Plan.of(before) if before else Plan()
        plan, file = _plan(start, rounds, seconds, callers, models, sides), json or _dated()
        if readme:
            table.replaced((ROOT / "README.md").read_text(), "")
        found = Results.read(results) if results else _run(plan, file)
        worse = _reported(found, before, readme=readme)
    except PenstockError as error:
        _say(str(error))
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        _say("interrupted; every server was ended, and nothing was written")
        raise typer.Exit(INTERRUPTED) from None
    if worse:
        raise typer.Exit(1)


def _dated() -> Path:
    return ROOT / "build" / "bench" / f"{datetime.now(UTC):%Y-%m-%d-%H%M%S}.json"


def _run(plan: Plan, file: Path) -> Results:
    if file.suffix != ".json":
        raise NoResults(f"--json: the name must end in .json, not {file.name!r}; .md and .html are written beside it")
    with _interruptible(), tempfile.TemporaryDirectory(prefix="penstock-bench-") as name:
        found = measured(plan, Path(name), _say)
    _written(found, file)
    _say(f"written: {file}, and .md and .html beside it")
    return found


def _reported(found: Results, before: Results | None, *, readme: bool) -> bool:
    """Print the table, or what changed; whether that is for the worse."""
    if readme:
        table.update(ROOT / "README.md", found)
    if before is None:
        print(table.summary(found))
        return False
    lines, worse = compare.report(before, found)
    print("\n".join(lines))
    return worse


if __name__ == "__main__":
    typer.run(main)
