"""`penstock features` as a user runs it."""

import json
from datetime import UTC, datetime

import pytest
import typer
from typer.testing import CliRunner

from penstock.commands.features import app, told_to_resume
from penstock.errors import PenstockError
from penstock.features import InvalidData, InvalidView, SchemaChanged, StoreUnavailable, UnknownView, read_views
from penstock.registry import Draft, FeatureSet, Registry, Signature, TensorSpec

YAML = """
name: activity
entity: customer
ttl_s: 315360000
columns: [{name: count, dtype: int64}, {name: amount, dtype: float64, default: 1}]
"""
CSV = "customer,count,amount,at\n17,42,150.5,2024-01-01T00:00:00Z\n18,,2,2024-01-02T00:00:00Z\n"


@pytest.fixture
def publish_joined():
    """Publishes a version of the model `joined` that reads columns of the view in a file."""

    def publish(folder, file, columns):
        spec = TensorSpec(name="x", datatype="FP32", shape=(-1, len(columns)))
        signature = Signature(inputs=(spec,), outputs=(spec,), batched=True, columns=columns, entity="customer")
        made = datetime(2026, 1, 1, tzinfo=UTC)
        [view] = read_views(file)
        sets = (FeatureSet(name=view.name, schema=view.model_dump(mode="json"), created_at=made),)
        draft = Draft(
            model_name="joined",
            trained_at=made,
            framework="onnx",
            ir_version=10,
            signature=signature,
            feature_sets=sets,
        )
        Registry(folder).publish(draft, {"model.onnx": b"not looked at"})

    return publish


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
    applied = json.loads(run("apply", "view.yaml", "--json"))
    assert applied["applied"]
    assert [(change["view"], change["change"]) for change in applied["changes"]] == [("activity", "added")]
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


def test_the_plan_says_what_is_different_and_what_breaks_and_changes_nothing_in_a_dry_run(run, tmp_path, monkeypatch):
    monkeypatch.setenv("PENSTOCK_FEATURES", "memory://commands-plan")
    assert "applied" in run("apply", "view.yaml").splitlines()
    assert run("apply", "view.yaml").splitlines() == ["= activity unchanged", "nothing to do"]
    (tmp_path / "view.yaml").write_text("""
- name: activity
  entity: customer
  ttl_s: 60
  columns: [{name: amount, dtype: float64, default: 2}, {name: city, dtype: string, max_bytes: 9}]
- {name: other, entity: customer, columns: [{name: x, dtype: bool}]}
""")
    said = run("apply", "view.yaml", "--dry-run")
    for line in ("~ activity changed", "ttl_s 315360000 -> 60", "- count", "+ city string up to 9 bytes"):
        assert f"{line}\n" in said
    assert "~ amount float64 default 1 -> float64 default 2" in said
    assert "! column 'count' is dropped" in said
    assert "+ other added" in said
    assert "not applied" in said
    with pytest.raises(SchemaChanged, match=r"activity: column 'count' is dropped; .*--replace"):
        run("apply", "view.yaml")
    assert [view["name"] for view in json.loads(run("list", "--json"))] == ["activity"]
    assert json.loads(run("show", "activity", "--json"))["ttl_s"] == 315360000
    told = json.loads(run("apply", "view.yaml", "--replace", "--json"))
    assert told["changes"][0]["breaks"] == ["column 'count' is dropped"]
    assert [view["name"] for view in json.loads(run("list", "--json"))] == ["activity", "other"]


def test_the_plan_names_the_published_versions_that_lose_a_column(run, tmp_path, monkeypatch, publish_joined):
    monkeypatch.setenv("PENSTOCK_FEATURES", "memory://commands-models")
    run("apply", "view.yaml")
    publish_joined(tmp_path / "models", tmp_path / "view.yaml", ("amount", "count"))
    publish_joined(tmp_path / "models", tmp_path / "view.yaml", ("amount",))
    (tmp_path / "view.yaml").write_text(YAML.replace("{name: count, dtype: int64}, ", ""))
    said = run("apply", "view.yaml", "--dry-run", "--registry", "models")
    assert "! joined version 1 (champion) reads count of activity" in said
    assert "version 2" not in said
    told = json.loads(run("apply", "view.yaml", "--dry-run", "--registry", "models", "--json"))
    assert (told["applied"], len(told["models"])) == (False, 1)


TYPED = """
name: typed
entity: [customer, shop]
owner: payments
description: Everything there is.
max_age_s: 60
columns:
  - {name: n, dtype: int64, default: 1, description: how many}
  - {name: word, dtype: category, vocabulary: [a, b, c, d, e]}
  - {name: city, dtype: string, max_bytes: 20}
  - {name: taste, dtype: vector, size: 3}
  - {name: sure, dtype: bool}
"""
TYPED_CSV = """customer,shop,n,word,city,taste,sure
1,x,9007199254740993,b,Zürich,"[1, 2.5, null]",true
2,y|z,,zz,,,
"""


def test_every_type_of_column_goes_from_a_csv_to_the_terminal(run, tmp_path, monkeypatch):
    monkeypatch.setenv("PENSTOCK_FEATURES", "memory://commands-typed")
    monkeypatch.setenv("COLUMNS", "120")
    (tmp_path / "view.yaml").write_text(TYPED)
    (tmp_path / "rows.csv").write_text(TYPED_CSV, "utf-8")
    run("apply", "view.yaml")
    run("ingest", "typed", "rows.csv")
    one, two = json.loads(run("get", "typed", "1|x", "2|y\\|z", "--json"))
    values = {"n": 9007199254740993, "word": "b", "city": "Zürich", "taste": [1, 2.5, None], "sure": True}
    assert one["values"] == values
    assert two["values"] == {"n": None, "word": "", "city": None, "taste": None, "sure": None}
    lines = [line.replace("│", " ").split() for line in run("get", "typed", "1|x", "--columns", "taste,n").splitlines()]
    assert ["n", "9007199254740993"] in lines
    assert ["taste", "1", "2.5", "nan"] in lines
    shown = run("show", "typed")
    for text in ("customer, shop", "payments", "after 60 s: use", "5 words: a, b, c, d, ...", "3 float32", "how many"):
        assert text in shown
    with pytest.raises(InvalidData, match="no column 'm'"):
        run("get", "typed", "1|x", "--columns", "m")
    with pytest.raises(InvalidData, match="2 parts"):
        run("get", "typed", "1")


def test_statistics_are_told_by_view_and_by_column(run, monkeypatch):
    monkeypatch.setenv("PENSTOCK_FEATURES", "memory://commands-stats")
    assert "No views yet" in run("stats")
    run("apply", "view.yaml")
    run("ingest", "activity", "rows.csv", "--time", "at")
    [told] = json.loads(run("stats", "--json"))
    assert (told["rows"], told["is_exact"], told["sampled"], told["status"]) == (2, True, 2, {"ok": 2})
    assert told["nulls"] == {"count": 0.5, "amount": 0.0}
    assert "25.0%" in run("stats")
    lines = [line.replace("│", " ").split() for line in run("stats", "activity").splitlines()]
    assert ["count", "50.0%"] in lines


def test_unknown_words_are_told_when_they_are_written_and_when_they_are_stored(run, tmp_path, monkeypatch):
    monkeypatch.setenv("PENSTOCK_FEATURES", "memory://commands-words")
    (tmp_path / "words.yaml").write_text(
        "{name: words, entity: id, columns: "
        "[{name: kind, dtype: category, vocabulary: [a, b]}, {name: n, dtype: int64}]}"
    )
    (tmp_path / "words.csv").write_text("id,kind,n\n1,a,1\n2,c,2\n3,,3\n4,d,4\n")
    run("apply", "words.yaml")
    assert "2 unknown words in kind" in run("ingest", "words", "words.csv")
    assert json.loads(run("ingest", "words", "words.csv", "--json"))["unknown"] == {"kind": 2}
    [told] = json.loads(run("stats", "words", "--json"))
    assert told["unknown"] == {"kind": 0.5}
    lines = [line.replace("│", " ").split() for line in run("stats", "words").splitlines()]
    assert ["kind", "25.0%", "50.0%"] in lines
    assert ["n", "0.0%"] in lines


def test_mistakes_are_errors_a_user_can_mend(run, monkeypatch):
    monkeypatch.setenv("PENSTOCK_FEATURES", "memory://commands-mistakes")
    with pytest.raises(InvalidView, match=r"none\.yaml"):
        run("apply", "none.yaml")
    with pytest.raises(UnknownView, match="'activity'"):
        run("ingest", "activity", "rows.csv")
    with pytest.raises(UnknownView, match="'activity'"):
        run("get", "activity", "17")
    with pytest.raises(UnknownView, match="'activity'"):
        run("show", "activity")


@pytest.mark.parametrize("command", ["apply", "ingest", "get", "list", "show", "stats"])
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
