"""Lanes: what the twin decides they do, and under threads every call is answered exactly once with its own rows."""

from __future__ import annotations

import asyncio
import gc
import random
import re
import select
import struct
import threading
import time

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, precondition, rule

from penstock.kernels import batches, calls, lanes, ledger
from penstock.kernels.calls import (
    CANCELLED,
    DEADLINE_EXCEEDED,
    INTERNAL,
    INVALID_ARGUMENT,
    RESOURCE_EXHAUSTED,
    UNAVAILABLE,
    EventSink,
    Refused,
)
from penstock.kernels.lanes import Lane
from penstock.kernels.reference import lanes as reference
from penstock.kernels.reference.wire import put_field
from penstock.kernels.wire import Plan
from penstock.proto import inference_pb2 as pb

FREE = Plan("m", "1", [("x", "FP32", (-1,), "tensor", False)], [("y", "FP32", (), False)])
FIXED = Plan("m", "1", [("m", "FP32", (2,), "matrix", True)], [("y", "FP32", (), False)], ("a", "b"))
WHOLE = Plan("m", "1", [("x", "FP32", (-1,), "tensor", False)], [("y", "FP32", (), False)], batched=False)
JOINED = Plan(
    "m",
    "1",
    [("card", "BYTES", (1,), "entity", True), ("m", "FP32", (2,), "matrix", True)],
    [("y", "FP32", (), False), ("why", "BYTES", (2,), True)],
    ("a", "b"),
)


# ---- Helpers --------------------------------------------------------------------------------------------------------


class Future:
    """What a submitter waits for; counts how often it was resolved."""

    def __init__(self) -> None:
        self.result = self.error = None
        self.times = 0

    def done(self) -> bool:
        return self.times > 0

    def set_result(self, result: bytes) -> None:
        self.result = result
        self.times += 1

    def set_exception(self, error: Refused) -> None:
        self.error = error
        self.times += 1

    @property
    def status(self) -> int | None:
        """gRPC status; None as long as there is none."""
        return None if self.times == 0 else 0 if self.error is None else self.error.status


def body_of(values, name: str = "x", shape=None, **top) -> bytes:
    values = np.asarray(values, "<f4")
    message = pb.ModelInferRequest(model_name="m", raw_input_contents=[values.tobytes()], **top)
    message.inputs.add(name=name, datatype="FP32", shape=values.shape if shape is None else shape)
    return message.SerializeToString()


def columns_of(*rows) -> bytes:
    """A request for FIXED or JOINED."""
    return body_of(np.array(rows, "f4"), "m")


def sums(batch) -> dict:
    """The model of these tests: y is the sum of a row."""
    values = batch.matrix if batch.matrix is not None else batch.inputs["x"]
    return {"y": values.sum(axis=-1, dtype="f4")}


def answered(future: Future) -> list[float]:
    """The values of y in an answer."""
    assert future.status == 0, future.error
    answer = pb.ModelInferResponse.FromString(future.result)
    return np.frombuffer(answer.raw_output_contents[0], "f4").tolist()


def serve_all(lane: Lane, sink: EventSink) -> int:
    """Run whatever waits; the number of batches."""
    count = 0
    while (batch := lane.take(block=False)) is not None:
        batch.complete(sums(batch))
        count += 1
    sink.drain()
    return count


# ---- Decisions: the kernel against the twin, without clock or thread ------------------------------------------------


class Queue(RuleBasedStateMachine):
    """Any history of submits, cancels, takes and drains gives the same calls in the same batches as the twin."""

    calls = Bundle("calls")

    @initialize(
        batch=st.integers(1, 6),
        rows=st.integers(1, 12),
        size=st.sampled_from([60, 200, 1 << 20]),
        delay_us=st.sampled_from([0, 0, 2]),
        batched=st.sampled_from([True, True, False]),
    )
    def start(self, batch, rows, size, delay_us, batched):
        bounds = {"max_batch_rows": batch, "max_queue_rows": rows, "max_queue_bytes": size}
        self.batched = batched
        self.lane = Lane(FREE if batched else WHOLE, max_queue_delay_us=delay_us, **bounds)
        self.twin = reference.Lane(reference.Limits(delay_ns=delay_us * 1000, **bounds))
        self.sink = EventSink()
        self.now = 10_000
        self.counts = dict.fromkeys(("refused", "expired", "cancelled", "succeeded", "batches", "rows"), 0)
        self.number = 0

    @rule(target=calls, rows=st.integers(1, 7), width=st.integers(1, 2), deadline=st.none() | st.integers(-500, 4000))
    def submit(self, rows, width, deadline):
        self.number += 1
        values = np.full((rows, width) if self.batched else (width,), self.number, "f4")
        body = body_of(values)
        until = 0 if deadline is None else self.now + deadline
        future = Future()
        twin = self.twin.submit(
            self.now, rows if self.batched else 1, len(body), until, width if self.batched else None
        )
        try:
            ticket = self.lane.submit(body, self.sink, future, until, self.now)
        except Refused as refused:
            got = refused.status
        else:
            got = 0
        if isinstance(twin, str):
            wanted = {"QUEUE_FULL": UNAVAILABLE, "DRAINING": UNAVAILABLE, "NEVER_FITS": RESOURCE_EXHAUSTED}
            assert got == wanted[twin]
            self.counts["refused"] += 1
            return None
        assert got == 0
        twin.future, twin.value = future, self.number * width
        return ticket, twin

    @rule(call=calls)
    def cancel(self, call):
        assume(call is not None)
        call[0].cancel()  # does nothing to a call that was answered
        if call[1] in self.twin.queue:
            self.twin.cancel(call[1])

    @rule(ns=st.integers(0, 3000))
    def pass_time(self, ns):
        self.now += ns

    @rule()
    def take(self):
        wanted = self.twin.take(self.now)
        batch = self.lane.take(block=False, now_ns=self.now)
        assert (batch is not None) == bool(wanted.calls)
        if batch is not None:
            starts = np.cumsum([0] + [call.rows for call in wanted.calls])[:-1].tolist()
            assert batch.spans() == list(zip(starts, [call.rows for call in wanted.calls], strict=True))
            assert batch.rows == wanted.rows
            batch.complete({"y": np.atleast_1d(batch.inputs["x"].sum(axis=-1))} if self.batched else
                           {"y": batch.inputs["x"].sum()})  # fmt: skip
            self.counts["batches"] += 1
            self.counts["rows"] += wanted.rows
        self.sink.drain()
        for call in wanted.calls:
            assert answered(call.future) == [call.value] * call.rows
            self.counts["succeeded"] += 1
        for call, why in wanted.dropped:
            assert call.future.status == {"cancelled": CANCELLED, "expired": DEADLINE_EXCEEDED}[why]
            self.counts[why] += 1
        assert all(call.future.times == 1 for call in [*wanted.calls, *(c for c, _ in wanted.dropped)])

    @precondition(lambda self: self.number > 8)
    @rule()
    def drain(self):
        self.lane.drain()
        self.twin.drain()

    @invariant()
    def queue_is_counted_alike(self):
        if not hasattr(self, "lane"):
            return
        assert (self.lane.queued_rows, self.lane.queued_bytes) == (self.twin.rows, self.twin.bytes)
        assert all(call.future.times == 0 for call in self.twin.queue)
        shown = self.lane.snapshot()
        assert {name: shown[name] for name in self.counts} == self.counts


Queue.TestCase.settings = settings(max_examples=150, stateful_step_count=40)
TestQueue = Queue.TestCase


def test_calls_share_a_batch_up_to_its_bound_and_the_rest_follows_in_order():
    lane, sink, futures = Lane(FIXED, max_batch_rows=4), EventSink(), [Future() for _ in range(6)]
    for index, future in enumerate(futures):
        lane.submit(columns_of(*[[index, 0]] * (1 + index % 2)), sink, future)
    sizes = []
    while (batch := lane.take(block=False)) is not None:
        sizes.append([rows for _, rows in batch.spans()])
        batch.complete(sums(batch))
    sink.drain()
    assert sizes == [[1, 2, 1], [2, 1], [2]]
    assert [answered(f) for f in futures] == [[i] * (1 + i % 2) for i in range(6)]


def test_a_call_larger_than_a_batch_runs_alone():
    lane, sink = Lane(FIXED, max_batch_rows=4), EventSink()
    for rows in (1, 9, 1):
        lane.submit(columns_of(*[[0, 0]] * rows), sink, Future())
    assert [lane.take(block=False).rows for _ in range(3)] == [1, 9, 1]
    assert lane.snapshot()["sizes"] == {}


def test_a_worker_waits_for_company_only_as_long_as_it_was_told_to():
    lane, sink = Lane(FIXED, max_batch_rows=2, max_queue_delay_us=5), EventSink()
    lane.submit(columns_of([1, 1]), sink, Future(), now_ns=1000)
    assert lane.take(block=False, now_ns=5999) is None
    assert lane.take(block=False, now_ns=6000).rows == 1
    lane.submit(columns_of([1, 1]), sink, Future(), now_ns=7000)
    lane.submit(columns_of([1, 1]), sink, Future(), now_ns=7000)
    assert lane.take(block=False, now_ns=7000).rows == 2  # full
    lane.submit(columns_of([1, 1]), sink, Future(), now_ns=8000)
    lane.drain()
    assert lane.take(block=False, now_ns=8000).rows == 1  # nobody else will come


def test_a_delay_ends_while_its_calls_can_still_be_answered():
    lane, sink = Lane(FIXED, max_queue_delay_us=10_000), EventSink()
    lane.submit(columns_of([1, 1]), sink, Future(), now_ns=1000)
    lane.submit(columns_of([1, 1]), sink, Future(), 11_000, now_ns=1000)
    lane.submit(columns_of([1, 1]), sink, Future(), 13_000, now_ns=2000)
    assert lane.take(block=False, now_ns=8999) is None
    assert lane.take(block=False, now_ns=9000).rows == 3  # a fifth of the most hurried one's time is left
    lane.submit(columns_of([1, 1]), sink, Future(), now_ns=20_000)
    assert lane.take(block=False, now_ns=29_000) is None  # its hurry went with it


def test_a_delay_leaves_time_for_the_run_that_is_foretold():
    lane, sink, now = taught(row_ns=MS, max_queue_delay_us=1_000_000), EventSink(), time.monotonic_ns()
    lane.submit(columns_of([1, 1], [1, 1]), sink, Future(), now + 100 * MS, now)
    assert lane.take(block=False, now_ns=now + 77 * MS) is None
    assert lane.take(block=False, now_ns=now + 78 * MS).rows == 2


def test_an_idle_server_answers_in_time_whatever_the_delay():
    lane, sink, future = Lane(FIXED, max_queue_delay_us=10_000_000, foresee=True), EventSink(), Future()
    thread = threading.Thread(target=worker_of, args=(lane,))
    thread.start()
    lane.submit(columns_of([1, 2]), sink, future, time.monotonic_ns() + 500 * MS)
    assert select.select([sink], [], [], 20)[0]
    sink.drain()
    lane.drain()
    thread.join(20)
    assert answered(future) == [3]


@pytest.mark.parametrize(
    ("timeout_us", "deadline", "taken"), [(3, 0, True), (2, 0, False), (3, 2999, False), (9, 3001, True)]
)
def test_the_earlier_of_deadline_and_timeout_parameter_counts(timeout_us, deadline, taken):
    message = pb.ModelInferRequest.FromString(columns_of([1, 1]))
    message.parameters["timeout"].int64_param = timeout_us
    lane, sink, future = Lane(FIXED), EventSink(), Future()
    lane.submit(message.SerializeToString(), sink, future, deadline and deadline + 1000, now_ns=1000)
    batch = lane.take(block=False, now_ns=3999)
    assert (batch is not None) == taken
    if batch is not None:
        assert batch.deadline_ns == (deadline + 1000 if deadline else 4000)
    sink.drain()
    assert future.status == (None if taken else DEADLINE_EXCEEDED)


def test_the_longest_timeout_overflows_nothing():
    message = pb.ModelInferRequest.FromString(columns_of([1, 1]))
    message.parameters["timeout"].int64_param = 2**63 - 1
    lane = Lane(FIXED)
    lane.submit(message.SerializeToString(), EventSink(), Future())
    assert lane.take(block=False).latest_deadline_ns > time.monotonic_ns() + 10**17


def test_refusals_say_what_to_do():
    lane, sink = Lane(FIXED, max_queue_rows=2, max_queue_bytes=1000), EventSink()

    def refusal(body: bytes) -> tuple[int, str]:
        with pytest.raises(Refused) as caught:
            lane.submit(body, sink, Future())
        return caught.value.status, caught.value.message

    assert refusal(b"\x0a") == (INVALID_ARGUMENT, "the request is not a well-formed ModelInferRequest")
    assert refusal(columns_of([1, 1], [1, 1], [1, 1]))[0] == RESOURCE_EXHAUSTED
    assert refusal(columns_of([1, 1]) + put_field(99, bytes(1000)))[0] == RESOURCE_EXHAUSTED
    lane.submit(columns_of([1, 1], [1, 1]), sink, Future())
    assert refusal(columns_of([1, 1])) == (UNAVAILABLE, "the queue is full, try again later")
    assert serve_all(lane, sink) == 1
    lane.drain()
    assert refusal(columns_of([1, 1])) == (UNAVAILABLE, "the version is draining, try again")
    counted = lane.snapshot()
    assert [counted[name] for name in ("invalid", "refused", "succeeded")] == [1, 4, 1]


@pytest.mark.parametrize(
    "bounds",
    [
        {"max_batch_rows": 0},
        {"max_queue_rows": 0},
        {"max_queue_bytes": 0},
        {"max_queue_delay_us": -1},
        {"max_queue_delay_us": 2**60},
    ],
)
def test_a_lane_without_sense_is_refused(bounds):
    with pytest.raises(ValueError, match="a lane's"):
        Lane(FIXED, **bounds)


def test_gates_refuse_what_they_cannot_work_with():
    lane, sink = Lane(FIXED), EventSink()
    with pytest.raises(TypeError):
        lane.submit(None, sink, Future())
    with pytest.raises(TypeError):
        lane.submit(b"", None, Future())
    with pytest.raises(TypeError):
        Lane(None)
    with pytest.raises(TypeError, match=r"Lane\.take"):
        batches.Batch()
    calls.Ticket().cancel()
    lane.submit(columns_of([1, 1]), sink, Future())
    batch = lane.take(block=False)
    for output in (-1, 1, 64, 2**31 - 1):
        with pytest.raises(ValueError, match="no output number"):
            batch.wants(output)
    for status in (0, -1, 17):
        with pytest.raises(ValueError, match="status code of a failure"):
            batch.fail(status, "text")
        with pytest.raises(ValueError, match="status code of a failure"):
            batch.refuse(0, status, "text")
    batch.complete(sums(batch))
    for end in (lambda: batch.complete({"y": np.zeros(1, "f4")}), lambda: batch.fail(INTERNAL, ""), batch.split):
        with pytest.raises(ValueError, match="answered already"):
            end()


def test_every_duration_lies_in_its_bucket():
    bounds = [0.0, *ledger.bucket_bounds()]
    chance = random.Random(1)
    edges = [round(bound * 1e9) for bound in bounds[:-1]]
    for ns in [*edges, *(edge - 1 for edge in edges[1:]), *(int(10 ** chance.uniform(0, 12)) for _ in range(2000))]:
        place = ledger.decide_bucket(ns)
        assert bounds[place] * 1e9 - 0.5 <= ns < bounds[place + 1] * 1e9 - 0.5
    assert ledger.decide_bucket(-5) == 0
    assert ledger.decide_bucket(2**63 - 1) == len(bounds) - 2


@given(st.integers(1, 5000), st.integers(0, 70_000), st.integers(0, 8))
def test_idle_workers_share_what_is_queued_but_not_in_crumbs(most, queued, idle):
    share = lanes.decide_share(most, queued, idle)
    assert min(64, most) <= share <= most
    if idle == 0:
        assert share == most
    elif 64 < share < most:
        assert (share - 1) * (idle + 1) < queued <= share * (idle + 1)


@pytest.mark.parametrize(
    ("fixed", "row", "queued", "most", "taken"),
    [
        (20_000, 4_000, 256, 256, 128),  # all of it in one long run
        (20_000, 4_000, 257, 256, 256),  # enough is left
        (20_000, 4_000, 100, 256, 256),  # halves would be too small
        (20_000, 500, 256, 256, 256),  # a short run
        (300_000, 1_000, 256, 256, 256),  # two runs take much longer
        (0, 0, 256, 256, 256),  # nothing is known
    ],
)
def test_a_long_run_of_all_that_is_queued_is_made_two(fixed, row, queued, most, taken):
    assert lanes.decide_overlapped(fixed, row, queued, most) == taken


# ---- Batches --------------------------------------------------------------------------------------------------------


def taken(plan: Plan, *bodies: bytes):
    """A batch of these calls, its sink and futures."""
    lane, sink, futures = Lane(plan), EventSink(), [Future() for _ in bodies]
    for body, future in zip(bodies, futures, strict=True):
        lane.submit(body, sink, future)
    return lane.take(block=False), sink, futures


def test_a_batch_holds_the_rows_of_its_calls_and_knows_who_sent_what():
    only_b = body_of([7], "b", [1])
    card = pb.ModelInferRequest.FromString(only_b)
    card.inputs.add(name="card", datatype="BYTES", shape=[1])
    card.raw_input_contents.append(b"\x02\0\0\0c1")
    card.outputs.add(name="why")
    again = card.SerializeToString()
    batch, _, _ = taken(JOINED, columns_of([1, 2], [3, 4]), again, again)
    np.testing.assert_array_equal(batch.matrix, np.array([[1, 2], [3, 4], [np.nan, 7], [np.nan, 7]], "f4"))
    assert batch.source.tolist() == [[1, 1], [1, 1], [0, 1], [0, 1]]
    assert batch.entities == [None, None, b"c1", b"c1"]
    ids, row_of = batch.unique_entities()
    assert (ids, row_of.tolist()) == ([b"c1"], [-1, -1, 0, 0])
    assert [batch.wants(output) for output in (0, 1)] == [True, True]
    assert batch.open_rows() is None
    assert batch.latest_deadline_ns == 0


def test_texts_of_many_calls_are_one_list():
    plan = Plan(
        "m",
        "1",
        [("t", "BYTES", (2,), "tensor", False), ("n", "INT64", (), "tensor", False)],
        [("y", "FP32", (), False)],
    )
    bodies = []
    for number in range(3):
        message = pb.ModelInferRequest()
        message.inputs.add(name="t", datatype="BYTES", shape=[1, 2]).contents.bytes_contents.extend(
            [b"a%d" % number, b""]
        )
        message.inputs.add(name="n", datatype="INT64", shape=[1]).contents.int64_contents.append(-number)
        bodies.append(message.SerializeToString())
    batch, _, _ = taken(plan, *bodies)
    assert batch.inputs["t"] == [b"a0", b"", b"a1", b"", b"a2", b""]
    assert batch.inputs["n"].tolist() == [0, -1, -2]


def test_failing_a_batch_fails_each_of_its_calls():
    batch, sink, futures = taken(FIXED, columns_of([1, 1]), columns_of([2, 2]))
    batch.fail(INTERNAL, "the run failed")
    sink.drain()
    assert [(f.status, f.error.message, f.times) for f in futures] == [(INTERNAL, "the run failed", 1)] * 2


def test_a_refused_call_gets_its_status_and_the_others_their_answers():
    batch, sink, futures = taken(FIXED, columns_of([1, 1], [1, 1]), columns_of([2, 2], [3, 3]), columns_of([4, 4]))
    batch.refuse(3, UNAVAILABLE, "no features")
    assert batch.open_rows().tolist() == [0, 1, 4]
    batch.complete(sums(batch))
    sink.drain()
    assert [f.status for f in futures] == [0, UNAVAILABLE, 0]
    assert (answered(futures[0]), answered(futures[2])) == ([2, 2], [8])
    shown = batch.ledger.snapshot()
    assert (shown["succeeded"], shown["failed"]) == (2, 1)


def test_outputs_that_do_not_fit_answer_nobody_and_the_batch_can_still_fail():
    batch, sink, futures = taken(FIXED, columns_of([1, 1]), columns_of([2, 2]))
    for outputs in ({}, {"y": np.zeros(1, "f4")}, {"y": np.zeros(2, "f8")}, {"y": np.float32(0)}):
        with pytest.raises(ValueError, match="'y'"):
            batch.complete(outputs)
    sink.drain()
    assert [f.times for f in futures] == [0, 0]
    batch.fail(INTERNAL, "no such output")
    sink.drain()
    assert [f.times for f in futures] == [1, 1]


def test_members_of_a_split_batch_are_answered_one_by_one():
    batch, sink, futures = taken(JOINED, columns_of([1, 1], [2, 2]), columns_of([3, 3]), columns_of([4, 4]))
    members = batch.split()
    assert [m.rows for m in members] == [2, 1, 1]
    assert [m.spans() for m in members] == [[(0, 2)], [(0, 1)], [(0, 1)]]
    assert [m.matrix.tolist() for m in members] == [[[1, 1], [2, 2]], [[3, 3]], [[4, 4]]]
    assert [len(m.entities) for m in members] == [2, 1, 1]
    members[1].fail(INTERNAL, "bad row")
    members[2].complete(sums(members[2]))
    members[0].complete(sums(members[0]))
    sink.drain()
    assert [f.status for f in futures] == [0, INTERNAL, 0]
    assert (answered(futures[0]), answered(futures[2])) == ([2, 4], [8])


def test_calls_are_told_what_their_batches_took_and_no_sum_goes_back():
    lane, sink = Lane(FIXED), EventSink()
    seen = []
    for count, took in ((1, 1_000_000), (5, 10)):
        for _ in range(count):
            lane.submit(columns_of([1, 1]), sink, Future())
        batch = lane.take(block=False)
        batch.complete(sums(batch), 3, took)
        seen.append(lane.snapshot()["shared"])
    assert [(told["calls"], told["lookup_ns"], told["compute_ns"]) for told in seen] == [
        (1, 3, 1_000_000),
        (6, 18, 1_000_050),
    ]
    assert seen[1]["encode_ns"] >= seen[0]["encode_ns"]


def test_a_batch_that_is_lost_fails_its_calls():
    batch, sink, futures = taken(FIXED, columns_of([1, 1]), columns_of([2, 2]))
    counted = batch.ledger
    batch.refuse(0, UNAVAILABLE, "no features")
    del batch
    gc.collect()
    sink.drain()
    assert [(f.status, f.error.message) for f in futures] == [
        (UNAVAILABLE, "no features"),
        (INTERNAL, "the batch was abandoned"),
    ]
    assert counted.snapshot()["failed"] == 2


def test_a_lane_that_is_lost_refuses_what_still_waits():
    lane, sink, future = Lane(FIXED), EventSink(), Future()
    ticket = lane.submit(columns_of([1, 1]), sink, future)
    del lane
    gc.collect()
    sink.drain()
    assert (future.status, future.times) == (UNAVAILABLE, 1)
    ticket.cancel()


def test_memory_of_a_batch_is_used_again_only_after_it_was_answered():
    lane, sink = Lane(FIXED, max_batch_rows=4), EventSink()

    def next_batch(value: float):
        lane.submit(columns_of([value, value]), sink, Future())
        return lane.take(block=False)

    def place(batch) -> int:
        return batch.matrix.__array_interface__["data"][0]

    first, second = next_batch(1), next_batch(2)
    assert place(first) != place(second)
    old = place(first)
    first.complete(sums(first))
    third = next_batch(3)
    assert place(third) == old
    members = third.split()
    fourth = next_batch(4)
    members[0].fail(INTERNAL, "")
    fifth = next_batch(5)
    assert len({place(b) for b in (second, members[0], fourth, fifth)}) == 4
    assert [b.matrix.tolist() for b in (second, fourth, fifth)] == [[[2, 2]], [[4, 4]], [[5, 5]]]


def test_memory_of_a_very_large_batch_is_given_back():
    plan = Plan("m", "1", [("x", "FP32", (-1,), "tensor", False)], [])
    lane, sink = Lane(plan), EventSink()
    places = []
    for _ in range(2):
        lane.submit(body_of(np.zeros((1, 5 << 20), "f4")), sink, Future())
        batch = lane.take(block=False)
        places.append(batch)
        batch.complete({})
    assert not np.shares_memory(places[0].inputs["x"], places[1].inputs["x"])


def test_a_version_of_no_values_is_served():
    batch, sink, futures = taken(FREE, body_of(np.zeros((2, 0), "f4")), body_of(np.zeros((1, 0), "f4")))
    assert batch.inputs["x"].shape == (3, 0)
    batch.complete(sums(batch))
    sink.drain()
    assert [answered(f) for f in futures] == [[0, 0], [0]]


def test_timing_is_told_to_those_who_ask():
    message = pb.ModelInferRequest.FromString(columns_of([1, 1]))
    message.parameters["timing"].bool_param = True
    lane, sink, futures = Lane(FIXED), EventSink(), [Future(), Future()]
    lane.submit(message.SerializeToString(), sink, futures[0], now_ns=1_000_000)
    lane.submit(columns_of([1, 1]), sink, futures[1], now_ns=1_000_000)
    batch = lane.take(block=False, now_ns=1_007_500)
    batch.complete(sums(batch), lookup_ns=5_999, compute_ns=3_000_000)
    sink.drain()
    told, silent = (pb.ModelInferResponse.FromString(f.result).parameters for f in futures)
    assert {k: v.int64_param for k, v in told.items()} == {
        "batch_rows": 2, "queue_us": 7, "lookup_us": 5, "compute_us": 3000,
    }  # fmt: skip
    assert not silent
    shown = lane.snapshot()
    assert shown["sizes"] == {2: (1, 3_000_000)}
    assert (shown["compute"]["count"], shown["compute"]["ns"], shown["queue"]["ns"]) == (1, 3_000_000, 15_000)


# ---- Threads --------------------------------------------------------------------------------------------------------


class Drainer(threading.Thread):
    """Stands in for an event loop: drains a sink whenever it is readable."""

    def __init__(self, sink: EventSink) -> None:
        super().__init__(daemon=True)
        self.sink, self.stopping = sink, False

    def run(self) -> None:
        while not self.stopping:
            if select.select([self.sink], [], [], 0.02)[0]:
                self.sink.drain()

    def stop(self) -> None:
        self.stopping = True
        self.join(20)
        self.sink.drain()


def worker(lane: Lane, seed: int, errors: list) -> None:
    """Serves a lane as a good worker, and now and then as one in trouble."""
    chance = random.Random(seed)
    try:
        while (batch := lane.take()) is not None:
            trouble = chance.random()
            if trouble < 0.05:
                batch.fail(INTERNAL, "failed")
            elif trouble < 0.1:
                del batch  # lost
            elif trouble < 0.2:
                for member in batch.split():
                    member.complete(sums(member))
            else:
                if trouble < 0.3:
                    batch.refuse(chance.randrange(batch.rows), UNAVAILABLE, "refused")
                batch.complete(sums(batch))
    except Exception as error:
        errors.append(error)


def submitter(lane: Lane, sink: EventSink, seed: int, count: int, done: list) -> None:
    """Submits calls that each have values of their own; some are cancelled, some have deadlines."""
    chance = random.Random(seed)
    for index in range(count):
        rows, future = chance.choice([1, 1, 1, 2, 5, 40]), Future()
        value = seed * 65536 + index
        deadline = time.monotonic_ns() + chance.choice([-1, 1_000, 10**10]) if chance.random() < 0.3 else 0
        try:
            ticket = lane.submit(columns_of(*[[value, row] for row in range(rows)]), sink, future, deadline)
        except Refused as refused:
            future.set_exception(refused)
        else:
            if chance.random() < 0.1:
                ticket.cancel()
        done.append((value, rows, future))


@pytest.mark.parametrize("delay_us", [0, 50])
def test_under_threads_every_call_is_answered_once_and_with_its_own_rows(delay_us):
    lane, sink, errors = (
        Lane(FIXED, max_batch_rows=16, max_queue_rows=500, max_queue_delay_us=delay_us),
        EventSink(),
        [],
    )
    calls = [[] for _ in range(4)]
    workers = [threading.Thread(target=worker, args=(lane, seed, errors)) for seed in range(3)]
    submitters = [threading.Thread(target=submitter, args=(lane, sink, i, 1500, calls[i])) for i in range(4)]
    drainer = Drainer(sink)
    for thread in [drainer, *workers, *submitters]:
        thread.start()
    for thread in submitters:
        thread.join(60)
    lane.drain()
    for thread in workers:
        thread.join(60)
        assert not thread.is_alive(), "a worker did not leave the drained lane"
    drainer.stop()
    assert not errors
    statuses = {}
    for value, rows, future in [call for part in calls for call in part]:
        assert future.times == 1
        statuses[future.status] = statuses.get(future.status, 0) + 1
        if future.status == 0:
            assert answered(future) == [float(np.float32(value) + np.float32(row)) for row in range(rows)]
    assert sum(statuses.values()) == 6000
    assert {0, CANCELLED, DEADLINE_EXCEEDED, INTERNAL, UNAVAILABLE} <= statuses.keys(), statuses
    shown = lane.snapshot()
    assert (shown["queued_rows"], shown["queued_bytes"]) == (0, 0)
    assert shown["succeeded"] == statuses[0]
    assert sum(shown[n] for n in ("succeeded", "failed", "refused", "expired", "cancelled")) == 6000


def test_a_blocked_worker_is_woken_by_a_call_and_by_draining():
    lane, sink, future, seen = Lane(FIXED), EventSink(), Future(), []

    def work() -> None:
        while (batch := lane.take()) is not None:
            seen.append(batch.rows)
            batch.complete(sums(batch))

    thread = threading.Thread(target=work)
    thread.start()
    lane.submit(columns_of([1, 2]), sink, future)
    assert select.select([sink], [], [], 20)[0]
    sink.drain()
    assert answered(future) == [3]
    lane.drain()
    thread.join(20)
    assert not thread.is_alive()
    assert seen == [1]


@pytest.mark.parametrize("delay_us", [0, 200])
def test_calls_that_cannot_share_a_batch_are_taken_by_two_idle_workers_at_once(delay_us):
    """One wake for both calls, and no call is left to a worker that sleeps: both hold a batch at the same time."""
    lane, sink = Lane(FREE, max_queue_delay_us=delay_us), EventSink()
    together, errors = threading.Barrier(2), []

    def work() -> None:
        try:
            while (batch := lane.take()) is not None:
                together.wait(20)
                batch.complete(sums(batch))
        except threading.BrokenBarrierError as error:
            errors.append(error)

    workers = [threading.Thread(target=work) for _ in range(2)]
    for thread in workers:
        thread.start()
    for _ in range(50):
        futures = [Future(), Future()]
        for width, future in enumerate(futures, 1):
            lane.submit(body_of(np.ones((1, width))), sink, future, wake=False)
        lane.wake()
        while not all(f.done() for f in futures) and not errors:
            assert select.select([sink], [], [], 30)[0]
            sink.drain()
    lane.drain()
    for thread in workers:
        thread.join(30)
    assert not errors


async def test_an_event_loop_gets_its_answers_through_the_descriptor():
    loop = asyncio.get_running_loop()
    lane, sink = Lane(FIXED, max_batch_rows=8), EventSink()
    loop.add_reader(sink.fileno(), sink.drain)
    thread = threading.Thread(target=worker_of, args=(lane,))
    thread.start()
    try:
        futures = [loop.create_future() for _ in range(200)]
        for index, future in enumerate(futures):
            lane.submit(columns_of([index, 1]), sink, future)
        answers = await asyncio.wait_for(asyncio.gather(*futures), 30)
        values = [pb.ModelInferResponse.FromString(answer).raw_output_contents[0] for answer in answers]
        assert values == [struct.pack("<f", index + 1) for index in range(200)]
        gone = loop.create_future()
        ticket = lane.submit(columns_of([1, 1]), sink, gone)
        gone.cancel()
        ticket.cancel()
    finally:
        lane.drain()
        await asyncio.to_thread(thread.join, 20)
        loop.remove_reader(sink.fileno())
        sink.drain()
    assert gone.cancelled()


def worker_of(lane: Lane) -> None:
    while (batch := lane.take()) is not None:
        batch.complete(sums(batch))


def test_a_future_that_raises_keeps_no_other_from_its_answer():
    class Closed(Future):
        def set_result(self, result: bytes) -> None:
            raise RuntimeError("the loop is closed")

    lane, sink, futures = Lane(FIXED), EventSink(), [Future(), Closed(), Future()]
    for future in futures:
        lane.submit(columns_of([1, 1]), sink, future)
    batch = lane.take(block=False)
    batch.complete(sums(batch))
    with pytest.raises(RuntimeError, match="the loop is closed"):
        sink.drain()
    assert [f.times for f in futures] == [1, 0, 1]
    sink.drain()


# ---- What cannot be answered in time -------------------------------------------------------------------------------

NS = st.integers(0, 10**7)


@given(fixed=NS, row=st.integers(0, 10**5), most=st.integers(1, 300), budget=st.integers(-5, 10**8))
def test_a_run_has_as_many_rows_as_half_of_its_first_calls_time_allows(fixed, row, most, budget):
    assert lanes.decide_rows_within(fixed, row, most, budget) == reference.rows_within(fixed, row, most, budget)


@given(
    fixed=NS,
    row=st.integers(0, 10**5),
    most=st.integers(1, 300),
    workers=st.integers(1, 4),
    running=st.lists(st.integers(0, 10**7), max_size=3),
    queued=st.integers(0, 2000),
    rows=st.integers(1, 600),
    deadline=st.just(0) | st.integers(1, 10**8),
    now=st.integers(1, 10**7),
)
def test_a_call_is_refused_where_its_answer_would_come_after_its_deadline(
    fixed, row, most, workers, running, queued, rows, deadline, now
):
    wanted = reference.too_late(fixed, row, most, workers, running, queued, rows, deadline, now)
    got = lanes.decide_too_late(fixed, row, most, workers, running, queued, rows, deadline, now)
    assert got == pytest.approx(wanted, rel=1e-9, abs=2) or abs((wanted or got) + now - deadline) <= 2


MS = 1_000_000


def taught(row_ns: int, fixed_ns: int = 0, **settings) -> Lane:
    """A lane of one worker that takes a run to last so long."""
    lane = Lane(FIXED, foresee=True, **settings)
    for rows in (1, 2, 4, 8, 16, 32, 64):
        lane.ledger.seed(rows, fixed_ns + rows * row_ns)
    assert lane.ledger.predict(10) == pytest.approx(fixed_ns + 10 * row_ns, rel=0.02)
    return lane


def test_a_call_that_could_not_be_answered_in_time_is_refused_at_once_and_told_why():
    lane, sink, now = taught(row_ns=MS), EventSink(), time.monotonic_ns()
    waiting, late = Future(), Future()
    lane.submit(columns_of(*[[1, 1]] * 4), sink, waiting, now + 100 * MS, now)
    with pytest.raises(Refused) as caught:
        lane.submit(columns_of([1, 1]), sink, late, now + 3 * MS, now)
    assert caught.value.status == DEADLINE_EXCEEDED
    assert re.fullmatch(
        r"the answer would take \d+\.\d{3} ms and the deadline is in 3\.000 ms; the model was not run",
        caught.value.message,
    )
    lane.submit(columns_of([1, 1]), sink, late, now + 40 * MS, now)
    counted = lane.snapshot()
    assert (counted["too_late"], counted["refused"], counted["queued_rows"]) == (1, 0, 5)


def test_a_lane_that_knows_nothing_or_is_not_to_foresee_refuses_nothing():
    for lane in (Lane(FIXED, foresee=True), Lane(FIXED)):
        if not lane.ledger.predict(1):
            lane.ledger.seed(0, 1)  # no rows teach nothing
        for _ in range(10):
            lane.submit(columns_of([1, 1]), EventSink(), Future(), 2, 1)
        assert lane.snapshot()["too_late"] == 0


def test_an_idle_lane_takes_what_it_wrongly_thinks_hopeless_and_learns():
    lane, sink, future = taught(row_ns=MS), EventSink(), Future()
    for _ in range(30):
        now = time.monotonic_ns()
        lane.submit(columns_of([1, 1]), sink, future, now + MS // 2, now)  # foretold is twice as much
        batch = lane.take(block=False, now_ns=now)
        assert batch is not None
        batch.complete(sums(batch))
    assert lane.ledger.predict(1) < MS // 2


def test_while_a_run_is_under_way_its_rest_counts_and_after_it_no_more():
    lane, sink = taught(row_ns=MS), EventSink()
    lane.submit(columns_of(*[[1, 1]] * 50), sink, Future())
    batch, now = lane.take(block=False), time.monotonic_ns()
    with pytest.raises(Refused):
        lane.submit(columns_of([1, 1]), sink, Future(), now + 20 * MS, now)
    batch.fail(INTERNAL, "lost")
    lane.submit(columns_of([1, 1]), sink, Future(), now + 20 * MS, now)


def test_a_forecast_never_sees_a_run_half_noted():
    """The count of one moment with the ends of another would say that what is under way lasts for years."""
    counted = ledger.Ledger(1)
    counted.seed(1, 10 * MS)
    runs = [threading.Thread(target=ledger.decide_rest, args=(counted, 1_000_000, True)) for _ in range(3)]
    for thread in runs:
        thread.start()
    longest = 0
    while any(thread.is_alive() for thread in runs):
        longest = max(longest, ledger.decide_rest(counted, 1000, False))
    assert longest < 1000 * MS


@pytest.mark.parametrize("end", ["complete", "fail", "split", "abandon"])
def test_a_run_is_over_however_it_ended(end):
    lane, sink = taught(row_ns=MS), EventSink()
    lane.submit(columns_of(*[[1, 1]] * 50), sink, Future())
    batch = lane.take(block=False)
    if end == "complete":
        batch.complete(sums(batch))
    elif end == "fail":
        batch.fail(INTERNAL, "lost")
    elif end == "split":
        batch.split()
    del batch
    now = time.monotonic_ns()
    lane.submit(columns_of([1, 1]), sink, Future(), now + 5 * MS, now)
    assert lane.take(block=False, now_ns=now) is not None


def test_what_would_expire_before_its_run_ends_is_dropped_and_the_rest_is_run():
    lane, sink, futures = taught(row_ns=MS, max_batch_rows=4), EventSink(), [Future() for _ in range(3)]
    now = time.monotonic_ns()
    for future, deadline in zip(futures, (0, 30 * MS, 0), strict=True):
        lane.submit(columns_of([1, 1]), sink, future, deadline and now + deadline, now)
    batch = lane.take(block=False, now_ns=now + 28 * MS)
    sink.drain()
    assert batch.rows == 2
    assert [future.status for future in futures] == [None, DEADLINE_EXCEEDED, None]
    assert "too near" in futures[1].error.message


def test_rows_whose_deadline_passed_before_their_run_began_are_counted():
    lane, sink = Lane(FIXED), EventSink()
    for deadline in (0, 2, time.monotonic_ns() + 10**12):
        lane.submit(columns_of([1, 1], [1, 1]), sink, Future(), deadline, 1)
    batch = lane.take(block=False, now_ns=1)
    batch.complete(sums(batch))
    assert lane.snapshot()["late_rows"] == 2


def test_look_ups_and_the_rest_of_a_run_are_learnt_apart():
    lane, sink = Lane(FIXED), EventSink()
    for _ in range(3):
        lane.submit(columns_of([1, 1]), sink, Future())
        batch = lane.take(block=False)
        time.sleep(0.002)
        batch.complete(sums(batch), MS, MS)
    shown = lane.snapshot()
    assert shown["lookup_cost"]["runs"] == shown["run_cost"]["runs"] == 3
    assert shown["lookup_cost"]["row_ns"] + shown["lookup_cost"]["fixed_ns"] == pytest.approx(MS, rel=0.01)
    assert shown["run_cost"]["row_ns"] + shown["run_cost"]["fixed_ns"] > MS


def test_the_members_of_a_failed_batch_teach_nothing():
    lane, sink = Lane(FIXED), EventSink()
    for _ in range(3):
        lane.submit(columns_of([1, 1]), sink, Future())
    for part in lane.take(block=False).split():
        part.complete(sums(part))
    assert lane.snapshot()["run_cost"]["runs"] == 0


def test_a_call_that_is_dropped_does_not_size_the_run_of_those_behind_it():
    lane, sink, now = taught(row_ns=MS), EventSink(), time.monotonic_ns()
    lane.submit(columns_of([1, 1]), sink, Future(), now + 3 * MS, now)
    for _ in range(8):
        lane.submit(columns_of([1, 1]), sink, Future(), now + 1000 * MS, now)
    assert lane.take(block=False, now_ns=now + 5 * MS).rows == 8
