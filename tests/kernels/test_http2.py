"""The native transport's kernel: its grammar and timers against twins, and its threads under whatever happens to them.

What it promises on the wire is tested in tests/conformance; here are the promises to the code around it: nothing leaks,
nothing is answered twice, and nothing it gave away is touched again. Connections are socketpairs that it adopts.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import random
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import unquote_to_bytes

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.kernels import exchanges
from penstock.kernels.lanes import Lane
from penstock.kernels.reference import grpc as reference
from penstock.kernels.wire import Plan
from penstock.proto import inference_pb2 as pb

http2 = pytest.importorskip("penstock.kernels.http2", reason="built without the native transport")


def _load(path: Path):
    """`tests` is no package."""
    spec = importlib.util.spec_from_file_location(f"kernel_tests_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


client = _load(Path(__file__).parents[1] / "http2_client.py")

INFER, UNARY, STREAM = b"/t/Infer", b"/t/Unary", b"/t/Stream"
PLAN = Plan("m", "1", [("x", "FP32", (-1,), "tensor", False)], [("y", "FP32", (), False)])
TICK = 1 << 22
TURN = 2048 * TICK
LIMITS = {
    "max_message_bytes": 1 << 24,
    "max_header_bytes": 16384,
    "max_streams": 1024,
    "max_connections": 256,
    "max_in_flight_bytes": 1 << 28,
    "default_deadline_s": 60,
    "handshake_timeout_s": 30,
    "header_timeout_s": 30,
    "body_timeout_s": 30,
    "idle_timeout_s": 600,
    "keepalive_s": 600,
    "keepalive_timeout_s": 30,
    "max_connection_age_s": 3600,
    "max_connection_age_grace_s": 60,
    "max_resets_per_s": 100_000,
    "max_pings_per_s": 1000,
    "max_settings_per_s": 1000,
    "max_empty_frames_per_s": 100_000,
}


# ---- Helpers --------------------------------------------------------------------------------------------------------


def make(threads: int = 1, **limits) -> http2.Http2:
    return http2.Http2(threads=threads, infer=INFER, unary=[UNARY], streams=[STREAM], **{**LIMITS, **limits})


def eventually(holds, within_s: float = 20.0):
    until = time.monotonic() + within_s
    while not (found := holds()):
        assert time.monotonic() < until, "it did not come to hold in time"
        time.sleep(0.002)
    return found


class Running:
    """A transport and its threads, from here to `stop`."""

    def __init__(self, threads: int = 1, **limits) -> None:
        self.http2 = make(threads, **limits)
        self.threads = [threading.Thread(target=self.http2.run, args=(i,), daemon=True) for i in range(threads)]
        self.links: list[socket.socket] = []

    def start(self) -> Running:
        for thread in self.threads:
            thread.start()
        eventually(self._adopting)
        return self

    def _adopting(self) -> bool:
        """Thread 0 runs once it takes a connection; this one is closed again at once."""
        ours, theirs = socket.socketpair()
        ours.close()
        return self._adopt(theirs)

    def _adopt(self, theirs: socket.socket) -> bool:
        theirs.setblocking(False)
        if self.http2.adopt(theirs.fileno()):
            theirs.detach()
            return True
        theirs.close()
        return False

    def connect(self, **options) -> client.Peer:
        ours, theirs = socket.socketpair()
        self.links.append(ours)
        assert self._adopt(theirs)
        return client.Peer(ours, **options)

    def stop(self) -> None:
        self.http2.stop()
        for thread in self.threads:
            thread.join(20)
            assert not thread.is_alive(), "an I/O thread does not end"

    def close(self) -> None:
        for link in self.links:
            link.close()
        self.stop()
        self.http2.events()

    def told(self, *, until: int, within_s: float = 20.0) -> list:
        """Events, at least up to one of this kind."""
        found, at = [], time.monotonic() + within_s
        while not any(kind == until for kind, *_ in found):
            assert time.monotonic() < at, f"only {[kind for kind, *_ in found]} came"
            select.select([self.http2.fileno()], [], [], 1)
            found += self.http2.events()
        return found

    def began(self):
        """The next RPC that Python is to answer."""
        return next(rpc for kind, rpc, *_ in self.told(until=exchanges.BEGAN_EVENT) if kind == exchanges.BEGAN_EVENT)


@pytest.fixture
def running():
    """Starts transports, which end with the test."""
    with contextlib.ExitStack() as stack:

        def start(threads: int = 1, **limits) -> Running:
            made = Running(threads, **limits).start()
            stack.callback(made.close)
            return made

        yield start


def body_of(rows: int = 1, width: int = 1, model: str = "m") -> bytes:
    message = pb.ModelInferRequest(model_name=model, raw_input_contents=[bytes(4 * rows * width)])
    message.inputs.add(name="x", datatype="FP32", shape=(rows, width))
    return message.SerializeToString()


def answer_all(lane: Lane, value: float = 0.0) -> None:
    """A worker's life; every answer is `value`."""
    while (batch := lane.take()) is not None:
        batch.complete({"y": np.full(batch.rows, value, "f4")})


def worker(lane: Lane, value: float = 0.0) -> threading.Thread:
    thread = threading.Thread(target=answer_all, args=(lane, value), daemon=True)
    thread.start()
    return thread


@contextlib.contextmanager
def served(lane: Lane, value: float = 0.0):
    """The lane, with a worker that ends with the block."""
    thread = worker(lane, value)
    yield lane
    lane.drain()
    thread.join(20)


def value_of(answer: client.Stream) -> float:
    assert answer.code == 0, (answer.code, answer.message, answer.reset)
    (message,) = answer.messages
    return float(np.frombuffer(pb.ModelInferResponse.FromString(message).raw_output_contents[0], "f4")[0])


def descriptors() -> set[tuple[str, str]]:
    """Open descriptors of the kinds a transport holds, with what each one is.

    Servers of other tests of this process read files meanwhile; those are not looked at.
    """
    gc.collect()
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the one that this loop reads
            kind = str(entry.readlink())
            if kind.startswith(("socket:", "anon_inode:", "pipe:")):
                found.add((entry.name, kind))
    return found


def left_behind(before: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Descriptors that stay open and were not there before; what other tests hold may come and go."""
    end = time.monotonic() + 5
    while (left := descriptors() - before) and time.monotonic() < end:
        time.sleep(0.02)
    return left


def lanes_alive() -> int:
    gc.collect()
    return sum(isinstance(found, Lane) for found in gc.get_objects())


def python(*lines: str, within_s: float = 30) -> subprocess.CompletedProcess:
    """Run a program of its own, for what could take this one along."""
    return subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=within_s, check=False
    )


# ---- The grammar ----------------------------------------------------------------------------------------------------


TIMEOUTS = st.from_regex(rb"\A[0-9]{0,10}[HMSmunsh]?\Z") | st.binary(max_size=11)
NEAR_TIMEOUTS = st.text("0129 +-nSmH", max_size=10).map(str.encode)


@given(TIMEOUTS | NEAR_TIMEOUTS)
def test_timeouts_are_read_as_the_twin_reads_them(text):
    assert http2.decide_timeout(text) == reference.decide_timeout(text)


@pytest.mark.parametrize("decide", [http2.decide_timeout, reference.decide_timeout], ids=["kernel", "twin"])
def test_timeouts_are_what_the_protocol_says(decide):
    assert decide(b"1S") == 1_000_000_000
    assert decide(b"00000001n") == 1
    assert decide(b"99999999H") == 10**18, "too long for nanoseconds in 64 bits: thirty years"
    assert decide(b"0m") == 0
    for malformed in (b"", b"S", b"1", b"123456789S", b"1s", b"-1S", b"+1S", b" 1S", b"1 S", b"1.5S", b"1S\0"):
        assert decide(malformed) is None, malformed


@given(st.binary(max_size=300) | st.text(max_size=100).map(str.encode))
def test_messages_are_written_as_the_twin_writes_them_and_read_back_as_they_were(text):
    written = http2.decide_message(text)
    assert written == reference.decide_message(text)
    assert all(0x20 <= byte <= 0x7E for byte in written)
    assert unquote_to_bytes(written) == text


KINDS = st.sampled_from([b"application/grpc", b"application/grpc+", b"Application/grpc", b"application/grp"])


@given(st.binary(max_size=20) | st.tuples(KINDS, st.binary(max_size=4)).map(b"".join))
def test_content_types_are_judged_as_the_twin_judges_them(text):
    assert http2.decide_content_type(text) == reference.decide_content_type(text)


WORDS = st.sampled_from([b"gzip", b"deflate", b"identity", b"br", b"Gzip", b"gzi", b",", b" ", b", ", b",,"])


@given(st.lists(WORDS, max_size=12).map(b"".join) | st.binary(max_size=24))
def test_lists_of_encodings_are_read_as_the_twin_reads_them(text):
    assert http2.decide_encodings(text) == reference.decide_encodings(text)


@given(st.integers(0, 2**32 - 1), st.booleans())
def test_prefixes_are_those_of_the_twin_and_of_struct(size, compressed):
    found = http2.decide_prefix(size, compressed)
    assert found == reference.decide_prefix(size, compressed) == (struct.pack(">?I", compressed, size), size)


@given(
    rate=st.sampled_from([0.1, 1.0, 10.0, 1000.0]),
    steps=st.lists(st.sampled_from([0, 1, 10**6, 10**8, 10**9, 10**10, 10**11]), max_size=200),
    start=st.sampled_from([0, 10**9, 10**15]),
)
def test_the_token_bucket_decides_as_the_twin_does(rate, steps, start):
    times = np.cumsum([start, *steps]).tolist()
    assert http2.decide_allowed(rate, times) == reference.decide_allowed(rate, times)


@pytest.mark.parametrize("decide", [http2.decide_allowed, reference.decide_allowed], ids=["kernel", "twin"])
def test_ten_seconds_worth_is_allowed_at_once_and_the_rate_for_ever(decide):
    at = 12_345 * 10**9
    assert decide(10, [at] * 101) == [True] * 100 + [False]
    steady = [at + number * 10**8 for number in range(2000)]
    assert all(decide(10, steady))
    assert decide(10, [at] * 100 + [at + 10**10] * 101) == [True] * 200 + [False], "a pause fills it, no further"


# ---- The timer wheel ------------------------------------------------------------------------------------------------

DELAYS = st.sampled_from([-TURN, -1, 0, 1, TICK - 1, TICK, TICK + 1, TURN - TICK, TURN, TURN + 1, 3 * TURN, 10**12])
STEPS = st.sampled_from([0, 1, TICK // 2, TICK, 7 * TICK, TURN - TICK, TURN, TURN + TICK, 5 * TURN])
OPERATIONS = st.one_of(
    st.tuples(st.just("set"), st.integers(0, 7), DELAYS | st.integers(-TICK, 3 * TURN)),
    st.tuples(st.just("cancel"), st.integers(0, 7), st.just(0)),
    st.tuples(st.just("pass"), st.just(0), STEPS | st.integers(0, 2 * TURN)),
)


@given(st.lists(OPERATIONS, max_size=60), st.sampled_from([0, TICK - 1, 10**15]))
def test_timers_fire_once_never_early_and_at_most_a_tick_late(operations, now):
    wheel = http2.TimerWheel(8, now)
    due: dict[int, int] = {}
    since: dict[int, int] = {}
    for kind, timer, amount in operations:
        if kind == "set":
            due[timer], since[timer] = now + amount, now
            wheel.set(timer, now + amount)
        elif kind == "cancel":
            due.pop(timer, None)
            wheel.cancel(timer)
        else:
            now += amount
            while (fired := wheel.take_due(now)) is not None:
                assert due.pop(fired) <= now
            late = {timer: now - max(at, since[timer]) for timer, at in due.items()}
            assert all(by < TICK for by in late.values()), late
            assert wheel.wait_ms(now) != 0, "a thread that has fired all that is due would not sleep"
        wait = wheel.wait_ms(now)
        assert (wait == -1) == (not due)
        if due:
            assert now + wait * 10**6 < max(min(due.values()), now) + TICK + 10**6


def test_a_far_timer_wakes_nobody_more_often_than_once_a_turn():
    now, wakes = 5 * TURN + 123, 0
    wheel, due = http2.TimerWheel(1, now), 5 * TURN + 123 + 100 * 10**9
    wheel.set(0, due)
    while wheel.take_due(now) is None:
        wait = wheel.wait_ms(now)
        assert wait > 0
        now += wait * 10**6
        wakes += 1
    assert due <= now < due + TICK + 2 * 10**6
    assert wakes <= 100 * 10**9 // TURN + 3


def test_what_is_cancelled_or_moved_while_others_fire_does_not_fire():
    wheel = http2.TimerWheel(20, 0)
    for timer in range(20):
        wheel.set(timer, TICK * (1 + timer // 10))
    now, fired = 4 * TICK, []
    while (timer := wheel.take_due(now)) is not None:
        fired.append(timer)
        other = timer + 1 if timer % 2 == 0 else timer - 1
        (wheel.cancel(other) if timer < 10 else wheel.set(other, now + TURN))
    assert len(fired) == 10
    assert len({timer // 2 for timer in fired}) == 10, "one of each pair"
    left = []
    while (timer := wheel.take_due(now + TURN + TICK)) is not None:
        left.append(timer)
    assert len(left) == 5
    assert min(left) >= 10
    assert wheel.wait_ms(now + TURN + TICK) == -1


def test_many_timers_of_one_slot_fire_in_time_however_many_wait_there_for_a_later_turn():
    count, best = 8000, {}
    for others in (0, count):
        wheel = http2.TimerWheel(count + others, 0)
        for timer in range(count):
            wheel.set(timer, 5 * TICK)
        for timer in range(count, count + others):
            wheel.set(timer, 5 * TICK + TURN)
        begun = time.thread_time()
        fired = 0
        while wheel.take_due(7 * TICK) is not None:
            fired += 1
        assert fired == count
        best[others] = time.thread_time() - begun
    assert best[count] < 20 * best[0] + 0.05


def test_a_timer_set_again_while_it_fires_fires_again_later():
    wheel, now = http2.TimerWheel(1, 0), 0
    wheel.set(0, 10)
    for _ in range(3):
        now += 2 * TICK
        assert wheel.take_due(now) == 0
        wheel.set(0, now + TICK)
        assert wheel.take_due(now) is None


# ---- Threads and lanes ----------------------------------------------------------------------------------------------


def test_a_call_goes_into_its_lane_and_back(running):
    made, lane = running(), Lane(PLAN)
    made.http2.set_routes({(b"m", b""): lane})
    with served(lane, 7.0):
        assert value_of(made.connect().call(INFER.decode(), body_of())) == 7.0
    counts = made.http2.snapshot()
    assert (counts["inferences"], counts["exchanges"], counts["in_lanes"]) == (1, 0, 0)


def test_routes_replaced_under_load_lose_no_call_and_keep_no_lane(running):
    """Once `set_routes` has returned the old lane may end: whoever reached it is answered, nobody comes after."""
    before = lanes_alive()
    made, current = running(threads=2), [0, 0]
    first = Lane(PLAN)
    made.http2.set_routes({(b"m", b""): first})
    workers, problems, answered, over = [(first, worker(first, 0.0))], [], [0, 0, 0], threading.Event()
    del first

    def call(number: int) -> None:
        peer = made.connect()
        while not over.is_set():
            low = current[0]
            answer = peer.call(INFER.decode(), body_of())
            if answer.code != 0 or not low <= value_of(answer) <= current[1]:
                problems.append((answer.code, answer.message, answer.reset))
            answered[number] += 1

    callers = [threading.Thread(target=call, args=(number,)) for number in range(3)]
    for caller in callers:
        caller.start()
    for number in range(1, 501):
        lane, (old, thread) = Lane(PLAN), workers.pop()
        workers.append((lane, worker(lane, float(number))))
        current[1] = number
        made.http2.set_routes({(b"m", b""): lane, (b"m", b"%d" % number): lane})
        current[0] = number
        old.drain()
        thread.join(20)
        del lane, old
    over.set()
    for caller in callers:
        caller.join(20)
    lane, thread = workers.pop()
    lane.drain()
    thread.join(20)
    assert not problems
    assert min(answered) > 100
    del lane
    assert lanes_alive() == before + 1, "the one in the routes"
    made.http2.set_routes({})
    assert lanes_alive() == before


def test_routes_may_be_set_before_between_and_after_the_threads_run():
    made, lane = Running(), Lane(PLAN)
    made.http2.set_routes({(b"m", b""): Lane(PLAN)})
    made.http2.set_routes({(b"m", b""): lane})
    made.start()
    with served(lane, 3.0):
        assert value_of(made.connect().call(INFER.decode(), body_of())) == 3.0
    made.close()
    before = lanes_alive()
    made.http2.set_routes({})
    del lane
    assert lanes_alive() == before - 1


def test_routes_set_by_two_threads_at_once_are_those_of_one_of_them(running):
    made, lanes, over = running(threads=2), [Lane(PLAN), Lane(PLAN)], time.monotonic() + 1.5

    def swap(number: int) -> None:
        while time.monotonic() < over:
            made.http2.set_routes({(b"m", b"%d" % i): lanes[number] for i in range(50)} | {(b"m", b""): lanes[number]})

    with served(lanes[0], 1.0), served(lanes[1], 2.0):
        swappers = [threading.Thread(target=swap, args=(number,)) for number in range(2)]
        for swapper in swappers:
            swapper.start()
        peer = made.connect()
        while time.monotonic() < over:
            assert value_of(peer.call(INFER.decode(), body_of())) in (1.0, 2.0)
        for swapper in swappers:
            swapper.join(20)
        assert value_of(peer.call(INFER.decode(), body_of())) in (1.0, 2.0)


def queued(made: Running, lane: Lane, calls: int) -> client.Peer:
    """A connection with so many calls in the lane."""
    made.http2.set_routes({(b"m", b""): lane})
    peer = made.connect()
    for _ in range(calls):
        peer.start_call(INFER.decode(), body_of(width=100))
    eventually(lambda: lane.queued_rows == calls)
    return peer


def test_calls_in_lanes_when_it_stops_are_never_run_and_delivered_to_nobody():
    before = descriptors()
    made, lane = Running().start(), Lane(PLAN)
    peer = queued(made, lane, 20)
    made.stop()
    assert peer.until_closed().closed
    assert lane.take(block=False) is None
    assert lane.snapshot()["cancelled"] == 20
    made.close()
    del made
    gc.collect()
    assert not left_behind(before)


@pytest.mark.parametrize("end", ["complete", "fail", "abandon", "lane"])
def test_calls_in_lanes_outlive_the_transport_and_free_it(end):
    """Its descriptors are the witness: the last call that comes back closes them."""
    before = descriptors()
    made, lane = Running(threads=2).start(), Lane(PLAN, max_batch_rows=5)
    queued(made, lane, 20)
    batches = [lane.take(), lane.take()]
    made.close()
    made.http2.set_routes({})
    del made
    gc.collect()
    assert descriptors() != before
    if end == "complete":
        for batch in batches:
            batch.complete({"y": np.zeros(5, "f4")})
        assert lane.take(block=False) is None
    elif end == "fail":
        for batch in batches:
            batch.fail(13, "broken")
        lane.take(block=False)
    elif end == "abandon":
        lane.take(block=False)
    del batches, lane
    with contextlib.suppress(UnboundLocalError):
        del batch
    gc.collect()
    assert not left_behind(before)


def test_workers_may_answer_while_the_transport_goes_away():
    """Answers and the end of the transport meet at any moment; neither waits for the other."""
    before = descriptors()
    for number in range(30):
        made, lane = Running(threads=2).start(), Lane(PLAN, max_batch_rows=1 + number % 3)
        queued(made, lane, 30)
        workers = [worker(lane), worker(lane)]
        made.close()
        del made
        lane.drain()
        for thread in workers:
            thread.join(20)
    gc.collect()
    assert not left_behind(before)


def test_calls_given_up_at_any_moment_leave_nothing_behind(running):
    made, lane = running(threads=2), Lane(PLAN, max_batch_rows=4)
    made.http2.set_routes({(b"m", b""): lane})
    dice = random.Random(4)
    with served(lane):
        for _ in range(12):
            peer = made.connect()
            for _ in range(40):
                stream = peer.start_call(INFER.decode(), body_of(width=dice.choice([1, 3000])))
                if dice.random() < 0.5:
                    peer.rst(stream)
            if dice.random() < 0.5:
                peer.echo()
            peer.close()
        eventually(lambda: made.http2.snapshot()["connections"] == 0)
        eventually(lambda: made.http2.snapshot()["in_lanes"] == 0)
    eventually(lambda: made.http2.snapshot()["bytes"] == 0)


def loads(polls: set[str]) -> list[int]:
    """How many sockets each of these epoll descriptors watches."""
    found = []
    for poll in polls:
        watched = [
            line.split()[1] for line in Path(f"/proc/self/fdinfo/{poll}").read_text().splitlines() if "tfd" in line
        ]
        kinds = [str(Path(f"/proc/self/fd/{fd}").readlink()) for fd in watched]
        found.append(sum(kind.startswith("socket") for kind in kinds))
    return sorted(found)


def test_three_threads_share_connections_evenly_and_all_answer(running):
    before = descriptors()
    made = Running(threads=3)
    polls = {fd for fd, kind in descriptors() - before if "eventpoll" in kind}
    assert len(polls) == 3
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    listener.setblocking(False)
    made.http2.listen(listener.detach())
    for thread in made.threads:
        thread.start()
    lane, peers = Lane(PLAN), []
    made.http2.set_routes({(b"m", b""): lane})
    try:
        with served(lane, 5.0), contextlib.ExitStack() as stack:
            for _ in range(3):
                while len(peers) < 12:
                    peers.append(stack.enter_context(client.connect(address)).started())
                assert [value_of(peer.call(INFER.decode(), body_of())) for peer in peers] == [5.0] * 12
                assert loads(polls) == [4, 4, 5], "the listener is one of the first thread's"
                random.Random(2).shuffle(peers)
                for peer in peers[6:]:
                    peer.close()
                del peers[6:]
                eventually(lambda: made.http2.snapshot()["connections"] == 6)
    finally:
        made.close()


# ---- Exchanges with Python ------------------------------------------------------------------------------------------


def test_an_exchange_is_told_in_order_and_answered(running):
    made = running()
    peer = made.connect()
    stream = peer.begin(STREAM.decode(), ("x-key", "value"), ("y-bin", "AAEC"))
    for number in range(3):
        peer.body(stream, client.framed(b"%d" % number), end=number == 2)
    told = made.told(until=exchanges.ENDED_EVENT)
    assert [(kind, message) for kind, _, _, message in told] == [
        (exchanges.BEGAN_EVENT, b""),
        (exchanges.MESSAGE_EVENT, b"0"),
        (exchanges.MESSAGE_EVENT, b"1"),
        (exchanges.MESSAGE_EVENT, b"2"),
        (exchanges.ENDED_EVENT, b""),
    ]
    (rpc,) = {rpc for _, rpc, _, _ in told}
    assert (rpc.path, rpc.streaming, rpc.encoding, rpc.deadline_ns) == (STREAM.decode(), True, "identity", 0)
    assert rpc.metadata == ((b"x-key", b"value"), (b"y-bin", b"AAEC"))
    rpc.send(b"a")
    rpc.send(b"")
    rpc.finish(9, "größer", [(b"why", b"because")])
    answer = peer.answer(stream)
    assert (answer.messages, answer.code, answer.message, answer.trailers["why"]) == (
        [b"a", b""],
        9,
        "größer",
        "because",
    )
    kinds = [kind for kind, *_ in made.told(until=exchanges.CLOSED_EVENT)]
    assert kinds == [exchanges.WRITTEN_EVENT] * 2 + [exchanges.CLOSED_EVENT]


def test_what_is_sent_after_the_end_is_not_sent(running):
    made = running()
    peer = made.connect()
    stream = peer.start_call(UNARY.decode(), b"ask")
    rpc = made.began()
    rpc.send(b"answer")
    rpc.finish(0)
    rpc.finish(13, "again")
    rpc.send(b"more")
    answer = peer.answer(stream)
    assert (answer.messages, answer.code) == ([b"answer"], 0)
    made.told(until=exchanges.CLOSED_EVENT)
    rpc.send(b"late")
    rpc.finish(13, "late")
    rpc.consumed(3)
    second = peer.start_call(UNARY.decode(), b"ask")
    made.began().finish(5, "nothing here")
    assert peer.answer(second).code == 5
    assert (peer.streams[stream].messages, len(peer.streams[stream].blocks)) == ([b"answer"], 2)


def test_a_client_that_leaves_ends_its_exchange_once(running):
    made = running()
    peer = made.connect()
    stream = peer.start_call(UNARY.decode(), b"ask")
    rpc = made.began()
    peer.rst(stream)
    assert [kind for kind, *_ in made.told(until=exchanges.CLOSED_EVENT)] == [exchanges.CLOSED_EVENT]
    rpc.send(b"answer")
    rpc.finish()
    peer.echo()
    assert made.http2.events() == []
    assert made.http2.snapshot()["reset"] == 1


def test_an_exchange_may_be_kept_when_the_transport_is_gone():
    before = descriptors()
    made = Running().start()
    made.connect().start_call(UNARY.decode(), b"ask" * 1000, ("x-key", "value"))
    rpc = made.began()
    made.close()
    del made
    gc.collect()
    rpc.send(b"answer")
    rpc.finish(3, "late")
    assert (rpc.path, rpc.metadata) == (UNARY.decode(), ((b"x-key", b"value"),))
    del rpc
    gc.collect()
    assert not left_behind(before)


def test_an_exchange_in_a_cycle_goes_with_its_transport():
    """Garbage collection takes both, in an order of its own."""
    before = descriptors()
    for _ in range(20):
        made = Running().start()
        made.connect().start_call(UNARY.decode(), b"ask" * 1000)
        rpc = made.began()
        rpc.conversation = rpc.task = [rpc]
        made.close()
        del made, rpc
        gc.collect()
    assert not left_behind(before)


def asked(calls: int) -> Running:
    """A transport with so many exchanges that nobody was told of."""
    made = Running().start()
    for _ in range(calls):
        made.connect().start_call(UNARY.decode(), b"ask" * 1000)
    eventually(lambda: made.http2.snapshot()["exchanges"] == calls)
    return made


def test_events_nobody_read_are_gone_with_the_transport():
    before = descriptors()
    made = asked(20)
    made.stop()
    for link in made.links:
        link.close()
    del made
    gc.collect()
    assert not left_behind(before)


def test_exchanges_are_answered_from_any_thread(running):
    """Commands of many threads meet in one mailbox, and those of one exchange keep their order."""
    made, over = running(threads=2), []
    peers = [made.connect() for _ in range(4)]
    streams = [(peer, peer.begin(STREAM.decode())) for peer in peers for _ in range(5)]
    rpcs = []
    while len(rpcs) < len(streams):
        rpcs += [rpc for kind, rpc, *_ in made.told(until=exchanges.BEGAN_EVENT) if kind == exchanges.BEGAN_EVENT]

    def answer(some: list) -> None:
        for number in range(50):
            for rpc in some:
                rpc.send(b"%d" % number)
        for rpc in some:
            rpc.finish()
        over.append(True)

    threads = [threading.Thread(target=answer, args=(rpcs[number::5],)) for number in range(5)]
    for thread in threads:
        thread.start()
    for peer, stream in streams:
        answers = peer.answer(stream)
        assert (answers.code, answers.messages) == (0, [b"%d" % number for number in range(50)])
    for thread in threads:
        thread.join(20)
    assert len(over) == 5


def test_bytes_are_given_back_when_calls_are_over(running):
    made = running()
    for outcome in ("answered", "refused", "left", "broken"):
        peer = made.connect()
        stream = peer.start_call(UNARY.decode(), bytes(200_000))
        rpc = made.began()
        assert made.http2.snapshot()["bytes"] >= 200_000
        if outcome == "answered":
            rpc.send(bytes(300_000))
            rpc.finish()
            assert len(peer.answer(stream).messages[0]) == 300_000
        elif outcome == "refused":
            rpc.finish(3, "no")
            assert peer.answer(stream).code == 3
        elif outcome == "left":
            peer.rst(stream)
        else:
            peer.close()
        made.told(until=exchanges.CLOSED_EVENT)
        del rpc
        peer.close()
        eventually(lambda: made.http2.snapshot()["bytes"] == 0)


@pytest.mark.parametrize("size", [0, 1, 100, 4096])
def test_a_client_cannot_send_more_than_a_window_that_nobody_reads(running, size):
    """However small its messages are: what is kept of each is much more than what came."""
    made = running()
    peer = made.connect().started()
    stream, message, sent = peer.begin(STREAM.decode()), client.framed(bytes(size)), 0
    many = message * (16000 // len(message))
    with contextlib.suppress(client.TookTooLong):
        while sent < 12 << 20:
            peer.until(lambda: min(peer.window, peer.streams[stream].window) >= len(many), 1)
            peer.body(stream, many, end=False)
            sent += len(many)
    assert sent < 2 << 20, "it was never held back"
    assert made.http2.snapshot()["bytes"] > (sent // len(message)) * (size + 100), "what is kept is not charged"
    taken = 0
    while taken < sent // len(message):
        for kind, rpc, _, came in made.told(until=exchanges.MESSAGE_EVENT):
            if kind == exchanges.MESSAGE_EVENT:
                rpc.consumed(len(came))
                taken += 1
    peer.until(lambda: peer.streams[stream].window > 1 << 19)
    peer.rst(stream)


# ---- Time -----------------------------------------------------------------------------------------------------------


def test_an_answer_that_is_half_there_at_the_default_deadline_holds_up_nobody(running):
    made = running(default_deadline_s=0.15)
    peer, other = made.connect(), made.connect()
    stream = peer.start_call(UNARY.decode(), b"ask")
    rpc = made.began()
    rpc.send(b"half")
    peer.until(lambda: peer.streams[stream].messages == [b"half"])
    time.sleep(0.4)  # the deadline is on the transport's own clock
    other.echo(5)
    rpc.finish()
    peer.answer(stream, 5)


def test_a_call_without_an_answer_ends_at_its_deadline_whoever_has_it(running):
    made, lane = running(default_deadline_s=0.2), Lane(PLAN)
    made.http2.set_routes({(b"m", b""): lane})
    peer = made.connect()
    streams = [peer.start_call(INFER.decode(), body_of()), peer.start_call(UNARY.decode(), b"ask")]
    made.told(until=exchanges.BEGAN_EVENT)
    assert [peer.answer(stream, 5).code for stream in streams] == [4, 4]
    assert lane.take(block=False) is None
    assert exchanges.CLOSED_EVENT in [kind for kind, *_ in made.told(until=exchanges.CLOSED_EVENT)]
    eventually(lambda: made.http2.snapshot()["in_lanes"] == 0)


def test_a_client_may_measure_the_line_by_a_ping_after_every_answer(running):
    """As grpc-go does; without any answer between, so many are a flood."""
    made = running(max_pings_per_s=1)
    made.http2.set_routes({})
    peer = made.connect()
    for _ in range(100):
        assert peer.call("/nothing/here", b"").code == 12
        peer.echo(5)
    assert not peer.goaways
    peer = made.connect()
    for _ in range(100):
        peer.ping()
    peer.until(lambda: peer.goaways, 5)
    assert peer.goaways[0].code == client.ENHANCE_YOUR_CALM


def test_resets_that_the_server_is_made_to_send_are_counted_as_the_clients_own(running):
    made = running(max_resets_per_s=10)
    peer = made.connect()
    with contextlib.suppress(client.Closed, ConnectionError):
        for _ in range(1000):
            peer.window_update(peer.begin(UNARY.decode()), 2**31 - 1)
        peer.settle(1)
    assert peer.goaways[-1].code == client.ENHANCE_YOUR_CALM


def test_a_small_answer_does_not_wait_for_a_large_one_of_the_same_connection(running):
    made = running()
    peer = made.connect()
    large = peer.start_call(UNARY.decode(), b"large")
    made.began().send(bytes(8 << 20))
    small = peer.start_call(UNARY.decode(), b"small")
    rpc = made.began()
    rpc.send(b"here")
    rpc.finish()
    peer.answer(small, 10)
    assert not peer.streams[large].done


def test_of_a_call_given_up_before_python_looks_it_hears_nothing(running):
    made = running()
    peer = made.connect()
    for _ in range(100):
        peer.rst(peer.start_call(UNARY.decode(), b"ask"))
    peer.echo(5)
    assert made.http2.events() == []
    assert made.http2.snapshot()["bytes"] == 0


# ---- The face -------------------------------------------------------------------------------------------------------


def test_a_connection_is_adopted_only_while_it_runs():
    made = Running()
    ours, theirs = socket.socketpair()
    assert not made.http2.adopt(theirs.fileno())
    made.start()
    made.close()
    assert not made.http2.adopt(theirs.fileno())
    ours.send(b"still ours")
    assert theirs.recv(100) == b"still ours"
    assert made.http2.snapshot()["connections"] == 0
    ours.close()
    theirs.close()


def test_connections_given_just_before_it_stops_are_closed():
    for _ in range(50):
        made = Running().start()
        peers = [made.connect(start=False) for _ in range(5)]
        made.stop()
        for peer in peers:
            assert peer.until_closed(5).closed
        made.close()


def test_stopping_twice_draining_twice_and_both_at_once_end_it():
    made = Running(threads=2).start()
    made.http2.drain()
    made.http2.drain()
    assert all(rpc is None for kind, rpc, *_ in made.told(until=exchanges.DRAINED_EVENT))
    made.http2.stop()
    made.http2.drain()
    made.stop()
    made.close()


def test_draining_answers_calls_in_flight_and_tells_when_the_last_connection_is_gone(running):
    made, lane = running(threads=2), Lane(PLAN)
    peer = queued(made, lane, 5)
    made.http2.drain()
    peer.until(lambda: len(peer.goaways) == 2)
    with served(lane, 2.0):
        assert [value_of(peer.answer(stream)) for stream in list(peer.streams)] == [2.0] * 5
        peer.until_closed()
        peer.close()
        made.told(until=exchanges.DRAINED_EVENT)


def test_a_transport_that_never_ran_closes_what_it_was_given():
    before = descriptors()
    made = make(3)
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    made.listen(listener.detach())
    made.set_routes({(b"m", b""): Lane(PLAN)})
    made.stop()
    made.drain()
    assert made.events() == []
    del made
    gc.collect()
    assert not left_behind(before)


def test_a_bad_call_is_refused_and_closes_no_descriptor_of_others():
    done = python(
        "import os",
        "from penstock.kernels.http2 import Http2",
        f"limits = {LIMITS!r}",
        "bad_ones = [{'threads': n} for n in (0, 257)] + [{'threads': 1, n: 'x'} for n in ('more', 'idle_timeout_s')]",
        "for bad in bad_ones:",
        "    try:",
        "        Http2(infer=b'/a', unary=[], streams=[], **{**limits, **bad})",
        "    except (TypeError, ValueError):",
        "        os.fstat(0)",
        "    else:",
        "        raise AssertionError(bad)",
        "print('fine')",
    )
    assert done.stdout == "fine\n", done.stderr


def test_a_thread_that_does_not_exist_cannot_be_run():
    made = make(2)
    for index in (-1, 2):
        with pytest.raises(ValueError, match="no thread"):
            made.run(index)


def test_a_thread_is_run_once():
    """In a program of its own: one that did run again might never end."""
    done = python(
        "import threading",
        "from penstock.kernels.http2 import Http2",
        f"made = Http2(threads=1, infer=b'/a', unary=[], streams=[], **{LIMITS!r})",
        "thread = threading.Thread(target=made.run, args=(0,))",
        "made.stop()",
        "thread.start()",
        "thread.join()",
        "try:",
        "    made.run(0)",
        "except ValueError:",
        "    print('refused')",
        within_s=10,
    )
    assert done.stdout == "refused\n", done.stderr


def test_an_exchange_cannot_be_made_by_hand():
    with pytest.raises(TypeError, match="transport"):
        exchanges.Rpc()
