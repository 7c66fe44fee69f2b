"""A served ensemble of trees: whoever runs it, and wherever, callers get the same answers."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.ensemble import GradientBoostingClassifier

from penstock.client import Client
from penstock.converters import convert
from penstock.kernels.ort import OrtError
from penstock.server.config import Config
from penstock.server.forests import steps
from penstock.server.version import Served

ROWS = np.random.default_rng(3).normal(size=(600, 5)).astype(np.float32)
SIZES = (1, 7, 64, 300)


@pytest.fixture
def trees(registry):
    labels = (ROWS[:, 0] * ROWS[:, 1] > 0.1).astype(int)
    model = GradientBoostingClassifier(n_estimators=30, max_depth=4, random_state=0).fit(ROWS, labels)
    convert(model, "trees", ROWS, labels=labels, registry=registry)


def answers(server):
    """What batches of several sizes come to, by output."""
    with Client(server.grpc) as client:
        vector = client.config("trees").vector
        return [client.predict("trees", {vector: ROWS[:size]}).outputs for size in SIZES]


def told(registry, **settings):
    version = Served(registry.load("trees", 1), Config(registry=registry.root, **settings), None)
    version.drain()
    assert version.join(20)
    return version


def test_answers_are_those_of_onnx_runtime_whoever_runs_the_trees(registry, trees, penstock_server, tmp_path):
    def served(forests, inline):
        settings = tmp_path / f"{forests}-{inline}.yaml"
        settings.write_text(f"forests: {forests}\ninline: {inline}\n")
        return answers(penstock_server(registry.root, "--config", str(settings)))

    expected = served("off", "off")
    for forests, inline in (("on", "off"), ("on", "on"), ("auto", "auto")):
        for got, wanted in zip(served(forests, inline), expected, strict=True):
            assert set(got) == set(wanted)
            for name, values in wanted.items():
                if values.dtype == np.float32:
                    assert steps(got[name], values) <= 1
                else:
                    assert (got[name] == values).all()


def test_a_version_says_who_runs_it(registry, trees):
    on = told(registry, forests="on")
    assert on.model.startswith("forest: 30 trees, ")
    assert on.model.endswith("; forests are on")
    assert on.way.startswith("inline: ")
    assert told(registry, forests="off").model == "onnxruntime: forests are off"


def test_a_graph_that_nobody_runs_any_more_is_given_back(registry, trees):
    """What the forest serves alone is served on, and the names and types of the graph are still known."""
    on, off = told(registry, forests="on"), told(registry, forests="off")
    graph, vector = on.pipeline.session.graph, on.plan.inputs[0].name
    assert graph.inputs == (vector,)
    assert graph.dtype(vector) == np.float32
    with pytest.raises(OrtError, match="the graph was given back"):
        graph.run({vector: ROWS})
    for name, values in off.pipeline.compute({vector: ROWS}).items():
        assert (on.pipeline.compute({vector: ROWS})[name] == values).all()


def test_a_graph_without_trees_is_left_to_onnx_runtime(registry, graphs):
    graphs.publish(registry, "trees", graphs.double())
    assert told(registry).model == "onnxruntime: no ensemble of trees in the graph"
