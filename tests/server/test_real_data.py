"""Real data end to end: scikit-learn's breast cancer (30 features) and digits (64) as entities in a real Redis, asked
over gRPC from a server that is a process of its own. Every row's answer is scikit-learn's, to 1e-5."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pandas as pd
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from penstock.client import Client
from penstock.converters import convert
from penstock.features import Column, FeatureView, open_store
from penstock.training import fit

ATOL = 1e-5
MODELS = {
    "cancer": lambda: make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)),
    "cancer-trees": lambda: HistGradientBoostingClassifier(max_iter=40, random_state=0),
    "digits": lambda: make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)),
}


class Case:
    """One model over one data set: what the server should say of every row."""

    def __init__(self, name, data, target):
        self.name = name
        self.data = data.astype(np.float32)
        self.view = FeatureView(
            name=f"{name}-view",
            entity="row_id",
            columns=[Column(name=column, dtype="float32") for column in data.columns],
            layout="hash" if name == "cancer-trees" else "row",
        )
        self.model = MODELS[name]().fit(data, target)
        self.target = target
        self.expected = self.probabilities(self.data)

    @property
    def ids(self):
        return [f"{self.name}-{row}" for row in range(len(self.data))]

    def probabilities(self, frame):
        return self.model.predict_proba(frame.astype(np.float64))


@pytest.fixture(scope="module")
def cases():
    cancer, digits = load_breast_cancer(as_frame=True), load_digits(as_frame=True)
    data = {"cancer": cancer, "cancer-trees": cancer, "digits": digits}
    return {name: Case(name, data[name].data, data[name].target) for name in MODELS}


@pytest.fixture(scope="module")
def client(cases, redis_server, server_process, tmp_path_factory):
    registry = tmp_path_factory.mktemp("registry")
    with closing(open_store(redis_server)) as store:
        for case in cases.values():
            columns = {name: case.data[name].to_numpy() for name in case.data}
            store.apply(case.view, replace=True)
            store.put(case.view, [one.encode() for one in case.ids], columns)
            views = [case.view]
            convert(case.model, case.name, case.data, labels=case.target, registry=registry, views=views, fuzz=False)
    with server_process(registry, "--features", redis_server) as server, Client(server.grpc, timeout=30) as client:
        yield client


@pytest.fixture(params=MODELS)
def case(request, cases):
    return cases[request.param]


def close(prediction, expected):
    np.testing.assert_allclose(prediction["probabilities"], expected, rtol=0, atol=ATOL)
    assert prediction["label"].reshape(-1).tolist() == expected.argmax(axis=1).tolist()


def test_every_row_asked_by_entity_alone_is_predict_proba(client, case):
    for row, one in enumerate(case.ids):
        close(client.predict(case.name, entity_ids=[one]), case.expected[row : row + 1])


def test_all_rows_asked_by_entity_at_once_are_predict_proba(client, case):
    close(client.predict(case.name, entity_ids=case.ids), case.expected)
    order = np.random.default_rng(3).permutation(len(case.ids)).repeat(2)
    close(client.predict(case.name, entity_ids=[case.ids[row] for row in order]), case.expected[order])


def test_every_row_asked_by_vector_is_predict_proba(client, case):
    matrix = case.data.to_numpy()
    for row in range(0, len(matrix), 3):
        close(client.predict(case.name, matrix[row : row + 3]), case.expected[row : row + 3])
    close(client.predict(case.name, {"input": matrix}), case.expected)


def test_every_row_asked_by_named_columns_is_predict_proba(client, case):
    close(client.predict(case.name, {name: case.data[name].to_numpy() for name in case.data}), case.expected)
    wide = {name: case.data[name].to_numpy(np.float64).reshape(-1, 1) for name in case.data}
    close(client.predict(case.name, wide), case.expected)


def test_every_row_asked_by_entity_with_overrides_is_predict_proba_of_the_changed_rows(client, case):
    rng = np.random.default_rng(5)
    changed = case.data.copy()
    names = list(rng.choice(changed.columns, 3, replace=False))
    for name in names:
        changed[name] = rng.permutation(changed[name].to_numpy())
    overrides = {name: changed[name].to_numpy() for name in names}
    close(client.predict(case.name, entity_ids=case.ids, overrides=overrides), case.probabilities(changed))


def test_the_joined_vector_and_where_it_came_from_are_told_on_request(client, case):
    name = case.data.columns[1]
    wanted = ["penstock.features", "penstock.feature_status"]
    ids = [case.ids[0], "nobody", case.ids[-1]]
    told = client.predict(case.name, entity_ids=ids, overrides={name: [7.0, 8.0, 9.0]}, outputs=wanted)
    assert set(told) == set(wanted)
    expected = case.data.iloc[[0, 0, -1]].to_numpy().copy()
    expected[1] = np.nan
    expected[:, 1] = [7, 8, 9]
    np.testing.assert_array_equal(told["penstock.features"], expected)
    status = np.full(expected.shape, b"store", object)
    status[1] = b"missing"
    status[:, 1] = b"request"
    assert told["penstock.feature_status"].tolist() == status.tolist()


def test_they_are_not_sent_to_those_who_do_not_ask(client, case):
    assert set(client.predict(case.name, entity_ids=case.ids[:1])) == {"label", "probabilities"}


RECIPE = [
    {"op": "clip", "columns": ["mean area", "worst area"], "quantiles": [0.05, 0.9]},
    {"op": "log1p", "columns": ["mean area", "area error"]},
    {"op": "standardize", "columns": ["mean area", "mean radius"]},
]


def test_transforms_in_a_version_are_served_as_scikit_learn_sees_them(cases, registry, serving, calling):
    """The model was trained on transformed features; callers send them as they are."""
    case = cases["cancer"]
    matrix = case.data.to_numpy()
    transforms = fit(RECIPE, matrix, list(case.data.columns))
    seen = pd.DataFrame(matrix.astype(np.float64), columns=case.data.columns)
    for name in ("mean area", "worst area"):
        seen[name] = seen[name].clip(*seen[name].quantile([0.05, 0.9]))
    for name in ("mean area", "area error"):
        seen[name] = np.log1p(seen[name])
    for name in ("mean area", "mean radius"):
        seen[name] = StandardScaler().fit_transform(seen[[name]])
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(seen, case.target)
    convert(model, "transformed", case.data, registry=registry, transforms=transforms, fuzz=False)
    caller = calling(serving())
    close(caller.client.predict("transformed", matrix), model.predict_proba(seen))
    named = {name: case.data[name].to_numpy() for name in case.data}
    close(caller.client.predict("transformed", named), model.predict_proba(seen))


def test_a_column_transformer_with_text_is_served_by_named_inputs(registry, serving, calling):
    rng = np.random.default_rng(1)
    data = pd.DataFrame(
        {
            "country": rng.choice(["SE", "DE", "Österreich", ""], 200),
            "amount": rng.exponential(50, 200).astype(np.float32),
            "items": rng.integers(0, 9, 200),
        }
    )
    target = (data["amount"] > 40) ^ (data["country"] == "SE")
    encode = ColumnTransformer(
        [
            ("text", OneHotEncoder(handle_unknown="ignore"), ["country"]),
            ("number", StandardScaler(), ["amount", "items"]),
        ]
    )
    model = make_pipeline(encode, LogisticRegression()).fit(data, target)
    convert(model, "mixed", data, labels=target, registry=registry, fuzz=False)
    caller = calling(serving())
    sent = {name: data[name].to_numpy().reshape(-1, 1) for name in data}
    told = caller.client.predict("mixed", sent)
    np.testing.assert_allclose(told["probabilities"], model.predict_proba(data), rtol=0, atol=ATOL)
    for row in range(0, 200, 20):
        one = {name: values[row : row + 1] for name, values in sent.items()}
        np.testing.assert_allclose(
            caller.client.predict("mixed", one)["probabilities"], model.predict_proba(data[row : row + 1]), atol=ATOL
        )


def test_a_model_of_words_is_served_from_categories_in_the_store(registry, serving, calling, redis_url):
    """Trained on words, asked by entity: each answer is scikit-learn's of the words in the store."""
    rng = np.random.default_rng(2)
    view = FeatureView(
        name="customer",
        entity="id",
        columns=[
            Column(name="plan", dtype="category", vocabulary=["pro", "free", "basic"], default="free"),
            Column(name="country", dtype="category", vocabulary=["DE", "Österreich", "SE"]),
            Column(name="visits", dtype="int32", default=0),
        ],
    )
    ids = [f"c{i}" for i in range(300)]
    table = {
        "plan": rng.choice(["pro", "free", "basic", "unheard of"], 300),
        "country": rng.choice(["SE", "DE", "Österreich"], 300),
        "visits": rng.integers(0, 9, 300),
    }
    with closing(open_store(redis_url)) as store:
        store.apply(view)
        store.put(view, ids, table)
        found = store.get(view, [*ids, "nobody"])
    told = pd.DataFrame(
        {"plan": found.words("plan"), "country": found.words("country"), "visits": found.matrix()[:, 2]}
    )
    target = (told["plan"] == "pro") ^ (told["country"] == "SE") ^ (told["visits"] > 4)
    encode = ColumnTransformer(
        [("words", OneHotEncoder(handle_unknown="ignore"), ["plan", "country"]), ("rest", "passthrough", ["visits"])]
    )
    for name, last in (("words", LogisticRegression()), ("trees", HistGradientBoostingClassifier(max_iter=5))):
        encode.set_params(sparse_threshold=0)
        model = make_pipeline(encode, last).fit(told[:300], target[:300])
        convert(model, name, told[:300], labels=target[:300], registry=registry, views=[view])
        caller = calling(serving(features=redis_url, feature_timeout_ms=500))
        close(caller.client.predict(name, entity_ids=[*ids, "nobody"]), model.predict_proba(told))
        changed = told.assign(plan="basic")
        close(
            caller.client.predict(name, entity_ids=[*ids, "nobody"], overrides={"plan": np.full(301, 2)}),
            model.predict_proba(changed),
        )
