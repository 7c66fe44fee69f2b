"""Conversion: the graph's contract, and equality with the source over the models people use."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.cluster import KMeans
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.decomposition import PCA
from sklearn.ensemble import (
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.linear_model import LinearRegression, LogisticRegression, RidgeClassifier, SGDClassifier
from sklearn.model_selection import FixedThresholdClassifier, GridSearchCV, TunedThresholdClassifierCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, MinMaxScaler, StandardScaler
from sklearn.svm import SVC, LinearSVC
from sklearn.tree import DecisionTreeClassifier

from penstock.converters import UnsupportedModel, to_onnx
from penstock.converters.gate import through_gate
from penstock.converters.inputs import as_frame, inputs_of
from penstock.converters.onnx import _runs, newest_ir
from penstock.converters.operators import float_below
from penstock.converters.parity import check
from penstock.converters.sklearn import IR_VERSION, OPSET, convert_estimator

CLASSIFIERS = {
    "logistic": lambda: make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)),
    "forest": lambda: RandomForestClassifier(15, random_state=0),
    "scaled forest": lambda: make_pipeline(StandardScaler(), RandomForestClassifier(15, random_state=0)),
    "scaled tree": lambda: make_pipeline(MinMaxScaler(), DecisionTreeClassifier(random_state=0)),
    "boosting": lambda: GradientBoostingClassifier(n_estimators=10, random_state=0),
    "scaled boosting": lambda: make_pipeline(StandardScaler(), GradientBoostingClassifier(n_estimators=10)),
    "histogram": lambda: HistGradientBoostingClassifier(max_iter=8),
    "scaled histogram": lambda: make_pipeline(StandardScaler(), HistGradientBoostingClassifier(max_iter=8)),
    "pca": lambda: make_pipeline(StandardScaler(), PCA(5), LogisticRegression()),
    "svc": lambda: make_pipeline(StandardScaler(), SVC()),
    "linear svc": lambda: make_pipeline(StandardScaler(), LinearSVC()),
    "ridge": lambda: make_pipeline(StandardScaler(), RidgeClassifier()),
    "sgd": lambda: make_pipeline(StandardScaler(), SGDClassifier(random_state=0)),
    "search": lambda: GridSearchCV(make_pipeline(StandardScaler(), LogisticRegression()), {}, cv=2),
}
REGRESSORS = {
    "linear": LinearRegression,
    "scaled forest": lambda: make_pipeline(StandardScaler(), RandomForestRegressor(10, random_state=0)),
    "boosting": lambda: GradientBoostingRegressor(n_estimators=10),
    "histogram": lambda: HistGradientBoostingRegressor(max_iter=8),
    "scaled histogram": lambda: make_pipeline(MinMaxScaler(), HistGradientBoostingRegressor(max_iter=8)),
}


def session(model: bytes) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])


def gate(model, rows):
    frame = as_frame(rows)
    inputs = inputs_of(model, frame)
    return through_gate(model, inputs, inputs.served(frame))


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_two_classes_pass_the_gate_on_breast_cancer(cancer, kind):
    rows, labels = cancer
    passed = gate(CLASSIFIERS[kind]().fit(rows, labels), rows)
    assert passed.sample.rows == len(rows)
    assert passed.sample.ties == []


@pytest.mark.parametrize("kind", ["forest", "boosting", "histogram", "svc", "linear svc"])
def test_ten_classes_pass_the_gate_on_digits(digits, kind):
    rows, labels = digits[0][::3], digits[1][::3]
    assert gate(CLASSIFIERS[kind]().fit(rows, labels), rows).sample.passed


@pytest.mark.parametrize("kind", REGRESSORS)
def test_regressors_pass_the_gate_on_diabetes(diabetes, kind):
    rows, values = diabetes
    passed = gate(REGRESSORS[kind]().fit(rows, values), rows)
    assert passed.sample.passed
    assert [(one.name, one.shape) for one in session(passed.model).get_outputs()] == [("value", [None, 1])]


def test_two_targets_are_two_columns_of_value(diabetes):
    rows, values = diabetes
    passed = gate(LinearRegression().fit(rows, np.c_[values, -values]), rows)
    assert session(passed.model).get_outputs()[0].shape == [None, 2]


def test_the_matrix_form_takes_one_input_and_gives_plain_tensors(logistic):
    ends = session(to_onnx(logistic.model, logistic.rows))
    assert [(i.name, i.type, i.shape) for i in ends.get_inputs()] == [("input", "tensor(float)", [None, 30])]
    assert [(o.name, o.type, o.shape) for o in ends.get_outputs()] == [
        ("label", "tensor(int64)", [None]),
        ("probabilities", "tensor(float)", [None, 2]),
    ]


@pytest.mark.parametrize("arithmetic", ["float32", "float64"])
def test_column_names_with_spaces_and_dots_are_kept_and_unread_columns_left_out(mixed, arithmetic):
    ends = session(to_onnx(mixed.model, mixed.rows, arithmetic=arithmetic))
    assert {i.name: (i.type, i.shape) for i in ends.get_inputs()} == {
        "card type": ("tensor(string)", [None, 1]),
        "amount.eur": ("tensor(float)", [None, 1]),
        "age": ("tensor(int64)", [None, 1]),
        "is new": ("tensor(int64)", [None, 1]),
        "card.type": ("tensor(string)", [None, 1]),
    }
    assert [o.type for o in ends.get_outputs()] == ["tensor(string)", "tensor(float)"]


def test_names_that_skl2onnx_would_make_equal_reach_their_own_columns(mixed):
    """ "card type" and "card.type" both become card_type there; an exchange would change the answers."""
    passed = gate(mixed.model, mixed.rows)
    ends = session(passed.model)
    feed = inputs_of(mixed.model, mixed.rows).feed(mixed.rows)
    answered = ends.run(["label"], {i.name: feed[i.name] for i in ends.get_inputs()})[0]
    assert (answered == mixed.model.predict(mixed.rows)).mean() > 0.99


def test_a_pipeline_of_numeric_columns_chosen_by_name_keeps_its_columns(cancer):
    rows, labels = cancer
    chosen = ColumnTransformer([("some", StandardScaler(), ["mean area", "mean texture"])])
    model = make_pipeline(chosen, LogisticRegression()).fit(rows, labels)
    ends = session(gate(model, rows).model)
    assert {i.name for i in ends.get_inputs()} == {"mean area", "mean texture"}


def test_columns_chosen_by_number_read_the_matrix(cancer):
    rows, labels = cancer
    chosen = ColumnTransformer([("some", StandardScaler(), [0, 3])])
    model = make_pipeline(chosen, LogisticRegression()).fit(rows.to_numpy(), labels)
    assert [i.name for i in session(gate(model, rows.to_numpy()).model).get_inputs()] == ["input"]


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        (np.array(["benign", "malignant"]), "tensor(string)"),
        (np.array([3, 7]), "tensor(int64)"),
        (np.array([False, True]), "tensor(int64)"),
        (np.array([0.0, 1.0]), "tensor(int64)"),
    ],
)
def test_labels_are_text_or_whole_numbers(cancer, labels, kind):
    rows, index = cancer
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(rows, labels[index])
    assert session(gate(model, rows).model).get_outputs()[0].type == kind


@pytest.mark.parametrize("positive", ["benign", "malignant"])
def test_a_fixed_threshold_decides_the_labels_of_the_graph(cancer, positive):
    rows, index = cancer
    labels = np.array(["malignant", "benign"])[index]
    inner = make_pipeline(StandardScaler(), LogisticRegression())
    model = FixedThresholdClassifier(inner, threshold=0.97, pos_label=positive).fit(rows, labels)
    assert (model.predict(rows) != model.estimator_.predict(rows)).any()
    assert gate(model, rows).sample.label_mismatches == 0


def test_a_tuned_threshold_is_carried_and_not_dropped(cancer):
    rows, labels = cancer
    model = make_pipeline(
        StandardScaler(), TunedThresholdClassifierCV(LogisticRegression(), scoring="precision", cv=2)
    ).fit(rows, labels)
    assert (model.predict(rows) != model.steps[-1][1].estimator_.predict(model[:-1].transform(rows))).any()
    assert gate(model, rows).sample.label_mismatches == 0


@pytest.mark.parametrize(
    "make",
    [
        lambda: RandomForestClassifier(10, random_state=0),
        lambda: DecisionTreeClassifier(random_state=0),
        lambda: HistGradientBoostingClassifier(max_iter=5),
        lambda: make_pipeline(StandardScaler(), RandomForestClassifier(10, random_state=0)),
    ],
)
def test_missing_values_go_the_way_the_source_learnt(cancer, make):
    rows, labels = cancer
    gaps = rows.mask(np.random.default_rng(0).random(rows.shape) < 0.1)
    passed = gate(make().fit(gaps, labels), gaps)
    assert passed.sample.passed
    assert passed.sample.notes == []


@given(arrays(np.float64, 20, elements=st.floats(-1e30, 1e30)))
def test_float_below_is_the_largest_float32_not_above(thresholds):
    below = float_below(thresholds)
    assert below.dtype == np.float32
    assert (below.astype(np.float64) <= thresholds).all()
    assert (np.nextafter(below, np.float32(np.inf)).astype(np.float64) > thresholds).all()


def test_scaled_trees_fail_in_float32_at_their_edges_and_pass_in_float64(cancer):
    rows, labels = cancer
    model = make_pipeline(MinMaxScaler(), RandomForestClassifier(30, random_state=0)).fit(rows, labels)
    assert gate(model, rows).arithmetic == "float64"


def test_models_are_pinned_to_what_the_installed_onnxruntime_runs(logistic):
    assert newest_ir() >= IR_VERSION
    assert _runs(IR_VERSION, OPSET[""], OPSET["ai.onnx.ml"])
    model = onnx.load_model_from_string(to_onnx(logistic.model, logistic.rows))
    assert model.ir_version == IR_VERSION
    imports = [(entry.domain, entry.version) for entry in model.opset_import]
    assert len(imports) == len(dict(imports))
    assert all(version <= OPSET[domain] for domain, version in imports)


def test_converting_twice_gives_the_same_bytes(forest):
    assert to_onnx(forest.model, forest.rows) == to_onnx(forest.model, forest.rows)


def multi_output(rows, labels):
    return DecisionTreeClassifier().fit(rows, np.c_[labels, labels])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda rows, _: KMeans(2, n_init=1).fit(rows), "KMeans is neither a classifier nor a regressor"),
        (lambda rows, y: TransformedTargetRegressor(LinearRegression()).fit(rows, y), "TransformedTargetRegressor"),
        (lambda rows, y: make_pipeline(FunctionTransformer(np.log1p), LinearRegression()).fit(rows, y), "FunctionTra"),
        (lambda rows, y: LogisticRegression(), "not fitted"),
        (multi_output, "several outputs"),
        (
            lambda rows, y: FixedThresholdClassifier(
                LogisticRegression(max_iter=5000), threshold=0.1, response_method="decision_function"
            ).fit(StandardScaler().fit_transform(rows), y),
            "predict_proba",
        ),
    ],
)
def test_what_has_no_onnx_form_is_refused_in_one_line(cancer, make, said):
    rows, labels = cancer
    model = make(rows.to_numpy(), labels)
    with pytest.raises(UnsupportedModel, match=said) as refused:
        to_onnx(model, rows.to_numpy())
    assert len(str(refused.value).splitlines()) == 1


def test_categorical_splits_are_refused_instead_of_read_as_thresholds():
    rows = pd.DataFrame({"kind": np.resize([0.0, 1.0, 2.0, 3.0], 400), "size": np.linspace(0, 1, 400)})
    model = HistGradientBoostingClassifier(max_iter=3, categorical_features=[0])
    model.fit(rows.to_numpy(), (rows["kind"] % 2 == 0).to_numpy())
    with pytest.raises(UnsupportedModel, match="categorical"):
        to_onnx(model, rows.to_numpy())


def test_every_row_is_compared_once(forest):
    inputs = inputs_of(forest.model, forest.rows)
    counted: list[int] = []
    model = convert_estimator(forest.model, inputs)
    check(forest.model, model, inputs, inputs.served(forest.rows), progress=counted.append)
    assert sum(counted) == len(forest.rows)
