"""What benchmarks of features share: a Redis on loopback, a seeded table, and Feast in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from penstock.benchmarks.peers import environment
from penstock.benchmarks.processes import Server, ServerFailed, free_port
from penstock.features import Column, FeatureView, StoreUnavailable, open_store
from penstock.features.embedded import find_executable

FEAST = "feast[redis]==0.67.0"
SINCE_MS = 1_750_000_000_000  # event times of seeded tables begin here, and go on for eleven days


def redis_server(folder: Path) -> Server:
    """A Redis on a free port of loopback that keeps nothing on disk."""
    port = free_port()
    options = {"port": port, "bind": "127.0.0.1", "save": "", "dir": folder}
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    address = f"127.0.0.1:{port}"
    return Server(
        "Redis", [find_executable(), *words], folder / "redis.json", address=address, is_ready=lambda: answers(address)
    )


def answers(address: str) -> bool:
    """Whether a Redis answers at HOST:PORT."""
    try:
        with closing(open_store(f"redis://{address}")) as store:
            store.ping()
    except StoreUnavailable:
        return False
    return True


def view_of(features: int) -> FeatureView:
    """The view of a seeded table."""
    columns = tuple(Column(name=f"f{i}", dtype="float32") for i in range(features))
    return FeatureView(name="activity", entity="id", columns=columns, ttl_s=3650 * 86400)


def values_of(rows: int, features: int) -> NDArray[np.float32]:
    """Features from a seed."""
    return np.random.default_rng(11).normal(size=(rows, features)).astype(np.float32)


def write_table(path: Path, rows: int, features: int, entities: int | None = None, group: int = 1 << 18) -> None:
    """A Parquet table of `id`, `at` (timestamps) and the features; ids go round. Made in bounded memory."""
    import pyarrow as pa
    from pyarrow import parquet

    chance = np.random.default_rng(11)
    fields = [
        ("id", pa.int64()),
        ("at", pa.timestamp("ms", "UTC")),
        *((f"f{i}", pa.float32()) for i in range(features)),
    ]
    with parquet.ParquetWriter(path, pa.schema(fields)) as writer:
        for start in range(0, rows, group):
            count = min(group, rows - start)
            values = chance.normal(size=(features, count)).astype(np.float32)
            ids = np.arange(start, start + count) % (entities or rows)
            times = SINCE_MS + chance.integers(0, 10**9, count)
            columns = [pa.array(ids), pa.array(times).cast(pa.timestamp("ms", "UTC")), *map(pa.array, values)]
            writer.write_table(pa.table(columns, pa.schema(fields)))


class Feast:
    """Feast over a table and a Redis; use it in a `with` block. Raises `NotInstalled` where it cannot be had."""

    def __init__(self, table: Path, address: str, features: int, say: Callable[[str], None]) -> None:
        python = environment("feast", (FEAST,), say)
        script = Path(__file__).with_name("rival_feast.py")
        self._words = [str(python), str(script), str(table), address.rpartition(":")[2], str(features)]
        self._log = table.with_suffix(".feast.log")

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, "FEAST_USAGE": "False"},
            )
        self._answer()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()

    def ask(self, question: Any) -> Any:
        """Its answer, see `rival_feast.py`; raises `ServerFailed`."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question).encode() + b"\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ServerFailed(f"Feast ended: {self._log.read_text('utf-8', 'replace')[-2000:].strip()}")
        return json.loads(line)
