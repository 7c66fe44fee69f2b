"""Engines: run inline, a batch comes to what a worker would have made of it, to the bit, and is counted the same."""

from __future__ import annotations

import logging
import threading
import time
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from penstock.kernels import ort
from penstock.kernels.calls import CANCELLED, DEADLINE_EXCEEDED, INTERNAL, EventSink, Refused
from penstock.kernels.engines import Engine, GraphEngine
from penstock.kernels.lanes import Lane
from penstock.kernels.transforms import Program
from penstock.kernels.wire import DATATYPES, NUMPY, Plan
from penstock.monitoring import Profile, Reference
from penstock.proto import inference_pb2 as pb
from penstock.registry.manifest import Score
from penstock.server.pipeline import Pipeline, run_next
from penstock.server.session import Session
from penstock.server.watch import Watch

KINDS = {
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "FP16": TensorProto.FLOAT16,
    "BF16": TensorProto.BFLOAT16,
    "BYTES": TensorProto.STRING,
    **{name: getattr(TensorProto, name) for name in DATATYPES if "INT" in name or name == "BOOL"},
}
FOREVER = 10**12


# ---- Versions -------------------------------------------------------------------------------------------------------


def graph(nodes, inputs, outputs, constants=()):
    """ONNX bytes; inputs and outputs are (name, datatype, shape)."""
    ends = [[helper.make_tensor_value_info(n, KINDS[d], s) for n, d, s in side] for side in (inputs, outputs)]
    made = helper.make_graph([helper.make_node(*node[:3], **node[3]) for node in nodes], "g", *ends, list(constants))
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()


class Version:
    """A lane, its worker's pipeline and its engine."""

    def __init__(self, plan, onnx, *, transforms=None, reference=None, score=None, **bounds):
        session = Session(onnx, [entry.name for entry in plan.outputs])
        watch = Watch(reference, score, 1e9, time.time()) if reference is not None else None
        self.plan = plan
        self.watch = watch
        self.pipeline = Pipeline(plan, session, None, transforms, watch)
        self.lane = Lane(plan, **bounds)
        counters = watch.counters() if watch is not None else {}
        self.engine = GraphEngine(plan, self.lane.ledger, session.graph, transforms=transforms, **counters)
        self.sink = EventSink()

    def submit(self, body, deadline_ns=0):
        """Queue a request; None where it was refused at once, with the status."""
        future = Future()
        try:
            future.ticket = self.lane.submit(body, self.sink, future, deadline_ns, wake=False)
        except Refused as error:
            future.set_exception(error)
        return future

    def by_worker(self):
        while run_next(self.lane, self.pipeline, block=False):
            pass
        self.sink.drain()

    def inline(self):
        self.lane.use(self.engine, always=True)
        self.lane.run_now()
        self.by_worker()  # what was left to it

    def counted(self):
        """What of the statistics does not depend on the clock, and the drift counts."""
        told = self.lane.snapshot()
        names = ["succeeded", "failed", "refused", "invalid", "expired", "cancelled", "rows", "batches"]
        names += ["queued_rows", "queued_bytes"]
        counts = {name: told[name] for name in names} | {n: told[n]["count"] for n in ("total", "queue", "compute")}
        counts["sizes"] = {rows: n for rows, (n, _) in told["sizes"].items()}
        if self.watch is not None:
            kernels = self.watch.counters()
            for name in ("features", "scores"):
                _, rows, windows, _ = kernels[name].current(time.time())
                counts[name] = (rows, windows.tolist())
        return counts


class Future:
    """What a submitter waits for."""

    def __init__(self):
        self.status = self.answer = None

    def done(self):
        return self.status is not None

    def set_result(self, answer):
        self.status, self.answer = 0, answer

    def set_exception(self, error):
        self.status, self.answer = error.status, error.message


SAME_WIDTH = Program(3, [("impute", 0, [0.5]), ("standardize", 1, [0.1, 2.0]), ("clip", 2, [-1.0, 1.0])])
WIDER = Program(
    3,
    [
        ("cyclical", 0, [0.5, 3.0]),
        ("one_hot", 1, [3, 3, 0, -1.0, 0.5, 1, 2]),
        ("product", (0, 2), []),
        ("hash", (1, 2), [4, 1, 7, 8]),
    ],
)
NARROWER = Program(3, [("ratio", (0, 2), [])], [3])


def matrix_version(transforms=SAME_WIDTH, **bounds):
    """Three columns behind transforms, two outputs, a profile and a score."""
    rng, width = np.random.default_rng(0), transforms.n_outputs
    values = rng.standard_normal(2 * width).astype(np.float32)
    weights = helper.make_tensor("w", TensorProto.FLOAT, [width, 2], values)
    nodes = [
        ("MatMul", ["x", "w"], ["z"], {}),
        ("Softmax", ["z"], ["shares"], {"axis": 1}),
        ("ArgMax", ["z"], ["label"], {"axis": 1, "keepdims": 0}),
    ]
    outputs = [("label", "INT64", ["n"]), ("shares", "FP32", ["n", 2])]
    plan = Plan(
        "m",
        "1",
        [("x", "FP32", (3,), "matrix", True)],
        [("label", "INT64", (), False), ("shares", "FP32", (2,), False)],
        ("a", "b", "c"),
    )
    columns = rng.standard_normal((100, 3)).astype(np.float32)
    reference = Reference(
        features=Profile.of(columns, ["a", "b", "c"]),
        score=Profile.of(rng.random((100, 1)).astype(np.float32), ["score"]),
    )
    onnx = graph(nodes, [("x", "FP32", ["n", width])], outputs, [weights])
    score = Score(output="shares", column=1)
    return Version(plan, onnx, transforms=transforms, reference=reference, score=score, **bounds)


def tensors_version(**bounds):
    """Inputs of three types in another order than the graph's, each watched; the score is the largest of a row."""
    nodes = [
        ("Cast", ["a"], ["a64"], {"to": TensorProto.DOUBLE}),
        ("Cast", ["c"], ["c64"], {"to": TensorProto.DOUBLE}),
        ("Add", ["a64", "b"], ["ab"], {}),
        ("Concat", ["ab", "c64"], ["y"], {"axis": 1}),
        ("IsNaN", ["y"], ["gaps"], {}),
    ]
    inputs = [("b", "FP64", ["n", 1]), ("a", "INT32", ["n", 1]), ("c", "FP32", ["n", 2])]
    plan = Plan(
        "m",
        "1",
        [
            ("a", "INT32", (1,), "tensor", False),
            ("c", "FP32", (2,), "tensor", False),
            ("b", "FP64", (1,), "tensor", False),
        ],
        [("gaps", "BOOL", (3,), False), ("y", "FP64", (3,), False)],
    )
    values = np.random.default_rng(1).standard_normal((50, 2)).astype(np.float32)
    reference = Reference(features=Profile.of(values, ["b", "a"]), score=Profile.of(values[:, :1], ["score"]))
    onnx = graph(nodes, inputs, [("gaps", "BOOL", ["n", 3]), ("y", "FP64", ["n", 3])])
    return Version(plan, onnx, reference=reference, score=Score(output="y", column=None), **bounds)


def reciprocal_version(**bounds):
    """y = 100 / x in whole numbers: a zero anywhere makes a run fail."""
    hundred = helper.make_tensor("hundred", TensorProto.INT64, [1], [100])
    onnx = graph(
        [("Div", ["hundred", "x"], ["y"], {})], [("x", "INT64", ["n", 1])], [("y", "INT64", ["n", 1])], [hundred]
    )
    plan = Plan("m", "1", [("x", "INT64", (1,), "tensor", False)], [("y", "INT64", (1,), False)])
    return Version(plan, onnx, **bounds)


# ---- Requests -------------------------------------------------------------------------------------------------------

ODD = [0.0, -0.0, 1.0, -3.5, 1e30, float("nan"), float("inf"), 0.1, 2.0**40]


def add(request, name, datatype, values):
    request.inputs.add(name=name, datatype=datatype, shape=values.shape)
    request.raw_input_contents.append(np.ascontiguousarray(values, NUMPY[datatype]).tobytes())


@st.composite
def matrix_bodies(draw):
    """The matrix, some of its columns, or both; sometimes of a wrong width."""
    rows = draw(st.integers(1, 5))
    request = pb.ModelInferRequest(model_name="m", id=draw(st.sampled_from(["", "7"])))
    values = np.array(draw(st.lists(st.sampled_from(ODD), min_size=3 * rows, max_size=3 * rows)), np.float32)
    if draw(st.booleans()):
        add(request, "x", "FP32", values.reshape(rows, 3) if draw(st.integers(0, 9)) else values.reshape(1, 3 * rows))
    for j, name in enumerate("abc"):
        if not request.inputs or draw(st.booleans()):
            add(request, name, draw(st.sampled_from(["FP32", "FP64"])), values.reshape(rows, 3)[:, j])
    if draw(st.booleans()):
        request.outputs.add(name=draw(st.sampled_from(["label", "shares"])))
    return request.SerializeToString()


@st.composite
def tensor_bodies(draw):
    """All three inputs, in any order."""
    rows = draw(st.integers(1, 5))
    request = pb.ModelInferRequest(model_name="m")
    kinds = {"a": ("INT32", 1, st.integers(-(2**31), 2**31 - 1)), "b": ("FP64", 1, st.sampled_from(ODD))}
    kinds["c"] = ("FP32", 2, st.sampled_from(ODD))
    for name in draw(st.permutations("abc")):
        datatype, width, values = kinds[name]
        drawn = draw(st.lists(values, min_size=width * rows, max_size=width * rows))
        add(request, name, datatype, np.array(drawn).reshape(rows, width))
    return request.SerializeToString()


@st.composite
def whole_bodies(draw):
    values = draw(st.lists(st.sampled_from([1, 3, -7, 100, 0]), min_size=1, max_size=4))
    request = pb.ModelInferRequest(model_name="m")
    add(request, "x", "INT64", np.array(values).reshape(-1, 1))
    return request.SerializeToString()


def whole(*values, **top):
    request = pb.ModelInferRequest(model_name="m", **top)
    add(request, "x", "INT64", np.array(values).reshape(-1, 1))
    return request.SerializeToString()


def numbers(future):
    assert future.status == 0, future.answer
    return np.frombuffer(pb.ModelInferResponse.FromString(future.answer).raw_output_contents[0], np.int64).tolist()


FATES = st.sampled_from(["", "", "", "cancelled", "expired", "in time"])


def compare(make, calls, bound):
    """The same calls by a worker and inline: the same answers, the same counts."""
    told = []
    for way in (Version.by_worker, Version.inline):
        version = make(max_batch_rows=bound)
        futures = []
        for body, fate in calls:
            deadline = {"expired": 1, "in time": time.monotonic_ns() + FOREVER}.get(fate, 0)
            futures.append(version.submit(body, deadline))
            if fate == "cancelled" and not futures[-1].done():
                futures[-1].ticket.cancel()
        way(version)
        told.append(([(future.status, future.answer) for future in futures], version.counted()))
    (answers, counts), (inline, inline_counts) = told
    for (status, answer), (other, wanted) in zip(inline, answers, strict=True):
        assert status == other
        assert answer == wanted or status == INTERNAL  # an id of its own for each
    return counts, inline_counts


@pytest.mark.parametrize(
    ("make", "bodies"),
    [
        (matrix_version, matrix_bodies()),
        (partial(matrix_version, WIDER), matrix_bodies()),
        (partial(matrix_version, NARROWER), matrix_bodies()),
        (tensors_version, tensor_bodies()),
    ],
    ids=["matrix", "wider", "narrower", "tensors"],
)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_inline_runs_answer_and_count_to_the_bit_what_workers_do(make, bodies, data):
    calls = data.draw(st.lists(st.tuples(bodies, FATES), max_size=8))
    counts, inline_counts = compare(make, calls, data.draw(st.sampled_from([1, 4, 64])))
    assert inline_counts == counts


def test_the_clock_is_read_inline_as_by_a_worker():
    """Both count days from now, a few milliseconds apart."""
    answers = []
    for way in (Version.by_worker, Version.inline):
        version = matrix_version(Program(3, [("time_since", 0, [86_400_000, 1, 86_400_000])], [0]))
        request = pb.ModelInferRequest(model_name="m")
        add(request, "x", "FP32", np.array([[time.time() / 86_400 - 2, 0, 0]], np.float32))
        request.outputs.add(name="shares")
        future = version.submit(request.SerializeToString())
        way(version)
        raw = pb.ModelInferResponse.FromString(future.answer).raw_output_contents[0]
        answers.append(np.frombuffer(raw, np.float32))
    np.testing.assert_allclose(answers[0], answers[1], atol=1e-4)
    assert 0.05 < answers[0][0] < 0.95  # two days, not twenty thousand


@given(calls=st.lists(st.tuples(whole_bodies(), FATES), max_size=8), bound=st.sampled_from([1, 4, 64]))
@settings(max_examples=40, deadline=None)
def test_one_bad_row_spoils_only_its_own_call(calls, bound):
    logging.disable()
    try:
        counts, inline_counts = compare(reciprocal_version, calls, bound)
    finally:
        logging.disable(logging.NOTSET)
    assert {n: inline_counts[n] for n in ("succeeded", "failed", "expired", "cancelled", "queued_rows")} == {
        n: counts[n] for n in ("succeeded", "failed", "expired", "cancelled", "queued_rows")
    }


def test_every_kind_of_number_is_taken_and_given():
    """An output for each datatype of numbers, from inputs of the same."""
    names = [name for name in DATATYPES[1:] if name != "BYTES"]
    nodes = [("Identity", [f"x{i}"], [f"y{i}"], {}) for i in range(len(names))]
    ends = [[(f"{side}{i}", name, ["n", 2]) for i, name in enumerate(names)] for side in "xy"]
    plan = Plan(
        "m",
        "1",
        [(f"x{i}", name, (2,), "tensor", False) for i, name in enumerate(names)],
        [(f"y{i}", name, (2,), False) for i, name in enumerate(names)],
    )
    request = pb.ModelInferRequest(model_name="m")
    rng = np.random.default_rng(5)
    for i, name in enumerate(names):
        raw = rng.integers(0, 2 if name == "BOOL" else 256, 2 * 3 * np.dtype(NUMPY[name]).itemsize, np.uint8)
        request.inputs.add(name=f"x{i}", datatype=name, shape=[3, 2])
        request.raw_input_contents.append(raw.tobytes())
    answers = []
    for way in (Version.by_worker, Version.inline):
        version = Version(plan, graph(nodes, *ends))
        future = version.submit(request.SerializeToString())
        way(version)
        answers.append(future.answer)
        assert pb.ModelInferResponse.FromString(future.answer).raw_output_contents == request.raw_input_contents
    assert answers[0] == answers[1]


# ---- Which runs are made inline -------------------------------------------------------------------------------------


def auto(version, fixed_ns=1000, row_ns=10):
    for rows in (1, 64):
        version.engine.seed(rows, fixed_ns + row_ns * rows)
    version.lane.use(version.engine)
    return version


def test_a_cheap_run_is_made_and_what_exceeds_the_budget_is_left_to_a_worker():
    version = auto(reciprocal_version(), 1000, 1000)
    first, second = version.submit(whole(4)), version.submit(whole(5))
    left = version.lane.run_now(100_000)
    version.sink.drain()
    assert numbers(first) + numbers(second) == [25, 20]
    assert left < 100_000
    large = version.submit(whole(*range(1, 301)))
    assert version.lane.run_now(100_000) == 100_000
    version.sink.drain()
    assert not large.done()
    assert version.lane.queued_rows == 300
    version.by_worker()
    assert large.status == 0


def test_nothing_is_run_where_the_cost_is_not_known():
    version = reciprocal_version()
    version.lane.use(version.engine)
    call = version.submit(whole(4))
    version.lane.run_now()
    version.sink.drain()
    assert not call.done()
    version.by_worker()
    assert numbers(call) == [25]


def test_what_was_left_to_a_worker_is_not_overtaken():
    version = auto(reciprocal_version())
    older = Future()
    version.lane.submit(whole(4), version.sink, older)  # told to the workers
    newer = version.submit(whole(5))
    version.lane.run_now()
    version.sink.drain()
    assert (older.done(), newer.done()) == (False, False)
    version.by_worker()
    assert numbers(older) + numbers(newer) == [25, 20]
    alone = version.submit(whole(2))
    version.lane.run_now()
    version.sink.drain()
    assert numbers(alone) == [50], "once the queue is empty, calls are run inline again"


def test_calls_that_expired_or_were_given_up_are_dropped_and_never_run():
    version = auto(reciprocal_version())
    expired, given_up, good = version.submit(whole(0), 1), version.submit(whole(0)), version.submit(whole(4))
    given_up.ticket.cancel()
    version.lane.run_now()
    version.sink.drain()
    assert (expired.status, given_up.status, numbers(good)) == (DEADLINE_EXCEEDED, CANCELLED, [25])
    assert version.lane.snapshot()["rows"] == 1
    version.lane.run_now()
    only = version.submit(whole(4), 1)
    version.lane.run_now()
    version.sink.drain()
    assert only.status == DEADLINE_EXCEEDED


def test_a_batch_takes_no_more_rows_than_it_may_and_the_next_one_follows():
    version = auto(reciprocal_version(max_batch_rows=4))
    calls = [version.submit(whole(1, 2)) for _ in range(5)]
    version.lane.run_now(10**9)
    version.sink.drain()
    assert [numbers(call) for call in calls] == [[100, 50]] * 5
    assert {rows: n for rows, (n, _) in version.lane.snapshot()["sizes"].items()} == {4: 2, 2: 1}


def test_a_run_that_fails_is_answered_by_a_worker_each_call_alone(caplog):
    version = auto(reciprocal_version())
    calls = [version.submit(whole(*values)) for values in ((4,), (1, 0), (5,))]
    version.lane.run_now()
    version.sink.drain()
    assert not any(call.done() for call in calls)
    assert version.lane.queued_rows == 4
    version.by_worker()
    assert (numbers(calls[0]), numbers(calls[2]), calls[1].status) == ([25], [20], INTERNAL)
    assert "internal error" in calls[1].answer
    assert "zero" not in calls[1].answer
    assert "division by zero" in caplog.text
    assert version.lane.snapshot()["sizes"].keys() == {1}
    assert version.lane.queued_bytes == 0


def test_a_lane_that_drains_while_a_batch_is_run_inline_waits_for_what_comes_of_it():
    """The worker must not end before it is certain that nothing is left to it."""
    version = auto(reciprocal_version(), 1, 1)
    outcomes = []
    worker = threading.Thread(target=lambda: [run_next(version.lane, version.pipeline) for _ in range(4)], daemon=True)
    calls = [version.submit(whole(0)) for _ in range(3)]
    runner = threading.Thread(target=lambda: outcomes.append(version.lane.run_now(10**12)))
    worker.start()
    runner.start()
    version.lane.drain()
    runner.join(20)
    worker.join(20)
    assert not worker.is_alive()
    version.sink.drain()
    assert [call.status for call in calls] == [INTERNAL] * 3


def test_many_threads_run_inline_beside_workers_and_every_call_is_answered_once():
    version = auto(reciprocal_version(max_batch_rows=8))
    workers = [
        threading.Thread(target=lambda: all(iter(lambda: run_next(version.lane, version.pipeline), False)), daemon=True)
        for _ in range(2)
    ]
    sinks = [EventSink() for _ in range(3)]
    futures = [[] for _ in sinks]

    def submit(sink, mine, seed):
        rng = np.random.default_rng(seed)
        for step in range(300):
            for value in rng.integers(1, 50, rng.integers(1, 6)):
                future = Future()
                version.lane.submit(whole(value), sink, future, wake=bool(step % 5 == 0))
                mine.append((future, 100 // value))
            version.lane.run_now()
        version.lane.wake()

    threads = [
        threading.Thread(target=submit, args=(s, f, i)) for i, (s, f) in enumerate(zip(sinks, futures, strict=True))
    ]
    for thread in [*workers, *threads]:
        thread.start()
    for thread in threads:
        thread.join(60)
    version.lane.drain()
    for worker in workers:
        worker.join(60)
    for sink in sinks:
        sink.drain()
    assert all(numbers(future) == [wanted] for mine in futures for future, wanted in mine)
    assert version.lane.snapshot()["succeeded"] == sum(map(len, futures))


# ---- Cost -----------------------------------------------------------------------------------------------------------


def test_what_runs_take_is_learnt():
    version = auto(reciprocal_version(), 10**9, 0)
    version.lane.use(version.engine, always=True)
    for _ in range(300):
        version.submit(whole(4))
        version.lane.run_now()
    version.sink.drain()
    assert 0 < version.engine.predicted_ns(1) < 5 * 10**8, "runs took microseconds, not the second that was measured"


# ---- Versions that are not for an engine ----------------------------------------------------------------------------

X, Y = ("x", "FP32", (2,), "tensor", False), ("y", "FP32", (2,), False)
SAME = graph([("Identity", ["x"], ["y"], {})], [("x", "FP32", ["n", 2])], [("y", "FP32", ["n", 2])])


JOINED = [("id", "BYTES", (1,), "entity", True), ("x", "FP32", (2,), "matrix", True)]


@pytest.mark.parametrize(
    ("inputs", "outputs", "options", "why"),
    [
        (JOINED, [Y], {"columns": ("a", "b")}, "features are looked up"),
        ([("x", "BYTES", (2,), "tensor", False)], [Y], {}, "takes texts"),
        ([X], [("y", "BYTES", (2,), False)], {}, "gives texts"),
        ([X], [Y], {"batched": False}, "takes no batches"),
        ([("x", "FP32", (-1,), "tensor", False)], [Y], {}, "free sizes"),
        ([("z", "FP32", (2,), "tensor", False)], [Y], {}, "other inputs"),
        ([X], [("z", "FP32", (2,), False)], {}, "other outputs"),
        ([("x", "INT64", (2,), "tensor", False)], [Y], {}, "x of another type"),
        ([X], [("y", "FP64", (2,), False)], {}, "y of another type"),
    ],
)
def test_a_version_that_is_not_for_an_engine_is_refused_with_the_reason(inputs, outputs, options, why):
    plan = Plan("m", "1", inputs, outputs, **options)
    with pytest.raises(ValueError, match=why):
        GraphEngine(plan, Lane(plan).ledger, ort.Session(SAME))


def test_an_output_without_a_row_for_each_of_the_batch_is_left_to_a_worker():
    onnx = graph(
        [("ReduceSum", ["x", "axes"], ["y"], {"keepdims": 0})],
        [("x", "FP32", ["n", 2])],
        [("y", "FP32", ["k"])],
        [helper.make_tensor("axes", TensorProto.INT64, [1], [0])],
    )
    version = Version(Plan("m", "1", [X], [("y", "FP32", (), False)]), onnx)
    logging.disable()
    try:
        request = pb.ModelInferRequest(model_name="m")
        add(request, "x", "FP32", np.ones((3, 2)))
        call = version.submit(request.SerializeToString())
        version.inline()
    finally:
        logging.disable(logging.NOTSET)
    assert call.status == INTERNAL


def test_an_engine_of_no_kind_runs_nothing():
    version = reciprocal_version()
    version.lane.use(Engine(), always=True)
    assert Engine().predicted_ns(1) == 0
    call = version.submit(whole(4))
    version.lane.run_now()
    version.by_worker()
    assert numbers(call) == [25]
