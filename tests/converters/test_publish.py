"""`convert`: what a published version holds, and that it is served from what passed the gate."""

from __future__ import annotations

import io
from datetime import UTC, datetime

import numpy as np
import onnxruntime
import pandas as pd
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import accuracy_score, f1_score, log_loss, r2_score
from sklearn.model_selection import FixedThresholdClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from penstock.converters import BadSample, ConvertError, GateFailed, convert
from penstock.converters import gate as gate_module
from penstock.features import Column, FeatureView
from penstock.features.transforms import Select, TransformError, Transforms
from penstock.monitoring import Reference
from penstock.registry import Registry, Score
from penstock.training import fit


def published(registry, name="m"):
    return Registry(registry).load(name, Registry(registry).versions(name)[-1])


def golden(version) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(version.files["golden.npz"]), allow_pickle=False) as arrays:
        return dict(arrays)


def run(version, feed) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(version.files["model.onnx"], providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feed), strict=True))


def view(name: str, columns, entity: str = "patient_id") -> FeatureView:
    return FeatureView(name=name, entity=entity, columns=[{"name": c, "dtype": "float32"} for c in columns])


def test_a_version_holds_model_golden_rows_profile_and_metrics(logistic, tmp_path):
    before = datetime.now(UTC)
    converted = convert(logistic.model, "m", logistic.rows, labels=logistic.labels, registry=tmp_path)
    version = published(tmp_path)
    manifest = version.manifest
    assert manifest == converted.manifest
    assert manifest.version == 1
    assert manifest.trained_at >= before
    assert manifest.signature.columns == tuple(logistic.rows.columns)
    assert manifest.signature.batched
    assert manifest.score == Score(output="probabilities", column=1)
    assert set(version.files) == {"model.onnx", "golden.npz", "profile.json"}
    predicted, probabilities = logistic.model.predict(logistic.rows), logistic.model.predict_proba(logistic.rows)
    assert manifest.accuracy == accuracy_score(logistic.labels, predicted)
    assert manifest.f1_score == f1_score(logistic.labels, predicted)
    assert manifest.metrics["log_loss"] == pytest.approx(log_loss(logistic.labels, probabilities), abs=1e-6)
    assert manifest.lineage["rows"] == str(len(logistic.rows))
    assert manifest.lineage["onnxruntime"] == onnxruntime.__version__


def test_golden_rows_are_answered_by_the_published_model(logistic, tmp_path):
    convert(logistic.model, "m", logistic.rows, registry=tmp_path)
    version = published(tmp_path)
    kept = golden(version)
    assert kept["input/input"].shape == (64, 30)
    for name, answer in run(version, {"input": kept["input/input"]}).items():
        assert np.array_equal(kept[f"output/{name}"], answer)


def test_the_profile_counts_every_feature_and_the_score_on_the_sample(logistic, tmp_path):
    convert(logistic.model, "m", logistic.rows, registry=tmp_path)
    reference = Reference.from_json(published(tmp_path).files["profile.json"])
    assert reference.features.names == tuple(logistic.rows.columns)
    assert reference.features.rows == reference.score.rows == len(logistic.rows)
    assert all(sum(column.counts) == len(logistic.rows) for column in reference.features.columns)


def test_text_columns_and_text_labels_are_published_with_their_names(mixed, tmp_path):
    convert(mixed.model, "m", mixed.rows, labels=mixed.labels, registry=tmp_path)
    version = published(tmp_path)
    specs = {spec.name: (spec.datatype, spec.shape) for spec in version.manifest.signature.inputs}
    assert specs["card type"] == ("BYTES", (-1, 1))
    assert specs["amount.eur"] == ("FP32", (-1, 1))
    assert specs["age"] == ("INT64", (-1, 1))
    assert version.manifest.signature.columns == ()
    assert {spec.datatype for spec in version.manifest.signature.outputs} == {"BYTES", "FP32"}
    kept = golden(version)
    assert kept["input/card.type"].dtype.kind == kept["output/label"].dtype.kind == "U"
    feed = {name: kept[f"input/{name}"].astype(object if datatype == "BYTES" else None)
            if datatype == "BYTES" else kept[f"input/{name}"] for name, (datatype, _) in specs.items()}  # fmt: skip
    assert run(version, feed)["label"].tolist() == kept["output/label"].tolist()
    profile = Reference.from_json(version.files["profile.json"]).features
    assert profile.names == ("amount.eur", "unused column")


def test_many_classes_watch_the_largest_probability(digits, tmp_path):
    rows, labels = digits
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300)).fit(rows, labels)
    manifest = convert(model, "m", rows, labels=labels, registry=tmp_path).manifest
    assert manifest.score == Score(output="probabilities", column=None)
    assert manifest.f1_score == pytest.approx(f1_score(labels, model.predict(rows), average="macro"))


def test_a_regressor_watches_its_value_and_has_r2(diabetes, tmp_path):
    rows, values = diabetes
    model = LinearRegression().fit(rows, values)
    manifest = convert(model, "m", rows, labels=values, registry=tmp_path).manifest
    assert manifest.score == Score(output="value", column=0)
    assert manifest.accuracy is None
    assert manifest.metrics["r2"] == pytest.approx(r2_score(values, model.predict(rows)), abs=1e-6)


def test_a_threshold_stands_in_the_manifest_and_in_the_labels(cancer, tmp_path):
    rows, labels = cancer
    inner = make_pipeline(StandardScaler(), LogisticRegression())
    model = FixedThresholdClassifier(inner, threshold=0.9, pos_label=0).fit(rows, labels)
    manifest = convert(model, "m", rows, registry=tmp_path).manifest
    assert manifest.threshold == 0.9
    assert manifest.score == Score(output="probabilities", column=0)
    kept = golden(published(tmp_path))
    assert np.array_equal(kept["output/label"] == 0, kept["output/probabilities"][:, 0] >= np.float32(0.9))


def transformed(rows: pd.DataFrame) -> tuple[Transforms, np.ndarray]:
    names = tuple(rows.columns)
    transforms = Transforms.model_validate(
        {
            "steps": [
                {"op": "log1p", "columns": names[:2]},
                {"op": "standardize", "columns": names, "mean": [0.5] * len(names), "scale": [2.0] * len(names)},
            ]
        }
    )
    return transforms, transforms.run(rows)


def test_with_transforms_the_model_sees_transformed_rows_and_drift_the_raw_ones(cancer, tmp_path):
    rows, labels = cancer
    transforms, matrix = transformed(rows)
    model = LogisticRegression(max_iter=5000).fit(matrix, labels)
    convert(model, "m", rows, labels=labels, registry=tmp_path, transforms=transforms)
    version = published(tmp_path)
    assert Transforms.from_json(version.files["transforms.json"]) == transforms
    assert version.manifest.accuracy == accuracy_score(labels, model.predict(matrix))
    kept = golden(version)
    raw = kept["input/input"]
    assert np.array_equal(raw[0], rows.to_numpy(np.float32)[0])
    out = np.empty_like(raw)
    transforms.program(tuple(rows.columns)).run(raw, out)
    assert np.array_equal(run(version, {"input": out})["probabilities"], kept["output/probabilities"])
    profile = Reference.from_json(version.files["profile.json"]).features
    assert profile.columns[0].edges[-1] > 10  # a raw radius, whose logarithm is below 4


WIDE = [
    {"op": "one_hot", "columns": ["kind"]},
    {"op": "function", "name": "spread", "columns": ["mean radius"], "outputs": ["half"]},
    {"op": "time_since", "columns": ["seen"], "of": "d", "unit": "d"},
    {"op": "interactions", "columns": ["mean radius", "half"]},
]
NOW = 20_000 * 86_400_000.0
FUNCTIONS = {"spread": lambda columns: {"half": columns["mean radius"] / 2}}


def wide(cancer):
    """Rows of other columns than the model's, and a model that was fitted on what transforms make of them."""
    rows, labels = cancer
    rows = rows[["mean radius", "mean texture"]].assign(
        kind=(labels + np.arange(len(labels)) % 3).astype(float), seen=19_000.0 + np.arange(len(labels)) % 50
    )
    transforms = fit(WIDE, rows.to_numpy(), list(rows), functions=FUNCTIONS, now=NOW)
    made = pd.DataFrame(transforms.run(rows, FUNCTIONS, NOW), columns=transforms.output_columns(list(rows)))
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(made, labels)
    return rows, labels, transforms, model


def test_the_model_may_read_other_columns_than_callers_send(cancer, tmp_path):
    rows, labels, transforms, model = wide(cancer)
    brought = rows.assign(unread="text")[["unread", *rows]]
    convert(model, "m", brought, labels=labels, registry=tmp_path, transforms=transforms, functions=FUNCTIONS, now=NOW)
    version = published(tmp_path)
    assert version.manifest.signature.columns == tuple(rows)
    assert version.manifest.signature.inputs[0].shape == (-1, 9)
    kept = golden(version)
    assert kept["input/input"].shape[1] == 4
    assert kept["clock"].tolist() == [NOW]
    again = transforms.run(dict(zip(rows, kept["input/input"].T, strict=True)), FUNCTIONS, kept["clock"])
    assert np.array_equal(run(version, {"input": again})["probabilities"], kept["output/probabilities"])
    profile = Reference.from_json(version.files["profile.json"]).features
    assert tuple(profile.names) == tuple(rows)


def test_transforms_that_do_not_fit_the_model_or_the_sample_are_refused(cancer, tmp_path):
    rows, _labels, transforms, model = wide(cancer)
    more = {"registry": tmp_path, "functions": FUNCTIONS, "now": NOW}
    turned = transforms.model_copy(update={"steps": (*transforms.steps, Select(columns=("half", "mean radius")))})
    with pytest.raises(BadSample, match="lacks these columns of the model"):
        convert(model, "m", rows, transforms=turned, **more)
    order = tuple(reversed(transforms.output_columns(list(rows))))
    turned = transforms.model_copy(update={"steps": (*transforms.steps, Select(columns=order))})
    with pytest.raises(ConvertError, match="end the transforms with a select step"):
        convert(model, "m", rows, transforms=turned, **more)
    with pytest.raises(BadSample, match="lacks columns of the transforms: kind"):
        convert(model, "m", rows.drop(columns="kind"), transforms=transforms, **more)
    with pytest.raises(TransformError, match="'spread', which is not registered"):
        convert(model, "m", rows, registry=tmp_path, transforms=transforms)


def test_views_become_feature_sets_and_the_rest_is_named_for_the_caller(logistic, tmp_path):
    names = list(logistic.rows.columns)
    views = [view("first", names[:10]), view("second", names[10:29])]
    converted = convert(logistic.model, "m", logistic.rows, registry=tmp_path, views=views)
    manifest = converted.manifest
    assert manifest.signature.entity == "patient_id"
    assert [one.name for one in manifest.feature_sets] == ["first", "second"]
    assert FeatureView.parse(manifest.feature_sets[0].schema_) == views[0]
    assert converted.sent == (names[29],)
    assert any("callers must send: worst fractal dimension" in note for note in converted.notes)
    again = convert(logistic.model, "m", logistic.rows, registry=tmp_path, views=views, entity="id").manifest
    assert again.feature_sets[0].id == manifest.feature_sets[0].id
    assert again.signature.entity == "id"


def typed(name: str, **fields) -> FeatureView:
    """A view with a column that is no plain number, and one that the model reads."""
    columns = [Column(name=name, **fields), Column(name="mean radius", dtype="float32")]
    return FeatureView(name="a", entity="patient_id", columns=columns)


def test_an_entity_of_several_keys_is_one_input(logistic, tmp_path):
    pair = view("a", logistic.rows.columns[:2]).model_copy(update={"entity": ("ward", "patient")})
    manifest = convert(logistic.model, "m", logistic.rows, registry=tmp_path, views=[pair]).manifest
    assert manifest.signature.entity == "ward|patient"
    assert (manifest.signature.entity_keys, manifest.format) == ((), 1)
    assert FeatureView.parse(manifest.feature_sets[0].schema_) == pair


def test_views_of_several_entities_have_one_id_whose_parts_are_told(logistic, tmp_path):
    """In the order in which the keys come up; older releases, which would look up the whole id, are kept out."""
    names = list(logistic.rows.columns)
    views = [view("a", names[:9], "patient"), view("b", names[9:19], "ward"), view("c", names[19:29], "doctor")]
    views.append(view("d", names[29:]).model_copy(update={"entity": ("ward", "patient")}))
    converted = convert(logistic.model, "m", logistic.rows, registry=tmp_path, views=views)
    signature = converted.manifest.signature
    assert (signature.entity, signature.entity_keys) == ("patient|ward|doctor", ("patient", "ward", "doctor"))
    assert converted.manifest.format == 2
    assert "an entity id has 3 parts, in this order: patient, ward, doctor" in converted.notes
    again = convert(logistic.model, "m", logistic.rows, registry=tmp_path, views=views[::-1]).manifest
    assert again.signature.entity == "ward|patient|doctor"
    with pytest.raises(ConvertError, match=r"called by their keys, 'patient\|ward\|doctor': leave out the name 'id'"):
        convert(logistic.model, "m", logistic.rows, registry=tmp_path, views=views, entity="id")


def test_keys_have_a_limit(logistic, tmp_path):
    keys = [tuple(f"k{i}{j}" for j in range(8)) for i in range(9)]
    views = [view(f"v{i}", [logistic.rows.columns[i]]).model_copy(update={"entity": keys[i]}) for i in range(9)]
    with pytest.raises(ConvertError, match="the views have 72 keys in all; an entity id has at most 64 parts"):
        convert(logistic.model, "m", logistic.rows, registry=tmp_path, views=views)


@pytest.mark.parametrize(
    ("views", "entity", "said"),
    [
        ([view("a", ["mean area"]), view("b", ["mean area"])], "", "is in views a and b"),
        (
            [view("a", ["mean area"], "a|b"), view("b", ["mean radius"], "ward")],
            "",
            r"the entity key 'a\|b' has a '\|', which stands between keys",
        ),
        ([view("a", ["other"])], "", "no column of the model is in view a"),
        (
            [typed("mean area", dtype="string", max_bytes=9)],
            "",
            "is a string: a model that reads numbers cannot take it",
        ),
        ([typed("mean area", dtype="vector", size=3)], "", "is a vector: it reads as mean area_0 to mean area_2"),
        ([view("a", ["mean area"])], "mean area", "name of a feature column"),
        ([], "patient_id", "no feature view"),
    ],
)
def test_views_that_do_not_fit_are_refused(logistic, tmp_path, views, entity, said):
    with pytest.raises(ConvertError, match=said):
        convert(logistic.model, "m", logistic.rows, registry=tmp_path, views=views, entity=entity)


CARD = Column(name="card type", dtype="category", vocabulary=["visa", "maestro", "amex", "diners"], default="visa")
KIND = Column(name="card.type", dtype="category", vocabulary=["débit", "credit"])


def cards(*columns: Column) -> FeatureView:
    numbers = [Column(name="amount.eur", dtype="float32"), Column(name="age", dtype="int64", default=40)]
    return FeatureView(name="cards", entity="customer", columns=[*columns, *numbers])


def test_a_model_of_words_takes_the_matrix_of_its_views(mixed, tmp_path):
    """Words are numbers until the graph puts them back: those that the views' categories say."""
    convert(mixed.model, "m", mixed.rows, labels=mixed.labels, registry=tmp_path, views=[cards(KIND, CARD)])
    version = published(tmp_path)
    signature = version.manifest.signature
    names = tuple(mixed.rows.columns)
    assert (signature.columns, signature.entity) == (names, "customer")
    assert [(spec.name, spec.datatype, spec.shape) for spec in signature.inputs] == [("input", "FP32", (-1, 6))]
    kept = golden(version)["input/input"]
    assert set(kept[:, 0]) == {0, 1, 2}
    profile = Reference.from_json(version.files["profile.json"]).features
    assert profile.names == names


def test_a_number_that_is_no_words_is_the_empty_text_to_the_model(mixed, tmp_path):
    """What a word that the vocabulary lacks, and null, come to where there is no default."""
    encode = OneHotEncoder(handle_unknown="ignore")
    choose = ColumnTransformer([("kinds", encode, ["card.type", "card type"]), ("age", StandardScaler(), ["age"])])
    rows = mixed.rows[["card type", "age", "card.type"]]
    model = make_pipeline(choose, LogisticRegression()).fit(rows, mixed.labels)
    views = [FeatureView(name="v", entity="customer", columns=[CARD, KIND])]
    converted = convert(model, "m", rows, registry=tmp_path, views=views)
    assert converted.sent == ("age",)
    assert any("refuses missing values" in note for note in converted.notes)
    version = published(tmp_path)
    strange = rows.iloc[:40].assign(**{"card.type": "", "card type": "visa"})
    matrix = np.stack([np.zeros(40), strange["age"], np.zeros(40)], axis=1).astype(np.float32)
    for number in (-1, 2, 0.5, np.nan, 1e9):
        matrix[:, 2] = number
        answered = run(version, {"input": matrix})
        np.testing.assert_allclose(answered["probabilities"], model.predict_proba(strange), atol=1e-5)


def test_words_that_a_category_lacks_are_told_and_compared_as_served(mixed, tmp_path):
    known = CARD.model_copy(update={"vocabulary": ("visa", "amex")})
    converted = convert(mixed.model, "m", mixed.rows, registry=tmp_path, views=[cards(KIND, known)])
    missing = int((mixed.rows["card type"] == "maestro").sum())
    assert f"{missing} words of column 'card type' are not in its vocabulary, as they will be when served" in (
        converted.notes
    )


@pytest.mark.parametrize(
    ("view", "said"),
    [
        (cards(CARD), "text column 'card.type' is in no feature view"),
        (cards(CARD, Column(name="card.type", dtype="string", max_bytes=9)), "is text in the sample and a string in"),
        (cards(CARD, Column(name="card.type", dtype="int64")), "is text in the sample and a int64 in view 'cards'"),
    ],
)
def test_text_that_is_no_category_cannot_be_looked_up(mixed, tmp_path, view, said):
    with pytest.raises(ConvertError, match=said):
        convert(mixed.model, "m", mixed.rows, registry=tmp_path, views=[view])


def test_columns_chosen_by_name_are_joined_without_any_text(tmp_path):
    rows = pd.DataFrame({"b": np.arange(60), "a": np.linspace(0, 1, 60) ** 2})
    choose = ColumnTransformer([("scaled", StandardScaler(), ["a"]), ("kept", "passthrough", ["b"])])
    model = make_pipeline(choose, LinearRegression()).fit(rows, rows["a"] + rows["b"])
    convert(model, "m", rows, registry=tmp_path, views=[view("v", ["a", "b"])])
    version = published(tmp_path)
    assert version.manifest.signature.columns == ("b", "a")
    told = run(version, {"input": np.array([[3, 0.5]], np.float32)})["value"]
    np.testing.assert_allclose(told, [[3.5]], rtol=1e-5)


def test_transforms_need_the_matrix_form(mixed, tmp_path):
    with pytest.raises(ConvertError, match="one matrix"):
        convert(mixed.model, "m", mixed.rows, registry=tmp_path, transforms=Transforms())


@pytest.mark.parametrize(
    ("labels", "kind", "said"),
    [
        (np.full(569, 7), BadSample, "does not know: 7"),
        (np.zeros(3), BadSample, "3 labels for 569 rows"),
        (np.full(569, "x"), BadSample, "not of the model's kind"),
        ("diagnosis", ConvertError, "no label column"),
    ],
)
def test_labels_that_are_not_the_models_are_refused(logistic, tmp_path, labels, kind, said):
    with pytest.raises(kind, match=said):
        convert(logistic.model, "m", logistic.rows, registry=tmp_path, labels=labels)


def test_a_failed_gate_leaves_the_registry_as_it_was(logistic, tmp_path, monkeypatch):
    other = make_pipeline(StandardScaler(), LogisticRegression(C=0.01)).fit(logistic.rows, logistic.labels)
    original = gate_module.convert_estimator
    monkeypatch.setattr(gate_module, "convert_estimator", lambda _, *rest: original(other, *rest))
    with pytest.raises(GateFailed):
        convert(logistic.model, "m", logistic.rows, registry=tmp_path / "registry")
    assert not (tmp_path / "registry").exists()


def test_rows_that_the_source_refuses_are_told(logistic, tmp_path):
    rows = logistic.rows.copy()
    rows.iloc[3, 3] = np.nan
    with pytest.raises(BadSample, match="source model refuses the sample"):
        convert(logistic.model, "m", rows, registry=tmp_path)


def test_a_sample_without_gaps_warns_that_the_source_takes_none(logistic, tmp_path):
    notes = convert(logistic.model, "m", logistic.rows, registry=tmp_path).notes
    assert any("refuses missing values" in note for note in notes)
