"""`penstock convert` as a user types it."""

from __future__ import annotations

import json
import sys

import joblib
import numpy as np
import pytest
import skops.io
import typer
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from typer.testing import CliRunner

from penstock.commands.convert import convert
from penstock.converters import GateFailed, UntrustedModel
from penstock.converters import gate as gate_module
from penstock.errors import PenstockError
from penstock.registry import Registry

app = typer.Typer()
app.command("convert")(convert)
app.command("other")(lambda: None)  # two commands, so that names are typed as in the real program


@pytest.fixture
def files(tmp_path):
    """A model, its sample with a label column, and an empty registry folder's name."""
    rows, labels = load_breast_cancer(return_X_y=True, as_frame=True)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(rows, labels)
    skops.io.dump(model, tmp_path / "model.skops")
    joblib.dump(model, tmp_path / "model.joblib")
    rows.assign(target=labels).to_parquet(tmp_path / "sample.parquet")
    return tmp_path


def arguments(files, *more, model="model.skops"):
    sample = ["--sample", str(files / "sample.parquet"), "--label", "target", "--registry", str(files / "registry")]
    return ["convert", str(files / model), "--name", "tumour", *sample, *more]


def invoke(*args):
    return CliRunner().invoke(app, list(args), catch_exceptions=True)


def test_a_model_is_published_and_the_next_command_named(files):
    done = invoke(*arguments(files))
    assert done.exit_code == 0, done.output
    said = " ".join(done.stdout.split())
    assert "tumour version 1" in said
    assert "569" in said
    assert "accuracy" in said
    assert f"next: penstock serve --registry {files / 'registry'}" in said
    assert Registry(files / "registry").manifest("tumour", 1).lineage["sample_file"] == "sample.parquet"


def test_json_is_for_machines(files):
    done = invoke(*arguments(files, "--json"))
    told = json.loads(done.stdout)
    assert told["name"] == "tumour"
    assert told["version"] == 1
    assert told["parity"]["rows"] == 569
    assert told["parity"]["worst_difference"] < 1e-5
    assert told["metrics"]["accuracy"] > 0.95


def test_a_pickle_is_refused_without_trust_and_taken_with_it(files):
    refused = invoke(*arguments(files, model="model.joblib"))
    assert refused.exit_code == 1
    assert isinstance(refused.exception, UntrustedModel)
    assert invoke(*arguments(files, "--trust", model="model.joblib")).exit_code == 0


def test_views_and_transforms_are_read_from_files(files):
    (files / "views.yaml").write_text(
        "name: sizes\nentity: patient_id\ncolumns:\n  - {name: mean area, dtype: float32}\n", encoding="utf-8"
    )
    told = json.loads(invoke(*arguments(files, "--view", str(files / "views.yaml"), "--json")).stdout)
    assert told["entity"] == "patient_id"
    assert any("callers must send" in note for note in told["notes"])
    (files / "steps.json").write_text('{"steps": []}')
    assert invoke(*arguments(files, "--transforms", str(files / "steps.json"))).exit_code == 0
    assert "transforms.json" in Registry(files / "registry").manifest("tumour", 2).files


def test_functions_of_transforms_are_named_by_the_command_line(files, monkeypatch):
    (files / "ours_for_convert.py").write_text("def nothing(columns):\n    return {'x': columns['mean area'] * 0}\n")
    monkeypatch.syspath_prepend(files)
    names = json.dumps(load_breast_cancer().feature_names.tolist())
    call = '{"op": "function", "name": "nothing", "columns": ["mean area"], "outputs": ["x"]}'
    select = f'{{"op": "select", "columns": {names}}}'
    (files / "steps.json").write_text(f'{{"columns": {names}, "steps": [{call}, {select}]}}')
    args = arguments(files, "--transforms", str(files / "steps.json"))
    assert "'nothing', which is not registered" in str(invoke(*args).exception)
    assert "'nothing' is not NAME=package.module:function" in str(invoke(*args, "--function", "nothing").exception)
    done = invoke(*args, "--function", "nothing=ours_for_convert:nothing")
    assert done.exit_code == 0, done.exception


def test_a_failed_gate_shows_the_worst_row_and_publishes_nothing(files):
    failed = invoke(*arguments(files, "--tolerance", "0"))
    assert isinstance(failed.exception, GateFailed)
    assert "worst row" in str(failed.exception)
    assert not (files / "registry").exists()


def test_help_has_an_example():
    assert "penstock convert churn.skops --name churn" in " ".join(invoke("convert", "--help").stdout.split())


def test_labels_may_be_any_column_order(files):
    import pandas as pd

    rows = pd.read_parquet(files / "sample.parquet")
    rows[np.roll(rows.columns, 3)].to_csv(files / "sample.csv", index=False)
    args = arguments(files)
    args[args.index("--sample") + 1] = str(files / "sample.csv")
    assert invoke(*args).exit_code == 0


def test_the_gate_is_the_only_way(files, monkeypatch):
    monkeypatch.setattr(gate_module, "convert_estimator", lambda *_: (_ for _ in ()).throw(AssertionError("asked")))
    assert isinstance(invoke(*arguments(files)).exception, AssertionError)


@pytest.mark.parametrize(("option", "what"), [("MODEL", "model"), ("--sample", "sample")])
def test_a_missing_file_is_named_before_anything_is_loaded(files, monkeypatch, option, what):
    monkeypatch.setitem(sys.modules, "penstock.converters", None)  # cannot be imported
    args = arguments(files)
    args[1 if option == "MODEL" else args.index(option) + 1] = "none.parquet"
    refused = invoke(*args)
    assert isinstance(refused.exception, PenstockError)
    assert str(refused.exception) == f"there is no {what} file none.parquet"


def test_transforms_that_do_not_parse_are_named(files):
    (files / "steps.json").write_text("{")
    assert "steps.json: transforms cannot be read" in str(
        invoke(*arguments(files, "--transforms", str(files / "steps.json"))).exception
    )
