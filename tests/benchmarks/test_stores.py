"""The benchmarks of features measure what they say, and hold what was promised; Feast is stood in for."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import typer
from pyarrow import parquet
from typer.testing import CliRunner

from penstock.benchmarks import features, ingestion, lookups
from penstock.benchmarks.peers import NotInstalled
from penstock.benchmarks.stores import redis_server, write_table
from penstock.errors import PenstockError


class NoFeast:
    def __init__(self, *_):
        raise NotInstalled("feast could not be installed; is PyPI reachable?")


class StandIn:
    """Answers like Feast, from the table, slowly."""

    def __init__(self, table, *_):
        self._table = parquet.read_table(table)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def ask(self, question):
        if "ingest" in question:
            return {"rows": len(self._table), "seconds": len(self._table) / 100}
        ids = question["look"]
        row = self._table.slice(ids[-1][0], 1).to_pylist()[0]
        return {"seconds": [0.01] * len(ids), "values": [row[name] for name in self._table.column_names[2:]]}


@pytest.fixture
def run(monkeypatch):
    def run(module, feast, *words):
        monkeypatch.setattr(module, "Feast", feast)
        app = typer.Typer()
        app.command()(module.main)
        found = CliRunner().invoke(app, [*words, "--json"])
        assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
        return found.exit_code, json.loads(found.stdout)

    return run


def test_ingestion_is_compared_and_its_memory_measured(run):
    words = ("--rounds", "2", "--rows", "500", "--features", "5", "--large", "3000")
    code, found = run(ingestion, StandIn, *words)
    assert code == 0
    assert [set(r) for r in found["rounds"]] == [{"newest wins", "overwrite", "Feast, write", "Feast, materialize"}] * 2
    times, memory = found["lines"]
    assert times["value"] >= 5
    assert times["limit"] == "at least 5"
    assert (found["large"]["rows"], memory["limit"]) == (3000, "at most 1024")
    assert 30 < memory["value"] < 400


def test_without_feast_the_rest_is_measured(run):
    code, found = run(ingestion, NoFeast, "--rounds", "1", "--rows", "500", "--features", "5", "--large", "0")
    assert code == 0
    assert found["lines"] == []
    assert found["rounds"][0]["newest wins"] > 0
    code, found = run(lookups, NoFeast, "--rounds", "1", "--calls", "5", "--entities", "200")
    assert len(found["scenarios"]) == 1


def test_look_ups_are_compared_with_every_side(run):
    _, found = run(lookups, StandIn, "--rounds", "1", "--calls", "5", "--entities", "200")
    by_hand, *feast = found["scenarios"]
    assert set(by_hand["rounds"][0]) == {
        "row layout", "hash layout", "HGETALL each", "HGETALL, pipelined", "MGET, frombuffer", "HMGETs, float"
    }  # fmt: skip
    assert [line["limit"] for line in by_hand["lines"]] == ["at least 10", "at least 0.7692", "at least 2"]
    assert [s["title"] for s in feast] == ["1 entity, 50 features", *(f"{n} entities, 50 features" for n in (10, 100))]
    assert all(s["lines"][0]["limit"] == "at least 10" for s in feast)


def test_a_side_that_finds_something_else_fails_the_benchmark():
    values = np.zeros((100, 3), np.float32)
    with pytest.raises(PenstockError, match="wrong found other values"):
        lookups.check({"right": lambda ids: values[ids], "wrong": lambda ids: values[ids] + 1}, values, 5)


def test_a_table_is_made_in_parts_and_its_ids_go_round(tmp_path):
    write_table(tmp_path / "t.parquet", 25, 2, entities=10, group=7)
    table = parquet.read_table(tmp_path / "t.parquet")
    assert table["id"].to_pylist() == [i % 10 for i in range(25)]
    assert table.column_names == ["id", "at", "f0", "f1"]


def test_the_redis_of_a_benchmark_listens_on_loopback_only(tmp_path):
    with redis_server(tmp_path) as server:
        assert server.address.startswith("127.0.0.1:")


def test_every_line_of_the_feature_plane_is_in_one_table(monkeypatch):
    monkeypatch.setattr(lookups, "Feast", StandIn)
    monkeypatch.setattr(ingestion, "Feast", StandIn)
    for name, value in (("ROUNDS", 2), ("CALLS", 5), ("ROWS", 500), ("FEATURES", 5)):
        monkeypatch.setattr(features, name, value)
    app = typer.Typer()
    app.command()(features.main)
    found = CliRunner().invoke(app, ["--markdown", "--large", "3000"])
    assert found.exit_code in (0, 1), found.exception
    rows = [line.split(" | ") for line in found.stdout.splitlines() if line.startswith("| ")]
    assert [len(row) for row in rows] == [3] * 11
    assert sum("Feast" in row[0] for row in rows) == 4
    assert any(re.fullmatch(r"\*\*[\d,.]+\*\* \([\d,.]+ to [\d,.]+\)", row[1]) for row in rows)
