"""Twenty thousand calls of every fate leave the server as large as it was."""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path

import grpc
import pytest

from penstock.features import Column, FeatureView
from penstock.proto import inference_pb2 as pb

CALLS = 20_000
AT_ONCE = 64
GROWTH = 12 << 20
"""Allocators keep what they got for a while; 600 bytes a call would be over."""


def request(number):
    """Good ones by vector and by entity, and in between some that are refused."""
    made = pb.ModelInferRequest(model_name="double" if number % 97 else "nobody", id=str(number))
    if number % 3:
        made.inputs.add(name="x", datatype="FP32", shape=[1, 2 if number % 31 else 3])
        made.raw_input_contents.append(bytes(8))
    else:
        made.inputs.add(name="id", datatype="BYTES", shape=[1]).contents.bytes_contents.append(str(number).encode())
    return made.SerializeToString()


async def call(infer, number):
    """One call; every seventh is given up after a moment, every eleventh has hardly any time."""
    running = infer(request(number), timeout=0.002 if number % 11 == 0 else 20)
    if number % 7 == 0:
        await asyncio.sleep(random.random() * 0.003)
        running.cancel()
    try:
        await running
    except (grpc.aio.AioRpcError, asyncio.CancelledError):
        return 0
    return 1


async def send(address, numbers):
    """How many of the calls were answered."""
    async with grpc.aio.insecure_channel(address) as channel:
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        left = iter(numbers)

        async def caller():
            return sum([await call(infer, number) for number in left])

        return sum(await asyncio.gather(*(caller() for _ in range(AT_ONCE))))


def resident(pid):
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descriptors(pid):
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


@pytest.mark.timeout(180)
async def test_memory_and_descriptors_stay_where_they_were(registry, graphs, penstock_server, eventually):
    view = FeatureView(name="v", entity="id", columns=[Column(name=name, dtype="float32") for name in ("a", "b")])
    graphs.publish(registry, "double", graphs.double(), columns=("a", "b"), views=[view])
    server = penstock_server(registry.root, "--features", "memory://")
    pid = server.process.pid
    await send(server.grpc, range(CALLS // 4))
    files, before = descriptors(pid), resident(pid)
    answered = await send(server.grpc, range(CALLS))
    assert CALLS * 0.5 < answered < CALLS * 0.95
    eventually(lambda: descriptors(pid) <= files)
    assert resident(pid) - before < GROWTH
