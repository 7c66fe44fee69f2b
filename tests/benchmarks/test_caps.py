"""The benchmark of the cap judges auto against every other cap, beside a control that tells the noise."""

from __future__ import annotations

import json

import numpy as np
import pytest

from penstock.benchmarks import caps
from penstock.benchmarks.caps import Middle, Pair, Scenario, compare, report, without
from penstock.benchmarks.seeded import vector_bodies
from penstock.benchmarks.sides import Run
from penstock.proto import inference_pb2 as pb


def pair(against: str, *ratios: float) -> Pair:
    """Auto over another side by these ratios; CPU is what a server that is the limit would use."""
    return Pair(against, [(Run(100 * ratio, 1e4 / ratio, 0.0), Run(100, 1e4, 0.0)) for ratio in ratios])


def test_the_median_of_a_caps_ratios_is_judged_and_the_control_never():
    assert pair("8", 0.5, 0.96, 1.5).held
    assert not pair("8", 0.5, 0.94, 1.5).held
    assert pair("control", 0.5).held
    assert pair("8", 0.8, 0.9, 1.0, 1.1, 1.2).rate == Middle(1.0, 0.9, 1.1)
    assert pair("8", 0.8).cpu.value == pytest.approx(1.25)


def test_the_nearest_rival_and_the_noise_are_shown(capsys):
    scenario = Scenario("m, 1 rows", pair("control", 1.02, 1.02), [pair("8", 2.0, 2.0), pair("64", 0.9, 0.9)])
    report([scenario], {"auto": {"m": 128}, "control": {"m": 256}}, as_json=False)
    out = " ".join(capsys.readouterr().out.split())
    assert "MISSED" in out
    assert "0.900" in out
    assert "1.020" in out
    assert "Caps of auto: m 128" in out
    report([scenario], {"auto": {"m": 128}}, as_json=True)
    told = json.loads(capsys.readouterr().out)["outcomes"][0]
    assert [one["held"] for one in told["fixed"]] == [True, False]
    assert told["control"]["rate"]["median"] == pytest.approx(1.02)


def test_a_fixed_cap_that_auto_chose_is_no_side():
    servers = dict.fromkeys(("auto", "control", "64", "256"))
    assert list(without(servers, 256)) == ["auto", "control", "64"]
    assert list(without(servers, 100)) == list(servers)


def test_every_other_side_runs_beside_auto_and_neither_is_always_first(monkeypatch):
    ran = []
    monkeypatch.setattr(caps, "requests_for", lambda *_: 10)
    monkeypatch.setattr(caps, "measure", lambda side, *_: ran.append(side.name) or Run(1.0, 1.0, 0.0))
    model = type("Model", (), {"name": "m", "bodies": lambda _, rows: []})()
    servers = dict.fromkeys(("auto", "control", "8"))
    scenario = compare(model, 1, servers, 2, 0.1, 4, "")
    assert ran == ["control", "auto", "auto", "8", "auto", "control", "8", "auto"]
    assert len(scenario.control.runs) == 2
    assert [one.against for one in scenario.fixed] == ["8"]


def test_bodies_use_every_row_of_the_pool_once():
    rows = np.arange(40, dtype=np.float32).reshape(10, 4)
    bodies = [pb.ModelInferRequest.FromString(body) for body in vector_bodies("m", "x", rows, 3)]
    assert [list(body.inputs[0].shape) for body in bodies] == [[3, 4]] * 3
    assert b"".join(body.raw_input_contents[0] for body in bodies) == rows[:9].tobytes()
