"""Opening what a publisher brings, without running code that nobody vouched for."""

from __future__ import annotations

import pickle
from pathlib import Path

import joblib
import pandas as pd
import pytest
import skops.io
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from penstock.converters import BadSample, ConvertError, UnsupportedModel, UntrustedModel, load_model, load_table


class Harmful:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("suffix", [".joblib", ".pkl", ".pickle"])
def test_a_pickle_runs_no_code_without_trust(tmp_path, suffix):
    mark, file = tmp_path / "mark", tmp_path / f"model{suffix}"
    file.write_bytes(pickle.dumps(Harmful(mark)))
    with pytest.raises(UntrustedModel, match=r"runs? any code.*--trust.*skops"):
        load_model(file)
    assert not mark.exists()


def test_a_trusted_pickle_is_loaded(tmp_path):
    joblib.dump(LinearRegression().fit([[0.0], [1.0]], [0.0, 2.0]), tmp_path / "model.joblib")
    assert load_model(tmp_path / "model.joblib", trust=True).predict([[3.0]])[0] == pytest.approx(6.0)


def test_a_skops_file_of_known_types_needs_no_trust(tmp_path):
    skops.io.dump(LinearRegression().fit([[0.0], [1.0]], [0.0, 2.0]), tmp_path / "model.skops")
    assert load_model(tmp_path / "model.skops").coef_[0] == pytest.approx(2.0)


def test_unknown_types_in_a_skops_file_are_named_and_refused_unless_allowed(tmp_path):
    file = tmp_path / "model.skops"
    skops.io.dump(make_pipeline(FunctionTransformer(pd.isna), LinearRegression()), file)
    with pytest.raises(UntrustedModel, match=r"--allow-type (pandas\S+)") as refused:
        load_model(file)
    name = str(refused.value).split("--allow-type ")[1].split()[0]
    assert load_model(file, allow_types=[name])


@pytest.mark.parametrize(
    ("name", "content", "kind", "said"),
    [
        ("none.skops", None, ConvertError, "there is no model file"),
        ("torn.skops", b"PK\x03\x04", ConvertError, "cannot be read as a skops file"),
        ("torn.joblib", b"\x80", ConvertError, "cannot be loaded"),
        ("model.onnx", b"", UnsupportedModel, "penstock models publish"),
        ("model.h5", b"", UnsupportedModel, "expected .skops"),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path, name, content, kind, said):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(kind, match=said) as refused:
        load_model(tmp_path / name, trust=True)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_tables_keep_names_and_types(tmp_path, suffix):
    rows = pd.DataFrame({"a b": [1, 2], "c.d": [0.5, 1.5], "e": ["x", "y"]})
    file = tmp_path / f"rows{suffix}"
    rows.to_csv(file, index=False) if suffix == ".csv" else rows.to_parquet(file)
    pd.testing.assert_frame_equal(load_table(file), rows)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [("none.csv", None, "no sample file"), ("a.csv", "x,y\n", "no rows"), ("a.parquet", "x", "cannot be read"),
     ("a.xlsx", "", "expected .parquet or .csv")],
)  # fmt: skip
def test_bad_tables_are_refused(tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(BadSample, match=said):
        load_table(tmp_path / name)
