"""Forests against ONNX Runtime: ensembles of trees, one thread, rows that differ, from one row to 4,096.

Both run in this process, in turn, A B A B …, by the Python face that a version's worker calls; the figure is the median
of the ratios of neighbouring runs, since machines drift within seconds. Rows are drawn around the thresholds and never
repeat within a run, for repeated rows flatter ONNX Runtime (the branch predictor learns them). Before anything is timed
the referee of the server compares the two.

XGBoost, LightGBM and CatBoost are measured where they and onnxmltools are installed (`pip install penstock[boosting]`).

Then through the native transport: two servers, one of which has the forest switched off, in turn, requests of 64 rows
that all differ of 200 boosted trees of depth 6 (half a minute to fit).

    python -m penstock.benchmarks.forests [--rounds 5] [--model NAME] [--no-served] [--json]
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Annotated, Any

import numpy as np
import typer

from penstock.benchmarks.ensembles import complete, to_onnx
from penstock.benchmarks.generators import PoolLoad
from penstock.benchmarks.lines import Line, Outcome
from penstock.benchmarks.seeded import check_values, publish
from penstock.benchmarks.sides import Side, counter, penstock, requests_for
from penstock.benchmarks.sides import measure as drive
from penstock.client import Client
from penstock.commands._console import console, errors, print_json, print_table
from penstock.converters.graph import unwrap_maps
from penstock.errors import PenstockError
from penstock.server.forests import ForestSession, judge, rows_around
from penstock.server.grafts import cut
from penstock.server.session import Session

SIZES = (1, 4, 16, 64, 256, 1024, 4096)
ROWS_A_RUN = 4096
FEATURES = 30
LINES = {("200 x depth 6", 1): 4.0, ("200 x depth 6", 64): 3.5}
OTHERS = 2.0
"""What every other model must reach at 64 rows; a server leaves it to ONNX Runtime where it does not pay."""
SERVED = Line("forest", "rate", against="onnxruntime", at_least=2.5)
SERVED_ROWS, CALLERS, CONNECTIONS = 64, 32, 4
MODES = {"forest": "auto", "onnxruntime": "off"}


def learnable(n: int) -> tuple[Any, Any]:
    """Rows [n, 30] and a label that trees can learn, with noise, so that they grow deep."""
    chance = np.random.default_rng(7)
    rows = chance.normal(size=(n, FEATURES)).astype(np.float32)
    margin = rows[:, 0] * rows[:, 1] + np.sin(3 * rows[:, 2]) + rows[:, 3] + chance.normal(size=n)
    return rows, (margin > 0).astype(int)


def seeded() -> bytes:
    """Complete trees from a seed: the shape that facts and prototypes speak of."""
    return to_onnx(complete(200, 6, FEATURES))


def random_forest() -> bytes:
    """300 trees of unlimited depth, trained on 20,000 rows."""
    from sklearn.ensemble import RandomForestClassifier

    from penstock.converters import to_onnx as convert

    rows, labels = learnable(20_000)
    return convert(RandomForestClassifier(300, random_state=0).fit(rows, labels), rows[:2])


def xgboost() -> bytes:
    """500 trees of depth 8."""
    from onnxmltools import convert_xgboost
    from xgboost import XGBClassifier

    rows, labels = learnable(20_000)
    return _converted(convert_xgboost, XGBClassifier(n_estimators=500, max_depth=8).fit(rows, labels))


def lightgbm() -> bytes:
    """500 trees of 63 leaves."""
    from lightgbm import LGBMClassifier
    from onnxmltools import convert_lightgbm

    rows, labels = learnable(20_000)
    model = LGBMClassifier(n_estimators=500, num_leaves=63, verbose=-1).fit(rows, labels)
    return _converted(convert_lightgbm, model, zipmap=False)


def catboost() -> bytes:
    """500 symmetric trees of depth 6, a regression."""
    from catboost import CatBoostRegressor

    return _saved(CatBoostRegressor)


def catboost_classes() -> bytes:
    """The same trees for two classes: every leaf votes for both."""
    from catboost import CatBoostClassifier

    return _saved(CatBoostClassifier)


def _saved(kind: Callable[..., Any]) -> bytes:
    import onnx

    rows, labels = learnable(20_000)
    model = kind(iterations=500, depth=6, verbose=0, allow_writing_files=False).fit(rows, labels)
    with tempfile.TemporaryDirectory() as folder:
        model.save_model(f"{folder}/model.onnx", format="onnx")
        made = onnx.load(f"{folder}/model.onnx")
    unwrap_maps(made)
    data: bytes = made.SerializeToString()
    return data


def _converted(convert: Callable[..., Any], model: Any, **options: Any) -> bytes:
    from onnxmltools.convert.common.data_types import FloatTensorType

    made: bytes = convert(
        model, initial_types=[("x", FloatTensorType([None, FEATURES]))], **options
    ).SerializeToString()
    return made


MODELS = {
    "200 x depth 6": seeded,
    "random forest": random_forest,
    "xgboost": xgboost,
    "lightgbm": lightgbm,
    "catboost": catboost,
    "catboost classes": catboost_classes,
}


def sides(model: bytes) -> tuple[ForestSession, Session, Any]:
    """The forest, ONNX Runtime and the rows, after the referee."""
    import onnx

    graft = cut(model)
    ours = ForestSession(graft)
    theirs = Session(model, [value.name for value in onnx.load_model_from_string(model).graph.output])
    rows = rows_around(graft.ensemble, graft.n_features, ROWS_A_RUN)
    judge(ours, graft, rows, theirs, ())
    return ours, theirs, rows


def pairs(ours: Any, theirs: Any, name: str, rows: Any, size: int, rounds: int) -> Iterator[tuple[float, float]]:
    """Microseconds a row of the two, one pair a round, each over the same rows in batches of `size`."""
    many = ROWS_A_RUN if size > 1 else ROWS_A_RUN // 4
    batches = [{name: np.ascontiguousarray(rows[at : at + size])} for at in range(0, many, size)]
    for _ in range(rounds):
        times = []
        for side in (ours, theirs):
            begun = perf_counter()
            for batch in batches:
                side.run(batch)
            times.append((perf_counter() - begun) / many * 1e6)
        yield times[0], times[1]


def measure(name: str, rounds: int) -> list[dict[str, Any]]:
    """One line for each size."""
    ours, theirs, rows = sides(MODELS[name]())
    forest = ours.forest
    way = f"{forest.lanes} lanes" if forest.lanes else "walks"
    found = []
    for size in SIZES:
        got = list(pairs(ours, theirs, ours.input, rows, size, rounds))
        found.append(
            {
                "model": name,
                "way": f"{way}, {forest.n_nodes} nodes",
                "rows": size,
                "forest_us": round(median(a for a, _ in got), 3),
                "onnxruntime_us": round(median(b for _, b in got), 3),
                "ratio": round(median(b / a for a, b in got), 2),
                "at_least": LINES.get((name, size), OTHERS if size == 64 else 1.0),
            }
        )
    return found


def served(rounds: int, seconds: float) -> Outcome:
    """Requests of 64 rows through the native transport, by the forest and without it, one pair a round."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        models = publish(folder, ("trees",))
        bodies, generator, sides = models["trees"].bodies(SERVED_ROWS), PoolLoad(CONNECTIONS), []
        for side, mode in MODES.items():
            server = stack.enter_context(penstock(side, folder, "native", "", f'forests: "{mode}"\n'))
            client = stack.enter_context(Client(server.address))
            check_values(client, models)
            sides.append(Side(side, server, bodies, counter(client, "trees")))
        requests = requests_for(seconds, sides[0], generator, CALLERS, "")
        measured = []
        for i in range(rounds):
            errors.print(f"served: round {i + 1} of {rounds}", highlight=False)
            order = sides[:: 1 if i % 2 else -1]  # nobody is always first
            measured.append({side.name: drive(side, generator, CALLERS, requests, "") for side in order})
    return Outcome(f"{SERVED_ROWS} rows a request, {CALLERS} callers", measured, [SERVED])


def told(outcome: Outcome) -> dict[str, Any]:
    """An outcome as a line beside those of `measure`."""
    (verdict,) = outcome.verdicts
    figures: dict[str, float] = {}
    for name, run in outcome.sides.items():
        figures |= {f"{name}_rate": round(run.rate, 1), f"{name}_cpu_us": round(run.cpu_us, 1)}
    return {
        "model": "trees, served",
        "rows": SERVED_ROWS,
        **figures,
        "ratio": round(verdict.value, 2),
        "range": [round(verdict.least, 2), round(verdict.most, 2)],
        "at_least": verdict.line.at_least,
    }


def main(
    rounds: Annotated[int, typer.Option(help="Pairs of runs of each size.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.05, help="Of one run of a server.")] = 1.0,
    model: Annotated[str, typer.Option(help="Only this model, in this process.")] = "",
    with_served: Annotated[bool, typer.Option("--served/--no-served", help="Through servers, too.")] = True,
    json: Annotated[bool, typer.Option("--json", help="One JSON list.")] = False,
) -> None:
    """Measure forests against ONNX Runtime; 1 where a line is missed."""
    if model and model not in MODELS:
        errors.print(f"unknown model {model!r}: known are {', '.join(MODELS)}", style="red")
        sys.exit(2)
    found = []
    for name in [model] if model else MODELS:
        try:
            found += measure(name, rounds)
        except (ImportError, PenstockError) as error:
            errors.print(f"{name} is left out: {error}")
    through = [served(rounds, seconds)] if with_served and not model else []
    if json:
        print_json(found + [told(outcome) for outcome in through])
    else:
        keys = ("model", "way", "rows", "forest_us", "onnxruntime_us", "ratio", "at_least")
        heads = ("model", "forest", "rows", "forest µs/row", "ONNX Runtime µs/row", "times", "at least")
        rows = [[str(line[key]) for key in keys] for line in found]
        print_table("Forests against ONNX Runtime, one thread", heads, rows, numeric=heads[2:])
        for outcome in through:
            console.print(f"{outcome.name}: {outcome.verdicts[0]}", markup=False, highlight=False, soft_wrap=True)
    sys.exit(any(line["ratio"] < line["at_least"] for line in found + [told(outcome) for outcome in through]))


if __name__ == "__main__":
    typer.run(main)
