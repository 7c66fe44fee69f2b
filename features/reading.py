"""Rows as people read them: every column in its own dtype, words as words, and what is missing masked.

This is for looking things up and for checking, not for serving: 3 µs a row of 30 numbers. The packed bytes are judged
by the same kernel as in serving, and only sound rows are taken apart here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.features.columns import exact_number, lost_in_cast
from penstock.features.entities import entity_parts
from penstock.features.errors import InvalidData
from penstock.features.evolution import kindred, of_former, spans, unpack
from penstock.features.hashes import decode_hashes, time_of
from penstock.features.schema import PLAIN, Column, FeatureView
from penstock.features.tables import load_pyarrow
from penstock.features.treatments import as_served, refused
from penstock.kernels.rows import ROW_ABSENT, ROW_CORRUPT, ROW_OK, RowLayout

STATUS = ("ok", "absent", "corrupt", "other schema")
HEADER = 24
STORED = {"category": "<i4", "string": "<u2", "vector": "<f4", "bool": "u1"}

Masked = np.ma.MaskedArray[Any, Any]


@dataclass(frozen=True, slots=True)
class Features(Mapping[str, Masked]):
    """The features of n entities: a mapping from column names to masked arrays, in the view's order.

    Numbers are [n] in their own dtype, categories and strings [n] objects of str, vectors float32 [n, size]. A category
    whose word the vocabulary does not have is the empty text. What is null or absent is masked.

    Attributes:
        view: the view they are of.
        entities: their ids.
        event_times: int64 [n], ms since 1970 (UTC); 0 where there is no row, or no time is known (hash layout).
        status: for each entity ok, absent, corrupt or other schema.
        numbers: float32 [n, width of the view], as `FetchedRows.values`: what a server reads, before any policy.
        looked_up_ms: when they were looked up.
    """

    view: FeatureView
    entities: tuple[bytes, ...]
    columns: dict[str, Masked]
    event_times: NDArray[np.int64]
    status: tuple[str, ...]
    numbers: NDArray[np.float32] = field(repr=False)
    looked_up_ms: int

    def __getitem__(self, name: str) -> Masked:
        return self.columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def __len__(self) -> int:
        return len(self.columns)

    def only(self, names: Sequence[str]) -> Features:
        """Of these columns only, in this order; `InvalidData` names one that there is not."""
        for name in names:
            if name not in self.columns:
                raise InvalidData(f"view {self.view.name!r} has no column {name!r}; it has {', '.join(self.columns)}")
        return replace(self, columns={name: self.columns[name] for name in names})

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the columns of `matrix`."""
        declared = {column.name: column for column in self.view.columns}
        return tuple(name for column in self.columns for name in declared[column].feature_names)

    def matrix(self) -> NDArray[np.float32]:
        """float32 [n, k], columns as `feature_names`: what the server would have given a model at the time.

        Nulls, absent rows and rows older than `max_age_s` are treated as the view says, by the code that serving uses;
        NaN where a model would see NaN. What `compute` would have computed is missing.

        Raises:
            InvalidData: serving would have refused the call for one of the entities (`on_missing`, `on_stale`).
        """
        places = {name: place for place, name in enumerate(self.view.feature_names)}
        return np.ascontiguousarray(self._served()[:, [places[name] for name in self.feature_names]])

    def _served(self) -> NDArray[np.float32]:
        """All columns of the view as a model sees them."""
        codes = np.array([STATUS.index(word) for word in self.status], np.uint8)
        served = as_served(self.view, self.numbers, self.event_times, codes, self.looked_up_ms)
        for policy, wrong in refused(self.view, served):
            entity = self.entities[int(wrong.argmax())].decode("utf-8", "backslashreplace")[:100]
            has, others = ("no full row" if policy == "on_missing" else "too old a row"), int(wrong.sum()) - 1
            raise InvalidData(
                f"view {self.view.name!r} has {has} of {self.view.entity_name} {entity!r}, and of {others} more, and "
                f"says {policy}: error; leave them out"
            )
        return served.values

    def words(self, name: str) -> NDArray[np.object_]:
        """[n] str: a category as a model reads it that was trained on words (see `words_of`), treated as in `matrix`.

        Raises:
            InvalidData: there is no such category; or as `matrix` does.
        """
        column = next((column for column in self.view.columns if column.name == name), None)
        if column is None or column.dtype != "category":
            raise InvalidData(f"view {self.view.name!r} has no category {name!r}")
        return words_of(column, self._served()[:, spans(self.view.columns)[name].start])

    def to_arrow(self) -> Any:
        """A `pyarrow.Table`: the entity's keys, `event_time` (timestamp in ms, UTC) and the columns.

        Raises:
            FeatureError: pyarrow is not installed.
        """
        pa = load_pyarrow()
        parts = zip(*(entity_parts(one, len(self.view.entity_keys)) for one in self.entities), strict=True)
        keys = list(parts) or [()] * len(self.view.entity_keys)
        table = {name: _arrow_ids(pa, values) for name, values in zip(self.view.entity_keys, keys, strict=True)}
        absent = self.event_times == 0
        times = pa.array(self.event_times, pa.timestamp("ms", "UTC"), mask=absent)
        table |= {} if "event_time" in self.columns else {"event_time": times}
        kinds = {column.name: column for column in self.view.columns}
        table |= {name: _arrow_values(pa, kinds[name], values) for name, values in self.columns.items()}
        return pa.table(table)


def numbers_of(column: Column, values: Masked) -> NDArray[np.float32]:
    """float32 [n, width]: what a column gives to a matrix, NaN where it has nothing."""
    n, null = len(values), np.ma.getmaskarray(values)
    if column.dtype == "string":
        return np.empty((n, 0), np.float32)
    if column.dtype == "category":
        index = {word: float(i) for i, word in enumerate(column.vocabulary)}
        unknown = -1.0 if column.default is None else np.nan
        numbers = np.array([index.get(word, unknown) for word in values.data], np.float32)
    else:
        with np.errstate(over="ignore"):
            numbers = values.data.astype(np.float32)
    return np.where(null, np.float32(np.nan), numbers).reshape(n, -1 if n else column.width)


def filled(column: Column, numbers: NDArray[np.float32]) -> NDArray[np.float32]:
    """Numbers of a column that is one number, with its default, if it has one, in place of NaN."""
    return np.where(np.isnan(numbers), column.defaults[0], numbers)


def words_of(column: Column, numbers: NDArray[np.float32]) -> NDArray[np.object_]:
    """[n] str: the words of a category that its numbers in a matrix stand for; the empty text for any others, and NaN.

    A version that reads words does the same in its graph (`converters/graph.py`).
    """
    words = np.array([*column.vocabulary, ""], object)
    known = (numbers >= 0) & (numbers < len(column.vocabulary)) & (numbers == np.floor(numbers))
    return words[np.where(known, numbers, -1).astype(np.int64)]


def _arrow_ids(pa: Any, values: Sequence[bytes]) -> Any:
    try:
        return pa.array([value.decode() for value in values], pa.string())
    except UnicodeDecodeError:
        return pa.array(values, pa.binary())


def _arrow_values(pa: Any, column: Column, values: Masked) -> Any:
    """One column as Arrow has it; vectors are lists of one size."""
    null = np.ma.getmaskarray(values)
    if column.dtype != "vector":
        kind = pa.from_numpy_dtype(values.dtype) if column.dtype in PLAIN else pa.string()
        return pa.array(values.data, kind, mask=null)
    flat = pa.array(values.data.reshape(-1), pa.float32())
    return pa.FixedSizeListArray.from_arrays(flat, column.size, mask=pa.array(null.all(axis=1)))


# From what is stored ----------------------------------------------------------------------------------------------


def read(view: FeatureView, entities: Sequence[bytes], stored: Sequence[Any]) -> Features:
    """The features of entities, from what the store has of them: a packed row, or a list of texts, or None."""
    n = len(entities)
    columns = {column.name: _empty(column, n) for column in view.columns}
    times, numbers, now_ms = (
        np.zeros(n, np.int64),
        np.full((n, view.width), np.nan, np.float32),
        time.time_ns() // 10**6,
    )
    if view.layout == "row":
        keys = view.keys(entities)
        status = _read_rows(view, keys, stored, columns, times)
        unpack(view, keys, stored, numbers, np.empty(n, np.int64), np.empty(n, np.uint8))
    else:
        status = _read_texts(view, stored, columns, times)
        replies = [[None] * len(view.read_fields) if texts is None else texts for texts in stored]
        decode_hashes(view, replies, numbers, np.empty(n, np.int64), np.empty(n, np.uint8))
    return Features(view, tuple(entities), columns, times, tuple(STATUS[code] for code in status), numbers, now_ms)


def _empty(column: Column, n: int) -> Masked:
    """A column with every value masked."""
    if column.dtype == "vector":
        return np.ma.MaskedArray(np.zeros((n, column.size or 0), np.float32), mask=True)
    if column.dtype in PLAIN:
        return np.ma.MaskedArray(np.zeros(n, column.dtype), mask=True)
    return np.ma.MaskedArray(np.full(n, "", object), mask=True)


def _read_rows(
    view: FeatureView,
    keys: Sequence[bytes],
    rows: Sequence[bytes | None],
    columns: Mapping[str, Masked],
    times: NDArray[np.int64],
) -> NDArray[np.uint8]:
    """Fill in what sound rows have; the status of each."""
    status = _judge(view.row_layout, keys, rows)
    groups = [(view.columns, np.flatnonzero(status == ROW_OK).tolist())]
    for former, at in of_former(view, rows, status):
        status[at] = _judge(former.row_layout, [keys[i] for i in at], [rows[i] for i in at])
        groups.append((former.columns, [i for i in at if status[i] == ROW_OK]))
    by_name = {column.name: column for column in view.columns}
    for written, at in groups:
        sound = [rows[i] or b"" for i in at]
        times[at] = [int.from_bytes(row[8:16], "little", signed=True) for row in sound]
        for old, values in zip(written, _values(written, sound), strict=True):
            new = by_name.get(old.name)
            if new is not None and kindred(old, new):
                columns[new.name][at] = values if new == old else as_now(new, values)
    return status


def _judge(layout: RowLayout, keys: Sequence[bytes], rows: Sequence[bytes | None]) -> NDArray[np.uint8]:
    n = len(rows)
    status = np.empty(n, np.uint8)
    layout.unpack(keys, rows, np.empty((n, layout.width), np.float32), np.empty(n, np.int64), status)
    return status


def _values(columns: Sequence[Column], rows: Sequence[bytes]) -> list[Masked]:
    """The columns of sound rows, as they were written. All but the texts stands at the same place in each row."""
    bitmap = (len(columns) + 7) // 8
    kinds = [np.dtype(STORED.get(column.dtype, column.dtype)) for column in columns]
    shapes = [(column.size,) if column.size else () for column in columns]
    record = np.dtype([(str(j), kind, shape) for j, (kind, shape) in enumerate(zip(kinds, shapes, strict=True))])
    end = HEADER + bitmap + record.itemsize
    fields = np.frombuffer(b"".join([row[HEADER + bitmap : end] for row in rows]), record)
    nulls = np.frombuffer(b"".join([row[HEADER : HEADER + bitmap] for row in rows]), np.uint8).reshape(-1, bitmap)
    null = np.unpackbits(nulls, axis=1, bitorder="little").astype(bool)
    ends = np.full(len(rows), end)
    found = []
    for j, column in enumerate(columns):
        values = fields[str(j)]
        if column.dtype == "string":
            found.append(_texts(rows, ends, values.astype(int), null[:, j]))
            ends += values
        elif column.dtype == "category":
            words = np.array([*column.vocabulary, ""], object)
            known = (values >= 0) & (values < len(column.vocabulary))
            found.append(np.ma.MaskedArray(words[np.where(known, values, -1)], null[:, j]))
        else:
            kept = values.astype(bool) if column.dtype == "bool" else values
            mask = null[:, j] if kept.ndim == 1 else np.repeat(null[:, j, None], kept.shape[1], axis=1)
            found.append(np.ma.MaskedArray(kept, mask))
    return found


def _texts(rows: Sequence[bytes], starts: NDArray[np.int64], lengths: NDArray[np.int64], null: NDArray[Any]) -> Masked:
    places = zip(rows, starts.tolist(), lengths.tolist(), strict=True)
    texts = np.empty(len(rows), object)
    texts[:] = [row[start : start + length].decode("utf-8", "replace") for row, start, length in places]
    return np.ma.MaskedArray(texts, null)


def as_now(column: Column, values: Masked) -> Masked:
    """Values of a kindred column as this one holds them; what it cannot hold is masked."""
    if column.dtype == "category":
        words = [word if word in column.vocabulary else "" for word in values.data]
        return np.ma.MaskedArray(np.array(words, object), np.ma.getmaskarray(values))
    if column.dtype not in PLAIN or values.dtype == column.dtype:
        return values
    with np.errstate(over="ignore", invalid="ignore"):
        cast = values.data.astype(column.dtype)
        lost = lost_in_cast(values.data, cast)
    return np.ma.MaskedArray(cast, np.ma.getmaskarray(values) | lost)


def _read_texts(
    view: FeatureView,
    hashes: Sequence[Sequence[bytes | None] | None],
    columns: Mapping[str, Masked],
    times: NDArray[np.int64],
) -> NDArray[np.uint8]:
    """Fill in the numbers of hashes, and their times where the view reads them; the status of each."""
    status = np.full(len(hashes), ROW_ABSENT, np.uint8)
    for i, texts in enumerate(hashes):
        if texts is None:
            status[i] = ROW_CORRUPT
            continue
        for column, text in zip(view.columns, texts, strict=False):
            if text is None:
                continue
            status[i] = ROW_OK
            number = _number(text, column.dtype)
            if number is not None:
                columns[column.name][i] = number
        if view.time_field and status[i] == ROW_OK:
            times[i] = time_of(texts[-1])
    return status


def _number(text: bytes, dtype: str) -> float | int | None:
    """The number written in `text` if the dtype holds it, else None."""
    try:
        value = float(text) if dtype.startswith("float") else exact_number(text)
        if value is None or value != value:  # noqa: PLR0124 -- NaN
            return None
        if not dtype.startswith("float"):
            if value != int(value):
                return None
            value = int(value)
        number: float | int = np.dtype(dtype).type(value).item()
    except (ValueError, OverflowError):
        return None
    return number
