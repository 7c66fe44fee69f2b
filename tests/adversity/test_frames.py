"""Floods of frames that cost a client nothing: each ends with the attacker shut out and nobody else the wiser.

Each attack is one piece of bytes of up to 20,000 frames, on connection after connection for a second.
"""

from __future__ import annotations

import struct

import pytest

FRAMES = 20_000


@pytest.fixture
def opened_and_reset(http2, blocks):
    """10,000 calls of a path as one piece of bytes, each reset at once, with or without a body before that."""

    def make(path, message=None):
        (first, others), parts = blocks(path), []
        for number in range(1, FRAMES, 2):
            parts.append(http2.frame(http2.HEADERS, http2.END_HEADERS, number, first if number == 1 else others))
            if message is not None:
                parts.append(http2.frame(http2.DATA, http2.END_STREAM, number, http2.framed(message)))
            parts.append(http2.frame(http2.RST_STREAM, 0, number, struct.pack(">I", http2.CANCEL)))
        return b"".join(parts)

    return make


def test_a_rapid_reset_is_calmed(flood, calmed, opened_and_reset, infer):
    sent = opened_and_reset(infer)
    flood(lambda: calmed(sent))


def test_a_rapid_reset_of_inferences_is_calmed(flood, calmed, opened_and_reset, infer, body_of):
    """Each reaches its lane before it is given up."""
    sent = opened_and_reset(infer, body_of([[1.0, 2.0]]))
    flood(lambda: calmed(sent))


def test_a_rapid_reset_of_slow_calls_is_calmed(starting, small_limits, flood, calmed, opened_and_reset, live):
    """Each reaches Python before it is given up."""
    sent, target = opened_and_reset(live, b""), starting(**small_limits)
    flood(lambda: calmed(sent, target), at=target)
    target.serves()


def test_endless_continuation_is_calmed(flood, calmed, http2, blocks, infer):
    """A header block that never ends, in small frames of an ignored header each."""
    opened = http2.frame(http2.HEADERS, 0, 1, blocks(infer)[0])
    more = http2.frame(http2.CONTINUATION, 0, 1, http2.block([("a", "b")]))
    flood(lambda: calmed(opened + FRAMES * more))


def test_empty_continuation_is_calmed(flood, calmed, http2, blocks, infer):
    opened = http2.frame(http2.HEADERS, 0, 1, blocks(infer)[0])
    flood(lambda: calmed(opened + FRAMES * http2.frame(http2.CONTINUATION, 0, 1)))


def test_an_hpack_bomb_fills_no_memory_and_holds_nobody_up(flood, target, http2, blocks, infer, reading, blasting):
    """One header of 4 KB in the table, pointed at by 16,000 bytes a frame: 64 MB of headers in each, 1.2 GB in all."""
    first = blocks(infer)[0]
    bomb = b"\x40\x01a\x7f" + bytes([3900 - 127 & 0x7F | 0x80, 3900 - 127 >> 7]) + b"v" * 3900
    opened = http2.frame(http2.HEADERS, 0, 1, first + bomb)
    more = http2.frame(http2.CONTINUATION, 0, 1, b"\xbe" * 16_000)
    last = http2.frame(http2.CONTINUATION, http2.END_HEADERS, 1, b"")

    def attack():
        with http2.link(target.address) as link:
            blasting(link, http2.PREFACE + http2.frame(http2.SETTINGS, 0, 0) + opened + 20 * more + last)
            reader = reading(link)
            assert reader.until(lambda: bool(reader.of(http2.RST_STREAM) or reader.of(http2.GOAWAY)))
            assert not reader.of(http2.HEADERS)

    flood(attack)


def test_a_call_with_too_much_metadata_is_refused_alone(target, http2, infer, body_of):
    with http2.connect(target.address) as peer:
        refused = peer.call(infer, b"", ("a", "v" * 4000), ("b", "v" * 4000), ("c", "v" * 4000))
        assert (refused.code, refused.message) == (8, "the metadata is larger than the server takes")
        assert peer.call(infer, body_of([[1.0, 2.0]])).code == 0


def test_pings_are_calmed(flood, calmed, http2):
    flood(lambda: calmed(FRAMES * http2.frame(http2.PING, 0, 0, b"12345678")))


def test_settings_are_calmed(flood, calmed, http2):
    frame = http2.frame(http2.SETTINGS, 0, 0, struct.pack(">HI", http2.INITIAL_WINDOW_SIZE, 70_000))
    flood(lambda: calmed(FRAMES * frame))


def test_settings_of_many_values_are_calmed(flood, calmed, http2):
    """Each of 2,700 values in one frame, the largest there may be."""
    values = b"".join(struct.pack(">HI", http2.INITIAL_WINDOW_SIZE, 70_000 + n) for n in range(2700))
    flood(lambda: calmed(200 * http2.frame(http2.SETTINGS, 0, 0, values)))


def test_empty_data_is_calmed(flood, calmed, http2, blocks, infer):
    opened = http2.frame(http2.HEADERS, http2.END_HEADERS, 1, blocks(infer)[0])
    flood(lambda: calmed(opened + FRAMES * http2.frame(http2.DATA, 0, 1)))


def test_priorities_are_calmed(flood, calmed, http2):
    frames = (http2.frame(http2.PRIORITY, 0, n, struct.pack(">IB", n - 2, 15)) for n in range(3, 2 * FRAMES, 2))
    sent = b"".join(frames)
    flood(lambda: calmed(sent))


@pytest.fixture
def echoed(http2, target, reading, blasting):
    """Sends frames that break no limit; the PING behind them must come back within 10 s."""

    def attack(frames):
        with http2.link(target.address) as link:
            blasting(link, http2.PREFACE + http2.frame(http2.SETTINGS, 0, 0) + frames)
            blasting(link, http2.frame(http2.PING, 0, 0, b"the end!"))
            reader = reading(link)
            assert reader.until(lambda: bool(reader.of(http2.PING)))

    return attack


def test_window_updates_hold_nobody_up(flood, echoed, http2):
    """They are how a client reads, so there is no limit on them."""
    frame = http2.frame(http2.WINDOW_UPDATE, 0, 0, struct.pack(">I", 1))
    flood(lambda: echoed(FRAMES * frame))


def test_frames_of_no_known_type_hold_nobody_up(flood, echoed, http2):
    """RFC 9113, 5.5: they are ignored."""
    flood(lambda: echoed(FRAMES * http2.frame(0xBE, 0, 0, b"what is this")))


def test_padding_without_data_holds_nobody_up(flood, echoed, http2, blocks, infer):
    opened = http2.frame(http2.HEADERS, http2.END_HEADERS, 1, blocks(infer)[0])
    flood(lambda: echoed(opened + FRAMES * http2.frame(http2.DATA, http2.PADDED, 1, b"\x00")))


def test_a_body_of_one_byte_frames_holds_nobody_up(flood, echoed, http2, blocks, infer):
    opened = http2.frame(http2.HEADERS, http2.END_HEADERS, 1, blocks(infer)[0])
    prefix = http2.frame(http2.DATA, 0, 1, struct.pack(">BI", 0, 1 << 20))
    flood(lambda: echoed(opened + prefix + FRAMES * http2.frame(http2.DATA, 0, 1, b"x")))


def test_resets_that_the_server_is_made_to_send_hold_nobody_up(
    flood, target, http2, blocks, body_of, infer, reading, blasting
):
    """A call, then a WINDOW_UPDATE of nothing, which is an error of the stream: the client itself resets nothing."""
    first, others = blocks(infer)
    message = http2.framed(body_of([[1.0, 2.0]]))
    parts = []
    for number in range(1, FRAMES, 2):
        parts.append(http2.frame(http2.HEADERS, http2.END_HEADERS, number, first if number == 1 else others))
        parts.append(http2.frame(http2.DATA, http2.END_STREAM, number, message))
        parts.append(http2.frame(http2.WINDOW_UPDATE, 0, number, bytes(4)))
    sent = b"".join(parts)

    def attack():
        with http2.link(target.address) as link:
            blasting(link, http2.PREFACE + http2.frame(http2.SETTINGS, 0, 0) + sent)
            assert reading(link).goaway() in (http2.ENHANCE_YOUR_CALM, http2.PROTOCOL_ERROR)

    flood(attack)


@pytest.mark.parametrize("message", [b"", b"x"], ids=["empty", "tiny"])
def test_small_messages_that_nobody_reads_fill_no_memory(message, starting, http2, noting):
    """In a stream that is not read, Health/Watch: what is kept of a message counts, however small it is."""
    target, most = starting(), 48 << 20  # what a window of them comes to
    with http2.connect(target.address) as peer:
        stream = peer.begin("/grpc.health.v1.Health/Watch")
        peer.body(stream, http2.framed(b""), end=False)
        peer.until(lambda: peer.streams[stream].messages)
        before, sent, piece = target.memory(), 0, 2500 * http2.framed(message)
        while sent < 500_000 and not peer.streams[stream].done:
            if min(peer.window, peer.streams[stream].window) < len(piece):
                peer.settle(0.3)
            if min(peer.window, peer.streams[stream].window) < len(piece):
                break
            peer.body(stream, piece, end=False)
            sent += 2500
        peer.settle(0.2)
        grown = target.memory() - before
        noting(f"{sent} messages taken, memory {grown / 2**20:+.1f} MiB")
        assert grown < most
    target.serves()
