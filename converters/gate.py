"""From an estimator to ONNX bytes that passed the parity gate, or an error that says why there are none.

Each arithmetic of `sklearn.py` is converted and held against every sample row, then against the rows of `fuzz.py`.
The first that passes both is taken. Rows with a missing value, where the sample has none, do not decide: they are
tried so that the report can warn where source and graph would part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from penstock.converters.errors import BadSample, GateFailed, UnsupportedModel
from penstock.converters.fuzz import edge_rows, missing_rows, wordless_rows
from penstock.converters.inputs import Inputs
from penstock.converters.parity import Parity, Tolerance, check
from penstock.converters.sklearn import ARITHMETICS, Arithmetic, convert_estimator

Progress = Callable[[str, int, int], None]
"""Called with the stage, rows done since the last call, and the stage's total."""

EDGES = "rows at the edges of tree thresholds"


@dataclass(frozen=True)
class Passed:
    """ONNX bytes that answer as the source does, and the reports that say so."""

    model: bytes
    sample: Parity
    edges: Parity | None
    arithmetic: Arithmetic


def through_gate(
    estimator: Any,
    inputs: Inputs,
    served: pd.DataFrame,
    *,
    tolerance: Tolerance | None = None,
    fuzz: bool = True,
    progress: Progress | None = None,
) -> Passed:
    """Convert `estimator` and compare it with its ONNX form on every row.

    Args:
        estimator: the source model.
        inputs: its form of inputs.
        served: the sample, as served.
        tolerance: limits; the stated ones by default.
        fuzz: also compare rows made to sit on tree thresholds.
        progress: see `Progress`.

    Raises:
        GateFailed: no arithmetic answers as the source does.
        UnsupportedModel: there is no conversion, or onnxruntime cannot run it.
        BadSample: the source model refuses the sample.
    """
    edges = edge_rows(estimator, inputs, served) if fuzz else served.iloc[:0]
    failures: list[Parity] = []
    refusals: list[UnsupportedModel] = []
    for arithmetic in ARITHMETICS:
        try:
            model = convert_estimator(estimator, inputs, arithmetic)
            reports = _reports(estimator, model, inputs, (served, edges), tolerance, arithmetic, progress)
        except UnsupportedModel as error:
            refusals.append(error)
            continue
        if all(report.passed for report in reports):
            reports[0].notes += _about_missing(estimator, model, inputs, served, tolerance)
            return Passed(model, reports[0], reports[1] if len(reports) > 1 else None, arithmetic)
        failures.append(reports[-1])
    if failures:
        failures[-1].notes += [f"in another arithmetic: {error}" for error in refusals]
        raise GateFailed(failures[-1])
    raise refusals[0]


def _reports(
    estimator: Any,
    model: bytes,
    inputs: Inputs,
    tables: tuple[pd.DataFrame, pd.DataFrame],
    tolerance: Tolerance | None,
    arithmetic: Arithmetic,
    progress: Progress | None,
) -> list[Parity]:
    """One report for the sample, and one for the edges if there are any and the sample passed."""
    reports: list[Parity] = []
    for what, rows in zip(("sample rows", EDGES), tables, strict=True):
        if len(rows) and all(report.passed for report in reports):
            tell = _teller(progress, f"comparing {what}", len(rows))
            report = check(
                estimator, model, inputs, rows, tolerance=tolerance, arithmetic=arithmetic, what=what, progress=tell
            )
            reports.append(report)
    return reports


def _teller(progress: Progress | None, stage: str, total: int) -> Callable[[int], None] | None:
    return None if progress is None else lambda done: progress(stage, done, total)


def _about_missing(
    estimator: Any, model: bytes, inputs: Inputs, served: pd.DataFrame, tolerance: Tolerance | None
) -> list[str]:
    told = []
    for rows, what, mend in (
        (missing_rows(inputs, served), "missing value{} (NaN)", "have them filled before the model"),
        (wordless_rows(inputs, served), "missing word{} (the empty text)", "give their categories a default"),
    ):
        if rows.empty:
            continue
        try:
            report = check(estimator, model, inputs, rows, tolerance=tolerance)
        except BadSample:
            told.append(f"the source model refuses {what.format('s')} and ONNX does not: {mend}")
            continue
        if not report.passed:
            some = f"{report.mismatches} of {report.rows} rows with a {what.format('')}"
            told.append(
                f"{some}, of which the sample has none, are answered differently: {mend}, or add such rows to "
                "the sample"
            )
    return told
