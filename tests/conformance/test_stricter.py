"""What the native transport promises beyond gRPC's own C core, which does otherwise (1.85) as each test says.

The one file of the suite that runs over one transport only.
"""

from __future__ import annotations

import grpc
import pytest

INTERNAL = grpc.StatusCode.INTERNAL.value[0]
UNIMPLEMENTED = grpc.StatusCode.UNIMPLEMENTED.value[0]


@pytest.fixture(autouse=True)
def _native_only(transport):
    if transport == "grpcio":
        pytest.skip("gRPC's C core, not ours to change, does otherwise")


@pytest.fixture(params=["infer", "live"])
def method(request):
    """A call of the fast lane and one of the slow."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def message(body_of, http2, method, infer):
    """A whole, good gRPC message for `method`."""
    return http2.framed(body_of("double", [[1.0, 2.0]]) if method == infer else b"")


@pytest.mark.parametrize("pad", [0, 1, 255])
def test_padding_is_no_part_of_the_message(peer, method, message, pad):
    """C core: INTERNAL, unsupported data flags; padded headers it takes for others."""
    stream = peer.headers(peer.pairs(method), pad=pad)
    peer.data(stream, message, end=True, pad=pad)
    assert peer.answer(stream).code == 0


def test_a_call_that_ends_without_a_message_is_refused(peer, method):
    """C core: no answer until the deadline."""
    streams = [peer.begin(method, end=True), peer.begin(method)]
    peer.data(streams[1], b"", end=True)
    assert [peer.answer(stream).code for stream in streams] == [INTERNAL, INTERNAL]


@pytest.mark.parametrize("kept", [1, 4, 5, 6, -1])
def test_a_call_that_ends_within_its_message_is_refused(peer, infer, http2, body_of, kept):
    """C core: no answer until the deadline."""
    stream = peer.begin(infer)
    peer.data(stream, http2.framed(body_of("double", [[1.0, 2.0]]))[:kept], end=True)
    assert peer.answer(stream).code == INTERNAL


@pytest.mark.parametrize("flag", [2, 0x80, 0xFF])
def test_a_flag_byte_that_says_neither_is_refused(peer, method, message, flag):
    """C core: looks at the lowest bit only, and then reads another message than was sent."""
    stream = peer.begin(method)
    peer.data(stream, bytes([flag]) + message[1:], end=True)
    assert peer.answer(stream).code == INTERNAL


@pytest.mark.parametrize("kind", ["application/json", "application/grpcx", "application/grpc-web", "", None])
def test_another_content_type_is_an_http_error(peer, method, kind):
    """C core: answers it like any other."""
    answer = peer.answer(peer.begin(method, content_type=kind, end=True))
    assert answer.headers[":status"] == "415"


@pytest.mark.parametrize("verb", ["GET", "PUT", "OPTIONS"])
def test_another_method_than_post_is_an_http_error(peer, method, verb):
    """C core: RST_STREAM."""
    answer = peer.answer(peer.begin(method, method=verb, end=True))
    assert answer.headers[":status"] == "405"


def test_an_unknown_encoding_is_unimplemented_and_the_known_ones_are_told(peer, http2, method):
    """C core: INTERNAL."""
    stream = peer.begin(method, ("grpc-encoding", "zstd-9"))
    peer.data(stream, http2.framed(b"whatever", 1), end=True)
    answer = peer.answer(stream)
    assert answer.code == UNIMPLEMENTED
    assert "gzip" in answer.trailers["grpc-accept-encoding"]


def test_header_names_in_upper_case_are_a_protocol_error(peer, http2, method, live):
    """C core: takes them. RFC 9113, 8.2.1."""
    stream = peer.headers([("TE" if name == "te" else name, value) for name, value in peer.pairs(method)], end=True)
    peer.until(lambda: peer.streams[stream].reset == http2.PROTOCOL_ERROR or bool(peer.goaways))
    assert not peer.streams[stream].blocks


@pytest.mark.parametrize(
    "pairs",
    [
        [(":method", "POST"), (":scheme", "http"), ("te", "trailers")],
        [(":method", "POST"), (":scheme", "http"), (":path", "/a/b"), (":path", "/a/b")],
        [(":method", "POST"), ("te", "trailers"), (":scheme", "http"), (":path", "/a/b")],
        [(":method", "POST"), (":scheme", "http"), (":path", "/a/b"), (":status", "200")],
        [(":method", "POST"), (":scheme", "http"), (":path", "/a/b"), ("connection", "close")],
        [(":method", "POST"), (":scheme", "http"), (":path", "/a/b"), ("x", "a\r\nb")],
    ],
    ids=["no path", "two paths", "late pseudo-header", "status", "connection", "line break"],
)
def test_malformed_headers_are_a_protocol_error(peer, http2, pairs):
    stream = peer.headers(pairs, end=True)
    peer.until(lambda: peer.streams[stream].reset is not None or bool(peer.goaways))
    assert peer.streams[stream].reset in (http2.PROTOCOL_ERROR, None)
    assert not any("grpc-status" in dict(block) for block in peer.streams[stream].blocks)
