"""Spans and levels made of latencies, as a run would have measured them."""

from __future__ import annotations

import pytest

from penstock.bench.histogram import Histogram
from penstock.bench.spans import OUTCOMES, Level, Span

SPANS = ("errors", "lags_us", "rows", "cpu_s", "own_s", "busy_s", "seconds")


def make_span(latencies_us, *, start_s=0.0, seconds=1.0, errors=None, lags_us=(), rows=1, cpu_s=None, **cpu):
    errors = errors or {}
    outcomes = tuple(len(latencies_us) if name == "OK" else errors.get(name, 0) for name in OUTCOMES)
    latencies = [int(us * 1000) for us in latencies_us]
    lags = Histogram.of([int(us * 1000) for us in lags_us])
    count = len(latencies) * rows
    sums = (outcomes, count, sum(latencies), cpu_s)
    return Span(Histogram.of(latencies), lags, *sums, start_s=start_s, seconds=seconds, **cpu)


def make_level(latencies_us=(100,) * 100, *, callers=8, rate=0.0, late=(), slices=(), **settings):
    own = {key: settings.pop(key) for key in SPANS if key in settings}
    settings = {"arrivals": "" if callers else "poisson", "stable": True} | settings
    span = make_span(latencies_us, **own)
    return Level(callers, rate, span=span, late=make_span(late, seconds=0.0), slices=slices, **settings)


@pytest.fixture
def span():
    return make_span


@pytest.fixture
def level():
    return make_level
