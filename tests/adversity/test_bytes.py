"""Bytes in flight over the whole process: what is beyond the limit is refused, not kept."""

from __future__ import annotations

import contextlib
import struct

import pytest


@pytest.fixture
def tight(starting, small_limits):
    """A server that holds 8 MiB at most, and waits 3 s for a body."""
    return starting(**small_limits | {"max_in_flight_bytes": 8 << 20, "body_timeout_s": 3.0})


def half_sent(peer, http2, infer, count):
    """Calls of 1 MiB of which 600 KiB are sent."""
    streams = [peer.begin(infer) for _ in range(count)]
    for stream in streams:
        peer.body(stream, struct.pack(">BI", 0, 1 << 20) + bytes(600 << 10), end=False)
    peer.echo()
    return [peer.streams[stream] for stream in streams]


def test_half_sent_bodies_beyond_the_limit_are_refused(tight, http2, infer, noting):
    """80 MiB on 8 connections: at least 5 bodies are held, at most 13, all others refused as UNAVAILABLE."""
    tight.serves()
    before, descriptors = tight.memory(), tight.descriptors()
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(http2.connect(tight.address)) for _ in range(8)]
        streams = [stream for peer in peers for stream in half_sent(peer, http2, infer, 10)]
        refused = [stream for stream in streams if stream.done]
        peak = tight.memory() - before
        assert {(s.code, s.message) for s in refused} == {
            (14, "the server holds as many bytes as it may, try again later")
        }
        assert {s.trailers["grpc-retry-pushback-ms"] for s in refused} == {"50"}
        assert 5 <= len(streams) - len(refused) <= 13
        assert peak < 20 << 20
    tight.settles(before, descriptors, 12 << 20)
    noting(
        f"{len(refused)} of {len(streams)} refused; memory {peak / 2**20:+.1f}, then "
        f"{(tight.memory() - before) / 2**20:+.1f} MiB"
    )
    tight.serves()


def test_service_is_normal_once_half_sent_bodies_are_given_up(tight, http2, infer):
    """Even while those who sent them stay connected."""
    with http2.connect(tight.address) as peer:
        streams = half_sent(peer, http2, infer, 20)
        assert any(not stream.done for stream in streams)
        peer.until(lambda: all(stream.done for stream in streams), 8)
        assert {stream.code for stream in streams} == {4, 14}
        tight.serves()


def test_metadata_counts_as_bytes_in_flight(tight, http2, live, noting):
    """7 KiB of metadata on each of 1,000 calls that never send their message: 7 MiB of text, beside what calls cost."""
    tight.serves()
    before, descriptors = tight.memory(), tight.descriptors()
    with contextlib.ExitStack() as stack:
        for _ in range(40):
            peer = stack.enter_context(http2.connect(tight.address))
            for _ in range(100):
                peer.begin(live, ("a", "v" * 7000))
            peer.echo()
        peak = tight.memory() - before
    tight.settles(before, descriptors, 16 << 20)
    noting(f"memory {peak / 2**20:+.1f} MiB with 4,000 calls begun")
    assert peak < 24 << 20
    tight.serves()
