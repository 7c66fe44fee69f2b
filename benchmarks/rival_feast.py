"""Feast as a process of its own, in an environment of its own.

It is told in lines of JSON what to do, and tells how long that took. Run as `python rival_feast.py TABLE PORT
FEATURES`, with a Parquet table (`id`, `at`, `f0` …) and the port of a Redis on loopback.

    {"ingest": "write" or "materialize"}    ->  {"rows": ..., "seconds": ...}
    {"look": [[id, ...], ...]}              ->  {"seconds": [of each call], "values": those of the last call's first id}

`write` is `write_to_online_store` of the table as pandas reads it, reading included; `materialize` reads it by itself.
Only what Feast's own documentation recommends is set: protocol, registry and offline store are files.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import warnings
from contextlib import redirect_stdout
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any


def arranged(folder: str, table: str, port: str, features: int) -> Any:
    """A feature store with one entity and one view over the table."""
    import feast
    from feast.types import Float32

    config = feast.RepoConfig(
        project="bench",
        provider="local",
        registry=str(Path(folder) / "registry.db"),
        online_store={"type": "redis", "connection_string": f"127.0.0.1:{port}"},
        offline_store={"type": "file"},
        entity_key_serialization_version=3,
    )
    store = feast.FeatureStore(config=config)
    entity = feast.Entity(name="customer", join_keys=["id"], value_type=feast.ValueType.INT64)
    view = feast.FeatureView(
        name="activity",
        entities=[entity],
        ttl=timedelta(days=3650),
        schema=[feast.Field(name=f"f{i}", dtype=Float32) for i in range(features)],
        source=feast.FileSource(path=table, timestamp_field="at"),
    )
    store.apply([entity, view])
    return store


def ingest(store: Any, how: str, table: str) -> dict[str, Any]:
    """Write the whole table once."""
    import pandas as pd

    begun = time.perf_counter()
    if how == "write":
        store.write_to_online_store("activity", pd.read_parquet(table))
    else:
        store.materialize(datetime(2000, 1, 1, tzinfo=UTC), datetime.now(UTC))
    seconds = time.perf_counter() - begun
    return {"rows": len(pd.read_parquet(table, columns=["id"])), "seconds": seconds}


def look(store: Any, wanted: list[list[int]], features: int) -> dict[str, Any]:
    """One `get_online_features` for each list of ids."""
    names = [f"activity:f{i}" for i in range(features)]
    times = []
    for ids in wanted:
        rows = [{"id": identifier} for identifier in ids]
        begun = time.perf_counter()
        found = store.get_online_features(features=names, entity_rows=rows)
        times.append(time.perf_counter() - begun)
    values = found.to_dict()
    return {"seconds": times, "values": [values[f"f{i}"][0] for i in range(features)]}


def main(table: str, port: str, features: str) -> None:
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as folder:
        with redirect_stdout(sys.stderr):
            store = arranged(folder, table, port, int(features))
        print(json.dumps({"ready": True}), flush=True)
        for line in sys.stdin:
            asked = json.loads(line)
            with redirect_stdout(sys.stderr):  # it draws bars
                if "ingest" in asked:
                    answer = ingest(store, asked["ingest"], table)
                else:
                    answer = look(store, asked["look"], int(features))
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
