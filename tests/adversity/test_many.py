"""Many of a thing: idle connections, connections one after another, calls given up."""

from __future__ import annotations

import contextlib
import random
import struct

import pytest


def test_an_idle_connection_costs_less_than_20_kib(starting, http2, many_descriptors, noting):
    """1,000 of them, each of which has made a call."""
    target, count = starting(), 1000
    with contextlib.ExitStack() as stack:

        def idle():
            peer = stack.enter_context(http2.connect(target.address))
            assert peer.call("/inference.GRPCInferenceService/ServerLive", b"").code == 0

        for _ in range(100):
            idle()
        before = target.memory()
        for _ in range(count):
            idle()
        each = (target.memory() - before) / count
        noting(f"{each / 1024:.2f} KiB each")
        assert each < 20 << 10


@pytest.mark.timeout(300)
@pytest.mark.parametrize("count", [1500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_connections_one_after_another_leave_nothing(count, starting, http2, infer, body_of, noting):
    """Each makes a call and goes, some in the middle of the next."""
    target, message = starting(), body_of([[1.0, 2.0]])

    def connect(number):
        with http2.connect(target.address) as peer:
            assert peer.call(infer, message).code == 0
            if number % 3 == 0:
                peer.begin(infer)

    for number in range(300):
        connect(number)
    before, descriptors = target.memory(), target.descriptors()
    for number in range(count):
        connect(number)
    target.settles(before, descriptors)
    noting(f"memory {(target.memory() - before) / 2**20:+.2f} MiB, {target.descriptors()} descriptors")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("count", [3000, pytest.param(50_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("slow_lane", [False, True], ids=["inferences", "slow-calls"])
def test_cancelled_calls_leave_none_behind(count, slow_lane, starting, http2, infer, live, body_of, noting):
    """Given up before their body, within it, after it and after their answer.

    Nothing is left of them: no call is open, for `max_streams` more can be; no bytes are in flight, for 2 MiB is all
    there may be and each call takes more than 1 KiB.
    """
    limits = {
        "max_streams": 128,
        "max_in_flight_bytes": 2 << 20,
        "max_resets_per_s": 1 << 20,
        "max_pings_per_s": 1 << 20,
    }
    target, chance = starting(**limits, max_queue_rows=1 << 20), random.Random(5)
    message = b"" if slow_lane else body_of([[1.0, 2.0]] * 100)
    path, data = live if slow_lane else infer, http2.framed(message)

    def cancel(peer, many):
        """So many calls, 32 at a time, each given up somewhere."""
        for _ in range(many // 32):
            parts, streams = [], []
            for _ in range(32):
                streams.append(stream := peer.new_stream())
                fate, whole = chance.randrange(4), http2.block(peer.pairs(path))
                parts.append(http2.frame(http2.HEADERS, http2.END_HEADERS, stream, whole))
                if fate:
                    part = data if fate > 1 else data[: len(data) // 2]
                    parts.append(http2.frame(http2.DATA, http2.END_STREAM if fate > 1 else 0, stream, part))
                if fate < 3:
                    parts.append(http2.frame(http2.RST_STREAM, 0, stream, struct.pack(">I", http2.CANCEL)))
            peer.send(b"".join(parts))
            peer.echo()
            late = [http2.frame(http2.RST_STREAM, 0, stream, struct.pack(">I", http2.CANCEL)) for stream in streams]
            peer.send(b"".join(late))
            peer.echo()
            peer.window = 1 << 20  # the server takes 4 MiB, and has read all of this
            peer.frames.clear()
            peer.pongs.clear()
            for stream in streams:
                del peer.streams[stream]

    with http2.connect(target.address) as peer:
        peer.started()
        cancel(peer, 1000)
        before, descriptors = target.memory(), target.descriptors()
        cancel(peer, count)
        streams = [peer.begin(path) for _ in range(limits["max_streams"])]
        for stream in streams:
            peer.body(stream, data)
        peer.until(lambda: all(peer.streams[stream].done for stream in streams))
        assert {(peer.streams[stream].code, peer.streams[stream].reset) for stream in streams} == {(0, None)}
        target.settles(before, descriptors)
        noting(f"memory {(target.memory() - before) / 2**20:+.2f} MiB")
    target.serves()
