"""What is in a store, view by view, from a sample: how many rows, how large, how old, how many values null.

SCAN gives keys in the order of a hash table, which is as good as chance, so the share of a view among the keys seen is
its share of all; a store of no more than `max_keys` keys is seen whole and counted exactly. Of each view at most
`max_rows` rows are read. Cost: 1.5 µs a key and 15 µs a row, whatever else the store holds; Redis is asked for 1,000
keys or 250 rows at a time, so nobody waits long behind it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from penstock.features.reading import STATUS, read
from penstock.features.schema import FeatureView
from penstock.features.store import FeatureStore

SCAN_KEYS = 1000
PERCENTILES = {"p50": 50, "p90": 90, "p99": 99, "max": 100}


@dataclass(frozen=True, slots=True)
class ViewStats:
    """What a sample says of one view.

    Attributes:
        rows: how many entities have a row, estimated unless `is_exact`.
        sampled: how many rows the rest is from.
        row_bytes: mean size of a key and its value, without what Redis adds (some 60 bytes).
        ages_s: age of rows in seconds, from event times, as p50, p90, p99 and max; empty where none is kept.
        nulls: share of null values by column, among rows that can be read.
        unknown: for each category the share of words that its vocabulary does not have, among those rows.
        status: how many of the sampled rows are ok, absent, corrupt, or of another schema.
        former: how many of them were written under a former schema.
    """

    view: str
    rows: int
    is_exact: bool
    sampled: int
    row_bytes: float
    ages_s: Mapping[str, float]
    nulls: Mapping[str, float]
    unknown: Mapping[str, float]
    status: Mapping[str, int]
    former: int


Progress = Callable[[int, float], None]


def survey(
    store: FeatureStore,
    views: Sequence[FeatureView],
    *,
    max_keys: int = 100_000,
    max_rows: int = 1000,
    progress: Progress = lambda _rows, _fraction: None,
) -> list[ViewStats]:
    """Statistics of each view; `progress(keys, fraction)` is called as keys are seen."""
    total = store.size()
    counted, kept, seen, whole = _walk(store, views, total, max_keys, max_rows, progress)
    factor = 1.0 if whole else max(total, seen) / max(seen, 1)
    return [_stats(store, view, kept[view.name], round(counted[view.name] * factor), is_exact=whole) for view in views]


def _walk(
    store: FeatureStore, views: Sequence[FeatureView], total: int, max_keys: int, max_rows: int, progress: Progress
) -> tuple[dict[str, int], dict[str, list[bytes]], int, bool]:
    """Keys of each view, the entities of the first of them, how many keys were seen, and whether those are all.

    While keys come and go SCAN may give one twice, so `counted` of a store that is written to is about right.
    """
    rows = {view.name.encode(): view.name for view in views if view.layout == "row"}
    hashes = [view.name for view in views if view.layout == "hash"]
    counted = dict.fromkeys((view.name for view in views), 0)
    kept: dict[str, list[bytes]] = {view.name: [] for view in views}
    cursor = seen = 0
    while True:
        cursor, keys = store.scan(cursor, min(SCAN_KEYS, max_keys))
        seen += len(keys)
        for entity, names in _entities(keys, rows, hashes):
            for name in names:
                counted[name] += 1
                if len(kept[name]) < max_rows:
                    kept[name].append(entity)
        progress(seen, min(seen / max(min(total, max_keys), 1), 1.0))
        if cursor == 0 or seen >= max_keys:
            return counted, kept, seen, cursor == 0


def _entities(
    keys: Sequence[bytes], rows: Mapping[bytes, str], hashes: Sequence[str]
) -> Iterator[tuple[bytes, Sequence[str]]]:
    """The entity of each key that is one of these views', and which views may have it there."""
    for key in keys:
        if key.startswith(b"fs:{"):
            entity, _, name = key[4:].rpartition(b"}:")
            if name in rows:
                yield entity, (rows[name],)
        elif hashes and key.startswith(b"features:"):
            yield key[9:], hashes


def _stats(store: FeatureStore, view: FeatureView, entities: list[bytes], rows: int, *, is_exact: bool) -> ViewStats:
    stored = store.stored(view, entities)
    features = read(view, entities, stored)
    counts = {status: features.status.count(status) for status in STATUS}
    found = [i for i, status in enumerate(features.status) if status != "absent"]
    ok = [i for i, status in enumerate(features.status) if status == "ok"]
    sizes = [len(view.key(entities[i])) + _size(view, stored[i]) for i in found]
    times = features.event_times[features.event_times > 0]
    ages = np.percentile(time.time() - times / 1000, list(PERCENTILES.values())).tolist() if len(times) else []
    present = len(found) / len(entities) if entities else 0.0  # hashes may be of other views; rows may have expired
    own = view.schema_id.to_bytes(4, "little")
    return ViewStats(
        view=view.name,
        rows=round(rows * present),
        is_exact=is_exact,
        sampled=len(found),
        row_bytes=float(np.mean(sizes)) if sizes else 0.0,
        ages_s=dict(zip(PERCENTILES, ages, strict=False)),
        nulls={name: _null_share(values, ok) for name, values in features.items()},
        unknown={c.name: _unknown_share(features[c.name], ok) for c in view.columns if c.dtype == "category"},
        status={status: counts[status] for status in STATUS if counts[status]},
        former=sum(stored[i][4:8] != own for i in ok) if view.layout == "row" else 0,
    )


def _size(view: FeatureView, stored: Any) -> int:
    """Bytes of a row, or of the fields of a hash that are the view's."""
    if view.layout == "row":
        return len(stored)
    pairs = zip(view.fields, stored or (), strict=False)
    return sum(len(field) + len(text) for field, text in pairs if text is not None)


def _null_share(values: np.ma.MaskedArray[Any, Any], rows: list[int]) -> float:
    mask = np.ma.getmaskarray(values)[rows]
    return float(mask.mean()) if mask.size else 0.0


def _unknown_share(words: np.ma.MaskedArray[Any, Any], rows: list[int]) -> float:
    """Of a category as `read` gives it: an unknown word is the empty text."""
    unknown = (words.data[rows] == "") & ~np.ma.getmaskarray(words)[rows]
    return float(np.mean(unknown)) if len(rows) else 0.0
