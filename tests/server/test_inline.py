"""Which way a version's calls take, and that callers cannot tell the difference."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.request import urlopen

import grpc
import numpy as np
import pytest
from onnx import TensorProto, helper

from penstock.features.transforms import FunctionStep, Transforms
from penstock.monitoring import Profile, Reference
from penstock.proto import inference_pb2 as pb
from penstock.registry.manifest import Score
from penstock.server.config import Config
from penstock.server.version import Served

pytest.importorskip("penstock.kernels.http2", reason="this build has no native transport")


def served(registry, name, **settings):
    """A version as a server loads it."""
    return Served(registry.load(name, 1), Config(registry=registry.root, **settings), None)


def way(registry, name, **settings):
    version = served(registry, name, **settings)
    version.drain()
    assert version.join(20)
    return version.way


def inlined(addresses):
    """How many calls I/O threads ran themselves."""
    with urlopen(f"http://{addresses.metrics}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    (line,) = (line for line in lines if line.startswith("penstock_transport_inlined_total "))
    return int(float(line.split()[1]))


def deep(layers=200, width=512):
    """A graph of milliseconds a row."""
    weights = np.random.default_rng(0).standard_normal((width, width)).astype(np.float32) / 16
    tensor = helper.make_tensor("w", TensorProto.FLOAT, weights.shape, weights.ravel())
    nodes = []
    for i in range(layers):
        nodes.append(("MatMul", [f"h{i}" if i else "x", "w"], [f"m{i}"], {}))
        nodes.append(("Tanh", [f"m{i}"], [f"h{i + 1}" if i + 1 < layers else "y"], {}))
    return nodes, [("x", "FP32", ["n", width])], [("y", "FP32", ["n", width])], [tensor]


@pytest.fixture
def slow(registry, graphs):
    graphs.publish(registry, "slow", graphs.graph(*deep()))


# ---- Which way, and why ---------------------------------------------------------------------------------------------


def test_a_cheap_version_is_run_inline_and_says_what_it_costs(registry, graphs):
    graphs.publish(registry, "double", graphs.double())
    assert way(registry, "double").startswith("inline: a run of 1 row takes ")
    assert way(registry, "double").endswith(" us")
    assert way(registry, "double", inline="on").endswith(" us, and inline is on")


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"inline": "off"}, "inline is off"),
        ({"max_queue_delay_us": 100}, "batches wait for company (max_queue_delay_us)"),
        ({"intra_op_threads": 2}, "a run has several threads (intra_op_threads)"),
    ],
)
def test_settings_that_leave_runs_to_workers_are_named(registry, graphs, settings, why):
    graphs.publish(registry, "double", graphs.double())
    assert way(registry, "double", **settings) == f"lane: {why}"


def test_versions_that_are_not_for_an_engine_say_why(registry, graphs):
    graphs.publish(registry, "texts", graphs.same("BYTES", "n", 2))
    graphs.publish(registry, "free", graphs.same("FP32", "n", "k"))
    graphs.publish(registry, "whole", graphs.same("FP32", 2, 2))
    assert way(registry, "texts") == "lane: it takes texts"
    assert way(registry, "free") == "lane: its inputs have free sizes"
    assert way(registry, "whole") == "lane: it takes no batches"


def test_a_dear_version_is_left_to_workers_unless_it_is_forced(registry, slow):
    told = way(registry, "slow")
    assert told.startswith("lane: a run of 1 row takes ")
    assert told.endswith(" us, and an I/O thread has 200 us")
    assert way(registry, "slow", inline="on").startswith("inline: ")


def test_a_version_whose_graph_fails_on_made_up_rows_is_left_to_workers(registry, graphs, caplog):
    table = helper.make_tensor("table", TensorProto.INT64, [1], [7])
    ends = [("x", "INT64", ["n", 1])], [("y", "INT64", ["n", 1])]
    graphs.publish(registry, "picky", graphs.graph([("Gather", ["table", "x"], ["y"], {})], *ends, [table]))
    assert (
        way(registry, "picky")
        == "lane: what a run takes is not known, since the graph fails on rows made up for measuring"
    )
    assert "was not warmed up" in caplog.text


@pytest.mark.parametrize("value", ["on", "off", "auto", "'on'"])
def test_a_bare_on_in_yaml_is_the_switch_and_no_truth_value(tmp_path, value):
    (tmp_path / "serve.yaml").write_text(f"inline: {value}\n")
    assert Config.read(tmp_path / "serve.yaml").inline == value.strip("'")


def test_a_version_that_calls_functions_is_not_run_inline(registry, graphs):
    step = FunctionStep(name="own", columns=("a",), outputs=("b",))
    files = {"transforms.json": Transforms(steps=(step,)).to_json().encode()}
    graphs.publish(registry, "calls", graphs.copy(2), columns=("a",), files=files)
    functions = {"own": "numpy:negative"}
    assert way(registry, "calls", functions=functions) == "lane: its transforms call Python functions"


# ---- Callers cannot tell --------------------------------------------------------------------------------------------


TRANSFORMS = {
    "steps": [
        {"op": "impute", "columns": ["b"], "fill": [0.25]},
        {"op": "standardize", "columns": ["a", "b"], "mean": [0.5, -1.0], "scale": [2.0, 0.125]},
    ]
}


@pytest.fixture
def watched(registry, graphs):
    """A version with transforms, two outputs, a profile and a score."""
    rng = np.random.default_rng(7)
    rows = rng.standard_normal((200, 2)).astype(np.float32)
    reference = Reference(
        features=Profile.of(rows, ["a", "b"]), score=Profile.of(rows.sum(axis=1, keepdims=True), ["score"])
    )
    transforms = Transforms.model_validate(TRANSFORMS)
    files = {"profile.json": reference.to_json(), "transforms.json": transforms.model_dump_json().encode()}
    score = Score(output="score", column=None)
    graphs.publish(registry, "watched", graphs.copy(2), columns=("a", "b"), files=files, score=score)


def requests(seed, count=300):
    """Calls of every kind: the matrix, columns, both, chosen outputs, and what does not fit."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        request = pb.ModelInferRequest(model_name="watched", id=str(number))
        rows = int(rng.integers(1, 6))
        if number % 3:
            tensor = request.inputs.add(name="x", datatype="FP32", shape=[rows, 3 if number % 29 == 0 else 2])
            tensor.contents.fp32_contents.extend(rng.standard_normal(rows * 2).tolist())
        if number % 3 != 1:
            tensor = request.inputs.add(name="b", datatype="FP64", shape=[rows])
            tensor.contents.fp64_contents.extend(rng.choice([0.5, np.nan, 1e300, -1.0], rows).tolist())
        if number % 7 == 0:
            request.outputs.add(name="score")
        yield request


def replies(caller, sent):
    """(status, answer) of each, several at once."""

    def ask(request):
        try:
            return 0, caller.stub.ModelInfer(request, timeout=20).SerializeToString(deterministic=True)
        except grpc.RpcError as error:
            return error.code(), error.details()

    with ThreadPoolExecutor(8) as threads:
        return list(threads.map(ask, sent))


def test_answers_statuses_statistics_and_drift_are_those_of_the_lane(watched, serving, calling):
    told = []
    for inline in ("off", "on", "auto"):
        addresses = serving(transport="native", inline=inline, metrics="127.0.0.1:0")
        caller = calling(addresses)
        answers = replies(caller, requests(1))
        counts = caller.counts("watched")
        (drift,) = caller.client.drift("watched", current=True)
        phases = {name: phase.count for name, phase in counts.phases.items() if name in ("success", "fail", "queue")}
        told.append((answers, phases, counts.inference_count, drift.rows, repr((drift.features, drift.score))))
        assert bool(inlined(addresses)) == (inline != "off")
    assert told[1][0] == told[0][0]
    assert told[1:] == [told[0], told[0]]


# ---- Nobody waits for a dear run ------------------------------------------------------------------------------------


def test_calls_of_a_cheap_version_are_answered_while_a_dear_one_runs(registry, graphs, serving, calling):
    graphs.publish(registry, "slow", graphs.graph(*deep(layers=400, width=512)))
    graphs.publish(registry, "double", graphs.double())
    addresses = serving(transport="native", metrics="127.0.0.1:0")
    caller = calling(addresses)
    caller.answer(caller.send("double", [[1.0, 2.0]]))
    before = inlined(addresses)
    dear = caller.send("slow", np.ones((400, 512), np.float32), timeout=100)
    cheap = 0
    while not dear.done():
        assert caller.answer(caller.send("double", [[1.0, 2.0]])).tolist() == [[2, 4]]
        cheap += 1
    assert dear.result()
    assert cheap > 10, "they were answered while it ran, not after it"
    assert inlined(addresses) - before == cheap, "and none of the dear ones was run by the thread that reads"


def test_a_cheap_versions_tail_is_hardly_longer_beside_a_dear_one(registry, graphs, slow, serving, calling):
    """Within ten times, on any machine; `benchmarks/mixed.py` has the figure."""
    graphs.publish(registry, "double", graphs.double())
    address = serving(transport="native")
    caller, other = calling(address), calling(address)

    def p99():
        took = []
        for _ in range(300):
            started = time.perf_counter()
            caller.answer(caller.send("double", [[1.0, 2.0]]))
            took.append(time.perf_counter() - started)
        return sorted(took)[296]

    p99()
    alone = p99()
    x = np.ones((1, 512), np.float32)
    with ThreadPoolExecutor(1) as thread:
        stop = []

        def load():
            while not stop:
                other.answer(other.send("slow", x))

        loading = thread.submit(load)
        try:
            beside = min(p99() for _ in range(3))
        finally:
            stop.append(True)
        loading.result()
    assert beside < 10 * alone + 0.02


@pytest.fixture
def nicer(registry, graphs, serving, calling):
    """Serves a version by workers; the threads that are less urgent than this one, and by how much."""
    if os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) > 9:
        pytest.skip("the tests themselves are run with a niceness that leaves no room")
    graphs.publish(registry, "double", graphs.double())

    def serve(**settings):
        before = {*threading.enumerate()}  # threads of libraries among them, whose end Python is not told of
        caller = calling(serving(transport="native", **settings))
        assert caller.answer(caller.send("double", [[1.0, 2.0]])).tolist() == [[2, 4]]
        started = [thread for thread in threading.enumerate() if thread not in before and thread.native_id]
        nice = {thread.name: os.getpriority(os.PRIO_PROCESS, thread.native_id) for thread in started}
        own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        return {name: value - own for name, value in nice.items() if value != own}

    return serve


def test_workers_can_be_told_to_yield_and_nobody_else_does(nicer):
    assert nicer(inline="off", worker_nice=7) == {"worker double/1 0": 7}


@pytest.mark.parametrize(("long_ns", "nice", "expected"), [(0, "auto", 10), (0, 0, 0), (10**12, "auto", 0)])
def test_workers_yield_where_runs_are_long_unless_they_are_told_otherwise(nicer, monkeypatch, long_ns, nice, expected):
    monkeypatch.setattr("penstock.server.version.LONG_RUN_NS", long_ns)
    assert nicer(worker_nice=nice) == ({"worker double/1 0": expected} if expected else {})


def test_workers_that_may_not_yield_say_so_and_work(nicer, monkeypatch, caplog):
    def refused(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("penstock.server.pipeline.os.setpriority", refused)
    assert nicer(inline="off", worker_nice=7) == {}
    assert "workers do not yield (worker_nice): [Errno 1]" in caplog.text


def test_counted_as_inlined_is_what_was_run(registry, graphs, serving, calling):
    """A call that is dropped at the end of a pass was read by that thread, and not run by anybody."""
    graphs.publish(registry, "double", graphs.double())
    addresses = serving(transport="native", inline="on", metrics="127.0.0.1:0")
    caller = calling(addresses)
    for _ in range(3):
        caller.answer(caller.send("double", [[1.0, 2.0]]))
    request = caller.request("double", [[1.0, 2.0]])
    request.parameters["timeout"].int64_param = 1  # microsecond: over before the pass is
    for _ in range(5):
        with pytest.raises(grpc.RpcError) as refused:
            caller.stub.ModelInfer(request, timeout=20)
        assert refused.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert inlined(addresses) == 3
