"""Transforms against scikit-learn: the same steps, fitted by scikit-learn's rules, over the same rows, in one process.

Thirty columns go through what models of tables are usually given: impute, clip, log1p and standardize; min-max; bins;
ordinal and one-hot categories; the hour of the day as sine and cosine. Scikit-learn's side is a ColumnTransformer of
pipelines over a plain float64 array, the fastest form it takes, with its checks for infinities off; ours is the program
that a server runs over the float32 rows of a batch. Before anything is timed their outputs are compared. Both run in
turn, A B A B …, on rows that differ, and the figure is the median of the ratios of neighbouring runs.

    python -m penstock.benchmarks.transforms [--rounds 31] [--json]

Ends with 1 if a line is missed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from penstock.benchmarks.lines import Judged, judged, print_judged
from penstock.commands._console import print_json, print_table
from penstock.features.transforms import Transforms
from penstock.training import fit

SIZES = (1, 64, 1024, 100_000)
LINES = {64: 10.0, 100_000: 1.0}
FITTED_ON = 20_000
TURNS = 200
"""Batches of a run at most, each of other rows; scikit-learn gets a tenth of them, since it takes so much longer."""
Matrix = NDArray[Any]
Run = Callable[[Matrix], Any]

SCALED, RANGED, BINNED = range(12), range(12, 18), range(18, 22)
ORDERED, KINDS, HOUR = range(22, 26), range(26, 29), 29
NAMES = tuple(f"c{j}" for j in range(30))


def rows(n: int, seed: int = 7) -> Matrix:
    """[n, 30] numbers, a twentieth of them missing where columns may have gaps."""
    chance = np.random.default_rng(seed)
    x = chance.lognormal(size=(n, 30))
    x[:, :18][chance.random((n, 18)) < 0.05] = np.nan
    x[:, ORDERED] = chance.integers(0, 20, (n, len(ORDERED)))
    x[:, KINDS] = chance.integers(0, 6, (n, len(KINDS)))
    x[:, HOUR] = chance.uniform(0, 24, n)
    return x.astype(np.float32).astype(np.float64)


def names(places: range) -> list[str]:
    """Of columns by their places."""
    return [NAMES[j] for j in places]


def ours() -> Transforms:
    """The steps, fitted by our recipes."""
    return fit(
        [
            {"op": "impute", "columns": names(range(18))},
            {"op": "clip", "columns": names(SCALED), "quantiles": [0.0, 0.99]},
            {"op": "log1p", "columns": names(SCALED)},
            {"op": "standardize", "columns": names(SCALED)},
            {"op": "min_max", "columns": names(RANGED)},
            {"op": "bucketize", "columns": names(BINNED)},
            {"op": "ordinal", "columns": names(ORDERED)},
            {"op": "one_hot", "columns": names(KINDS)},
            {"op": "cyclical", "columns": [NAMES[HOUR]], "period": 24},
        ],
        rows(FITTED_ON),
        NAMES,
    )


def theirs(x: Matrix, clip_at: Matrix) -> Any:
    """The same by scikit-learn, fitted; clipped as ours is, since scikit-learn learns no quantiles to clip at."""
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import (
        FunctionTransformer,
        KBinsDiscretizer,
        MinMaxScaler,
        OneHotEncoder,
        OrdinalEncoder,
        StandardScaler,
    )

    clip = FunctionTransformer(np.clip, kw_args={"a_min": clip_at[0], "a_max": clip_at[1]})
    scaled = make_pipeline(SimpleImputer(strategy="median"), clip, FunctionTransformer(np.log1p), StandardScaler())
    steps = [
        ("scaled", scaled, list(SCALED)),
        ("ranged", make_pipeline(SimpleImputer(strategy="median"), MinMaxScaler()), list(RANGED)),
        ("binned", KBinsDiscretizer(10, encode="ordinal", quantile_method="averaged_inverted_cdf"), list(BINNED)),
        ("ordered", OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1), list(ORDERED)),
        ("kinds", OneHotEncoder(handle_unknown="ignore", sparse_output=False), list(KINDS)),
        ("hour", FunctionTransformer(_turned), [HOUR]),
    ]
    return ColumnTransformer(steps).fit(x)


def _turned(hour: Matrix) -> Matrix:
    angle = hour * (2 * np.pi / 24)
    return np.hstack([np.sin(angle), np.cos(angle)])


def sides() -> tuple[Run, Run, float]:
    """What runs a batch, ours and theirs, and by how much their answers differ at most."""
    transforms, x = ours(), rows(FITTED_ON)
    program = transforms.program(NAMES)
    clip = next(step for step in transforms.steps if step.op == "clip")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # bins that fall together are merged, as ours are
        transformer = theirs(x, np.array([clip.low, clip.high]))

    def run(batch: Matrix) -> Matrix:
        out = np.empty((len(batch), program.n_outputs), np.float32)
        program.run(batch, out)
        return out

    fresh = rows(4096, seed=8)
    apart = np.abs(run(fresh.astype(np.float32)) - transformer.transform(fresh)).max()
    return run, transformer.transform, float(apart)


def measure(sizes: tuple[int, ...] = SIZES, rounds: int = 31) -> list[dict[str, Any]]:
    """One line for each size.

    Raises:
        AssertionError: the two do not give the same.
    """
    from sklearn import config_context

    with config_context(assume_finite=True):
        run, transform, apart = sides()
        assert apart < 1e-5, f"the outputs differ by up to {apart}"
        return [_line(run, transform, n, max(3, rounds // 8) if n > FITTED_ON else rounds) for n in sizes]


def _line(run: Run, transform: Run, n: int, rounds: int) -> dict[str, Any]:
    turns = max(1, min(TURNS, FITTED_ON // n))
    found = []
    for number in range(rounds):
        exact = rows(n * turns, seed=number).reshape(turns, n, len(NAMES))
        single = exact.astype(np.float32)
        found.append((_seconds(run, single), _seconds(transform, exact[: max(1, turns // 10)])))
    return {
        "rows": n,
        "penstock_us": round(median(a for a, _ in found) * 1e6, 1),
        "scikit_learn_us": round(median(b for _, b in found) * 1e6, 1),
        "ratios": [round(b / a, 1) for a, b in found],
    }


def lines_of(found: list[dict[str, Any]]) -> list[Judged]:
    """What is to hold, as far as it was measured."""
    ratios = {line["rows"]: line["ratios"] for line in found}
    name = "transforms of 30 columns, {:,} rows: Penstock / scikit-learn, rows/s"
    return [judged(name.format(n), ratios[n], at_least=limit) for n, limit in LINES.items() if n in ratios]


def _seconds(run: Run, batches: Matrix) -> float:
    """For one batch, on the average."""
    begun = perf_counter()
    for batch in batches:
        run(batch)
    return (perf_counter() - begun) / len(batches)


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Pairs of runs of each size.")] = 31,
    json: Annotated[bool, typer.Option("--json", help="Figures as JSON.")] = False,
) -> None:
    """Measure transforms against scikit-learn; 1 where a line is missed."""
    found = measure(rounds=rounds)
    lines = lines_of(found)
    if json:
        print_json({"sizes": found, "lines": lines})
    else:
        heads = ("rows", "Penstock µs", "scikit-learn µs", "times")
        table = [
            (f"{one['rows']:,}", one["penstock_us"], one["scikit_learn_us"], round(median(one["ratios"]), 1))
            for one in found
        ]
        texts = [tuple(map(str, row)) for row in table]
        print_table("Transforms against scikit-learn, 30 columns, one thread", heads, texts, numeric=heads)
    print_judged(lines)
    raise typer.Exit(not all(line["held"] for line in lines))


if __name__ == "__main__":
    typer.run(main)
