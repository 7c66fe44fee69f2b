"""Tables of rows: Parquet, CSV and Arrow files, or Arrow data of this process, as a sequence of record batches.

A table may also be many files of Parquet: a folder of them, as Spark and Dask write, or what a pattern names. They are
read in the order of their names, numbers by value; names that begin with '.' or '_' are left out, as everywhere.

What is read is bounded by a batch (and, for Parquet, by a few pages of each column), not by the file. Rows that are to
be skipped are not decoded where the format allows: whole row groups of Parquet and whole batches of an Arrow file.
"""

from __future__ import annotations

import glob
import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from penstock.features.errors import FeatureError, InvalidData

CSV_BLOCK = 1 << 22  # bytes
HEAD = 1 << 16  # bytes of a file's beginning, and of its end, that its identity covers

Batches = Iterator[tuple[Any, float]]
"""Record batches, each with how much of the table is read after it (0 to 1; 0 throughout where nobody knows)."""


def read_batches(source: Any, columns: list[str], batch_rows: int, skip: int = 0) -> Batches:
    """Record batches of at most `batch_rows` with these columns, from row `skip` on.

    `source` is the path of a .parquet, .csv or Arrow IPC file (.arrow, .feather, .ipc), a folder or pattern of Parquet
    files, or anything that `pyarrow.RecordBatchReader.from_stream` takes: a Table, a RecordBatchReader, a frame of
    polars or pandas. Raises `InvalidData`.
    """
    load_pyarrow()
    if not isinstance(source, str | Path):
        yield from _in_memory(source, columns, batch_rows, skip)
    elif len(files := files_of(Path(source))) > 1:
        yield from _many(files, columns, batch_rows, skip)
    else:
        with readable(files[0]):
            yield from _reader(files[0])(files[0], columns, batch_rows, skip)


def read_table(source: Path, texts: Collection[str] = ()) -> Any:
    """The whole table, of a path as `read_batches` takes it.

    Values of a CSV file are what they look like, but for the columns named in `texts`, which are text. Raises
    `InvalidData`.
    """
    pa = load_pyarrow()
    tables = []
    for file in files_of(source):
        with readable(file):
            tables.append(_whole(file, _reader(file), texts))
    with readable(source):
        return pa.concat_tables(tables, promote_options="permissive")


def _whole(path: Path, read: Reader, texts: Collection[str]) -> Any:
    import pyarrow as pa
    from pyarrow import csv, parquet

    if read is _parquet:
        with parquet.ParquetFile(path) as file:
            return file.read()
    if read is _arrow:
        with pa.OSFile(str(path)) as source, pa.ipc.open_file(source) as file:
            return file.read_all()
    return csv.read_csv(path, convert_options=csv.ConvertOptions(column_types=dict.fromkeys(texts, pa.string())))


def files_of(path: Path) -> list[Path]:
    """The files of a table, one or many; `InvalidData` where there is none, or it cannot be of many."""
    if path.is_dir():
        return _parquet_in(path)
    if not glob.has_magic(str(path)) or path.exists():
        _reader(path)
        return [path]
    found = _shown(Path(path.anchor), Path(path.anchor).glob(str(path.relative_to(path.anchor))))
    if not found:
        raise InvalidData(f"no file is called {path}")
    files = [file for each in found for file in (_parquet_in(each) if each.is_dir() else [each])]
    for file in files:
        if len(files) > 1 and _reader(file) is not _parquet:
            raise InvalidData(f"{file}: a table of many files is Parquet")
    return files


def _parquet_in(folder: Path) -> list[Path]:
    found = (path for path in folder.rglob("*") if READERS.get(path.suffix.lower()) is _parquet and path.is_file())
    files = _shown(folder, found, whole=True)
    if not files:
        raise InvalidData(f"there is no Parquet file in the folder {folder}")
    return files


def _shown(folder: Path, paths: Iterable[Path], *, whole: bool = False) -> list[Path]:
    """In order and without those whose name (with `whole`, or that of a folder on the way) begins with '.' or '_'."""
    names = ((path, path.relative_to(folder).parts if whole else (path.name,)) for path in paths)
    return sorted((path for path, parts in names if not any(part[0] in "._" for part in parts)), key=_by_numbers)


def _by_numbers(path: Path) -> list[tuple[int, str]]:
    """A key to sort by: `part.10` after `part.2`."""
    return [(int(number or 0), text) for text, number in re.findall(r"(\D*)(\d*)", str(path))]


def column_names(path: Path) -> list[str]:
    """The names of a table's columns, in order; of many files those of the first. Raises `InvalidData`."""
    pa = load_pyarrow()
    from pyarrow import csv, parquet

    file = files_of(path)[0]
    read = _reader(file)
    with readable(file):
        if read is _parquet:
            return list(parquet.read_schema(file).names)
        if read is _csv:
            with csv.open_csv(file) as reader:
                return list(reader.schema.names)
        with pa.OSFile(str(file)) as source, pa.ipc.open_file(source) as reader:
            return list(reader.schema.names)


def identity(path: Path) -> str:
    """What tells a table from what it was or will be: for each file its size, time of change, beginning and end."""
    files = files_of(path)
    if len(files) == 1:
        return _identity(files[0])
    parts = "".join(f"{file}\n{_identity(file)}\n" for file in files)
    return hashlib.sha256(parts.encode("utf-8", "surrogateescape")).hexdigest()[:24]


def _identity(path: Path) -> str:
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


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """`InvalidData` that names the file which the block cannot read."""
    try:
        yield
    except (OSError, load_pyarrow().ArrowException) as error:
        raise InvalidData(f"{path}: cannot be read: {' '.join(str(error).split())}") from error


def _many(files: Sequence[Path], columns: list[str], batch_rows: int, skip: int) -> Batches:
    """One file of Parquet after the other; that each has the columns is known before a row of any is read."""
    from pyarrow import parquet

    sizes = []
    for path in files:
        with readable(path), parquet.ParquetFile(path) as file:
            require_columns(path, columns, file.schema_arrow.names)
            sizes.append(file.metadata.num_rows)
    total, done = max(sum(sizes), 1), 0
    for path, rows in zip(files, sizes, strict=True):
        if done + rows > skip:
            with readable(path):
                for batch, fraction in _parquet(path, columns, batch_rows, max(skip - done, 0)):
                    yield batch, (done + fraction * rows) / total
        done += rows


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


Reader = Callable[[Path, list[str], int, int], Batches]
READERS: dict[str, Reader] = {
    ".parquet": _parquet,
    ".pq": _parquet,
    ".csv": _csv,
    ".arrow": _arrow,
    ".feather": _arrow,
    ".ipc": _arrow,
}


def _reader(path: Path) -> Reader:
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
