"""Bytes as what a client does on one connection: the form of the inputs of the http2 target.

The first byte says how it begins and ends, then come steps: a byte for the kind, two for its choices, and for some a
length and a payload. Any bytes are some client, a change of one byte is a small change of what it does, and what one
input can cost is bounded: MAX_STEPS, MAX_BYTES and MAX_PAUSES.
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass, field

import http2_client as h2

from penstock.proto import inference_pb2 as pb

MAX_STEPS, MAX_BYTES, MAX_PAUSES = 200, 1 << 18, 3
RAW, NO_SETTINGS, ABRUPT, DEAF = 1, 2, 4, 8  # bits of the first byte

SERVICE = "/inference.GRPCInferenceService/"
PATHS: list[str | bytes] = [
    SERVICE + "ModelInfer",
    SERVICE + "ServerLive",
    SERVICE + "ModelMetadata",
    SERVICE + "ModelStreamInfer",
    SERVICE + "NoSuchMethod",
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/",
    "",
    b"/\xff",
]
MORE: list[list[tuple[str | bytes, str | bytes]]] = [
    [],
    [("grpc-timeout", "1n")],
    [("grpc-timeout", "20m")],
    [("grpc-timeout", "99999999H")],
    [("grpc-timeout", "-1S")],
    [("grpc-encoding", "gzip"), ("grpc-accept-encoding", "gzip,deflate,identity")],
    [("grpc-encoding", "snappy")],
    [("trace-bin", "AAEC"), ("trace-bin", "no base64!")],
    [("x-many", "v" * 200)] * 8,  # more than max_header_bytes
    [("Upper", "case"), (b"\xff", b"\0")],
    [(":path", "/twice")],
    [("content-length", "7")],
    [("expect", "100-continue"), ("connection", "close")],
]
INSTEAD: list[dict[str, str | None]] = [
    {},
    {"method": "GET"},
    {"content_type": "application/json"},
    {"te": None},
    {"authority": None},
    {"scheme": "https"},
    {"method": None},
    {"content_type": "application/grpc+proto"},
]


def infer(model: str, values: list[float], columns: int = 2) -> bytes:
    """A ModelInferRequest of one FP32 input."""
    request = pb.ModelInferRequest(model_name=model, id="7")
    request.inputs.add(name="x", datatype="FP32", shape=[len(values) // columns, columns])
    request.raw_input_contents.append(struct.pack(f"<{len(values)}f", *values))
    return request.SerializeToString()


GOOD = infer("double", [1, 2, 3, 4])
BODIES = [
    h2.framed(GOOD),
    h2.framed(b""),
    h2.framed(GOOD) * 2,  # two messages where one belongs
    h2.framed(GOOD)[:-3],
    h2.framed(GOOD)[:3],
    h2.framed(infer("absent", [1, 2])),
    h2.framed(infer("double", [1, 2, 3], columns=3)),
    h2.framed(GOOD[:-5]),
    h2.framed(GOOD, flag=1),  # told to be compressed
    h2.framed(GOOD, flag=255),
    h2.framed(infer("double", [0.5] * 400)),  # more than max_message_bytes
    struct.pack(">BI", 0, 0xFFFFFFFF) + GOOD,
    b"",
]


@dataclass
class Steps:
    """A reader of one input. Behind the end everything is 0."""

    data: bytes
    at: int = 0
    newest: int = -1
    sent: list[bytes] = field(default_factory=list)

    def byte(self) -> int:
        self.at += 1
        return self.data[self.at - 1] if self.at <= len(self.data) else 0

    def payload(self) -> bytes:
        size = self.byte()
        found = self.data[self.at : self.at + size]
        self.at += size
        return found

    def stream(self, choice: int) -> int:
        """Mostly a stream that is open; sometimes none, one too far on, or one of the server's."""
        if choice == 2 or self.newest < 0:
            self.newest += 2
            return self.newest
        some = {0: 0, 3: 1, 4: 2, 5: self.newest + 100, 6: 0x7FFFFFFF, 7: 0xFFFFFFFF}
        return some.get(choice, max(1, self.newest - 2 * (choice % 8)))


def header_block(choice: int) -> bytes:
    """One of PATHS by MORE by INSTEAD; a tenth of all choices is the plain good call."""
    path, rest = choice % len(PATHS), choice // len(PATHS)
    more, instead = (rest % len(MORE), 0) if rest < len(MORE) else (0, rest % len(INSTEAD))
    usual: dict[str, str | bytes | None] = {
        "method": "POST",
        "scheme": "http",
        "path": PATHS[path],
        "authority": "localhost",
    }
    usual |= {"te": "trailers", "content_type": "application/grpc"} | INSTEAD[instead]
    pseudo = ("method", "scheme", "path", "authority")
    names = {name: f":{name}" if name in pseudo else name.replace("_", "-") for name in usual}
    return h2.block([(names[name], value) for name, value in usual.items() if value is not None] + MORE[more])


# ---- The kinds of steps: each gives bytes to send -------------------------------------------------------------------


def call(steps: Steps, choice: int, body: int) -> bytes:
    """A whole call on a new stream."""
    stream = steps.stream(2)
    head = h2.frame(h2.HEADERS, h2.END_HEADERS, stream, header_block(choice))
    return head + h2.frame(h2.DATA, h2.END_STREAM, stream, BODIES[body % len(BODIES)])


def headers(steps: Steps, choice: int, stream: int) -> bytes:
    flags = steps.byte()
    return h2.frame(h2.HEADERS, flags ^ h2.END_HEADERS, steps.stream(stream), header_block(choice))


def raw_headers(steps: Steps, flags: int, stream: int) -> bytes:
    """Any bytes as header block."""
    return h2.frame(h2.HEADERS, flags ^ h2.END_HEADERS, steps.stream(stream), steps.payload())


def body(steps: Steps, choice: int, stream: int) -> bytes:
    return h2.frame(h2.DATA, steps.byte(), steps.stream(stream), BODIES[choice % len(BODIES)])


def data(steps: Steps, flags: int, stream: int) -> bytes:
    return h2.frame(h2.DATA, flags, steps.stream(stream), steps.payload())


def any_frame(steps: Steps, kind: int, stream: int) -> bytes:
    """Types past CONTINUATION, which no endpoint knows, too."""
    return h2.frame(kind % 12, steps.byte(), steps.stream(stream), steps.payload())


def false_length(steps: Steps, kind: int, stream: int) -> bytes:
    size = steps.byte() << 8 | steps.byte()
    return h2.frame(kind % 12, steps.byte(), steps.stream(stream), steps.payload(), size=size)


def settings(steps: Steps, name: int, shift: int) -> bytes:
    value = (steps.byte() << (shift % 32)) & 0xFFFFFFFF
    return h2.frame(h2.SETTINGS, 0, 0, struct.pack(">HI", name % 9, value))


def window_update(steps: Steps, shift: int, stream: int) -> bytes:
    by = (steps.byte() << (shift % 32)) & 0xFFFFFFFF
    return h2.frame(h2.WINDOW_UPDATE, 0, steps.stream(stream), struct.pack(">I", by))


def reset(steps: Steps, code: int, stream: int) -> bytes:
    return h2.frame(h2.RST_STREAM, 0, steps.stream(stream), struct.pack(">I", code))


def ping(_: Steps, flags: int, value: int) -> bytes:
    return h2.frame(h2.PING, flags, 0, bytes([value]) * 8)


def raw(steps: Steps, _: int, __: int) -> bytes:
    return steps.payload()


def again(steps: Steps, times: int, _: int) -> bytes:
    """The bytes of the step before, up to 255 times more: floods are within reach."""
    return steps.sent[-1] * times if steps.sent else b""


def pause(_: Steps, __: int, ___: int) -> bytes:
    """What was collected is sent, and what the server says for now is read."""
    return b""


KINDS = (call, headers, raw_headers, body, data, any_frame, false_length, settings, window_update, reset, ping, raw)
KINDS += (again, pause, call, body)


@dataclass(frozen=True)
class Script:
    """What a client does: it sends each part, and reads after each but the last."""

    parts: tuple[bytes, ...]
    abrupt: bool
    """It leaves without waiting for answers, as where a process was killed."""
    deaf: bool
    """It never reads, and opens no window."""


def begin(mode: int) -> bytes:
    return h2.PREFACE + (b"" if mode & NO_SETTINGS else h2.frame(h2.SETTINGS, 0, 0))


def script(data: bytes) -> Script:
    """Any bytes as a client."""
    mode = data[0] if data else 0
    if mode & RAW:
        return Script((data[1:],), bool(mode & ABRUPT), bool(mode & DEAF))
    steps, parts, size = Steps(data, at=1), [begin(mode)], 0
    while steps.at < len(data) and len(steps.sent) < MAX_STEPS:
        kind = KINDS[steps.byte() % len(KINDS)]
        made = kind(steps, steps.byte(), steps.byte())[: MAX_BYTES - size]
        size += len(made)
        parts[-1] += made
        if kind is pause and len(parts) <= MAX_PAUSES:
            parts.append(b"")
        elif made:
            steps.sent.append(made)
    return Script(tuple(parts), bool(mode & ABRUPT), bool(mode & DEAF))


# ---- Inputs to begin with, and changes by step ----------------------------------------------------------------------


def seeds() -> list[bytes]:
    """Each kind of step with some choices, good calls over every path, and raw bytes of a real connection."""
    number = {kind: index for index, kind in reversed(list(enumerate(KINDS)))}
    calls = [bytes([0, number[call], path, 0, number[pause], 0, 0]) for path in range(len(PATHS))]
    odd = [bytes([0, number[call], len(PATHS) * rest, 0]) for rest in range(1, len(MORE) + len(INSTEAD))]
    bodies = [bytes([0, number[call], 0, index]) for index in range(len(BODIES))]
    floods = [
        bytes([0, number[ping], 0, 1, number[again], 255, 0]),
        bytes([0, number[settings], 4, 0, 1, number[again], 255, 0]),
        bytes([0, number[call], 6, 0, number[reset], 8, 1, number[call], 0, 0, number[reset], 8, 1] * 8),
        bytes([0, number[headers], 0, 2, 4, number[any_frame], 9, 1, 0, 0, number[again], 200, 0]),  # CONTINUATION
        bytes([0, number[headers], 0, 2, 0, number[data], 0, 1, 0, number[again], 255, 0]),  # empty DATA
    ]
    streams = [
        bytes([0, number[headers], path, 2, 0, number[body], index, 1, 0, number[pause], 0, 0, number[body], 0, 1, 1])
        for path in (0, 3, 6, 7)
        for index in (0, 1, 4)
    ]
    slow = [
        bytes([0, number[settings], 4, 0, 0, number[call], 0, 0, number[pause], 0, 0, number[window_update], 4, 1, 1])
    ]
    ends = [bytes([mode]) + calls[0][1:] * 3 for mode in (ABRUPT, DEAF, ABRUPT | DEAF, NO_SETTINGS)]
    plain = [bytes([RAW]) + part for found in (calls[0], odd[4]) for part in script(found).parts if part]
    return [*calls, *odd, *bodies, *floods, *streams, *slow, *ends, *plain, bytes([RAW]) + b"GET / HTTP/1.1\r\n\r\n"]


def mutate(chance: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """Steps of another input put in, a step of a random kind put in, a stretch taken out or doubled, or bytes set."""
    made, at = bytearray(data), chance.randrange(len(data) + 1)
    what = chance.randrange(6)
    if what == 0:
        made[at:at] = chance.choice(others)[1:]
    elif what == 1:
        made[at:at] = bytes([chance.randrange(len(KINDS)), chance.choice([0, 1, 4, 5, chance.randrange(256)]), 1])
    elif what == 2:
        del made[at : at + chance.randrange(1, 12)]
    elif what == 3:
        made[at:at] = made[at : at + chance.randrange(1, 40)]
    else:
        for _ in range(chance.randrange(1, 4)):
            if made:
                made[chance.randrange(len(made))] = chance.choice([0, 1, 2, 0xFF, chance.randrange(256)])
    return bytes(made)
