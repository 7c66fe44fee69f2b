"""The point-in-time join: to each label the features that serving would have given the model at the label's time.

What is looked up is `rows_as_of`, or where a view's events are given `aggregates_as_of`; what becomes of it (nulls,
defaults, float32) is done by the kernel that serving itself uses, so that the two cannot come apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from penstock.features.errors import InvalidData, InvalidView
from penstock.features.offline.asof import rows_as_of
from penstock.features.offline.store import EVENT, OfflineStore
from penstock.features.offline.tables import arrow, as_table, column_of, ids_of, to_ms
from penstock.features.offline.windows import Events, aggregates_as_of
from penstock.features.reading import words_of
from penstock.features.schema import FeatureView
from penstock.features.treatments import Served, as_served, refused
from penstock.kernels.rows import ROW_OK

FOLDER = "penstock-offline"


@dataclass(frozen=True)
class Joined:
    """What a join came to.

    Attributes:
        table: Arrow table: the frame's columns, then those of each view.
        found: by view, for how many of the frame's rows there was one.
    """

    table: Any
    found: dict[str, int]


def join(
    entity_frame: Any,
    views: FeatureView | Sequence[FeatureView],
    store: OfflineStore | Path | str = FOLDER,
    *,
    time: str = EVENT,
    keys: Mapping[str, str] | None = None,
    as_of_created: bool = True,
    prefix: bool = False,
    events: Mapping[str, Events] | None = None,
    words: bool = False,
) -> Any:
    """The frame's rows, in their order, with the columns of the views as of each row's time.

    Args:
        entity_frame: labels: Arrow data, a frame of pandas or polars, or a dict of arrays, with the views' entities.
        views: one view or several; `store.view(NAME)` and `read_views(FILE)` give those that were declared.
        store: the history, or its folder.
        time: the frame's column with the times: timestamps, ISO 8601 text, or integers in ms since 1970 (UTC).
        keys: what the frame calls keys of entities that have another name there.
        as_of_created: leave out what was not known yet at that time; False for a history without created times.
        prefix: call the new columns VIEW__COLUMN.
        events: by the names of aggregated views the events of which they are made; these need no history.
        words: give categories as their words, for a model that is trained on these, and not as numbers.

    Returns:
        An Arrow table: the frame's columns, then those of each view that models read (`view.feature_names`), float32
        without nulls; NaN where the model would see NaN. Words are text, empty where the model would see the empty one.

    Raises:
        InvalidData: a column is missing, taken twice or no id or time; no history of a view; or a row for which
            serving would have refused the call (`on_missing`, `on_stale`).
        FeatureError: DuckDB or pyarrow is not installed.
    """
    views = [views] if isinstance(views, FeatureView) else list(views)
    store = store if isinstance(store, OfflineStore) else OfflineStore(store)
    return joined(
        as_table(entity_frame),
        views,
        store,
        time=time,
        keys=keys or {},
        as_of_created=as_of_created,
        prefix=prefix,
        events=events,
        words=words,
    ).table


def joined(
    frame: Any,
    views: Sequence[FeatureView],
    store: OfflineStore,
    *,
    time: str,
    keys: Mapping[str, str],
    as_of_created: bool,
    prefix: bool,
    events: Mapping[str, Events] | None = None,
    words: bool = False,
    told: Callable[[int], None] = lambda _: None,
) -> Joined:
    """`join` of an Arrow table; `told` is called with the number of rows found, some thousands at a time."""
    what, found = "the entity frame", {}
    names = _names(frame, views, prefix=prefix)
    times = to_ms(column_of(frame, time, what), time)
    replayed = dict(events or {})
    if strange := sorted(replayed.keys() - {view.name for view in views}):
        raise InvalidData(f"there are events for {strange[0]!r}, which is none of the views that are joined")
    for view, called in zip(views, names, strict=True):
        ids = ids_of(frame, [keys.get(key, key) for key in view.entity_keys], what)
        if view.name in replayed:
            rows = aggregates_as_of(view, replayed[view.name], ids, times)
        else:
            rows = rows_as_of(store, view, ids, times, as_of_created=as_of_created, told=told)
        found[view.name] = int((rows.status == ROW_OK).sum())
        served = as_served(view, rows.values, rows.event_times, rows.status, times)
        _refuse(view, served, ids)
        categories = {column.name: column for column in view.columns if words and column.dtype == "category"}
        for place, name in enumerate(called):
            numbers = np.ascontiguousarray(served.values[:, place])
            category = categories.get(view.feature_names[place])
            column = arrow().array(numbers) if category is None else arrow().array(words_of(category, numbers))
            frame = frame.append_column(name, column)
    return Joined(frame, found)


def _names(frame: Any, views: Sequence[FeatureView], *, prefix: bool) -> list[list[str]]:
    """What each view's columns are called in the answer, each name once."""
    if len({view.name for view in views}) < len(views):
        raise InvalidView("a view is joined once; two of those given have the same name")
    names = [[f"{view.name}__{name}" if prefix else name for name in view.feature_names] for view in views]
    taken = dict.fromkeys(frame.column_names, "the entity frame")
    for view, called in zip(views, names, strict=True):
        for name in called:
            if name in taken:
                raise InvalidData(
                    f"column {name!r} is both in {taken[name]} and in view {view.name!r}: join with prefix=True"
                )
            taken[name] = f"view {view.name!r}"
    return names


def _refuse(view: FeatureView, served: Served, ids: Any) -> None:
    """As serving refuses calls for entities without a full row, or with one too old, where the view says `error`."""
    for policy, wrong in refused(view, served):
        row = int(wrong.argmax())
        entity = ids[row].as_py().decode("utf-8", "backslashreplace")[:100]
        had = "no features" if policy == "on_missing" else "too old features"
        raise InvalidData(
            f"row {row + 1}: view {view.name!r} had {had} of {view.entity_name} {entity!r} at that time, and of "
            f"{int(wrong.sum()) - 1} more rows, and says {policy}: error; leave these rows out, or join with a "
            "view that says nan"
        )
