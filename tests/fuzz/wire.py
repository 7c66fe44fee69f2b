"""Fuzzing the codec: any bytes as a ModelInferRequest, read without a plan, against several plans and through a lane.

What must hold for every input, beside no report of a sanitizer:

- it is accepted where protobuf accepts it, `wire.STRICTER` apart, and read alike (tests/kernels/test_wire_fuzz.py);
- `decode`, `peek` and a lane agree on what is taken, and `encode` and the lane write the same answer, which protobuf
  reads;
- what a refusal holds at once stays under a fixed bound, what is taken under a multiple of the request's size;
- for one input in sixteen, chosen by its own bytes: the twin in Python decodes and answers alike.

Start it by `scripts/fuzz wire`.
"""

from __future__ import annotations

import contextlib
import random
import zlib

import driver
import numpy as np
import test_wire_fuzz as mutants

from penstock.kernels import calls, lanes, wire
from penstock.proto import inference_pb2 as pb

ROWS = 1024  # a request of more rows is decoded, not answered
SLACK = 1 << 20
NOW = 1 << 40

PLANS = [kernel for kernel, _ in mutants.PLANS]
PLANS += [
    wire.Plan("m", "2", [("t", "BYTES", (-1,), "tensor", False)], mutants.OUTPUTS),
    wire.Plan("m", "3", [("x", "FP16", (2, 2), "tensor", False)], mutants.OUTPUTS, batched=False),
    wire.Plan(
        "m",
        "4",
        [
            ("d", "FP64", (), "tensor", False),
            ("u", "UINT64", (-1, 2), "tensor", False),
            ("flag", "BOOL", (1,), "tensor", False),
        ],
        mutants.OUTPUTS,
        parameters={"stage": "champion"},
    ),
    wire.Plan("m", "5", [("id", "INT64", (), "entity", False), ("m", "FP32", (2,), "matrix", True)], [], ("a", "b")),
]
VALUES = {"y": np.arange(2 * ROWS, dtype="f4").reshape(ROWS, 2), "why": np.arange(ROWS)}
LANES = [lanes.Lane(plan) for plan in PLANS]
SINK = calls.EventSink()


def more_seeds() -> list[bytes]:
    """Requests that fit the plans which stand only here."""
    texts = pb.ModelInferRequest(
        model_name="m", id="7", raw_input_contents=[b"\x01\0\0\0a\0\0\0\0\x02\0\0\0bc" + bytes(4)]
    )
    texts.inputs.add(name="t", datatype="BYTES", shape=[2, 2])
    alone = pb.ModelInferRequest(raw_input_contents=[bytes(range(8))])
    alone.inputs.add(name="x", datatype="FP16", shape=[2, 2])
    many = pb.ModelInferRequest(model_name="m", model_version="4")
    many.parameters["timeout"].int64_param = 5000
    many.inputs.add(name="d", datatype="FP64", shape=[2]).contents.fp64_contents.extend([1, float("nan")])
    many.inputs.add(name="u", datatype="UINT64", shape=[2, 1, 2]).contents.uint64_contents.extend([2**64 - 1, 0, 1, 2])
    many.inputs.add(name="flag", datatype="BOOL", shape=[2, 1]).contents.bool_contents.extend([True, False])
    many.outputs.add(name="y")
    ids = pb.ModelInferRequest(model_name="m")
    ids.inputs.add(name="id", datatype="INT64", shape=[2, 1]).contents.int64_contents.extend([5, -5])
    ids.inputs.add(name="b", datatype="UINT16", shape=[2]).contents.uint_contents.extend([7, 65535])
    ids.inputs.add(name="m", datatype="FP32", shape=[2, 2]).contents.fp32_contents.extend([1, 2, 3, 4])
    return [message.SerializeToString(deterministic=True) for message in (texts, alone, many, ids)]


SEEDS = mutants.seeds() + mutants.fitting() + more_seeds()


def mutate(chance: random.Random, body: bytes) -> bytes:
    """Another request: changed by the mutations of the seeded campaign, which know varints, tags and lengths."""
    return mutants.mutant(chance, [body, body, chance.choice(SEEDS)]) if body else chance.choice(SEEDS)


class Future:
    """What a lane resolves."""

    result: object = None

    def done(self) -> bool:
        return False

    def set_result(self, result: object) -> None:
        self.result = result

    set_exception = set_result


def through_lane(lane: lanes.Lane, body: bytes) -> bytes | str:
    """The answer that comes out of a lane, or the line of the refusal."""
    future = Future()
    try:
        lane.submit(body, SINK, future, now_ns=NOW)
    except calls.Refused as refusal:
        return str(refusal.message)
    batch = lane.take(block=False, now_ns=NOW)  # at the same time: no timeout has passed
    assert batch is not None
    if batch.rows <= ROWS:
        batch.complete({name: values[: batch.rows] for name, values in VALUES.items()})
    else:
        batch.fail(calls.INTERNAL, "larger than this target answers")
    SINK.drain()
    return future.result


def alone(plan: wire.Plan, body: bytes) -> tuple[bytes | None, str]:
    """What the codec answers to one request, and the words of a refusal."""
    try:
        _, _, rows = wire.decode(plan, body)
        if rows > ROWS:
            return None, ""
        return wire.encode(plan, body, {name: values[:rows] for name, values in VALUES.items()}), ""
    except wire.WireError as error:
        return None, str(error)


def held_against(plan: wire.Plan, lane: lanes.Lane, body: bytes) -> None:
    """One plan: the codec alone and the lane do the same."""
    found: list[tuple[bytes | None, str]] = []
    used = driver.most_memory(lambda: found.append(alone(plan, body)))
    (answer, refusal) = found[0]
    assert used <= SLACK + 64 * len(body), f"{used} bytes held for a request of {len(body)}"
    by_lane = through_lane(lane, body)
    if answer is not None:
        told = pb.ModelInferResponse.FromString(answer)
        if b"timing" in body:  # asked for, the lane tells its times; the codec alone has none to tell
            assert isinstance(by_lane, bytes), by_lane
            by_lane_told = pb.ModelInferResponse.FromString(by_lane)
            assert by_lane_told.raw_output_contents == told.raw_output_contents, (by_lane, answer)
        else:
            assert by_lane == answer, (by_lane, answer)
    elif refusal:
        assert isinstance(by_lane, str), f"the lane takes what decode refuses: {refusal}"


def target(body: bytes) -> None:
    with driver.fenced(body):
        mutants.check(body, with_twin=zlib.crc32(body) % 16 == 0)
        with contextlib.suppress(wire.WireError):
            wire.peek(body)
        for plan, lane in zip(PLANS, LANES, strict=True):
            held_against(plan, lane, body)
    if zlib.crc32(body) % 16 == 0 and b"\x80\x80\x80" not in body:  # rows by the million are slow in the twin
        for kernel, twin in mutants.PLANS:
            assert mutants.outcome(wire, kernel, body) == mutants.outcome(mutants.reference, twin, body)


def unserved() -> list[bytes]:
    """The seeds that fit no plan here, those of the plain campaign apart: there should be none."""
    fits = mutants.fitting() + more_seeds()
    return [body for body in fits if not any(alone(plan, body)[0] for plan in PLANS)]


if __name__ == "__main__":
    assert not unserved()
    driver.fuzz(target, mutate=mutate, seeds=SEEDS)
