"""What servers share: young answers of that very version to that very request; and Redis' troubles are not theirs."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.features.errors import StoreMisconfigured, StoreUnavailable
from penstock.features.values import MAX_REPLY
from penstock.kernels.cache import Cache
from penstock.kernels.calls import EventSink
from penstock.kernels.lanes import Lane
from penstock.kernels.wire import Plan
from penstock.proto import inference_pb2 as pb
from penstock.server.config import Config
from penstock.server.sealed import HEADER_BYTES, identity_of
from penstock.server.shared import LARGEST, Shared

PLAN = Plan("m", "1", [("x", "FP32", (-1,), "tensor", False)], [("y", "FP32", (), False)])
SECOND = 1_000_000_000


class Shelf:
    """A Redis in this process whose clock is set by hand."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self.clock_us = 10**15
        self.trouble: Exception | None = None
        self.asked: list[tuple[int, float]] = []
        self.closed = False

    def read(self, keys, timeout_s):
        self.asked.append((len(keys), timeout_s))
        if self.trouble is not None:
            raise self.trouble
        return self.clock_us, [self.values.get(key) for key in keys]

    def write(self, values, ttl_ms, timeout_s):
        if self.trouble is not None:
            raise self.trouble
        self.values |= values

    def close(self):
        self.closed = True


class Server:
    """A version in one server: its lane, its cache and what it shares. It answers with `value`."""

    def __init__(self, shelf: Shelf, value: float, *, version: str = "m/1", ttl_ns: int = 1000 * SECOND) -> None:
        self.value, self.runs = value, 0
        self.cache = Cache(PLAN, size=1 << 16, ttl_ns=ttl_ns)
        self.lane, self.sink = Lane(PLAN, cache=self.cache), EventSink()
        self.shared = Shared(
            shelf, prefix=b"cache:{m}:", identity=identity_of(version), ttl_ns=ttl_ns, timeout_s=0.25, name="m/1"
        )

    def run(self, batch) -> None:
        self.runs += 1
        batch.complete({"y": np.full(batch.rows, self.value, "f4")})

    def ask(self, *requests: tuple[int, str], deadline_ns: int = 0) -> list[tuple[float, str, bool]]:
        """(value, id, whether it was cached) of the answers to requests that come at once."""
        futures = []
        for number, id_ in requests:
            futures.append(Future())
            self.lane.submit(body_of(number, id_), self.sink, futures[-1], deadline_ns=deadline_ns)
        if batch := self.lane.take(block=False):
            self.shared.run(batch, self.run)
        self.sink.drain()
        return [answer_of(future.result) for future in futures]

    def written(self) -> None:
        """Wait until the outbox is empty."""
        self.shared._outbox.close(20)


class Future:
    result = None

    def done(self) -> bool:
        return self.result is not None

    def set_result(self, result: bytes) -> None:
        self.result = result


def body_of(number: int, id_: str = "", *, timing: bool = False) -> bytes:
    message = pb.ModelInferRequest(model_name="m", id=id_, raw_input_contents=[np.float32(number).tobytes()])
    message.inputs.add(name="x", datatype="FP32", shape=[1, 1])
    if timing:
        message.parameters["timing"].bool_param = True
    return message.SerializeToString()


def answer_of(reply: bytes) -> tuple[float, str, bool]:
    message = pb.ModelInferResponse.FromString(reply)
    return float(np.frombuffer(message.raw_output_contents[0], "f4")[0]), message.id, "cached" in message.parameters


@pytest.fixture
def shelf():
    return Shelf()


# ---- Sharing --------------------------------------------------------------------------------------------------------


def test_what_one_server_answered_another_answers_without_a_run(shelf):
    first, second = Server(shelf, 1.0), Server(shelf, 2.0)
    assert first.ask((7, "a"), (8, "b")) == [(1.0, "a", False), (1.0, "b", False)]
    first.written()
    assert second.ask((7, "c"), (9, "d"), (8, ""), (7, "e")) == [
        (1.0, "c", True),
        (2.0, "d", False),
        (1.0, "", True),
        (1.0, "e", True),
    ]
    assert second.ask((7, "f"), (8, "g")) == [(1.0, "f", True), (1.0, "g", True)]
    assert (second.runs, len(shelf.asked)) == (1, 2)  # what came from elsewhere is in its own cache then
    counts = second.shared.counts
    assert (counts.hits, counts.misses, counts.corrupt, counts.unasked) == (3, 1, 0, 0)
    assert 0 < counts.miss_ns < counts.hit_ns
    counts = first.shared.counts
    assert (counts.hits, counts.misses, counts.written) == (0, 2, 2)
    assert counts.written_bytes == sum(map(len, shelf.values.values()))


def test_a_look_up_may_be_all_hits_of_the_largest_answers():
    assert Config.model_fields["max_batch_rows"].default * (LARGEST + HEADER_BYTES + 16) <= MAX_REPLY


def test_an_answer_that_is_too_large_is_not_written(shelf, monkeypatch):
    monkeypatch.setattr("penstock.server.shared.LARGEST", 150)
    server = Server(shelf, 1.0)
    server.ask((7, ""))
    server.written()
    (value,) = shelf.values.values()
    shelf.values.clear()
    monkeypatch.setattr("penstock.server.shared.LARGEST", len(value) - HEADER_BYTES - 1)
    server = Server(shelf, 1.0)
    assert server.ask((7, ""), (8, "")) == [(1.0, "", False), (1.0, "", False)]
    server.written()
    assert not shelf.values
    assert (server.shared.counts.written, server.shared.counts.unwritten) == (0, 2)


def test_another_version_shares_nothing(shelf):
    first, second = Server(shelf, 1.0), Server(shelf, 2.0, version="m/2")
    first.ask((7, ""))
    first.written()
    assert second.ask((7, "")) == [(2.0, "", False)]
    second.written()
    first_name, second_name = shelf.values
    shelf.values[second_name] = shelf.values[first_name]  # as if somebody had renamed a key
    third = Server(shelf, 3.0, version="m/2")
    assert third.ask((7, "")) == [(3.0, "", False)]
    assert third.shared.counts.corrupt == 1


def test_an_answer_is_given_until_it_is_as_old_as_the_reader_allows(shelf):
    writer = Server(shelf, 1.0)
    writer.ask((7, ""))
    writer.written()
    for age_us, shared in ((0, True), (1_999_999, True), (2_000_000, False), (-1, False)):
        reader = Server(shelf, 2.0, ttl_ns=2 * SECOND)
        shelf.clock_us = 10**15 + age_us
        assert reader.ask((7, "")) == [(1.0 if shared else 2.0, "", shared)]
        reader.shared._outbox = writer.shared._outbox  # closed: the value stays that of the writer


def test_an_answer_that_was_shared_grows_no_older_in_another_cache(shelf):
    """Both tiers together keep it for one ttl and not for two."""
    writer, reader = Server(shelf, 1.0), Server(shelf, 2.0, ttl_ns=10 * SECOND)
    writer.ask((7, ""))
    writer.written()
    shelf.clock_us += 9_000_000
    assert reader.ask((7, "")) == [(1.0, "", True)]
    soon, late = time.monotonic_ns() + SECOND // 2, time.monotonic_ns() + 1.5 * SECOND
    assert reader.cache.look_up(body_of(7), soon)[0] is not None
    assert reader.cache.look_up(body_of(7), int(late))[0] is None


def test_an_answer_about_its_own_run_is_not_shared(shelf):
    server, future = Server(shelf, 1.0), Future()
    server.lane.submit(body_of(7, timing=True), server.sink, future)
    server.shared.run(server.lane.take(block=False), server.run)
    server.sink.drain()
    server.written()
    assert (answer_of(future.result), shelf.values, shelf.asked) == ((1.0, "", False), {}, [])


def test_a_degraded_answer_is_not_shared(shelf):
    server = Server(shelf, 1.0)
    server.run = lambda batch: (setattr(batch, "degraded", True), batch.complete({"y": np.ones(1, "f4")}))
    server.ask((7, ""))
    server.written()
    assert not shelf.values


# ---- Values that are none -------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_whatever_lies_in_redis_an_answer_is_right(data):
    """Values are changed, mixed up and made up: what is given is the answer that was made for the very request."""
    shelf = Shelf()
    writer = Server(shelf, 0.0)
    writer.run = lambda batch: batch.complete({"y": batch.inputs["x"][:, 0].copy()})
    writer.ask(*[(number, "w") for number in range(4)])
    writer.written()
    names = sorted(shelf.values)
    for name in names:
        value = bytearray(shelf.values[name])
        change = data.draw(st.sampled_from(["leave", "flip", "cut", "other", "junk", "grow"]))
        if change == "flip":
            value[data.draw(st.integers(0, len(value) - 1))] ^= data.draw(st.integers(1, 255))
        elif change == "cut":
            value = value[: data.draw(st.integers(0, len(value) - 1))]
        elif change == "other":
            value = bytearray(shelf.values[data.draw(st.sampled_from(names))])
        elif change == "junk":
            value = bytearray(data.draw(st.binary(max_size=120)))
        elif change == "grow":
            value += b"\0"
        shelf.values[name] = bytes(value)
    reader = Server(shelf, 0.0)
    reader.run = writer.run
    assert [answer[:2] for answer in reader.ask(*[(number, f"r{number}") for number in range(4)])] == [
        (float(number), f"r{number}") for number in range(4)
    ]
    counts = reader.shared.counts
    assert counts.hits + counts.misses == 4
    assert counts.corrupt <= counts.misses
    reader.written()


# ---- Trouble --------------------------------------------------------------------------------------------------------


def test_without_redis_serving_goes_on_and_one_line_says_so(shelf, caplog):
    server = Server(shelf, 1.0)
    shelf.trouble = StoreUnavailable("the shared cache at h:1 is unavailable: it did not answer in time")
    for number in range(5):
        assert server.ask((number, "")) == [(1.0, "", False)]
    assert [record.message for record in caplog.records] == [
        f"{shelf.trouble}; answers are not shared until it works again"
    ]
    shelf.trouble = None
    for number in range(5, 8):
        server.ask((number, ""))
    server.written()
    assert [record.message for record in caplog.records][1:] == ["the shared cache works again"]
    counts = server.shared.counts
    assert (counts.unasked, counts.failed_reads, counts.misses, counts.written) == (5, 5, 3, 3)


def test_a_redis_that_is_late_now_and_then_does_not_fill_the_log(shelf, caplog, monkeypatch):
    server, late = Server(shelf, 1.0), StoreUnavailable("late")
    shelf.write = lambda *_: None
    for number in range(20):
        shelf.trouble = late if number % 2 else None
        server.ask((number, ""))
    assert len(caplog.records) == 2
    monkeypatch.setattr(server.shared._health, "_quiet_until_ns", 0)
    shelf.trouble = late
    server.ask((100, ""))
    assert len(caplog.records) == 3
    server.written()


def test_a_redis_that_cannot_be_written_is_still_read(shelf, caplog):
    writer, server = Server(shelf, 1.0), Server(shelf, 2.0)
    writer.ask((7, ""))
    writer.written()
    full = StoreUnavailable("the shared cache at h:1 is unavailable: OOM command not allowed")
    shelf.write = lambda *_: (_ for _ in ()).throw(full)
    assert server.ask((8, "")) == [(2.0, "", False)]
    server.written()
    assert server.ask((7, "")) == [(1.0, "", True)]
    assert (server.shared.counts.failed_writes, server.shared.counts.written) == (1, 0)
    assert [record.message for record in caplog.records] == [f"{full}; answers are not shared until it works again"]


def test_a_redis_that_refuses_us_is_asked_again_after_a_while(shelf, monkeypatch):
    server = Server(shelf, 1.0)
    shelf.trouble = StoreMisconfigured("the shared cache at h:1 refuses us: NOAUTH")
    for number in range(5):
        server.ask((number, ""))
    assert len(shelf.asked) == 1
    monkeypatch.setattr(server.shared, "_asleep_until_ns", 0)
    server.ask((9, ""))
    assert len(shelf.asked) == 2
    assert server.shared.counts.unasked == 6


def test_the_most_hurried_caller_decides_how_long_redis_may_take(shelf):
    server = Server(shelf, 1.0)
    now = time.monotonic_ns()
    server.ask((1, ""), deadline_ns=now + 100 * SECOND)
    server.ask((2, ""), deadline_ns=now + SECOND)
    server.ask((3, ""), deadline_ns=time.monotonic_ns() + 4_000_000)  # a fifth of it is less than a millisecond
    (_, patient), (_, hurried) = shelf.asked
    assert patient == 0.25
    assert 0 < hurried <= 0.2
    assert server.shared.counts.unasked == 1


def test_closing_ends_its_connections_and_its_thread(shelf):
    server = Server(shelf, 1.0)
    server.ask((1, ""))
    server.shared.close()
    assert shelf.closed
    assert len(shelf.values) == 1
