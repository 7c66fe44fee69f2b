"""`penstock models`, as a person and as a script meet it."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from types import ModuleType

import pytest
from typer.testing import CliRunner

from penstock.commands.models import app
from penstock.errors import PenstockError
from penstock.registry import Draft, FeatureSet, Registry, Score, Signature, TensorSpec


def draft(name: str = "fraud", columns: int = 3, **fields) -> Draft:
    return Draft(
        model_name=name,
        trained_at=datetime(2025, 1, 15, 9, 30, tzinfo=UTC),
        framework="scikit-learn 1.7.2",
        opset={"": 17, "ai.onnx.ml": 3},
        ir_version=10,
        signature=Signature(
            inputs=(TensorSpec(name="X", datatype="FP32", shape=(-1, columns)),),
            outputs=(TensorSpec(name="probabilities", datatype="FP32", shape=(-1, 2)),),
            batched=True,
            columns=tuple(f"column_{i}" for i in range(columns)),
            entity="customer_id",
        ),
        created_by="ada",
        **fields,
    )


@pytest.fixture
def registry(tmp_path, monkeypatch) -> Registry:
    """Two versions of fraud; the commands find them through the environment."""
    monkeypatch.setenv("PENSTOCK_REGISTRY", str(tmp_path / "store"))
    registry = Registry(tmp_path / "store")
    schema = {"columns": [{"name": "amount", "dtype": "float32"}], "entity": "customer_id"}
    view = FeatureSet(name="card", schema=schema, created_at=datetime.now(UTC))
    for number in (1, 2):
        described = draft(
            accuracy=0.999,
            f1_score=0.8,
            metrics={"roc_auc": 0.9876},
            threshold=0.31,
            score=Score(output="probabilities", column=1),
            feature_sets=(view,),
            lineage={"source": "fraud.joblib"},
        )
        registry.publish(described, {"model.onnx": b"%d" % number * 12345})
    return registry


@pytest.fixture
def penstock(monkeypatch):
    """Run a command as a terminal of 100 columns shows it; raises the error that the root command prints."""
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments) -> str:
        result = CliRunner().invoke(app, [str(a) for a in arguments])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.stdout

    return run


def test_list_shows_each_model_with_versions_and_aliases(registry, penstock):
    registry.promote("fraud", 2, alias="challenger")
    out = penstock("list")
    assert "fraud" in out
    assert "challenger 2" in out
    (row,) = json.loads(penstock("list", "--json"))
    assert (row["model"], row["versions"], row["aliases"]) == ("fraud", [1, 2], {"challenger": 2, "champion": 1})


def test_list_says_how_to_publish_the_first_model(tmp_path, penstock):
    assert "Publish one: penstock models publish FILE.onnx --name NAME" in penstock(
        "list", "--registry", tmp_path / "x"
    )
    assert json.loads(penstock("list", "--json", "--registry", tmp_path / "x")) == []


def test_list_shows_the_others_when_one_champion_cannot_be_read(registry, penstock):
    registry.publish(draft("churn"), {"model.onnx": b""})
    path = registry.root / "models/fraud/versions/1/manifest.json"
    path.chmod(0o644)
    path.write_bytes(b"{")
    out = penstock("list")
    assert "churn" in out
    assert "refused" in out
    rows = {row["model"]: row["problem"] for row in json.loads(penstock("list", "--json"))}
    assert rows["churn"] is None
    assert "does not parse" in rows["fraud"]


def test_show_tells_what_a_version_takes_gives_and_is_made_of(registry, penstock):
    out = penstock("show", "fraud")
    digest = registry.load("fraud", 1).digest
    for told in (
        "fraud version 1   champion ",
        "2025-01-15 09:30 UTC",
        "by ada",
        "scikit-learn 1.7.2",
        "opset ai.onnx 17, ai.onnx.ml 3; IR 10",
        "column_0, column_1, column_2",
        "probabilities, column 1, watched for drift",
        "rows x 3",
        "amount float32",
        "0.9876",
        "12,345",
        "fraud.joblib",
        digest,
    ):
        assert told in out


def test_show_takes_a_number_or_an_alias(registry, penstock):
    registry.promote("fraud", 2, alias="shadow")
    assert penstock("show", "fraud", "shadow") == penstock("show", "fraud", "2")
    shown = json.loads(penstock("show", "fraud", "2", "--json"))
    assert (shown["version"], shown["aliases"], len(shown["digest"])) == (2, ["shadow"], 64)
    assert shown["feature_sets"][0]["schema"]["entity"] == "customer_id"


def test_show_shortens_many_columns(registry, penstock):
    registry.publish(draft("wide", columns=30), {"model.onnx": b""})
    assert "column_7 and 22 more" in " ".join(penstock("show", "wide").split())


def test_text_of_publishers_is_printed_as_it_is(registry, penstock):
    """Markup or escape sequences in a manifest or a reason neither fail nor paint the terminal."""
    registry.publish(draft("odd", lineage={"note": "[/] [red]x \x1b[2J"}, metrics={"[/x]": 1.0}), {"model.onnx": b""})
    registry.publish(draft("odd"), {"model.onnx": b""})
    out = penstock("show", "odd")
    assert "[/] [red]x" in out
    assert "[/x]" in out
    assert "\x1b" not in out
    penstock("promote", "odd", 2, "--why", "[/] because", "--who", "[x]")
    assert "[/] because" in penstock("history", "odd")


def test_promote_and_rollback_say_what_they_did(registry, penstock):
    said = penstock("promote", "fraud", 2, "--why", "better recall", "--who", "grace")
    assert said == "fraud: champion now points at version 2 (was 1).\n"
    assert penstock("promote", "fraud", "champion") == "fraud: champion points at version 2 already.\n"
    assert penstock("promote", "fraud", 2, "--alias", "shadow") == "fraud: shadow now points at version 2 (new).\n"
    assert penstock("rollback", "fraud") == "fraud: champion now points at version 1 (was 2).\n"
    with pytest.raises(PenstockError, match="nothing earlier"):
        penstock("rollback", "fraud")


def test_moves_are_told_to_machines(registry, penstock):
    move = json.loads(penstock("promote", "fraud", 2, "--who", "grace", "--json"))
    assert (move["alias"], move["old"], move["new"], move["who"]) == ("champion", 1, 2, "grace")
    assert json.loads(penstock("rollback", "fraud", "--json"))["new"] == 1


def test_history_shows_the_newest_moves_first(registry, penstock):
    registry.promote("fraud", 2, who="grace", why="better recall")
    out = penstock("history", "fraud")
    assert out.index("better recall") < out.index("first version")
    assert "1 older moves" in penstock("history", "fraud", "--limit", 1)
    assert [move["number"] for move in json.loads(penstock("history", "fraud", "--json"))] == [2, 1]


def test_verify_checks_all_versions_and_names_the_bad_one(registry, penstock):
    assert penstock("verify").splitlines() == ["ok  fraud version 1", "ok  fraud version 2", "2 as published."]
    (registry.root / "models/fraud/versions/2/extra").write_bytes(b"")
    with pytest.raises(PenstockError, match=r"1 of 2 refused\. fraud version 2 is refused: 'extra' is in the folder"):
        penstock("verify", "fraud")
    assert "ok  fraud version 1" in penstock("verify", "fraud", "1")
    result = CliRunner().invoke(app, ["verify", "--json"])
    assert result.exit_code == 1
    assert [bool(row["problem"]) for row in json.loads(result.stdout)] == [False, True]


@pytest.mark.parametrize("command", ["show", "promote", "rollback", "history", "verify"])
def test_an_unknown_model_is_one_clear_error(registry, penstock, command):
    arguments = ["nope", "1"] if command == "promote" else ["nope"]
    with pytest.raises(PenstockError, match=r"no model called 'nope' in .*; models there: fraud"):
        penstock(command, *arguments)


@pytest.fixture
def publisher(monkeypatch):
    """The converter room's publisher, replaced by one that takes any file."""
    module = ModuleType("penstock.converters.onnx")
    module.publish_onnx = lambda path, name, registry: registry.publish(draft(name), {"model.onnx": path.read_bytes()})
    monkeypatch.setitem(sys.modules, "penstock.converters.onnx", module)


def test_publish_says_which_version_it_became_and_how_to_serve_it(registry, penstock, publisher, tmp_path):
    file = tmp_path / "m.onnx"
    file.write_bytes(b"onnx")
    assert "It is the champion" in penstock("publish", file, "--name", "new")
    out = penstock("publish", file, "--name", "fraud")
    assert "Published fraud version 3" in out
    assert "Champion is still version 1. To change that: penstock models promote fraud 3" in out
    assert json.loads(penstock("publish", file, "--name", "fraud", "--json"))["version"] == 4


def test_publish_of_a_missing_file_is_one_clear_error(registry, penstock, tmp_path):
    with pytest.raises(PenstockError, match="not a file; give the path of an ONNX file"):
        penstock("publish", tmp_path / "none.onnx", "--name", "x")


@pytest.mark.parametrize("command", ["list", "show", "promote", "rollback", "history", "verify", "publish"])
def test_every_command_explains_itself_with_an_example(penstock, command):
    out = penstock(command, "--help")
    assert f"Example: penstock models {command}" in out
    assert "--json" in out
    assert "--registry" in out
