"""What `kernels.wire` must equal, in struct and numpy: a request's grammar, its fit to a plan, and its answer.

Written from the wire format of protobuf and from proto/inference.proto; it knows nothing of protobuf's library, which
is the independent referee of both. Faults are found in the kernel's order; words for them are the kernel's alone. A
plan is trusted here: what the kernel's `Plan` refuses is not tried.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

NUMPY = {
    "BOOL": "?", "UINT8": "u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8", "INT8": "i1", "INT16": "<i2",
    "INT32": "<i4", "INT64": "<i8", "FP16": "<f2", "BF16": "<u2", "FP32": "<f4", "FP64": "<f8",
}  # fmt: skip
FIELDS = {
    "BOOL": 1, "INT8": 2, "INT16": 2, "INT32": 2, "INT64": 3, "UINT8": 4, "UINT16": 4, "UINT32": 4, "UINT64": 5,
    "FP32": 6, "FP64": 7, "BYTES": 8,
}  # fmt: skip
"""The field of InferTensorContents that carries a datatype; FP16 and BF16 have none."""

MAX_DIMS, MAX_TENSORS, MAX_PARAMETERS, MAX_ELEMENTS = 8, 1024, 64, 1 << 40
MAX_TEXTS = 1 << 20
MAX_LENGTH, MAX_TIMEOUT_US = 0x7FFFFFFF, 1 << 50
VARINT, FIXED64, TEXT, FIXED32 = 0, 1, 2, 5

Value = int | bytes


class WireError(ValueError):
    """A body is refused; `fault` is one of the kernel's FAULTS."""

    def __init__(self, fault: str) -> None:
        super().__init__(fault)
        self.fault = fault


# ---- Protobuf's grammar ---------------------------------------------------------------------------------------------


def read_varint(data: bytes, at: int, most: int = 10) -> tuple[int, int]:
    """A varint of at most `most` bytes and where it ends; bits over the 64th are dropped."""
    value = 0
    for index, byte in enumerate(data[at : at + most]):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at + index + 1
    raise WireError("MALFORMED")


def read_value(data: bytes, at: int, wire_type: int) -> tuple[Value, int]:
    """A value of a wire type (numbers as their bits) and where it ends."""
    if wire_type == VARINT:
        return read_varint(data, at)
    if wire_type == TEXT:
        size, at = read_varint(data, at, 5)
        if size > MAX_LENGTH:
            raise WireError("MALFORMED")
    elif wire_type in (FIXED64, FIXED32):
        size = 8 if wire_type == FIXED64 else 4
    else:
        raise WireError("MALFORMED")
    if size > len(data) - at:
        raise WireError("MALFORMED")
    part = data[at : at + size]
    return (part if wire_type == TEXT else int.from_bytes(part, "little")), at + size


def fields(data: bytes) -> Iterator[tuple[tuple[int, int], Value]]:
    """Each ((field number, wire type), value) of a message in turn."""
    at = 0
    while at < len(data):
        tag, at = read_varint(data, at, 5)
        if tag >> 3 == 0 or tag > 0xFFFFFFFF:
            raise WireError("MALFORMED")
        value, at = read_value(data, at, tag & 7)
        yield (tag >> 3, tag & 7), value


def as_bytes(value: Value) -> bytes:
    """A value of wire type 2."""
    assert isinstance(value, bytes)
    return value


def as_number(value: Value) -> int:
    """A value of any other wire type."""
    assert isinstance(value, int)
    return value


def text(value: Value) -> str:
    """A proto3 string."""
    try:
        return as_bytes(value).decode()
    except UnicodeDecodeError:
        raise WireError("MALFORMED") from None


def signed(bits: int, width: int) -> int:
    """The low `width` bits as a number in two's complement."""
    bits &= (1 << width) - 1
    return bits - (1 << width) if bits >> (width - 1) else bits


# ---- The parts of a request -----------------------------------------------------------------------------------------


@dataclass
class Input:
    """One input as it was sent: typed values by field, at protobuf's width."""

    name: str = ""
    datatype: str = ""
    shape: list[int] = field(default_factory=list)
    contents: dict[int, list[Any]] | None = None
    parameters: dict[str, Any] = field(default_factory=dict)


@dataclass
class Request:
    """The parts of a body."""

    model_name: str = ""
    model_version: str = ""
    id: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    inputs: list[Input] = field(default_factory=list)
    outputs: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    raws: list[bytes] = field(default_factory=list)

    @property
    def timeout_us(self) -> int:
        """Request parameter `timeout`, an integer; 0 where absent or not positive."""
        value = self.parameters.get("timeout")
        if not isinstance(value, int) or isinstance(value, bool):
            return 0
        return max(0, min(signed(value, 64), MAX_TIMEOUT_US))

    @property
    def timing(self) -> bool:
        """Request parameter `timing`, a bool."""
        return self.parameters.get("timing") is True


def parse_parameter(entry: bytes) -> tuple[str, Any]:
    """Key and value of one entry of a map<string, InferParameter>; the last of a oneof's fields counts.

    An entry with any other field than these two gets no key, for protobuf sets it aside as unknown.
    """
    key, known = "", True
    value: Any = None
    for tag, part in fields(entry):
        if tag == (1, TEXT):
            key = text(part)
        elif tag == (2, TEXT):
            for inner, choice in fields(as_bytes(part)):
                if inner == (1, VARINT):
                    value = choice != 0
                elif inner in ((2, VARINT), (5, VARINT), (4, FIXED64)):
                    value = choice if inner[1] == VARINT else float("nan")
                elif inner == (3, TEXT):
                    value = text(choice)
        else:
            known = False
    return (key if known else ""), value


def add_parameter(parameters: dict[str, Any], entries: list[None], part: Value) -> None:
    """Take one entry in; `entries` counts them, repeated keys included."""
    key, value = parse_parameter(as_bytes(part))
    entries.append(None)
    if len(entries) > MAX_PARAMETERS:
        raise WireError("TOO_MANY_PARTS")
    parameters[key] = value


CONTENTS: dict[int, tuple[int, Callable[[int], Any]]] = {
    1: (VARINT, bool),
    2: (VARINT, lambda bits: signed(bits, 32)),
    3: (VARINT, lambda bits: signed(bits, 64)),
    4: (VARINT, lambda bits: bits & 0xFFFFFFFF),
    5: (VARINT, int),
    6: (FIXED32, lambda bits: struct.unpack("<f", bits.to_bytes(4, "little"))[0]),
    7: (FIXED64, lambda bits: struct.unpack("<d", bits.to_bytes(8, "little"))[0]),
}
"""Numbers of InferTensorContents: wire type of one value, and its meaning."""


def parse_contents(data: bytes) -> dict[int, list[Any]]:
    """The values of each field that has any, packed or one by one."""
    found: dict[int, list[Any]] = {}
    for (number, wire_type), part in fields(data):
        if (number, wire_type) == (8, TEXT):
            found.setdefault(8, []).append(part)
        elif number in CONTENTS and wire_type in (TEXT, CONTENTS[number][0]):
            natural, meaning = CONTENTS[number]
            bits = read_packed(as_bytes(part), natural) if wire_type == TEXT else [as_number(part)]
            if bits:
                found.setdefault(number, []).extend(map(meaning, bits))
    return found


def read_packed(data: bytes, wire_type: int) -> list[int]:
    """The values of a packed field."""
    values, at = [], 0
    while at < len(data):
        value, at = read_value(data, at, wire_type)
        values.append(as_number(value))
    return values


def parse_input(data: bytes) -> Input:
    """One InferInputTensor."""
    found, entries = Input(), list[None]()
    for tag, part in fields(data):
        if tag == (1, TEXT):
            found.name = text(part)
        elif tag == (2, TEXT):
            found.datatype = text(part)
        elif tag in ((3, VARINT), (3, TEXT)):
            add_dims(found.shape, part)
        elif tag == (4, TEXT):
            add_parameter(found.parameters, entries, part)
        elif tag == (5, TEXT):
            if found.contents is not None:
                raise WireError("TOO_MANY_PARTS")
            found.contents = parse_contents(as_bytes(part))
    return found


def add_dims(shape: list[int], part: Value) -> None:
    """One dimension, or several packed."""
    data, at = (part, 0) if isinstance(part, bytes) else (put_varint(part), 0)
    while at < len(data):
        dim, at = read_varint(data, at)
        if len(shape) == MAX_DIMS:
            raise WireError("TOO_MANY_PARTS")
        shape.append(signed(dim, 64))


def parse_output(data: bytes) -> tuple[str, dict[str, Any]]:
    """Name and parameters of one InferRequestedOutputTensor."""
    name, parameters, entries = "", dict[str, Any](), list[None]()
    for tag, part in fields(data):
        if tag == (1, TEXT):
            name = text(part)
        elif tag == (2, TEXT):
            add_parameter(parameters, entries, part)
    return name, parameters


def parse_request(body: bytes) -> Request:
    """The parts of a body."""
    found, entries = Request(), list[None]()
    parts: dict[int, tuple[list[Any], Callable[[bytes], Any]]] = {
        5: (found.inputs, parse_input),
        6: (found.outputs, parse_output),
        7: (found.raws, bytes),
    }
    for (number, wire_type), part in fields(body):
        if wire_type != TEXT:
            continue
        if number in (1, 2, 3):
            setattr(found, ("model_name", "model_version", "id")[number - 1], text(part))
        elif number == 4:
            add_parameter(found.parameters, entries, part)
        elif number in parts:
            held, reader = parts[number]
            if len(held) == MAX_TENSORS:
                raise WireError("TOO_MANY_PARTS")
            held.append(reader(as_bytes(part)))
    return found


def parse(body: bytes) -> dict[str, Any]:
    """A request as plain values, as `wire.parse` gives it."""
    request = parse_request(body)
    inputs = [
        {"name": i.name, "datatype": i.datatype, "shape": i.shape, "contents": i.contents} for i in request.inputs
    ]
    return {
        "model_name": request.model_name,
        "model_version": request.model_version,
        "id": request.id,
        "timeout_us": request.timeout_us,
        "timing": request.timing,
        "inputs": inputs,
        "outputs": [name for name, _ in request.outputs],
        "raws": request.raws,
    }


def peek(body: bytes) -> tuple[bytes, bytes]:
    """Model name and version, the last of each."""
    found = {1: b"", 2: b""}
    for (number, wire_type), part in fields(body):
        if number in found and wire_type == TEXT:
            found[number] = as_bytes(part)
    return found[1], found[2]


# ---- A request against a plan ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Slot:
    """One input that a version takes; kind is tensor, matrix, entity or column."""

    name: str
    datatype: str
    shape: Sequence[int]
    kind: str
    optional: bool


@dataclass
class Plan:
    """What a version takes and gives: the arguments of `wire.Plan`."""

    model_name: str
    model_version: str
    inputs: Sequence[tuple[Any, ...]]
    outputs: Sequence[tuple[Any, ...]]
    columns: Sequence[str] = ()
    batched: bool = True
    parameters: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        self.slots = [Slot(*entry) for entry in self.inputs]
        self.slots += [Slot(name, "FP32", (), "column", optional=True) for name in self.columns]
        self.kinds = {slot.kind: slot for slot in self.slots if slot.kind in ("matrix", "entity")}


@dataclass
class Fed:
    """One input that fits: its slot and its values, of its own datatype and shape."""

    slot: Slot
    datatype: str
    shape: list[int]
    values: Any  # an array, or a list of bytes


def takes_datatype(slot: Slot, datatype: str) -> bool:
    """A column takes any number but the half-precision ones, an entity id text or INT64, a tensor just its own."""
    if slot.kind == "column":
        return datatype in FIELDS and datatype != "BYTES"
    return datatype in ("BYTES", "INT64") if slot.kind == "entity" else datatype == slot.datatype


def takes_shape(slot: Slot, shape: list[int], *, batched: bool) -> bool:
    """Whether the dimensions fit; a column or entity is [n] or [n, 1]."""
    if slot.kind in ("column", "entity"):
        return len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)
    row = shape[1:] if batched else shape
    fits = len(row) == len(slot.shape) and all(w in (-1, got) for w, got in zip(slot.shape, row, strict=True))
    return fits and len(shape) >= int(batched)


def count_elements(shape: list[int]) -> int | None:
    """Values of the whole tensor; None where a dimension is negative or the product of all but zeros leaves 2**40."""
    elements = 1
    for dim in shape:
        if dim < 0 or elements * dim > MAX_ELEMENTS:
            return None
        elements *= dim or 1
    return 0 if 0 in shape else elements


def read_raw(raw: bytes, datatype: str, elements: int) -> Any:
    """The values of a raw tensor."""
    if datatype != "BYTES":
        if len(raw) != elements * np.dtype(NUMPY[datatype]).itemsize:
            raise WireError("WRONG_RAW_SIZE")
        return np.frombuffer(raw, "u1") != 0 if datatype == "BOOL" else np.frombuffer(raw, NUMPY[datatype])
    values, at = [], 0
    while at < len(raw):
        end = at + 4 + int.from_bytes(raw[at : at + 4], "little")
        if at + 4 > len(raw) or end > len(raw):
            raise WireError("BAD_BYTES_LENGTH")
        values.append(raw[at + 4 : end])
        at = end
    if len(values) != elements:
        raise WireError("WRONG_CONTENTS_COUNT")
    return values


def read_contents(contents: dict[int, list[Any]], datatype: str, elements: int) -> Any:
    """The values of typed contents."""
    number = FIELDS.get(datatype, 0)
    values = contents.get(number, [])
    if contents.keys() - {number} or (number == 0 and elements > 0):
        raise WireError("WRONG_CONTENTS_FIELD")
    if len(values) != elements:
        raise WireError("WRONG_CONTENTS_COUNT")
    if datatype == "BYTES":
        return values
    if datatype in ("INT8", "INT16", "UINT8", "UINT16"):
        bounds = np.iinfo(NUMPY[datatype])
        if any(not bounds.min <= value <= bounds.max for value in values):
            raise WireError("VALUE_OUT_OF_RANGE")
    return np.array(values, NUMPY[datatype])


def match_input(plan: Plan, request: Request, index: int, rows: int) -> Fed:
    """Input `index` held against the plan; `rows` is -1 where any number will do."""
    sent = request.inputs[index]
    slot = next((slot for slot in plan.slots if slot.name == sent.name), None)
    if slot is None:
        raise WireError("UNKNOWN_INPUT")
    if "shared_memory_region" in sent.parameters:
        raise WireError("SHARED_MEMORY")
    if not takes_datatype(slot, sent.datatype):
        raise WireError("WRONG_DATATYPE")
    elements = count_elements(sent.shape)
    if elements is None or not takes_shape(slot, sent.shape, batched=plan.batched):
        raise WireError("WRONG_SHAPE")
    if (sent.datatype == "BYTES" or slot.kind == "entity") and elements > MAX_TEXTS:
        raise WireError("TOO_MANY_TEXTS")
    if rows >= 0 and sent.shape[0] != rows:
        raise WireError("BATCH_MISMATCH")
    if not request.raws:
        return Fed(slot, sent.datatype, sent.shape, read_contents(sent.contents or {}, sent.datatype, elements))
    if sent.contents is not None:
        raise WireError("CONTENTS_AND_RAW")
    return Fed(slot, sent.datatype, sent.shape, read_raw(request.raws[index], sent.datatype, elements))


def match_presence(plan: Plan, fed: dict[str, Fed]) -> None:
    """All that the version needs is there: each tensor; the matrix, the entity id or every column."""
    if any(not slot.optional and slot.name not in fed for slot in plan.slots):
        raise WireError("MISSING_INPUT")
    if "matrix" not in plan.kinds or any(slot.name in fed for slot in plan.kinds.values()):
        return
    if not all(name in fed for name in plan.columns):
        raise WireError("MISSING_FEATURES")


def match_outputs(plan: Plan, request: Request) -> list[int]:
    """The outputs of the plan that the caller wants."""
    if not request.outputs:
        return [index for index, output in enumerate(plan.outputs) if not output[3]]
    for parameter, fault in (("classification", "CLASSIFICATION"), ("shared_memory_region", "SHARED_MEMORY")):
        if any(parameter in parameters for _, parameters in request.outputs):
            raise WireError(fault)
    names = [output[0] for output in plan.outputs]
    if any(name not in names for name, _ in request.outputs):
        raise WireError("UNKNOWN_OUTPUT")
    return sorted({names.index(name) for name, _ in request.outputs})


def match(plan: Plan, request: Request) -> tuple[dict[str, Fed], list[int], int]:
    """Everything that is fed, by name; the outputs wanted; the rows."""
    fed: dict[str, Fed] = {}
    rows = -1 if plan.batched else 1
    if request.raws and len(request.raws) != len(request.inputs):
        raise WireError("WRONG_RAW_COUNT")
    for index in range(len(request.inputs)):
        found = match_input(plan, request, index, rows if plan.batched else -1)
        if found.slot.name in fed:
            raise WireError("DUPLICATE_INPUT")
        fed[found.slot.name] = found
        rows = found.shape[0] if plan.batched else 1
    match_presence(plan, fed)
    if rows <= 0:
        raise WireError("NO_ROWS")
    return fed, match_outputs(plan, request), rows


def decode(plan: Plan, body: bytes) -> tuple[dict[str, Any], NDArray[np.uint8] | None, int]:
    """(arrays, source, rows) as `wire.decode` gives them: columns override the matrix, NaN is what nobody sent."""
    fed, _, rows = match(plan, parse_request(body))
    arrays: dict[str, Any] = {}
    source = None
    if "matrix" in plan.kinds:
        source = np.zeros((rows, len(plan.columns)), "u1")
        arrays[plan.kinds["matrix"].name] = np.full(source.shape, np.nan, "f4")
    for found in sorted(fed.values(), key=lambda f: f.slot.kind == "column"):
        if found.slot.kind == "column":
            assert source is not None
            place = plan.columns.index(found.slot.name)
            with np.errstate(over="ignore"):
                arrays[plan.kinds["matrix"].name][:, place] = found.values.astype("f4")
            source[:, place] = 1
        elif found.slot.kind == "entity" or found.datatype == "BYTES":
            arrays[found.slot.name] = [v if isinstance(v, bytes) else b"%d" % v for v in found.values]
        else:
            arrays[found.slot.name] = np.array(found.values).reshape(found.shape)
            if found.slot.kind == "matrix":
                assert source is not None
                source[:] = 1
    return arrays, source, rows


# ---- Answers --------------------------------------------------------------------------------------------------------


def put_varint(value: int) -> bytes:
    """A non-negative number as protobuf writes it."""
    digits = bytearray()
    while value >= 0x80:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*digits, value])


def put_field(number: int, value: str | bytes) -> bytes:
    """A length-delimited field."""
    data = value.encode() if isinstance(value, str) else value
    return put_varint(number << 3 | TEXT) + put_varint(len(data)) + data


def put_parameter(key: str, value: str | int) -> bytes:
    """One entry of `parameters`: a string_param or an int64_param."""
    choice = put_field(3, value) if isinstance(value, str) else put_varint(2 << 3) + put_varint(value)
    return put_field(4, put_field(1, key) + put_field(2, choice))


def put_values(values: NDArray[Any], datatype: str) -> bytes:
    """A tensor's raw contents."""
    if datatype != "BYTES":
        return values.tobytes()
    texts = [v if isinstance(v, bytes) else str(v).encode() for v in values.ravel().tolist()]
    return b"".join(struct.pack("<I", len(v)) + v for v in texts)


def encode(
    plan: Plan,
    body: bytes,
    outputs: Mapping[str, NDArray[Any]],
    row: int = 0,
    timing: tuple[int, int, int, int] | None = None,
) -> bytes:
    """The answer to one request whose rows begin at `row` of a batch's outputs, byte for byte that of `wire.encode`."""
    request = parse_request(body)
    _, wanted, rows = match(plan, request)
    answer = put_field(1, plan.model_name) + put_field(2, plan.model_version)
    answer += b"".join(put_parameter(key, value) for key, value in (plan.parameters or {}).items())
    answer += put_field(3, request.id) if request.id else b""
    if timing is not None:
        answer += b"".join(map(put_parameter, ("batch_rows", "queue_us", "lookup_us", "compute_us"), timing))
    raws = b""
    for name, datatype, *_ in (plan.outputs[index] for index in wanted):
        part = outputs[name][row : row + rows] if plan.batched else np.asarray(outputs[name])
        shape = b"".join(put_varint(size) for size in part.shape)
        answer += put_field(5, put_field(1, name) + put_field(2, datatype) + put_field(3, shape))
        raws += put_field(6, put_values(part, datatype))
    return answer + raws
