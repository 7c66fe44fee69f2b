"""Entries of a Redis stream as rows of a view: pure functions from bytes to arrays, and reasons where that fails.

An entry's fields are named as a view's columns and its entity; others are left out. Values are text, as in CSV: a
number in decimal (`true` and `false` for a bool, too), a word or text as it is, a vector as a JSON list; a field that
is missing or empty is null. The event time is in the field that the caller names, as ms since 1970 (UTC) or ISO 8601
text; without one it is that of the entry's id, or of the id that a dead letter had when it first came.

Whole columns are converted at once, for that is what is fast. Where it fails the entries are halved until the bad ones
stand alone, each with its reason: k bad ones of n cost about k log n conversions. Cost: 12 µs an entry of 30 columns.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from penstock.features.columns import AHEAD_MS, exact_numbers, fit, unknown_words
from penstock.features.entities import MAX_ENTITY, entity_key
from penstock.features.errors import InvalidData
from penstock.features.schema import PLAIN, Column

MAX_NUMBER = 512  # bytes of a text that is taken for a number
FIRST_ID = b"penstock:id"  # field of a dead letter (features/dead_letters.py)
ID = re.compile(rb"\d{1,15}-\d{1,15}")
RETURNED = 1 << 62  # ms of ids of dead letters that come back, which no stream's ids reach

Id = tuple[int, int]
"""An entry's id: ms since 1970, and a number among those of that ms."""


class Entry(NamedTuple):
    """One entry of a stream: its id (`ms-number`) and its fields."""

    id: bytes
    fields: dict[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Rows:
    """n entries as `put` takes them: entities, columns of [n], event times in ms since 1970.

    `unknown` has for columns with words that their vocabulary does not have how many these are.
    """

    entries: Sequence[Entry]
    entities: list[bytes]
    columns: dict[str, NDArray[Any]]
    event_times: NDArray[np.int64]
    unknown: dict[str, int]


@dataclass(slots=True)
class Decoded:
    """What entries came to: rows, in order and in parts, and what is wrong with the others."""

    rows: list[Rows] = field(default_factory=list)
    rejected: list[tuple[Entry, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Form:
    """What entries are to have.

    Attributes:
        keys: fields of the entity's id.
        columns: fields that are numbers, each by the name and dtype of its column.
        time_field: field of the event time; None for the time in the entry's id.
    """

    keys: tuple[str, ...]
    columns: Sequence[Column]
    time_field: str | None


def decode(form: Form, entries: Sequence[Entry], now_ms: int) -> Decoded:
    """Every entry, either as a row or with the reason why it is none."""
    decoded = Decoded()
    if entries:
        _decode(form, entries, now_ms, decoded)
    return decoded


def _decode(form: Form, entries: Sequence[Entry], now_ms: int, to: Decoded) -> None:
    try:
        to.rows.append(_rows(form, entries, now_ms))
    except InvalidData as error:
        if len(entries) == 1:
            to.rejected.append((entries[0], str(error)))
            return
        middle = len(entries) // 2
        _decode(form, entries[:middle], now_ms, to)
        _decode(form, entries[middle:], now_ms, to)


def _rows(form: Form, entries: Sequence[Entry], now_ms: int) -> Rows:
    entities = [entity_of(form.keys, entry) for entry in entries]
    times = np.array([time_of(entry, form.time_field, now_ms) for entry in entries], np.int64)
    columns, unknown = {}, {}
    for column in form.columns:
        field = column.name.encode()
        array = to_array(column, [entry.fields.get(field) for entry in entries])
        values, nulls = fit(column, array, len(entries))
        if column.dtype in PLAIN:  # what else is fitted is not what `prepare` takes
            array = np.ma.MaskedArray(values, nulls.astype(bool)) if nulls is not None else np.asarray(values)
        columns[column.name] = array
        if words := unknown_words(column, values, nulls):
            unknown[column.name] = words
    return Rows(entries, entities, columns, times, unknown)


def id_of(text: bytes) -> Id:
    """An id as Redis writes it, `ms-number`."""
    ms, _, number = text.partition(b"-")
    return int(ms), int(number)


def first_id(entry: Entry) -> bytes:
    """The id under which it first came, if it is a dead letter; else its own."""
    told = entry.fields.get(FIRST_ID, b"")
    return told if ID.fullmatch(told) else entry.id


def counted_id(entry: Entry) -> Id:
    """What tells its event from others: its id, or that of a dead letter which comes back, in a range of their own."""
    ms, number = id_of(first_id(entry))
    return (ms, number) if entry.fields.get(FIRST_ID) is None else (RETURNED + ms, number)


def entity_of(keys: Sequence[str], entry: Entry) -> bytes:
    """The entity of an entry; raises `InvalidData`."""
    parts = [entry.fields.get(key.encode(), b"") for key in keys]
    entity = entity_key(parts) if all(parts) else b""
    if not 0 < len(entity) <= MAX_ENTITY:
        name = "|".join(keys)
        raise InvalidData(f"field {name!r} is {len(entity)} bytes long; an entity id has 1 to {MAX_ENTITY}")
    return entity


def time_of(entry: Entry, time_field: str | None, now_ms: int) -> int:
    """The event time in ms since 1970; raises `InvalidData`."""
    if time_field is None:
        name, text = "id", first_id(entry).partition(b"-")[0].decode()
    else:
        name, text = f"field {time_field!r}", entry.fields.get(time_field.encode(), b"").decode("utf-8", "replace")
    try:
        time_ms = int(text) if text.lstrip("-").isdigit() else _from_iso(text)
    except (ValueError, OverflowError):
        raise InvalidData(f"{name}: {_short(text)} is no event time, which is in ms or ISO 8601") from None
    if not -(2**53) <= time_ms <= now_ms + AHEAD_MS:
        raise InvalidData(f"{name}: {_short(text)} is more than a day ahead, or before all time; is it in ms?")
    return time_ms


def _from_iso(text: str) -> int:
    at = datetime.fromisoformat(text)
    return round((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)


def to_array(column: Column, texts: Sequence[bytes | None]) -> NDArray[Any]:
    """Values of one column as `fit` takes them, null where a text is missing or empty; raises `InvalidData`."""
    if column.dtype in ("category", "string"):
        return np.array([text or None for text in texts], object)
    if column.dtype == "vector":
        return _vectors(column, texts)
    if (longest := max(texts, key=lambda text: len(text or b""))) and len(longest) > MAX_NUMBER:
        raise _no_number(column, longest)  # numpy would make every other as long
    given = [text or b"0" for text in texts]
    if column.dtype == "bool":
        given = [BOOLS.get(text.lower(), text) for text in given]
    values = _numbers(column, np.array(given))
    null = np.array([not text for text in texts])
    return np.ma.MaskedArray(values, null) if null.any() else values


def _vectors(column: Column, texts: Sequence[bytes | None]) -> NDArray[np.object_]:
    vectors = np.empty(len(texts), object)
    for i, text in enumerate(texts):
        try:
            vectors[i] = json.loads(text) if text else None
        except (ValueError, RecursionError) as error:
            shown = _short((text or b"").decode("utf-8", "replace"))
            raise InvalidData(f"field {column.name!r}: {shown} is not a JSON list") from error
    return vectors


def _numbers(column: Column, texts: NDArray[np.bytes_]) -> NDArray[Any]:
    ways: list[Callable[[], NDArray[Any]]] = [lambda: texts.astype(np.float64)]
    if "float" not in column.dtype:
        ways = [lambda: texts.astype(np.int64), lambda: exact_numbers(texts.tolist())]
    for way in ways:
        try:
            return way()
        except (ValueError, OverflowError):
            continue
    raise _no_number(column, texts[0])


def _no_number(column: Column, text: bytes) -> InvalidData:
    return InvalidData(f"field {column.name!r}: {_short(text.decode('utf-8', 'replace'))} is not {column.dtype}")


BOOLS = {b"true": b"1", b"false": b"0"}


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:60] + "...")
