"""What `penstock features` prints of views and rows: plans, definitions, values, statistics."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.text import Text

from penstock.commands._console import console, print_table, printable

if TYPE_CHECKING:
    from penstock.features import Features, FeatureView, Plan
    from penstock.features.schema import Column
    from penstock.features.stats import ViewStats

MARKS = {"added": ("+", "green"), "changed": ("~", "yellow"), "unchanged": ("=", "dim")}
_TIME_WIDTH = len("2026-01-01 00:00:00")
_FRAME = 3  # columns that the frame and the padding of a cell take
_SHOWN_MODELS = 10
_SHOWN_VIEWS = 5

DEFAULT_REGISTRY = Path("penstock-models")

# Plans ------------------------------------------------------------------------------------------------------------


def models_that_lose(plan: Plan, registry: Path) -> list[str]:
    """Published versions that read columns which the plan takes from them, a line each.

    Raises:
        RegistryError: the registry cannot be read.
    """
    lost = {change.view.name: change.lost for change in plan.changes if change.lost}
    lines = []
    for version, view, columns in readers(lost, registry):
        if gone := [column for column in columns if column in lost[view]]:
            some = ", ".join(gone[:5]) + (", ..." if len(gone) > 5 else "")
            lines.append(f"{version} reads {some} of {view}")
    return lines


def readers(views: Collection[str], registry: Path) -> Iterator[tuple[str, str, Sequence[str]]]:
    """Published versions that read these views: each as "NAME version N (aliases)", with a view and its own columns.

    Raises:
        RegistryError: the registry cannot be read.
    """
    from penstock.registry import Registry

    store = Registry(registry)
    for name in store.models() if views else ():
        aliases = store.aliases(name)
        for version in store.versions(name):
            manifest = store.manifest(name, version)
            also = ", ".join(alias for alias, number in aliases.items() if number == version)
            for view in sorted({entry.name for entry in manifest.feature_sets}.intersection(views)):
                yield f"{name} version {version}{f' ({also})' if also else ''}", view, manifest.signature.columns


def registry_or_default(given: Path | None) -> Path | None:
    """The registry that was named, else the one that `convert` and `serve` take, where there is one."""
    return given or (DEFAULT_REGISTRY if DEFAULT_REGISTRY.is_dir() else None)


def print_plan(plan: Plan, losing: Sequence[str], kept: Sequence[str] = ()) -> None:
    """What is added and changed, what that breaks, and which views of the store are not in the file."""
    for change in plan.changes:
        mark, style = MARKS[change.kind]
        _say(f"{mark} {change.view.name} {change.kind}", style)
        for line in change.differences:
            _say(f"    {line}")
        for line in change.breaks:
            _say(f"  ! {line}", "red")
    for line in losing[:_SHOWN_MODELS]:
        _say(f"! {line}", "red")
    if len(losing) > _SHOWN_MODELS:
        _say(f"! and {len(losing) - _SHOWN_MODELS} more versions", "red")
    if kept:
        more = f" and {len(kept) - _SHOWN_VIEWS} more" if len(kept) > _SHOWN_VIEWS else ""
        _say(f"kept, though not in the file: {', '.join(kept[:_SHOWN_VIEWS])}{more} (penstock features delete)", "dim")


def _say(line: str, style: str = "") -> None:
    """One line as it is, however long."""
    console.print(Text(printable(line), style=style), soft_wrap=True)


# Views ------------------------------------------------------------------------------------------------------------


def print_views(views: Sequence[FeatureView]) -> None:
    """A line for each view."""
    headers = ("View", "Entity", "Columns", "Layout", "TTL, s", "On missing", "On outage", "Owner")
    rows = [
        (v.name, v.entity_name, len(v.columns), v.layout, v.ttl_s, v.on_missing, v.on_outage, v.owner) for v in views
    ]
    print_table("", headers, rows, numeric=("Columns", "TTL, s"))


def print_view(view: FeatureView) -> None:
    """One view: its policies, and a line for each column."""
    stale = "never" if view.max_age_s is None else f"after {view.max_age_s:g} s: {view.on_stale}"
    missing = f"{view.on_missing} {view.compute}".rstrip()
    facts = [
        ("Description", view.description),
        ("Owner", view.owner),
        ("Entity", ", ".join(view.entity_keys)),
        ("Layout", f"{view.layout}, up to {view.max_row_size} bytes" if view.layout == "row" else view.layout),
        ("Event time", view.time_field and f"field {view.time_field}"),
        ("Rows live", f"{view.ttl_s} s after their {'event' if view.layout == 'row' else 'write'}"),
        ("Rows are stale", stale),
        ("On missing", missing),
        ("On outage", view.on_outage),
        ("Schema id", f"{view.schema_id:08x}"),
        ("Former schemas", ", ".join(f"{former.schema_id:08x}" for former in view.former)),
    ]
    print_table(view.name, ("", ""), [fact for fact in facts if fact[1]])
    rows = [
        (c.name, c.dtype, _size(c), "" if c.default is None else _plain(c.default), c.description) for c in view.columns
    ]
    print_table("Columns", ("Name", "Type", "Of", "Default", "Description"), rows)


def _size(column: Column) -> str:
    if column.vocabulary:
        words = ", ".join(column.vocabulary[:4]) + (", ..." if len(column.vocabulary) > 4 else "")
        return f"{len(column.vocabulary)} words: {words}"
    if column.size:
        return f"{column.size} float32"
    return f"{column.max_bytes} bytes" if column.max_bytes else ""


# Values -----------------------------------------------------------------------------------------------------------


def records(features: Features, ids: Sequence[str]) -> list[dict[str, Any]]:
    """Each entity as plain data."""
    return [_record(features, identifier, i) for i, identifier in enumerate(ids)]


def _record(features: Features, identifier: str, i: int) -> dict[str, Any]:
    at = int(features.event_times[i])
    time = datetime.fromtimestamp(at / 1000, UTC).isoformat() if at else None
    values = {name: _value(column, i) for name, column in features.items()}
    return {"entity": identifier, "status": features.status[i], "event_time": time, "values": values}


def _value(column: np.ma.MaskedArray[Any, Any], i: int) -> Any:
    if np.all(np.ma.getmaskarray(column)[i]):
        return None
    value = column.data[i]
    return value.tolist() if hasattr(value, "tolist") else value


def print_records(view: FeatureView, found: list[dict[str, Any]]) -> None:
    """A line for each feature and a column for each entity, as many of these side by side as the terminal takes."""
    for few in _groups(view, found, console.width):
        shown = [record["entity"] for record in few]
        print_table(view.name, (view.entity_name, *shown), _side_by_side(few), numeric=shown)


def _groups(view: FeatureView, found: list[dict[str, Any]], width: int) -> Iterator[list[dict[str, Any]]]:
    """As many entities at a time as stand side by side in `width` columns with their names and values whole."""
    first = max(map(len, (view.entity_name, *found[0]["values"])))
    each = max(_TIME_WIDTH, *(len(record["entity"]) for record in found))
    count = max(1, (width - first - _FRAME - 1) // (each + _FRAME))
    for start in range(0, len(found), count):
        yield found[start : start + count]


def _side_by_side(few: list[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    """Features are many, and ids asked for are few."""
    yield ("status", *(record["status"] for record in few))
    yield ("event time", *((record["event_time"] or "")[:19].replace("T", " ") for record in few))
    for name in few[0]["values"]:
        yield (name, *(_plain(record["values"][name]) for record in few))


def _plain(value: object) -> str:
    """A value in a cell: numbers in seven digits, long texts and vectors cut."""
    if value is None or value == "":
        return "" if value is None else '""'
    if isinstance(value, list | tuple):
        text = " ".join(_plain(one) for one in value[:6])
        return text + " ..." if len(value) > 6 else text
    if isinstance(value, float):
        return f"{value:.7g}"
    return str(value) if len(str(value)) <= 60 else f"{str(value)[:57]}..."


# Statistics -------------------------------------------------------------------------------------------------------


def print_stats(found: Sequence[ViewStats], *, by_column: bool) -> None:
    """A line for each view, and with `by_column` the share of nulls and of unknown words in each of its columns."""
    ages = ("Age p50", "p99", "oldest")
    headers = ("View", "Rows", "Bytes/row", *ages, "Null", "Unreadable", "Former")
    rows = [
        (
            one.view,
            f"{'' if one.is_exact else '~'}{one.rows:,}",
            f"{one.row_bytes:.0f}",
            *(_age(one.ages_s, percentile) for percentile in ("p50", "p99", "max")),
            f"{np.mean(list(one.nulls.values())):.1%}" if one.sampled else "",
            _share(one.status.get("corrupt", 0) + one.status.get("other schema", 0), one.sampled),
            _share(one.former, one.sampled),
        )
        for one in found
    ]
    print_table("", headers, rows, numeric=headers[1:])
    for one in found if by_column else ():
        shares = [
            (name, f"{share:.1%}", f"{one.unknown[name]:.1%}" if name in one.unknown else "")
            for name, share in one.nulls.items()
        ]
        named = ["Column", f"Null in {one.sampled:,} rows", *["Unknown words"] * bool(one.unknown)]
        print_table(one.view, named, [row[: len(named)] for row in shares], numeric=named[1:])


def _age(ages: Mapping[str, float], percentile: str) -> str:
    """Seconds as people say them."""
    if percentile not in ages:
        return ""
    seconds = ages[percentile]
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _share(count: int, of: int) -> str:
    return f"{count / of:.1%}" if count else ""
