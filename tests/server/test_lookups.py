"""What stands before the store, through the server: rows kept near, rows computed on a miss, and what is counted."""

from __future__ import annotations

import sys
import threading
import time
import types
import uuid
from urllib.request import urlopen

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from penstock.errors import Unavailable
from penstock.features import Column, FeatureView, open_store

STATUS = "penstock.feature_status"
NAMES = ("amount", "count")


class Activity:
    """The function that computes rows; entities that begin with "no" it does not know."""

    def __init__(self) -> None:
        self.calls = []
        self.fails = False
        self.open = threading.Event()
        self.open.set()

    def __call__(self, entities):
        self.calls.append([*entities])
        assert self.open.wait(20)
        if self.fails:
            raise ValueError("no luck")
        known = [None if entity.startswith(b"no") else float(len(entity)) for entity in entities]
        return {"amount": known, "count": [value and 7 for value in known]}


@pytest.fixture
def activity(monkeypatch):
    activity = Activity()
    module = types.ModuleType("penstock_test_functions")
    module.activity = activity
    monkeypatch.setitem(sys.modules, module.__name__, module)
    yield activity
    activity.open.set()


@pytest.fixture
def served(registry, graphs, serving, calling):
    """Publishes `copy` over a view of a new store; client, store and address of metrics."""

    def start(settings, **fields):
        columns = [Column(name="amount", dtype="float64", default=5.0), Column(name="count", dtype="int64")]
        view = FeatureView(**{"name": "v", "entity": "id", "columns": columns} | fields)
        graphs.publish(registry, "copy", graphs.copy(2), columns=NAMES, views=[view])
        url = f"memory://{uuid.uuid4()}"
        addresses = serving(features=url, metrics="127.0.0.1:0", warmup_ms=0, **settings)
        return calling(addresses).client, open_store(url), view, addresses.metrics

    return start


def ask(client, ids, **more):
    told = client.predict("copy", entity_ids=ids, outputs=["y", STATUS], **more)
    return told["y"], [[text.decode() for text in row] for row in told[STATUS]]


def scrape(address):
    with urlopen(f"http://{address}/metrics") as answer:
        families = text_string_to_metric_families(answer.read().decode())
        samples = [sample for family in families for sample in family.samples]
    return {(s.name.removeprefix("penstock_"), *sorted(s.labels.values())): s.value for s in samples}


COMPUTING = {"functions": {"activity": "penstock_test_functions:activity"}}
COMPUTED = {"on_missing": "compute", "compute": "activity"}


def test_rows_of_hot_entities_come_from_this_process(served):
    client, store, view, metrics = served({"near_cache": {"max_age_s": 3600}})
    store.put(view, [b"a"], {"amount": [1.0], "count": [2]})
    assert ask(client, ["a", "b"])[1] == [["store"] * 2, ["default", "missing"]]
    store.put(view, [b"a", b"b"], {"amount": [8.0, 8.0], "count": [8, 8]})
    values, status = ask(client, ["b", "a"])
    np.testing.assert_array_equal(values, [[5, np.nan], [1, 2]])  # by age only: nothing is heard of the write
    assert status == [["default", "missing"], ["cache"] * 2]
    counted = scrape(metrics)
    assert counted["near_cache_rows_total", "hit"] == counted["near_cache_rows_total", "miss"] == 2
    assert 300 < counted["near_cache_bytes",] < 600
    assert counted["feature_rows_total", "1", "cached", "copy", "v"] == 1


def test_missing_rows_are_computed_told_and_kept(served, activity, eventually):
    client, store, view, metrics = served(COMPUTING, **COMPUTED)
    store.put(view, [b"a"], {"amount": [1.0], "count": [2]})
    values, status = ask(client, ["a", "bob", "nobody", "carol"])
    np.testing.assert_array_equal(values, [[1, 2], [3, 7], [5, np.nan], [5, 7]])
    assert status == [["store"] * 2, ["computed"] * 2, ["default", "missing"], ["computed"] * 2]
    assert activity.calls == [[b"bob", b"nobody", b"carol"]]
    eventually(lambda: None not in store.stored(view, [b"bob", b"carol"]))  # written once the callers are answered
    assert ask(client, ["carol", "bob"])[1] == [["store"] * 2] * 2
    counted = scrape(metrics)
    assert counted["compute_rows_total", "computed"] == 2
    assert counted["compute_rows_total", "unknown"] == 1
    assert counted["compute_calls_total",] == 1
    assert counted["feature_values_total", "1", "computed", "copy", "v"] == 4


def test_a_function_that_takes_too_long_is_an_outage_of_those_rows_only(served, activity):
    """In the time that the caller has."""
    client, store, view, _ = served(COMPUTING | {"compute_timeout_ms": 20_000}, on_outage="nan", **COMPUTED)
    store.put(view, [b"a"], {"amount": [1.0], "count": [2]})
    activity.open.clear()
    started = time.monotonic()
    values, status = ask(client, ["a", "bob"], timeout=0.5)
    assert time.monotonic() - started < 0.5
    np.testing.assert_array_equal(values, [[1, 2], [np.nan, np.nan]])
    assert status == [["store"] * 2, ["missing"] * 2]


def test_where_an_outage_is_an_error_a_function_that_fails_is_unavailable(served, activity, caplog):
    client, *_ = served(COMPUTING, **COMPUTED)
    activity.fails = True
    with pytest.raises(Unavailable, match="features of view 'v' are unavailable"):
        ask(client, ["bob"])
    assert "function 'activity' of view 'v' failed: ValueError: no luck" in caplog.text


def test_a_view_whose_function_nobody_named_is_not_served(registry, graphs, serving, calling, caplog):
    view = FeatureView(name="v", entity="id", columns=[Column(name="amount", dtype="float32")], **COMPUTED)
    graphs.publish(registry, "copy", graphs.copy(1), columns=["amount"], views=[view])
    serving(features="memory://")
    assert "computed by function 'activity': name it in the server's settings (functions: {activity: " in caplog.text
