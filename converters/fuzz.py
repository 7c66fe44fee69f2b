"""Rows made to sit on the edges of a tree model, where float32 and float64 part.

Trees ask `x <= threshold`. Around each threshold lie two neighbouring float32 numbers that must fall on different
sides, and the two beyond them; for each threshold one sample row that reaches the node is taken, and its value
replaced by each of the four. Scalers in front of the trees are inverted for that value. So a graph that agrees on
the sample and rounds differently is still found. At most `MAX_ROWS` rows, taken evenly over all thresholds.

Models whose thresholds cannot be brought back to single columns (a PCA in front, trees in a stack) give no rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn import ensemble, tree
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, RobustScaler, StandardScaler

from penstock.converters.inputs import Inputs
from penstock.converters.operators import HISTOGRAM
from penstock.converters.sklearn import split_rule

MAX_ROWS = 16_384
BASE_ROWS = 512  # sample rows that are followed through the trees
NEIGHBOURS = 4
COLUMNWISE = (StandardScaler, MinMaxScaler, MaxAbsScaler, RobustScaler)
FORESTS = (
    ensemble.RandomForestClassifier,
    ensemble.RandomForestRegressor,
    ensemble.ExtraTreesClassifier,
    ensemble.ExtraTreesRegressor,
    ensemble.GradientBoostingClassifier,
    ensemble.GradientBoostingRegressor,
)
TREES = (tree.DecisionTreeClassifier, tree.DecisionTreeRegressor)


@dataclass(frozen=True)
class Edges:
    """Thresholds: the column each one asks about, its value, and a sample row that meets it."""

    column: NDArray[np.int64]
    threshold: NDArray[np.float64]
    row: NDArray[np.int64]


def edge_rows(estimator: Any, inputs: Inputs, served: pd.DataFrame) -> pd.DataFrame:
    """Rows [at most MAX_ROWS] around the thresholds of `estimator`, as served; empty where it has none to find."""
    scalers, trees = _split(split_rule(estimator)[0])
    if inputs.kind != "matrix" or trees is None:
        return served.iloc[:0]
    base = served.iloc[:: max(1, len(served) // BASE_ROWS)].iloc[:BASE_ROWS]
    raw = base.to_numpy(np.float64)
    scaled = raw
    for scaler in scalers:
        scaled = scaler.transform(_named(scaler, scaled))
    edges = _some(_edges(trees, scaled))
    if not len(edges.row):
        return served.iloc[:0]
    rows = np.repeat(raw[edges.row], NEIGHBOURS, axis=0)
    values = _neighbours(_unscaled(scalers, edges, scaled))
    rows[np.arange(len(rows)), np.repeat(edges.column, NEIGHBOURS)] = values.ravel()
    rows = rows[np.isfinite(values.ravel())]
    made = pd.DataFrame(rows, columns=served.columns)
    return made.astype(served.dtypes.to_dict())


def missing_rows(inputs: Inputs, served: pd.DataFrame, count: int = 64) -> pd.DataFrame:
    """Some sample rows, each with one number missing in a column that has none missing; of a matrix only."""
    numbers = [name for name in inputs.numbers if name not in inputs.categories]
    whole = [name for name in numbers if not served[name].hasnans]
    if not inputs.is_matrix or not whole:
        return served.iloc[:0]
    made = served.iloc[np.linspace(0, len(served) - 1, min(count, len(served))).astype(int)].reset_index(drop=True)
    for place, name in enumerate(whole[: len(made)]):
        made.loc[made.index[place :: len(whole)], name] = np.nan
    return made


def _split(estimator: Any) -> tuple[list[Any], Any]:
    """The scalers in front, and the tree model behind them; None where something else is in between."""
    if hasattr(estimator, "best_estimator_"):
        return _split(estimator.best_estimator_)
    steps = [step for _name, step in estimator.steps] if isinstance(estimator, Pipeline) else [estimator]
    scalers = [step for step in steps[:-1] if step not in ("passthrough", None)]
    known = isinstance(steps[-1], (*FORESTS, *TREES, *HISTOGRAM))
    return (scalers, steps[-1]) if known and all(isinstance(s, COLUMNWISE) for s in scalers) else ([], None)


def _edges(model: Any, rows: NDArray[np.float64]) -> Edges:
    found = list(_histogram_edges(model, len(rows)) if isinstance(model, HISTOGRAM) else _tree_edges(model, rows))
    if not found:
        return Edges(np.empty(0, np.int64), np.empty(0), np.empty(0, np.int64))
    return Edges(*(np.concatenate(part) for part in zip(*found, strict=True)))


def _tree_edges(model: Any, rows: NDArray[np.float64]) -> Iterator[tuple[NDArray[Any], ...]]:
    """Per tree: the nodes that some row reaches, and one row that does."""
    trees = [model] if isinstance(model, TREES) else np.ravel(model.estimators_)
    single = rows.astype(np.float32)
    for one in trees:
        inner = one.tree_
        reached = inner.decision_path(single).tocsc()
        first = reached.indptr[:-1]
        used = (np.diff(reached.indptr) > 0) & (inner.children_left >= 0)
        used &= np.isfinite(inner.threshold)  # an infinite one asks only whether the value is missing
        yield inner.feature[used].astype(np.int64), inner.threshold[used], reached.indices[first[used]].astype(np.int64)


def _histogram_edges(model: Any, count: int) -> Iterator[tuple[NDArray[Any], ...]]:
    """Per tree: its thresholds, each with some row (which rows reach it is not asked)."""
    for trees in model._predictors:  # noqa: SLF001  # has no public name
        for one in trees:
            inner = one.nodes[(one.nodes["is_leaf"] == 0) & np.isfinite(one.nodes["num_threshold"])]
            yield inner["feature_idx"].astype(np.int64), inner["num_threshold"], np.arange(len(inner)) % count


def _some(edges: Edges) -> Edges:
    """At most as many edges as rows are allowed, evenly over all."""
    step = -(-len(edges.row) * NEIGHBOURS // MAX_ROWS) or 1
    return Edges(edges.column[::step], edges.threshold[::step], edges.row[::step])


def _unscaled(scalers: list[Any], edges: Edges, scaled: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each threshold in the units of the caller's column."""
    rows = scaled[edges.row].copy()
    index = np.arange(len(rows))
    rows[index, edges.column] = edges.threshold
    for scaler in reversed(scalers):
        rows = scaler.inverse_transform(rows)
    values: NDArray[np.float64] = rows[index, edges.column]
    return values


def _neighbours(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """[n] float64 to [n, 4] float32: the two float32 numbers around each value, and one step beyond each."""
    below = values.astype(np.float32)
    below = np.where(below > values, np.nextafter(below, np.float32(-np.inf)), below)
    above = np.nextafter(below, np.float32(np.inf))
    return np.stack(
        [np.nextafter(below, np.float32(-np.inf)), below, above, np.nextafter(above, np.float32(np.inf))], axis=1
    ).astype(np.float32)


def _named(scaler: Any, rows: NDArray[np.float64]) -> Any:
    names = getattr(scaler, "feature_names_in_", None)
    return rows if names is None else pd.DataFrame(rows, columns=names)
