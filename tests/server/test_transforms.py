"""Transforms in served versions: other columns than the graph's, functions that the operator named, the clock."""

from __future__ import annotations

import io
import time
from contextlib import closing

import grpc
import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression

from penstock.converters import convert
from penstock.errors import PenstockError
from penstock.features import Column, FeatureView, open_store
from penstock.features.transforms import FunctionStep, Interactions, Select, TimeSince, Transforms
from penstock.monitoring import Profile, Reference
from penstock.proto import penstock_pb2, penstock_pb2_grpc
from penstock.server.config import Config
from penstock.server.version import Served
from penstock.training import fit

NAMES = ("amount", "kind", "limit")
RECIPE = [
    {"op": "ratio", "columns": ["amount"], "by": ["limit"]},
    {"op": "impute", "columns": ["amount/limit"]},
    {"op": "log1p", "columns": ["amount"]},
    {"op": "one_hot", "columns": ["kind"]},
    {"op": "hash", "columns": ["limit"], "buckets": 4},
]


def ratios(columns):
    """For tests that name it as tests would not be imported by anybody else."""
    if (columns["amount"] < 0).any():
        raise ValueError("an amount below 0")
    return {"twice": columns["amount"] * 2}


def thirds(columns):
    return {"twice": columns["amount"] * 3}


PLACE = f"{__name__}:ratios"
OTHER = f"{__name__}:thirds"


def rows(n=300):
    rng = np.random.default_rng(4)
    columns = [rng.lognormal(size=n), rng.integers(0, 3, n), rng.choice([0.0, 100, 250], n)]
    return pd.DataFrame(np.column_stack(columns).astype(np.float32), columns=list(NAMES))


def publish(registry, model, name="wide", recipe=RECIPE, **more):
    """A model behind transforms that change the columns; the probabilities it should give."""
    data = rows()
    label = ((data["amount"] > 1) ^ (data["kind"] == 2)).astype(int)
    transforms = fit(recipe, data.to_numpy(), NAMES)
    made = pd.DataFrame(transforms.run(data), columns=transforms.output_columns(NAMES))
    model.fit(made, label)
    convert(model, name, data, registry=registry, transforms=transforms, fuzz=False, **more)
    return data, model.predict_proba(made)


@pytest.mark.parametrize("transport", ["native", "grpcio"])
@pytest.mark.parametrize("inline", ["on", "off"])
@pytest.mark.parametrize("model", [LogisticRegression(), RandomForestClassifier(20, random_state=0)], ids=["lr", "rf"])
def test_callers_send_the_columns_before_the_transforms(registry, serving, calling, transport, inline, model):
    if transport == "native":
        pytest.importorskip("penstock.kernels.http2", reason="this build has no native transport")
    data, expected = publish(registry, model)
    caller = calling(serving(transport=transport, inline=inline))
    for part in (slice(None), slice(3, 4), slice(10, 75)):
        told = caller.client.predict("wide", data.to_numpy()[part])["probabilities"]
        np.testing.assert_allclose(told, expected[part], atol=1e-5)
    named = {name: data[name].to_numpy() for name in NAMES}
    np.testing.assert_allclose(caller.client.predict("wide", named)["probabilities"], expected, atol=1e-5)
    described = caller.client.metadata("wide")
    assert next(tuple(one.shape) for one in described.inputs if one.datatype == "FP32") == (-1, 3)


@pytest.mark.parametrize("forests", ["on", "off"])
def test_a_forest_behind_transforms_is_judged_on_the_rows_it_will_get(registry, forests):
    publish(registry, RandomForestClassifier(20, random_state=0))
    served = Served(registry.load("wide", 1), Config(registry=registry.root, forests=forests), None)
    served.drain()
    assert served.join(20)
    assert served.model.startswith("forest: 20 trees" if forests == "on" else "onnxruntime: forests are off")
    assert served.curve.rows  # rows made up for measuring ran


def test_looked_up_values_and_sent_ones_go_through_the_same_transforms(registry, serving, calling, redis_url):
    """On demand: the caller sends the amount, the rest comes from the store."""
    view = FeatureView(
        name="accounts",
        entity="account",
        columns=[Column(name="kind", dtype="int64"), Column(name="limit", dtype="float32")],
    )
    data, expected = publish(registry, LogisticRegression(), views=[view])
    with closing(open_store(redis_url)) as store:
        columns = {"kind": data["kind"].to_numpy(np.int64), "limit": data["limit"].to_numpy()}
        store.put(view, [b"%d" % i for i in range(len(data))], columns)
    caller = calling(serving(features=redis_url, feature_timeout_ms=500))
    told = caller.client.predict(
        "wide", {"amount": data["amount"].to_numpy()[:40]}, entity_ids=[str(i) for i in range(40)]
    )
    np.testing.assert_allclose(told["probabilities"], expected[:40], atol=1e-5)


def test_drift_is_counted_before_the_transforms(registry, serving, calling, graphs):
    values = rows().to_numpy()
    reference = Reference(features=Profile.of(values, list(NAMES)), score=None)
    steps = Transforms(columns=NAMES, steps=(Interactions(columns=NAMES),))
    files = {"profile.json": reference.to_json(), "transforms.json": steps.to_json().encode()}
    graphs.publish(registry, "copy", graphs.copy(6), columns=NAMES, files=files)
    caller = calling(serving())
    got = caller.client.predict("copy", values[:2])["y"]
    a, b, c = values[:2].T.astype(np.float64)
    np.testing.assert_allclose(got, np.column_stack([a, b, c, a * b, a * c, b * c]), rtol=1e-6)
    told = penstock_pb2_grpc.PenstockStub(caller.channel).DriftStatus(
        penstock_pb2.DriftStatusRequest(model_name="copy", current=True), timeout=20
    )
    [model] = told.models
    assert model.rows == 2
    assert [feature.name for feature in model.features] == list(NAMES)


# ---- Functions ------------------------------------------------------------------------------------------------------


@pytest.fixture
def with_function(registry, graphs):
    """A version that calls the function `twice` of one column and shows what its graph gets."""
    step = FunctionStep(name="twice", columns=("amount",), outputs=("twice",))
    files = {"transforms.json": Transforms(columns=("amount",), steps=(step,)).to_json().encode()}
    graphs.publish(registry, "calls", graphs.copy(2), columns=("amount",), files=files)


def test_a_registered_function_is_called_once_a_batch(with_function, serving, calling):
    caller = calling(serving(functions={"twice": PLACE}))
    assert caller.client.predict("calls", np.array([[3.0], [4.5]], np.float32))["y"].tolist() == [[3, 6], [4.5, 9]]


def test_servers_share_no_answers_of_functions_of_other_places(with_function, serving, calling, own_redis, eventually):
    cache = {"calls": {"shared": own_redis.url, "shared_timeout_ms": 2000.0}}
    first, second, third = (calling(serving(functions={"twice": at}, cache=cache)) for at in (PLACE, OTHER, PLACE))
    assert first.answer(first.send("calls", [[3.0]])).tolist() == [[3, 6]]
    eventually(lambda: own_redis.client.keys("cache:*"))
    assert second.answer(second.send("calls", [[3.0]])).tolist() == [[3, 9]]
    assert "cached" in third.send("calls", [[3.0]]).result().parameters


def test_a_function_that_fails_fails_its_own_call_with_an_opaque_error(with_function, serving, calling):
    caller = calling(serving(functions={"twice": PLACE}))
    good, bad = caller.send("calls", [[1.0]]), caller.send("calls", [[-1.0]])
    assert caller.answer(good).tolist() == [[1, 2]]
    with pytest.raises(grpc.RpcError) as caught:
        bad.result()
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "amount" not in caught.value.details()


def test_a_version_whose_function_is_not_registered_does_not_load_and_says_so(with_function, serving, calling):
    caller = calling(serving())
    [state] = caller.client.models()
    assert state.state == "UNAVAILABLE"
    assert "'twice', which is not registered" in state.reason
    assert "functions: {twice: package.module:function}" in state.reason


def test_a_version_cannot_name_code(registry, graphs, serving, calling):
    """Where a function's code is, only the operator says: a place in the version is a name like any other."""
    step = FunctionStep(name="os:system", columns=("amount",), outputs=("twice",))
    files = {"transforms.json": Transforms(steps=(step,)).to_json().encode()}
    graphs.publish(registry, "evil", graphs.copy(2), columns=("amount",), files=files)
    [state] = calling(serving()).client.models()
    assert "'os:system', which is not registered" in state.reason


def test_a_function_that_cannot_be_imported_is_told_at_the_start(registry, serving):
    with pytest.raises(PenstockError, match="function 'twice': nowhere_at_all:f cannot be imported"):
        serving(functions={"twice": "nowhere_at_all:f"})


# ---- The clock ------------------------------------------------------------------------------------------------------


def clocked(registry, graphs, golden_at=None):
    steps = (TimeSince(columns=("day",), of="d", unit="d"), Select(columns=("day", "other")))
    files = {"transforms.json": Transforms(columns=("day", "other"), steps=steps).to_json().encode()}
    if golden_at is not None:
        x, stream = np.array([[20_000, 1]], np.float32), io.BytesIO()
        y = np.array([[5, 1]], np.float32)
        np.savez(stream, **{"input/x": x, "output/y": y, "clock": np.array([golden_at])})
        files["golden.npz"] = stream.getvalue()
    graphs.publish(registry, "clocked", graphs.copy(2), columns=("day", "other"), files=files)


@pytest.mark.parametrize("inline", ["on", "off"])
def test_time_is_counted_from_the_servers_clock(registry, graphs, serving, calling, inline):
    clocked(registry, graphs)
    caller = calling(serving(inline=inline))
    day = np.float32(int(time.time() / 86_400) - 3)
    [[days, other]] = caller.client.predict("clocked", np.array([[day, 8]], np.float32))["y"]
    assert 3 <= days <= 4.01
    assert other == 8


def test_golden_rows_are_run_at_the_time_they_were_made(registry, graphs, serving, calling):
    clocked(registry, graphs, golden_at=20_005 * 86_400_000.0)
    [state] = calling(serving()).client.models()
    assert state.state == "READY", state.reason


def test_transforms_that_do_not_fit_the_graph_are_refused(registry, graphs, serving, calling):
    files = {"transforms.json": Transforms(steps=(Select(columns=("a",)),)).to_json().encode()}
    graphs.publish(registry, "narrow", graphs.copy(2), columns=("a", "b"), files=files)
    [state] = calling(serving()).client.models()
    assert "give 1 columns, which is not what its graph reads" in state.reason
