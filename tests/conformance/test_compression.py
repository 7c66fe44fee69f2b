"""Compressed messages: answers right, unknown encodings named, and a bomb that fills no memory."""

from __future__ import annotations

import gzip
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest

from penstock.proto import inference_pb2 as pb

MIB = 1 << 20
ALGORITHMS = {"gzip": grpc.Compression.Gzip, "deflate": grpc.Compression.Deflate}
RESOURCE_EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_a_compressed_call_gets_the_right_answer(server, channel, infer, body_of, values_of, algorithm):
    call = channel(server.grpc, compression=ALGORITHMS[algorithm]).unary_unary(infer)
    for rows in (1, 1000):
        x = np.arange(rows * 2, dtype=np.float32).reshape(rows, 2)
        np.testing.assert_array_equal(values_of(call(body_of("double", x), timeout=20)), x * 2)


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_a_compressed_call_about_the_server_is_answered(server, channel, algorithm):
    stub = channel(server.grpc, compression=ALGORITHMS[algorithm])
    path = "/inference.GRPCInferenceService/ModelMetadata"
    asked = pb.ModelMetadataRequest(name="logistic").SerializeToString()
    answer = stub.unary_unary(path)(asked, timeout=20)
    assert pb.ModelMetadataResponse.FromString(answer).name == "logistic"


def test_compressed_and_plain_messages_share_a_connection(peer, http2, infer, body_of, values_of):
    body = body_of("double", [[1.0, 2.0]])
    ways = [("gzip", gzip.compress(body)), ("deflate", zlib.compress(body)), ("identity", None), (None, None)] * 5
    for encoding, packed in ways:
        stream = peer.begin(infer, *([("grpc-encoding", encoding)] if encoding else []))
        peer.body(stream, http2.framed(body) if packed is None else http2.framed(packed, 1))
        answer = peer.answer(stream)
        assert (encoding, answer.code) == (encoding, 0)
        assert values_of(answer.messages[0]).tolist() == [[2, 4]]


def test_a_plain_message_of_a_caller_who_could_compress_is_read_as_it_is(peer, infer, body_of, values_of):
    answer = peer.call(infer, body_of("double", [[1.0, 2.0]]), ("grpc-encoding", "gzip"))
    assert values_of(answer.messages[0]).tolist() == [[2, 4]]


def test_a_message_said_to_be_compressed_without_an_encoding_is_refused(peer, http2, live):
    stream = peer.begin(live)
    peer.body(stream, http2.framed(gzip.compress(b""), 1))
    assert peer.answer(stream).code == grpc.StatusCode.INTERNAL.value[0]
    assert peer.call(live, b"").code == 0


def test_what_is_not_what_its_encoding_says_is_refused(peer, http2, live):
    for encoding in ("gzip", "deflate"):
        stream = peer.begin(live, ("grpc-encoding", encoding))
        peer.body(stream, http2.framed(b"this is no such thing", 1))
        assert peer.answer(stream).code == grpc.StatusCode.INTERNAL.value[0]
    assert peer.call(live, b"").code == 0


def test_an_unknown_encoding_is_refused_and_named(peer, http2, live):
    stream = peer.begin(live, ("grpc-encoding", "zstd-9"))
    peer.body(stream, http2.framed(b"whatever", 1))
    answer = peer.answer(stream)
    assert answer.code
    assert "grpc-encoding" in answer.message
    assert peer.call(live, b"").code == 0


def peak(process):
    """The most memory a process ever had, in bytes."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


@pytest.mark.parametrize("method", ["infer", "live"])
def test_a_bomb_is_refused_and_fills_no_memory(process, http2, request, live, method):
    """64 KiB that would be 64 MiB, 32 times at once, where 1 MiB is allowed."""
    bomb = gzip.compress(bytes(64 * MIB), 9)
    assert len(bomb) < 80_000
    server, path = process(max_message_bytes=MIB), request.getfixturevalue(method)

    def well(_):
        with http2.connect(server.grpc) as peer:
            assert peer.call(live, b"").code == 0

    def send(_):
        with http2.connect(server.grpc) as peer:
            stream = peer.begin(path, ("grpc-encoding", "gzip"))
            peer.body(stream, http2.framed(bomb, 1))
            return peer.answer(stream).code

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(well, range(8)))
        before = peak(server.process)
        codes = set(threads.map(send, range(32)))
    assert codes == {RESOURCE_EXHAUSTED}
    assert peak(server.process) - before < 40 * MIB
