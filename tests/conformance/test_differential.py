"""The same mutated requests get the same status from both transports.

Bodies are mutated as bytes (flipped, cut, grown, spliced, with fields doubled and lengths changed) and as messages
(names, datatypes, shapes, contents), and so is the gRPC framing around them. Where both answer, the answers are
compared too. Where a flag byte is unknown or the call ends within its message, gRPC's C core reads another message or
waits for the rest until the deadline; there INTERNAL is what the native transport must say.
"""

from __future__ import annotations

import collections
import random
import struct
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from penstock.features import Column, FeatureView
from penstock.proto import inference_pb2 as pb
from penstock.registry import Registry

OK, INVALID_ARGUMENT, DEADLINE_EXCEEDED, NOT_FOUND, RESOURCE_EXHAUSTED, INTERNAL = 0, 3, 4, 5, 8, 13
AT_ONCE = 64
NAMES = ["", "x", "y", "double", "echo", "joined", "nobody", "id", "a", "x" * 5000, "größe"]
DATATYPES = ["", "FP32", "FP64", "INT64", "BYTES", "BOOL", "fp32", "FP32 ", "X"]
SIZES = [0, 1, 2, 3, 8, 65, -1, 1 << 31, 1 << 62, -(1 << 63), 1 << 40]


def good(rng):
    """A request that a model of the registry answers."""
    rows = rng.choice([1, 1, 1, 2, 3, 50])
    request = pb.ModelInferRequest(model_name=rng.choice(["double", "echo", "reciprocal", "joined"]))
    if rng.random() < 0.3:
        request.id = str(rng.random())
    if rng.random() < 0.2:
        request.parameters["priority"].int64_param = 7
    values = np.array([rng.uniform(-9, 9) for _ in range(rows * 2)], "<f4").reshape(rows, 2)
    if request.model_name == "joined":
        ids = [str(rng.randrange(9)).encode() for _ in range(rows)]
        entity = request.inputs.add(name="id", datatype="BYTES", shape=[rows])
        if rng.random() < 0.5:
            entity.contents.bytes_contents.extend(ids)
        else:
            request.raw_input_contents.append(b"".join(struct.pack("<I", len(one)) + one for one in ids))
    elif request.model_name == "reciprocal":
        request.inputs.add(name="x", datatype="INT64", shape=[rows, 1])
        request.raw_input_contents.append(np.array([rng.randrange(1, 99) for _ in range(rows)], "<i8").tobytes())
    else:
        tensor = request.inputs.add(name="x", datatype="FP32", shape=[rows, 2])
        if rng.random() < 0.3:
            tensor.contents.fp32_contents.extend(values.ravel().tolist())
        else:
            request.raw_input_contents.append(values.tobytes())
    return request


def varint(value):
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def fields(body):
    """The top-level fields of a body made by protobuf: (start, end) of each; all are of the kind with a length."""
    found, at = [], 0
    while at < len(body):
        size, shift, start, at = 0, 0, at, at + 1
        while True:
            size, shift, more, at = size | (body[at] & 0x7F) << shift, shift + 7, body[at] & 0x80, at + 1
            if not more:
                break
        at += size
        found.append((start, at))
    return found


def flip(rng, body, _):
    out = bytearray(body)
    for _ in range(rng.choice([1, 1, 2, 8])):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def cut(rng, body, _):
    return body[: rng.randrange(len(body))]


def insert(rng, body, _):
    at = rng.randrange(len(body) + 1)
    return body[:at] + rng.randbytes(rng.choice([1, 2, 5, 40])) + body[at:]


def splice(rng, body, other):
    return body[: rng.randrange(len(body))] + other[rng.randrange(len(other)) :]


def double_field(rng, body, _):
    start, end = rng.choice(fields(body))
    at = rng.choice([found for pair in fields(body) for found in pair])
    return body[:at] + body[start:end] + body[at:]


def drop_field(rng, body, _):
    start, end = rng.choice(fields(body))
    return body[:start] + body[end:]


def other_length(rng, body, _):
    """A field that says it is longer or shorter than it is."""
    start, end = rng.choice(fields(body))
    told = rng.choice([0, 1, end - start, end - start + 1, len(body), 1 << 31, 1 << 35, (1 << 64) - 1])
    return body[: start + 1] + varint(told) + body[start + 2 :]


def other_message(rng, request, _):
    """A well-formed request that is wrong in one thing."""
    tensor = rng.choice(request.inputs)
    change = rng.randrange(12)
    if change == 0:
        request.model_name = rng.choice(NAMES)
    elif change == 1:
        request.model_version = rng.choice(["1", "2", "champion", "nobody", "-1", "01", "9" * 30])
    elif change == 2:
        tensor.name = rng.choice(NAMES)
    elif change == 3:
        tensor.datatype = rng.choice(DATATYPES)
    elif change == 4:
        tensor.shape[rng.randrange(len(tensor.shape))] = rng.choice(SIZES)
    elif change == 5:
        tensor.shape.extend(rng.choice(SIZES) for _ in range(rng.choice([1, 2, 9])))
    elif change == 6:
        del tensor.shape[rng.randrange(len(tensor.shape)) :]
    elif change == 7:
        request.raw_input_contents.append(rng.randbytes(rng.choice([0, 1, 8, 100])))
    elif change == 8:
        del request.raw_input_contents[:]
    elif change == 9:
        request.outputs.add(name=rng.choice(NAMES))
    elif change == 10:
        request.inputs.add().CopyFrom(tensor)
    else:
        tensor.contents.int_contents.extend([1, 2])
    return request.SerializeToString()


BODIES = (flip, cut, insert, splice, double_field, drop_field, other_length)


def odd_flag(rng, body):
    return bytes([rng.choice([2, 4, 0x80, 0xFE])]) + struct.pack(">I", len(body)) + body


def compressed_flag(_, body):
    return struct.pack(">BI", 1, len(body)) + body


def prefix_too_long(rng, body):
    return struct.pack(">BI", 0, len(body) + rng.choice([1, 5, 1000])) + body


def prefix_too_short(rng, body):
    return struct.pack(">BI", 0, rng.randrange(len(body))) + body


def prefix_far_too_long(rng, body):
    return struct.pack(">BI", 0, rng.choice([(64 << 20) + 1, 1 << 31, (1 << 32) - 1])) + body


def trailing_bytes(rng, body):
    return struct.pack(">BI", 0, len(body)) + body + rng.randbytes(rng.choice([1, 4, 5, 30]))


def two_messages(_, body):
    return (struct.pack(">BI", 0, len(body)) + body) * 2


def cut_prefix(rng, body):
    return struct.pack(">BI", 0, len(body))[: rng.randrange(5)]


FRAMINGS = (
    odd_flag,
    compressed_flag,
    prefix_too_long,
    prefix_too_short,
    prefix_far_too_long,
    trailing_bytes,
    two_messages,
    cut_prefix,
)
STRICTER = {"odd_flag", "prefix_too_long", "cut_prefix"}


def mutated(seed):
    """The kind of a mutation, and the bytes of the whole gRPC message."""
    rng = random.Random(seed)
    request = good(rng)
    if rng.random() < 0.35:
        return "other_message", framed(other_message(rng, request, None))
    body = request.SerializeToString()
    if rng.random() < 0.15:
        framing = rng.choice(FRAMINGS)
        return framing.__name__, framing(rng, body)
    mutate = rng.choice(BODIES)
    return mutate.__name__, framed(mutate(rng, body, good(rng).SerializeToString()))


def framed(body):
    return struct.pack(">BI", 0, len(body)) + body


@pytest.fixture(scope="module")
def servers(tmp_path_factory, graphs, server_process):
    """Each transport as a process of its own over one registry: name to server."""
    pytest.importorskip("penstock.kernels.http2", reason="this build has no native transport")
    registry = Registry(tmp_path_factory.mktemp("differential") / "registry")
    registry.root.mkdir()
    view = FeatureView(name="v", entity="id", columns=[Column(name=name, dtype="float32") for name in ("a", "b")])
    graphs.publish(registry, "double", graphs.double())
    graphs.publish(registry, "echo", graphs.same("FP32", "n", "k"))
    graphs.publish(registry, "reciprocal", graphs.reciprocal())
    graphs.publish(registry, "joined", graphs.copy(2), columns=("a", "b"), views=[view])
    arguments = ("--features", "memory://", "--transport")
    with (
        server_process(registry.root, *arguments, "grpcio") as grpcio,
        server_process(registry.root, *arguments, "native") as native,
    ):
        yield {"grpcio": grpcio, "native": native}


def ask(http2, infer, address, cases):
    """The status and the answer of each case; calls go out `AT_ONCE` at a time."""
    told = []
    with http2.connect(address) as peer:
        peer.started()
        for at in range(0, len(cases), AT_ONCE):
            streams = []
            for kind, message in cases[at : at + AT_ONCE]:
                # some of the framings C core answers only when the deadline has passed
                streams.append(peer.begin(infer, ("grpc-timeout", "300m" if kind in STRICTER else "20S")))
                peer.body(streams[-1], message)
            for stream in streams:
                answer = peer.answer(stream)
                told.append((f"reset {answer.reset}" if answer.code is None else answer.code, answer.messages))
    return told


def compare(http2, infer, servers, seeds):
    """Counts of (kind, status of grpcio, status of native), and the seeds of what must not differ."""
    cases = [mutated(seed) for seed in seeds]
    with ThreadPoolExecutor(2) as threads:
        both = [threads.submit(ask, http2, infer, one.grpc, cases) for one in servers.values()]
        grpcio, native = (one.result() for one in both)
    counts, wrong = collections.Counter(), []
    for seed, (kind, _), theirs, ours in zip(seeds, cases, grpcio, native, strict=True):
        counts[kind, theirs[0], ours[0]] += 1
        stricter = kind in STRICTER and ours[0] == INTERNAL
        if not stricter and (theirs[0] != ours[0] or theirs[1] != ours[1]):
            wrong.append((seed, kind, theirs, ours))
    return counts, wrong


def table(counts):
    lines = [f"{'mutation':22}{'grpcio':>8}{'native':>8}{'calls':>8}"]
    lines += [f"{kind:22}{theirs!s:>8}{ours!s:>8}{n:8}" for (kind, theirs, ours), n in sorted(counts.items(), key=str)]
    return "\n".join(lines)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("calls", [1_500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_mutated_requests_get_the_same_status_from_both_transports(http2, infer, servers, calls):
    counts, wrong = compare(http2, infer, servers, range(calls))
    print(table(counts))
    assert not wrong, f"{len(wrong)} differ, the first: {wrong[0]}\n{table(counts)}"
    codes = {theirs for _, theirs, _ in counts}
    assert {OK, INVALID_ARGUMENT, NOT_FOUND, RESOURCE_EXHAUSTED, INTERNAL} <= codes, table(counts)


def test_framing_that_is_wrong_is_internal_on_the_native_transport(http2, infer, servers):
    """Whatever message lies in it."""
    cases = [case for case in map(mutated, range(3_000)) if case[0] in STRICTER][:100]
    told = ask(http2, infer, servers["native"].grpc, cases)
    assert {code for code, _ in told} == {INTERNAL}
