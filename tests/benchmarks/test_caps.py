"""The benchmark of the cap judges auto against every fixed one, and shows the one that comes nearest to beating it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from penstock.benchmarks.caps import cpu_ratio, report
from penstock.benchmarks.lines import Line, Outcome
from penstock.benchmarks.seeded import vector_bodies
from penstock.benchmarks.sides import Run
from penstock.proto import inference_pb2 as pb


def outcome(*rates: tuple[float, float, float]) -> Outcome:
    """Of rounds of auto, 8 and 64; CPU is what a server that is the limit would use."""
    rounds = [
        {name: Run(rate, 1e6 / rate, 0.0) for name, rate in zip(("auto", "8", "64"), each, strict=True)}
        for each in rates
    ]
    return Outcome("m, 1 rows", rounds, [Line("auto", "rate", against=n, at_least=0.95) for n in ("8", "64")])


def test_every_fixed_cap_is_a_line_to_hold():
    held = outcome((100, 50, 104), (200, 100, 190), (50, 25, 51))
    assert [verdict.held for verdict in held.verdicts] == [True, True]
    assert cpu_ratio(held) == pytest.approx(51 / 50)
    assert [verdict.held for verdict in outcome((90, 50, 100)).verdicts] == [True, False]


def test_the_nearest_rival_is_shown(capsys):
    report([outcome((90, 50, 100))], {"m": 64}, as_json=False)
    out = " ".join(capsys.readouterr().out.split())
    assert "0.900" in out
    assert "MISSED" in out
    assert "Measured caps: m 64" in out
    report([outcome((100, 50, 100))], {"m": 64}, as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert told["caps"] == {"m": 64}
    assert told["outcomes"][0]["cpu_ratio"] == pytest.approx(1)


def test_bodies_use_every_row_of_the_pool_once():
    rows = np.arange(40, dtype=np.float32).reshape(10, 4)
    bodies = [pb.ModelInferRequest.FromString(body) for body in vector_bodies("m", "x", rows, 3)]
    assert [list(body.inputs[0].shape) for body in bodies] == [[3, 4]] * 3
    assert b"".join(body.raw_input_contents[0] for body in bodies) == rows[:9].tobytes()
