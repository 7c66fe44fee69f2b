"""Versions come and go while calls flow; nobody notices but by the answers."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from pathlib import Path

import pytest

from penstock.errors import NotFound
from penstock.registry import Draft, Registry
from penstock.server.config import Config
from penstock.server.lifecycle import Models


def scaled(graphs, factor):
    """y = x * factor: tells which version answered."""
    from onnx import TensorProto, helper

    constant = helper.make_tensor("factor", TensorProto.FLOAT, [1], [float(factor)])
    ends = [("x", "FP32", ["n", 1])], [("y", "FP32", ["n", 1])]
    return graphs.graph([("Mul", ["x", "factor"], ["y"], {})], *ends, [constant])


@pytest.fixture
def publish(registry, graphs):
    """Publishes a version that multiplies by so much."""
    return lambda factor, name="scaled": graphs.publish(registry, name, scaled(graphs, factor))


@pytest.fixture
def caller(publish, serving, calling):
    publish(1)
    return calling(serving(poll_s=0.02))


def answer(caller, version=""):
    return caller.answer(caller.send("scaled", [[1.0]], model_version=version)).item()


def corrupt(registry: Registry, name, version):
    path = registry.root / "models" / name / "versions" / str(version) / "model.onnx"
    path.parent.chmod(0o755)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"\0")


class Traffic:
    """Callers that never stop, never try again, and keep what they were answered."""

    def __init__(self, caller, threads=4):
        self._caller = caller
        self._ended = threading.Event()
        self.answers: list[float] = []
        self.errors: list[Exception] = []
        self._threads = [threading.Thread(target=self._call) for _ in range(threads)]

    def _call(self):
        while not self._ended.is_set():
            try:
                self.answers.append(answer(self._caller))
            except Exception as error:
                self.errors.append(error)
                return

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        for thread in self._threads:
            thread.join()


def test_a_promoted_version_takes_over_without_a_failed_call(caller, publish, registry, eventually):
    with Traffic(caller) as traffic:
        for version in range(2, 8):
            publish(version)
            registry.promote("scaled", version, who="test", why="newer")
            eventually(lambda version=version: traffic.errors or traffic.answers[-1:] == [version])
        registry.rollback("scaled", who="test", why="back")
        eventually(lambda: traffic.errors or traffic.answers[-1:] == [6])
    assert not traffic.errors
    assert len(traffic.answers) > 100
    assert set(traffic.answers) == set(range(1, 8))


def test_what_was_replaced_is_drained_and_forgotten(caller, publish, registry, eventually):
    publish(2)
    registry.promote("scaled", 2, who="test", why="newer")
    eventually(lambda: answer(caller) == 2)
    eventually(lambda: [(s.version, s.state) for s in caller.client.models()] == [("2", "READY")])
    assert [found.version for found in caller.client.statistics()] == ["2"]
    with pytest.raises(Exception, match="served are versions 2"):
        caller.client.predict("scaled", [[1.0]], version="1")


def test_a_champion_that_went_bad_leaves_the_previous_one_answering_and_tells_why(
    caller, publish, registry, eventually, tmp_path
):
    with Traffic(caller) as traffic:
        publish(2)
        shutil.copytree(registry.root, tmp_path / "copy")
        Registry(tmp_path / "copy").promote("scaled", 2, who="test", why="it was well then")
        corrupt(registry, "scaled", 2)
        aliases = Path("models", "scaled", "aliases.json")
        (tmp_path / "copy" / aliases).replace(registry.root / aliases)
        eventually(lambda: len(caller.client.models()) == 2)
        before = len(traffic.answers)
        eventually(lambda: traffic.errors or len(traffic.answers) > before + 50)
    assert not traffic.errors
    assert set(traffic.answers) == {1}
    states = {state.version: state for state in caller.client.models()}
    assert (states["1"].state, states["2"].state) == ("READY", "UNAVAILABLE")
    assert "model.onnx" in states["2"].reason
    publish(3)
    registry.promote("scaled", 3, who="test", why="mended")
    eventually(lambda: answer(caller) == 3)


def test_a_champion_onnx_runtime_refuses_leaves_the_previous_one_answering(
    caller, graphs, publish, registry, eventually
):
    publish(2)
    manifest = registry.manifest("scaled", 2)
    fields = {name: getattr(manifest, name) for name in Draft.model_fields}
    registry.publish(Draft.model_validate(fields), {"model.onnx": b"no graph at all"})
    registry.promote("scaled", 3, who="test", why="not knowing better")
    states = eventually(lambda: len(found := caller.client.models()) == 2 and found)
    assert [(state.version, state.state) for state in states] == [("1", "READY"), ("3", "UNAVAILABLE")]
    assert "ONNX Runtime" in states[1].reason
    assert answer(caller) == 1


def test_aliases_are_served_side_by_side(caller, publish, registry, eventually):
    publish(2)
    registry.promote("scaled", 2, alias="canary", who="test", why="try it")
    eventually(lambda: len(caller.client.metadata("scaled").versions) == 2)
    assert [answer(caller, version) for version in ("", "champion", "1", "canary", "2")] == [1, 1, 1, 2, 2]


def test_a_model_published_while_serving_is_taken_up(caller, publish, eventually):
    def ready():
        with contextlib.suppress(NotFound):
            return caller.client.ready("later")
        return False

    publish(5, name="later")
    eventually(ready)
    assert caller.client.predict("later", [[2.0]])["y"].tolist() == [[10]]


def test_a_version_wanted_again_before_it_is_drained_goes_on(publish, registry, graphs):
    """Promote and roll back between two looks: counters go on, nothing is loaded twice."""
    publish(1)
    publish(2)
    models = Models(registry, Config(), None)
    models.refresh()
    first = models.find("scaled")
    registry.promote("scaled", 2, who="test", why="newer")
    models.refresh()
    assert models.find("scaled").version == 2
    registry.rollback("scaled", who="test", why="older")
    models.refresh()
    assert models.find("scaled") is first
    assert models.states["scaled", 1].state == "READY"
    assert models.close(5)


def test_aliases_that_cannot_be_read_leave_every_version_answering(caller, publish, registry, eventually, caplog):
    publish(2)
    registry.promote("scaled", 2, alias="canary", who="test", why="try it")
    eventually(lambda: len(caller.client.metadata("scaled").versions) == 2)
    aliases = registry.root / "models" / "scaled" / "aliases.json"
    known, broken = aliases.read_bytes(), aliases.with_suffix(".broken")
    broken.write_text("{")
    broken.replace(aliases)  # at once, as the registry writes: half of it is told as another fault
    eventually(lambda: "what is loaded goes on" in caplog.text)
    for _ in range(20):
        time.sleep(0.02)
        assert answer(caller, "canary") == 2
    assert caplog.text.count("what is loaded goes on") == 1
    assert [answer(caller, version) for version in ("", "champion", "1", "canary", "2")] == [1, 1, 1, 2, 2]
    aliases.write_bytes(known)
    assert {(state.version, state.state) for state in caller.client.models()} == {("1", "READY"), ("2", "READY")}


def test_a_registry_that_cannot_be_read_leaves_everything_as_it_is(caller, registry, eventually):
    models = registry.root / "models"
    hidden = registry.root / "hidden"
    models.rename(hidden)
    models.write_text("no folder")
    for _ in range(20):
        assert answer(caller) == 1
    models.unlink()
    hidden.rename(models)
    assert answer(caller) == 1


class CountingRegistry(Registry):
    """Counts how often each version is read from disk."""

    def __init__(self, root):
        super().__init__(root)
        self.loads: list[int] = []

    def load(self, name, version):
        self.loads.append(version)
        return super().load(name, version)


def test_a_version_that_does_not_load_is_tried_ever_less_often_until_an_alias_moves(publish, registry):
    publish(1)
    publish(2)
    registry.promote("scaled", 2)
    corrupt(registry, "scaled", 2)
    counting = CountingRegistry(registry.root)
    models = Models(counting, Config(registry=registry.root), None)
    try:
        for _ in range(16):
            models.refresh()
        assert counting.loads == [2, 1, 2, 2, 2, 2]  # looks 1, 2, 4, 8 and 16; version 1 answers meanwhile
        registry.promote("scaled", 1, alias="challenger")
        models.refresh()
        assert counting.loads[6:] == [2]
    finally:
        models.close(5)
