"""Samples of served vectors: what a server looked up, for whom and when, kept in Parquet to be checked later.

    <folder>/served-<when written>-<random>.parquet

A file holds rows of one version, with the columns

    time      int64, ms since 1970: when the row was looked up
    entity    binary: the id's bytes, as the caller sent it
    values    float32 [k]: what the model saw, of the version's columns that stand in a view
    sources   uint8 [k]: where each value came from, as numbered in `penstock.kernels.joins`

and in its metadata, under `penstock.served`, a JSON of the version, these k columns and the views. Files appear whole.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from penstock.features.errors import InvalidData
from penstock.features.offline.tables import arrow
from penstock.features.schema import KEPT, FeatureView

KEY = b"penstock.served"
PATTERN = "served-*.parquet"
LEFT_S = 3600.0  # nobody writes a file for so long
BLOCK = 4096  # a file takes as much of a disk, however small


class Origin(BaseModel):
    """Which version served, which of its columns are looked up, and in which views.

    Attributes:
        entity_keys: of the parts of an id, where the views are of several entities; else empty.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    model: str
    version: int
    digest: str
    columns: tuple[str, ...]
    entity_keys: tuple[str, ...] = ()
    views: tuple[FeatureView, ...]


@dataclass(frozen=True)
class ServedRows:
    """n sampled rows of one version with k looked-up columns.

    Attributes:
        times: int64 [n], ms since 1970.
        entities: n ids.
        values: float32 [n, k], as the model saw them.
        sources: uint8 [n, k], `SOURCE_...` of `penstock.kernels.joins`.
    """

    times: NDArray[np.int64]
    entities: Sequence[bytes]
    values: NDArray[np.float32]
    sources: NDArray[np.uint8]


def write(folder: Path, origin: Origin, parts: Sequence[ServedRows]) -> None:
    """Write rows as one file; raises `OSError` or what pyarrow raises."""
    pa = arrow()
    from pyarrow import parquet

    k = len(origin.columns)
    values, sources = (np.concatenate([getattr(part, name) for part in parts]) for name in ("values", "sources"))
    table = pa.table(
        {
            "time": np.concatenate([part.times for part in parts]),
            "entity": pa.array([entity for part in parts for entity in part.entities], pa.large_binary()),
            "values": pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), k),
            "sources": pa.FixedSizeListArray.from_arrays(pa.array(sources.reshape(-1)), k),
        }
    ).replace_schema_metadata({KEY: origin.model_dump_json()})
    name = f"served-{time.time_ns():020d}-{secrets.token_hex(4)}.parquet"
    staged = folder / f".{name}"
    try:
        parquet.write_table(table, staged, compression="zstd")
        staged.rename(folder / name)
    finally:
        staged.unlink(missing_ok=True)


def prune(folder: Path, max_bytes: int) -> None:
    """Remove the oldest files until those left take at most `max_bytes` of the disk, and what the killed have left."""
    for staged in folder.glob(f".{PATTERN}"):
        with suppress(FileNotFoundError):  # another server has finished it
            if time.time() - staged.stat().st_mtime > LEFT_S:
                staged.unlink()
    kept = 0
    for file in sorted(folder.glob(PATTERN), reverse=True):
        kept += _on_disk(file)
        if kept > max_bytes:
            file.unlink(missing_ok=True)


def read(folder: Path) -> Iterator[tuple[Origin, ServedRows]]:
    """Every file of a folder, oldest first.

    Raises:
        InvalidData: there is no sample, or a file that is none.
    """
    files = sorted(folder.glob(PATTERN)) if folder.is_dir() else []
    if not files:
        raise InvalidData(
            f"{folder} holds no sample of served vectors: serve with the setting sample_served: {{path: {folder}}}; "
            "a server writes every half minute, and when it ends"
        )
    for file in files:
        yield _read(file)


def _read(file: Path) -> tuple[Origin, ServedRows]:
    pa = arrow()
    from pyarrow import parquet

    try:
        table = parquet.read_table(file, partitioning=None).combine_chunks()
        origin = Origin.model_validate_json((table.schema.metadata or {})[KEY], context=KEPT)
        n, k = table.num_rows, len(origin.columns)
        values = _matrix(table["values"], n, k).astype(np.float32, copy=False)
        sources = _matrix(table["sources"], n, k).astype(np.uint8, copy=False)
        times = table["time"].to_numpy().astype(np.int64, copy=False)
        return origin, ServedRows(times, table["entity"].to_pylist(), values, sources)
    except FileNotFoundError as error:  # a server made room meanwhile
        raise InvalidData(f"{file} was removed while it was to be read: try again") from error
    except (OSError, pa.ArrowException, ValidationError, KeyError, ValueError) as error:
        raise InvalidData(f"{file}: no sample of served vectors: {_told(error)}") from error


def _matrix(column: Any, n: int, k: int) -> NDArray[Any]:
    flat: NDArray[Any] = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(n, k)


def _told(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _on_disk(file: Path) -> int:
    """Bytes of a file in whole blocks; 0 where it is gone."""
    try:
        return -(-file.stat().st_size // BLOCK) * BLOCK
    except FileNotFoundError:
        return 0
