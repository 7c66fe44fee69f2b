"""What `apply` is going to do, before it does it: views that are added or changed, how, and what that breaks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from penstock.features.aggregates import Aggregates
from penstock.features.errors import InvalidView, SchemaChanged
from penstock.features.evolution import breaks, lost_features, succeed, within
from penstock.features.schema import KEPT, MAX_DEFINITION, Column, FeatureView

FIELDS = (
    "entity_name",
    "layout",
    "time_field",
    "ttl_s",
    "max_age_s",
    "on_stale",
    "on_missing",
    "compute",
    "on_outage",
    "owner",
    "description",
)


@dataclass(frozen=True, slots=True)
class Change:
    """What becomes of one view.

    Attributes:
        view: the definition as it is going to be kept.
        kind: added, changed or unchanged.
        differences: what is different, a line each.
        breaks: what the change takes from somebody, a line each.
        lost: names of model columns that rows will not fill any more.
    """

    view: FeatureView
    kind: Literal["added", "changed", "unchanged"]
    differences: tuple[str, ...] = ()
    breaks: tuple[str, ...] = ()
    lost: frozenset[str] = frozenset()

    def as_dict(self) -> dict[str, Any]:
        """The same as plain data."""
        told = {"view": self.view.name, "change": self.kind, "schema_id": self.view.schema_id}
        return told | {"differences": self.differences, "breaks": self.breaks}


@dataclass(frozen=True, slots=True)
class Plan:
    """What an `apply` does, in the order of the views given to it.

    Attributes:
        expected: the definitions that it starts from, as they are stored; None where there is none.
    """

    changes: tuple[Change, ...]
    expected: Mapping[str, bytes | None] = field(default_factory=dict)

    @property
    def breaks(self) -> list[str]:
        """What all of it breaks, each line with its view's name."""
        return [f"{change.view.name}: {line}" for change in self.changes for line in change.breaks]

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do."""
        return all(change.kind == "unchanged" for change in self.changes)

    def require_harmless(self) -> None:
        """`SchemaChanged` if anything breaks."""
        if self.breaks:
            more = f" (and {len(self.breaks) - 1} more)" if len(self.breaks) > 1 else ""
            raise SchemaChanged(
                f"view {self.breaks[0]}{more}; give the new one another name, or replace it (--replace)"
            )


def plan(views: Sequence[FeatureView], stored: Mapping[str, bytes | None], where: str, *, replace: bool) -> Plan:
    """The plan for applying `views` to the store at `where`, which has these definitions under their names.

    Raises:
        InvalidView: a name is given twice, or a stored definition cannot be read and is not to be replaced.
    """
    names = [view.name for view in views]
    if len(set(names)) < len(names):
        raise InvalidView(f"view {next(n for n in names if names.count(n) > 1)!r} is given twice")
    return Plan(tuple(_change(view, stored.get(view.name), where, replace=replace) for view in views), dict(stored))


def stored_view(name: str, definition: bytes, where: str) -> FeatureView:
    """A definition as read from a store, checked like one from a stranger; raises `InvalidView`."""
    view = FeatureView.parse(definition, source=f"the definition of view {name!r} in {where}", context=KEPT)
    if view.name != name:
        raise InvalidView(f"the definition of view {name!r} in {where} is that of {view.name!r}")
    return view


def _fitting(view: FeatureView) -> FeatureView:
    """The view as it can be stored; `InvalidView` where it is too large to be read again."""
    kept = within(view, MAX_DEFINITION)
    if (size := len(kept.definition())) > MAX_DEFINITION:
        raise InvalidView(f"view {view.name!r}: a definition of {size} bytes, at most {MAX_DEFINITION}")
    return kept


def _change(new: FeatureView, definition: bytes | None, where: str, *, replace: bool) -> Change:
    new = _fitting(new)
    if definition is None:
        return Change(new, "added", (_summary(new),))
    try:
        old = stored_view(new.name, definition, where)
    except InvalidView:
        if not replace:
            raise
        return Change(new, "changed", ("what stands there is no view of this version",))
    broken = tuple(breaks(old, new))
    if old.entity_keys != new.entity_keys and old.schema_id == new.schema_id:
        raise InvalidView(f"view {new.name!r}: its entity cannot change in format 1; leave out `format: 1`")
    kept = _fitting(succeed(old, new))
    if kept == old:
        return Change(kept, "unchanged")
    lost = lost_features(old, new) if broken else set()
    return Change(kept, "changed", tuple(_differences(old, kept)), broken, frozenset(lost))


def _summary(view: FeatureView) -> str:
    return f"{len(view.columns)} columns of {view.entity_name}, layout {view.layout}, ttl {view.ttl_s} s"


def _differences(old: FeatureView, new: FeatureView) -> Iterable[str]:
    for name in FIELDS:
        before, after = getattr(old, name), getattr(new, name)
        if before != after:
            yield f"{name} {_shown(before)} -> {_shown(after)}"
    yield from _aggregate_differences(old.aggregates, new.aggregates)
    yield from _column_differences(old.columns, new.columns)
    if old.schema_id != new.schema_id:
        yield f"schema id {old.schema_id:08x} -> {new.schema_id:08x}"


def _aggregate_differences(old: Aggregates | None, new: Aggregates | None) -> Iterable[str]:
    if old is None or new is None:
        if old is not new:
            yield "aggregates dropped" if new is None else f"aggregates of {len(new.columns)} columns"
        return
    for name in ("late_s", "max_distinct"):
        before, after = getattr(old, name), getattr(new, name)
        if before != after:
            yield f"{name} {_shown(before)} -> {_shown(after)}"
    for name, column in new.columns.items():
        known = old.columns.get(name)
        if known != column:
            empty = ", which begins empty" if new.begins_empty(column, old) else ""
            yield f"{name}: {column}{empty}" if known is None else f"{name}: {known} -> {column}{empty}"


def _column_differences(old: Sequence[Column], new: Sequence[Column]) -> Iterable[str]:
    before_by, after_by = ({column.name: column for column in columns} for columns in (old, new))
    for name, column in after_by.items():
        if name not in before_by:
            yield f"+ {name} {_described(column)}"
        elif column != before_by[name]:
            yield f"~ {name} {_column_difference(before_by[name], column)}"
    for name in before_by:
        if name not in after_by:
            yield f"- {name}"
    kept = [name for name in before_by if name in after_by]
    if kept != [name for name in after_by if name in before_by]:
        yield "columns in another order"


def _described(column: Column) -> str:
    words: list[str] = [column.dtype]
    words += [f"of {len(column.vocabulary)} words"] if column.vocabulary else []
    words += [f"of {column.size}"] if column.size else []
    words += [f"up to {column.max_bytes} bytes"] if column.max_bytes else []
    words += [f"default {_shown(column.default)}"] if column.default is not None else []
    return " ".join(words)


def _column_difference(old: Column, new: Column) -> str:
    before, after = _described(old), _described(new)
    if before != after:
        return f"{before} -> {after}"
    return "vocabulary" if old.vocabulary != new.vocabulary else "description"


def _shown(value: object) -> str:
    if value is None or value == "":
        return "none"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
