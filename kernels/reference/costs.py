"""What `kernels.costs` must learn: all runs kept with their weights, and the line fitted anew by numpy each time."""

from __future__ import annotations

import numpy as np

KEEP, KEEP_LITTLE, SEED_WEIGHT, CLIP, RIDGE, ERROR_SHARE = 63 / 64, 0.25, 0.25, 4.0, 1e-3, 1 / 32


class Cost:
    """t(n) = a + b n: the non-negative line of least weighted squares, weights 1 / (n + 1)^2 and forgetting."""

    def __init__(self) -> None:
        self._points: list[tuple[float, float, float]] = []  # rows, ns, weight; the curve's first
        self._seeds = 0
        self.runs = 0
        self.error = self.fixed_ns = self.row_ns = 0.0

    def seed(self, rows: int, ns: int) -> None:
        """A point of a measured curve."""
        if rows >= 1 and ns >= 0:
            self._points.insert(0, (rows, ns, SEED_WEIGHT))
            self._seeds += 1
            self._fit()

    def learn(self, rows: int, ns: int) -> None:
        """A run of `rows` took `ns`."""
        if rows < 1 or ns < 0:
            return
        taken = float(ns)
        if self._points:
            predicted = self.predict(rows)
            error = abs(predicted - taken) / max(taken, 1)
            self.error += (error - self.error) * (ERROR_SHARE if self.runs else 1)
            taken = min(taken, CLIP * predicted)
            wrong = CLIP * taken < predicted
            first = 0 if wrong and CLIP * taken < self._said_by_curve(rows) else self._seeds
            kept = [(n, t, weight * (KEEP_LITTLE if wrong else KEEP)) for n, t, weight in self._points[first:]]
            self._points[first:] = kept
        self.runs += 1
        self._points.append((rows, taken, 1.0))
        self._fit()

    def predict(self, rows: int) -> int:
        """Nanoseconds that a run of `rows` will take; 0 where nothing is known."""
        return int(min(max(self.fixed_ns + self.row_ns * rows, 1), 1e18)) if self._points else 0

    def _said_by_curve(self, rows: int) -> float:
        """What the curve alone predicts; 0 without one."""
        if not self._seeds:
            return 0.0
        a, b = self._line(self._points[: self._seeds])
        return a + b * rows

    def _fit(self) -> None:
        self.fixed_ns, self.row_ns = self._line(self._points)

    def _line(self, points: list[tuple[float, float, float]]) -> tuple[float, float]:
        n, t, weight = np.array(points).T
        root = np.sqrt(weight) / (n + 1)
        ridge = np.sqrt(RIDGE * np.square(root).sum())  # one more equation: a = 0
        a, b = self._solve(np.append(root, ridge), np.append(n * root, 0), np.append(t * root, 0))
        if a < 0:
            return 0.0, float((n * t * root**2).sum() / (n * n * root**2).sum())
        if b < 0:
            return float((t * root**2).sum() / (root**2).sum() / (1 + RIDGE)), 0.0
        return a, b

    @staticmethod
    def _solve(*columns: np.ndarray) -> tuple[float, float]:
        ones, rows, times = columns
        (a, b), *_ = np.linalg.lstsq(np.stack([ones, rows], axis=1), times, rcond=None)
        return float(a), float(b)
