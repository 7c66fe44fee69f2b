"""What a run of the suite came to, as a value: every figure of every round, and where it was measured.

A file of it is what a later run is compared with. Ratios are taken within a round, where sides ran in turn, and their
median is given: machines drift by a fifth within seconds, and what ran next to each other drifts together.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

import orjson

from penstock.benchmarks.cells import Kind
from penstock.benchmarks.sides import Run, median_run
from penstock.errors import PenstockError

FORMAT = 1
OURS = ("native", "grpcio")
BASE = OURS[0]
"""The side that the others are compared with."""


class NoResults(PenstockError):  # noqa: N818 - the house's errors say what happened
    """A file holds no results of the suite."""


class Cell(NamedTuple):
    """A kind of request by so many callers."""

    kind: Kind
    callers: int

    def __str__(self) -> str:
        return f"{self.kind}/{self.callers}"

    @classmethod
    def parse(cls, text: str) -> Self:
        model, by, rows, callers = text.split("/")
        return cls(Kind(model, by, int(rows)), int(callers))


@dataclass(frozen=True)
class Results:
    """A run of the suite.

    Attributes:
        made: when, in ISO 8601.
        machine: what it was measured on, in one line.
        versions: of what was measured.
        seconds: length of one run.
        titles: of the sides, in order.
        runs: for each cell and side, one run for each round.
        resident: bytes of memory of each side after the last round.
        left_out: sides that could not be measured, or cells of a side, and why.
    """

    made: str
    machine: str
    versions: Mapping[str, str]
    seconds: float
    titles: Mapping[str, str]
    runs: Mapping[Cell, Mapping[str, Sequence[Run]]]
    resident: Mapping[str, int] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def kinds(self) -> list[Kind]:
        return list(dict.fromkeys(cell.kind for cell in self.runs))

    @property
    def callers(self) -> list[int]:
        return sorted({cell.callers for cell in self.runs})

    @property
    def rounds(self) -> int:
        return max((len(runs) for sides in self.runs.values() for runs in sides.values()), default=0)

    def sides(self, kind: Kind) -> list[str]:
        """The sides that were asked such requests."""
        found = {side for cell, sides in self.runs.items() if cell.kind == kind for side in sides}
        return [side for side in self.titles if side in found]

    def median(self, cell: Cell, side: str) -> Run | None:
        """The median of each figure; None where it was not measured."""
        runs = self.runs.get(cell, {}).get(side)
        return median_run(runs) if runs else None

    def ahead(self, cell: Cell, side: str) -> float | None:
        """The base's requests a second over the side's, median over rounds; None where one is missing."""
        sides = self.runs.get(cell, {})
        pairs = list(zip(sides.get(BASE, ()), sides.get(side, ()), strict=False))
        return statistics.median(base.rate / other.rate for base, other in pairs) if pairs else None

    def encode(self) -> bytes:
        """As JSON."""
        value = {"format": FORMAT, **asdict(self)}
        value["runs"] = {
            str(cell): {side: [asdict(run) for run in runs] for side, runs in sides.items()}
            for cell, sides in self.runs.items()
        }
        return orjson.dumps(value, option=orjson.OPT_INDENT_2)

    @classmethod
    def read(cls, path: Path) -> Self:
        """The results in a file; raises NoResults."""
        try:
            value: dict[str, Any] = orjson.loads(path.read_bytes())
            if value.pop("format") != FORMAT:
                raise NoResults(f"{path}: its format is another one; measure anew with scripts/bench --json {path}")
            value["runs"] = {
                Cell.parse(cell): {side: [Run(**run) for run in runs] for side, runs in sides.items()}
                for cell, sides in value["runs"].items()
            }
            return cls(**value)
        except OSError as error:
            raise NoResults(f"{path}: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise NoResults(f"{path} holds no results; scripts/bench --json FILE writes such a file") from None
