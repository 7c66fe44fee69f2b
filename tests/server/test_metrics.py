"""What a scrape tells: exact counts, true histograms, and drift as `penstock drift status` and scipy have it."""

from __future__ import annotations

import json
import subprocess
import sys
from urllib.request import urlopen

import numpy as np
import pytest
import redis
from prometheus_client.parser import text_string_to_metric_families
from scipy.special import rel_entr

from penstock.features import Column, FeatureView
from penstock.monitoring import Profile, Reference
from penstock.registry import Score

NAMES = ("amount", "count")
RESULTS = ("hit", "miss", "passed")


@pytest.fixture
def reference():
    rng = np.random.default_rng(2)
    matrix = np.column_stack([rng.exponential(100, 4000), rng.integers(0, 5, 4000)]).astype(np.float32)
    matrix[::50, 0] = np.nan
    score = np.nan_to_num(matrix).sum(axis=1, keepdims=True)
    return matrix, score


@pytest.fixture
def served(registry, graphs, serving, calling, reference):
    """A version with a drift reference over 2 columns, and its metrics page."""
    matrix, score = reference
    profile = Reference(features=Profile.of(matrix, NAMES), score=Profile.of(score, ("score",)))
    files, watched = {"profile.json": profile.to_json()}, Score(output="score")
    view = FeatureView(name="v", entity="id", columns=[Column(name=n, dtype="float32") for n in NAMES])
    graphs.publish(registry, "copy", graphs.copy(2), columns=NAMES, views=[view], files=files, score=watched)
    graphs.publish(registry, "fragile", graphs.reciprocal())
    addresses = serving(metrics="127.0.0.1:0", features="memory://", drift_window_s=3600)
    return calling(addresses), lambda: scrape(addresses.metrics), profile


def scrape(address):
    """Samples by name and labels, and the types of the families."""
    with urlopen(f"http://{address}/metrics") as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    samples = {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}
    return samples, {family.name: family.type for family in families}


def value(samples, metric, model="copy", **labels):
    return samples[metric, frozenset({"model": model, "version": "1", **labels}.items())]


def test_a_cache_is_counted_where_there_is_one(registry, graphs, serving, calling):
    for name in ("copy", "other"):
        graphs.publish(registry, name, graphs.copy(2))
    addresses = serving(metrics="127.0.0.1:0", cache={"copy": {"bytes": 1 << 20}})
    caller = calling(addresses)
    for values in ([1.0, 2.0], [3.0, 4.0], [1.0, 2.0]):
        caller.client.predict("copy", [values])
    samples, types = scrape(addresses.metrics)
    told = {result: value(samples, "penstock_cache_requests_total", result=result) for result in RESULTS}
    assert told == {"hit": 1, "miss": 2, "passed": 0}
    assert value(samples, "penstock_cache_kept_total") == value(samples, "penstock_cache_entries") == 2
    assert value(samples, "penstock_cache_removed_total", reason="evicted") == 0
    assert 200 < value(samples, "penstock_cache_bytes") < 2000
    assert value(samples, "penstock_requests_total", result="succeeded") == 3
    assert value(samples, "penstock_rows_total") == 2
    assert types["penstock_cache_bytes"] == "gauge"
    assert ("penstock_cache_entries", frozenset({"model": "other", "version": "1"}.items())) not in samples


def test_what_servers_share_is_counted_where_they_do(registry, graphs, serving, calling, redis_url, eventually):
    for name in ("copy", "other"):
        graphs.publish(registry, name, graphs.copy(2))
    settings = {"copy": {"shared": redis_url, "shared_timeout_ms": 2000}, "other": {}}
    first, second = (serving(metrics="127.0.0.1:0", cache=settings) for _ in range(2))

    def told(metric, addresses=first, **labels):
        return value(scrape(addresses.metrics)[0], f"penstock_cache_shared_{metric}_total", **labels)

    with redis.Redis.from_url(redis_url) as client:
        calling(first).client.predict("copy", [[1.0, 2.0]])
        eventually(lambda: told("written") == 1)
        assert told("written_bytes") == client.strlen(client.keys()[0])
        calling(second).client.predict("copy", [[1.0, 2.0]])
    samples, types = scrape(second.metrics)
    for result, count in {"hit": 1, "miss": 0, "unasked": 0}.items():
        assert told("requests", second, result=result) == count
    for step in ("read", "write"):
        assert told("errors", second, step=step) == 0
    assert told("corrupt", second) == told("unwritten", second) == 0
    assert told("requests", result="miss") == 1
    assert types["penstock_cache_shared_requests"] == "counter"
    labels = frozenset({"model": "other", "version": "1", "result": "hit"}.items())
    assert ("penstock_cache_shared_requests_total", labels) not in samples


def test_counters_are_exact(served, caplog):
    caller, read, _ = served
    for rows in (1, 2, 3):
        caller.client.predict("copy", np.ones((rows, 2), np.float32))
    caller.client.predict("copy", entity_ids=["a", "b"], overrides={"amount": [1.0, 2.0]})
    for bad in ([[1.0]], [[1, 2]]):
        assert caller.send("copy", bad).exception()
    assert caller.send("fragile", [[0]]).exception()
    samples, kinds = read()
    results = {"succeeded": 4, "invalid": 2, "failed": 0, "refused": 0, "too_late": 0, "expired": 0, "cancelled": 0}
    for result, count in results.items():
        assert value(samples, "penstock_requests_total", result=result) == count, result
    assert value(samples, "penstock_requests_total", "fragile", result="failed") == 1
    assert value(samples, "penstock_rows_total") == 8
    assert value(samples, "penstock_batches_total") == 4
    assert value(samples, "penstock_batches_total", "fragile") == 0
    assert value(samples, "penstock_queue_rows") == 0
    assert value(samples, "penstock_queue_bytes") == 0
    name, sources = "penstock_feature_values_total", ("store", "missing")
    assert {source: value(samples, name, view="v", source=source) for source in sources} == {"store": 0, "missing": 2}
    assert value(samples, "penstock_feature_outages_total") == 0
    digest = caller.client.config("copy").parameters["penstock.digest"].removeprefix("sha256:")
    assert value(samples, "penstock_model_info", digest=digest) == 1
    assert kinds["penstock_requests"] == "counter"
    assert kinds["penstock_request_duration_seconds"] == "histogram"


def test_histograms_are_cumulative_and_agree_with_their_count_and_sum(served):
    caller, read, _ = served
    for rows in range(1, 101):
        caller.client.predict("copy", np.ones((rows, 2), np.float32))
    samples, _ = read()
    seen = 0
    for family, phases in (
        ("penstock_request_duration_seconds", ("total", "queue")),
        ("penstock_batch_duration_seconds", ("lookup", "compute", "encode")),
    ):
        for phase in phases:
            mine = {"model": "copy", "version": "1", "phase": phase}.items()
            buckets = sorted(
                (float(dict(labels)["le"]), count)
                for (name, labels), count in samples.items()
                if name == f"{family}_bucket" and mine <= dict(labels).items()
            )
            bounds, counts = np.array(buckets).T
            assert np.isinf(bounds[-1])
            assert (np.diff(counts) >= 0).all()
            assert counts[-1] == value(samples, f"{family}_count", phase=phase) == 100
            total = value(samples, f"{family}_sum", phase=phase)
            per_bucket = np.diff(counts, prepend=0)
            low = (per_bucket * np.concatenate([[0], bounds[:-1]])).sum()
            high = (per_bucket[:-1] * bounds[:-1]).sum() if per_bucket[-1] == 0 else np.inf
            assert low <= total <= high, (phase, low, total, high)
            seen += 1
    assert seen == 5


def test_drift_gauges_are_what_the_command_prints_and_what_scipy_says_of_the_same_bins(served):
    caller, read, profile = served
    rng = np.random.default_rng(8)
    rows = np.column_stack([rng.exponential(160, 900), rng.integers(0, 5, 900)]).astype(np.float32)
    rows[::10, 0] = np.nan
    for part in np.array_split(rows, 7):
        caller.client.predict("copy", part)
    command = ["drift", "status", "copy", "--server", caller.client.address, "--current", "--json"]
    printed = subprocess.run(
        [sys.executable, "-m", "penstock.cli", *command], capture_output=True, text=True, check=True, timeout=60
    )
    (told,) = json.loads(printed.stdout)
    samples, _ = read()
    assert told["rows"] == value(samples, "penstock_drift_window_rows") == 900
    score = rows.sum(axis=1, keepdims=True)
    columns = {**dict(zip(NAMES, rows.T, strict=True)), "score": score[:, 0]}
    printed_features = {entry["name"]: entry for entry in [*told["features"], told["score"]]}
    for name, values in columns.items():
        entry, label = printed_features[name], "penstock.score" if name == "score" else name
        for statistic in ("ks", "kl", "psi", "missing_current"):
            assert value(samples, f"penstock_drift_{statistic}", feature=label) == entry[statistic]
        expected = by_scipy(profile.score if name == "score" else profile.features, name, values)
        for statistic, number in expected.items():
            assert entry[statistic] == pytest.approx(number, rel=1e-12, abs=1e-15), (name, statistic)
    assert printed_features["amount"]["psi"] > 5 * printed_features["count"]["psi"]


def by_scipy(profile, name, values):
    """The same statistics from scipy and numpy over the reference's bins."""
    column = profile.columns[profile.names.index(name)]
    before = np.array(column.counts, float)
    present = values[~np.isnan(values)]
    after = np.bincount(np.searchsorted(column.edges, present, side="left"), minlength=len(before) - 1).astype(float)
    shares = [counts / counts.sum() for counts in (before[:-1], after)]
    p, q = [(counts + 0.5) / (counts + 0.5).sum() for counts in (after, before[:-1])]
    return {
        "ks": np.abs(np.cumsum(shares[0]) - np.cumsum(shares[1])).max(),
        "kl": rel_entr(p, q).sum(),
        "psi": (rel_entr(p, q) + rel_entr(q, p)).sum(),
        "missing_current": np.isnan(values).mean(),
        "missing_reference": before[-1] / before.sum(),
    }


def test_refused_rows_and_rows_of_an_outage_are_not_counted_as_drift(
    registry, graphs, serving, calling, proxy, reference
):
    profile = Reference(features=Profile.of(reference[0], NAMES))
    view = FeatureView(name="v", entity="id", columns=[Column(name=n, dtype="float32") for n in NAMES], on_outage="nan")
    files = {"profile.json": profile.to_json()}
    graphs.publish(registry, "copy", graphs.copy(2), columns=NAMES, views=[view], files=files)
    caller = calling(serving(features=proxy.url))
    proxy.refuse()
    assert np.isnan(caller.client.predict("copy", entity_ids=["a"])["y"]).all()
    (drift,) = caller.client.drift("copy", current=True)
    assert drift.rows == 0
    caller.client.predict("copy", [[1.0, 2.0]])
    (drift,) = caller.client.drift("copy", current=True)
    assert drift.rows == 1


@pytest.mark.parametrize("transport", ["native", "grpcio"])
def test_the_native_transport_tells_what_its_connections_do(registry, graphs, serving, calling, transport):
    if transport == "native":
        pytest.importorskip("penstock.kernels.http2", reason="this build has no native transport")
    graphs.publish(registry, "copy", graphs.copy(2))
    addresses = serving(metrics="127.0.0.1:0", transport=transport)
    caller = calling(addresses)
    for _ in range(5):
        caller.answer(caller.send("copy", [[1.0, 2.0]]))
    assert caller.send("copy", [[1.0]]).exception()
    samples, kinds = scrape(addresses.metrics)
    told = {name.removeprefix("penstock_transport_"): count for (name, labels), count in samples.items() if not labels}
    if transport == "grpcio":
        assert not any("transport" in name for name in kinds)
        return
    assert (told["inferences_total"], told["exchanges_total"]) == (5, 1), "what does not fit needs words"
    assert told["connections"] == told["accepted_total"] == 1
    assert told["calls_in_lanes"] == told["over_budget_total"] == told["refused_total"] == 0
    families = {name: kind for name, kind in kinds.items() if name.startswith("penstock_transport_")}
    assert families.pop("penstock_transport_inferences") == "counter"
    assert families.pop("penstock_transport_bytes") == "gauge"
    assert len(families) == 11
