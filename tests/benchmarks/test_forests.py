"""The benchmark of forests: it compares what agrees, in turn, and says what was missed."""

from __future__ import annotations

from penstock.benchmarks import forests
from penstock.benchmarks.ensembles import complete, to_onnx
from penstock.benchmarks.lines import Outcome
from penstock.benchmarks.sides import Run


def test_every_size_is_a_line_with_its_ratio(monkeypatch):
    monkeypatch.setitem(forests.MODELS, "small", lambda: to_onnx(complete(10, 3, 5)))
    monkeypatch.setattr(forests, "ROWS_A_RUN", 64)
    monkeypatch.setattr(forests, "SIZES", (1, 16, 64))
    lines = forests.measure("small", rounds=3)
    assert [line["rows"] for line in lines] == [1, 16, 64]
    assert all(line["forest_us"] > 0 and line["onnxruntime_us"] > 0 and line["ratio"] > 0 for line in lines)
    assert [line["at_least"] for line in lines] == [1.0, 1.0, forests.OTHERS]


def test_what_was_served_is_a_line_by_the_median_of_its_rounds():
    rounds = [{"forest": Run(rate, 30, 0), "onnxruntime": Run(100, 90, 0)} for rate in (290, 310, 200)]
    line = forests.told(Outcome("64 rows", rounds, [forests.SERVED]))
    assert (line["ratio"], line["range"], line["at_least"]) == (2.9, [2.0, 3.1], 2.5)
    assert (line["forest_rate"], line["onnxruntime_cpu_us"]) == (290, 90)


def test_the_lines_of_the_seeded_ensemble_are_those_promised():
    assert forests.LINES == {("200 x depth 6", 1): 4.0, ("200 x depth 6", 64): 3.5}
    assert set(forests.MODELS) == {
        "200 x depth 6",
        "random forest",
        "xgboost",
        "lightgbm",
        "catboost",
        "catboost classes",
    }
