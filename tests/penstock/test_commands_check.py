"""`penstock features check` as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import closing

import numpy as np
import pytest
from typer.testing import CliRunner

from penstock.commands.features import app
from penstock.features import Column, FeatureView, InvalidData, open_store
from penstock.features.offline import OfflineStore, served
from penstock.kernels.joins import SOURCE_STORE

VIEW = FeatureView(name="activity", entity="customer", columns=[Column(name="amount", dtype="float64")])


@pytest.fixture
def folders(tmp_path):
    """A sample and a history of 100 customers, which agree."""
    now = time.time_ns() // 1_000_000
    ids = [b"c%d" % i for i in range(100)]
    values = np.arange(100, dtype=np.float32).reshape(100, 1) + 0.5
    rows = served.ServedRows(np.full(100, now), ids, values, np.full((100, 1), SOURCE_STORE, np.uint8))
    origin = served.Origin(model="fraud", version=1, digest="d", columns=("amount",), views=(VIEW,))
    (tmp_path / "penstock-served").mkdir()
    served.write(tmp_path / "penstock-served", origin, [rows])
    write(tmp_path, ids, values[:, 0], now - 60_000)
    return tmp_path


def write(folder, ids, amounts, time_ms):
    table = {"customer": ids, "amount": amounts, "event_time": np.full(len(ids), time_ms)}
    OfflineStore(folder / "penstock-offline").write(VIEW, table, created="event_time")


@pytest.fixture
def run(folders, monkeypatch):
    """Runs the command where the folders are; its exit code and what it printed, or the error it ended with."""
    monkeypatch.chdir(folders)
    monkeypatch.setenv("COLUMNS", "100")

    def run(*words):
        done = CliRunner().invoke(app, ["check", *words])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done

    return run


def test_sides_that_agree_end_with_0(run):
    done = run()
    assert (done.exit_code, done.stderr) == (0, "")
    assert "amount" in done.stdout
    assert "They agree: 0% of the worst feature's values differ, 0.1% may." in done.stdout


def test_sides_that_disagree_end_with_1_and_show_the_worst(run, folders):
    now = time.time_ns() // 1_000_000
    write(folders, [b"c7"], [1.0], now - 50_000)
    done = run()
    assert (done.exit_code, done.stderr) == (1, "")
    assert [word for word in ("c7", "7.5", "DISAGREE", "1%") if word not in done.stdout] == []
    assert run("--threshold", "0.01").exit_code == 0
    told = json.loads((machine := run("--json")).stdout)
    assert machine.exit_code == 1
    assert (told["rows"], told["share"], told["passed"]) == (100, 0.01, False)
    (feature,) = told["features"]
    assert (feature["compared"], feature["mismatched"], feature["missing"]) == (100, 1, 0)
    assert (feature["worst"][0]["entity"], feature["worst"][0]["offline"]) == ("c7", 1.0)


def test_what_is_not_there_is_told(run):
    with pytest.raises(InvalidData, match="nowhere holds no sample of served vectors"):
        run("--sample", "nowhere")
    with pytest.raises(InvalidData, match="there is no history of view 'activity'"):
        run("--offline", "nowhere")


def test_views_that_are_left_out_are_named(run, folders):
    other = VIEW.model_copy(update={"name": "streamed"})
    rows = served.ServedRows(
        np.array([5]), [b"x"], np.ones((1, 1), np.float32), np.full((1, 1), SOURCE_STORE, np.uint8)
    )
    origin = served.Origin(model="fraud", version=2, digest="d", columns=("amount",), views=(other,))
    served.write(folders / "penstock-served", origin, [rows])
    done = run()
    assert done.exit_code == 0
    assert "Not checked: streamed, there is no history of view 'streamed' in penstock-offline." in done.stdout
    told = json.loads(run("--json").stdout)
    assert [view["view"] for view in told["unchecked"]] == ["streamed"]
    assert json.loads(run("--json", "--view", "activity").stdout)["unchecked"] == []


def test_an_ingestion_may_keep_its_rows_offline(folders, run, monkeypatch):
    monkeypatch.setenv("PENSTOCK_FEATURES", "memory://commands-offline")
    with closing(open_store("memory://commands-offline")) as store:
        store.apply(VIEW)
    (folders / "rows.csv").write_text("customer,amount,at\n17,42.5,2026-01-01T00:00:00Z\n")
    done = CliRunner().invoke(app, ["ingest", "activity", "rows.csv", "--time", "at", "--offline", "history"])
    assert (done.exit_code, done.stderr) == (0, "")
    (file,) = (folders / "history").rglob("*.parquet")
    assert file.parent.name == "date=2026-01-01"


def test_wrong_usage_ends_with_2(run):
    assert run("--threshold", "2").exit_code == 2


def test_a_script_sees_the_exit_status(folders):
    write(folders, [b"c7"], [1.0], time.time_ns() // 1_000_000 - 50_000)
    command = [sys.executable, "-m", "penstock.cli", "features", "check"]
    assert subprocess.run(command, cwd=folders, capture_output=True, check=False).returncode == 1
