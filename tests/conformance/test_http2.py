"""gRPC over HTTP/2 byte by byte, as clients of other makes put it on the wire."""

from __future__ import annotations

import contextlib
import socket
import struct
import time

import grpc
import numpy as np
import pytest

INTERNAL = grpc.StatusCode.INTERNAL.value[0]


@pytest.fixture
def doubled(values_of):
    """Whether an answer is that of [[1, 2]] doubled."""

    def check(answer):
        assert (answer.code, answer.headers[":status"]) == (0, "200")
        assert answer.headers["content-type"].startswith("application/grpc")
        assert [values_of(message).tolist() for message in answer.messages] == [[[2, 4]]]

    return check


@pytest.fixture
def good(http2, body_of):
    """A whole gRPC message that doubles [[1, 2]]."""
    return http2.framed(body_of("double", [[1.0, 2.0]]))


@pytest.mark.parametrize("chunk", [1, 2, 4, 5, 6, 30])
def test_a_message_may_come_in_pieces(peer, infer, good, doubled, chunk):
    stream = peer.begin(infer)
    peer.body(stream, good, chunk=chunk)
    doubled(peer.answer(stream))


def test_the_connection_may_come_a_byte_at_a_time(server, http2, infer, good, doubled):
    with http2.connect(server.grpc, start=False) as peer:
        stream = peer.new_stream()
        headers = http2.frame(http2.HEADERS, http2.END_HEADERS, stream, http2.block(peer.pairs(infer)))
        data = http2.frame(http2.DATA, http2.END_STREAM, stream, good)
        for byte in http2.PREFACE + http2.frame(http2.SETTINGS, 0, 0) + headers + data:
            peer.send(bytes([byte]))
        doubled(peer.answer(stream))


def test_everything_may_come_at_once(server, http2, infer, good, doubled):
    """Preface, SETTINGS and 50 calls in one write, before a byte of the server's was read."""
    with http2.connect(server.grpc, start=False) as peer:
        calls, streams = b"", [peer.new_stream() for _ in range(50)]
        for stream in streams:
            calls += http2.frame(http2.HEADERS, http2.END_HEADERS, stream, http2.block(peer.pairs(infer)))
            calls += http2.frame(http2.DATA, http2.END_STREAM, stream, good)
        peer.send(http2.PREFACE + http2.frame(http2.SETTINGS, 0, 0) + calls)
        for stream in streams:
            doubled(peer.answer(stream))


def test_calls_interleaved_frame_by_frame_each_get_their_own_answer(peer, http2, infer, body_of, values_of):
    bodies = [http2.framed(body_of("double", [[float(i), 1.0]])) for i in range(20)]
    streams = [peer.begin(infer) for _ in bodies]
    for at in range(0, len(bodies[0]), 7):
        for stream, body in zip(streams, bodies, strict=True):
            peer.data(stream, body[at : at + 7], end=at + 7 >= len(body))
    for i, stream in enumerate(streams):
        assert values_of(peer.answer(stream).messages[0]).tolist() == [[2 * i, 2]]


def test_the_end_may_come_in_an_empty_frame_of_its_own(peer, infer, good, doubled):
    stream = peer.begin(infer)
    peer.data(stream, good)
    peer.data(stream, b"", end=True)
    doubled(peer.answer(stream))


@pytest.mark.parametrize("more", [b"x", b"\0\0\0\0", b"\0\0\0\0\0", b"\0\0\0\0\x01x"])
def test_what_follows_the_message_of_a_unary_call_is_not_looked_at(peer, infer, good, doubled, more):
    """As in gRPC's C core: bytes, and whole messages, beyond the first."""
    stream = peer.begin(infer)
    peer.data(stream, good + more, end=True)
    doubled(peer.answer(stream))


def test_the_end_may_come_as_trailers(peer, infer, good, doubled):
    stream = peer.begin(infer)
    peer.data(stream, good)
    peer.headers([("x-checksum", "7")], stream=stream, end=True)
    doubled(peer.answer(stream))


def test_headers_may_go_on_in_continuation_frames(peer, http2, infer, good, doubled):
    data = http2.block(peer.pairs(infer, ("x-user", "v" * 300)))
    stream = peer.header_block(data[:40], whole=False)
    for at in range(40, len(data), 100):
        peer.continuation(stream, data[at : at + 100], end=at + 100 >= len(data))
    peer.data(stream, good, end=True)
    doubled(peer.answer(stream))


def test_priorities_are_ignored(peer, http2, infer, good, doubled):
    peer.priority(3, depends_on=5)
    payload = struct.pack(">IB", 0, 200) + http2.block(peer.pairs(infer))
    stream = peer.new_stream()
    flags = http2.END_HEADERS | http2.WITH_PRIORITY
    peer.send_frame(http2.HEADERS, flags, stream, payload)
    peer.priority(stream, depends_on=0, weight=1)
    peer.data(stream, good, end=True)
    doubled(peer.answer(stream))


def test_frames_of_unknown_types_are_ignored(peer, infer, good, doubled):
    peer.send_frame(0xBE, 0xFF, 0, b"whatever")
    stream = peer.begin(infer)
    peer.send_frame(0xEF, 0, stream, b"")
    peer.data(stream, good, end=True)
    doubled(peer.answer(stream))


def test_unknown_settings_are_ignored_and_all_are_acknowledged(peer, http2, infer, body_of, doubled):
    before = peer.acknowledged
    peer.send_settings({0xF0F0: 7, http2.MAX_FRAME_SIZE: 32768})
    peer.send_settings({})
    peer.until(lambda: peer.acknowledged == before + 2)
    doubled(peer.call(infer, body_of("double", [[1.0, 2.0]])))


def test_a_ping_comes_back_with_its_payload(peer):
    for payload in (b"\0" * 8, b"\xff" * 8, b"penstock"):
        peer.ping(payload)
        peer.until(lambda payload=payload: peer.pongs[-1:] == [payload])


def test_reserved_bits_are_ignored(peer, http2, infer, good, doubled):
    stream = peer.new_stream()
    high = 1 << 31
    peer.send_frame(http2.HEADERS, http2.END_HEADERS, stream | high, http2.block(peer.pairs(infer)))
    peer.send_frame(http2.DATA, http2.END_STREAM, stream | high, good)
    doubled(peer.answer(stream))


@pytest.mark.parametrize("kind", ["application/grpc", "application/grpc+proto", "application/grpc;charset=utf-8"])
def test_every_content_type_of_grpc_is_accepted(peer, infer, body_of, doubled, kind):
    doubled(peer.call(infer, body_of("double", [[1.0, 2.0]]), content_type=kind))


def test_unknown_headers_and_an_authority_of_any_kind_are_accepted(peer, infer, body_of, doubled):
    more = [
        ("user-agent", "grpc-go/1.70.0"),
        ("accept-encoding", "identity"),
        ("grpc-accept-encoding", "gzip"),
        ("x", ""),
    ]
    doubled(peer.call(infer, body_of("double", [[1.0, 2.0]]), *more, authority="models.internal:443"))


def test_answers_announce_their_encodings(peer, infer, body_of):
    answer = peer.call(infer, body_of("double", [[1.0, 2.0]]))
    assert {"identity", "gzip"} <= {name.strip() for name in answer.headers["grpc-accept-encoding"].split(",")}


def test_an_error_is_one_block_of_headers_that_ends_the_stream(peer, infer, live, body_of):
    """Trailers-Only: status 200, content-type and grpc-status together, and nothing else."""
    wrong = [(infer, body_of("nobody", [[1.0]])), (infer, b"\xff"), (live + "Not", b"")]
    for path, body in wrong:
        answer = peer.call(path, body)
        assert (len(answer.blocks), bytes(answer.data), answer.reset) == (1, b"", None)
        assert answer.headers[":status"] == "200"
        assert answer.headers["content-type"] == "application/grpc"
        assert answer.code not in (None, 0)


def test_an_answer_waits_for_the_window_it_needs(server, http2, infer, body_of, values_of):
    """A window of one byte, then of 1,000, then open: never a byte more than was allowed."""
    with http2.connect(server.grpc, settings={http2.INITIAL_WINDOW_SIZE: 1}, open_windows=False) as peer:
        x = np.random.default_rng(0).random((100, 300), np.float32)
        stream = peer.started().start_call(infer, body_of("echo", x))
        here = peer.streams[stream]
        peer.until(lambda: len(here.data) == 1).settle(0.1)
        assert (len(here.data), here.done) == (1, False)
        peer.window_update(stream, 1000)
        peer.until(lambda: len(here.data) == 1001).settle(0.1)
        assert (len(here.data), here.done) == (1001, False)
        peer.send_settings({http2.INITIAL_WINDOW_SIZE: 1 << 24})
        peer.until(lambda: len(here.data) == 65535).settle(0.1)
        assert len(here.data) == 65535  # the connection's own window
        peer.window_update(0, 1 << 24)
        np.testing.assert_array_equal(values_of(peer.answer(stream).messages[0]), x)


def test_an_answer_that_waits_for_its_window_holds_up_no_other(server, http2, infer, body_of, values_of):
    with http2.connect(server.grpc, settings={http2.INITIAL_WINDOW_SIZE: 10}, open_windows=False) as peer:
        stuck = peer.started().start_call(infer, body_of("echo", np.zeros((100, 10), np.float32)))
        other = peer.start_call(infer, body_of("double", [[1.0, 2.0]]))
        peer.window_update(other, 1000)
        assert values_of(peer.answer(other).messages[0]).tolist() == [[2, 4]]
        assert not peer.streams[stuck].done
        peer.window_update(stuck, 100_000)
        assert peer.answer(stuck).code == 0


def test_frames_are_no_larger_than_the_caller_allows(server, http2, infer, body_of):
    with http2.connect(server.grpc) as peer:
        answer = peer.started().call(infer, body_of("echo", np.zeros((1000, 1000), np.float32)))
        assert answer.code == 0
        assert max(answer.sizes) <= 16384
    with http2.connect(server.grpc, settings={http2.MAX_FRAME_SIZE: 1 << 20}) as peer:
        answer = peer.started().call(infer, body_of("echo", np.zeros((1000, 1000), np.float32)))
        assert answer.code == 0
        assert max(answer.sizes) <= 1 << 20


def test_a_large_request_is_let_in_by_window_updates(peer, infer, body_of, values_of):
    x = np.random.default_rng(4).random((1, 5_000_000), np.float32)
    np.testing.assert_array_equal(values_of(peer.call(infer, body_of("echo", x)).messages[0]), x)


def test_a_small_header_table_of_the_caller_is_kept_to(server, http2, infer, body_of, doubled):
    """Our decoder would fail on an entry that a table of no bytes cannot hold."""
    with http2.connect(server.grpc, settings={http2.HEADER_TABLE_SIZE: 0}) as peer:
        peer.started()
        for _ in range(3):
            doubled(peer.call(infer, body_of("double", [[1.0, 2.0]])))


def test_a_caller_who_says_goodbye_still_gets_its_answers(peer, infer, good, doubled):
    stream = peer.begin(infer)
    peer.data(stream, good, end=True)
    peer.goaway(0)
    doubled(peer.answer(stream))


def test_a_reset_of_one_call_leaves_the_others(peer, infer, good, doubled):
    given_up, kept = peer.begin(infer), peer.begin(infer)
    peer.data(given_up, good[:10])
    peer.rst(given_up)
    peer.data(kept, good, end=True)
    doubled(peer.answer(kept))


BROKEN = {
    "DATA on stream 0": (0x0, 0x1, 0, b"x"),
    "HEADERS on stream 0": (0x1, 0x5, 0, b""),
    "HEADERS on an even stream": (0x1, 0x5, 2, b"\x82"),
    "a SETTINGS of 5 bytes": (0x4, 0, 0, b"12345"),
    "SETTINGS on a stream": (0x4, 0, 1, b""),
    "a PING of 7 bytes": (0x6, 0, 0, b"1234567"),
    "a WINDOW_UPDATE of 0": (0x8, 0, 0, b"\0\0\0\0"),
    "a WINDOW_UPDATE of 3 bytes": (0x8, 0, 0, b"\0\0\1"),
    "an initial window of 2^31": (0x4, 0, 0, struct.pack(">HI", 4, 1 << 31)),
    "a frame size of 0": (0x4, 0, 0, struct.pack(">HI", 5, 0)),
    "CONTINUATION without HEADERS": (0x9, 0x4, 1, b""),
    "a header block that is none": (0x1, 0x5, 1, b"\xff\xff\xff\xff\xff\xff\xff"),
    "DATA on a stream never opened": (0x0, 0x1, 9, b"x"),
    "RST_STREAM on a stream never opened": (0x3, 0, 9, bytes(4)),
}


@pytest.mark.parametrize("kind", sorted(BROKEN))
def test_a_broken_connection_harms_no_other(server, http2, live, kind):
    """What the offender is told differs; that it has an end soon, and that nobody else notices, does not."""
    with http2.connect(server.grpc) as other, http2.connect(server.grpc) as peer:
        peer.started()
        peer.send_frame(*BROKEN[kind])
        with contextlib.suppress(http2.Closed):
            peer.call(live, b"", within_s=5)
        assert other.started().call(live, b"").code == 0


@pytest.mark.parametrize(
    "greeting", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"\0" * 64]
)
def test_what_is_no_http2_is_closed_at_once(server, greeting):
    """HTTP/1.1, TLS on a plain port, and nonsense."""
    host, port = server.grpc.split(":")
    with socket.create_connection((host, int(port)), 10) as link:
        link.sendall(greeting.ljust(64, b"\0"))
        began = time.monotonic()
        try:
            while link.recv(65536):
                pass
        except ConnectionResetError:
            pass
        assert time.monotonic() - began < 5


def test_callers_who_leave_without_a_word_harm_nobody(server, http2, infer, live, good):
    for _ in range(50):
        with http2.connect(server.grpc) as peer:
            peer.data(peer.begin(infer), good[:-1])
    with http2.connect(server.grpc) as peer:
        assert peer.started().call(live, b"").code == 0
