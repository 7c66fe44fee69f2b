"""Prometheus metrics: counters kept by compiled code, read when somebody scrapes. Nothing here runs per request."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from threading import Thread
from typing import Any
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from penstock.kernels.ledger import bucket_bounds
from penstock.server import feature_metrics
from penstock.server.address import Address
from penstock.server.errors import BadConfig
from penstock.server.lifecycle import Models
from penstock.server.lookups import Lookups
from penstock.server.transports import Transport
from penstock.server.version import Served
from penstock.server.watch import Drift

MODEL = ("model", "version")
RESULTS = ("succeeded", "failed", "refused", "too_late", "invalid", "expired", "cancelled")
CALL_PHASES = ("total", "queue")
COST_STEPS = ("lookup", "run")
BATCH_PHASES = ("lookup", "compute", "encode")
TRANSPORT_GAUGES = {
    "connections": ("penstock_transport_connections", "Open connections"),
    "bytes": ("penstock_transport_bytes", "Bytes of requests and answers held"),
    "in_lanes": ("penstock_transport_calls_in_lanes", "Calls in lanes, waiting or being run"),
}
TRANSPORT_COUNTERS = {
    "accepted": ("penstock_transport_accepted", "Connections accepted"),
    "refused": ("penstock_transport_refused", "Connections refused, beyond max_connections"),
    "handshakes_failed": ("penstock_transport_handshakes_failed", "TLS handshakes that failed"),
    "timed_out": ("penstock_transport_timed_out", "Connections and calls that took too long"),
    "calmed": ("penstock_transport_calmed", "Connections told to calm down, and closed"),
    "reset": ("penstock_transport_reset", "Calls given up by their clients"),
    "over_budget": ("penstock_transport_over_budget", "Calls refused for want of bytes, beyond max_in_flight_bytes"),
    "inferences": ("penstock_transport_inferences", "Calls that went straight into a lane"),
    "inlined": ("penstock_transport_inlined", "Of those, calls run and answered by the thread that read them"),
    "exchanges": ("penstock_transport_exchanges", "Calls that Python answered"),
}
_BOUNDS = bucket_bounds()
_OCTAVES = [*range(3, 108, 4), len(_BOUNDS) - 1]  # one bound in four: a factor of two apart, 1 us to 68 s


def serve(models: Models, transport: Transport, lookups: Lookups | None, address: Address) -> tuple[WSGIServer, Thread]:
    """Answer scrapes on /metrics in a thread of its own, until the server is shut down.

    Raises:
        BadConfig: the address cannot be bound.
    """
    registry = CollectorRegistry()
    registry.register(LaneCollector(models))
    registry.register(TransportCollector(transport))
    if lookups is not None:
        registry.register(feature_metrics.LookupCollector(lookups))
    try:
        return start_http_server(address.port, address.host, registry)
    except OSError as error:
        where = f"{address.host}:{address.port}"
        raise BadConfig(f"metrics: {where} cannot be listened on: {error.strerror}") from error


class TransportCollector(Collector):
    """Reads the counters of a transport that keeps any."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def collect(self) -> Iterable[Metric]:
        """All metrics, at this moment."""
        counts = self._transport.snapshot()
        if not counts:
            return
        for name, (metric, text) in TRANSPORT_GAUGES.items():
            yield GaugeMetricFamily(metric, text, counts[name])
        for name, (metric, text) in TRANSPORT_COUNTERS.items():
            yield CounterMetricFamily(metric, text, counts[name])


class LaneCollector(Collector):
    """Reads the counters of every served version."""

    def __init__(self, models: Models) -> None:
        self._models = models

    def collect(self) -> Iterable[Metric]:
        """All metrics, at this moment."""
        yield CounterMetricFamily("penstock_requests_unrouted", "Calls for no served model", self._models.unrouted)
        served = self._models.of("")
        seen = [(s, [s.name, str(s.version)], s.lane.snapshot()) for s in served]
        yield from _traffic(seen)
        yield from _costs(seen)
        yield from _caches(served)
        yield _phases("penstock_request_duration_seconds", "Calls, by phase", CALL_PHASES, seen)
        yield _phases("penstock_batch_duration_seconds", "Batches, by phase", BATCH_PHASES, seen)
        yield from feature_metrics.of_versions(served)
        yield from _drift(served)


def _traffic(seen: list[tuple[Served, list[str], dict[str, Any]]]) -> Iterator[Metric]:
    requests = CounterMetricFamily("penstock_requests", "Calls, by what became of them", labels=[*MODEL, "result"])
    rows = CounterMetricFamily("penstock_rows", "Rows run", labels=MODEL)
    late = CounterMetricFamily("penstock_late_rows", "Rows run after their deadline had passed", labels=MODEL)
    batches = CounterMetricFamily("penstock_batches", "Batches run", labels=MODEL)
    queued = GaugeMetricFamily("penstock_queue_rows", "Rows waiting", labels=MODEL)
    queued_bytes = GaugeMetricFamily("penstock_queue_bytes", "Request bytes waiting", labels=MODEL)
    info = GaugeMetricFamily("penstock_model_info", "Served versions", labels=[*MODEL, "digest"])
    for served, labels, counts in seen:
        for result in RESULTS:
            requests.add_metric([*labels, result], counts[result])
        rows.add_metric(labels, counts["rows"])
        late.add_metric(labels, counts["late_rows"])
        batches.add_metric(labels, counts["batches"])
        queued.add_metric(labels, counts["queued_rows"])
        queued_bytes.add_metric(labels, counts["queued_bytes"])
        info.add_metric([*labels, served.digest], 1)
    yield from (requests, rows, late, batches, queued, queued_bytes, info)


def _costs(seen: list[tuple[Served, list[str], dict[str, Any]]]) -> Iterator[Metric]:
    labels = [*MODEL, "step"]
    fixed = GaugeMetricFamily("penstock_cost_fixed_seconds", "Learnt cost of every run", labels=labels)
    row = GaugeMetricFamily("penstock_cost_row_seconds", "Learnt cost of every row", labels=labels)
    error = GaugeMetricFamily("penstock_cost_error_ratio", "Mean relative error of predictions", labels=labels)
    cap = GaugeMetricFamily("penstock_batch_cap_rows", "Rows of a run at most; 0: no cap", labels=MODEL)
    for served, key, counts in seen:
        for step in COST_STEPS:
            learnt = counts[f"{step}_cost"]
            fixed.add_metric([*key, step], learnt["fixed_ns"] * 1e-9)
            row.add_metric([*key, step], learnt["row_ns"] * 1e-9)
            error.add_metric([*key, step], learnt["error"])
        cap.add_metric(key, served.cap)
    yield from (fixed, row, error, cap)


def _caches(served: list[Served]) -> Iterator[Metric]:
    asked = CounterMetricFamily("penstock_cache_requests", "Requests, by what the cache had", labels=[*MODEL, "result"])
    gone = CounterMetricFamily("penstock_cache_removed", "Answers let go of, by why", labels=[*MODEL, "reason"])
    kept = CounterMetricFamily("penstock_cache_kept", "Answers put into the cache", labels=MODEL)
    entries = GaugeMetricFamily("penstock_cache_entries", "Answers in the cache", labels=MODEL)
    used = GaugeMetricFamily("penstock_cache_bytes", "Bytes of the answers in the cache, keys included", labels=MODEL)
    for version in served:
        if version.lane.cache is None:
            continue
        counts, labels = version.lane.cache.snapshot(), [version.name, str(version.version)]
        for result, name in (("hit", "hits"), ("miss", "misses"), ("passed", "passed")):
            asked.add_metric([*labels, result], counts[name])
        for reason in ("evicted", "expired"):
            gone.add_metric([*labels, reason], counts[reason])
        kept.add_metric(labels, counts["kept"])
        entries.add_metric(labels, counts["entries"])
        used.add_metric(labels, counts["bytes"])
    yield from (asked, gone, kept, entries, used)
    yield from _shared(served)


def _shared(served: list[Served]) -> Iterator[Metric]:
    labels = [*MODEL, "result"]
    asked = CounterMetricFamily("penstock_cache_shared_requests", "Requests, by what servers shared", labels=labels)
    failed = CounterMetricFamily("penstock_cache_shared_errors", "Round trips that failed", labels=[*MODEL, "step"])
    corrupt = CounterMetricFamily("penstock_cache_shared_corrupt", "Values that were no such answer", labels=MODEL)
    written = CounterMetricFamily("penstock_cache_shared_written", "Answers written for others", labels=MODEL)
    size = CounterMetricFamily("penstock_cache_shared_written_bytes", "Bytes of these answers", labels=MODEL)
    left = CounterMetricFamily("penstock_cache_shared_unwritten", "Answers too many or too large", labels=MODEL)
    for version in served:
        if version.pipeline.shared is None:
            continue
        counts, key = version.pipeline.shared.counts, [version.name, str(version.version)]
        for result, count in (("hit", counts.hits), ("miss", counts.misses), ("unasked", counts.unasked)):
            asked.add_metric([*key, result], count)
        failed.add_metric([*key, "read"], counts.failed_reads)
        failed.add_metric([*key, "write"], counts.failed_writes)
        corrupt.add_metric(key, counts.corrupt)
        written.add_metric(key, counts.written)
        size.add_metric(key, counts.written_bytes)
        left.add_metric(key, counts.unwritten)
    yield from (asked, failed, corrupt, written, size, left)


def _phases(
    name: str, text: str, phases: tuple[str, ...], seen: list[tuple[Served, list[str], dict[str, Any]]]
) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, text, labels=[*MODEL, "phase"])
    for _, labels, counts in seen:
        for phase in phases:
            counted = counts[phase]
            family.add_metric([*labels, phase], _cumulative(counted["buckets"]), counted["ns"] * 1e-9)
    return family


def _cumulative(buckets: list[int]) -> list[tuple[str, float]]:
    """Counts at or under each octave's bound, as Prometheus wants them."""
    total, out, following = 0, [], 0
    for index in _OCTAVES:
        total += sum(buckets[following : index + 1])
        following = index + 1
        bound = _BOUNDS[index]
        out.append(("+Inf" if bound == float("inf") else f"{bound:.9g}", float(total)))
    return out


def _drift(served: list[Served]) -> Iterator[Metric]:
    labels = [*MODEL, "feature"]
    gauges = {
        name: GaugeMetricFamily(f"penstock_drift_{name}", text, labels=labels)
        for name, text in (
            ("ks", "Kolmogorov-Smirnov statistic of the last window against the reference"),
            ("kl", "Kullback-Leibler divergence of the last window from the reference, nats"),
            ("psi", "Population stability index of the last window"),
            ("missing_current", "Share of missing values in the last window"),
        )
    }
    rows = GaugeMetricFamily("penstock_drift_window_rows", "Rows in the last window", labels=MODEL)
    for version in served:
        if version.pipeline.watch is None:
            continue
        drift, key = version.pipeline.watch.drift(), [version.name, str(version.version)]
        rows.add_metric(key, drift.window.rows)
        for feature, entry in _named(drift):
            for name, gauge in gauges.items():
                gauge.add_metric([*key, feature], getattr(entry, name))
    yield from (rows, *gauges.values())


def _named(drift: Drift) -> Iterator[tuple[str, Any]]:
    for entry in drift.features:
        yield entry.name, entry
    if drift.score is not None:
        yield "penstock.score", drift.score
