"""Mutated requests: the codec accepts what protobuf accepts, but for `wire.STRICTER`, and reads the same values.

Mutants are made from a few well-formed requests by seeded changes, so that a failure comes again. Each is shown to the
protobuf library, to the kernel, and, in part, to the twin.
"""

from __future__ import annotations

import gc
import os
import random
import resource
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from google.protobuf.message import DecodeError

from penstock.kernels import calls, lanes, wire
from penstock.kernels.reference import wire as reference
from penstock.proto import inference_pb2 as pb

FIELD_NAMES = {
    1: "bool_contents",
    2: "int_contents",
    3: "int64_contents",
    4: "uint_contents",
    5: "uint64_contents",
    6: "fp32_contents",
    7: "fp64_contents",
    8: "bytes_contents",
}
SAMPLE = {
    1: [True, False],
    2: [-1, 7],
    3: [-(2**63), 5],
    4: [2**32 - 1],
    5: [2**64 - 1],
    6: [1.5],
    7: [-2.5],
    8: [b"ab", b""],
}


# ---- Seeds and mutations --------------------------------------------------------------------------------------------


def seeds() -> list[bytes]:
    """Well-formed requests that between them have every field."""
    everything = pb.ModelInferRequest(model_name="fraud", model_version="3", id="call-1")
    everything.parameters["timeout"].int64_param = 5000
    everything.parameters["timing"].bool_param = True
    everything.parameters["note"].string_param = "é"
    everything.parameters["share"].double_param = 0.5
    everything.parameters["priority"].uint64_param = 2**63
    for field, values in SAMPLE.items():
        tensor = everything.inputs.add(name=f"x{field}", datatype="FP32", shape=[1, len(values), -1, 300])
        tensor.parameters["shared_memory_region"].string_param = "r"
        getattr(tensor.contents, FIELD_NAMES[field]).extend(values)
    everything.outputs.add(name="y").parameters["classification"].int64_param = 3
    everything.raw_input_contents.extend([b"", bytes(range(9))])
    raw = pb.ModelInferRequest(model_name="m", raw_input_contents=[bytes(120)])
    raw.inputs.add(name="x", datatype="FP32", shape=[1, 30])
    typed = pb.ModelInferRequest(model_name="m")
    typed.inputs.add(name="x", datatype="BYTES", shape=[2]).contents.bytes_contents.extend([b"ab", b"c"])
    unknown = b"\xc0\x3e\x05" + b"\xca\x3e\x02hi" + b"\xcd\x3e" + bytes(4) + b"\xc9\x3e" + bytes(8)
    bodies = [m.SerializeToString(deterministic=True) for m in (everything, raw, typed)]
    return [*bodies, bodies[2] + unknown, bodies[1] + bodies[2], unpacked(bodies[0])]


def unpacked(body: bytes) -> bytes:
    """The same request with numbers, where there are several, one by one."""
    message = pb.ModelInferRequest.FromString(body)
    contents = b"".join(
        b"\x08\x01" + b"\x10" + b"\xff" * 9 + b"\x01" + b"\x35" + struct.pack("<f", 1) for _ in range(2)
    )
    message.ClearField("inputs")
    tensor = b"\x0a\x01x\x12\x04FP32\x18\x01\x18\x02" + b"\x2a" + bytes([len(contents)]) + contents
    return message.SerializeToString(deterministic=True) + b"\x2a" + bytes([len(tensor)]) + tensor


def flip(chance: random.Random, body: bytearray, _: list[bytes]) -> None:
    body[chance.randrange(len(body))] ^= 1 << chance.randrange(8)


def set_byte(chance: random.Random, body: bytearray, _: list[bytes]) -> None:
    body[chance.randrange(len(body))] = chance.choice([0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)])


def truncate(chance: random.Random, body: bytearray, _: list[bytes]) -> None:
    del body[chance.randrange(len(body)) :]


def delete(chance: random.Random, body: bytearray, _: list[bytes]) -> None:
    at = chance.randrange(len(body))
    del body[at : at + chance.randrange(1, 9)]


def insert(chance: random.Random, body: bytearray, _: list[bytes]) -> None:
    at = chance.randrange(len(body) + 1)
    body[at:at] = chance.randbytes(chance.randrange(1, 9))


def splice(chance: random.Random, body: bytearray, others: list[bytes]) -> None:
    other = chance.choice(others)
    start = chance.randrange(len(other))
    at = chance.randrange(len(body))
    body[at : at + chance.randrange(20)] = other[start : start + chance.randrange(40)]


def change_length(chance: random.Random, body: bytearray, _: list[bytes]) -> None:
    at = chance.randrange(len(body))
    body[at] = (body[at] + chance.choice([-2, -1, 1, 2])) % 256


def lengthen_varint(chance: random.Random, body: bytearray, _: list[bytes]) -> None:
    """Write a byte as a varint of up to eleven: too long a tag, a length or a value."""
    at = chance.randrange(len(body))
    last = chance.choice([0, 0, 0, 1, 0x7F])
    body[at : at + 1] = bytes([body[at] | 0x80]) + b"\x80" * chance.randrange(10) + bytes([last])


def repeat(chance: random.Random, body: bytearray, _: list[bytes]) -> None:
    start = chance.randrange(len(body))
    body[start:start] = body[start : start + chance.randrange(1, 60)]


MUTATIONS = (flip, set_byte, truncate, delete, insert, splice, change_length, lengthen_varint, repeat)


def mutant(chance: random.Random, bodies: list[bytes]) -> bytes:
    """A request with one to three changes."""
    body = bytearray(chance.choice(bodies))
    for _ in range(chance.choice([1, 1, 2, 3])):
        if body:
            chance.choice(MUTATIONS)(chance, body, bodies)
    return bytes(body)


# ---- The referee ----------------------------------------------------------------------------------------------------


def exactly(values: list) -> list:
    """Numbers as text, so that NaN equals NaN and True is not 1."""
    return [v if isinstance(v, bytes) else repr(v) for v in values]


def contents_of(tensor) -> dict | None:
    if not tensor.HasField("contents"):
        return None
    found = {n: exactly(list(getattr(tensor.contents, name))) for n, name in FIELD_NAMES.items()}
    return {n: values for n, values in found.items() if values}


def timeout_of(message) -> int:
    if "timeout" not in message.parameters:
        return 0
    value = message.parameters["timeout"]
    number = value.int64_param or value.uint64_param
    return min(number, 1 << 50) if 0 < number < 1 << 63 else 0


def by_protobuf(message) -> dict:
    """What `wire.parse` must give."""
    return {
        "model_name": message.model_name,
        "model_version": message.model_version,
        "id": message.id,
        "timeout_us": timeout_of(message),
        "timing": "timing" in message.parameters and message.parameters["timing"].bool_param,
        "inputs": [
            {"name": i.name, "datatype": i.datatype, "shape": list(i.shape), "contents": contents_of(i)}
            for i in message.inputs
        ],
        "outputs": [o.name for o in message.outputs],
        "raws": list(message.raw_input_contents),
    }


def by_codec(codec, body: bytes) -> dict | str:
    """What the codec gives, or the fault."""
    try:
        found = codec.parse(body)
    except codec.WireError as error:
        return error.fault
    for tensor in found["inputs"]:
        if tensor["contents"] is not None:
            tensor["contents"] = {n: exactly(values) for n, values in tensor["contents"].items()}
    return found


def has_group(body: bytes, depth: int = 0) -> bool:
    """Whether a field of wire type 3 or 4 stands where the codec meets it: at the top or in a message it reads."""
    at = 0
    nested = {0: {4, 5, 6}, 1: {2, 4, 5}, 2: {2}}.get(depth, set())
    try:
        while at < len(body):
            tag, at = reference.read_varint(body, at, 5)
            if tag & 7 in (3, 4):
                return True
            value, at = reference.read_value(body, at, tag & 7)
            if tag & 7 == 2 and tag >> 3 in nested and has_group(value, depth + 1):
                return True
    except reference.WireError:
        pass
    return False


def is_stricter_on_purpose(fault: str, body: bytes) -> bool:
    """Whether `wire.STRICTER` covers a refusal of what protobuf takes."""
    return fault == "TOO_MANY_PARTS" or (fault == "MALFORMED" and has_group(body))


def check(body: bytes, *, with_twin: bool) -> str:
    """Hold the codec against protobuf over one body; what came of it."""
    found = by_codec(wire, body)
    if with_twin:
        assert by_codec(reference, body) == found, body.hex()
    try:
        message = pb.ModelInferRequest.FromString(body)
    except DecodeError:
        assert isinstance(found, str), f"accepted what protobuf refuses: {body.hex()}"
        return "refused"
    if isinstance(found, str):
        assert is_stricter_on_purpose(found, body), f"refused ({found}) what protobuf takes: {body.hex()}"
        return "stricter"
    assert found == by_protobuf(message), body.hex()
    return "accepted"


def campaign(seed: int, count: int) -> None:
    chance = random.Random(seed)
    bodies = seeds()
    seen = {"accepted": 0, "refused": 0, "stricter": 0}
    for index in range(count):
        seen[check(mutant(chance, bodies), with_twin=index % 10 == 0)] += 1
    assert min(seen["accepted"], seen["refused"]) > count // 10, seen  # a campaign that shows both sides
    assert seen["stricter"] < count // 10, seen


def test_the_seeds_themselves_are_read_as_protobuf_reads_them():
    assert {check(body, with_twin=True) for body in seeds()} == {"accepted"}


def test_20_000_mutants_are_accepted_refused_and_read_as_by_protobuf():
    campaign(1, 20_000)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_500_000_mutants_are_accepted_refused_and_read_as_by_protobuf():
    campaign(2, 500_000)


def test_every_truncation_of_every_seed_is_judged_as_by_protobuf():
    for body in seeds():
        for size in range(len(body)):
            check(body[:size], with_twin=True)


# ---- Mutants against a plan -----------------------------------------------------------------------------------------

COLUMNS = ("a", "b", "c")
MATRIX = [("card", "BYTES", (1,), "entity", True), ("m", "FP32", (3,), "matrix", True)]
TENSORS = [("x", "INT8", (-1,), "tensor", False), ("t", "BYTES", (), "tensor", False)]
OUTPUTS = [("y", "FP32", (2,), False), ("why", "INT64", (), True)]
PLANS = [
    [codec.Plan("m", "1", inputs, OUTPUTS, columns) for codec in (wire, reference)]
    for inputs, columns in ((MATRIX, COLUMNS), (TENSORS, ()))
]


def fitting() -> list[bytes]:
    """Requests that fit one of the plans."""
    raw = pb.ModelInferRequest(model_name="m", raw_input_contents=[struct.pack("<6f", *range(6)), b"\x07\x08"])
    raw.inputs.add(name="m", datatype="FP32", shape=[2, 3])
    raw.inputs.add(name="b", datatype="UINT8", shape=[2, 1])
    raw.outputs.add(name="why")
    ids = pb.ModelInferRequest(model_name="m")
    ids.inputs.add(name="card", datatype="INT64", shape=[2]).contents.int64_contents.extend([-1, 300])
    ids.inputs.add(name="c", datatype="INT16", shape=[2]).contents.int_contents.extend([-1, 300])
    tensors = pb.ModelInferRequest(raw_input_contents=[b"\x01\x02", b"\x02\0\0\0ab"])
    tensors.inputs.add(name="x", datatype="INT8", shape=[1, 2])
    tensors.inputs.add(name="t", datatype="BYTES", shape=[1])
    typed = pb.ModelInferRequest()
    typed.inputs.add(name="t", datatype="BYTES", shape=[2]).contents.bytes_contents.extend([b"ab", b""])
    typed.inputs.add(name="x", datatype="INT8", shape=[2, 1]).contents.int_contents.extend([5, -5])
    return [m.SerializeToString(deterministic=True) for m in (raw, ids, tensors, typed)]


def outcome(codec, plan, body: bytes) -> object:
    """What the codec decodes and answers, or the fault."""
    try:
        arrays, source, rows = codec.decode(plan, body)
    except codec.WireError as error:
        return error.fault
    values = {k: v if isinstance(v, list) else (v.shape, v.dtype.str, v.tobytes()) for k, v in arrays.items()}
    outputs = {"y": np.arange(2 * rows, dtype="f4").reshape(rows, 2), "why": np.arange(rows)}
    return values, None if source is None else source.tolist(), codec.encode(plan, body, outputs)


def match_campaign(seed: int, count: int) -> None:
    chance = random.Random(seed)
    bodies, seen = fitting(), set()
    for _ in range(count):
        body = mutant(chance, bodies)
        if b"\x80\x80\x80" in body:  # rows by the million where a tensor has none: right, and slow in the twin
            continue
        for kernel_plan, twin_plan in PLANS:
            found = outcome(wire, kernel_plan, body)
            assert found == outcome(reference, twin_plan, body), body.hex()
            seen.add(found if isinstance(found, str) else "OK")
    assert len(seen) > 12, seen


def test_4_000_mutants_are_decoded_or_refused_as_by_the_twin():
    assert all(any(not isinstance(outcome(wire, plan[0], body), str) for plan in PLANS) for body in fitting())
    match_campaign(3, 4_000)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_100_000_mutants_are_decoded_or_refused_as_by_the_twin():
    match_campaign(4, 100_000)


# ---- Memory ---------------------------------------------------------------------------------------------------------

HOSTILE = """
import resource, sys
import numpy as np
from penstock.kernels import wire
from penstock.proto import inference_pb2 as pb

def body(name, datatype, shape, raws=(), **contents):
    message = pb.ModelInferRequest(raw_input_contents=raws)
    message.inputs.add(name=name, datatype=datatype, shape=shape)
    for field, values in contents.items():
        getattr(message.inputs[0].contents, field).extend(values)
    return message.SerializeToString()

def plan(datatype, shape=()):
    return wire.Plan("m", "1", [("x", datatype, shape, "tensor", False)], [])

MB = 1 << 20
zeros = [0] * MB
refused = [
    (plan("FP32", (-1,)), body("x", "FP32", [1 << 20, 1 << 20], [bytes(MB)])),
    (plan("FP32", (-1,)), body("x", "FP32", [1 << 38, 4])),
    (plan("BYTES"), body("x", "BYTES", [1 << 40], [bytes(4 * MB)])),
    (plan("BYTES"), body("x", "BYTES", [MB], [b"\\xff" * 4 * MB])),
    (plan("INT8"), body("x", "INT8", [MB], int_contents=[*zeros[1:], 1000])),
    (plan("FP32"), b"\\x2a\\x00" * 1024 + b"\\x32\\x00" * 1024 + b"\\x3a\\x00" * 1024),
    (plan("FP32"), b"\\x2a\\x00" * MB),
    (plan("FP32"), b"\\x2a\\xff\\xff\\xff\\xff\\x07"),
    (plan("FP32"), b"\\x22\\x00" * MB),
]
# What fits may take its values in full: 1 byte on the wire is up to 8 bytes of INT64, a text an object of Python's.
accepted = [
    (plan("FP32"), body("x", "FP32", [MB], [bytes(4 * MB)]), 1.1),
    (plan("FP64"), body("x", "FP64", [MB], fp64_contents=zeros), 1.1),
    (plan("INT64"), body("x", "INT64", [MB], int64_contents=zeros), 8.1),
    (plan("BYTES"), body("x", "BYTES", [MB], [bytes(4 * MB)]), 2.5),
    (plan("BYTES"), body("x", "BYTES", [MB], [b"\\x02\\0\\0\\0ab" * MB]), 11),
]
wire.decode(plan("FP32"), body("x", "FP32", [1], [bytes(4)]))
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()

def limit(extra):
    resource.setrlimit(resource.RLIMIT_AS, (used + int(extra), resource.RLIM_INFINITY))

limit(3 * MB)
for _ in range(20):
    for p, b in refused:
        try:
            wire.decode(p, b)
        except wire.WireError as error:
            assert error.fault not in ("OK", "OUT_OF_MEMORY"), error
        else:
            sys.exit("accepted")
for p, b, times in accepted:
    limit(3 * MB + times * len(b))
    wire.decode(p, b)
print("bounded")
"""


without_sanitizer = pytest.mark.skipif(
    "asan" in os.environ.get("LD_PRELOAD", ""), reason="the address sanitizer keeps what was freed"
)


@without_sanitizer
def test_what_a_request_makes_us_allocate_is_bounded_by_its_own_bytes():
    """In a process that may grow by no more: 3 MB for a refusal, a stated multiple of the body for what fits."""
    # Fixed thresholds: what is freed goes back at once, and cannot hide what is taken later.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-c", HOSTILE], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "bounded\n", done.stderr


class Answer:
    """A future that only counts."""

    answered = 0

    def done(self) -> bool:
        return False

    def set_result(self, _: bytes) -> None:
        Answer.answered += 1

    def set_exception(self, _: Exception) -> None:
        Answer.answered += 1


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@without_sanitizer
def test_100_000_accepted_and_refused_requests_leave_no_memory_behind():
    plan = PLANS[0][0]
    lane, sink, future = lanes.Lane(plan), calls.EventSink(), Answer()
    chance = random.Random(5)
    bodies = [fitting()[0]] * 20 + [mutant(chance, seeds()) for _ in range(10)] + [seeds()[0] * 3]
    bodies += [mutant(chance, fitting()) for _ in range(10)]
    outputs = {"y": np.zeros((4096, 2), "f4"), "why": np.zeros(4096, "i8")}

    def serve(count: int) -> int:
        taken = 0
        for index in range(count):
            try:
                lane.submit(bodies[index % len(bodies)], sink, future)
                taken += 1
            except calls.Refused:
                pass
            if index % 64 == 63:
                while (batch := lane.take(block=False)) is not None:
                    batch.complete({name: values[: batch.rows] for name, values in outputs.items()})
                sink.drain()
        return taken

    serve(20_000)
    gc.collect()
    before, Answer.answered = resident(), 0
    taken = serve(100_032)
    gc.collect()
    assert 40_000 < taken < 90_000
    assert taken - 64 <= Answer.answered <= taken + 64
    assert resident() - before < 1 << 20
