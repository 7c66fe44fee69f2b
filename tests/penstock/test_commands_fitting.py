"""`penstock features fit` as a user runs it."""

import json

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from penstock.cli import app
from penstock.errors import PenstockError
from penstock.features import InvalidData
from penstock.features.transforms import Transforms
from penstock.training import FitError, fit

STEPS = "- {op: impute, columns: [amount]}\n- {op: standardize, columns: [amount, days]}\n"
NAMES = ["amount", "days"]


@pytest.fixture
def frame():
    rng = np.random.default_rng(3)
    amount = np.where(rng.random(1000) < 0.1, np.nan, rng.lognormal(size=1000))
    days = rng.integers(0, 400, 1000)
    return pd.DataFrame({"id": [f"c{i}" for i in range(1000)], "amount": amount, "days": days, "left": days > 100})


@pytest.fixture
def run(tmp_path, monkeypatch, frame):
    """Runs the command in a folder with a recipe and the same table in three forms."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "steps.yaml").write_text(STEPS)
    frame.to_parquet("table.parquet")
    frame.to_csv("table.csv", index=False)
    frame.to_feather("table.feather")

    def run(*words):
        result = CliRunner().invoke(app, ["features", "fit", *words])
        if result.exception is not None:
            raise result.exception
        return result.stdout

    return run


@pytest.mark.parametrize("table", ["table.parquet", "table.csv", "table.feather"])
def test_what_is_written_is_what_python_fits(run, tmp_path, frame, table):
    said = run("steps.yaml", table, "--columns", "amount,days", "--out", "fitted.json")
    expected = fit([{"op": "impute", "columns": ["amount"]}, {"op": "standardize"}], frame[NAMES].to_numpy(), NAMES)
    assert Transforms.from_json((tmp_path / "fitted.json").read_text()) == expected
    assert "fitted 2 steps to 1,000 rows: 2 columns become 2\n" in said
    assert "penstock convert MODEL --transforms fitted.json" in said
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_a_table_may_be_a_folder_of_files(run, tmp_path, frame):
    (tmp_path / "table").mkdir()
    for part in range(2):
        frame[part * 500 : part * 500 + 500].to_parquet(tmp_path / "table" / f"part-{part}.parquet")
    assert json.loads(run("steps.yaml", "table", "--columns", "amount,days", "--json"))["rows"] == 1000


def test_machines_get_json_and_the_file_is_replaced(run, tmp_path):
    (tmp_path / "transforms.json").write_text("old")
    told = json.loads(run("steps.yaml", "table.csv", "--columns", "amount,days", "--json"))
    assert told == {
        "file": "transforms.json",
        "rows": 1000,
        "steps": 2,
        "columns": NAMES,
        "outputs": NAMES,
    }
    assert Transforms.from_json((tmp_path / "transforms.json").read_text()).columns == ("amount", "days")


def test_without_columns_all_of_the_table_are_taken(run, frame, tmp_path):
    frame[[*NAMES, "left"]].to_parquet("numbers.parquet")
    told = json.loads(run("steps.yaml", "numbers.parquet", "--json"))
    assert told["columns"] == [*NAMES, "left"]


def test_time_is_that_of_the_rows(run, tmp_path, frame):
    (tmp_path / "since.yaml").write_text("- {op: time_since, columns: [seen], of: d, unit: d}\n- {op: impute}")
    frame.assign(seen=20_000.0, at=(20_003 + np.arange(1000) % 5) * 86_400_000)[["seen", "at"]].to_csv("times.csv")
    run("since.yaml", "times.csv", "--columns", "seen", "--time", "at")
    fitted = Transforms.from_json((tmp_path / "transforms.json").read_text())
    assert fitted.columns == ("seen",)
    assert fitted.steps[1].fill == (5.0,)
    told = json.loads(run("since.yaml", "times.csv", "--columns", "seen,at", "--time", "at", "--json"))
    assert told["columns"] == ["seen", "at"]


def test_functions_are_named_as_for_convert(run, tmp_path, monkeypatch):
    (tmp_path / "ours_fitting.py").write_text("def double(columns):\n    return {'twice': columns['days'] * 2}\n")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "call.json").write_text(
        '[{"op": "function", "name": "double", "columns": ["days"], "outputs": ["twice"]}]'
    )
    told = json.loads(
        run("call.json", "table.csv", "--columns", "days", "--function", "double=ours_fitting:double", "--json")
    )
    assert told["outputs"] == ["days", "twice"]
    with pytest.raises(PenstockError, match="not registered"):
        run("call.json", "table.csv", "--columns", "days")


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        ("- {op: impute", r"steps\.yaml: not YAML: line 1"),
        ("{op: impute}", r"steps\.yaml: a recipe of transforms is a list of steps"),
        ("[]", r"steps\.yaml: a recipe without steps"),
        ("- {op: inpute}", r"steps\.yaml: step 1 .* no op 'inpute': did you mean 'impute'"),
        ("- {op: impute, columns: [amuont]}", r"step 1 \(impute\) names 'amuont', which is not among 'amount', 'days'"),
        ("- {op: impute, op: log1p}", "'op' is given twice"),
    ],
)
def test_a_recipe_that_cannot_be_used_is_told_and_nothing_is_written(run, tmp_path, recipe, told):
    (tmp_path / "steps.yaml").write_text(recipe)
    with pytest.raises(FitError, match=told) as caught:
        run("steps.yaml", "table.csv", "--columns", "amount,days")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "transforms.json").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("steps.yaml", "none.csv"), r"there is no file none\.csv"),
        (("steps.yaml", "table.csv", "--columns", "days,days"), "column 'days' is named twice"),
        (("steps.yaml", "steps.yaml"), "the name of a table ends in"),
        (
            ("steps.yaml", "table.csv"),
            r"table\.csv: column 'id', row 1: 'c0' is not float64; name the columns .*--columns",
        ),
        (
            ("steps.yaml", "table.parquet", "--columns", "amount,weeks"),
            "no column 'weeks'; it has id, amount, days, left",
        ),
        (("steps.yaml", "table.csv", "--columns", "days", "--time", "id"), "column 'id', row 1: 'c0' is not a time"),
    ],
)
def test_a_table_that_cannot_be_used_is_told(run, tmp_path, words, told):
    with pytest.raises(InvalidData, match=told):
        run(*words)
    assert not (tmp_path / "transforms.json").exists()


def test_a_recipe_or_a_place_that_is_not_there_is_named(run):
    with pytest.raises(FitError, match=r"none\.yaml: cannot be read: No such file"):
        run("none.yaml", "table.csv")
    with pytest.raises(FitError, match=r"nowhere/t\.json: cannot be written: No such file"):
        run("steps.yaml", "table.csv", "--columns", "amount,days", "--out", "nowhere/t.json")
