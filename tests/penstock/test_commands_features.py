"""`penstock features` as a user runs it."""

import json

import pytest
import typer
from typer.testing import CliRunner

from penstock.commands.features import app, told_to_resume
from penstock.errors import PenstockError
from penstock.features import InvalidData, InvalidView, SchemaChanged, StoreUnavailable, UnknownView

YAML = """
name: activity
entity: customer
columns: [{name: count, dtype: int64}, {name: amount, dtype: float64, default: 1}]
"""
CSV = "customer,count,amount,at\n17,42,150.5,2024-01-01T00:00:00Z\n18,,2,2024-01-02T00:00:00Z\n"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a command in an empty folder; gives what it printed, raises what it raised."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PENSTOCK_FEATURES", raising=False)
    (tmp_path / "view.yaml").write_text(YAML)
    (tmp_path / "rows.csv").write_text(CSV)

    def run(*words):
        result = CliRunner().invoke(app, words)
        if result.exception is not None:
            raise result.exception
        return result.stdout

    return run


def test_applied_ingested_and_looked_up_across_commands_in_the_folder_s_own_store(run, tmp_path):
    assert "activity" in run("apply", "view.yaml")
    assert "wrote 2 rows" in run("ingest", "activity", "rows.csv", "--time", "at")
    assert (tmp_path / "penstock-features").is_dir()
    found = json.loads(run("get", "activity", "17", "18", "19", "--json"))
    assert [(record["entity"], record["status"]) for record in found] == [("17", "ok"), ("18", "ok"), ("19", "absent")]
    assert found[0]["values"] == {"count": 42, "amount": 150.5}
    assert found[1]["values"] == {"count": None, "amount": 2}
    assert found[1]["event_time"] == "2024-01-02T00:00:00+00:00"
    assert found[2]["event_time"] is None
    shown = run("get", "activity", "17")
    assert "150.5" in shown
    assert "count" in shown


def test_many_features_of_two_entities_fit_a_narrow_terminal(run, monkeypatch):
    """Features stand below each other, entities side by side, so no name is folded."""
    monkeypatch.setenv("PENSTOCK_FEATURES", "memory://commands-narrow")
    monkeypatch.setenv("COLUMNS", "80")
    run("apply", "view.yaml")
    run("ingest", "activity", "rows.csv")
    lines = [line.replace("│", " ").split() for line in run("get", "activity", "17", "19").splitlines()]
    assert ["amount", "150.5"] in lines
    assert ["status", "ok", "absent"] in lines


def test_the_store_is_the_option_s_then_the_environment_s(run, tmp_path, monkeypatch):
    monkeypatch.setenv("PENSTOCK_FEATURES", "memory://commands-environment")
    run("apply", "view.yaml")
    assert json.loads(run("list", "--json"))[0]["name"] == "activity"
    assert json.loads(run("list", "--json", "--features", "memory://commands-option")) == []
    assert not (tmp_path / "penstock-features").exists()


def test_machines_get_json(run, monkeypatch):
    monkeypatch.setenv("PENSTOCK_FEATURES", "memory://commands-json")
    assert json.loads(run("apply", "view.yaml", "--json")) == ["activity"]
    report = json.loads(run("ingest", "activity", "rows.csv", "--json"))
    assert report["rows"] == 2
    assert report["rows_per_s"] > 0
    assert json.loads(run("list", "--json"))[0]["columns"][0]["name"] == "count"


def test_a_changed_schema_is_refused_unless_replaced(run, tmp_path, monkeypatch):
    monkeypatch.setenv("PENSTOCK_FEATURES", "memory://commands-replace")
    run("apply", "view.yaml")
    (tmp_path / "view.yaml").write_text(YAML.replace("float64", "float32"))
    with pytest.raises(SchemaChanged, match="--replace"):
        run("apply", "view.yaml")
    run("apply", "view.yaml", "--replace")
    assert json.loads(run("list", "--json"))[0]["columns"][1]["dtype"] == "float32"


def test_mistakes_are_errors_a_user_can_mend(run, monkeypatch):
    monkeypatch.setenv("PENSTOCK_FEATURES", "memory://commands-mistakes")
    with pytest.raises(InvalidView, match=r"none\.yaml"):
        run("apply", "none.yaml")
    with pytest.raises(UnknownView, match="'activity'"):
        run("ingest", "activity", "rows.csv")
    with pytest.raises(UnknownView, match="'activity'"):
        run("get", "activity", "17")


@pytest.mark.parametrize("command", ["apply", "ingest", "get", "list"])
def test_help_has_an_example_and_names_the_default_store(command):
    shown = " ".join(CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).stdout.split())
    assert f"Example: penstock features {command}" in shown
    assert "PENSTOCK_FEATURES" in shown
    assert "penstock-features" in shown


def test_commands_that_only_read_make_no_store(run, tmp_path):
    assert "penstock features apply FILE" in run("list")
    assert json.loads(run("list", "--json")) == []
    for words in (("get", "activity", "17"), ("ingest", "activity", "rows.csv")):
        with pytest.raises(PenstockError, match=r"no feature store in .*penstock features apply FILE.*--features URL"):
            run(*words)
    assert not (tmp_path / "penstock-features").exists()


def test_many_entities_are_shown_a_few_at_a_time_with_names_and_values_whole(run, monkeypatch):
    monkeypatch.setenv("PENSTOCK_FEATURES", "memory://commands-groups")
    monkeypatch.setenv("COLUMNS", "80")
    run("apply", "view.yaml")
    run("ingest", "activity", "rows.csv", "--time", "at")
    lines = [line.replace("│", " ").replace("┃", " ").split() for line in run("get", "activity", *"abcde").splitlines()]
    assert [line[1:] for line in lines if line[:1] == ["customer"]] == [["a", "b", "c"], ["d", "e"]]


def test_a_store_that_cannot_be_reached_is_told_with_how_to_name_another(run):
    with pytest.raises(StoreUnavailable, match=r"refused; --features URL or PENSTOCK_FEATURES says where"):
        run("list", "--features", "redis://127.0.0.1:1")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name: [1,2\n", r"not YAML: line 2, column 1: expected"),
        ("", "no view: expected name, entity and columns"),
        ("[1, 2]", "no view: expected name, entity and columns"),
    ],
)
def test_a_file_that_holds_no_view_is_told_in_plain_words(run, tmp_path, text, told):
    (tmp_path / "view.yaml").write_text(text)
    with pytest.raises(InvalidView, match=told):
        run("apply", "view.yaml")


def test_a_missing_table_is_named(run, monkeypatch):
    monkeypatch.setenv("PENSTOCK_FEATURES", "memory://commands-table")
    run("apply", "view.yaml")
    with pytest.raises(InvalidData, match=r"there is no file none\.csv"):
        run("ingest", "activity", "none.csv")


def test_one_that_was_stopped_is_told_how_to_go_on(run, tmp_path, monkeypatch, capsys):
    from penstock.features.memory import MemoryStore

    monkeypatch.setenv("PENSTOCK_FEATURES", "memory://commands-stopped")
    run("apply", "view.yaml")
    rows = "".join(f"{i},1,2,2024-01-01T00:00:00Z\n" for i in range(120_000))
    (tmp_path / "long.csv").write_text("customer,count,amount,at\n" + rows)
    prepare, batches = MemoryStore.prepare, []

    def failing(self, view, entities, *rest, **options):
        batches.append(len(entities))
        if len(batches) == 2:
            raise KeyboardInterrupt
        return prepare(self, view, entities, *rest, **options)

    monkeypatch.setattr(MemoryStore, "prepare", failing)
    stopped = CliRunner().invoke(app, ["ingest", "activity", "long.csv", "--time", "at"])
    assert stopped.exit_code in (1, 130)
    monkeypatch.setattr(MemoryStore, "prepare", prepare)
    report = json.loads(run("ingest", "activity", "long.csv", "--time", "at", "--resume", "--json"))
    assert report["rows"] + report["resumed"] == 120_000
    assert report["resumed"] in (0, batches[0])
    again = run("ingest", "activity", "rows.csv", "--time", "at")
    assert "wrote 2 rows" in again
    older = (tmp_path / "rows.csv").read_text().replace("2024", "2023")
    (tmp_path / "older.csv").write_text(older)
    assert "2 older than what is stored" in run("ingest", "activity", "older.csv", "--time", "at")
    assert "wrote 2 rows" in run("ingest", "activity", "older.csv", "--time", "at", "--overwrite")


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [(StoreUnavailable("away"), 1, "penstock: away"), (KeyboardInterrupt(), 130, "penstock: interrupted")],
)
def test_who_stops_an_ingestion_half_way_hears_how_many_rows_are_done(error, code, words, capsys):
    def stop(after, error):
        with told_to_resume() as done:
            done[0] = after
            raise error

    with pytest.raises(typer.Exit) as ended:
        stop(12_000, error)
    assert ended.value.exit_code == code
    assert capsys.readouterr().err == f"{words}\n12,000 rows are done; --resume goes on after them\n"
    with pytest.raises(type(error)):
        stop(0, error)  # it is an error like any other
    with pytest.raises(InvalidData):
        stop(1, InvalidData("it would be met again"))
