"""Tables of rows: Parquet, CSV and Arrow files, or Arrow data of this process, as a sequence of record batches.

What is read is bounded by a batch (and, for Parquet, by a few pages of each column), not by the file. Rows that are to
be skipped are not decoded where the format allows: whole row groups of Parquet and whole batches of an Arrow file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from penstock.features.errors import FeatureError, InvalidData

CSV_BLOCK = 1 << 22  # bytes
HEAD = 1 << 16  # bytes of a file's beginning, and of its end, that its identity covers

Batches = Iterator[tuple[Any, float]]
"""Record batches, each with how much of the table is read after it (0 to 1; 0 throughout where nobody knows)."""


def read_batches(source: Any, columns: list[str], batch_rows: int, skip: int = 0) -> Batches:
    """Record batches of at most `batch_rows` with these columns, from row `skip` on.

    `source` is the path of a .parquet, .csv or Arrow IPC file (.arrow, .feather, .ipc), or anything that
    `pyarrow.RecordBatchReader.from_stream` takes: a Table, a RecordBatchReader, a frame of polars or pandas.
    Raises `InvalidData`.
    """
    pyarrow = load_pyarrow()
    if not isinstance(source, str | Path):
        yield from _in_memory(source, columns, batch_rows, skip)
        return
    path, read = Path(source), _reader(Path(source))
    try:
        yield from read(path, columns, batch_rows, skip)
    except (OSError, pyarrow.ArrowException) as error:
        raise InvalidData(f"{path}: cannot be read: {' '.join(str(error).split())}") from error


def column_names(path: Path) -> list[str]:
    """The names of a table's columns, in order; raises `InvalidData`."""
    pa = load_pyarrow()
    from pyarrow import csv, parquet

    _reader(path)
    try:
        if path.suffix.lower() in (".parquet", ".pq"):
            names = parquet.read_schema(path).names
        elif path.suffix.lower() == ".csv":
            with csv.open_csv(path) as reader:
                names = reader.schema.names
        else:
            with pa.OSFile(str(path)) as source, pa.ipc.open_file(source) as reader:
                names = reader.schema.names
    except (OSError, pa.ArrowException) as error:
        raise InvalidData(f"{path}: cannot be read: {' '.join(str(error).split())}") from error
    return list(names)


def identity(path: Path) -> str:
    """What tells a file from what it was or will be: a digest of its size, time of change, beginning and end."""
    _reader(path)
    try:
        found = path.stat()
        with path.open("rb") as file:
            head = file.read(HEAD)
            file.seek(max(found.st_size - HEAD, 0))
            ends = head + file.read(HEAD)
    except OSError as error:
        raise InvalidData(f"{path}: cannot be read: {error.strerror}") from error
    return hashlib.sha256(b"%d %d " % (found.st_size, found.st_mtime_ns) + ends).hexdigest()[:24]


def load_pyarrow() -> Any:
    """The library, or `FeatureError` saying how to get it."""
    try:
        import pyarrow as pa
    except ImportError as error:
        raise FeatureError("reading tables needs pyarrow: pip install 'penstock[tables]'") from error
    return pa


def _parquet(path: Path, columns: list[str], batch_rows: int, skip: int) -> Batches:
    from pyarrow import parquet

    with parquet.ParquetFile(path, pre_buffer=False) as file:  # else whole row groups are kept, raw
        require_columns(path, columns, file.schema_arrow.names)
        total, done = max(file.metadata.num_rows, 1), 0
        groups = list(range(file.metadata.num_row_groups))
        while groups and done + file.metadata.row_group(groups[0]).num_rows <= skip:
            done += file.metadata.row_group(groups.pop(0)).num_rows
        if not groups:
            return
        for batch in file.iter_batches(batch_size=batch_rows, columns=columns, row_groups=groups):
            left = _after(batch, skip - done)
            done += batch.num_rows
            if left.num_rows:
                yield left, done / total


def _csv(path: Path, columns: list[str], batch_rows: int, skip: int) -> Batches:
    import pyarrow as pa
    from pyarrow import csv

    with csv.open_csv(path) as head:
        require_columns(path, columns, head.schema.names)
    convert = csv.ConvertOptions(
        column_types=dict.fromkeys(columns, pa.string()),
        include_columns=columns,
        strings_can_be_null=True,
        null_values=[""],  # no more: "NA" may be Namibia, and "null" somebody's name
    )
    size, done = max(path.stat().st_size, 1), 0
    with (
        pa.OSFile(str(path)) as file,
        csv.open_csv(file, read_options=csv.ReadOptions(block_size=CSV_BLOCK), convert_options=convert) as reader,
    ):
        for block in reader:
            left = _after(block, skip - done)
            done += block.num_rows
            yield from _sliced(left, batch_rows, min(file.tell() / size, 1.0))


def _arrow(path: Path, columns: list[str], batch_rows: int, skip: int) -> Batches:
    import pyarrow as pa

    with pa.OSFile(str(path)) as source, pa.ipc.open_file(source) as file:
        require_columns(path, columns, file.schema.names)
        done = 0
        for number in range(file.num_record_batches):
            batch = file.get_batch(number)
            left = _after(batch, skip - done)
            done += batch.num_rows
            yield from _sliced(left.select(columns), batch_rows, (number + 1) / file.num_record_batches)


def _in_memory(source: Any, columns: list[str], batch_rows: int, skip: int) -> Batches:
    import pyarrow as pa

    try:
        reader = pa.RecordBatchReader.from_stream(source)
    except TypeError as error:
        raise InvalidData(f"a {type(source).__name__} is neither the path of a table nor Arrow data") from error
    require_columns("the table", columns, reader.schema.names)
    total, done = getattr(source, "num_rows", None), 0
    for batch in reader:
        left = _after(batch, skip - done)
        done += batch.num_rows
        yield from _sliced(left.select(columns), batch_rows, done / total if total else 0.0)


READERS = {".parquet": _parquet, ".pq": _parquet, ".csv": _csv, ".arrow": _arrow, ".feather": _arrow, ".ipc": _arrow}


def _reader(path: Path) -> Callable[[Path, list[str], int, int], Batches]:
    """What reads such files."""
    read = READERS.get(path.suffix.lower())
    if read is None:
        raise InvalidData(f"{path}: the name of a table ends in {', '.join(READERS)}")
    if not path.is_file():
        raise InvalidData(f"there is no file {path}")
    return read


def _after(batch: Any, skip: int) -> Any:
    """What is left of a batch without its first rows."""
    return batch.slice(min(skip, batch.num_rows)) if skip > 0 else batch


def _sliced(batch: Any, batch_rows: int, fraction: float) -> Batches:
    for start in range(0, batch.num_rows, batch_rows):
        yield batch.slice(start, batch_rows), fraction


def require_columns(where: Path | str, columns: list[str], present: list[str]) -> None:
    """`InvalidData` unless each of `columns` is `present` once."""
    missing = [name for name in columns if name not in present]
    if missing:
        listed = ", ".join(present[:20]) + (", ..." if len(present) > 20 else "")
        raise InvalidData(f"{where}: no column {missing[0]!r}; it has {listed}")
    if twice := [name for name in columns if present.count(name) > 1]:
        raise InvalidData(f"{where}: more than one column {twice[0]!r}")
