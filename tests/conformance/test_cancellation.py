"""Calls that are given up: never run if they still waited, and nothing of them stays."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import grpc
import pytest

MIB = 1 << 20


def test_a_call_cancelled_while_queued_never_runs(gate, serving, calling):
    caller = calling(serving())
    gate.shut()
    first = caller.send("double", [[0.0, 0.0]])
    gate.entered()
    given_up = caller.send("double", [[1.0, 1.0]] * 2)
    gate.queued(2)
    given_up.cancel()
    kept = caller.send("double", [[2.0, 2.0]] * 3)
    gate.queued(5)
    caller.client.ready()  # one connection keeps its order: the server has read the cancellation
    gate.open()
    assert caller.answer(first).tolist() == [[0, 0]]
    assert caller.answer(kept).tolist() == [[4, 4]] * 3
    assert given_up.cancelled()
    assert gate.rows == [1, 3]


def test_a_call_reset_while_queued_never_runs(gate, serving, http2, infer, body_of):
    with http2.connect(serving().grpc) as peer:
        gate.shut()
        first = peer.start_call(infer, body_of("double", [[0.0, 0.0]]))
        gate.entered()
        given_up = peer.start_call(infer, body_of("double", [[1.0, 1.0]] * 2))
        gate.queued(2)
        peer.rst(given_up)
        kept = peer.start_call(infer, body_of("double", [[2.0, 2.0]] * 3))
        gate.queued(5)
        gate.open()
        assert [peer.answer(stream).code for stream in (first, kept)] == [0, 0]
        assert not peer.streams[given_up].blocks
    assert gate.rows == [1, 3]


def test_a_call_cancelled_while_it_runs_leaves_the_others_their_answers(gate, serving, calling):
    caller = calling(serving())
    gate.shut()
    given_up = caller.send("double", [[1.0, 1.0]])
    gate.entered()
    given_up.cancel()
    kept = [caller.send("double", [[float(i), 0.0]]) for i in range(20)]
    gate.open()
    assert [caller.answer(call)[0, 0] for call in kept] == [2 * i for i in range(20)]


def test_a_connection_lost_with_calls_queued_leaves_nothing_to_run(
    gate, serving, calling, http2, infer, body_of, eventually
):
    addresses = serving()
    caller = calling(addresses)
    gate.shut()
    first = caller.send("double", [[0.0, 0.0]])
    gate.entered()
    with http2.connect(addresses.grpc) as peer:
        for _ in range(10):
            peer.start_call(infer, body_of("double", [[1.0, 1.0]] * 2))
        gate.queued(20)
    assert eventually(caller.client.ready)
    kept = caller.send("double", [[2.0, 2.0]] * 3)
    gate.queued(23)
    gate.open()
    assert caller.answer(first).tolist() == [[0, 0]]
    assert caller.answer(kept).tolist() == [[4, 4]] * 3
    assert gate.rows[0] == 1
    assert sum(gate.rows) == 4


def resident(process):
    return int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def give_up(address, infer, body, calls):
    """Begin calls and cancel them at once, many at a time over 8 connections."""
    channels = [grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) for _ in range(8)]
    await asyncio.gather(*(one.unary_unary("/inference.GRPCInferenceService/ServerLive")(b"") for one in channels))

    async def some(channel, count):
        call = channel.unary_unary(infer)
        for _ in range(count // 25):
            running = [call(body, timeout=20) for _ in range(25)]
            await asyncio.sleep(0)
            for one in running:
                one.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    await asyncio.gather(*(some(channel, calls // len(channels)) for channel in channels))
    await asyncio.gather(*(channel.close() for channel in channels))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("calls", [2_000, pytest.param(50_000, marks=pytest.mark.slow)])
async def test_cancelled_calls_leave_no_memory_no_stream_and_no_row(process, infer, body_of, eventually, calls):
    server = process(max_streams=64, metrics=True)
    body = body_of("double", [[1.0, 2.0]] * 100)
    await give_up(server.grpc, infer, body, max(2_000, calls * 2 // 5))  # allocators fill up first
    before = resident(server.process)
    await give_up(server.grpc, infer, body, calls)
    assert resident(server.process) - before < 12 * MIB
    eventually(lambda: scraped(server, 'penstock_queue_rows{model="double"') == 0)
    async with grpc.aio.insecure_channel(server.grpc) as channel:
        call = channel.unary_unary(infer)
        for _ in range(4):  # half of what may be open at once
            assert all(await asyncio.gather(*(call(body, timeout=20) for _ in range(32))))
    server.stop(within_s=8)  # no call is open that a drain would wait for


def test_2000_resets_on_one_connection_leave_every_stream_free(serving, http2, infer, body_of, eventually):
    """A stream that stays would be missing among the 64."""
    body = http2.framed(body_of("double", [[1.0, 2.0]]))
    with http2.connect(serving(max_streams=64).grpc) as peer:
        peer.started()
        assert peer.settings[http2.MAX_CONCURRENT_STREAMS] == 64
        for turn in range(2_000):
            stream = peer.begin(infer)
            peer.body(stream, body, end=turn % 2 == 0)
            peer.rst(stream)
            if turn % 32 == 31:
                peer.echo()

        def all_at_once():
            streams = [peer.begin(infer) for _ in range(64)]
            for stream in streams:
                peer.body(stream, body)
            return [peer.answer(stream).code for stream in streams] == [0] * 64

        assert eventually(all_at_once)


def scraped(server, start):
    from urllib.request import urlopen

    with urlopen(f"http://{server.metrics}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return next(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(start))
