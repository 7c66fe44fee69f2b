"""The parity gate: does the ONNX model, run by onnxruntime, answer as the source model does?

Both answer the same rows, as served (`inputs.py`). The rules:

- probabilities: absolute difference at most `probability` (1e-5);
- regression values and decision scores: |difference| at most `value_atol + value_rtol * |source value|` (1e-5, 1e-4);
- labels: equal on every row. Where they differ, the row is a *tie* if the source itself is undecided between the two
  labels within the tolerance: their probabilities (or the probability and the threshold) lie no further apart than
  twice `probability`. Ties are counted and listed in the report, never passed over in silence; every other
  difference is a failure;
- a missing answer (NaN) must be missing in both.

Nothing is sampled: every row given is compared. Cost: one prediction of the source and one run of the graph a row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd
from numpy.typing import NDArray

from penstock.converters.errors import BadSample, UnsupportedModel
from penstock.converters.inputs import Inputs
from penstock.converters.sklearn import Rule, output_names, split_rule

CHUNK = 4096  # rows compared at once, so that progress shows and memory stays small
Progress = Callable[[int], None]


@dataclass(frozen=True)
class Tolerance:
    """How far answers may lie apart; see the head of this module."""

    probability: float = 1e-5
    value_rtol: float = 1e-4
    value_atol: float = 1e-5


@dataclass(frozen=True)
class Row:
    """One row on which the answers part."""

    index: Any
    values: Mapping[str, Any]
    source: Mapping[str, Any]
    onnx: Mapping[str, Any]
    difference: float

    def text(self) -> str:
        """The row in three lines: its columns, what the source answers, what ONNX answers."""
        lines = [f"row {self.index}: {_listed(self.values)}"]
        lines += [f"  source: {_listed(self.source)}", f"  onnx:   {_listed(self.onnx)}"]
        return "\n".join(lines)


@dataclass
class Parity:
    """What was compared, and where the answers part.

    Attributes:
        rows: how many were compared.
        tolerance: the limits that were applied.
        arithmetic: how the graph computes (`sklearn.py`).
        worst: the largest difference of a number (absolute), NaN against a number counting as infinity.
        worst_row: where that was.
        mismatches: rows that break a rule; `first_mismatch` is the worst of them.
        ties: index of every row whose label differs where the source is undecided.
        notes: what a reader should know besides.
    """

    tolerance: Tolerance
    arithmetic: str = "float32"
    what: str = "sample rows"
    rows: int = 0
    worst: float = 0.0
    worst_row: Row | None = None
    label_mismatches: int = 0
    value_mismatches: int = 0
    mismatches: int = 0
    first_mismatch: Row | None = None
    ties: list[Any] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether every row keeps the rules."""
        return self.rows > 0 and self.mismatches == 0

    def text(self) -> str:
        """The report for people."""
        limits = self.tolerance
        said = f"{self.rows} {self.what} are answered alike"
        if self.mismatches:
            said = f"{self.mismatches} of {self.rows} {self.what} are answered differently"
        numbers = f"{limits.value_atol:g} + {limits.value_rtol:g} * |value|"
        lines = [
            f"{said} by source and ONNX model",
            f"  labels that differ: {self.label_mismatches}",
            f"  numbers out of tolerance: {self.value_mismatches}; worst difference: {self.worst:.3g}",
            f"  allowed: probabilities {limits.probability:g}; other numbers {numbers}",
            f"  arithmetic: {self.arithmetic}",
        ]
        if self.ties:
            shown = ", ".join(str(index) for index in self.ties[:5])
            lines.append(f"  ties (source undecided within tolerance, labels differ): {len(self.ties)}, rows {shown}")
        lines += [f"  note: {note}" for note in self.notes]
        if (row := self.first_mismatch or self.worst_row) is not None:
            lines.append(f"  worst {row.text()}".replace("\n", "\n  "))
        return "\n".join(lines)


@dataclass(frozen=True)
class Answers:
    """What a model says about n rows: labels [n] and numbers [n, classes], or numbers [n, targets] alone.

    `probable` tells that the numbers are probabilities.
    """

    labels: NDArray[Any] | None
    numbers: NDArray[np.float64] | None
    probable: bool = False

    def at(self, i: int) -> dict[str, Any]:
        """The answer about one row, for the report."""
        said: dict[str, Any] = {}
        if self.labels is not None:
            said["label"] = self.labels[i]
        if self.numbers is not None:
            said["numbers"] = [float(f"{number:.9g}") for number in self.numbers[i][:10]]
        return said


def open_graph(model: bytes) -> onnxruntime.InferenceSession:
    """A quiet CPU session on the bytes; `UnsupportedModel` if onnxruntime refuses them."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a dozen kinds
        raise UnsupportedModel(f"onnxruntime {onnxruntime.__version__} refuses the graph: {error}") from error


def source_answers(estimator: Any, rows: Any) -> Answers:
    """What the source model says about rows that it takes.

    Raises:
        BadSample: the model refuses the rows.
    """
    try:
        said = np.asarray(estimator.predict(rows))
        names = output_names(estimator)
        if names == ("value",):
            return Answers(None, said.reshape(len(said), -1).astype(np.float64))
        method = estimator.predict_proba if "probabilities" in names else estimator.decision_function
        numbers = np.asarray(method(rows), np.float64)
    except (ValueError, TypeError, KeyError) as error:
        text = " ".join(str(error).split())
        raise BadSample(f"the source model refuses the sample: {text[:300]}") from error
    return Answers(_labels(said), numbers.reshape(len(numbers), -1), probable="probabilities" in names)


def graph_answers(session: onnxruntime.InferenceSession, feed: Mapping[str, NDArray[Any]]) -> Answers:
    """What the graph says about the same rows."""
    outputs = dict(zip((o.name for o in session.get_outputs()), run_graph(session, feed), strict=True))
    numbers = next((outputs[name] for name in ("probabilities", "scores", "value") if name in outputs), None)
    labels = outputs.get("label")
    return Answers(
        None if labels is None else _labels(labels.reshape(-1)),
        None if numbers is None else numbers.reshape(len(numbers), -1).astype(np.float64),
    )


def graph_answers_raw(model: bytes, inputs: Inputs, served: pd.DataFrame) -> dict[str, NDArray[Any]]:
    """The graph's outputs for all rows, by name, as a caller would get them."""
    session = open_graph(model)
    parts = [run_graph(session, inputs.feed(served.iloc[i : i + CHUNK])) for i in range(0, len(served), CHUNK)]
    names = [output.name for output in session.get_outputs()]
    return {name: np.concatenate(arrays) for name, arrays in zip(names, zip(*parts, strict=True), strict=True)}


def run_graph(session: onnxruntime.InferenceSession, feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    """The outputs for the inputs in `feed` that the graph really has."""
    try:
        answered: list[NDArray[Any]] = session.run(None, {i.name: feed[i.name] for i in session.get_inputs()})
    except Exception as error:  # as above
        raise UnsupportedModel(f"onnxruntime {onnxruntime.__version__} cannot run the graph: {error}") from error
    return answered


def check(
    estimator: Any,
    model: bytes,
    inputs: Inputs,
    served: pd.DataFrame,
    *,
    tolerance: Tolerance | None = None,
    arithmetic: str = "float32",
    what: str = "sample rows",
    progress: Progress | None = None,
) -> Parity:
    """Compare source and graph on every row of `served` (see `Inputs.served`).

    Args:
        estimator: the source model.
        model: the ONNX bytes that would be published.
        inputs: how rows become tensors.
        served: the rows, rounded as served.
        tolerance: limits; the stated ones by default.
        arithmetic: for the report.
        what: what the rows are, for the report.
        progress: called with the number of rows just compared.

    Raises:
        BadSample: the source model refuses the rows.
        UnsupportedModel: onnxruntime cannot load or run the graph.
    """
    report = Parity(tolerance=tolerance or Tolerance(), arithmetic=arithmetic, what=what)
    session = open_graph(model)
    rule = split_rule(estimator)[1]
    for start in range(0, len(served), CHUNK):
        part = served.iloc[start : start + CHUNK]
        source = source_answers(estimator, inputs.source_rows(part))
        answered = graph_answers(session, inputs.feed(part))
        compare(report, source, answered, part, rule=rule, classes=getattr(estimator, "classes_", None))
        if progress is not None:
            progress(len(part))
    return report


def compare(
    report: Parity, source: Answers, answered: Answers, rows: pd.DataFrame, *, rule: Rule | None, classes: Any
) -> None:
    """Add the comparison of some rows to `report`."""
    count = len(rows)
    apart = _apart(source.numbers, answered.numbers, count)
    difference = apart.max(axis=1, initial=0.0)
    wrong_number = (apart > _allowed(report.tolerance, source)).any(axis=1)
    other = np.zeros(count, bool) if source.labels is None else _unequal(source.labels, answered.labels, count)
    tie = other & _undecided(report.tolerance, source, answered, rule, classes, count)
    wrong_label = other & ~tie
    wrong = wrong_number | wrong_label
    report.rows += count
    report.label_mismatches += int(wrong_label.sum())
    report.value_mismatches += int(wrong_number.sum())
    report.mismatches += int(wrong.sum())
    report.ties.extend(rows.index[tie].tolist())
    worst = int(np.argmax(difference))
    if report.worst_row is None or difference[worst] > report.worst:
        report.worst = float(difference[worst])
        report.worst_row = _row(worst, source, answered, rows, difference)
    if wrong.any():
        chosen = int(np.argmax(np.where(wrong, difference, -1.0)))
        if report.first_mismatch is None or difference[chosen] > report.first_mismatch.difference:
            report.first_mismatch = _row(chosen, source, answered, rows, difference)


def _row(i: int, source: Answers, answered: Answers, rows: pd.DataFrame, difference: NDArray[np.float64]) -> Row:
    values = {str(name): rows[name].iloc[i] for name in rows.columns}
    return Row(rows.index[i], values, source.at(i), answered.at(i), float(difference[i]))


def _apart(a: NDArray[np.float64] | None, b: NDArray[np.float64] | None, count: int) -> NDArray[np.float64]:
    """Absolute difference of each number; infinite where shapes differ or only one side is missing."""
    if a is None or b is None or a.shape != b.shape:
        return np.full((count, 1), np.inf)
    with np.errstate(invalid="ignore"):
        apart = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
    return np.where(np.isnan(apart), np.inf, apart)


def _allowed(tolerance: Tolerance, source: Answers) -> float | NDArray[np.float64]:
    """How far each number may lie from the source's."""
    if source.probable or source.numbers is None:
        return tolerance.probability
    size = np.nan_to_num(np.abs(source.numbers), nan=0.0, posinf=0.0)
    allowed: NDArray[np.float64] = tolerance.value_atol + tolerance.value_rtol * size
    return allowed


def _undecided(
    tolerance: Tolerance, source: Answers, answered: Answers, rule: Rule | None, classes: Any, count: int
) -> NDArray[np.bool_]:
    """Rows on which the source itself hardly prefers its label to the one that ONNX gives."""
    numbers = source.numbers
    if not source.probable or numbers is None or source.labels is None or answered.labels is None:
        return np.zeros(count, bool)
    if rule is not None:
        near: NDArray[np.bool_] = np.abs(numbers[:, rule.positive] - rule.threshold) <= 2 * tolerance.probability
        return near
    known = _labels(np.asarray(classes))  # ascending, as scikit-learn keeps them
    said = [np.searchsorted(known, labels).clip(max=len(known) - 1) for labels in (source.labels, answered.labels)]
    index = np.arange(count)
    gap = np.abs(numbers[index, said[0]] - numbers[index, said[1]])
    undecided: NDArray[np.bool_] = (known[said[1]] == answered.labels) & (gap <= 2 * tolerance.probability)
    return undecided


def _labels(labels: NDArray[Any]) -> NDArray[Any]:
    """Labels as int64 or text, so that 1.0, True and 1 are one label."""
    return labels.astype(str) if labels.dtype.kind in "OU" else labels.astype(np.int64)


def _unequal(a: NDArray[Any], b: NDArray[Any] | None, count: int) -> NDArray[np.bool_]:
    if b is None or a.shape != b.shape or (a.dtype.kind == "U") != (b.dtype.kind == "U"):
        return np.ones(count, bool)
    unequal: NDArray[np.bool_] = a != b
    return unequal


def _listed(values: Mapping[str, Any]) -> str:
    """Name=value pairs, cut where there are many."""
    shown = [f"{name}={value.item() if isinstance(value, np.generic) else value}" for name, value in values.items()]
    return ", ".join(shown[:40]) + (f", ... ({len(shown) - 40} more)" if len(shown) > 40 else "")
