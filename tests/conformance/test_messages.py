"""Large messages both ways, and the limit: exactly so many bytes, and told before they are buffered."""

from __future__ import annotations

import struct

import grpc
import numpy as np
import pytest

from penstock.proto import inference_pb2 as pb

MIB = 1 << 20
RESOURCE_EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]


def test_32_mib_go_both_ways(server, channel, infer, body_of, values_of):
    x = np.random.default_rng(1).random((1024, 8192), np.float32)
    answer = channel(server.grpc).unary_unary(infer)(body_of("echo", x), timeout=60)
    np.testing.assert_array_equal(values_of(answer), x)


async def test_large_and_small_calls_share_a_connection(server, infer, body_of, values_of):
    import asyncio

    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    sizes = [1, 1_000_000, 10, 2_000_000, 1_000, 1_000_000] * 2
    async with grpc.aio.insecure_channel(server.grpc, options=options) as channel:
        call = channel.unary_unary(infer)
        sent = [np.full((1, size), size, np.float32) for size in sizes]
        answers = await asyncio.gather(*(call(body_of("echo", x), timeout=60) for x in sent))
    for x, answer in zip(sent, answers, strict=True):
        np.testing.assert_array_equal(values_of(answer), x)


@pytest.fixture
def exactly(body_of):
    """A good ModelInfer body of exactly so many bytes whose answer is small."""

    def make(size):
        x = np.zeros((size // 256 - 8, 64), np.float32)
        request = pb.ModelInferRequest.FromString(body_of("copy", x))
        request.outputs.add(name="score")
        while (missing := size - request.ByteSize()) > 0:
            request.id += "i" * max(1, missing - 4)
        body = request.SerializeToString()
        assert len(body) == size
        return body

    return make


def test_a_message_of_exactly_the_limit_passes_and_one_byte_more_is_refused(serving, channel, infer, exactly, refused):
    call = channel(serving(max_message_bytes=MIB).grpc).unary_unary(infer)
    assert len(pb.ModelInferResponse.FromString(call(exactly(MIB), timeout=20)).raw_output_contents) == 1
    code, details = refused(lambda: call(exactly(MIB + 1), timeout=20))
    assert code == "RESOURCE_EXHAUSTED"
    assert str(MIB) in details
    assert call(exactly(MIB), timeout=20)


def test_a_slow_lane_message_over_the_limit_is_refused_alike(serving, channel, live, refused):
    call = channel(serving(max_message_bytes=MIB).grpc).unary_unary(live)
    assert refused(lambda: call(bytes(MIB + 1), timeout=20))[0] == "RESOURCE_EXHAUSTED"
    assert call(b"", timeout=20)


@pytest.mark.parametrize("method", ["infer", "live"])
@pytest.mark.parametrize("size", [(64 << 20) + 1, (1 << 31) - 1, (1 << 32) - 1])
def test_a_length_over_the_limit_is_refused_before_any_of_it_is_sent(peer, request, method, size):
    stream = peer.begin(request.getfixturevalue(method))
    peer.data(stream, struct.pack(">BI", 0, size))
    assert peer.answer(stream).code == RESOURCE_EXHAUSTED
    assert str(64 << 20) in peer.streams[stream].message
    assert peer.call(request.getfixturevalue("live"), b"").code == 0


def test_an_answer_over_the_limit_is_refused_and_says_so(serving, channel, infer, body_of, refused):
    call = channel(serving(max_message_bytes=MIB).grpc).unary_unary(infer)
    x = np.zeros((MIB // 256 - 1, 64), np.float32)
    code, details = refused(lambda: call(body_of("copy", x), timeout=20))
    assert code == "RESOURCE_EXHAUSTED"
    assert "answer" in details
    assert call(body_of("copy", x[:10]), timeout=20)
