"""Versions are measured while they are loaded: a curve, a cap and costs that are known before the first call."""

from __future__ import annotations

import gc
import io
import json
import socket
import time
from pathlib import Path
from urllib.request import urlopen

import grpc
import numpy as np
import pytest
from typer.testing import CliRunner

from penstock.commands.models import app
from penstock.errors import PenstockError
from penstock.monitoring import Profile, Reference
from penstock.registry import Registry, Score
from penstock.server.config import Config
from penstock.server.inline import InlineTrial
from penstock.server.samples import Samples
from penstock.server.version import Served
from penstock.server.warmup import RunFailed, Trial


def golden(**arrays) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, **{name.replace("__", "/"): array for name, array in arrays.items()})
    return stream.getvalue()


ROWS = np.arange(12, dtype=np.float32).reshape(6, 2)
DOUBLED = golden(input__x=ROWS, output__y=ROWS * 2)


@pytest.fixture
def loaded(registry, graphs):
    """Publishes and loads a version; drained at the end."""
    made: list[Served] = []

    def load(onnx, settings=None, **fields) -> Served:
        graphs.publish(registry, "m", onnx, **fields)
        version = max(registry.versions("m"))
        made.append(Served(registry.load("m", version), Config(max_batch_rows=64, **(settings or {})), None))
        return made[-1]

    yield load
    for served in made:
        served.drain()
        assert served.join(20)


def test_a_version_with_a_profile_has_a_curve_and_nothing_of_it_is_counted(loaded, graphs):
    values = np.random.default_rng(1).normal(size=(500, 2)).astype(np.float32)
    profile = Reference(features=Profile.of(values, ["a", "b"]), score=Profile.of(values[:, :1], ["score"]))
    served = loaded(
        graphs.copy(2), columns=("a", "b"), files={"profile.json": profile.to_json()}, score=Score(output="score")
    )
    assert served.curve.rows == (1, 2, 4, 8, 16, 32, 64)
    assert all(ns > 0 for ns in served.curve.ns)
    assert served.cap in served.curve.rows
    counted = served.lane.snapshot()
    assert (counted["rows"], counted["batches"], counted["succeeded"], counted["run_cost"]["runs"]) == (0, 0, 0, 0)
    assert served.lane.ledger.predict(8) > 0
    assert served.pipeline.watch.drift(current=True).window.rows == 0


def test_golden_rows_serve_where_there_is_no_profile(loaded, graphs):
    served = loaded(graphs.double(), files={"golden.npz": DOUBLED})
    assert served.curve.rows[-1] == 64


@pytest.mark.parametrize(
    ("graph", "files", "settings", "reason"),
    [
        (lambda g: g.double(), {}, {}, "neither a profile nor golden rows to draw 'x' from"),
        (lambda g: g.double(), {"golden.npz": DOUBLED}, {"warmup_ms": 0}, "warmup_ms is 0"),
        (lambda g: g.same("FP32", 3), {}, {}, "the graph takes no batches"),
    ],
)
def test_a_version_that_cannot_be_measured_is_served_and_says_why(loaded, graphs, graph, files, settings, reason):
    served = loaded(graph(graphs), settings, files=files)
    assert served.curve.rows == ()
    assert reason in served.curve.reason
    assert served.cap == 0


def test_made_up_rows_that_do_not_run_leave_a_version_without_a_curve(loaded, graphs, monkeypatch):
    def broken(self, batch):
        raise RuntimeError("no such row")

    monkeypatch.setattr("penstock.server.warmup.Pipeline.run", broken)
    served = loaded(graphs.double(), files={"golden.npz": DOUBLED})
    assert served.curve.reason == "rows made up for measuring did not run: no such row"


@pytest.mark.parametrize(("cap", "most"), [("off", 0), ("3", 3), ("1000", 64)])
def test_an_operator_may_fix_the_cap(loaded, graphs, cap, most):
    served = loaded(graphs.double(), {"batch_cap": cap}, files={"golden.npz": DOUBLED})
    assert served.cap == most


def test_outputs_of_free_width_are_never_made_of_parts(loaded, graphs):
    served = loaded(graphs.same("FP32", "n", "k"), {"batch_cap": "3"})
    assert served.cap == 0


def test_calls_larger_than_the_cap_have_no_size_of_their_own(registry, graphs, serving, calling):
    graphs.publish(registry, "double", graphs.double())
    caller = calling(serving(batch_cap="4", max_batch_rows=64))
    for rows in (2, 4, 5, 40):
        caller.answer(caller.send("double", [[1.0, 2.0]] * rows))
    assert caller.counts("double").batches == {2: 1, 4: 1}


@pytest.mark.parametrize("way", [Trial, InlineTrial])
def test_trials_that_fail_leave_no_descriptors(loaded, graphs, way):
    served = loaded(graphs.reciprocal(), {"inline": "off"})
    samples = Samples(served.plan, None, {"x": np.zeros((4, 1), np.int64)}, 4)
    settings = {"alone": True} if way is Trial else {}

    def descriptors():
        return len([*Path("/proc/self/fd").iterdir()])

    def fail():
        with pytest.raises(RunFailed):
            way(served.pipeline, samples, **settings).run(2)

    fail()
    before = descriptors()
    gc.disable()  # what is not in a circle goes at once
    try:
        for _ in range(20):
            fail()
        assert descriptors() < before + 10  # others' may come and go
    finally:
        gc.enable()


def test_a_request_of_more_rows_is_run_in_parts_and_answered_as_one(registry, graphs, gate, serving, calling):
    graphs.publish(registry, "double", graphs.double())
    caller = calling(serving(batch_cap="16"))
    gate.rows.clear()
    values = np.arange(100, dtype=np.float32).reshape(50, 2)
    np.testing.assert_array_equal(caller.answer(caller.send("double", values)), values * 2)
    assert gate.rows == [16, 16, 16, 2]
    assert caller.counts("double").execution_count == 1


def test_a_server_tells_how_a_version_runs(registry, graphs, serving, calling):
    graphs.publish(registry, "double", graphs.double(), files={"golden.npz": DOUBLED})
    caller = calling(serving(max_batch_rows=8))
    caller.answer(caller.send("double", [[1.0, 2.0]]))
    told = caller.client.config("double").parameters
    curve, cost = json.loads(told["penstock.curve"]), json.loads(told["penstock.cost"])
    assert curve["rows"] == [1, 2, 4, 8]
    assert len(curve["ns"]) == 4
    assert int(told["penstock.cap"]) in curve["rows"]
    assert told["penstock.way"]
    assert cost["run"]["fixed_ns"] + cost["run"]["row_ns"] > 0
    assert json.loads(told["penstock.deadlines"]) == {"too_late": 0, "late_rows": 0}


@pytest.mark.parametrize("bad", ["0", "some", "-1", "65537", "1.5", ""])
def test_a_cap_that_is_none_is_refused(bad):
    with pytest.raises(ValueError, match="auto, off or a number of rows"):
        Config(batch_cap=bad)


def test_a_cap_may_stand_as_a_number_in_yaml():
    assert Config(batch_cap=16).cap_of("any") == "16"


def test_a_model_may_have_a_cap_of_its_own(registry, graphs, serving, calling):
    for name in ("first", "second", "third"):
        graphs.publish(registry, name, graphs.double(), files={"golden.npz": DOUBLED})
    caller = calling(serving(batch_cap={"*": "off", "first": 3, "second": "auto"}, max_batch_rows=8))
    first, second, third = (
        int(caller.client.config(name).parameters["penstock.cap"]) for name in ("first", "second", "third")
    )
    assert (first, third) == (3, 0)
    assert second in (1, 2, 4, 8)


# ---- Told ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def show(registry, monkeypatch):
    """`penstock models show` of double, as a terminal of 100 columns has it."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("PENSTOCK_SERVER", raising=False)

    def run(*words) -> str:
        result = CliRunner().invoke(app, ["show", "double", "--registry", str(registry.root), *words])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.stdout

    return run


def test_models_show_prints_how_a_server_runs_the_version(registry, graphs, serving, calling, show):
    graphs.publish(registry, "double", graphs.double(), files={"golden.npz": DOUBLED})
    addresses = serving(max_batch_rows=4)
    caller = calling(addresses)
    caller.answer(caller.send("double", [[1.0, 2.0]]))
    out = show("--server", addresses.grpc)
    for told in (f"Serving at {addresses.grpc}", "Way   ", "Cost  run: ", "us a row", "Rows/s", "0 calls refused"):
        assert told in out
    assert sum("cap" in line.split() for line in out.splitlines()) == 1
    serves = json.loads(show("--server", addresses.grpc, "--json"))["serving"]
    assert [point["rows"] for point in serves["curve"]] == [1, 2, 4]
    assert serves["costs"]["run"]["runs"] == 1
    assert [point["rows"] for point in serves["curve"] if point["cap"]] == [serves["cap"]]
    assert "serving" not in json.loads(show("--json"))
    assert "Serving at" not in show()


def test_models_show_says_why_there_is_no_curve(registry, graphs, serving, show):
    graphs.publish(registry, "double", graphs.double())
    out = show("--server", serving().grpc)
    assert "Cap   none" in out
    assert "Curve was not measured: there is neither a profile nor golden rows" in out


def test_models_show_refuses_a_server_that_is_not_there_or_serves_something_else(
    registry, graphs, serving, show, tmp_path
):
    graphs.publish(registry, "double", graphs.double())
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(PenstockError, match=r"no server answers at 127\.0\.0\.1"):
            show("--server", f"127.0.0.1:{closed.getsockname()[1]}")
    address = serving().grpc
    other = Registry(tmp_path / "other")
    other.root.mkdir()
    graphs.publish(other, "double", graphs.double(), created_by="somebody else")
    with pytest.raises(PenstockError, match="serves another double version 1"):
        show("--server", address, "--registry", str(other.root))


def test_a_server_that_only_the_environment_names_may_be_gone(registry, graphs, monkeypatch):
    graphs.publish(registry, "double", graphs.double())
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("PENSTOCK_SERVER", f"127.0.0.1:{closed.getsockname()[1]}")
        result = CliRunner().invoke(app, ["show", "double", "--registry", str(registry.root), "--json"])
    assert result.exit_code == 0
    assert "serving" not in json.loads(result.stdout)
    assert result.stderr.startswith("PENSTOCK_SERVER: no server answers at 127.0.0.1:")


# ---- Refused early -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", ["native", "grpcio"])
def test_a_call_that_could_not_be_answered_in_time_is_told_so_at_once(
    registry, graphs, gate, serving, calling, transport
):
    if transport == "native":
        pytest.importorskip("penstock.kernels.http2", reason="this build has no native transport")
    graphs.publish(registry, "double", graphs.double())
    addresses = serving(transport=transport, metrics="127.0.0.1:0")
    caller = calling(addresses)
    (lane,) = gate.lanes
    for rows in (1, 2, 4):
        lane.ledger.seed(rows, rows * 5_000_000_000)  # five seconds a row
    gate.shut()
    first = caller.send("double", [[1.0, 2.0]])
    gate.entered()
    began = time.monotonic()
    error = caller.send("double", [[1.0, 2.0]], timeout=4).exception()
    assert time.monotonic() - began < 3
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "the answer would take" in error.details()
    patient = caller.send("double", [[1.0, 2.0]], timeout=60)
    gate.open()
    assert caller.answer(first).tolist() == caller.answer(patient).tolist() == [[2, 4]]
    page = urlopen(f"http://{addresses.metrics}/metrics").read().decode()
    assert 'penstock_requests_total{model="double",result="too_late",version="1"} 1.0' in page
    assert 'penstock_late_rows_total{model="double",version="1"} 0.0' in page


def test_a_server_that_is_not_to_foresee_keeps_the_call(registry, graphs, gate, serving, calling):
    graphs.publish(registry, "double", graphs.double())
    caller = calling(serving(foresee=False))
    (lane,) = gate.lanes
    lane.ledger.seed(1, 5_000_000_000)
    gate.shut()
    first = caller.send("double", [[1.0, 2.0]])
    gate.entered()
    second = caller.send("double", [[1.0, 2.0]], timeout=4)
    gate.queued(1)
    gate.open()
    assert caller.answer(first).tolist() == caller.answer(second).tolist() == [[2, 4]]
