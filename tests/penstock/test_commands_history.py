"""`penstock features join`, `restore` and `compact` as a user runs them, and an ingestion that is recorded."""

from __future__ import annotations

import json

import pytest
from pyarrow import parquet
from typer.testing import CliRunner

from penstock.cli import app
from penstock.errors import PenstockError
from penstock.features import InvalidData, InvalidView

YAML = """
name: activity
entity: customer
ttl_s: 315360000
columns: [{name: count, dtype: int64, default: 0}, {name: amount, dtype: float64}]
"""
ROWS = """customer,count,amount,at,known
17,42,150.5,2026-01-01T00:00:00Z,2026-01-01T02:00:00Z
18,1,2.5,2026-01-02T00:00:00Z,2026-01-02T00:00:00Z
17,43,151.5,2026-01-03T00:00:00Z,2026-01-03T00:00:00Z
"""
LABELS = """who,at,fraud
17,2026-01-01T01:00:00Z,0
17,2026-01-01T03:00:00Z,1
18,2026-01-09T00:00:00Z,0
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs `penstock features` in an empty folder; what it printed, or the error it ended with."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PENSTOCK_FEATURES", f"memory://history-{tmp_path.name}")
    for name, text in {"view.yaml": YAML, "rows.csv": ROWS, "labels.csv": LABELS}.items():
        (tmp_path / name).write_text(text)

    def run(*words):
        done = CliRunner().invoke(app, ["features", *words])
        if done.exception is not None:
            raise done.exception
        return done.stdout

    run("apply", "view.yaml")
    return run


RECORD = ("ingest", "activity", "rows.csv", "--time", "at", "--offline", "penstock-offline")
JOIN = ("join", "labels.csv", "--time", "at", "--entity", "customer=who", "--out", "training.parquet")


@pytest.mark.parametrize("view", ["activity", "view.yaml"])
def test_a_history_is_ingested_with_its_created_times_and_joined_to_labels(run, tmp_path, monkeypatch, view):
    """The view by its name in the store, or from its file, for which no store is opened."""
    assert "wrote 3 rows" in run(*RECORD, "--created", "known")
    if view == "view.yaml":
        monkeypatch.setenv("PENSTOCK_FEATURES", "redis://127.0.0.1:1")
    said = run(*JOIN, "--view", view).splitlines()
    assert said[0].startswith("wrote 3 labels with 2 features to training.parquet in ")
    assert said[1:] == ["activity: rows of 2 of them"]
    table = parquet.read_table(tmp_path / "training.parquet")
    assert table["count"].to_pylist() == [0, 42, 1]
    told = json.loads(run(*JOIN, "--view", view, "--ignore-created", "--prefix", "--json"))
    assert (told["labels"], told["features"], told["found"]) == (3, 2, {"activity": 3})
    assert parquet.read_table(tmp_path / "training.parquet")["activity__count"].to_pylist() == [42, 42, 1]


def test_a_store_that_was_lost_is_restored(run, monkeypatch):
    run(*RECORD)
    monkeypatch.setenv("PENSTOCK_FEATURES", "memory://history-new")
    run("apply", "view.yaml")
    assert run("restore", "activity").startswith("restored 2 rows in ")
    found = json.loads(run("get", "activity", "17", "18", "--json"))
    assert [record["values"]["count"] for record in found] == [43, 1]
    assert json.loads(run("restore", "activity", "--json"))["rows"] == 2


@pytest.mark.parametrize(
    ("words", "error", "told"),
    [
        ((*JOIN, "--view", "none.yaml"), InvalidView, r"none\.yaml: cannot be read"),
        ((*JOIN, "--view", "nobody"), PenstockError, "no view 'nobody'"),
        ((*JOIN, "--view", "activity", "--entity", "who"), PenstockError, "--entity is KEY=COLUMN, not 'who'"),
        (
            (*JOIN, "--view", "activity", "--entity", "a=b"),
            PenstockError,
            "--entity a=...: the views' keys are customer",
        ),
        ((*JOIN, "--view", "activity"), InvalidData, "there is no history of view 'activity'"),
        (("restore", "activity"), InvalidData, "there is no history of view 'activity'"),
        (
            ("ingest", "activity", "rows.csv", "--created", "known"),
            PenstockError,
            "--created is for the history .* --offline",
        ),
    ],
)
def test_mistakes_are_one_line(run, words, error, told):
    with pytest.raises(error, match=told) as caught:
        run(*words)
    assert "\n" not in str(caught.value)


def test_a_full_disk_under_the_history_is_told_with_how_to_go_on(run, tmp_path):
    (tmp_path / "penstock-offline").write_text("no folder")
    done = CliRunner().invoke(app, ["features", *RECORD])
    assert done.exit_code == 1
    assert done.stderr.splitlines() == [
        "penstock: the history in penstock-offline/activity cannot be written: Not a directory",
        "--resume goes on after the rows that the history has",
    ]


@pytest.mark.parametrize("command", ["join", "restore"])
def test_help_has_an_example(command):
    shown = " ".join(CliRunner().invoke(app, ["features", command, "--help"], env={"COLUMNS": "200"}).stdout.split())
    assert f"Example: penstock features {command}" in shown


def test_a_history_is_compacted_and_joins_to_the_same(run, tmp_path):
    for _ in range(2):
        run(*RECORD, "--created", "known")
    run(*JOIN, "--view", "activity")
    before = parquet.read_table(tmp_path / "training.parquet")
    [told] = json.loads(run("compact", "activity", "--dry-run", "--json"))
    assert told["compacted"] is False
    assert {"files": 6, "merged": 6, "into": 3, "rows": 6, "dropped": 0}.items() <= told.items()
    assert "activity: 6 of 6 files would become 3 (" in run("compact", "--dry-run")
    said = run("compact")
    assert "activity: 6 of 6 files became 3 (" in said
    assert "3 rows less" in " ".join(said.split())
    assert "nothing to merge in 3 files" in run("compact", "activity")
    run(*JOIN, "--view", "activity")
    assert str(parquet.read_table(tmp_path / "training.parquet").to_pydict()) == str(before.to_pydict())


def test_what_has_no_history_is_not_compacted(run):
    with pytest.raises(PenstockError, match="there is no history in penstock-offline: say where it is"):
        run("compact")
    run(*RECORD)
    with pytest.raises(InvalidData, match="there is no history of view 'others' in penstock-offline; it has activity"):
        run("compact", "others")
