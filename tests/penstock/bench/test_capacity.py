"""A search over real levels: what counts as in time, and which resource is said to have ended it."""

from __future__ import annotations

import contextlib

import pytest

from penstock.bench import capacity, report
from penstock.bench.capacity import Promise, end_of, find, probe_timing, share_in_time
from penstock.bench.shapes import Shape, Timing
from penstock.bench.spans import INTERRUPTED
from penstock.bench.target import BenchFailed

LIMIT_MS = 1.0


def test_calls_that_fail_or_have_no_answer_are_late_ones(level):
    assert share_in_time(level([100] * 99 + [5000]), LIMIT_MS) == pytest.approx(0.99)
    assert share_in_time(level([100] * 90, errors={"UNAVAILABLE": 10}), LIMIT_MS) == pytest.approx(0.9)
    assert share_in_time(level([100] * 90, errors={"not sent": 5}, unanswered=5), LIMIT_MS) == pytest.approx(0.9)
    assert share_in_time(level([100] * 50, late=[9000] * 50), LIMIT_MS) == pytest.approx(0.5)
    assert share_in_time(level([], errors={"reset": 3}), LIMIT_MS) == 0


def test_a_probe_is_long_enough_for_percentiles_and_for_a_queue_to_show():
    assert probe_timing(Timing(), 10_000, Promise(5)).duration_s == 3
    assert probe_timing(Timing(duration_s=8), 10_000, Promise(5)).duration_s == 8
    assert probe_timing(Timing(), 100, Promise(5)).duration_s == 10
    assert probe_timing(Timing(), 10_000, Promise(1000)).duration_s == 20
    assert probe_timing(Timing(), 1, Promise(5)).duration_s == 60


@pytest.mark.parametrize(
    ("made", "resource", "words"),
    [
        ({"errors": {"UNAVAILABLE": 50}, "cores": 2, "cpu_s": 2.0}, "errors", "33.3% of the calls failed"),
        ({"errors": {"UNAVAILABLE": 1}, "cores": 2, "cpu_s": 1.9}, "server CPU", "(1.90 of 2)"),
        (
            {"cores": 2, "cpu_s": 1.0, "own_s": 0.7, "busy_s": 2.0},
            "shared CPU",
            "generator 0.70, others 0.30",
        ),
        ({"cores": 4, "cpu_s": 1.0, "busy_s": 2.0, "lags_us": [5000] * 100}, "generator", "only 0.0% of the requests"),
        ({"cores": 4, "cpu_s": 1.0, "busy_s": 2.0, "lags_us": [50] * 100}, "latency", "used 1.00 of 4 cores"),
        ({"lags_us": [50] * 100}, "latency", "server's CPU is not known"),
    ],
)
def test_what_ended_it_is_said(level, made, resource, words):
    end = end_of(level([100] * 100, callers=0, rate=100, **made), LIMIT_MS)
    assert end.resource == resource
    assert words in end.words


@pytest.fixture
def queue(monkeypatch, level):
    """A server whose latency grows towards 10,000 requests a second; the generator is late from `late_from` on."""

    class Queue:
        late_from = float("inf")
        stops_after = 1000

        def measure(self, subject, shape, timing, progress):
            self.stops_after -= 1
            ended = "" if self.stops_after > 0 else INTERRUPTED
            if shape.callers:
                return level([100] * 9000, ended=ended)
            us = 1e6 / max(10_000 - shape.rate, 1)
            lags = [5000 if shape.rate >= self.late_from else 10] * 100
            return level([us] * 1000, callers=0, rate=shape.rate, lags_us=lags, ended=ended, cores=4, cpu_s=1.0)

        def find(self, limit_ms):
            show = lambda shape: contextlib.nullcontext(lambda *_: None)  # noqa: E731
            return find(None, Promise(limit_ms, 0.01), Shape(arrivals="poisson"), Timing(), show, lambda *_: None)

    made = Queue()
    monkeypatch.setattr(capacity, "measure", made.measure)
    return made


def test_the_rate_at_which_latency_reaches_the_limit_is_found(queue):
    found = queue.find(1.0)  # 1 ms is reached at 9,000
    assert 9000 / 1.015 <= found.rate <= 9000 * 1.01
    assert found.rate < found.missed <= found.rate * 1.01
    assert found.complete
    assert not found.lower_bound
    said = "\n".join(report.capacity_remarks(found))
    assert f"Capacity: {found.rate:,.0f} requests a second, with 99 % of the calls within 1 ms." in said
    assert "Ended by latency at" in said
    assert "A closed loop reached 9,000 req/s" in said
    assert report.capacity_json(found)["ended_by"] == "latency"


def test_a_generator_that_is_late_makes_it_a_lower_bound(queue):
    queue.late_from = 8000
    found = queue.find(1.0)
    assert found.lower_bound
    assert found.end.resource == "generator"
    said = "\n".join(report.capacity_remarks(found))
    assert "Capacity: at least" in said
    assert "the server may do more" in said


def test_a_limit_that_no_rate_keeps_is_told(queue):
    found = queue.find(0.05)
    assert found.rate == 0
    said = "\n".join(report.capacity_remarks(found))
    assert "no rate that was tried keeps 99 % of the calls within 0.05 ms" in said


def test_ctrl_c_keeps_what_was_found(queue):
    queue.stops_after = 4
    found = queue.find(1.0)
    assert not found.complete
    assert len(found.levels) == 2
    assert "interrupted" in "\n".join(report.capacity_remarks(found))


def test_a_server_that_answers_nothing_is_told(monkeypatch, queue, level):
    monkeypatch.setattr(capacity, "measure", lambda *_: level([], ended="every call fails: UNAVAILABLE"))
    with pytest.raises(BenchFailed, match="every call fails: UNAVAILABLE"):
        queue.find(1.0)
