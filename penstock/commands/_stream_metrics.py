"""Prometheus metrics of a stream's consumer: counted while it works, put together when somebody scrapes.

How far the group is behind is asked of Redis at each scrape, for a second at most; while it does not answer there is no
lag to be told, and `penstock_stream_up` is 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from threading import Thread
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from penstock.errors import PenstockError
from penstock.server.address import Address

if TYPE_CHECKING:
    from penstock.features.streams import Consumer, Lag

LABELS = ("view", "stream", "group")
LAG_S = 1.0
RESULTS = ("written", "older", "over", "repeated", "rejected", "trimmed")
COUNTERS = {
    "read": ("penstock_stream_read", "Entries delivered to this consumer, again or for the first time"),
    "retried": ("penstock_stream_retried", "Of those, entries that were delivered to it before"),
    "claimed": ("penstock_stream_claimed", "Of those, entries taken from other consumers"),
    "batches": ("penstock_stream_batches", "Batches of entries"),
    "failures": ("penstock_stream_failures", "Steps that failed because a Redis was away, and are tried again"),
    "recorded": ("penstock_stream_history_rows", "Rows kept as history"),
}


@contextmanager
def metered(reader: Consumer, view: str, address: Address) -> Iterator[WSGIServer]:
    """Scrapes are answered on /metrics in a thread of its own, until the block ends.

    Raises:
        PenstockError: the address cannot be bound.
    """
    registry = CollectorRegistry()
    registry.register(ConsumerCollector(reader, view))
    try:
        server, thread = start_http_server(address.port, address.host, registry)
    except OSError as error:
        raise PenstockError(f"--metrics: {address} cannot be listened on: {error.strerror}") from error
    try:
        yield server
    finally:
        _stop(server, thread)


def _stop(server: WSGIServer, thread: Thread) -> None:
    server.shutdown()
    server.server_close()
    thread.join()


class ConsumerCollector(Collector):
    """Reads a consumer's counts, and asks how far its group is behind."""

    def __init__(self, reader: Consumer, view: str) -> None:
        self._reader = reader
        self._labels = [view, reader.settings.stream, reader.settings.group]

    def describe(self) -> Iterable[Metric]:
        """Nothing: a registry would otherwise collect, and so ask Redis, to find the names."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """All metrics, at this moment."""
        counts, labels = self._reader.counts, self._labels
        for name, (metric, text) in COUNTERS.items():
            counter = CounterMetricFamily(metric, text, labels=LABELS)
            counter.add_metric(labels, getattr(counts, name))
            yield counter
        entries = CounterMetricFamily(
            "penstock_stream_entries", "Entries, by what became of them", labels=[*LABELS, "result"]
        )
        for result in RESULTS:
            entries.add_metric([*labels, result], getattr(counts, result))
        unknown = CounterMetricFamily(
            "penstock_stream_unknown_words", "Words that a vocabulary does not have", labels=[*LABELS, "feature"]
        )
        for feature, words in list(counts.unknown.items()):
            unknown.add_metric([*labels, feature], words)
        yield from (entries, unknown)
        if counts.newest_ms:
            yield self._gauge(
                "penstock_stream_newest_event_seconds", "Newest event time, Unix", counts.newest_ms / 1000
            )
        yield from self._lag()

    def _lag(self) -> Iterator[Metric]:
        lag: Lag | None = None
        with suppress(PenstockError):  # the consumer says what is wrong
            lag = self._reader.lag(LAG_S)
        yield self._gauge("penstock_stream_up", "Whether Redis answers", float(lag is not None))
        if lag is not None:
            yield self._gauge("penstock_stream_pending_entries", "Delivered, not acknowledged", lag.pending)
            yield self._gauge(
                "penstock_stream_lag_seconds", "From the last one delivered to the last", lag.behind_ms / 1000
            )
        if lag is not None and lag.entries is not None:
            yield self._gauge("penstock_stream_lag_entries", "Entries not yet delivered", lag.entries)

    def _gauge(self, metric: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(metric, text, labels=LABELS)
        family.add_metric(self._labels, value)
        return family
