"""Metrics of features: what look-ups gave, by view and feature, and how old rows were. Read at each scrape."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from penstock.features.computing import Computing
from penstock.features.near import NearCache
from penstock.kernels import joins, rows
from penstock.server.lookups import Lookups
from penstock.server.tallies import AGES_S, Tally
from penstock.server.version import Served

STORE_GAUGES = {
    "servers": ("penstock_feature_store_servers", "Servers of the feature store that were asked"),
    "shunned": ("penstock_feature_store_shunned", "Of those, servers not asked now, for they failed a moment ago"),
}
STORE_COUNTERS = {
    "outages": ("penstock_feature_store_outages", "Times that a server began to be shunned"),
    "connections": ("penstock_feature_store_connections", "Connections opened"),
}
COMPUTING = ("computed", "unknown", "shared", "remembered", "late", "refused")
VIEW = ("model", "version", "view")
RESULTS = {
    "found": rows.ROW_OK,
    "cached": joins.ROW_CACHED,
    "computed": joins.ROW_COMPUTED,
    "stale": joins.ROW_STALE,
    "absent": rows.ROW_ABSENT,
    "schema": rows.ROW_SCHEMA,
    "corrupt": rows.ROW_CORRUPT,
    "lost": joins.ROW_LOST,
}
SOURCES = {
    "store": joins.SOURCE_STORE,
    "cache": joins.SOURCE_CACHE,
    "computed": joins.SOURCE_COMPUTED,
    "stale": joins.SOURCE_STALE,
    "default": joins.SOURCE_DEFAULT,
    "missing": joins.SOURCE_MISSING,
}
FLAWS = ("stale", "default", "missing")  # of these alone each feature has its own series


class LookupCollector(Collector):
    """Reads the counters of what stands between versions and the store, and of the store."""

    def __init__(self, lookups: Lookups) -> None:
        self._lookups = lookups

    def collect(self) -> Iterable[Metric]:
        """All metrics, at this moment."""
        counts = self._lookups.store.snapshot()
        if counts:
            yield from (GaugeMetricFamily(*told, counts[name]) for name, told in STORE_GAUGES.items())
            yield from (CounterMetricFamily(*told, counts[name]) for name, told in STORE_COUNTERS.items())
        if self._lookups.near is not None:
            yield from _near(self._lookups.near)
        if self._lookups.computing is not None:
            yield from _computing(self._lookups.computing)


def _near(near: NearCache) -> Iterator[Metric]:
    rows = CounterMetricFamily("penstock_near_cache_rows", "Rows asked for, by what it had", labels=["result"])
    rows.add_metric(["hit"], near.counts.hits)
    rows.add_metric(["miss"], near.counts.misses)
    gone = CounterMetricFamily("penstock_near_cache_removed", "Rows let go of, by why", labels=["reason"])
    gone.add_metric(["evicted"], near.counts.evicted)
    gone.add_metric(["expired"], near.counts.expired)
    yield from (rows, gone, GaugeMetricFamily("penstock_near_cache_bytes", "Bytes of its rows", near.bytes))


def _computing(computing: Computing) -> Iterator[Metric]:
    counts = computing.counts
    rows = CounterMetricFamily("penstock_compute_rows", "Rows missed, by what came of them", labels=["result"])
    for result in COMPUTING:
        rows.add_metric([result], getattr(counts, result))
    yield rows
    yield CounterMetricFamily("penstock_compute_calls", "Calls of functions", counts.calls)
    yield CounterMetricFamily("penstock_compute_failures", "Calls of functions that failed", counts.failures)
    yield CounterMetricFamily("penstock_compute_unwritten", "Calls whose rows were not written back", counts.unwritten)


def of_versions(served: Iterable[Served]) -> Iterator[Metric]:
    """All metrics of the versions that join features, at this moment."""
    joining = [(version, version.pipeline.join) for version in served if version.pipeline.join is not None]
    outages = CounterMetricFamily("penstock_feature_outages", "Look-ups not answered, or not in full", labels=VIEW[:2])
    found = [
        ([version.name, str(version.version), tally.view], tally) for version, join in joining for tally in join.tallies
    ]
    for version, join in joining:
        outages.add_metric([version.name, str(version.version)], join.outages)
    yield outages
    yield from _counts(found)
    yield _ages(found)
    yield _sampled(version for version, _ in joining)


def _counts(found: list[tuple[list[str], Tally]]) -> Iterator[Metric]:
    looked_up = CounterMetricFamily("penstock_feature_rows", "Entities looked up", labels=[*VIEW, "result"])
    values = CounterMetricFamily("penstock_feature_values", "Feature values looked up", labels=[*VIEW, "source"])
    flaws = CounterMetricFamily(
        "penstock_feature_flaws", "Values that are no fresh ones of the store", labels=[*VIEW, "feature", "source"]
    )
    for labels, tally in found:
        for result, status in RESULTS.items():
            looked_up.add_metric([*labels, result], tally.rows[status])
        for source, code in SOURCES.items():
            values.add_metric([*labels, source], tally.values[:, code].sum())
        for feature, counts in zip(tally.features, tally.values.tolist(), strict=True):
            for source in FLAWS:
                flaws.add_metric([*labels, feature, source], counts[SOURCES[source]])
    yield from (looked_up, values, flaws)


def _ages(found: list[tuple[list[str], Tally]]) -> Metric:
    family = HistogramMetricFamily("penstock_feature_age_seconds", "Age of rows when they were read", labels=VIEW)
    for labels, tally in found:
        *counts, total_ms = tally.ages.tolist()
        buckets, below = [], 0
        for bound, count in zip([*map(str, AGES_S), "+Inf"], counts, strict=True):
            below += count
            buckets.append((bound, float(below)))
        family.add_metric(labels, buckets, total_ms / 1000)
    return family


def _sampled(joining: Iterable[Served]) -> Metric:
    rows = CounterMetricFamily("penstock_sampled_rows", "Rows sampled of those served", labels=[*VIEW[:2], "result"])
    for version in joining:
        if (sample := version.pipeline.sample) is not None:
            rows.add_metric([version.name, str(version.version), "taken"], sample.taken)
            rows.add_metric([version.name, str(version.version), "dropped"], sample.dropped)
    return rows
