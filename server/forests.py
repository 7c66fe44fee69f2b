"""Versions whose model is an ensemble of trees: run by our kernel where that agrees with ONNX Runtime and is faster.

At load, in this order: the graph is cut at its ensemble (`grafts.py`), the forest is made, the **referee** lets both
run the same rows (labels identical, scores within one step of float32), and the **choice** measures both at every size
of batch up to the largest and takes the faster at each. Whatever speaks against the forest is told in one line, and
ONNX Runtime serves as before. Cost at load: some 10 ms for the referee, up to a second for the choice.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from statistics import median
from time import perf_counter
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from penstock.kernels.forest import Forest
from penstock.server.ensembles import Ensemble, Unfit
from penstock.server.grafts import ALONE, Graft, cut
from penstock.server.session import Session

Mode = Literal["auto", "on", "off"]
Feeds = dict[str, Any]
Floats = NDArray[np.float32]
FLOAT, INT = np.dtype(np.float32), np.dtype(np.int64)

NO_TREES = "no ensemble of trees in the graph"
REFEREE_ROWS = 4096
STEPS = 1
"""How many steps of float32 a score may lie from ONNX Runtime's."""
WHOLE_ROWS = 256
"""Of the referee's rows, those that the whole model runs."""
NEAR = 1e-4
"""How near its floats must be there."""
MEASURE_S = 0.01
"""How long one size is measured, at least, for each of the two."""
TURNS = 200
"""How many times one size is measured, at most."""
THREADS_PAY = 1.3
"""How many times faster several threads must be than one, since they take cores from other runs."""
MARGIN = 1.05
"""How many times faster the forest must be, so that noise does not choose it."""
INVERSE = {"Sub": np.add, "Add": np.subtract, "Mul": np.divide, "Div": np.multiply}


class Runs(Protocol):
    """A session: outputs by name for inputs by name."""

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """One batch."""


class ForestSession:
    """A model whose ensemble is a forest. Takes the place of a `Session`, and is as safe to use from many threads.

    Args:
        graft: the parts of the model; its arrays and bytes are not kept.
        threads: of one run, of the forest and of the parts that ONNX Runtime runs.

    Attributes:
        forest: what runs the ensemble.
        shared_from: rows of a run from which on the forest's threads share it.
        input: the input of the model, or the output of the part before, that is its rows.
        scores: outputs of the model that are the scores as they are.

    Raises:
        Unfit: the forest cannot be made, and why.
    """

    def __init__(self, graft: Graft, *, threads: int = 1) -> None:
        try:
            self.forest = Forest(**graft.ensemble.arrays, n_features=graft.n_features, threads=threads)
        except (ValueError, OverflowError) as error:
            raise Unfit(f"the ensemble: {error}") from error
        self.input, self.scores, self._labels = graft.input, graft.score, graft.label
        self.shared_from = inf
        self._n_outputs = self.forest.n_outputs
        self._classifies = graft.ensemble.classifies
        self._texts = np.array(graft.ensemble.texts, object)
        self._before = Session(graft.before, [graft.input], threads=threads) if graft.before else None
        self._after = Session(graft.after, graft.after_outputs, threads=threads) if graft.after else None
        self._after_inputs = graft.after_inputs

    @property
    def plain(self) -> bool:
        """Whether the forest is all there is: the rows are an input of the model, its scores and labels the outputs."""
        return self._before is None and self._after is None

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Outputs by name for inputs by name, as `Session.run`.

        Raises:
            ValueError: the rows are not float32 [n, n_features].
        """
        rows = (feeds if self._before is None else self._before.run(feeds))[self.input]
        n = len(rows)
        scores = np.empty((n, self._n_outputs), FLOAT)
        labels = np.empty(n, INT) if self._classifies else None
        self.forest.run(rows, scores, labels, shared=n >= self.shared_from)
        outputs: dict[str, Any] = dict.fromkeys(self.scores, scores)
        label = self._texts[labels] if len(self._texts) else labels
        if self._labels:
            outputs |= dict.fromkeys(self._labels, label)
        if self._after is not None:
            made = {"score": scores, "label": label}
            outputs |= self._after.run(
                {name: feeds[name] if name in feeds else made[what] for name, what in self._after_inputs.items()}
            )
        return outputs


@dataclass(frozen=True)
class _Bare:
    """A forest alone, by one thread or by all of its threads, for measuring the two."""

    forest: Forest
    shared: bool

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        rows = feeds["rows"]
        scores = np.empty((len(rows), self.forest.n_outputs), FLOAT)
        self.forest.run(rows, scores, shared=self.shared)
        return {"scores": scores}


class BySize:
    """Two sessions of one model, each for the sizes of batch at which it is the faster.

    Args:
        sides: the two, by "forest" and "onnxruntime".
        starts: ascending sizes, the first of them 1, with the side that serves from there on.
    """

    def __init__(self, sides: Mapping[str, Runs], starts: Sequence[tuple[int, str]]) -> None:
        self._sizes = [size for size, _ in starts]
        self._runs = [sides[name].run for _, name in starts]

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Outputs by name for inputs by name, as `Session.run`."""
        rows = len(next(iter(feeds.values())))
        return self._runs[max(0, bisect_right(self._sizes, rows) - 1)](feeds)


@dataclass(frozen=True)
class Loaded:
    """Who serves a model.

    Attributes:
        session: takes the place of the model's `Session`.
        told: one line for the operator: who serves, and why.
        starts: sizes of batch with who serves from there on.
        curve: size of batch to microseconds a row of the forest and of ONNX Runtime; empty where nothing was measured.
        forest: what serves some sizes at least; None where ONNX Runtime serves all.
    """

    session: Runs
    told: str
    starts: tuple[tuple[int, str], ...]
    curve: Mapping[int, tuple[float, float]]
    forest: ForestSession | None = None

    @property
    def alone(self) -> bool:
        """Whether the forest serves every size, so that nobody runs the model's session any more."""
        return self.starts == ((1, "forest"),)

    @property
    def turns(self) -> list[int]:
        """Sizes from which the forest serves, then ONNX Runtime, then the forest again, and so on."""
        return [size for size, name in self.starts if (size, name) != (1, "onnxruntime")]


def load(
    model: bytes,
    theirs: Runs,
    *,
    mode: Mode = "auto",
    golden: Sequence[Feeds] = (),
    max_rows: int = 4096,
    threads: int = 1,
) -> Loaded:
    """Decide who serves a model, and make what does. Raises nothing: whatever is amiss, ONNX Runtime serves.

    Args:
        model: the ONNX bytes.
        theirs: the model's session in ONNX Runtime.
        mode: "auto" takes the faster at each size; "on" the forest wherever the referee agrees; "off" ONNX Runtime.
        golden: inputs of the model, which both must answer alike.
        max_rows: the largest batch that is measured.
        threads: of one run, whoever makes it.
    """
    if mode == "off":
        return _onnxruntime(theirs, "forests are off")
    if b"TreeEnsemble" not in model:  # spares most models the reading, and the process the `onnx` package
        return _onnxruntime(theirs, NO_TREES)
    try:
        graft = cut(model)
        ours = ForestSession(graft, threads=threads)
        rows = rows_around(graft.ensemble, graft.n_features, REFEREE_ROWS)
        judge(ours, graft, rows, theirs if threads == 1 else Session(model, graft.outputs), golden)
        if threads > 1:
            ours.shared_from = sharing(ours.forest, rows, max_rows)
        if mode == "on":
            return Loaded(ours, f"forest: {_words(ours)}; forests are on", ((1, "forest"),), {}, ours)
        return _chosen(ours, theirs, measure(ours, theirs, _feeds(ours, rows, golden), max_rows))
    except Unfit as error:
        return _onnxruntime(theirs, str(error))
    except Exception as error:  # noqa: BLE001  # a graph that is served today must not fail for being read
        return _onnxruntime(theirs, f"the forest failed: {' '.join(str(error).split())[:200]}")


def _chosen(ours: ForestSession, theirs: Runs, curve: Mapping[int, tuple[float, float]]) -> Loaded:
    """Who serves by a measured curve."""
    starts = tuple(choose(curve))
    told = ", ".join(f"{curve[n][1] / curve[n][0]:.1f} times at {n}" for n in (1, 64, 1024) if n in curve) + " rows"
    served_by = {name for _, name in starts}
    if served_by == {"onnxruntime"}:
        return Loaded(theirs, f"onnxruntime: the forest is not faster ({told})", starts, curve)
    words = f"{_words(ours)}; {told}"
    if served_by == {"forest"}:
        return Loaded(ours, f"forest: {words}", starts, curve, ours)
    by_size = ", ".join(f"{name} from {size} rows" for size, name in starts)
    sides: dict[str, Runs] = {"forest": ours, "onnxruntime": theirs}
    return Loaded(BySize(sides, starts), f"{by_size}: {words}", starts, curve, ours)


def _onnxruntime(theirs: Runs, why: str) -> Loaded:
    return Loaded(theirs, f"onnxruntime: {why}", ((1, "onnxruntime"),), {})


def _words(ours: ForestSession) -> str:
    forest = ours.forest
    way = f"masks of {forest.lanes} rows" if forest.lanes else "walks"
    if ours.shared_from < inf:
        way += f", by several threads from {ours.shared_from} rows"
    return f"{forest.n_trees} trees, {forest.n_nodes} nodes, depth {forest.depth}, {way}"


# The referee ----------------------------------------------------------------------------------------------------------


def rows_around(ensemble: Ensemble, n_features: int, count: int, seed: int = 0) -> Floats:
    """Rows [count, n_features] whose values lie at thresholds or one step of float32 beside; a few are no numbers.

    Values of a column are drawn from the thresholds that branches compare it with, so that rows take many ways.
    """
    chance = np.random.default_rng(seed)
    features, thresholds = ensemble.thresholds()
    rows = chance.normal(size=(count, n_features)).astype(np.float32)
    order = np.argsort(features, kind="stable")
    begins = np.searchsorted(features[order], np.arange(n_features + 1))
    for column in np.unique(features):
        values = thresholds[order[begins[column] : begins[column + 1]]]
        with np.errstate(all="ignore"):
            drawn = _before(ensemble, int(column), chance.choice(values, count))
            toward = chance.choice(np.array([-np.inf, np.nan, np.inf], np.float32), count)
            rows[:, column] = np.where(np.isnan(toward), drawn, np.nextafter(drawn, toward))
    odd = chance.random(rows.shape) < 0.02
    replaced = [number for name, _, number in ensemble.arrays.get("steps", []) if name == "Imputer"]
    rows[odd] = chance.choice(np.array([np.nan, np.inf, -np.inf, 0, -0.0, *replaced], np.float32), int(odd.sum()))
    return rows


def _before(ensemble: Ensemble, column: int, drawn: Floats) -> Floats:
    """What the steps in front make these values of, or nearly."""
    for name, values, _ in reversed(ensemble.arrays.get("steps", [])):
        if name in INVERSE:
            drawn = INVERSE[name](drawn, values[column])
    return drawn.astype(np.float32)


def judge(ours: ForestSession, graft: Graft, rows: Floats, theirs: Runs, golden: Sequence[Feeds]) -> None:
    """Let the forest and ONNX Runtime run the same: the ensemble alone on `rows`, the whole model on golden rows.

    Where these rows are all that the model reads, the whole of it runs some of them, too. What stands behind the
    ensemble may magnify a step of float32, so that floats need only be near there; types, shapes and labels count.

    ONNX Runtime by one thread: several add up parts of the trees each, in another order.

    Raises:
        Unfit: they differ, and in what.
    """
    alone = Session(graft.alone, ALONE if graft.ensemble.classifies else ALONE[1:])
    for part in (slice(0, None), slice(0, 1), slice(1, 12)):
        scores = np.empty((len(rows[part]), ours.forest.n_outputs), np.float32)
        labels = np.empty(len(scores), np.int64) if graft.ensemble.classifies else None
        ours.forest.run(rows[part], scores, labels, shared=True)
        got: Feeds = {ALONE[1]: scores}
        if labels is not None:
            got[ALONE[0]] = np.array(graft.ensemble.texts, object)[labels] if graft.ensemble.texts else labels
        _compare(got, alone.run({graft.input: rows[part]}), "at thresholds")
    for feeds in golden:
        expected = theirs.run(feeds)
        _compare({name: ours.run(feeds)[name] for name in expected}, expected, "on the golden rows")
    if graft.inputs == (graft.input,):
        whole = {graft.input: rows[:WHOLE_ROWS]}
        _compare_nearly(ours.run(whole), theirs.run(whole))


def _compare_nearly(got: Feeds, expected: Feeds) -> None:
    for name, array in expected.items():
        mine, other = np.asarray(got[name]), np.asarray(array)
        if (mine.dtype, mine.shape) != (other.dtype, other.shape):
            raise Unfit(f"output {name!r} is {mine.dtype} {mine.shape}, ONNX Runtime's {other.dtype} {other.shape}")
        floats = other.dtype.kind == "f"
        if not (np.allclose(mine, other, NEAR, NEAR, equal_nan=True) if floats else np.array_equal(mine, other)):
            raise Unfit(f"output {name!r} of the whole model differs from ONNX Runtime's at thresholds")


def _compare(got: Feeds, expected: Feeds, where: str) -> None:
    for name, array in expected.items():
        mine, other = np.asarray(got[name]), np.asarray(array)
        if mine.shape != other.shape:
            raise Unfit(f"output {name!r} has shape {mine.shape} {where}, ONNX Runtime's {other.shape}")
        if other.dtype == np.float32:
            if (apart := steps(mine, other)) > STEPS:
                raise Unfit(f"output {name!r} differs from ONNX Runtime's by {apart} steps of float32 {where}")
        elif not np.array_equal(mine, other):
            raise Unfit(f"output {name!r} differs from ONNX Runtime's {where}")


def steps(a: Floats, b: Floats) -> int:
    """By how many float32 numbers the two differ, at most; NaN is as NaN, and the zeros are one."""
    keys = []
    for array in (a, b):
        bits = np.ascontiguousarray(array, np.float32).view(np.int32).astype(np.int64)
        keys.append(np.where(bits < 0, -(bits & 0x7FFFFFFF), bits))
    return int(np.where(np.isnan(a) & np.isnan(b), 0, np.abs(keys[0] - keys[1])).max(initial=0))


# The choice -----------------------------------------------------------------------------------------------------------


def _feeds(ours: ForestSession, rows: Floats, golden: Sequence[Feeds]) -> Callable[[int], list[Feeds]]:
    """Inputs of `n` rows to measure on: those of the referee, or golden rows where a part comes before or after.

    Several that differ, for rows that repeat flatter whoever jumps on data: the processor learns them.
    """
    if ours.plain:
        given: Feeds = {ours.input: rows}
    elif golden:
        given = golden[0]
    else:
        raise Unfit("nothing to measure on: the model has other parts and no golden rows")
    return partial(_cut_out, given)


def _cut_out(given: Feeds, n: int) -> list[Feeds]:
    """Batches of `n` of these rows, one after the other, from the start again where they are used up."""
    starts = range(0, max(1, min(TURNS, REFEREE_ROWS // n)) * n, n)
    return [
        {name: np.take(array, start + np.arange(n), axis=0, mode="wrap") for name, array in given.items()}
        for start in starts
    ]


def sharing(forest: Forest, rows: Floats, max_rows: int) -> float:
    """The size from which on a forest's threads pay, at every size measured; inf where there is none."""
    shared, alone = (_Bare(forest, shared=shared) for shared in (True, False))
    curve = measure(shared, alone, partial(_cut_out, {"rows": rows}), max_rows)
    found = inf
    for size, (several, one) in sorted(curve.items(), reverse=True):
        if several * THREADS_PAY > one:
            break
        found = size
    return found


def measure(
    ours: Runs,
    theirs: Runs,
    feeds: Callable[[int], list[Feeds]],
    max_rows: int,
    clock: Callable[[], float] = perf_counter,
) -> dict[int, tuple[float, float]]:
    """Microseconds a row of both at 1, 2, 4 … rows, in turn, so that a machine that drifts does so for both."""
    curve = {}
    size = 1
    while size <= max_rows:
        given = feeds(size)
        spent: tuple[list[float], list[float]] = ([], [])
        while len(spent[0]) < 3 or (sum(spent[1]) < MEASURE_S and len(spent[0]) < TURNS):
            turn = given[len(spent[0]) % len(given)]
            for side, times in ((ours, spent[0]), (theirs, spent[1])):
                begun = clock()
                side.run(turn)
                times.append(clock() - begun)
        curve[size] = (median(spent[0]) / size * 1e6, median(spent[1]) / size * 1e6)
        size *= 2
    return curve


def choose(curve: Mapping[int, tuple[float, float]]) -> list[tuple[int, str]]:
    """From which size of batch which side serves: the forest where it is faster by more than noise."""
    starts: list[tuple[int, str]] = []
    for size, (ours, theirs) in sorted(curve.items()):
        name = "forest" if ours * MARGIN < theirs else "onnxruntime"
        if not starts or starts[-1][1] != name:
            starts.append((size, name))
    return [(1, starts[0][1]), *starts[1:]] if starts else [(1, "onnxruntime")]
