"""`penstock features delete` as a user runs it."""

import json

import pytest
from typer.testing import CliRunner

from penstock.cli import app
from penstock.errors import PenstockError
from penstock.features import InvalidData, UnknownView, read_views
from penstock.features.offline import OfflineStore
from penstock.registry import Draft, FeatureSet, Registry, Signature, TensorSpec

YAML = "{name: activity, entity: customer, columns: [{name: amount, dtype: float64}]}"
CSV = "customer,amount\n17,1\n18,2\n19,3\n"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a command of `penstock features` in a folder where three rows are kept, online and offline."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PENSTOCK_REGISTRY", raising=False)
    monkeypatch.setenv("PENSTOCK_FEATURES", f"memory://deleting-{tmp_path.name}")
    (tmp_path / "view.yaml").write_text(YAML)
    (tmp_path / "rows.csv").write_text(CSV)

    def run(*words):
        result = CliRunner().invoke(app, ["features", *words])
        if result.exception is not None:
            raise result.exception
        return result.stdout

    run("apply", "view.yaml")
    run("ingest", "activity", "rows.csv", "--offline", "history")
    return run


def publish(folder="penstock-models"):
    """A version that reads the view."""
    [view] = read_views("view.yaml")
    spec = TensorSpec(name="x", datatype="FP32", shape=(-1, 1))
    signature = Signature(inputs=(spec,), outputs=(spec,), batched=True, columns=("amount",), entity="customer")
    sets = (FeatureSet(name=view.name, schema=view.model_dump(mode="json"), created_at="2026-01-01T00:00:00Z"),)
    draft = {"model_name": "joined", "trained_at": "2026-01-01T00:00:00Z", "framework": "onnx", "ir_version": 10}
    Registry(folder).publish(Draft(**draft, signature=signature, feature_sets=sets), {"model.onnx": b"not looked at"})


def rows(run):
    return [one["status"] for one in json.loads(run("get", "activity", "17", "18", "19", "--json"))]


def test_rows_of_entities_are_counted_deleted_and_the_near_cache_is_told_of(run):
    assert run("delete", "activity", "17", "20", "--dry-run").splitlines() == ["would delete 1 rows of activity"]
    assert rows(run) == ["ok", "ok", "ok"]
    said = run("delete", "activity", "17", "20")
    assert said.splitlines()[0] == "deleted 1 rows of activity"
    assert "near cache may give these rows for its max_age_s longer" in said
    assert rows(run) == ["absent", "ok", "ok"]
    assert "near cache" not in run("delete", "activity", "17")


def test_with_their_history_where_it_is_named(run, tmp_path):
    told = json.loads(run("delete", "activity", "17", "--offline", "history", "--json"))
    assert told == {
        "view": "activity",
        "deleted": True,
        "definition": False,
        "rows": 1,
        "history_rows": 1,
        "models": [],
    }
    assert "deleted 0 rows of activity, and 0 rows of its history" in run(
        "delete", "activity", "17", "--offline", "history"
    )
    with pytest.raises(InvalidData, match="no history in histroy"):
        run("delete", "activity", "18", "--offline", "histroy")
    assert rows(run) == ["absent", "ok", "ok"]


def test_a_view_goes_only_if_it_is_said_so(run):
    """An empty list of ids, from a script, must not delete everything."""
    for words in (("activity",), ("activity", "17", "--all")):
        with pytest.raises(
            PenstockError, match=r"say whose rows \(penstock features delete activity ID...\), or --all"
        ):
            run("delete", *words)
    assert rows(run) == ["ok", "ok", "ok"]
    assert "would delete view activity with 3 rows\n" in run("delete", "activity", "--all", "--dry-run")
    said = run("delete", "activity", "--all", "--offline", "history")
    assert "deleted view activity with 3 rows, and 3 rows of its history\n" in said
    assert json.loads(run("list", "--json")) == []
    with pytest.raises(UnknownView, match="'activity'"):
        run("delete", "activity", "--all", "--offline", "history")
    with pytest.raises(UnknownView, match="'activity'"):
        run("delete", "activity", "17")


@pytest.mark.parametrize("folder", ["penstock-models", "elsewhere"])
def test_a_view_that_published_versions_read_is_not_deleted_unless_forced(run, folder):
    publish(folder)
    where = [] if folder == "penstock-models" else ["--registry", folder]
    with pytest.raises(
        PenstockError, match=r"'activity' is read by joined version 1 \(champion\), .* --force deletes it"
    ):
        run("delete", "activity", "--all", *where)
    assert "read by joined version 1 (champion)" in run("delete", "activity", "--all", "--dry-run", *where)
    assert rows(run) == ["ok", "ok", "ok"]
    told = json.loads(run("delete", "activity", "--all", "--force", "--json", *where))
    assert (told["rows"], told["definition"], told["models"]) == (3, True, ["joined version 1 (champion)"])


def test_rows_of_entities_go_whoever_reads_the_view(run):
    publish()
    assert "deleted 1 rows" in run("delete", "activity", "17")


def test_apply_looks_at_the_registry_that_convert_and_serve_take(run, tmp_path):
    publish()
    (tmp_path / "view.yaml").write_text(YAML.replace("amount", "other"))
    assert "! joined version 1 (champion) reads amount of activity" in run("apply", "view.yaml", "--dry-run")


def test_apply_tells_of_views_that_are_not_in_the_file(run, tmp_path):
    (tmp_path / "other.yaml").write_text(YAML.replace("activity", "other"))
    assert "kept, though not in the file: activity (penstock features delete)" in run("apply", "other.yaml")
    assert json.loads(run("apply", "other.yaml", "--json"))["kept"] == ["activity"]
    assert [view["name"] for view in json.loads(run("list", "--json"))] == ["activity", "other"]


def test_a_history_is_all_of_the_view_s(run):
    assert len(OfflineStore("history").files(*_all("view.yaml"))) == 1
    run("delete", "activity", "17", "18", "19", "--offline", "history")
    assert len(OfflineStore("history").files(*_all("view.yaml"))) == 1


def _all(file):
    [view] = read_views(file)
    return view, 0, 253_402_300_799_999
