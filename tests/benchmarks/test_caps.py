"""The benchmark of the cap judges auto against every other cap, beside a control that tells the noise."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import yaml

from penstock.benchmarks import caps
from penstock.benchmarks.caps import Middle, Pair, Scenario, compare, copied, others, report
from penstock.benchmarks.seeded import Seeded, vector_bodies
from penstock.benchmarks.sides import Run
from penstock.proto import inference_pb2 as pb
from penstock.registry import Draft, Registry, Signature, TensorSpec

X, Y = (TensorSpec(name=name, datatype="FP32", shape=(-1, 2)) for name in ("x", "y"))
SIGNATURE = Signature(inputs=(X,), outputs=(Y,), batched=True)


def seeded(name):
    return Seeded(name, None, np.zeros((4, 2), np.float32), SIGNATURE, Path("model.onnx"))


def asked(side):
    """The model that a side's requests name."""
    (name,) = {pb.ModelInferRequest.FromString(body).model_name for body in side.bodies}
    return name


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
    assert others(256) == ["control", "8", "32", "64", "128"]
    assert others(100) == ["control", "8", "32", "64", "128", "256"]


def test_every_side_is_a_copy_of_the_model_with_its_own_cap(tmp_path):
    registry = Registry(tmp_path)
    draft = Draft(model_name="m", trained_at=datetime.now(UTC), framework="none", ir_version=8, signature=SIGNATURE)
    digest = registry.publish(draft, {"model.onnx": b"graph"}).files["model.onnx"].sha256
    settings = yaml.safe_load(copied(registry, {"m": seeded("m")}))["batch_cap"]
    assert settings == {"m-auto": "auto", "m-control": "auto", **{f"m-{cap}": cap for cap in (8, 32, 64, 128, 256)}}
    assert [registry.manifest(name, 1).files["model.onnx"].sha256 for name in settings] == [digest] * len(settings)


def test_every_other_side_runs_beside_auto_and_neither_is_always_first(monkeypatch):
    ran = []
    monkeypatch.setattr(caps, "requests_for", lambda *_: 10)
    monkeypatch.setattr(caps, "measure", lambda side, *_: ran.append((side.name, asked(side))) or Run(1.0, 1.0, 0.0))
    scenario = compare(seeded("m"), 1, None, ["control", "8"], 2, 0.1, 4, "")
    assert [name for name, _ in ran] == ["control", "auto", "auto", "8", "auto", "control", "8", "auto"]
    assert all(model == f"m-{name}" for name, model in ran)
    assert len(scenario.control.runs) == 2
    assert [one.against for one in scenario.fixed] == ["8"]


def test_bodies_use_every_row_of_the_pool_once():
    rows = np.arange(40, dtype=np.float32).reshape(10, 4)
    bodies = [pb.ModelInferRequest.FromString(body) for body in vector_bodies("m", "x", rows, 3)]
    assert [list(body.inputs[0].shape) for body in bodies] == [[3, 4]] * 3
    assert b"".join(body.raw_input_contents[0] for body in bodies) == rows[:9].tobytes()
