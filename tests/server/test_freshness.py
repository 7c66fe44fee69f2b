"""Rows that are too old: what each policy answers, what callers are told, and what is counted."""

from __future__ import annotations

import time
import uuid
from urllib.request import urlopen

import numpy as np
import pytest
import redis
from prometheus_client.parser import text_string_to_metric_families

from penstock.errors import NotFound
from penstock.features import Column, FeatureView, open_store

STATUS = "penstock.feature_status"
NAMES = ("amount", "count")
HOUR_MS = 3_600_000


@pytest.fixture
def served(registry, graphs, serving, calling):
    """Publishes `copy` over a view, with rows of `fresh` (a minute old), `old` (3 hours) and `future`."""

    def start(**fields):
        columns = [Column(name="amount", dtype="float64", default=5.0), Column(name="count", dtype="int64")]
        view = FeatureView(**{"name": "v", "entity": "id", "columns": columns} | fields)
        graphs.publish(registry, "copy", graphs.copy(2), columns=NAMES, views=[view])
        url = f"memory://{uuid.uuid4()}"
        now = time.time_ns() // 1_000_000
        times = np.array([now - 60_000, now - 3 * HOUR_MS, now + HOUR_MS], np.int64)
        table = {"amount": np.array([1.0, 2.0, 3.0]), "count": np.array([10, 20, 30])}
        open_store(url).put(view, [b"fresh", b"old", b"future"], table, times)
        addresses = serving(features=url, metrics="127.0.0.1:0", warmup_ms=0)
        return calling(addresses).client, addresses.metrics

    return start


def ask(client, ids):
    told = client.predict("copy", entity_ids=ids, outputs=["y", STATUS])
    return told["y"], [[text.decode() for text in row] for row in told[STATUS]]


@pytest.mark.parametrize(
    ("policy", "values", "status"),
    [
        ("use", [2, 20], ["stale", "stale"]),
        ("default", [5, np.nan], ["default", "missing"]),
        ("nan", [np.nan, np.nan], ["missing", "missing"]),
    ],
)
def test_a_row_older_than_max_age_is_answered_as_the_view_says(served, policy, values, status):
    client, _ = served(max_age_s=3600, on_stale=policy)
    told, sources = ask(client, ["fresh", "old", "future", "nobody"])
    np.testing.assert_array_equal(told, [[1, 10], values, [3, 30], [5, np.nan]])
    assert sources == [["store"] * 2, status, ["store"] * 2, ["default", "missing"]]


def test_without_a_max_age_the_oldest_row_is_good(served):
    told, sources = ask(served()[0], ["old"])
    assert told.tolist() == [[2, 20]]
    assert sources == [["store"] * 2]


def test_on_stale_error_refuses_the_call_and_says_how_old(served):
    client, _ = served(max_age_s=3600, on_stale="error")
    assert ask(client, ["fresh"])[0].tolist() == [[1, 10]]
    with pytest.raises(NotFound, match=r"view 'v': features of id 'old' are 1080\d s old, more than 3600 s"):
        ask(client, ["old"])


HASHED = {"layout": "hash", "time_field": "updated", "max_age_s": 3600}


def test_a_hash_is_fresh_by_the_field_that_has_its_event_time(served):
    client, _ = served(**HASHED, on_stale="default")
    told, sources = ask(client, ["fresh", "old", "future", "nobody"])
    np.testing.assert_array_equal(told, [[1, 10], [5, np.nan], [3, 30], [5, np.nan]])
    assert sources == [["store"] * 2, ["default", "missing"], ["store"] * 2, ["default", "missing"]]


@pytest.fixture
def timeless(registry, graphs, serving, calling, redis_url):
    """The same, where somebody else writes the hash of `timeless`, in seconds."""

    def start(policy):
        columns = [Column(name="amount", dtype="float64", default=5.0), Column(name="count", dtype="int64")]
        view = FeatureView(**{"name": "v", "entity": "id", "columns": columns, "on_stale": policy} | HASHED)
        graphs.publish(registry, "copy", graphs.copy(2), columns=NAMES, views=[view])
        with redis.Redis.from_url(redis_url) as client:
            client.hset("features:timeless", mapping={"amount": 1, "count": 2, "updated": int(time.time())})
        return calling(serving(features=redis_url, warmup_ms=0)).client

    return start


def test_a_hash_without_an_event_time_is_stale_for_nobody_can_tell_that_it_is_not(timeless):
    told, sources = ask(timeless("use"), ["timeless"])
    assert (told.tolist(), sources) == ([[1, 2]], [["stale", "stale"]])


def test_a_hash_without_an_event_time_is_refused_with_the_reason(timeless):
    with pytest.raises(NotFound, match="of id 'timeless' are without an event time, perhaps more than 3600 s old"):
        ask(timeless("error"), ["timeless"])


def test_a_stale_row_is_not_taken_for_a_missing_one(served):
    """`on_stale: nan` answers although `on_missing: error` would not."""
    client, _ = served(max_age_s=3600, on_stale="nan", on_missing="error")
    assert np.isnan(ask(client, ["old"])[0]).all()
    with pytest.raises(NotFound, match="no features of id 'nobody'"):
        ask(client, ["nobody"])


def scrape(address, view):
    with urlopen(f"http://{address}/metrics") as answer:
        families = text_string_to_metric_families(answer.read().decode())
        samples = [sample for family in families for sample in family.samples]
    found = {}
    for sample in samples:
        labels = {name: value for name, value in sample.labels.items() if name not in {"model", "version"}}
        if labels.pop("view", None) == view:
            found[sample.name.removeprefix("penstock_feature_"), tuple(labels.values())] = sample.value
    return found


def test_rows_values_flaws_and_ages_are_counted_by_view_and_feature(served):
    client, metrics = served(max_age_s=3600, on_stale="default")
    ask(client, ["fresh", "old", "future", "nobody", "fresh"])
    counted = scrape(metrics, "v")
    rows = {labels[0]: value for (name, labels), value in counted.items() if name == "rows_total" and value}
    assert rows == {"found": 2, "stale": 1, "absent": 1}  # each entity once
    values = {labels[0]: value for (name, labels), value in counted.items() if name == "values_total" and value}
    assert values == {"store": 6, "default": 2, "missing": 2}
    flaws = {labels: value for (name, labels), value in counted.items() if name == "flaws_total" and value}
    assert flaws == {("amount", "default"): 2, ("count", "missing"): 2}
    ages = {labels[0]: value for (name, labels), value in counted.items() if name == "age_seconds_bucket"}
    assert [ages[bound] for bound in ("1", "60", "300", "3600", "21600", "+Inf")] == [1, 1, 2, 2, 3, 3]
    assert counted["age_seconds_sum", ()] == pytest.approx(3 * 3600 + 60, abs=20)
