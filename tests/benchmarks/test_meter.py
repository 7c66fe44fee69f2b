"""The meter benchmark: both generators ask the same, are run in turn, and are judged by the lines."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from penstock.benchmarks import meter
from penstock.benchmarks.generators import LoadFailed
from penstock.benchmarks.lines import Line
from penstock.benchmarks.meter import OURS, THEIRS, Comparison, Figures
from penstock.benchmarks.seeded import FEATURES

pytest.importorskip("penstock.kernels.load")


def test_ratios_are_taken_within_a_round_and_their_median_is_judged():
    left = iter([90, 50, 100])
    run = lambda: {OURS: Figures(next(left), 100.0, 200.0, 300.0), THEIRS: Figures(100, 100.0, 200.0, 300.0)}  # noqa: E731
    lines = (Line(OURS, "rate", against=THEIRS, at_least=0.8), Line(OURS, "p99_us", against=THEIRS, at_most=0.9))
    compared = Comparison("a", run, lines)
    rounds = compared.rounds(3)
    faster, slower = compared.verdicts(rounds)
    assert (faster.value, faster.least, faster.held, slower.held) == (0.9, 0.5, True, False)
    first, second = meter.table([(compared, rounds)])
    assert first == ("a", OURS, "90", "100", "200", "300", "")
    assert second[:3] == ("", THEIRS, "100")
    (told,) = meter.as_json([(compared, rounds)])["comparisons"]
    assert [line["held"] for line in told["lines"]] == [True, False]


def test_a_command_that_fails_or_is_not_answered_fails_the_benchmark(monkeypatch):
    level = {"errors": {}, "requests_per_s": 5.0, "latency_us": {"p50": 1.0, "p90": 2.0, "p99": 3.0}}
    done = type("Done", (), {"returncode": 0, "stderr": "", "stdout": json.dumps({"levels": [level]})})
    monkeypatch.setattr(meter.subprocess, "run", lambda *_, **__: done)
    assert meter.figures_of(meter.ours("a:1", "plain", seconds=2)) == Figures(5.0, 1.0, 2.0, 3.0)
    done.stdout = json.dumps({"levels": [level | {"errors": {"UNAVAILABLE": 3}}]})
    with pytest.raises(LoadFailed, match="UNAVAILABLE"):
        meter.ours("a:1", "plain", seconds=2)
    done.returncode, done.stderr = 1, "penstock: no server answers"
    with pytest.raises(LoadFailed, match="no server answers"):
        meter.ours("a:1", "plain", seconds=2)


def test_of_a_log_counts_what_began_while_the_other_measured():
    lines = [f"{start}\t200\t{us}" for start, us in ((999_999, 7), (1_000_000, 100), (1_500_000, 300), (3_000_000, 9))]
    log = "\n".join([*lines, "31000"])
    assert meter.logged(log, 1.0, 3.0) == Figures(1.0, 100.0, 300.0, 300.0)
    with pytest.raises(LoadFailed, match="HTTP 200"):
        meter.logged(log.replace("200\t300", "503\t300"), 1.0, 3.0)
    with pytest.raises(LoadFailed, match="HTTP 200"):
        meter.logged(log, 5.0, 6.0)


def test_without_h2load_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(LoadFailed, match="apt-get install nghttp2-client"):
        meter.measured(tmp_path, 1, 0.1)


def test_both_generators_send_the_same_rows(tmp_path, monkeypatch):
    """Else the branch predictor would have more to learn from one of them."""
    sent = []
    rows = np.arange(128 * FEATURES, dtype=np.float32).reshape(-1, FEATURES)
    client = type("Client", (), {"config": lambda _, name: type("Config", (), {"vector": "features"})})()
    monkeypatch.setattr(meter, "ours", lambda *_, **__: {"requests_per_s": 1000.0})
    monkeypatch.setattr(meter, "at_once", lambda _, body, *__: sent.append(body))
    meter.comparisons(client, "a:1", rows, tmp_path, 1.0)[1].run()
    stored = np.load(tmp_path / "rows.npz")["features"]
    assert stored.tobytes() in sent[0]
    assert len(stored) == meter.ROWS
