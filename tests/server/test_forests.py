"""Models whose ensemble a forest serves: what is taken, what is left to ONNX Runtime and why, and that both agree."""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from sklearn import ensemble
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from penstock.benchmarks.ensembles import complete, odd, rows_for, to_onnx
from penstock.converters import to_onnx as convert
from penstock.converters.graph import unwrap_maps
from penstock.server.ensembles import Unfit, read
from penstock.server.forests import ForestSession, choose, judge, load, measure, rows_around, sharing, steps
from penstock.server.grafts import cut
from penstock.server.session import Session

COUNT = 300


def session_of(model):
    return Session(model, [value.name for value in onnx.load_model_from_string(model).graph.output])


def input_of(model):
    return onnx.load_model_from_string(model).graph.input[0].name


def agreed(model, rows):
    """Loads with forests on, requires that the forest serves, and holds every output against ONNX Runtime."""
    theirs, name = session_of(model), input_of(model)
    loaded = load(model, theirs, mode="on", golden=[{name: rows[:20]}])
    assert loaded.told.startswith("forest: "), loaded.told
    for part in (rows, rows[:1], rows[3:12], rows[:0]):
        expected, got = theirs.run({name: part}), loaded.session.run({name: part})
        assert list(got)
        assert set(got) == set(expected)
        for output, array in expected.items():
            assert got[output].dtype == array.dtype
            assert got[output].shape == array.shape
            if array.dtype == np.float32:
                assert steps(got[output], array) <= 1, output
            else:
                assert (got[output] == array).all(), output
    return loaded


def task(seed, kind, *, missing=False):
    chance = np.random.default_rng(seed)
    rows = chance.normal(size=(COUNT, 6)).astype(np.float32)
    rows[:, 4] = chance.integers(0, 5, COUNT)  # a category as its code
    margin = rows[:, 0] * rows[:, 1] + (rows[:, 4] == 2) + chance.normal(size=COUNT) / 2
    if missing:
        rows[chance.random(rows.shape) < 0.1] = np.nan
    target = {"binary": margin > 0, "multi": np.digitize(margin, [-0.7, 0.7]), "regression": margin}[kind]
    return rows, target.astype(np.float32 if kind == "regression" else int)


SKLEARN = {
    "gradient boosting": (ensemble.GradientBoostingClassifier, ensemble.GradientBoostingRegressor, "n_estimators"),
    "histogram": (ensemble.HistGradientBoostingClassifier, ensemble.HistGradientBoostingRegressor, "max_iter"),
    "random forest": (ensemble.RandomForestClassifier, ensemble.RandomForestRegressor, "n_estimators"),
    "extra trees": (ensemble.ExtraTreesClassifier, ensemble.ExtraTreesRegressor, "n_estimators"),
}


def fitted(library, kind, seed, *, texts=False):
    """A model of scikit-learn with a depth and a number of trees from the seed, its ONNX form, and rows."""
    chance = np.random.default_rng(seed)
    takes_missing = library in ("histogram", "random forest")
    rows, target = task(seed, kind, missing=takes_missing and seed % 2 == 0)
    classifier, regressor, count = SKLEARN[library]
    depth = int(chance.integers(1, 11))
    estimator = (regressor if kind == "regression" else classifier)(
        **{count: int(chance.integers(1, 30))}, max_depth=depth, random_state=seed
    )
    estimator.fit(rows, np.array(["a", "b", "c"])[target] if texts else target)
    return estimator, convert(estimator, rows[:2]), rows


@pytest.mark.parametrize("kind", ["binary", "multi", "regression"])
@pytest.mark.parametrize("library", SKLEARN)
def test_scikit_learns_ensembles_are_served_by_forests(library, kind):
    for seed in (1, 2):
        estimator, model, rows = fitted(library, kind, seed)
        loaded = agreed(model, rows)
        got = loaded.session.run({input_of(model): rows})
        if kind == "regression":
            assert np.allclose(got["value"].ravel(), estimator.predict(rows).ravel(), 1e-4, 1e-5)
        else:
            assert np.allclose(got["probabilities"], estimator.predict_proba(rows), 1e-4, 1e-5)


def test_labels_may_be_texts():
    for kind in ("binary", "multi"):
        estimator, model, rows = fitted("random forest", kind, 5, texts=True)
        got = agreed(model, rows).session.run({input_of(model): rows})
        assert (got["label"] == estimator.predict(rows)).mean() > 0.99


def test_a_scaler_in_front_becomes_part_of_the_forest():
    rows, target = task(3, "binary")
    model = convert(make_pipeline(StandardScaler(), ensemble.GradientBoostingClassifier()).fit(rows, target), rows[:2])
    assert "Scaler" in {node.op_type for node in onnx.load_model_from_string(model).graph.node}
    assert agreed(model, rows).session.plain


def test_an_imputer_in_front_becomes_part_of_the_forest_whatever_it_replaces():
    rows, target = task(3, "binary")
    for replaced in (np.nan, 7.0):
        holes = rows.copy()
        holes[::7, 0] = replaced
        source = make_pipeline(
            SimpleImputer(missing_values=replaced), StandardScaler(), ensemble.GradientBoostingClassifier()
        )
        model = convert(source.fit(holes, target), rows[:2])
        assert {"Imputer", "Scaler"} <= {node.op_type for node in onnx.load_model_from_string(model).graph.node}
        assert agreed(model, holes).session.plain


def preceded(*nodes, **constants):
    """Trees over rows that first go through nodes; each reads the one before, as "here"."""
    model = onnx.load_model_from_string(to_onnx(complete(9, 4, 4)))
    (trees,) = model.graph.node
    del model.graph.node[:]
    names = ["x", *(f"step {i}" for i in range(len(nodes)))]
    for i, (operator, *inputs) in enumerate(nodes):
        given = [names[i] if name == "here" else name for name in inputs]
        model.graph.node.append(helper.make_node(operator, given, [names[i + 1]]))
    trees.input[0] = names[-1]
    model.graph.node.append(trees)
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    return model.SerializeToString()


CONSTANTS = {
    "one": np.float32(0.3),
    "four": np.float32([0.1, -2, 3, 0.7]),
    "row": np.float32([[1.5, 0.1, -0.3, 2]]),
}


def rows_of_four():
    rows = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    rows[::7, 0], rows[3] = np.nan, np.inf
    return rows


def test_arithmetic_with_constants_in_front_becomes_part_of_the_forest():
    nodes = [("Sub", "here", "four"), ("Mul", "row", "here"), ("Add", "one", "here"), ("Div", "here", "four")]
    for chain in (nodes[:1], nodes[1:3], nodes, nodes * 2):
        assert agreed(preceded(*chain, **CONSTANTS), rows_of_four()).session.plain


@pytest.mark.parametrize(
    "nodes",
    [
        [("Sub", "four", "here")],
        [("Div", "one", "here")],
        [("Add", "here", "here")],
        [("Abs", "here"), ("Add", "here", "four")],
        [("Sub", "here", "four")] * 9,
    ],
    ids=["constant less", "constant by", "twice itself", "another operator", "too many"],
)
def test_what_else_comes_before_is_left_to_onnx_runtime(nodes):
    assert not agreed(preceded(*nodes, **CONSTANTS), rows_of_four()).session.plain


def test_a_constant_that_makes_more_columns_of_one_is_left_to_onnx_runtime():
    model = onnx.load_model_from_string(preceded(("Add", "here", "four"), **CONSTANTS))
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 1
    column = np.random.default_rng(0).normal(size=(50, 1)).astype(np.float32)
    assert not agreed(model.SerializeToString(), column).session.plain


def test_what_comes_after_is_left_to_onnx_runtime_too():
    model = onnx.load_model_from_string(to_onnx(complete(5, 3, 4)))
    model.graph.node[0].output[0] = "raw"
    model.graph.node.append(helper.make_node("Add", ["raw", "more"], ["score"]))
    model.graph.node.append(helper.make_node("Mul", ["raw", "score"], ["product"]))
    model.graph.initializer.append(numpy_helper.from_array(np.float32([2.5]), "more"))
    model.graph.output.append(helper.make_tensor_value_info("product", TensorProto.FLOAT, ["n", 1]))
    agreed(model.SerializeToString(), np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32))


def followed_by(node, kind, functions=()):
    """A regression of four features whose output `raw` goes through a node to the only output."""
    model = onnx.load_model_from_string(to_onnx(complete(5, 3, 4)))
    model.graph.node[0].output[0] = "raw"
    model.graph.node.append(node)
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info(node.output[0], kind, ["n", 1]))
    standard = next(entry for entry in model.opset_import if not entry.domain)
    standard.version = 19
    model.opset_import.extend(helper.make_opsetid(function.domain, 1) for function in functions)
    model.functions.extend(functions)
    model.ir_version = 9
    return model.SerializeToString()


def test_a_cast_is_told_by_its_type_whatever_else_it_says():
    cast = helper.make_node("Cast", ["raw"], ["whole"], saturate=1, to=TensorProto.INT64)
    assert cast.attribute[0].name == "saturate"
    model = followed_by(cast, TensorProto.INT64)
    theirs = session_of(model)
    ours = load(model, theirs, mode="on").session
    rows = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    expected, got = theirs.run({input_of(model): rows})["whole"], ours.run({input_of(model): rows})["whole"]
    assert got.dtype == expected.dtype == np.int64
    assert (got == expected).all()


def test_a_function_of_the_models_own_is_not_what_its_name_says():
    two = helper.make_node("Constant", [], ["two"], value=numpy_helper.from_array(np.float32([2]), "two"))
    body = [two, helper.make_node("Mul", ["given", "two"], ["made"])]
    function = helper.make_function("own", "Identity", ["given"], ["made"], body, [helper.make_opsetid("", 19)])
    node = helper.make_node("Identity", ["raw"], ["twice"], domain="own")
    model = followed_by(node, TensorProto.FLOAT, [function])
    theirs = session_of(model)
    ours = load(model, theirs, mode="on").session
    rows = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    assert (ours.run({input_of(model): rows})["twice"] == theirs.run({input_of(model): rows})["twice"]).all()


@pytest.mark.parametrize("name", ["score", "label"])
def test_an_input_may_be_called_as_what_a_forest_gives(name):
    model = onnx.load_model_from_string(followed_by(helper.make_node("Add", ["raw", name], ["sum"]), TensorProto.FLOAT))
    model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 1]))
    theirs = session_of(model.SerializeToString())
    loaded = load(model.SerializeToString(), theirs, mode="on")
    assert loaded.told.startswith("forest: "), loaded.told
    rows = np.random.default_rng(0).normal(size=(50, 5)).astype(np.float32)
    feeds = {model.graph.input[0].name: rows[:, :4].copy(), name: rows[:, 4:].copy()}
    assert (loaded.session.run(feeds)["sum"] == theirs.run(feeds)["sum"]).all()


def tree_ensemble(**changed):
    """A TreeEnsemble of ai.onnx.ml 5: `x0 < 1 ? 10 : (x1 >= 2 ? 20 : 30)`, and one that is a leaf of 5."""
    tensor = lambda values, dtype: numpy_helper.from_array(np.array(values, dtype))  # noqa: E731
    attributes = {
        "n_targets": 1,
        "aggregate_function": 1,
        "post_transform": 0,
        "tree_roots": [0, 2],
        "nodes_featureids": [0, 1, 0],
        "nodes_splits": tensor([1, 2, 0], np.float32),
        "nodes_modes": tensor([1, 2, 0], np.uint8),
        "nodes_truenodeids": [0, 1, 3],
        "nodes_trueleafs": [1, 1, 1],
        "nodes_falsenodeids": [1, 2, 3],
        "nodes_falseleafs": [0, 1, 1],
        "leaf_targetids": [0, 0, 0, 0],
        "leaf_weights": tensor([10, 20, 30, 5], np.float32),
    }
    node = helper.make_node("TreeEnsemble", ["x"], ["y"], domain="ai.onnx.ml", **(attributes | changed))
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", n])] for name, n in (("x", 2), ("y", 1))]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("ai.onnx.ml", 5)]
    return helper.make_model(
        helper.make_graph([node], "g", *ends), opset_imports=opsets, ir_version=10
    ).SerializeToString()


def test_the_newest_operator_is_read():
    loaded = agreed(tree_ensemble(), np.array([[0, 0], [1, 2], [1, 1], [np.nan, 3], [2, np.nan]], np.float32))
    rows = np.array([[0, 0], [1, 2], [1, 1]], np.float32)
    assert loaded.session.run({"x": rows})["y"].ravel().tolist() == [15, 25, 35]


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (lambda: tree_ensemble(nodes_modes=numpy_helper.from_array(np.uint8([6, 2, 0]))), "membership in a set"),
        (lambda: tree_ensemble(nodes_splits=numpy_helper.from_array(np.float64([1, 2, 0]))), "float64"),
        (lambda: tree_ensemble(nodes_trueleafs=[1, 1]), "different lengths"),
        (lambda: tree_ensemble(leaf_weights=numpy_helper.from_array(np.float32([1, 2]))), "a leaf that is none"),
        (lambda: tree_ensemble(nodes_falsenodeids=[0, 2, 3]), "in a circle"),
        (lambda: tree_ensemble(nodes_falsenodeids=[9, 2, 3]), "leads to nodes"),
        (lambda: tree_ensemble(tree_roots=[0, 7]), "begins at node 7"),
    ],
)
def test_what_is_not_understood_is_left_to_onnx_runtime(model, told):
    with pytest.raises(Unfit, match=told):
        ForestSession(cut(model()))


def test_a_missing_array_is_named():
    model = onnx.load_model_from_string(to_onnx(complete(2, 2, 2)))
    node = model.graph.node[0]
    kept = [attribute for attribute in node.attribute if attribute.name != "nodes_values"]
    del node.attribute[:]
    node.attribute.extend(kept)
    with pytest.raises(Unfit, match="the attribute 'nodes_values' is missing"):
        read(node)


def test_a_model_without_trees_or_with_two_ensembles_is_left_to_onnx_runtime():
    plain = helper.make_model(helper.make_graph([], "empty", [], [])).SerializeToString()
    with pytest.raises(Unfit, match="no ensemble"):
        cut(plain)
    model = onnx.load_model_from_string(to_onnx(complete(2, 2, 2)))
    again = model.graph.node.add()
    again.CopyFrom(model.graph.node[0])
    again.output[0] = "other"
    with pytest.raises(Unfit, match="2 ensembles"):
        cut(model.SerializeToString())


def test_a_model_of_a_fixed_number_of_rows_is_left_to_onnx_runtime_and_told_so():
    model = onnx.load_model_from_string(to_onnx(complete(2, 2, 2)))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    told = load(model.SerializeToString(), session_of(model.SerializeToString())).told
    assert told == f"onnxruntime: the input {model.graph.input[0].name!r} takes 4 rows, no more and no fewer"


def test_the_switch_forces_either_side():
    model = to_onnx(complete(5, 3, 4))
    theirs = session_of(model)
    off, on = (load(model, theirs, mode=mode) for mode in ("off", "on"))
    assert off.session is theirs
    assert off.told == "onnxruntime: forests are off"
    assert isinstance(on.session, ForestSession)
    assert "5 trees, 75 nodes, depth 3" in on.told
    assert load(b"no model", theirs).session is theirs


def test_the_referee_finds_a_forest_that_is_wrong_by_little():
    """One threshold one step off: rows drawn around thresholds meet it."""
    model = to_onnx(complete(20, 5, 6))
    good, bad = cut(model), cut(model)
    values = bad.ensemble.arrays["values"]
    branch = np.flatnonzero(bad.ensemble.arrays["modes"])[3]  # near a root, where many rows pass
    values[branch] = np.nextafter(values[branch], np.float32(np.inf))
    rows = rows_around(good.ensemble, 6, 4096)
    judge(ForestSession(good), good, rows, session_of(model), ())
    with pytest.raises(Unfit, match=r"differs from ONNX Runtime's by .* steps of float32 at thresholds"):
        judge(ForestSession(bad), bad, rows, session_of(model), ())


class Skewed:
    """A session of which one output is made something else."""

    def __init__(self, theirs, change):
        self._theirs, self._change = theirs, change

    def run(self, feeds):
        found = self._theirs.run(feeds)
        name = next(iter(found))
        return found | {name: self._change(found[name])}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda labels: labels.astype(np.int32), "is int64 .*, ONNX Runtime's int32"),
        (lambda labels: labels[:, None], "ONNX Runtime's int64 .*, 1"),
        (lambda labels: 1 - labels, "of the whole model differs"),
    ],
)
def test_the_referee_runs_the_whole_model_where_its_rows_are_all_it_reads(change, told):
    _, model, _ = fitted("histogram", "binary", 1)
    graft = cut(model)
    rows = rows_around(graft.ensemble, graft.n_features, 512)
    with pytest.raises(Unfit, match=told):
        judge(ForestSession(graft), graft, rows, Skewed(session_of(model), change), ())


def test_the_choice_takes_the_faster_at_each_size():
    assert choose({1: (1, 3), 2: (1, 2), 4: (1, 1.5)}) == [(1, "forest")]
    assert choose({1: (2, 1), 2: (1, 1.02), 4: (1, 2)}) == [(1, "onnxruntime"), (4, "forest")]
    assert choose({1: (1, 2), 2: (2, 1), 4: (2, 1)}) == [(1, "forest"), (2, "onnxruntime")]
    assert choose({}) == [(1, "onnxruntime")]


def test_a_curve_is_measured_in_turn_and_bounded():
    now, order = [0.0], []

    class Side:
        def __init__(self, name, seconds):
            self.name, self.seconds = name, seconds

        def run(self, feeds):
            order.append(self.name)
            now[0] += self.seconds * feeds["x"]
            return {}

    curve = measure(Side("ours", 1e-3), Side("theirs", 4e-3), lambda n: [{"x": n}], 8, clock=lambda: now[0])
    assert list(curve) == [1, 2, 4, 8]
    assert all(np.allclose(pair, (1e3, 4e3)) for pair in curve.values())
    assert order[:4] == ["ours", "theirs", "ours", "theirs"]


def test_sessions_by_size_answer_alike():
    model = to_onnx(complete(50, 6, 8))
    theirs = session_of(model)
    loaded = load(model, theirs, max_rows=16)
    rows = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    assert (loaded.session.run({"x": rows})["score"] == theirs.run({"x": rows})["score"]).all()
    assert set(loaded.curve) == {1, 2, 4, 8, 16}


def test_threads_share_the_sizes_where_they_pay(monkeypatch):
    forest = ForestSession(cut(to_onnx(complete(5, 3, 4))), threads=2).forest
    rows = np.zeros((64, 4), np.float32)
    for curve, start in (
        ({1: (2, 1), 2: (1, 2), 4: (1, 1.1), 8: (1, 1.8), 16: (1, 2)}, 8),
        ({1: (2, 1), 2: (1, 1)}, np.inf),
        ({1: (1, 2), 2: (1, 2)}, 1),
    ):
        monkeypatch.setattr("penstock.server.forests.measure", lambda *_, curve=curve: curve)
        assert sharing(forest, rows, 64) == start


def test_a_forest_of_several_threads_answers_alike():
    model = to_onnx(complete(50, 6, 8))
    theirs = session_of(model)
    loaded = load(model, theirs, mode="on", max_rows=512, threads=2)
    rows = np.random.default_rng(0).normal(size=(700, 8)).astype(np.float32)
    for start in (64, np.inf):
        loaded.forest.shared_from = start
        assert (loaded.session.run({"x": rows})["score"] == theirs.run({"x": rows})["score"]).all()


# The campaign ---------------------------------------------------------------------------------------------------------

needs_boosting = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("xgboost", "lightgbm", "catboost", "onnxmltools")),
    reason="needs penstock[boosting]",
)


def boosted(library, kind, seed):
    """A model of another library as ONNX, rows, and what the library itself answers to them."""
    chance = np.random.default_rng(seed)
    rows, target = task(seed, "regression" if kind == "ranking" else kind, missing=seed % 2 == 0)
    n, depth = int(chance.integers(1, 40)), int(chance.integers(1, 9))
    if library == "catboost":
        import catboost

        kinds = {"binary": catboost.CatBoostClassifier, "multi": catboost.CatBoostClassifier}
        model = kinds.get(kind, catboost.CatBoostRegressor)(
            iterations=n, depth=depth, verbose=0, allow_writing_files=False
        )
        model.fit(rows, target)
        with tempfile.TemporaryDirectory() as folder:
            model.save_model(f"{folder}/m.onnx", format="onnx")
            made = onnx.load_model_from_string(Path(folder, "m.onnx").read_bytes())
        unwrap_maps(made)
        return made.SerializeToString(), rows, model
    from onnxmltools import convert_lightgbm, convert_xgboost
    from onnxmltools.convert.common.data_types import FloatTensorType

    types = [("x", FloatTensorType([None, rows.shape[1]]))]
    if library == "xgboost":
        import xgboost

        kinds = {"regression": xgboost.XGBRegressor, "ranking": xgboost.XGBRanker}
        model = kinds.get(kind, xgboost.XGBClassifier)(n_estimators=n, max_depth=depth)
        if kind == "ranking":
            model.fit(rows, np.digitize(target, [0, 1]), group=[COUNT // 2] * 2)
        else:
            model.fit(rows, target)
        return convert_xgboost(model, initial_types=types).SerializeToString(), rows, model
    import lightgbm

    kinds = {"regression": lightgbm.LGBMRegressor, "ranking": lightgbm.LGBMRanker}
    model = kinds.get(kind, lightgbm.LGBMClassifier)(n_estimators=n, num_leaves=2**depth, verbose=-1)
    if kind == "ranking":
        model.fit(rows, np.digitize(target, [0, 1]), group=[COUNT // 2] * 2)
    else:
        model.fit(rows, target, categorical_feature=[4] if seed % 3 == 0 else "auto")
    options = {"zipmap": False} if kind in ("binary", "multi") else {}
    return convert_lightgbm(model, initial_types=types, **options).SerializeToString(), rows, model


@needs_boosting
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("kind", ["binary", "multi", "regression", "ranking"])
@pytest.mark.parametrize("library", ["xgboost", "lightgbm", "catboost"])
def test_other_libraries_ensembles_are_served_by_forests(library, kind, seed):
    if kind == "ranking" and library != "lightgbm":
        pytest.skip("has no ONNX form: CatBoost exports none, onnxmltools knows no XGBRanker")
    model, rows, source = boosted(library, kind, seed)
    got = agreed(model, rows).session.run({input_of(model): rows})
    if kind in ("binary", "multi"):
        score = next(array for array in got.values() if array.ndim == 2)
        assert np.mean(np.isclose(score, source.predict_proba(rows), 1e-3, 1e-4)) > 0.99
    else:
        (score,) = got.values()
        assert np.mean(np.isclose(score.ravel(), source.predict(rows).ravel(), 1e-3, 1e-3)) > 0.99


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10, 22))
@pytest.mark.parametrize("kind", ["binary", "multi", "regression"])
@pytest.mark.parametrize("library", SKLEARN)
def test_more_of_scikit_learns_ensembles(library, kind, seed):
    _, model, rows = fitted(library, kind, seed)
    agreed(model, rows)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["regression", "binary", "pair", "classes"])
def test_odd_ensembles_are_served_or_left_with_a_reason(kind):
    served = 0
    for seed in range(100):
        arrays = odd(1000 + seed, kind=kind)
        model = to_onnx(arrays)
        loaded = load(model, session_of(model), mode="on")
        served += loaded.told.startswith("forest")
        rows = rows_for(arrays, 40, seed)
        for name, array in session_of(model).run({"x": rows}).items():
            mine = loaded.session.run({"x": rows})[name]
            assert steps(mine, array) <= 1 if array.dtype == np.float32 else (mine == array).all()
    assert served > 30
