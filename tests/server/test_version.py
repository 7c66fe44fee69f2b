"""One served version: what it refuses to be loaded with, and which thread runs it."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from penstock.errors import NotFound
from penstock.monitoring import Profile, Reference
from penstock.server.session import Session


@pytest.fixture
def threads(monkeypatch):
    """Names of the threads that ran each version's batches, warm-up left out."""
    names: list[str] = []

    class Noted(Session):
        def run(self, feeds):
            names.append(threading.current_thread().name)
            return super().run(feeds)

    monkeypatch.setattr("penstock.server.version.Session", Noted)
    return names


def test_a_short_run_is_made_by_the_loop_once_its_cost_is_known(
    registry, graphs, serving, calling, threads, monkeypatch
):
    monkeypatch.setattr("penstock.server.transports.waves.INLINE_NS", 10**10)  # whatever machine this is
    graphs.publish(registry, "double", graphs.double())
    caller = calling(serving(transport="grpcio"))
    for _ in range(20):
        assert caller.answer(caller.send("double", [[1.0, 2.0]])).tolist() == [[2, 4]]
    assert threads[1] == "worker double/1 0"
    assert "worker double/1 0" not in threads[-5:]  # the cost of a run is learnt after its answer has left


@pytest.mark.parametrize(("graph", "settings"), [("free", {}), ("double", {"intra_op_threads": 2})])
def test_a_run_whose_cost_does_not_follow_from_its_rows_is_left_to_a_worker(
    registry, graphs, serving, calling, threads, monkeypatch, graph, settings
):
    """One row of free size may take a second: the loop is not held up by it, however short those before were."""
    monkeypatch.setattr("penstock.server.transports.waves.INLINE_NS", 10**10)
    onnx = graphs.same("FP32", "n", "k") if graph == "free" else graphs.double()
    graphs.publish(registry, graph, onnx)
    caller = calling(serving(transport="grpcio", **settings))
    for _ in range(20):
        caller.answer(caller.send(graph, [[1.0, 2.0]]))
    assert set(threads[1:]) == {f"worker {graph}/1 0"}


@pytest.mark.parametrize("names", [["a"], ["a", "c"], ["b", "a"]])
def test_a_version_whose_profile_is_of_other_columns_is_not_served_and_says_why(
    registry, graphs, serving, calling, names
):
    profile = Reference(features=Profile.of(np.ones((10, len(names)), np.float32), names))
    files = {"profile.json": profile.to_json()}
    graphs.publish(registry, "double", graphs.double(), columns=("a", "b"), files=files)
    caller = calling(serving(transport="grpcio"))
    (state,) = caller.client.models()
    assert state.state == "UNAVAILABLE"
    assert "the version reads a, b" in state.reason
    with pytest.raises(NotFound):
        caller.client.predict("double", [[1.0, 2.0]])
