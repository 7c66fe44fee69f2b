"""Features through the server: policies without a row, without a store, and everything in between."""

from __future__ import annotations

import time
from contextlib import closing

import grpc
import numpy as np
import pytest

from penstock.errors import InvalidRequest, PenstockError
from penstock.features import Column, FeatureView, InvalidData, open_store
from penstock.proto import inference_pb2 as pb

Code = grpc.StatusCode
STATUS = "penstock.feature_status"


def view(**fields):
    columns = [
        Column(name="amount", dtype="float64", default=5.0),
        Column(name="count", dtype="int64", default=7.0),
        Column(name="age", dtype="float32"),
    ]
    return FeatureView(**{"name": "activity", "entity": "customer", "columns": columns} | fields)


NAMES = ("amount", "count", "age")
ROWS = {b"ada": [1.5, 2, 3], b"bob": [np.nan, 20, 30], b"42": [4, 44, 444]}


@pytest.fixture
def joined(registry, graphs, serving, calling):
    """Publishes `copy` over a view, fills a store, and serves it; a Caller."""

    def start(url, one, fill_at=None, **settings):
        graphs.publish(registry, "copy", graphs.copy(3), columns=NAMES, views=[one])
        with closing(open_store(fill_at or url)) as store:
            values = np.array(list(ROWS.values()))
            columns = {"amount": values[:, 0], "count": values[:, 1].astype(np.int64), "age": values[:, 2].astype("f4")}
            store.put(one, list(ROWS), columns)
        return calling(serving(features=url, **{"feature_timeout_ms": 200} | settings))

    return start


def ask(caller, ids, **more):
    told = caller.client.predict("copy", entity_ids=ids, outputs=["y", STATUS], **more)
    return told["y"].tolist(), [[text.decode() for text in row] for row in told[STATUS]]


@pytest.mark.parametrize("layout", ["row", "hash"])
def test_on_missing_default_fills_in_the_views_defaults(joined, redis_url, layout):
    caller = joined(redis_url, view(layout=layout))
    values, status = ask(caller, ["ada", "bob", "nobody"])
    np.testing.assert_array_equal(values, [[1.5, 2, 3], [5, 20, 30], [5, 7, np.nan]])
    assert status == [["store"] * 3, ["default", "store", "store"], ["default", "default", "missing"]]


POLICIES = [(missing, stale) for missing in ("default", "nan", "error") for stale in ("use", "default", "nan", "error")]


@pytest.mark.parametrize(("on_missing", "on_stale"), POLICIES)
def test_the_matrix_of_features_is_what_the_server_gives_the_model(joined, redis_url, on_missing, on_stale):
    """Of full rows, of such with nulls, old ones and none; what the server refuses has no matrix either."""
    one = view(on_missing=on_missing, on_stale=on_stale, max_age_s=3600)
    caller = joined(redis_url, one)
    with closing(open_store(redis_url)) as store:
        old = {"amount": [1.0, None], "count": [None, 2], "age": [0.1, 0.2]}
        past = np.full(2, time.time_ns() // 10**6 - 7_200_000)
        store.put(one, ["old", "older"], {name: np.array(values, object) for name, values in old.items()}, past)
        for entity in ("ada", "bob", "old", "older", "nobody"):
            found = store.get(one, [entity])
            try:
                values = ask(caller, [entity])[0]
            except PenstockError:
                with pytest.raises(InvalidData, match=f"of customer {entity!r}, and of 0 more, and says on_.*: error"):
                    found.matrix()
            else:
                np.testing.assert_array_equal(np.float32(values), found.matrix())


def test_on_missing_nan_gives_the_model_nan(joined, redis_url):
    values, status = ask(joined(redis_url, view(on_missing="nan")), ["bob", "nobody"])
    np.testing.assert_array_equal(values, [[np.nan, 20, 30], [np.nan] * 3])
    assert status == [["missing", "store", "store"], ["missing"] * 3]


def test_on_missing_error_refuses_the_call_and_names_the_entity(joined, redis_url, gate):
    caller = joined(redis_url, view(on_missing="error"), workers=1)
    gate.shut()
    first = entity_call(caller, "ada")
    gate.entered()
    calls = [entity_call(caller, one) for one in ("ada", "nobody", "42", "bob")]
    gate.queued(4)
    gate.open()
    assert caller.answer(first).tolist() == [[1.5, 2, 3]]
    assert caller.answer(calls[0]).tolist() == [[1.5, 2, 3]]
    assert caller.answer(calls[2]).tolist() == [[4, 44, 444]]
    for call, name in ((calls[1], "nobody"), (calls[3], "bob")):
        with pytest.raises(grpc.RpcError) as caught:
            call.result()
        assert caught.value.code() is Code.NOT_FOUND
        assert f"'{name}'" in caught.value.details()
    assert gate.rows == [1, 4]  # one batch, and its good calls were answered from it


def entity_call(caller, one, *, timeout=20, **columns):
    request = pb.ModelInferRequest(model_name="copy")
    request.inputs.add(name="customer", datatype="BYTES", shape=[1]).contents.bytes_contents.append(one.encode())
    for name, value in columns.items():
        request.inputs.add(name=name, datatype="FP32", shape=[1]).contents.fp32_contents.append(value)
    request.outputs.add(name="y")
    return caller.stub.ModelInfer.future(request, timeout=timeout)


def test_integer_ids_are_their_decimal_digits(joined, redis_url):
    caller = joined(redis_url, view())
    request = pb.ModelInferRequest(model_name="copy")
    request.inputs.add(name="customer", datatype="INT64", shape=[1, 1]).contents.int64_contents.append(42)
    request.outputs.add(name="y")
    assert caller.answer(caller.stub.ModelInfer.future(request, timeout=20)).tolist() == [[4, 44, 444]]
    assert ask(caller, [42])[0] == [[4, 44, 444]]


def test_overrides_win_and_the_rest_is_looked_up(joined, redis_url):
    caller = joined(redis_url, view())
    values, status = ask(caller, ["ada", "ada"], overrides={"count": [9, np.nan]})
    np.testing.assert_array_equal(values, [[1.5, 9, 3], [1.5, np.nan, 3]])
    assert status == [["store", "request", "store"]] * 2


def test_what_the_store_does_not_know_of_is_asked_of_the_caller(registry, graphs, redis_url, serving, calling):
    """A column in no view must be sent; the message says which."""
    graphs.publish(registry, "copy", graphs.copy(4), columns=(*NAMES, "extra"), views=[view()])
    caller = calling(serving(features=redis_url))
    told = caller.client.predict("copy", entity_ids=["x"], overrides={"extra": [1.0]}, outputs=["y"])
    np.testing.assert_array_equal(told["y"], [[5, 7, np.nan, 1]])
    with pytest.raises(InvalidRequest, match="no feature view has 'extra': send it"):
        caller.client.predict("copy", entity_ids=["x"])


def test_two_views_of_one_entity_are_joined_in_one_vector(registry, graphs, redis_url, serving, calling):
    first = view()
    second = FeatureView(
        name="profile",
        entity="customer",
        columns=[Column(name="unused", dtype="int32"), Column(name="tier", dtype="int32", default=-1)],
        layout="hash",
    )
    graphs.publish(registry, "copy", graphs.copy(4), columns=("tier", *NAMES), views=[first, second])
    with closing(open_store(redis_url)) as store:
        store.put(first, [b"ada"], {"amount": np.ones(1), "count": np.array([2]), "age": np.array([3], "f4")})
        store.put(second, [b"ada"], {"unused": np.array([8], "i4"), "tier": np.array([9], "i4")})
    caller = calling(serving(features=redis_url))
    values, status = ask(caller, ["ada", "nobody"])
    np.testing.assert_array_equal(values, [[9, 1, 2, 3], [-1, 5, 7, np.nan]])
    assert status == [["store"] * 4, ["default", "default", "default", "missing"]]


SICK = ["refused", "black hole", "cut", "drip"]


def fall_ill(proxy, how):
    if how == "refused":
        proxy.refuse()
    else:
        proxy.mode = how


@pytest.mark.parametrize("how", SICK)
def test_an_outage_is_unavailable_in_time_and_over_once_the_store_is_back(joined, proxy, redis_url, eventually, how):
    caller = joined(proxy.url, view(), redis_url)
    assert eventually(lambda: well(caller)) == [[1.5, 2, 3]]
    fall_ill(proxy, how)
    for _ in range(8):
        started = time.monotonic()
        with pytest.raises(grpc.RpcError) as caught:
            entity_call(caller, "ada", timeout=5).result()
        assert time.monotonic() - started < 2
        assert caught.value.code() is Code.UNAVAILABLE
        assert "activity" in caught.value.details()
        assert "grpc-retry-pushback-ms" in dict(caught.value.trailing_metadata())
    sent = caller.answer(entity_call(caller, "ada", amount=1, count=2, age=3))
    assert sent.tolist() == [[1, 2, 3]]
    proxy.restore()
    assert eventually(lambda: well(caller)) == [[1.5, 2, 3]]


def well(caller):
    call = entity_call(caller, "ada", timeout=5)
    return None if call.exception() else caller.answer(call).tolist()


@pytest.mark.parametrize(
    ("policy", "values", "status"),
    [
        ("default", [[5, 7, np.nan]], [["default", "default", "missing"]]),
        ("nan", [[np.nan, np.nan, np.nan]], [["missing"] * 3]),
    ],
)
def test_an_outage_with_a_degraded_mode_is_answered_so(joined, proxy, redis_url, policy, values, status):
    caller = joined(proxy.url, view(on_outage=policy), redis_url)
    assert ask(caller, ["ada"])[1] == [["store"] * 3]
    proxy.refuse()
    told = ask(caller, ["ada"])
    np.testing.assert_array_equal(told[0], values)
    assert told[1] == status
    assert ask(caller, ["ada"], overrides={"count": [1]})[1][0][1] == "request"


def test_a_look_up_never_outlives_the_call(joined, proxy, redis_url):
    """Even where the operator allows a look-up more time than the caller has."""
    caller = joined(proxy.url, view(), redis_url, feature_timeout_ms=20_000)
    assert well(caller)
    proxy.mode = "black hole"
    started = time.monotonic()
    with pytest.raises(grpc.RpcError) as caught:
        entity_call(caller, "ada", timeout=0.5).result()
    assert time.monotonic() - started < 1
    assert caught.value.code() in {Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED}
    assert caller.answer(entity_call(caller, "ada", amount=1, count=2, age=3)).tolist() == [[1, 2, 3]]


def test_calls_that_send_every_value_are_untouched_by_an_outage_even_in_one_batch(joined, proxy, redis_url, gate):
    caller = joined(proxy.url, view(), redis_url, workers=1)
    gate.shut()
    first = entity_call(caller, "ada", amount=1, count=1, age=1)
    gate.entered()
    proxy.refuse()
    needy = entity_call(caller, "ada")
    whole = entity_call(caller, "bob", amount=7, count=8, age=9)
    vector = caller.send("copy", [[1.0, 2.0, 3.0]])
    gate.queued(3)
    gate.open()
    assert caller.answer(first).tolist() == [[1, 1, 1]]
    assert caller.answer(whole).tolist() == [[7, 8, 9]]
    assert caller.answer(vector).tolist() == [[1, 2, 3]]
    assert needy.exception().code() is Code.UNAVAILABLE
    assert gate.rows == [1, 3]


def test_a_caller_in_a_hurry_does_not_spoil_the_look_up_of_others(joined, proxy, redis_url, gate):
    """The store needs 150 ms; who has that much time gets the answer."""
    caller = joined(proxy.url, view(), redis_url, workers=1, feature_timeout_ms=5000)
    assert well(caller)
    gate.shut()
    first = entity_call(caller, "ada", amount=1, count=1, age=1)
    gate.entered()
    patient, hasty = entity_call(caller, "ada"), entity_call(caller, "bob", timeout=0.4)
    gate.queued(2)
    proxy.mode = "drip"  # 10 ms a byte, and two rows have over a hundred
    gate.open()
    assert caller.answer(first).tolist() == [[1, 1, 1]]
    assert hasty.exception().code() is Code.DEADLINE_EXCEEDED
    assert caller.answer(patient).tolist() == [[1.5, 2, 3]]


def test_a_server_starts_without_its_store_and_joins_once_that_is_there(joined, proxy, redis_url, eventually):
    proxy.refuse()
    caller = joined(proxy.url, view(), redis_url)
    assert caller.client.ready("copy")
    assert well(caller) is None
    proxy.restore()
    assert eventually(lambda: well(caller)) == [[1.5, 2, 3]]
