"""Looking features up: against Feast, and against what one writes by hand with redis-py.

All sides ask the same Redis on loopback in turn, A B A B …, for entities drawn anew each time, and what each finds is
held against the table before. The figure is the median latency of a call, the ratio that of neighbouring runs.

- *Feast*: `get_online_features` of 1, 10 and 100 entities with 50 features, in a process of its own; what it gives is
  not unpacked. Penstock gives a matrix and statuses, over both layouts.
- *By hand*, 64 entities of 30 features: an HGETALL for each entity, one after the other; the same in one pipeline; a
  bare MGET and `numpy.frombuffer` of each row, without any check; a pipeline of HMGETs and `float` of each value.

    python -m penstock.benchmarks.lookups [--rounds 5] [--calls 200] [--json]

Ends with 1 if a line is missed.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import redis
import typer
from numpy.typing import NDArray

from penstock.benchmarks.lines import Judged, judged, print_judged
from penstock.benchmarks.peers import NotInstalled
from penstock.benchmarks.sides import machine
from penstock.benchmarks.stores import Feast, redis_server, values_of, view_of, write_table
from penstock.commands._console import errors, print_json, print_table
from penstock.errors import PenstockError
from penstock.features import FeatureStore, FeatureView, Lookup, open_store

ENTITIES = 20_000
FEAST_SIZES, FEAST_FEATURES, TIMES_FEAST = (1, 10, 100), 50, 10.0
HAND_SIZE, HAND_FEATURES = 64, 30
TIMEOUT_S = 5.0
HEADER = 24  # bytes of a packed row before its null bitmap
Look = Callable[[list[int]], Any]
Asked = Callable[[list[list[int]]], list[float]]
"""Seconds of each of many calls."""

HAND_LINES = (
    ("row layout", "HGETALL each", 10.0),
    ("row layout", "MGET, frombuffer", 1 / 1.3),
    ("hash layout", "HMGETs, float", 2.0),
)
"""Ours, theirs, and how many times as fast it is at least."""


def timed(look: Look) -> Asked:
    """Calls of this process."""

    def asked(wanted: list[list[int]]) -> list[float]:
        times = []
        for ids in wanted:
            begun = time.perf_counter()
            look(ids)
            times.append(time.perf_counter() - begun)
        return times

    return asked


def penstock(store: FeatureStore, view: FeatureView) -> Look:
    """A matrix float32 [n, k] by `fetch`, which serving calls."""
    return lambda ids: store.fetch([Lookup(view, [b"%d" % i for i in ids])], TIMEOUT_S)[0].values


def by_hand(client: Any, row: FeatureView, hashed: FeatureView) -> dict[str, Look]:
    """What one writes with redis-py."""
    names = [name.encode() for name in hashed.column_names]
    start, count = HEADER + (len(names) + 7) // 8, len(names)

    def hgetall_each(ids: list[int]) -> Any:
        found = [client.hgetall(b"features:%d" % i) for i in ids]
        return np.array([[float(one[name]) for name in names] for one in found], np.float32)

    def hgetall_pipelined(ids: list[int]) -> Any:
        pipeline = client.pipeline(transaction=False)
        for i in ids:
            pipeline.hgetall(b"features:%d" % i)
        return np.array([[float(one[name]) for name in names] for one in pipeline.execute()], np.float32)

    def mget(ids: list[int]) -> Any:
        rows = client.mget([b"fs:{%d}:%s" % (i, row.name.encode()) for i in ids])
        return np.array([np.frombuffer(one, np.float32, count, start) for one in rows])

    def hmget(ids: list[int]) -> Any:
        pipeline = client.pipeline(transaction=False)
        for i in ids:
            pipeline.hmget(b"features:%d" % i, names)
        return np.array([[float(value) for value in one] for one in pipeline.execute()], np.float32)

    return {
        "HGETALL each": hgetall_each,
        "HGETALL, pipelined": hgetall_pipelined,
        "MGET, frombuffer": mget,
        "HMGETs, float": hmget,
    }


def filled(store: FeatureStore, features: int, values: NDArray[np.float32]) -> tuple[FeatureView, FeatureView]:
    """The table in both layouts; their views."""
    row = view_of(features)
    hashed = row.model_copy(update={"name": "hashed", "layout": "hash"})
    for view in (row, hashed):
        columns = {f"f{i}": values[:, i] for i in range(features)}
        store.put(view, [b"%d" % i for i in range(len(values))], columns, overwrite=True)
    return row, hashed


def check(sides: dict[str, Look], values: NDArray[np.float32], size: int) -> None:
    """Raise unless every side finds what the table has."""
    ids = drawn(1, size, len(values))[0]
    for name, look in sides.items():
        if not np.array_equal(look(ids), values[ids]):
            raise PenstockError(f"{name} found other values than the table has")


def check_feast(feast: Feast, table: Path) -> None:
    """Raise unless Feast finds what the table has."""
    from pyarrow import parquet

    first = parquet.read_table(table).slice(7, 1).to_pylist()[0]
    found = feast.ask({"look": [[first["id"]]]})["values"]
    if not np.array_equal(found, [first[f"f{i}"] for i in range(FEAST_FEATURES)]):
        raise PenstockError("Feast found other values than the table has")


def drawn(calls: int, size: int, entities: int) -> list[list[int]]:
    """Different entities for each of many calls."""
    chance = np.random.default_rng()
    found: list[list[int]] = [chance.choice(entities, size, replace=False).tolist() for _ in range(calls)]
    return found


def in_turn(sides: dict[str, Asked], rounds: int, calls: int, size: int, entities: int) -> list[dict[str, float]]:
    """Median µs a call of every side, round by round."""
    found = []
    for number in range(rounds):
        wanted = drawn(calls, size, entities)
        order = list(sides.items())[:: 1 if number % 2 else -1]  # nobody is always first
        found.append({name: statistics.median(asked(wanted)) * 1e6 for name, asked in order})
    return [{name: one[name] for name in sides} for one in found]


def line(title: str, rounds: Sequence[dict[str, float]], ours: str, theirs: str, at_least: float) -> Judged:
    """How many times as fast as theirs ours is, and whether that is enough."""
    times = [one[theirs] / one[ours] for one in rounds]
    return judged(f"look-up of {title}: {ours} / {theirs}, times as fast", times, at_least=at_least)


def against_hand(folder: Path, rounds: int, calls: int, entities: int) -> dict[str, Any]:
    """One scenario: its rounds and lines."""
    values = values_of(entities, HAND_FEATURES)
    with redis_server(folder) as server, closing(open_store(f"redis://{server.address}")) as store:
        row, hashed = filled(store, HAND_FEATURES, values)
        with redis.Redis.from_url(f"redis://{server.address}") as client:
            sides = {"row layout": penstock(store, row), "hash layout": penstock(store, hashed)}
            sides |= by_hand(client, row, hashed)
            check(sides, values, HAND_SIZE)
            asked = {name: timed(look) for name, look in sides.items()}
            in_turn(asked, 1, 20, HAND_SIZE, entities)
            found = in_turn(asked, rounds, calls, HAND_SIZE, entities)
    title = f"{HAND_SIZE} entities, {HAND_FEATURES} features"
    lines = [line(title, found, ours, theirs, least) for ours, theirs, least in HAND_LINES]
    return {"title": title, "rounds": found, "lines": lines}


def against_feast(folder: Path, rounds: int, calls: int, entities: int) -> list[dict[str, Any]]:
    """A scenario for each size; none where Feast cannot be had."""
    table = folder / "rows.parquet"
    write_table(table, entities, FEAST_FEATURES)
    scenarios = []
    with redis_server(folder) as server, closing(open_store(f"redis://{server.address}")) as store:
        try:
            feast = Feast(table, server.address, FEAST_FEATURES, errors.print)
        except NotInstalled as error:
            errors.print(f"Feast is left out: {error}", markup=False)
            return []
        row, hashed = filled(store, FEAST_FEATURES, values_of(entities, FEAST_FEATURES))
        with feast:
            feast.ask({"ingest": "write"})
            check_feast(feast, table)
            for size in FEAST_SIZES:
                sides = {
                    "row layout": timed(penstock(store, row)),
                    "hash layout": timed(penstock(store, hashed)),
                    "Feast": lambda wanted: feast.ask({"look": wanted})["seconds"],
                }
                in_turn(sides, 1, 10, size, entities)
                found = in_turn(sides, rounds, max(10, calls // size), size, entities)
                name = f"{size} {'entity' if size == 1 else 'entities'}, {FEAST_FEATURES} features"
                lines = [line(name, found, "row layout", "Feast", TIMES_FEAST)]
                scenarios.append({"title": name, "rounds": found, "lines": lines})
    return scenarios


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each side, in turn.")] = 5,
    calls: Annotated[int, typer.Option(min=1, help="Calls in one run.")] = 200,
    entities: Annotated[int, typer.Option(min=100, help="Entities in Redis.")] = ENTITIES,
    feast: Annotated[bool, typer.Option(help="Measure Feast, too.")] = True,
    json: Annotated[bool, typer.Option("--json", help="Figures as JSON.")] = False,
) -> None:
    """Measure look-ups against Feast and against redis-py by hand; 1 if a line is missed."""
    try:
        with tempfile.TemporaryDirectory(prefix="penstock-bench-") as name:
            scenarios = [against_hand(Path(name), rounds, calls, entities)]
            scenarios += against_feast(Path(name), rounds, calls, entities) if feast else []
    except PenstockError as error:
        errors.print(str(error), markup=False, highlight=False)
        raise typer.Exit(1) from None
    if json:
        print_json({"machine": machine(), "scenarios": scenarios})
    else:
        for scenario in scenarios:
            found = scenario["rounds"]
            rows = [(side, f"{statistics.median(r[side] for r in found):,.0f}") for side in found[0]]
            print_table(scenario["title"], ("side", "p50 µs"), rows, numeric=("p50 µs",))
    lines = [one for scenario in scenarios for one in scenario["lines"]]
    print_judged(lines)
    raise typer.Exit(not all(one["held"] for one in lines))


if __name__ == "__main__":
    typer.run(main)
