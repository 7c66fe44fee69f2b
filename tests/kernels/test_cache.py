"""The cache of answers: only the same request in full gets an answer again, in bounded memory and time."""

from __future__ import annotations

import random
import struct
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from penstock.kernels import cache as kernel
from penstock.kernels.cache import Cache
from penstock.kernels.calls import EventSink
from penstock.kernels.lanes import Lane
from penstock.kernels.wire import Plan, WireError, encode
from penstock.proto import inference_pb2 as pb

PLAN = Plan(
    "m",
    "1",
    [("x", "FP32", (-1,), "tensor", False), ("t", "BYTES", (1,), "tensor", False)],
    [("y", "FP32", (), False), ("z", "FP32", (), False), ("why", "BYTES", (1,), True)],
    parameters={"digest": "sha256:0"},
)
MATRIX = Plan(
    "m",
    "1",
    [("card", "BYTES", (1,), "entity", True), ("m", "FP32", (2,), "matrix", True)],
    [("y", "FP32", (), False)],
    ("a", "b"),
)
ROWS = Plan("m", "1", [("x", "FP32", (-1,), "tensor", False)], [("y", "FP32", (), False)])
SECOND = 1_000_000_000


# ---- Helpers --------------------------------------------------------------------------------------------------------


def body_of(values, **top) -> bytes:
    """A request for ROWS."""
    values = np.atleast_2d(np.asarray(values, "<f4"))
    message = pb.ModelInferRequest(model_name="m", raw_input_contents=[values.tobytes()], **top)
    message.inputs.add(name="x", datatype="FP32", shape=values.shape)
    return message.SerializeToString()


def reply_of(plan: Plan, body: bytes, values) -> bytes:
    """What a lane would answer."""
    return encode(plan, body, {"y": np.atleast_1d(np.asarray(values, "f4"))})


def ask(cache: Cache, body: bytes, now: int, value: float) -> float:
    """The answer to a request: from the cache, else `value`, which is then kept if the cache wants it."""
    reply, token = cache.look_up(body, now)
    if reply is not None:
        message = pb.ModelInferResponse.FromString(reply)
        assert message.parameters["cached"].bool_param
        return struct.unpack("<f", message.raw_output_contents[0])[0]
    if token:
        cache.store(body, token, reply_of(cache.plan, body, value), now)
    return value


# ---- What the same request is ---------------------------------------------------------------------------------------


floats = st.sampled_from([0x00000000, 0x80000000, 0x7FC00000, 0x7FC00001, 0xFFC00000, 0x3F800000, 0x3F800001])
texts = st.binary(max_size=3)


@st.composite
def requests(draw) -> pb.ModelInferRequest:
    """Requests for PLAN that are close to each other, so that two of them often differ in one detail."""
    rows, width = draw(st.sampled_from([(1, 1), (1, 2), (2, 1), (1, 4), (4, 1), (2, 2)]))
    bits = np.array(draw(st.lists(floats, min_size=rows * width, max_size=rows * width)), "<u4")
    values = draw(st.lists(texts, min_size=rows, max_size=rows))
    message = pb.ModelInferRequest(
        model_name="m", model_version=draw(st.sampled_from(["", "1", "champion"])), id=draw(st.sampled_from(["", "a"]))
    )
    if draw(st.booleans()):
        message.parameters["timeout"].int64_param = 10**6
    first = message.inputs.add(name="x", datatype="FP32", shape=[rows, width])
    second = message.inputs.add(name="t", datatype="BYTES", shape=[rows, 1])
    if draw(st.booleans()):
        first.contents.fp32_contents.extend(bits.view("<f4").tolist())
        second.contents.bytes_contents.extend(values)
    else:
        message.raw_input_contents.append(bits.tobytes())
        message.raw_input_contents.append(b"".join(struct.pack("<I", len(v)) + v for v in values))
    if draw(st.booleans()):
        swap(message)
    for name in draw(st.lists(st.sampled_from(["y", "z", "why"]), max_size=3)):
        message.outputs.add(name=name)
    return message


def swap(message: pb.ModelInferRequest) -> None:
    """Send the inputs in the other order."""
    inputs, raws = list(message.inputs)[::-1], list(message.raw_input_contents)[::-1]
    del message.inputs[:]
    message.inputs.extend(inputs)
    del message.raw_input_contents[:]
    message.raw_input_contents.extend(raws)


def content(message: pb.ModelInferRequest) -> tuple:
    """Everything that may change the answer, from protobuf's own reading."""
    asked = frozenset(output.name for output in message.outputs) or frozenset({"y", "z"})
    inputs = []
    for index, tensor in enumerate(message.inputs):
        raw = message.raw_input_contents[index] if message.raw_input_contents else None
        values = raw if raw is not None else tensor.contents.SerializeToString()
        inputs.append((tensor.name, tensor.datatype, tuple(tensor.shape), raw is not None, values))
    return asked, tuple(inputs)


@settings(max_examples=600, deadline=None)
@given(requests(), requests())
def test_two_requests_share_an_answer_exactly_if_they_are_the_same(first, second):
    cache = Cache(PLAN, size=1 << 16, ttl_ns=SECOND)
    body, other = first.SerializeToString(), second.SerializeToString()
    same = content(first) == content(second)
    assert (cache.key(body) == cache.key(other)) == same
    _, token = cache.look_up(body, 0)
    rows = first.inputs[0].shape[0]
    outputs = {
        "y": np.arange(rows, dtype="f4"),
        "z": np.arange(rows, dtype="f4"),
        "why": np.full((rows, 1), b"b", object),
    }
    assert cache.store(body, token, encode(PLAN, body, outputs), 0)
    reply, _ = cache.look_up(other, 0)
    assert (reply is not None) == same
    if same:
        expected = pb.ModelInferResponse.FromString(encode(PLAN, other, outputs))
        expected.parameters["cached"].bool_param = True
        assert pb.ModelInferResponse.FromString(reply) == expected


@given(st.integers(0, 3), st.integers(0, 255), st.booleans())
def test_one_changed_bit_is_another_request(column, bit, contents):
    """Wherever it is, in a request of 64 bytes, of more, and of an odd number of them."""
    cache = Cache(ROWS, size=1 << 16, ttl_ns=SECOND)
    for width in (8, 15, 40):
        values = np.zeros(width, "<f4")
        body = body_of(values)
        assert ask(cache, body, 0, 1.0) == 1.0
        changed = values.copy()
        changed.view("<u4")[(column * 7 + bit) % width] ^= np.uint32(1 << bit % 32)
        message = pb.ModelInferRequest.FromString(body_of(changed))
        if contents:
            message.inputs[0].contents.fp32_contents.extend(changed.tolist())
            del message.raw_input_contents[:]
        assert ask(cache, message.SerializeToString(), 0, 2.0) == 2.0
        assert ask(cache, body, 0, 3.0) == 1.0


def test_a_column_sent_flat_and_one_sent_as_a_matrix_are_two_requests():
    """They give the same answer, and the cache need not know."""
    cache = Cache(MATRIX, size=1 << 16, ttl_ns=SECOND)

    def request(*shape: int) -> bytes:
        message = pb.ModelInferRequest(model_name="m")
        for name in ("a", "b"):
            message.inputs.add(name=name, datatype="FP32", shape=shape).contents.fp32_contents.append(1.0)
        return message.SerializeToString()

    assert cache.key(request(1)) != cache.key(request(1, 1))


def test_a_request_for_times_is_never_answered_from_the_cache():
    cache = Cache(ROWS, size=1 << 16, ttl_ns=SECOND)
    message = pb.ModelInferRequest.FromString(body_of([1]))
    ask(cache, message.SerializeToString(), 0, 1.0)
    message.parameters["timing"].bool_param = True
    assert cache.look_up(message.SerializeToString(), 0) == (None, 0)
    assert cache.snapshot()["passed"] == 1


def test_every_caller_gets_its_own_id():
    cache = Cache(ROWS, size=1 << 16, ttl_ns=SECOND)
    ask(cache, body_of([1], id="first"), 0, 1.0)
    for id_ in ("", "second", "x" * 300):
        reply, _ = cache.look_up(body_of([1], id=id_), 0)
        assert pb.ModelInferResponse.FromString(reply).id == id_


def test_what_does_not_fit_the_plan_is_told():
    cache = Cache(ROWS, size=1 << 16, ttl_ns=SECOND)
    with pytest.raises(WireError):
        cache.look_up(b"\xff", 0)
    with pytest.raises(WireError):
        cache.key(body_of([1]).replace(b"x", b"w"))
    with pytest.raises(ValueError, match="token"):
        cache.store(body_of([1]), 7, b"", 0)


@pytest.mark.parametrize("wrong", [{"size": 0}, {"size": 1 << 36}, {"ttl_ns": 0}, {"ttl_ns": 1 << 62}])
def test_bounds_are_checked(wrong):
    with pytest.raises(ValueError, match="cache"):
        Cache(ROWS, **({"size": kernel.MIN_BYTES, "ttl_ns": 1} | wrong))


# ---- Time and memory ------------------------------------------------------------------------------------------------


def test_an_answer_is_given_until_its_time_is_up():
    cache = Cache(ROWS, size=1 << 16, ttl_ns=SECOND)
    assert ask(cache, body_of([1]), 5, 1.0) == 1.0
    assert ask(cache, body_of([1]), SECOND + 4, 2.0) == 1.0
    assert ask(cache, body_of([1]), SECOND + 5, 3.0) == 3.0
    assert cache.snapshot() | {"hit_ns": 0, "miss_ns": 0} == {
        "hits": 1, "misses": 2, "passed": 0, "kept": 2, "evicted": 0, "expired": 1, "entries": 1, "hit_ns": 0,
        "miss_ns": 0, "bytes": cache.snapshot()["bytes"],
    }  # fmt: skip


def test_once_full_a_request_is_kept_only_when_it_comes_again():
    cache = Cache(ROWS, size=1 << 16, ttl_ns=SECOND)
    for number in range(500):
        ask(cache, body_of([number, number]), 0, number)
    before = cache.snapshot()
    assert before["kept"] < 500
    for number in range(5000, 5500):  # never again
        ask(cache, body_of([number, number]), 0, number)
    after = cache.snapshot()
    assert after["kept"] - before["kept"] < 10
    for turn, expected in enumerate((-1.0, -2.0, -2.0)):
        assert ask(cache, body_of([-1]), 0, -1.0 - turn) == expected


def test_where_nothing_comes_again_few_are_looked_up_until_something_does():
    cache = Cache(ROWS, size=1 << 16, ttl_ns=SECOND * 3600)
    for number in range(8000):
        ask(cache, body_of([number, number]), 0, number)
    before = cache.snapshot()
    assert before["misses"] == 8000
    hits = []
    for turn in range(64):  # one request comes again and again among others that do not, every 50 ms
        now = turn * 50_000_000
        hits.append(ask(cache, body_of([-1]), now, turn) != turn)
        for number in range(10):
            ask(cache, body_of([turn, number, 1]), now, 0.0)
    assert not hits[0]
    assert hits[-1]
    assert cache.snapshot()["misses"] > 8000 + 64 * 10 - 1


def test_the_times_told_never_go_back():
    """They are sums of a sample; a mean times a count would shrink with every fast look-up that is timed."""
    cache = Cache(ROWS, size=1 << 16, ttl_ns=SECOND * 3600)
    bodies = [body_of(np.zeros(1 << size)) for size in (12, 0, 6)]
    told = [(0, 0)]
    for turn in range(600):
        ask(cache, bodies[0] if turn < 60 else bodies[turn % 3], 0, 1.0)
        ask(cache, body_of([turn, turn]), 0, 1.0)
        counts = cache.snapshot()
        told.append((counts["hit_ns"], counts["miss_ns"]))
    for times in zip(*told, strict=True):
        assert list(times) == sorted(times)
        assert times[-1] > 0


def test_what_is_asked_for_stays_while_the_rest_goes():
    cache = Cache(ROWS, size=1 << 16, ttl_ns=SECOND)
    lost = 0
    for number in range(2000):
        cold = body_of([number, number])
        for _ in range(3):  # so that it is kept, and asked for
            ask(cache, cold, 0, 0.0)
        for place in range(20):
            lost += ask(cache, body_of([-place - 1]), 0, number) == number
    assert lost <= 20 + 0.01 * 20 * 2000


def test_a_request_or_answer_that_is_too_large_is_not_kept():
    cache = Cache(ROWS, size=1 << 16, ttl_ns=SECOND)
    assert cache.look_up(body_of(np.zeros(4000)), 0) == (None, 0)
    body = body_of(np.zeros((900, 1)))
    _, token = cache.look_up(body, 0)
    assert token
    assert not cache.store(body, token, reply_of(ROWS, body, np.zeros(900)), 0)
    assert cache.snapshot()["entries"] == 0


class Histories(RuleBasedStateMachine):
    """Whatever the history, an answer is the latest kept for that very request and young enough; memory is bounded."""

    @initialize(size=st.sampled_from([1 << 16, 100_000]), ttl=st.sampled_from([50, 10**6]))
    def start(self, size, ttl):
        self.cache = Cache(ROWS, size=size, ttl_ns=ttl)
        self.ttl, self.now, self.value = ttl, 0, 0.0
        self.kept: dict[tuple[int, int], tuple[float, int]] = {}

    @rule(numbers=st.lists(st.tuples(st.integers(0, 60), st.sampled_from([1, 9, 100, 500])), max_size=40))
    def come(self, numbers):
        for number, width in numbers:
            self.value += 1
            body = body_of(np.full(width, number))
            reply, token = self.cache.look_up(body, self.now)
            if reply is not None:
                value, kept_at = self.kept[number, width]
                assert self.now < kept_at + self.ttl
                raw = pb.ModelInferResponse.FromString(reply).raw_output_contents[0]
                assert struct.unpack("<f", raw) == (value,)
            elif token:
                self.keep(number, width, body, token)

    @rule(number=st.integers(0, 60), width=st.sampled_from([1, 9]))
    def keep_twice(self, number, width):
        """Two calls ran the same request at once, and both answers are kept."""
        body = body_of(np.full(width, number))
        _, token = self.cache.look_up(body, self.now)
        if token:
            self.keep(number, width, body, token)
            self.keep(number, width, body, token)

    def keep(self, number, width, body, token):
        self.value += 1
        self.kept.pop((number, width), None)
        if self.cache.store(body, token, reply_of(ROWS, body, self.value), self.now):
            self.kept[number, width] = (self.value, self.now)

    @rule(step=st.integers(1, 30))
    def wait(self, step):
        self.now += step

    @invariant()
    def bounded(self):
        counts = self.cache.snapshot()
        assert counts["bytes"] <= self.cache.size
        assert counts["entries"] * 100 <= counts["bytes"] or counts["entries"] == 0


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_many_threads_get_only_their_own_answers():
    cache = Cache(ROWS, size=1 << 16, ttl_ns=SECOND)
    wrong = []

    def hammer(seed: int) -> None:
        rng = random.Random(seed)
        for now in range(3000):
            number = int(rng.paretovariate(0.5)) % 5000
            if ask(cache, body_of([number] * (1 + number % 30)), now, float(number)) != number:
                wrong.append(number)

    threads = [threading.Thread(target=hammer, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counts = cache.snapshot()
    assert not wrong
    assert counts["hits"] + counts["misses"] == 12000
    assert counts["hits"] > 1000


# ---- In a lane ------------------------------------------------------------------------------------------------------


class Future:
    """What a submitter waits for."""

    def __init__(self) -> None:
        self.result = self.error = None

    def done(self) -> bool:
        return bool(self.result or self.error)

    def set_result(self, result: bytes) -> None:
        self.result = result

    def set_exception(self, error: Exception) -> None:
        self.error = error


class Served:
    """A lane with a cache, and the model y = sum of x."""

    def __init__(self) -> None:
        self.cache = Cache(ROWS, size=1 << 16, ttl_ns=SECOND)
        self.lane, self.sink = Lane(ROWS, cache=self.cache), EventSink()

    def submit(self, body: bytes, now: int = 1) -> Future:
        future = Future()
        self.lane.submit(body, self.sink, future, now_ns=now)
        self.sink.drain()
        return future

    def run(self, now: int = 1, *, degraded: bool = False) -> int:
        """Run one batch; its rows."""
        batch = self.lane.take(block=False, now_ns=now)
        batch.degraded = degraded
        batch.complete({"y": batch.inputs["x"].sum(axis=1)})
        self.sink.drain()
        return batch.rows


def test_a_lane_answers_what_comes_again_before_the_queue():
    served = Served()
    first = served.submit(body_of([1, 2], id="a"))
    served.run()
    again = served.submit(body_of([1, 2], id="b"))
    answers = [pb.ModelInferResponse.FromString(future.result) for future in (first, again)]
    assert [answer.id for answer in answers] == ["a", "b"]
    assert answers[0].raw_output_contents == answers[1].raw_output_contents
    assert served.lane.queued_rows == 0
    counts = served.lane.snapshot()
    assert (counts["succeeded"], counts["total"]["count"], counts["rows"], counts["batches"]) == (2, 2, 1, 1)


def test_an_answer_is_as_old_as_its_batch():
    """Its age counts from when the batch was taken, for that is before anything was looked up."""
    served = Served()
    served.submit(body_of([1]), now=1)
    served.run(now=SECOND)
    assert served.submit(body_of([1]), now=2 * SECOND - 1).done()
    assert not served.submit(body_of([1]), now=2 * SECOND).done()


def test_a_degraded_batch_keeps_nothing():
    served = Served()
    served.submit(body_of([1]))
    served.run(degraded=True)
    assert not served.submit(body_of([1])).done()
    assert served.cache.snapshot()["kept"] == 0


def test_a_call_that_was_refused_is_not_kept_and_its_neighbours_are():
    served = Served()
    futures = [served.submit(body_of([value])) for value in (1, 2)]
    batch = served.lane.take(block=False, now_ns=1)
    batch.refuse(0, 5, "no")
    batch.complete({"y": batch.inputs["x"].sum(axis=1)})
    served.sink.drain()
    assert futures[0].error
    assert not served.submit(body_of([1])).done()
    assert served.submit(body_of([2])).done()


def test_members_that_are_run_singly_are_kept():
    served = Served()
    for value in (1, 2):
        served.submit(body_of([value]))
    for member in served.lane.take(block=False, now_ns=1).split():
        member.complete({"y": member.inputs["x"].sum(axis=1)})
    served.sink.drain()
    assert all(served.submit(body_of([value])).done() for value in (1, 2))


def test_a_lane_refuses_the_cache_of_another_version():
    with pytest.raises(ValueError, match="plan"):
        Lane(ROWS, cache=Cache(PLAN, size=1 << 16, ttl_ns=1))


# ---- Answers from elsewhere -----------------------------------------------------------------------------------------


def kept_of(plan: Plan, body: bytes, values) -> bytes:
    """What another server would have kept of an answer: the reply without its id."""
    message = pb.ModelInferRequest.FromString(body)
    message.id = ""
    return reply_of(plan, message.SerializeToString(), values)


def answers(future: Future) -> tuple[str, list[float], bool]:
    """(id, values, whether it was cached) of a call that went well."""
    message = pb.ModelInferResponse.FromString(future.result)
    return message.id, np.frombuffer(message.raw_output_contents[0], "f4").tolist(), "cached" in message.parameters


@settings(max_examples=150)
@given(st.lists(st.tuples(st.integers(1, 3), st.booleans()), min_size=1, max_size=6), st.integers(0, SECOND))
def test_calls_that_are_recalled_leave_the_others_their_rows(calls, made):
    """Each is answered once and under its own id: those that are recalled at once, the others by the run."""
    served = Served()
    values = [np.arange(2 * rows).reshape(rows, 2) + 10 * i for i, (rows, _) in enumerate(calls)]
    bodies = [body_of(rows, id=f"call {i}") for i, rows in enumerate(values)]
    futures = [served.submit(body) for body in bodies]
    batch = served.lane.take(block=False, now_ns=1)
    assert batch.keys() == [served.cache.key(body) for body in bodies]
    assert batch.copies is None
    found = [
        kept_of(ROWS, body, -np.ones(rows)) if had else None for body, (rows, had) in zip(bodies, calls, strict=True)
    ]
    left = batch.recall(found, np.full(len(calls), made - SECOND + 1))
    served.sink.drain()
    assert [future.done() for future in futures] == [had for _, had in calls]
    assert left == (not all(had for _, had in calls))
    if left:
        assert batch.rows == sum(rows for rows, had in calls if not had)
        batch.complete({"y": batch.inputs["x"].sum(axis=1)})
        served.sink.drain()
    else:
        with pytest.raises(ValueError, match="answered already"):
            batch.complete({})
    for i, (future, (rows, had)) in enumerate(zip(futures, calls, strict=True)):
        sums = [20.0 * i + 4 * row + 1 for row in range(rows)]
        assert answers(future) == (f"call {i}", [-1.0] * rows if had else sums, had)
    assert batch.copies == [
        (served.cache.key(body), kept_of(ROWS, body, [20.0 * i + 4 * row + 1 for row in range(rows)]))
        for i, (body, (rows, had)) in enumerate(zip(bodies, calls, strict=True))
        if not had
    ]
    counts = served.lane.snapshot()
    assert (counts["succeeded"], counts["rows"]) == (len(calls), sum(rows for rows, had in calls if not had))
    assert counts["total"]["count"] == counts["queue"]["count"] == len(calls)


def test_what_is_recalled_is_kept_for_as_long_as_it_still_holds():
    served = Served()
    body = body_of([1, 2])
    served.submit(body, now=SECOND)
    batch = served.lane.take(block=False, now_ns=SECOND)
    assert not batch.recall([kept_of(ROWS, body, -1.0)], np.array([SECOND // 2]))
    served.sink.drain()
    assert answers(served.submit(body, now=SECOND + SECOND // 2 - 1)) == ("", [-1.0], True)
    assert not served.submit(body, now=SECOND + SECOND // 2).done()


def test_only_answers_that_others_may_have_are_copied():
    """No refusal, nothing degraded, no answer that tells of its own run."""
    served = Served()
    timed = pb.ModelInferRequest.FromString(body_of([3]))
    timed.parameters["timing"].bool_param = True
    bodies = [body_of([1]), body_of([2]), timed.SerializeToString()]
    for degraded in (False, True):
        for body in bodies:
            served.submit(body, now=5 * SECOND)
        batch = served.lane.take(block=False, now_ns=5 * SECOND)
        keys = batch.keys()
        assert keys[2] is None
        assert batch.recall([None] * len(keys), np.zeros(len(keys), np.int64))
        batch.refuse(0, 5, "no")
        batch.degraded = degraded
        batch.complete({"y": batch.inputs["x"].sum(axis=1)})
        served.sink.drain()
        assert [key for key, _ in batch.copies] == ([] if degraded else [keys[1]])
        bodies = [body_of([6]), body_of([7]), bodies[2]]


def test_members_of_a_failed_batch_copy_into_one_list():
    served = Served()
    bodies = [body_of([1]), body_of([2])]
    for body in bodies:
        served.submit(body)
    batch = served.lane.take(block=False, now_ns=1)
    assert batch.recall([None, None], np.zeros(2, np.int64))
    for member in batch.split():
        member.complete({"y": member.inputs["x"].sum(axis=1)})
    served.sink.drain()
    assert [key for key, _ in batch.copies] == [served.cache.key(body) for body in bodies]


def test_what_was_found_must_fit_the_batch():
    served = Served()
    future = served.submit(body_of([1]))
    batch = served.lane.take(block=False, now_ns=1)
    for replies, made, error in (([], 0, ValueError), ([None], 2, ValueError), (["text"], 1, TypeError)):
        with pytest.raises(error):
            batch.recall(replies, np.zeros(made, np.int64))
    batch.complete({"y": np.ones(1, "f4")})
    served.sink.drain()
    assert answers(future)[1] == [1.0]
    with pytest.raises(ValueError, match="answered already"):
        batch.recall([None], np.zeros(1, np.int64))


def test_a_batch_of_a_version_without_a_cache_has_no_keys():
    lane, sink = Lane(ROWS), EventSink()
    lane.submit(body_of([1]), sink, Future())
    batch = lane.take(block=False)
    with pytest.raises(ValueError, match="keeps no answers"):
        batch.keys()
    with pytest.raises(ValueError, match="keeps no answers"):
        batch.recall([None], np.zeros(1, np.int64))
    batch.fail(13, "over")
    sink.drain()


def test_texts_and_entities_are_those_of_the_calls_that_are_left():
    cache = Cache(MATRIX, size=1 << 16, ttl_ns=SECOND)
    lane, sink = Lane(MATRIX, cache=cache), EventSink()
    futures = []
    for name in (b"ada", b"bob", b"eve"):
        message = pb.ModelInferRequest(model_name="m")
        message.inputs.add(name="card", datatype="BYTES", shape=[1]).contents.bytes_contents.append(name)
        message.inputs.add(name="a", datatype="FP32", shape=[1]).contents.fp32_contents.append(len(futures))
        futures.append(Future())
        lane.submit(message.SerializeToString(), sink, futures[-1])
    batch = lane.take(block=False)
    reply = pb.ModelInferResponse(model_name="m", model_version="1").SerializeToString()
    assert batch.recall([None, reply, None], np.full(3, batch.taken_ns))
    assert (batch.entities, batch.matrix[:, 0].tolist(), batch.spans()) == ([b"ada", b"eve"], [0, 2], [(0, 1), (1, 1)])
    assert batch.unique_entities()[0] == [b"ada", b"eve"]
    batch.complete({"y": np.ones(2, "f4")})
    sink.drain()
    assert all(future.result for future in futures)
