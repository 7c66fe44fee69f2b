"""Do online and offline features agree? Served vectors are held against the history as of when they were looked up.

Per feature, of the values that the server looked up (not of those that the caller sent or a function computed):

    missing     the history has a value, the server had none
    extra       the server had a value, the history has none
    mismatched  both have one, and they differ: as float32, or by more than `tolerance` of the larger
    SMAPE       mean of 2 |served - offline| / (|served| + |offline|) over values that both have: 0 to 2

An ingestion writes both sides, but not in one instant. So a look-up within `settle_s` of a change of its row's history
proves nothing; it is left out and counted. Views that cannot be checked are left out and named: those without a
history, and those with `compute`, for what was computed is written back, is then of the store, and is no history.

Cost: the two look-ups of the join (`asof`) for each view, and the sample in memory.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from penstock.features.entities import own_ids
from penstock.features.errors import InvalidData
from penstock.features.offline import served
from penstock.features.offline.asof import rows_as_of
from penstock.features.offline.served import Origin, ServedRows
from penstock.features.offline.store import OfflineStore
from penstock.features.offline.tables import arrow
from penstock.features.schema import FeatureView
from penstock.features.treatments import as_served
from penstock.kernels.joins import SOURCE_COMPUTED, SOURCE_DEFAULT, SOURCE_MISSING, SOURCE_NONE, SOURCE_REQUEST

Values = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Example:
    """One value on which the two sides disagree; None is no value."""

    entity: str
    time_ms: int
    model: str
    version: int
    served: float | None
    offline: float | None


@dataclass(frozen=True)
class FeatureReport:
    """What became of one feature; counts are of values."""

    view: str
    feature: str
    compared: int
    missing: int
    extra: int
    mismatched: int
    smape: float
    worst: tuple[Example, ...]

    @property
    def share(self) -> float:
        """Which part of the compared values is not as offline."""
        return (self.missing + self.extra + self.mismatched) / self.compared if self.compared else 0.0


@dataclass(frozen=True)
class Unchecked:
    """A view that was looked up and is left out, and why."""

    view: str
    reason: str


@dataclass(frozen=True)
class Report:
    """The whole check.

    Attributes:
        rows: in the sample.
        unsettled: of these with their view, looked up so close to a change that nothing follows.
        features: by view and column.
        unchecked: views that are left out.
    """

    rows: int
    unsettled: int
    features: tuple[FeatureReport, ...]
    unchecked: tuple[Unchecked, ...] = ()

    @property
    def compared(self) -> int:
        """Values in all."""
        return sum(feature.compared for feature in self.features)

    @property
    def share(self) -> float:
        """Of the worst feature."""
        return max((feature.share for feature in self.features), default=0.0)


@dataclass(frozen=True)
class _Served:
    """Sampled rows that looked one view up: those k of its columns that some version reads."""

    origins: list[Origin]
    origin_of: NDArray[np.int64]
    times: NDArray[np.int64]
    entities: list[bytes]
    values: Values
    sources: NDArray[np.uint8]


@dataclass(frozen=True)
class _History:
    """What serving would have seen of the same rows and all columns, what of it is a value, and which had settled."""

    values: Values
    present: Mask
    settled: Mask


def check(
    sample: Path,
    store: OfflineStore,
    *,
    model: str = "",
    views: Collection[str] = (),
    tolerance: float = 0.0,
    settle_s: float = 2.0,
    worst: int = 5,
) -> Report:
    """Hold a sample of served vectors against the history.

    Args:
        sample: folder that a server writes to (`sample_served`).
        store: the history.
        model: of this model only; all if empty.
        views: names of these only; all if empty.
        tolerance: by which part of the larger a value may be off.
        settle_s: how close to a change of the history a look-up proves nothing.
        worst: examples to keep of each feature.

    Raises:
        InvalidData: no sample, none of that model or view, or nothing in it that can be compared.
        FeatureError: DuckDB or pyarrow is not installed.
    """
    found = [(origin, rows) for origin, rows in served.read(sample) if model in ("", origin.model)]
    if not found:
        raise InvalidData(f"{sample} holds no served vectors of model {model!r}")
    looked_up = {view.model_dump_json(): view for origin, _ in found for view in origin.views}
    chosen, unchecked = _chosen(list(looked_up.values()), store, views)
    reports: dict[tuple[str, str], list[FeatureReport]] = {}
    unsettled = 0
    for view in chosen:
        names = [name for name in view.feature_names if any(name in origin.columns for origin, _ in found)]
        rows = _looked_up(found, view, names)
        history = _history(store, view, rows, settle_s)
        unsettled += int((~history.settled).sum())
        for place, name in enumerate(names):
            report = _compare(view, name, rows, place, history, tolerance, worst)
            reports.setdefault((view.name, name), []).append(report)
    features = tuple(_merged(several, worst) for _, several in sorted(reports.items()))
    total = sum(len(rows.entities) for _, rows in found)
    if not any(feature.compared for feature in features):
        raise InvalidData(
            f"nothing to compare in {total:,} sampled rows: their callers sent every value, or they were looked up "
            f"within {settle_s:g} s of a change of their history (--settle)"
        )
    return Report(total, unsettled, features, unchecked)


def _chosen(
    looked_up: list[FeatureView], store: OfflineStore, names: Collection[str]
) -> tuple[list[FeatureView], tuple[Unchecked, ...]]:
    """The definitions that can be checked, and of the other views why they cannot."""
    found = sorted({view.name for view in looked_up})
    for name in names:
        if name not in found:
            raise InvalidData(f"no sampled row looked view {name!r} up; there is {', '.join(found) or 'none'}")
    computed = {view.name for view in looked_up if view.on_missing == "compute"}
    reasons = {}
    for name in names or found:
        if name in computed:
            reasons[name] = "its rows are computed where they are missing, and that is no history"
        elif not store.has(name):
            reasons[name] = f"there is no history of view {name!r} in {store.root}"
    chosen = [view for view in looked_up if view.name in (names or found) and view.name not in reasons]
    if not chosen:
        raise InvalidData("nothing to check: " + "; ".join(f"{name}: {reason}" for name, reason in reasons.items()))
    return chosen, tuple(Unchecked(name, reason) for name, reason in sorted(reasons.items()))


def _looked_up(found: list[tuple[Origin, ServedRows]], view: FeatureView, names: list[str]) -> _Served:
    """All sampled rows that looked the view up; a column that a version does not read has `SOURCE_NONE`."""
    ours = [(origin, _by_own_ids(origin, rows, view)) for origin, rows in found if view in origin.views]
    sizes = [len(rows.entities) for _, rows in ours]
    values, sources = (
        np.full((sum(sizes), len(names)), np.nan, np.float32),
        np.zeros((sum(sizes), len(names)), np.uint8),
    )
    start = 0
    for (origin, rows), size in zip(ours, sizes, strict=True):
        for place, name in enumerate(names):
            if name in origin.columns:
                at = origin.columns.index(name)
                values[start : start + size, place] = rows.values[:, at]
                sources[start : start + size, place] = rows.sources[:, at]
        start += size
    return _Served(
        [origin for origin, _ in ours],
        np.repeat(np.arange(len(ours)), sizes),
        np.concatenate([rows.times for _, rows in ours]),
        [entity for _, rows in ours for entity in rows.entities],
        values,
        sources,
    )


def _by_own_ids(origin: Origin, rows: ServedRows, view: FeatureView) -> ServedRows:
    """The rows by the view's part of their ids; without those whose calls were refused, for they had no such part."""
    if not origin.entity_keys:
        return rows
    ids = own_ids(rows.entities, origin.entity_keys, view.entity_keys)
    kept = [i for i, one in enumerate(ids) if one is not None]
    return ServedRows(rows.times[kept], [ids[i] or b"" for i in kept], rows.values[kept], rows.sources[kept])


def _history(store: OfflineStore, view: FeatureView, served_rows: _Served, settle_s: float) -> _History:
    n, margin = len(served_rows.times), int(settle_s * 1000)
    times = np.concatenate([np.maximum(served_rows.times - margin, 0), served_rows.times + margin])
    ids = arrow().array(served_rows.entities * 2, arrow().large_binary())
    rows = rows_as_of(store, view, ids, times)
    status, at = rows.status.reshape(2, n, 1), rows.event_times.reshape(2, n, 1)
    found = rows.values.reshape(2, n, view.width)
    settled = (status[0] == status[1]).all(axis=1) & (at[0] == at[1]).all(axis=1)
    settled &= ((found[0] == found[1]) | (np.isnan(found[0]) & np.isnan(found[1]))).all(axis=1)
    seen = as_served(view, found[0], rows.event_times[:n], rows.status[:n], served_rows.times)
    return _History(seen.values, _present(seen.sources), settled)


def _present(sources: NDArray[np.uint8]) -> Mask:
    """Where a value is of a row, not a default and not missing."""
    absent = (SOURCE_NONE, SOURCE_REQUEST, SOURCE_DEFAULT, SOURCE_MISSING)
    return ~np.isin(sources, absent)


def _compare(
    view: FeatureView, name: str, rows: _Served, place: int, history: _History, tolerance: float, worst: int
) -> FeatureReport:
    """One column of one view."""
    sources, column = rows.sources[:, place], view.feature_names.index(name)
    compared = history.settled & ~np.isin(sources, (SOURCE_NONE, SOURCE_REQUEST, SOURCE_COMPUTED))
    ours, theirs = rows.values[:, place], history.values[:, column]
    has, should = compared & _present(sources), compared & history.present[:, column]
    both, error = has & should, _smape(ours, theirs)
    differs = both & _differs(ours, theirs, tolerance)
    wrong = np.flatnonzero(differs | (has != should))
    ranked = wrong[np.argsort(-np.where(both, error, 2.0)[wrong], kind="stable")][:worst]
    return FeatureReport(
        view.name,
        name,
        compared=int(compared.sum()),
        missing=int((should & ~has).sum()),
        extra=int((has & ~should).sum()),
        mismatched=int(differs.sum()),
        smape=float(error[both].mean()) if both.any() else 0.0,
        worst=tuple(_example(rows, row, ours if has[row] else None, theirs if should[row] else None) for row in ranked),
    )


def _differs(a: Values, b: Values, tolerance: float) -> Mask:
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(invalid="ignore"):
        far = np.abs(wide_a - wide_b) > tolerance * np.maximum(np.abs(wide_a), np.abs(wide_b))
    return np.asarray((a != b) & (far | np.isinf(wide_a) | np.isinf(wide_b)))


def _smape(a: Values, b: Values) -> NDArray[np.float64]:
    """By value: 0 where equal, 2 where one is infinite and the other not."""
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        error = 2 * np.abs(wide_a - wide_b) / (np.abs(wide_a) + np.abs(wide_b))
    return np.where(a == b, 0.0, np.where(np.isfinite(error), error, 2.0))


def _example(rows: _Served, row: np.intp, ours: Values | None, theirs: Values | None) -> Example:
    origin = rows.origins[rows.origin_of[row]]
    return Example(
        rows.entities[row].decode("utf-8", "backslashreplace")[:100],
        int(rows.times[row]),
        origin.model,
        origin.version,
        None if ours is None else float(ours[row]),
        None if theirs is None else float(theirs[row]),
    )


def _merged(several: list[FeatureReport], worst: int) -> FeatureReport:
    """One report of a feature that versions looked up under several definitions of the view."""
    if len(several) == 1:
        return several[0]
    weights = np.array([report.compared for report in several])
    return replace(
        several[0],
        compared=int(weights.sum()),
        missing=sum(report.missing for report in several),
        extra=sum(report.extra for report in several),
        mismatched=sum(report.mismatched for report in several),
        smape=float(np.average([report.smape for report in several], weights=weights)) if weights.any() else 0.0,
        worst=tuple(example for report in several for example in report.worst)[:worst],
    )
