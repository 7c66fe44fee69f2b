"""Graphs run by the C API give what ONNX Runtime's own Python package gives, to the bit, and nothing is lost."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import TensorProto, helper

from penstock.kernels import ort

KINDS = {
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
    "float16": TensorProto.FLOAT16,
    "bool": TensorProto.BOOL,
    **{
        f"{sign}int{bits}": getattr(TensorProto, f"{sign}INT{bits}".upper())
        for sign in ("", "u")
        for bits in (8, 16, 32, 64)
    },
}


def graph(nodes, inputs, outputs, constants=()):
    """ONNX bytes; inputs and outputs are (name, element type, shape)."""
    ends = [[helper.make_tensor_value_info(*end) for end in side] for side in (inputs, outputs)]
    made = helper.make_graph([helper.make_node(*node[:3], **node[3]) for node in nodes], "g", *ends, list(constants))
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()


def same(kind, *shape):
    return graph([("Identity", ["x"], ["y"], {})], [("x", kind, shape)], [("y", kind, shape)])


def layered(seed=0):
    """Two inputs, three outputs of two types: a small network."""
    rng = np.random.default_rng(seed)
    weights = [
        helper.make_tensor(n, TensorProto.FLOAT, w.shape, w.ravel())
        for n, w in (
            ("w", rng.standard_normal((6, 8)).astype(np.float32)),
            ("v", rng.standard_normal((8, 3)).astype(np.float32)),
        )
    ]
    nodes = [
        ("MatMul", ["x", "w"], ["a"], {}),
        ("Add", ["a", "b"], ["c"], {}),
        ("Tanh", ["c"], ["hidden"], {}),
        ("MatMul", ["hidden", "v"], ["d"], {}),
        ("Softmax", ["d"], ["shares"], {"axis": 1}),
        ("ArgMax", ["d"], ["label"], {"axis": 1, "keepdims": 0}),
    ]
    floats = TensorProto.FLOAT
    inputs = [("x", floats, ["n", 6]), ("b", floats, ["n", 8])]
    outputs = [("shares", floats, ["n", 3]), ("label", TensorProto.INT64, ["n"]), ("hidden", floats, ["n", 8])]
    return graph(nodes, inputs, outputs, weights)


def binding(onnx):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])


def equal(ours, theirs):
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    assert ours.tobytes() == theirs.tobytes()


def both(onnx):
    return ort.Session(onnx), binding(onnx)


SESSIONS = {name: both(same(kind, "a", "b", "c")) for name, kind in KINDS.items()}


@given(data=st.data(), name=st.sampled_from(sorted(KINDS)))
@settings(max_examples=150, deadline=None)
def test_every_type_and_shape_comes_out_as_the_python_package_gives_it(data, name):
    shape = arrays.array_shapes(min_dims=3, max_dims=3, min_side=0, max_side=5)
    x = data.draw(arrays.arrays(np.dtype(name), shape))
    ours, theirs = SESSIONS[name]
    assert ours.dtype("x") == np.dtype(name)
    equal(ours.run({"x": x})["y"], theirs.run(["y"], {"x": x})[0])


LAYERED = both(layered())


@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(0, 70))
@settings(max_examples=60, deadline=None)
def test_a_network_gives_the_same_bits(seed, rows):
    rng = np.random.default_rng(seed)
    feeds = {
        "x": rng.standard_normal((rows, 6)).astype(np.float32),
        "b": rng.standard_normal((rows, 8)).astype(np.float32),
    }
    ours = LAYERED[0].run(feeds)
    assert list(ours) == ["shares", "label", "hidden"]
    for got, wanted in zip(ours.values(), LAYERED[1].run(None, feeds), strict=True):
        equal(got, wanted)


TEXTS = both(same(TensorProto.STRING, "a", "b"))


@given(x=arrays.arrays(object, st.tuples(st.integers(0, 4), st.integers(0, 3)), elements=st.text(max_size=40)))
@settings(max_examples=80, deadline=None)
def test_texts_come_back_as_they_went_zeros_inside_included(x):
    if any("\ud800" <= c <= "\udfff" for text in x.ravel() for c in text):
        with pytest.raises(UnicodeEncodeError):
            TEXTS[0].run({"x": x})
        return
    got = TEXTS[0].run({"x": x})["y"]
    assert (got.shape, got.tolist()) == (x.shape, x.tolist())


def test_texts_may_be_given_as_bytes_or_of_a_fixed_width():
    assert TEXTS[0].run({"x": np.array([["grün".encode(), "blau"]], object)})["y"].tolist() == [["grün", "blau"]]
    assert TEXTS[0].run({"x": np.array([["rot"]])})["y"].tolist() == [["rot"]]


def test_only_the_outputs_asked_for_are_given_and_in_that_order():
    session = ort.Session(layered(), ["label", "shares"])
    assert (session.inputs, session.outputs) == (("x", "b"), ("label", "shares"))
    answer = session.run({"x": np.ones((2, 6), np.float32), "b": np.ones((2, 8), np.float32)})
    assert list(answer) == ["label", "shares"]


def test_memory_order_of_what_is_fed_does_not_matter():
    x = np.asfortranarray(np.arange(24, dtype=np.float32).reshape(2, 3, 4))
    equal(SESSIONS["float32"][0].run({"x": x})["y"], np.ascontiguousarray(x))
    x.flags.writeable = False
    equal(SESSIONS["float32"][0].run({"x": x})["y"], np.ascontiguousarray(x))


def test_an_output_that_is_an_input_or_a_constant_is_an_array_of_its_own():
    constant = helper.make_tensor("k", TensorProto.FLOAT, [2], [1.0, 2.0])
    onnx = graph(
        [("Identity", ["k"], ["y"], {})], [("x", TensorProto.FLOAT, [1])], [("y", TensorProto.FLOAT, [2])], [constant]
    )
    session = ort.Session(onnx)
    for _ in range(2):
        got = session.run({"x": np.zeros(1, np.float32)})["y"]
        assert got.tolist() == [1, 2]
        got[:] = 7
    x = np.ones((1, 1, 1), np.float32)
    got = SESSIONS["float32"][0].run({"x": x})["y"]
    x[:] = 5
    assert got.item() == 1


def refused(match, call):
    with pytest.raises(ort.OrtError, match=match):
        call()


def test_what_does_not_fit_the_graph_is_told():
    session = LAYERED[0]
    x, b = np.ones((2, 6), np.float32), np.ones((2, 8), np.float32)
    refused("the graph reads x, b; given were x", lambda: session.run({"x": x}))
    refused("given were x, b, z", lambda: session.run({"x": x, "b": b, "z": b}))
    refused("input 'x' is float64 .*; the graph reads float32", lambda: session.run({"x": x.astype(float), "b": b}))
    refused("input 'x' is float32 .*; the graph", lambda: session.run({"x": x.reshape((2, 6) + (1,) * 7), "b": b}))
    refused("invalid dimensions for input: x", lambda: session.run({"x": b, "b": b}))
    refused("no output 'q'; it has shares, label, hidden", lambda: ort.Session(layered(), ["q"]))
    with pytest.raises(KeyError):
        session.dtype("q")


@pytest.mark.parametrize("onnx", [b"", b"no graph", b"\x08\x0a", layered()[:-100]])
def test_what_is_no_graph_is_refused(onnx):
    refused(".", lambda: ort.Session(onnx))


def test_outputs_that_are_no_tensors_are_refused_unless_nobody_asks_for_them():
    made = helper.make_graph(
        [helper.make_node("SequenceConstruct", ["x", "x"], ["s"]), helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"]),
            helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, ["n"]),
        ],
    )
    onnx = helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()
    refused("output 's' is no tensor", lambda: ort.Session(onnx))
    assert ort.Session(onnx, ["y"]).run({"x": np.ones(2, np.float32)})["y"].tolist() == [1, 1]


def reciprocal():
    hundred = helper.make_tensor("hundred", TensorProto.INT64, [1], [100])
    ends = [("x", TensorProto.INT64, ["n"])], [("y", TensorProto.INT64, ["n"])]
    return graph([("Div", ["hundred", "x"], ["y"], {})], *ends, [hundred])


def test_a_run_that_fails_says_why_and_the_next_one_is_well():
    session = ort.Session(reciprocal())
    refused("division by zero", lambda: session.run({"x": np.array([1, 0])}))
    assert session.run({"x": np.array([4, 5])})["y"].tolist() == [25, 20]


def test_a_run_that_fails_writes_nothing_to_stderr(capfd):
    """The thread that runs it may be one that reads calls, and would wait for whoever reads stderr."""
    session = ort.Session(reciprocal())
    refused("division by zero", lambda: session.run({"x": np.array([1, 0])}))
    assert capfd.readouterr() == ("", "")


def test_many_threads_share_a_session():
    session = SESSIONS["int64"][0]

    def work(number):
        return all((session.run({"x": np.full((3, 3, 3), number)})["y"] == number).all() for _ in range(300))

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(work, range(8)))


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="AddressSanitizer keeps what is freed")
@pytest.mark.parametrize("what", ["numbers", "texts", "failing", "refused", "loading", "broken"])
def test_nothing_is_lost_whatever_becomes_of_a_run(what):
    """A megabyte of tensors, or a message and a session, each time: what was kept would be seen."""
    numbers, failing, onnx = SESSIONS["float32"][0], ort.Session(reciprocal()), layered()
    x = np.zeros((1, 512, 512), np.float32)
    texts = np.array([["t" * 10_000] * 50], object)
    wrong = {"x": np.zeros((9, 9), np.float32), "b": np.zeros((9, 9), np.float32)}

    def once():
        if what == "numbers":
            numbers.run({"x": x})
        elif what == "texts":
            TEXTS[0].run({"x": texts})
        elif what == "failing":
            refused("zero", lambda: failing.run({"x": np.zeros(100_000, np.int64)}))
        elif what == "refused":
            refused(
                "dimensions",
                lambda: LAYERED[0].run(wrong),
            )
        elif what == "loading":
            ort.Session(onnx)
        else:
            refused(".", lambda: ort.Session(onnx[:-100]))

    for _ in range(20):
        once()
    before = resident()
    for _ in range(200):
        once()
    assert resident() - before < 40 << 20


def test_nothing_is_reported_to_anybody():
    """No socket and no thread of its own, in a process that did nothing but load and run."""
    program = (
        "import os, numpy as np; from penstock.kernels import ort; "
        f"s = ort.Session(bytes.fromhex('{reciprocal().hex()}')); s.run({{'x': np.array([1])}}); "
        "paths = [f'/proc/self/fd/{n}' for n in os.listdir('/proc/self/fd')]; "
        "links = [os.readlink(path) for path in paths if os.path.exists(path)]; "
        "names = [open(f'/proc/self/task/{t}/comm').read().strip() for t in os.listdir('/proc/self/task')]; "
        "print(sum('socket' in l for l in links), len(names), os.environ['ORT_DISABLE_TELEMETRY'])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "1", "1"]
