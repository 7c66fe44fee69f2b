"""Values cross the model runtime unchanged, bfloat16 and text included."""

from __future__ import annotations

import numpy as np
import pytest

from penstock.kernels import ort
from penstock.server.session import ModelRefused, Session


def bf16_session(graphs, *shape):
    return Session(graphs.same("BF16", *shape), ["y"])


def test_every_bfloat16_bit_pattern_comes_back(graphs):
    patterns = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    answer = bf16_session(graphs, "n", 256).run({"x": patterns})["y"]
    assert (answer.dtype, answer.shape) == (np.uint16, (256, 256))
    np.testing.assert_array_equal(answer, patterns)


def test_bfloat16_results_outlive_the_run_and_may_be_empty(graphs):
    session = bf16_session(graphs, "n", "k")
    kept = [session.run({"x": np.full((64, 64), i, np.uint16)})["y"] for i in range(200)]
    assert all((answer == i).all() for i, answer in enumerate(kept))
    assert session.run({"x": np.zeros((0, 3), np.uint16)})["y"].shape == (0, 3)


def test_bfloat16_beside_other_types_in_one_graph(graphs):
    ends = [("x", "BF16", ["n"]), ("z", "FP32", ["n"])], [("y", "FP32", ["n"]), ("w", "BF16", ["n"])]
    nodes = [
        ("Cast", ["x"], ["wide"], {"to": 1}),
        ("Add", ["wide", "z"], ["y"], {}),
        ("Cast", ["y"], ["w"], {"to": 16}),
    ]
    session = Session(graphs.graph(nodes, *ends), ["y", "w"])
    answer = session.run({"x": np.array([0x3F80, 0x4000], np.uint16), "z": np.array([0.5, 1.0], np.float32)})
    assert answer["y"].tolist() == [1.5, 3.0]
    assert answer["w"].tolist() == [0x3FC0, 0x4040]


def test_bfloat16_beside_text_in_one_graph(graphs):
    nodes = [("Identity", ["x"], ["y"], {}), ("Identity", ["t"], ["u"], {})]
    ends = [("x", "BF16", ["n"]), ("t", "BYTES", ["n"])], [("y", "BF16", ["n"]), ("u", "BYTES", ["n"])]
    answer = Session(graphs.graph(nodes, *ends), ["y", "u"]).run(
        {"x": np.array([0x3F80], np.uint16), "t": np.array(["grün"], object)}
    )
    assert (answer["y"].tolist(), answer["u"].tolist()) == ([0x3F80], ["grün"])


@pytest.mark.parametrize("data", [b"", b"no graph", b"\x08\x0a"], ids=["empty", "text", "cut"])
def test_what_is_no_graph_is_refused_in_one_line(data):
    with pytest.raises(ModelRefused) as caught:
        Session(data, ["y"])
    assert "\n" not in str(caught.value)


def test_an_answer_keeps_the_order_of_the_outputs_asked_for(graphs):
    session = Session(graphs.copy(2), ["score", "y"])
    assert list(session.run({"x": np.ones((1, 2), np.float32)})) == ["score", "y"]


def test_without_onnx_runtime_a_version_is_refused_with_what_to_install(graphs, monkeypatch):
    def missing(*args, **kwargs):
        raise ort.OrtError("there is no libonnxruntime.so in a package onnxruntime: pip install onnxruntime")

    monkeypatch.setattr(ort, "version", missing)
    with pytest.raises(ModelRefused, match="pip install onnxruntime"):
        Session(graphs.double(), ["y"])
