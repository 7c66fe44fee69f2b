"""The mixed benchmark: the dear model computes what it should, both are asked at once, and the tail is judged."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

pytest.importorskip("penstock.kernels.load")

from penstock.bench.local import descendants  # after the kernel it needs is known to be there
from penstock.benchmarks import mixed
from penstock.benchmarks.generators import LoadFailed
from penstock.benchmarks.processes import command_of
from penstock.benchmarks.seeded import publish
from penstock.benchmarks.sides import penstock
from penstock.client import Client
from penstock.registry import Registry
from penstock.server.session import Session

APP = typer.Typer()
APP.command()(mixed.main)
H2LOAD = pytest.mark.skipif(not shutil.which("h2load"), reason="h2load is not installed (nghttp2-client)")


@pytest.fixture
def small(monkeypatch):
    """A dear model of three layers."""
    monkeypatch.setattr(mixed, "LAYERS", 3)
    monkeypatch.setattr(mixed, "WIDTH", 8)


def test_the_dear_model_is_its_layers_one_after_another(small, tmp_path):
    mixed.publish_dear(tmp_path)
    version = Registry(tmp_path / "registry").load("dear", 1)
    x = np.random.default_rng(1).standard_normal((5, 8)).astype(np.float32)
    weights = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32) / 16
    expected = x
    for _ in range(3):
        expected = np.tanh(expected @ weights)
    got = Session(version.files[version.manifest.artifact_path], ["y"]).run({"x": x})["y"]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@H2LOAD
def test_the_tail_is_measured_alone_and_beside_the_dear_model(small, tmp_path):
    plain = publish(tmp_path, ("plain",))["plain"]
    mixed.publish_dear(tmp_path)
    with penstock("mixed", tmp_path, "native", "") as server, Client(server.address) as client:
        ((alone, beside),) = mixed.tails(server.address, plain.bodies()[0], tmp_path, 1, 1)
        counts = {name: client.statistics(name)[0].phases["success"].count for name in ("plain", "dear")}
        assert not [pid for pid in descendants(os.getpid()) if "h2load" in command_of(pid)]
    assert 0 < alone < 1e6
    assert 0 < beside < 1e6
    assert counts["plain"] > 100
    assert counts["dear"] > 100, "it was asked beside the other"


@H2LOAD
def test_a_server_that_does_not_answer_is_told(tmp_path):
    body = tmp_path / "x.body"
    body.write_bytes(b"\0\0\0\0\0")
    with pytest.raises(LoadFailed, match="h2load: not every request was answered"):
        mixed.p99_us("127.0.0.1:1", body, 1)


@pytest.mark.parametrize(
    ("taken", "code", "said"),
    [([(50, 90), (50, 500), (60, 60)], 0, "1.8, at most 2: held"), ([(50, 110)], 1, "2.2, at most 2: MISSED")],
)
def test_the_median_ratio_is_judged(monkeypatch, taken, code, said):
    monkeypatch.setattr(mixed, "measured", lambda *_: taken)
    done = CliRunner().invoke(APP, [])
    assert (done.exit_code, said in " ".join(done.stdout.split())) == (code, True)
    told = json.loads(CliRunner().invoke(APP, ["--json"]).stdout)
    assert [tuple(pair) for pair in told["p99_us"]] == taken
    assert told["at_most"] == mixed.TAIL


def test_what_goes_wrong_is_told_in_one_line(monkeypatch):
    def broken(*_):
        raise LoadFailed("no server answers")

    monkeypatch.setattr(mixed, "measured", broken)
    done = CliRunner().invoke(APP, [])
    assert done.exit_code == 1
    assert done.stderr == "no server answers\n"
