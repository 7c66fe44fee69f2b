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


def test_sides_run_in_turn_and_are_judged_by_the_median_of_their_ratios():
    order = []

    def side(name, *rates):
        left = iter(rates)
        return lambda: order.append(name) or Figures(next(left), 100.0, 200.0, 300.0)

    lines = (Line(OURS, "rate", against=THEIRS, at_least=0.8), Line(OURS, "p99_us", against=THEIRS, at_most=0.9))
    compared = Comparison("a", {OURS: side("o", 90, 50, 100), THEIRS: side("t", 100, 100, 100)}, lines)
    rounds = compared.rounds(3)
    assert order == ["o", "t"] * 3
    faster, slower = compared.verdicts(rounds)
    assert (faster.value, faster.least, faster.held, slower.held) == (0.9, 0.5, True, False)
    first, second = meter.table([(compared, rounds)])
    assert first == ("a", OURS, "90", "100", "200", "300", "")
    assert second[:3] == ("", THEIRS, "100")
    (told,) = meter.as_json([(compared, rounds)])["comparisons"]
    assert [line["held"] for line in told["lines"]] == [True, False]


def test_figures_are_those_of_the_command(monkeypatch):
    level = {"errors": {}, "requests_per_s": 5.0, "latency_us": {"p50": 1.0, "p90": 2.0, "p99": 3.0}}
    done = type("Done", (), {"returncode": 0, "stderr": "", "stdout": json.dumps({"levels": [level]})})
    asked = []
    monkeypatch.setattr(meter.subprocess, "run", lambda command, **_: asked.append(command) or done)
    assert meter.ours("a:1", "plain", "--concurrency", "8", seconds=2) == Figures(5.0, 1.0, 2.0, 3.0)
    assert asked[0][3:7] == ["bench", "a:1", "--model", "plain"]
    level["errors"] = {"UNAVAILABLE": 3}
    done.stdout = json.dumps({"levels": [level]})
    with pytest.raises(LoadFailed, match="UNAVAILABLE"):
        meter.ours("a:1", "plain", seconds=2)
    done.returncode, done.stderr = 1, "penstock: no server answers"
    with pytest.raises(LoadFailed, match="no server answers"):
        meter.ours("a:1", "plain", seconds=2)


def test_without_h2load_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(LoadFailed, match="apt-get install nghttp2-client"):
        meter.measured(tmp_path, 1, 0.1)


def test_both_generators_send_the_same_bytes(tmp_path, monkeypatch):
    """Else the branch predictor would have more to learn from one of them."""
    sent = {}
    rows = np.arange(128 * FEATURES, dtype=np.float32).reshape(-1, FEATURES)
    client = type("Client", (), {"config": lambda _, name: type("Config", (), {"vector": "features"})})()
    monkeypatch.setattr(meter, "ours", lambda *words, **_: Figures(1000.0))
    monkeypatch.setattr(meter, "theirs", lambda _, body, callers, **__: sent.update({callers: body}) or Figures(1.0))
    for compared in meter.comparisons(client, "a:1", rows, tmp_path, 1.0)[:2]:
        compared.sides[THEIRS]()
    stored = np.load(tmp_path / "rows.npz")["features"]
    assert stored.tobytes() in sent[meter.FEW]
    assert len(stored) == meter.ROWS
