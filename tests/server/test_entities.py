"""Views of several entities in one model: each row is joined by the parts of its id that each view's keys are."""

from __future__ import annotations

import sys
import time
import types
from contextlib import closing
from urllib.request import urlopen

import grpc
import numpy as np
import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from sklearn.linear_model import LogisticRegression

from penstock.client import Client
from penstock.converters import convert
from penstock.errors import InvalidRequest, NotFound, PenstockError, Unavailable
from penstock.features import Column, FeatureView, entity_key, open_store
from penstock.features.offline import OfflineStore, join
from penstock.features.offline.check import check
from penstock.proto import inference_pb2 as pb
from penstock.server.config import Config
from penstock.server.plans import keys_of
from penstock.server.testing import running

STATUS = "penstock.feature_status"
NAMES = ("total", "rate", "paid", "visits", "extra")
NAN = float("nan")


def customer(**fields):
    columns = [Column(name="total", dtype="float64", default=-1), Column(name="visits", dtype="int64")]
    return FeatureView(**{"name": "customer", "entity": "c", "columns": columns} | fields)


def merchant(**fields):
    columns = [Column(name="rate", dtype="float32", default=-2), Column(name="unread", dtype="int32")]
    return FeatureView(**{"name": "merchant", "entity": "m", "columns": columns} | fields)


def pair(**fields):
    """Of the same two entities together, written the other way round."""
    return FeatureView(
        **{"name": "pair", "entity": ("m", "c"), "columns": [Column(name="paid", dtype="float32", default=-3)]} | fields
    )


@pytest.fixture(params=["native", "grpcio"])
def transport(request):
    if request.param == "native":
        pytest.importorskip("penstock.kernels.http2")
    return request.param


@pytest.fixture
def served(registry, graphs, serving, calling, redis_url):
    """Publishes `copy` over views, serves it, and gives the caller, an open store and the address of metrics."""
    store = open_store(redis_url)

    def start(views, columns=NAMES[:4], url=redis_url, **options):
        graphs.publish(registry, "copy", graphs.copy(len(columns)), columns=columns, views=views)
        store.apply(views)
        options = {"feature_timeout_ms": 500, "warmup_ms": 0} | options
        addresses = serving(features=url, **options)
        return calling(addresses), store, addresses.metrics

    with closing(store):
        yield start


def fill(store):
    """Two customers, two merchants, and what one of each did together."""
    store.put("customer", ["ada", "bob"], {"total": [1.5, 2.5], "visits": [1, None]})
    store.put("merchant", [7, "x|y"], {"rate": [0.25, 0.75], "unread": [0, 0]})
    store.put("pair", [(7, "ada")], {"paid": [99]})


def ask(caller, ids, **more):
    told = caller.client.predict("copy", entity_ids=ids, outputs=["y", STATUS], **more)
    return told["y"].tolist(), [[text.decode() for text in row] for row in told[STATUS]]


def scrape(address, prefix):
    with urlopen(f"http://{address}/metrics") as answer:
        families = text_string_to_metric_families(answer.read().decode())
        samples = [sample for family in families for sample in family.samples if sample.name == f"penstock_{prefix}"]
    return {(s.labels["view"], s.labels["result"]): s.value for s in samples if s.value}


@pytest.mark.parametrize("layout", ["row", "hash"])
def test_each_view_is_looked_up_by_its_own_parts(served, transport, layout):
    caller, store, _ = served([customer(layout=layout), merchant(), pair()], transport=transport)
    fill(store)
    assert caller.client.config("copy").entity == "c|m"
    assert caller.client.config("copy").entity_keys == ("c", "m")
    ids = [("ada", 7), ("ada", "x|y"), ("bob", 7), ("carol", 8)]
    values, status = ask(caller, ids)
    np.testing.assert_array_equal(
        values, [[1.5, 0.25, 99, 1], [1.5, 0.75, -3, 1], [2.5, 0.25, -3, NAN], [-1, -2, -3, NAN]]
    )
    assert status[0] == ["store"] * 4
    assert status[1] == ["store", "store", "default", "store"]
    assert status[3] == ["default"] * 3 + ["missing"]
    np.testing.assert_array_equal(ask(caller, [entity_key(one) for one in ids])[0], values)
    by_key = {"m": [one[1] for one in ids], "c": [one[0] for one in ids]}
    np.testing.assert_array_equal(ask(caller, by_key)[0], values)


PART = st.text(alphabet="ab|\\é", min_size=1, max_size=3)
NUMBER = st.none() | st.integers(-5, 5).map(float)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_view_of_every_row_is_what_a_look_up_of_its_own_parts_gives(oracle, data):
    """Views of one entity, of two, and of one in the hash layout, over ids that share parts or hold bars."""
    caller, views = oracle
    parts = data.draw(st.lists(PART, min_size=1, max_size=4, unique=True))
    part = st.sampled_from(parts)
    with closing(open_store(caller.url)) as store:
        for view in views:
            ids = data.draw(st.lists(st.tuples(*[part for _ in view.entity_keys]), unique=True, max_size=4))
            columns = {c.name: [data.draw(NUMBER) for _ in ids] for c in view.columns}
            store.put(view, ids, columns, overwrite=True)
        rows = data.draw(st.lists(st.tuples(part, part, part), min_size=1, max_size=6))
        wanted = {name: np.full(len(rows), NAN) for name in NAMES}
        for view in views:
            own = [tuple(row["abc".index(key)] for key in view.entity_keys) for row in rows]
            wanted |= dict(zip(view.feature_names, store.get(view, own).matrix().T, strict=True))
    sent = data.draw(st.none() | st.lists(st.integers(0, 9), min_size=len(rows), max_size=len(rows)))
    overrides = {} if sent is None else {"paid": np.array(sent, np.float32)}
    ids = [(b, c, a) for a, b, c in rows]  # the order of the model's keys
    told = caller.client.predict("copy", entity_ids=ids, overrides=overrides)
    wanted |= overrides
    np.testing.assert_array_equal(told["y"], np.array([wanted[name] for name in NAMES], np.float32).T)


@pytest.fixture
def oracle(served, redis_url):
    """A caller, and the views of its model."""

    def view(name, entity, *columns, **fields):
        made = [Column(name=c, dtype="float64", default=i or None) for i, c in enumerate(columns)]
        return FeatureView(name=name, entity=entity, columns=made, **fields)

    views = [
        view("first", "b", "total"),
        view("second", ("c", "a"), "rate", "paid"),
        view("third", ("b", "c"), "visits", layout="hash"),
        view("fourth", ("b", "c", "a"), "extra"),
    ]
    caller, _, _ = served(views, NAMES)
    assert caller.client.config("copy").entity_keys == ("b", "c", "a")
    caller.url = redis_url
    return caller, views


def test_each_entity_of_a_batch_is_looked_up_once_and_all_in_one_round_trip(served, redis_url):
    caller, store, metrics = served([customer(), merchant(), pair()], metrics="127.0.0.1:0")
    fill(store)
    with redis.Redis.from_url(redis_url) as client:
        client.config_resetstat()
        ask(caller, [("ada", 7), ("bob", 7), ("ada", 8), ("ada", 7)])
        asked = client.info("commandstats")
    assert asked["cmdstat_mget"]["calls"] == 1
    counted = scrape(metrics, "feature_rows_total")
    assert counted["customer", "found"] == 2
    assert (counted["merchant", "found"], counted["merchant", "absent"]) == (1, 1)
    assert (counted["pair", "found"], counted["pair", "absent"]) == (1, 2)


def entity_call(caller, *texts, datatype="BYTES"):
    request = pb.ModelInferRequest(model_name="copy")
    tensor = request.inputs.add(name="c|m", datatype=datatype, shape=[len(texts)])
    values = tensor.contents.int64_contents if datatype == "INT64" else tensor.contents.bytes_contents
    values.extend(texts)
    request.outputs.add(name="y")
    return caller.stub.ModelInfer.future(request, timeout=20)


UNFIT = [b"ada", b"ada|7|x", b"ada|", b"|7", b"", b"ada\\|7", b"ada|7\\"]


def test_ids_of_another_number_of_parts_are_refused_and_told_the_keys(served, gate):
    views = [customer(on_stale="error", max_age_s=9), merchant(on_missing="error")]
    caller, store, _ = served(views, NAMES[:2], workers=1)
    fill_two(store)
    gate.shut()
    first = entity_call(caller, b"ada|7")
    gate.entered()
    calls = [entity_call(caller, b"ada|7", one) for one in UNFIT]
    calls += [entity_call(caller, 7, datatype="INT64"), entity_call(caller, b"bob|7")]
    gate.queued(2 * len(UNFIT) + 2)
    gate.open()
    assert caller.answer(first).tolist() == [[1.5, 0.25]]
    for call in calls[:-1]:
        with pytest.raises(grpc.RpcError) as caught:
            call.result()
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "does not have 2 parts joined by '|', none of them empty: c|m" in caught.value.details()
    assert caller.answer(calls[-1]).tolist() == [[2.5, 0.25]]
    assert gate.rows == [1, 2 * len(UNFIT) + 2]  # one batch, and its good call was answered from it
    with pytest.raises(InvalidRequest, match="entity id 'nobody' does not have 2 parts"):
        ask(caller, ["nobody"])  # and where no id is left to look up
    sent = caller.client.predict("copy", entity_ids=["nobody"], overrides={"total": [1], "rate": [2]})
    assert sent["y"].tolist() == [[1, 2]]  # nothing is looked up, so no id is needed


def fill_two(store):
    store.put("customer", ["ada", "bob"], {"total": [1.5, 2.5], "visits": [1, None]})
    store.put("merchant", [7], {"rate": [0.25], "unread": [0]})


def test_an_entity_of_several_keys_alone_refuses_them_too(served):
    caller, store, _ = served([pair()], ("paid",))
    store.put("pair", [("7", "ada")], {"paid": [99]})
    assert ask(caller, ["7|ada", "7|bob"])[0] == [[99], [-3]]
    with pytest.raises(InvalidRequest, match=r"does not have 2 parts .*: m\|c"):
        ask(caller, ["7"])


def test_refusals_name_the_entity_that_is_missing(served):
    caller, store, _ = served([customer(on_missing="error"), merchant(on_missing="error")], NAMES[:2])
    fill_two(store)
    assert ask(caller, [("ada", 7)])[0] == [[1.5, 0.25]]
    with pytest.raises(NotFound, match="view 'merchant' has no features of m '8'"):
        ask(caller, [("ada", 8)])
    with pytest.raises(NotFound, match="view 'customer' has no features of c 'eve'"):
        ask(caller, [("eve", 7)])


def test_hot_entities_are_kept_each_by_its_own_id(served):
    kept = {"near_cache": {"max_age_s": 3600}}
    caller, store, metrics = served([customer(), merchant()], NAMES[:2], metrics="127.0.0.1:0", **kept)
    fill_two(store)
    ask(caller, [("ada", 7)])
    values, status = ask(caller, [("ada", 8), ("bob", 7)])
    assert values == [[1.5, -2], [2.5, 0.25]]
    assert status == [["cache", "default"], ["store", "cache"]]
    counted = scrape(metrics, "feature_rows_total")
    assert counted["customer", "cached"] == counted["merchant", "cached"] == 1


def test_missing_entities_are_computed_each_by_its_own_id(served, monkeypatch, eventually):
    calls = []
    module = types.ModuleType("penstock_test_several")

    def rates(entities):
        calls.append([*entities])
        return {"rate": [float(len(one)) for one in entities], "unread": [1 for _ in entities]}

    module.rates = rates
    monkeypatch.setitem(sys.modules, module.__name__, module)
    views = [customer(), merchant(on_missing="compute", compute="rates")]
    caller, store, _ = served(views, NAMES[:2], functions={"rates": "penstock_test_several:rates"})
    fill_two(store)
    values, status = ask(caller, [("ada", "new|1"), ("bob", "new|1"), ("bob", 7)])
    assert values == [[1.5, 5], [2.5, 5], [2.5, 0.25]]
    assert status == [["store", "computed"]] * 2 + [["store", "store"]]
    assert calls == [[b"new|1"]]
    eventually(lambda: ask(caller, [("eve", "new|1")])[1] == [["default", "store"]])  # once it is written back


def test_while_the_store_is_away_each_view_does_what_it_says(served, proxy):
    """Rows that are kept near are given still, whoever they are asked for together with."""
    views = [customer(on_outage="default"), merchant(on_outage="error")]
    caller, store, _ = served(views, NAMES[:2], proxy.url, near_cache={"max_age_s": 3600})
    fill_two(store)
    ask(caller, [("ada", 7)])
    proxy.refuse()
    values, status = ask(caller, [("nobody", 7), ("ada", 7)])
    assert values == [[-1, 0.25], [1.5, 0.25]]
    assert status == [["default", "cache"], ["cache", "cache"]]
    with pytest.raises(Unavailable, match="features of view 'merchant' are unavailable"):
        ask(caller, [("ada", 8)])


def test_a_row_too_old_is_that_of_its_own_entity(served):
    caller, store, _ = served([customer(max_age_s=60, on_stale="error"), merchant()], NAMES[:2])
    fill_two(store)
    now = time.time_ns() // 1_000_000
    store.put("customer", ["old"], {"total": [5], "visits": [5]}, [now - 100_000])
    assert ask(caller, [("ada", 7)])[0] == [[1.5, 0.25]]
    with pytest.raises(NotFound, match=r"view 'customer': features of c 'old' are 10\d s old"):
        ask(caller, [("old", 7)])


def test_versions_that_were_published_before_take_the_ids_of_their_one_entity(registry, graphs):
    graphs.publish(registry, "copy", graphs.copy(1), columns=("paid",), views=[pair()])
    graphs.publish(registry, "copy", graphs.copy(1), columns=("rate",), views=[merchant()])
    first, second = (registry.load("copy", version).manifest for version in (1, 2))
    assert (first.format, first.signature.entity_keys, keys_of(first)) == (1, (), ("m", "c"))
    assert (second.format, keys_of(second)) == (1, ("m",))
    signature = second.signature.model_copy(update={"entity_keys": ("c", "x")})
    with pytest.raises(PenstockError, match=r"view 'merchant' is of m, and its entity ids of c\|x"):
        keys_of(second.model_copy(update={"signature": signature}))


# From history to a served model -----------------------------------------------------------------------------------


@pytest.fixture
def known(redis_url, tmp_path):
    """What 20 customers and 5 merchants did until an hour ago, in Redis and in the history; the history."""
    random, at = np.random.default_rng(3), time.time_ns() // 1_000_000 - 3_600_000
    tables = [
        (customer(), {"c": [f"c{i}" for i in range(20)], "total": random.normal(size=20), "visits": np.arange(20)}),
        (merchant(), {"m": np.arange(5), "rate": random.random(5).astype("f4"), "unread": np.zeros(5, "i4")}),
    ]
    offline = OfflineStore(tmp_path / "history")
    with closing(open_store(redis_url)) as online:
        for view, table in tables:
            times = np.full(len(table[view.entity]), at)
            offline.write(view, table | {"event_time": times}, created="event_time")
            columns = {name: values for name, values in table.items() if name != view.entity}
            online.put(view, table[view.entity], columns, times)
    return offline


def test_a_model_trained_on_the_join_of_two_entities_is_served_the_same_rows(known, redis_url, tmp_path):
    """Strangers among them; and what was served is what the history has."""
    random = np.random.default_rng(4)
    pairs = [(f"c{i}", int(j)) for i, j in zip(random.integers(0, 22, 200), random.integers(0, 6, 200), strict=True)]
    labels = {"c": [c for c, _ in pairs], "m": [m for _, m in pairs], "at": np.full(200, time.time_ns() // 1_000_000)}
    views = [customer(), merchant()]
    frame = join(labels, views, known, time="at").select(["total", "rate"]).to_pandas()
    fitted = LogisticRegression().fit(frame, frame["total"] + frame["rate"] > 0)
    convert(fitted, "risk", frame, registry=tmp_path / "registry", views=views)
    config = Config(
        registry=tmp_path / "registry",
        grpc="127.0.0.1:0",
        metrics="off",
        features=redis_url,
        sample_served={"path": tmp_path / "sample", "rate": 1},
    )
    with running(config) as addresses, Client(addresses.grpc) as client:
        told = client.predict("risk", entity_ids=pairs, outputs=["probabilities", "penstock.features"])
    np.testing.assert_array_equal(told["penstock.features"], frame.to_numpy())
    np.testing.assert_allclose(told["probabilities"], fitted.predict_proba(frame), atol=1e-5)
    report = check(tmp_path / "sample", known)
    assert (report.rows, report.compared, report.share) == (200, 400, 0)
