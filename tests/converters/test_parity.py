"""The gate: it finds what differs, says where, and lets nothing pass in silence."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pandas as pd
import pytest
from onnx import helper, numpy_helper
from sklearn.ensemble import RandomForestRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from penstock.converters import GateFailed, Tolerance, UnsupportedModel, to_onnx
from penstock.converters import gate as gate_module
from penstock.converters.fuzz import _neighbours, edge_rows
from penstock.converters.gate import through_gate
from penstock.converters.inputs import inputs_of
from penstock.converters.parity import Answers, Parity, check, compare
from penstock.converters.sklearn import Rule


def report_of(case, model: bytes, **options) -> Parity:
    inputs = inputs_of(case.model, case.rows)
    return check(case.model, model, inputs, inputs.served(case.rows), **options)


def with_attribute(model: bytes, op_type: str, name: str, change) -> bytes:
    """The model with one list attribute of its first `op_type` node changed."""
    proto = onnx.load_model_from_string(model)
    node = next(node for node in proto.graph.node if node.op_type == op_type)
    attribute = next(attribute for attribute in node.attribute if attribute.name == name)
    attribute.CopyFrom(helper.make_attribute(name, change(list(helper.get_attribute_value(attribute)))))
    return proto.SerializeToString()


def test_a_wrong_weight_fails_and_the_worst_row_is_told(logistic):
    def change(weights):
        return [weight * 1.001 for weight in weights]

    wrong = with_attribute(to_onnx(logistic.model, logistic.rows), "LinearClassifier", "coefficients", change)
    report = report_of(logistic, wrong)
    assert not report.passed
    assert report.value_mismatches > 0
    text = report.text()
    worst = report.first_mismatch
    assert f"row {worst.index}: mean radius=" in text
    assert "source: label=" in text
    assert "onnx:   label=" in text
    served = inputs_of(logistic.model, logistic.rows).served(logistic.rows)
    source = logistic.model.predict_proba(served)
    assert worst.source["numbers"] == pytest.approx(source[worst.index].tolist(), rel=1e-8)


def test_a_threshold_moved_by_one_step_fails_at_the_edges_though_the_sample_passes(forest):
    def change(values):
        return [float(np.nextafter(np.float32(value), np.float32(np.inf))) for value in values]

    wrong = with_attribute(to_onnx(forest.model, forest.rows), "TreeEnsembleClassifier", "nodes_values", change)
    inputs = inputs_of(forest.model, forest.rows)
    served = inputs.served(forest.rows)
    assert check(forest.model, wrong, inputs, served).passed
    assert not check(forest.model, wrong, inputs, edge_rows(forest.model, inputs, served)).passed


def test_swapped_labels_fail_even_with_equal_probabilities(forest):
    wrong = with_attribute(
        to_onnx(forest.model, forest.rows), "TreeEnsembleClassifier", "classlabels_int64s", lambda labels: labels[::-1]
    )
    report = report_of(forest, wrong)
    assert report.label_mismatches == len(forest.rows)
    assert report.value_mismatches == 0


def test_a_wrong_regressor_fails(diabetes):
    rows, values = diabetes
    model = RandomForestRegressor(5, random_state=0).fit(rows, values)
    inputs = inputs_of(model, rows)
    proto = onnx.load_model_from_string(to_onnx(model, rows))
    proto.graph.initializer.append(numpy_helper.from_array(np.float32([1.001]), "factor"))
    graph_end = proto.graph.output[0]
    for node in proto.graph.node:
        node.output[:] = ["before" if name == graph_end.name else name for name in node.output]
    proto.graph.node.append(helper.make_node("Mul", ["before", "factor"], [graph_end.name]))
    report = check(model, proto.SerializeToString(), inputs, inputs.served(rows))
    assert report.value_mismatches == len(rows)


def test_the_gate_publishes_nothing_that_fails_in_every_arithmetic(logistic, monkeypatch):
    def wrong(estimator, inputs, arithmetic="float32"):
        def change(labels):
            return labels[::-1]

        return with_attribute(to_onnx(estimator, logistic.rows), "LinearClassifier", "classlabels_ints", change)

    monkeypatch.setattr(gate_module, "convert_estimator", wrong)
    inputs = inputs_of(logistic.model, logistic.rows)
    with pytest.raises(GateFailed, match="nothing was published") as failed:
        through_gate(logistic.model, inputs, inputs.served(logistic.rows))
    assert failed.value.report.label_mismatches == len(logistic.rows)


def test_a_graph_that_onnxruntime_refuses_is_no_conversion(logistic):
    with pytest.raises(UnsupportedModel, match="refuses the graph"):
        report_of(logistic, b"not a model")


def answers(labels, numbers) -> Answers:
    return Answers(np.asarray(labels), np.asarray(numbers, float), probable=True)


def compared(source: Answers, answered: Answers, **options) -> Parity:
    report = Parity(tolerance=Tolerance())
    rows = pd.DataFrame({"x": np.arange(len(source.numbers))}, index=[f"r{i}" for i in range(len(source.numbers))])
    compare(report, source, answered, rows, **({"rule": None, "classes": [0, 1]} | options))
    return report


def test_a_tie_within_tolerance_is_listed_and_not_silent():
    source = answers([0, 1], [[0.500004, 0.499996], [0.1, 0.9]])
    answered = answers([1, 1], [[0.499999, 0.500001], [0.1, 0.9]])
    report = compared(source, answered)
    assert report.passed
    assert report.ties == ["r0"]
    assert "ties (source undecided within tolerance, labels differ): 1, rows r0" in report.text()


def test_a_label_beyond_a_tie_fails():
    source = answers([0], [[0.50004, 0.49996]])
    assert compared(source, answers([1], [[0.50004, 0.49996]])).label_mismatches == 1


def test_a_label_between_other_classes_is_no_tie():
    source = answers([0], [[0.5, 0.5, 0.0]])
    assert compared(source, answers([2], [[0.5, 0.5, 0.0]]), classes=[0, 1, 2]).label_mismatches == 1


def test_ties_at_a_decision_threshold_are_those_near_the_threshold():
    source = answers([1, 1], [[0.099995, 0.900005], [0.5, 0.5]])
    report = compared(source, replace(source, labels=np.asarray([0, 0])), rule=Rule(0.9, 1))
    assert report.ties == ["r0"]
    assert report.label_mismatches == 1


def test_a_missing_answer_must_be_missing_in_both():
    both = answers([0], [[np.nan, np.nan]])
    assert compared(both, both).passed
    assert compared(both, answers([0], [[0.5, 0.5]])).worst == np.inf


def test_values_are_held_to_the_stated_limits():
    def values(*numbers):
        return Answers(None, np.asarray(numbers, float).reshape(-1, 1))

    report = compared(values(100.0, 100.0, 0.0), values(100.0099, 100.0102, 2e-5))
    assert report.value_mismatches == 2


def test_no_rows_are_no_proof():
    assert not Parity(tolerance=Tolerance()).passed


def test_neighbours_are_the_four_float32_around_a_threshold():
    four = _neighbours(np.array([0.1]))[0].astype(float)
    assert four[1] <= 0.1 < four[2]
    assert np.array_equal(np.nextafter(four[:3].astype(np.float32), np.float32(1)), four[1:].astype(np.float32))


def test_edge_rows_sit_on_both_sides_of_a_scaled_tree(cancer):
    rows, labels = cancer
    from sklearn.tree import DecisionTreeClassifier

    model = make_pipeline(StandardScaler(), DecisionTreeClassifier(max_depth=1)).fit(rows, labels)
    inputs = inputs_of(model, rows)
    made = edge_rows(model, inputs, inputs.served(rows))
    assert len(made) == 4
    assert set(model.predict(made)) == {0, 1}
