"""Counting what one version serves against what it was trained on, for drift.

Counted are the joined vector before transforms, so that missing values are seen, and the score. About 20 nanoseconds a
value, in compiled code, under one lock a window.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.kernels.batches import Batch
from penstock.monitoring import DriftCounter, FeatureDrift, Reference, Window, compare
from penstock.registry.manifest import Score

Matrix = NDArray[np.float32]


@dataclass(frozen=True)
class Drift:
    """One window of a version against its reference."""

    window: Window
    features: list[FeatureDrift]
    score: FeatureDrift | None


class Watch:
    """The counters of one version.

    Args:
        reference: the version's profile.
        score: which output is watched.
        window_s: length of a window.
        now: the present, seconds since the epoch.
    """

    def __init__(self, reference: Reference, score: Score | None, window_s: float, now: float) -> None:
        self._features = DriftCounter(reference.features, window_s, now)
        self._names = reference.features.names
        self._score = score
        self._scores = DriftCounter(reference.score, window_s, now) if reference.score and score else None

    def counters(self) -> dict[str, Any]:
        """What is counted and by what, as `GraphEngine` takes it, so that compiled code can do the same."""
        told: dict[str, Any] = {"features": self._features.windows, "watched": self._names}
        if self._scores is not None and self._score is not None:
            told |= {"scores": self._scores.windows, "score": self._score.output, "score_column": self._score.column}
        return told

    def count(self, batch: Batch, outputs: Mapping[str, Any]) -> None:
        """Count a batch that was run; rows whose calls were refused are left out."""
        now = time.time()
        rows = batch.open_rows()
        matrix = self._vector(batch)
        if matrix is not None:
            self._features.add(_only(matrix, rows), now)
        if self._scores is not None and self._score is not None:
            self._scores.add(_only(score_of(outputs[self._score.output], self._score.column), rows), now)

    def _vector(self, batch: Batch) -> Matrix | None:
        """The float features of a batch: its matrix, or the columns that are inputs of their own."""
        if batch.matrix is not None or not self._names:
            return batch.matrix
        columns = [np.asarray(batch.inputs[name], np.float32).reshape(batch.rows) for name in self._names]
        return np.stack(columns, axis=1)

    def drift(self, *, current: bool = False) -> Drift:
        """The last complete window (or the current one) against the reference."""
        now = time.time()
        window = self._features.current(now) if current else self._features.last(now)
        score = None
        if self._scores is not None:
            scores = self._scores.current(now) if current else self._scores.last(now)
            score = compare(self._scores.reference, scores)[0]
        return Drift(window, compare(self._features.reference, window), score)


def score_of(output: NDArray[Any], column: int | None) -> Matrix:
    """The watched value of every row, [n, 1]: one column, or the largest where none is named."""
    values = np.asarray(output, np.float32).reshape(len(output), -1)
    chosen = values.max(axis=1) if column is None else values[:, column]
    return np.ascontiguousarray(chosen.reshape(-1, 1))


def _only(matrix: Matrix, rows: NDArray[np.int64] | None) -> Matrix:
    return matrix if rows is None else matrix[rows]
