"""The stability rule is perf_analyzer's, and a span tells what happened between two readings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.bench.histogram import Histogram
from penstock.bench.spans import OUTCOMES, Reading, is_stable


def test_three_windows_within_a_tenth_are_stable_and_two_are_not(span):
    steady = [span([100] * count) for count in (1000, 1100, 1050)]
    assert is_stable(steady)
    assert not is_stable(steady[:2])
    assert is_stable([span([900] * 10), *steady])  # only the last three count


@pytest.mark.parametrize("last", [{"latencies_us": [100] * 880}, {"latencies_us": [112] * 1000}, {"latencies_us": []}])
def test_throughput_and_latency_must_both_agree(span, last):
    assert not is_stable([span([100] * 1000), span([100] * 1000), span(**last)])


@given(st.lists(st.tuples(st.integers(1, 300), st.integers(50, 300)), min_size=3, max_size=6))
def test_the_rule_is_largest_over_smallest_within_a_tenth(pairs):
    from penstock.bench.spans import Span

    windows = [
        Span(Histogram(), Histogram(), (n, *[0] * (len(OUTCOMES) - 1)), n, n * us * 1000, None, start_s=0, seconds=1.0)
        for n, us in pairs
    ]
    counts, latencies = zip(*pairs[-3:], strict=True)
    expected = all(max(v) / min(v) <= 1.1 + 1e-12 for v in (counts, latencies))
    assert is_stable(windows) is expected


def test_a_span_is_the_difference_of_its_readings():
    def reading(at_s, latencies, failed, cpu):
        outcomes = (len(latencies), *[0] * (len(OUTCOMES) - 2), failed)
        sums = (7, sum(latencies), cpu)
        return Reading(Histogram.of(latencies), Histogram(), outcomes, *sums, at_ns=int(at_s * 1e9))

    first, second = reading(1, [1000] * 3, 1, 1.0), reading(3, [1000] * 3 + [5000] * 4, 3, 1.5)
    span = second.since(first, int(0.5e9))
    assert (span.start_s, span.seconds, span.answered, span.failed) == (0.5, 2.0, 4, 2)
    assert span.rate == 2.0
    assert span.mean_us == 5.0
    assert span.errors == {"not sent": 2}
    assert span.cpu_us == pytest.approx(0.5 / 6 * 1e6)


def test_what_came_late_is_in_the_percentiles_but_not_in_the_throughput(level):
    made = level([100] * 99, late=[9000])
    assert made.latencies.total == 100
    assert made.span.rate == 99
