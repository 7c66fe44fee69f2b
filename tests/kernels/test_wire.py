"""The codec: kernel, twin and protobuf see the same request and the same answer; what is refused says why."""

from __future__ import annotations

import math
import re
import struct

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from penstock.kernels import wire as kernel
from penstock.kernels.reference import wire as reference
from penstock.proto import inference_pb2 as pb

TWINS = pytest.mark.parametrize("wire", [kernel, reference], ids=["kernel", "reference"])
FIELD_NAMES = (
    "", "bool_contents", "int_contents", "int64_contents", "uint_contents", "uint64_contents", "fp32_contents",
    "fp64_contents", "bytes_contents",
)  # fmt: skip
COLUMNS = ("a", "b", "c")


# ---- Helpers --------------------------------------------------------------------------------------------------------


def exactly(value):
    """A value in which NaN equals NaN, -0 is not 0, and True is not 1."""
    if isinstance(value, float):
        return ("float", struct.pack("<d", value) if value == value else "nan")
    if isinstance(value, dict):
        return {key: exactly(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [exactly(item) for item in value]
    if isinstance(value, np.ndarray):
        return (value.shape, value.dtype.str, exactly(value.tolist()))
    return (type(value).__name__, value)


def by_protobuf(body: bytes):
    """What `parse` must give, by the protobuf library."""
    message = pb.ModelInferRequest.FromString(body)
    timeout, timing = message.parameters.get("timeout"), message.parameters.get("timing")
    number = 0
    if timeout is not None and timeout.WhichOneof("parameter_choice") in ("int64_param", "uint64_param"):
        number = timeout.int64_param or timeout.uint64_param
    inputs = [
        {
            "name": i.name,
            "datatype": i.datatype,
            "shape": list(i.shape),
            "contents": {
                number: list(getattr(i.contents, name))
                for number, name in enumerate(FIELD_NAMES)
                if name and getattr(i.contents, name)
            }
            if i.HasField("contents")
            else None,
        }
        for i in message.inputs
    ]
    return {
        "model_name": message.model_name,
        "model_version": message.model_version,
        "id": message.id,
        "timeout_us": min(number, 1 << 50) if 0 < number < 1 << 63 else 0,
        "timing": timing is not None and timing.bool_param,
        "inputs": inputs,
        "outputs": [o.name for o in message.outputs],
        "raws": list(message.raw_input_contents),
    }


def varint(value: int, extra: int = 0) -> bytes:
    """A varint, `extra` bytes longer than it need be."""
    digits = bytearray(reference.put_varint(value % (1 << 64)))
    for _ in range(min(extra, 10 - len(digits))):
        digits[-1] |= 0x80
        digits.append(0)
    return bytes(digits)


def delimited(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def body_of(*inputs, outputs=(), raws=(), parameters=None, **top) -> bytes:
    """A request by protobuf; an input is (name, datatype, shape, {field: values})."""
    message = pb.ModelInferRequest(model_name="fraud", raw_input_contents=raws, **top)
    for name, datatype, shape, contents in inputs:
        tensor = message.inputs.add(name=name, datatype=datatype, shape=shape)
        for field, values in (contents or {}).items():
            getattr(tensor.contents, field).extend(values)
    for name in outputs:
        message.outputs.add(name=name)
    for key, value in (parameters or {}).items():
        message.parameters[key].CopyFrom(value)
    return message.SerializeToString()


def raw_texts(*values: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(v)) + v for v in values)


def plans(inputs=(), outputs=(("y", "FP32", (), False),), columns=(), batched=True, parameters=None):
    """The same plan for kernel and twin."""
    arguments = ("fraud", "7", inputs, outputs, columns, batched, parameters)
    return {kernel: kernel.Plan(*arguments), reference: reference.Plan(*arguments)}


def tensor_plans(datatype="FP32", shape=(2,), batched=True):
    return plans([("x", datatype, shape, "tensor", False)], batched=batched)


MATRIX = ("m", "FP32", (3,), "matrix", True)
ENTITY = ("card", "BYTES", (1,), "entity", True)
vector = plans([MATRIX], columns=COLUMNS)
joined = plans([ENTITY, MATRIX], columns=COLUMNS)


def fault_of(wire, plan, body: bytes) -> str:
    with pytest.raises(wire.WireError) as caught:
        wire.decode(plan[wire], body)
    return caught.value.fault


# ---- Grammar, with protobuf as referee ------------------------------------------------------------------------------

short = st.text(max_size=5)
u64 = st.integers(0, 2**64 - 1) | st.sampled_from([0, 1, 127, 128, 2**31, 2**32 - 1, 2**63, 2**64 - 1])
extra = st.sampled_from([0, 0, 0, 1, 4, 9])


@st.composite
def numbers(draw, field: int) -> bytes:
    """One value of a field of InferTensorContents, without its tag."""
    if field == 6:
        return draw(st.binary(min_size=4, max_size=4) | st.floats(width=32).map(lambda v: struct.pack("<f", v)))
    if field == 7:
        return draw(st.binary(min_size=8, max_size=8) | st.floats().map(lambda v: struct.pack("<d", v)))
    return varint(draw(u64), draw(extra))


@st.composite
def contents(draw) -> bytes:
    """InferTensorContents: fields of any kind in any order, packed and unpacked, some unknown."""
    parts = []
    for field in draw(st.lists(st.integers(1, 9), max_size=4)):
        if field == 8:
            parts.append(delimited(8, draw(st.binary(max_size=6))))
        elif field == 9:
            parts.append(draw(unknown()))
        else:
            values = draw(st.lists(numbers(field), max_size=4))
            wire_type = {6: 5, 7: 1}.get(field, 0)
            packed = draw(st.booleans())
            parts += (
                [delimited(field, b"".join(values))] if packed else [varint(field << 3 | wire_type) + v for v in values]
            )
    return b"".join(parts)


@st.composite
def unknown(draw) -> bytes:
    """A field that no message here has, or one of the wrong wire type."""
    number = draw(st.integers(20, 2**29 - 1) | st.just(1))
    wire_type = draw(st.sampled_from([0, 1, 2, 5]) if number > 1 else st.sampled_from([0, 1, 5]))
    value = {0: varint(draw(u64)), 1: bytes(8), 2: varint(3) + b"\x0a\xff\x01", 5: bytes(4)}[wire_type]
    return varint(number << 3 | wire_type) + value


@st.composite
def parameter(draw, field: int) -> bytes:
    """An entry of a map of parameters; keys the server knows are likely, kinds are any."""
    key = draw(st.sampled_from(["timeout", "timing", "classification", "shared_memory_region"]) | short)
    choices = st.sampled_from([1, 2, 3, 4, 5]).flatmap(
        lambda n: st.just(delimited(3, b"text")) if n == 3 else
        st.just(varint(4 << 3 | 1) + bytes(8)) if n == 4 else u64.map(lambda v: varint(n << 3) + varint(v))
    )  # fmt: skip
    value = b"".join(draw(st.lists(choices, max_size=2)))
    parts = [delimited(1, key.encode()), delimited(2, value)]
    return delimited(field, b"".join(draw(st.permutations(parts))[: draw(st.integers(1, 2))]))


@st.composite
def inputs(draw) -> bytes:
    """An InferInputTensor; names and datatypes may be repeated (the last counts), shapes packed or not."""
    parts = [delimited(1, draw(short).encode()) for _ in range(draw(st.integers(0, 2)))]
    names = st.sampled_from(kernel.DATATYPES[1:]) | short
    parts += [delimited(2, draw(names).encode()) for _ in range(draw(st.integers(0, 2)))]
    dims = [varint(draw(u64), draw(extra)) for _ in range(draw(st.integers(0, 4)))]
    parts += [delimited(3, b"".join(dims))] if draw(st.booleans()) else [varint(3 << 3) + dim for dim in dims]
    parts += draw(st.lists(parameter(4), max_size=2)) + draw(st.lists(unknown(), max_size=1))
    if draw(st.booleans()):
        parts.append(delimited(5, draw(contents())))
    return delimited(5, b"".join(draw(st.permutations(parts))))


@st.composite
def requests(draw) -> bytes:
    parts = [delimited(number, draw(short).encode()) for number in draw(st.lists(st.integers(1, 3), max_size=5))]
    parts += draw(st.lists(inputs(), max_size=3))
    parts += draw(st.lists(parameter(4), max_size=2)) + draw(st.lists(unknown(), max_size=2))
    parts += [delimited(6, delimited(1, name.encode())) for name in draw(st.lists(short, max_size=2))]
    parts += [delimited(7, raw) for raw in draw(st.lists(st.binary(max_size=9), max_size=2))]
    return b"".join(draw(st.permutations(parts)))


@settings(max_examples=400)
@given(requests())
def test_kernel_and_twin_find_in_any_request_what_protobuf_finds(body):
    wanted = exactly(by_protobuf(body))
    assert exactly(kernel.parse(body)) == wanted
    assert exactly(reference.parse(body)) == wanted


@settings(max_examples=200)
@given(requests())
def test_peek_gives_the_names_that_protobuf_reads(body):
    message = pb.ModelInferRequest.FromString(body)
    names = (message.model_name.encode(), message.model_version.encode())
    assert kernel.peek(body) == reference.peek(body) == names


def test_peek_sees_a_version_that_stands_behind_the_inputs():
    body = body_of(("x", "FP32", [1], {}), raws=[bytes(4)]) + delimited(2, b"3")
    assert kernel.peek(body) == reference.peek(body) == (b"fraud", b"3")


@pytest.mark.parametrize("body", [b"\x0a", b"\x0a\x05ab", b"\x00\x00", b"\xff" * 11, b"\x0b\x0c", b"\x2a\x02\x0a\x05"])
def test_peek_refuses_what_is_not_a_message(body):
    for wire in (kernel, reference):
        if body[0] != 0x2A:  # peek does not look into inputs
            with pytest.raises(wire.WireError):
                wire.peek(body)
        with pytest.raises(wire.WireError):
            wire.parse(body)


@TWINS
@given(st.binary(max_size=4) | st.text(max_size=3).map(str.encode) | st.sampled_from([
    b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\x80", b"\xc1\xbf", b"\xe0\x80\x80", b"\xf0\x80\x80\x80",
    b"\xef\xbf\xbf", b"\xf4\x8f\xbf\xbf", b"\xe2\x82", b"\x80", b"\xf8\x88\x80\x80\x80",
]))  # fmt: skip
def test_text_must_be_utf_8_just_as_python_and_protobuf_hold(wire, name):
    body = delimited(1, name)
    try:
        name.decode()
    except UnicodeDecodeError:
        with pytest.raises(wire.WireError):
            wire.parse(body)
    else:
        assert wire.parse(body)["model_name"] == name.decode()


STRICTER = [
    delimited(5, delimited(3, bytes([1] * 9))),  # 9 dimensions
    delimited(5, b"") * 1025,
    delimited(6, b"") * 1025,
    delimited(7, b"") * 1025,
    delimited(4, delimited(1, b"k")) * 65,
    delimited(5, delimited(4, b"") * 65),
    delimited(6, delimited(2, b"") * 65),
    delimited(5, delimited(5, b"") * 2),
]


@TWINS
@pytest.mark.parametrize("body", STRICTER, ids=range(len(STRICTER)))
def test_too_many_parts_are_refused_though_protobuf_takes_them(wire, body):
    pb.ModelInferRequest.FromString(body)
    with pytest.raises(wire.WireError) as caught:
        wire.parse(body)
    assert caught.value.fault == "TOO_MANY_PARTS"


@TWINS
@pytest.mark.parametrize("body", [b"\xa3\x06\xa4\x06", delimited(5, b"\xa3\x06\x08\x01\xa4\x06")])
def test_groups_are_refused_though_protobuf_skips_them(wire, body):
    pb.ModelInferRequest.FromString(body)
    with pytest.raises(wire.WireError) as caught:
        wire.parse(body)
    assert caught.value.fault == "MALFORMED"


@TWINS
def test_the_most_parts_allowed_are_taken(wire):
    inputs = [delimited(5, delimited(3, bytes([1] * 8)))] * 1024
    body = b"".join(inputs) + delimited(6, b"") * 1024 + delimited(7, b"x") * 1024 + delimited(4, b"") * 64
    found = wire.parse(body)
    assert (len(found["inputs"]), len(found["outputs"]), len(found["raws"])) == (1024, 1024, 1024)
    assert found["inputs"][1023]["shape"] == [1] * 8


@TWINS
@pytest.mark.parametrize(("number", "timeout_us"), [(5, 5), (2**63 - 1, 2**50), (-1, 0), (0, 0)])
def test_a_timeout_is_bounded_so_that_no_deadline_overflows(wire, number, timeout_us):
    body = body_of(parameters={"timeout": pb.InferParameter(int64_param=number)})
    assert wire.parse(body)["timeout_us"] == timeout_us


def test_gates_take_bytes_and_plans_only():
    for call in (kernel.parse, kernel.peek):
        for wrong in (None, "text", bytearray(2)):
            with pytest.raises(TypeError):
                call(wrong)
    with pytest.raises(TypeError):
        kernel.decode(None, b"")
    with pytest.raises(TypeError):
        kernel.decode(vector[kernel], None)
    with pytest.raises(TypeError):
        kernel.encode(vector[kernel], None, {})


# ---- Values ---------------------------------------------------------------------------------------------------------

DTYPES = sorted(kernel.NUMPY)


def arrays_of(datatype: str, size: int) -> st.SearchStrategy:
    """Arrays of `size` values of a datatype, every bit pattern among them."""
    dtype = np.dtype(kernel.NUMPY[datatype])
    if datatype == "BOOL":
        return st.lists(st.booleans(), min_size=size, max_size=size).map(lambda v: np.array(v, "?"))
    data = st.binary(min_size=size * dtype.itemsize, max_size=size * dtype.itemsize)
    return data.map(lambda b: np.frombuffer(b, dtype))


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@TWINS
@pytest.mark.parametrize("datatype", DTYPES)
@settings(max_examples=20)
@given(st.data(), st.integers(1, 3))
def test_raw_tensors_of_every_datatype_come_through_to_the_bit(wire, datatype, data, rows):
    values = data.draw(arrays_of(datatype, rows * 2)).reshape(rows, 2)
    plan = tensor_plans(datatype)
    arrays, source, found = wire.decode(plan[wire], body_of(("x", datatype, [rows, 2], None), raws=[values.tobytes()]))
    assert same_bits(arrays["x"], values)
    assert (source, found) == (None, rows)


@TWINS
@pytest.mark.parametrize("datatype", sorted(reference.FIELDS.keys() - {"BYTES"}))
@settings(max_examples=20)
@given(st.data(), st.integers(1, 3), st.booleans())
def test_typed_contents_of_every_datatype_come_through(wire, datatype, data, rows, packed):
    values = data.draw(arrays_of(datatype, rows * 2)).reshape(rows, 2)
    field = reference.FIELDS[datatype]
    written = pb.InferTensorContents(**{FIELD_NAMES[field]: values.ravel().tolist()}).SerializeToString()
    if not packed:
        bits = reference.read_packed(next(reference.fields(written))[1], {6: 5, 7: 1}.get(field, 0))
        kinds = {6: (5, lambda v: v.to_bytes(4, "little")), 7: (1, lambda v: v.to_bytes(8, "little"))}
        wire_type, put = kinds.get(field, (0, varint))
        written = b"".join(varint(field << 3 | wire_type) + put(v) for v in bits)
    tensor = pb.ModelInferRequest.InferInputTensor(name="x", datatype=datatype, shape=[rows, 2]).SerializeToString()
    arrays, _, _ = wire.decode(tensor_plans(datatype)[wire], delimited(5, tensor + delimited(5, written)))
    np.testing.assert_array_equal(arrays["x"], values)  # a signalling NaN may turn quiet in Python's floats
    assert arrays["x"].dtype == values.dtype


@TWINS
@given(st.lists(st.binary(max_size=6), min_size=1, max_size=4), st.booleans())
def test_texts_come_through_raw_and_typed(wire, values, raw):
    sent = ("x", "BYTES", [len(values)], None if raw else {"bytes_contents": values})
    body = body_of(sent, raws=[raw_texts(*values)] if raw else [])
    arrays, _, rows = wire.decode(tensor_plans("BYTES", ())[wire], body)
    assert (arrays["x"], rows) == (values, len(values))


@TWINS
def test_any_byte_but_zero_is_true(wire):
    arrays, _, _ = wire.decode(tensor_plans("BOOL")[wire], body_of(("x", "BOOL", [1, 2], None), raws=[b"\x07\x00"]))
    assert arrays["x"].tolist() == [[True, False]]
    assert arrays["x"].tobytes() == b"\x01\x00"


@TWINS
@pytest.mark.parametrize("shape", [(-1,), (-1, 2), (2, -1, 1)])
def test_free_dimensions_take_any_size(wire, shape):
    full = [3, *(2 if size < 0 else size for size in shape)]
    values = np.arange(math.prod(full), dtype="f4").reshape(full)
    plan = tensor_plans("FP32", shape)
    arrays, _, rows = wire.decode(plan[wire], body_of(("x", "FP32", full, None), raws=[values.tobytes()]))
    assert rows == 3
    assert same_bits(arrays["x"], values)


@TWINS
def test_a_tensor_of_no_values_is_taken(wire):
    arrays, _, rows = wire.decode(tensor_plans("FP32", (-1,))[wire], body_of(("x", "FP32", [2, 0], None), raws=[b""]))
    assert (arrays["x"].shape, rows) == ((2, 0), 2)
    arrays, _, rows = wire.decode(tensor_plans("BF16", (-1,))[wire], body_of(("x", "BF16", [2, 0], None)))
    assert (arrays["x"].shape, rows) == ((2, 0), 2)


@TWINS
def test_a_version_without_a_batch_dimension_takes_its_shape_as_it_is(wire):
    plan = tensor_plans("INT32", (2, 2), batched=False)
    arrays, _, rows = wire.decode(plan[wire], body_of(("x", "INT32", [2, 2], {"int_contents": [1, -2, 3, 4]})))
    assert (arrays["x"].tolist(), rows) == ([[1, -2], [3, 4]], 1)
    scalar = tensor_plans("INT32", (), batched=False)
    arrays, _, _ = wire.decode(scalar[wire], body_of(("x", "INT32", [], {"int_contents": [9]})))
    assert arrays["x"].shape == ()


@st.composite
def vectors(draw):
    """A request for a matrix of columns: the matrix or not, some columns of any number type, raw or typed."""
    rows = draw(st.integers(1, 3))
    sent = [("m", "FP32", [rows, 3], draw(arrays_of("FP32", rows * 3)))] if draw(st.booleans()) else []
    for name in draw(st.lists(st.sampled_from(COLUMNS), unique=True)):
        datatype = draw(st.sampled_from(sorted(reference.FIELDS.keys() - {"BYTES"})))
        shape = draw(st.sampled_from([[rows], [rows, 1]]))
        sent.append((name, datatype, shape, draw(arrays_of(datatype, rows))))
    if draw(st.booleans()):
        sent.append(("card", "INT64", [rows], draw(arrays_of("INT64", rows))))
    sent = draw(st.permutations(sent))
    if draw(st.booleans()):
        return body_of(*[(*head, None) for *head, _ in sent], raws=[v.tobytes() for *_, v in sent])
    typed = [(*head, {FIELD_NAMES[reference.FIELDS[head[1]]]: v.tolist()}) for *head, v in sent]
    return body_of(*typed)


def outcome(wire, plan, body):
    """What decode gives, or which fault."""
    try:
        return exactly(wire.decode(plan[wire], body))
    except wire.WireError as error:
        return error.fault


@settings(max_examples=300)
@given(vectors(), st.sampled_from(["vector", "joined"]))
def test_kernel_and_twin_put_the_same_matrix_together(body, which):
    plan = {"vector": vector, "joined": joined}[which]
    assert outcome(kernel, plan, body) == outcome(reference, plan, body)


@settings(max_examples=300)
@given(requests(), st.sampled_from(sorted(kernel.DATATYPES[1:])))
def test_kernel_and_twin_refuse_any_request_for_the_same_reason(body, datatype):
    plan = tensor_plans(datatype, (-1,))
    assert outcome(kernel, plan, body) == outcome(reference, plan, body)


@TWINS
def test_a_column_by_name_overrides_the_matrix_and_nan_is_kept(wire):
    body = body_of(
        ("b", "FP64", [2], {"fp64_contents": [math.nan, 20.5]}), ("m", "FP32", [2, 3], {"fp32_contents": range(6)})
    )
    arrays, source, rows = wire.decode(vector[wire], body)
    np.testing.assert_array_equal(arrays["m"], np.array([[0, math.nan, 2], [3, 20.5, 5]], "f4"))
    assert (source.tolist(), rows) == ([[1, 1, 1]] * 2, 2)


@TWINS
def test_columns_alone_make_the_matrix_whatever_their_types(wire):
    big = 2**60 + 2**36 + 1  # through float64 this would be rounded twice
    body = body_of(
        ("c", "BOOL", [1, 1], {"bool_contents": [True]}),
        ("a", "INT64", [1], {"int64_contents": [big]}),
        ("b", "FP64", [1], {"fp64_contents": [1e300]}),
    )
    arrays, _, _ = wire.decode(vector[wire], body)
    np.testing.assert_array_equal(arrays["m"], np.array([[np.float32(np.int64(big)), np.inf, 1]], "f4"))


@TWINS
def test_entity_ids_are_texts_or_integers_and_what_was_not_sent_is_nan(wire):
    sent = ("b", "UINT8", [2], {"uint_contents": [7, 8]})
    arrays, source, _ = wire.decode(
        joined[wire], body_of(sent, ("card", "INT64", [2, 1], {"int64_contents": [-5, 2**40]}))
    )
    assert arrays["card"] == [b"-5", b"1099511627776"]
    assert source.tolist() == [[0, 1, 0]] * 2
    np.testing.assert_array_equal(arrays["m"], np.array([[math.nan, 7, math.nan], [math.nan, 8, math.nan]], "f4"))
    arrays, _, _ = wire.decode(
        joined[wire], body_of(sent, ("card", "BYTES", [2], {"bytes_contents": [b"", b"\xff\0"]}))
    )
    assert arrays["card"] == [b"", b"\xff\0"]


# ---- Refusals -------------------------------------------------------------------------------------------------------

X = ("x", "FP32", [1, 2], {"fp32_contents": [1, 2]})
two = plans([("x", "FP32", (2,), "tensor", False), ("z", "FP32", (), "tensor", False)])
Z = ("z", "FP32", [1], {"fp32_contents": [1]})


def with_parameter(key: str, output: bool) -> bytes:
    """A request whose input or requested output has a parameter."""
    message = pb.ModelInferRequest.FromString(body_of(X, outputs=["y"]))
    (message.outputs if output else message.inputs)[0].parameters[key].string_param = "s"
    return message.SerializeToString()


def with_contents_and_raw() -> bytes:
    return body_of(X, raws=[bytes(8)])


one = tensor_plans()
int8, uint16, texts, half = (tensor_plans(d, ()) for d in ("INT8", "UINT16", "BYTES", "FP16"))
REFUSALS = [
    ("MALFORMED", one, b"\x0a\x05ab", "the request is not a well-formed ModelInferRequest"),
    (
        "TOO_MANY_PARTS",
        one,
        delimited(7, b"") * 1025,
        "the request has more parts than are served: more than 8 dimensions",
    ),
    (
        "UNKNOWN_INPUT",
        one,
        body_of(X, ("q\n", "FP32", [1], {})),
        "unexpected inference input 'q?' for model 'fraud'; it takes 'x'",
    ),
    ("DUPLICATE_INPUT", one, body_of(X, X), "input 'x' was sent twice for model 'fraud'"),
    ("MISSING_INPUT", two, body_of(X), "input 'z' is missing for model 'fraud'; it takes 'x', 'z'"),
    ("MISSING_INPUT", one, body_of(), "input 'x' is missing for model 'fraud'; it takes 'x'"),
    ("MISSING_INPUT", one, b"", "input 'x' is missing for model ''; it takes 'x'"),
    (
        "WRONG_DATATYPE",
        one,
        body_of(("x", "FP64", [1, 2], {})),
        "inference input 'x' data-type is 'FP64', but model 'fraud' expects 'FP32'",
    ),
    ("WRONG_DATATYPE", one, body_of(("x", "fp32", [1, 2], {})), "data-type is 'fp32'"),
    ("WRONG_DATATYPE", vector, body_of(("a", "BYTES", [1], {})), "expects any number type"),
    ("WRONG_DATATYPE", vector, body_of(("a", "FP16", [1], {})), "expects any number type"),
    ("WRONG_DATATYPE", joined, body_of(("card", "INT32", [1], {})), "expects 'BYTES' or 'INT64'"),
    (
        "WRONG_SHAPE",
        one,
        body_of(("x", "FP32", [1, 3], {})),
        "unexpected shape for input 'x' for model 'fraud'. Expected [-1,2], got [1,3].",
    ),
    ("WRONG_SHAPE", one, body_of(("x", "FP32", [2], {})), "Expected [-1,2], got [2]."),
    ("WRONG_SHAPE", one, body_of(("x", "FP32", [], {})), "Expected [-1,2], got []."),
    ("WRONG_SHAPE", one, body_of(("x", "FP32", [-1, 2], {})), "Expected [-1,2], got [-1,2]."),
    ("WRONG_SHAPE", one, body_of(("x", "FP32", [2**60, 2], {})), "got [1152921504606846976,2]."),
    ("WRONG_SHAPE", one, body_of(("x", "FP32", [2**63 - 1, 2], {})), "got [9223372036854775807,2]."),
    (
        "WRONG_SHAPE",
        tensor_plans("FP32", (-1, -1)),
        body_of(("x", "FP32", [2**32, 2**32, 1], {})),
        "got [4294967296,4294967296,1].",
    ),
    (
        "WRONG_SHAPE",
        tensor_plans("FP32", (-1, -1)),
        body_of(("x", "FP32", [2**40, 0, 2**40], {})),
        "got [1099511627776,0,1099511627776].",
    ),
    (
        "WRONG_SHAPE",
        tensor_plans("FP32", (-1,)),
        body_of(("x", "FP32", [1, -(2**63)], {})),
        "got [1,-9223372036854775808].",
    ),
    ("WRONG_SHAPE", vector, body_of(("a", "FP32", [1, 2], {})), "Expected [n] or [n,1], got [1,2]."),
    ("WRONG_SHAPE", vector, body_of(("m", "FP32", [1, 2], {})), "Expected [-1,3], got [1,2]."),
    (
        "WRONG_RAW_COUNT",
        two,
        body_of(("x", "FP32", [1, 2], None), ("z", "FP32", [1], None), raws=[bytes(8)]),
        "the number of inputs (2) does not match the number of raw input contents (1) for model 'fraud'",
    ),
    (
        "WRONG_RAW_SIZE",
        one,
        body_of(("x", "FP32", [1, 2], None), raws=[bytes(7)]),
        "input byte size mismatch for input 'x' for model 'fraud'. Expected 8, got 7.",
    ),
    ("WRONG_RAW_SIZE", one, body_of(("x", "FP32", [2**38, 2], None), raws=[bytes(8)]), f"Expected {2**41}, got 8."),
    (
        "CONTENTS_AND_RAW",
        one,
        with_contents_and_raw(),
        "contents field must not be specified when using raw_input_contents for input 'x' for model 'fraud'",
    ),
    (
        "WRONG_CONTENTS_FIELD",
        one,
        body_of(("x", "FP32", [1, 2], {"fp64_contents": [1, 2]})),
        "input 'x' has values in the wrong field of its contents for model 'fraud'",
    ),
    (
        "WRONG_CONTENTS_FIELD",
        one,
        body_of(("x", "FP32", [1, 2], {"fp32_contents": [1, 2], "bool_contents": [True]})),
        "in the wrong field",
    ),
    (
        "WRONG_CONTENTS_FIELD",
        half,
        body_of(("x", "FP16", [1], {})),
        "input 'x' is FP16, which travels in raw_input_contents only, for model 'fraud'",
    ),
    (
        "WRONG_CONTENTS_COUNT",
        one,
        body_of(("x", "FP32", [1, 2], {"fp32_contents": [1]})),
        "unexpected number of values for input 'x' for model 'fraud'. Expected 2, got 1.",
    ),
    ("WRONG_CONTENTS_COUNT", one, body_of(("x", "FP32", [1, 2], None)), "Expected 2, got 0."),
    (
        "WRONG_CONTENTS_COUNT",
        one,
        body_of(("x", "FP32", [2**38, 2], {"fp32_contents": [1]})),
        f"Expected {2**39}, got 1.",
    ),
    ("WRONG_CONTENTS_COUNT", texts, body_of(("x", "BYTES", [2], None), raws=[raw_texts(b"a")]), "Expected 2, got 1."),
    (
        "TOO_MANY_TEXTS",
        texts,
        body_of(("x", "BYTES", [2**20 + 1], None), raws=[b""]),
        "input 'x' has 1048577 values for model 'fraud'; at most 1048576 are served at once: send fewer rows",
    ),
    (
        "VALUE_OUT_OF_RANGE",
        int8,
        body_of(("x", "INT8", [1], {"int_contents": [128]})),
        "a value of input 'x' does not fit INT8 for model 'fraud'",
    ),
    ("VALUE_OUT_OF_RANGE", int8, body_of(("x", "INT8", [1], {"int_contents": [-129]})), "does not fit INT8"),
    ("VALUE_OUT_OF_RANGE", uint16, body_of(("x", "UINT16", [1], {"uint_contents": [65536]})), "does not fit UINT16"),
    ("VALUE_OUT_OF_RANGE", vector, body_of(("a", "INT16", [1], {"int_contents": [40000]})), "does not fit INT16"),
    (
        "BAD_BYTES_LENGTH",
        texts,
        body_of(("x", "BYTES", [1], None), raws=[b"\x01\x00\x00"]),
        "incomplete string length indicator for input 'x' for model 'fraud': each value is a 4-byte length and its",
    ),
    (
        "BAD_BYTES_LENGTH",
        texts,
        body_of(("x", "BYTES", [1], None), raws=[b"\x02\x00\x00\x00a"]),
        "incomplete string length",
    ),
    (
        "BAD_BYTES_LENGTH",
        texts,
        body_of(("x", "BYTES", [1], None), raws=[b"\xff\xff\xff\xffa"]),
        "incomplete string length",
    ),
    (
        "BATCH_MISMATCH",
        two,
        body_of(X, ("z", "FP32", [2], {"fp32_contents": [1, 2]})),
        "input 'z' batch size does not match other inputs for model 'fraud'. Expected 1, got 2.",
    ),
    (
        "BATCH_MISMATCH",
        vector,
        body_of(("a", "FP32", [1], {"fp32_contents": [1]}), ("b", "FP32", [2**40], {})),
        "Expected 1, got 1099511627776.",
    ),
    (
        "NO_ROWS",
        one,
        body_of(("x", "FP32", [0, 2], {})),
        "the request has no rows for model 'fraud'; send at least one",
    ),
    (
        "UNKNOWN_OUTPUT",
        one,
        body_of(X, outputs=["y", "w"]),
        "unexpected inference output 'w' for model 'fraud'; it has 'y'",
    ),
    (
        "SHARED_MEMORY",
        one,
        with_parameter("shared_memory_region", output=False),
        "shared memory is not served; send the tensor in the request",
    ),
    ("SHARED_MEMORY", one, with_parameter("shared_memory_region", output=True), "shared memory is not served"),
    (
        "CLASSIFICATION",
        one,
        with_parameter("classification", output=True),
        "the classification extension is not served; ask for the output itself",
    ),
    (
        "MISSING_FEATURES",
        vector,
        body_of(("a", "FP32", [1], {"fp32_contents": [1]})),
        "features are missing for model 'fraud': send 'm' or all 3 columns by name, got 1 columns",
    ),
    ("MISSING_FEATURES", joined, body_of(), "send 'card' or 'm' or all 3 columns by name, got 0 columns"),
]


@pytest.mark.parametrize(
    ("fault", "plan", "body", "message"), REFUSALS, ids=[f"{i}-{r[0]}" for i, r in enumerate(REFUSALS)]
)
def test_what_does_not_fit_is_refused_with_a_line_that_says_why(fault, plan, body, message):
    with pytest.raises(kernel.WireError) as caught:
        kernel.decode(plan[kernel], body)
    assert caught.value.fault == fault
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert fault_of(reference, plan, body) == fault
    with pytest.raises(kernel.WireError, match="^" + re.escape(str(caught.value)) + "$"):
        kernel.encode(plan[kernel], body, {})


def test_every_fault_but_lack_of_memory_has_a_refusal_above():
    assert {refusal[0] for refusal in REFUSALS} == set(kernel.FAULTS) - {"OK", "OUT_OF_MEMORY"}


@TWINS
def test_a_requested_output_named_twice_is_given_once(wire):
    answer = wire.encode(one[wire], body_of(X, outputs=["y", "y"]), {"y": np.ones(1, "f4")})
    assert [o.name for o in pb.ModelInferResponse.FromString(answer).outputs] == ["y"]


def test_long_and_hostile_names_are_cut_short_in_messages():
    name = "\x1b[31m" + "é" * 500
    with pytest.raises(kernel.WireError) as caught:
        kernel.decode(one[kernel], body_of((name, "FP32", [1], {})))
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([("x", "FP8", (), "tensor", False)], ()), "unknown datatype 'FP8'"),
        (([("x", "", (), "tensor", False)], ()), "unknown datatype ''"),
        (([("x", "FP32", (), "table", False)], ()), "none of tensor, matrix, entity"),
        (([("x", "FP32", (1,) * 8, "tensor", False)], ()), "at most 7"),
        (([("x", "FP32", (2**21, 2**21), "tensor", False)], ()), "more than 2\\*\\*40"),
        (([("x", "FP32", (), "tensor", True)], ()), "cannot be optional"),
        (([("m", "FP32", (2,), "matrix", True)], (), COLUMNS), r"the matrix is FP32 \[3\] a row, not FP32 \[2\]"),
        (([("m", "FP64", (3,), "matrix", True)], (), COLUMNS), "the matrix is FP32"),
        (([MATRIX, MATRIX], (), COLUMNS), "at most one input of kind 'matrix'"),
        (([ENTITY, ENTITY, MATRIX], (), COLUMNS), "at most one input of kind 'entity'"),
        (([], (), COLUMNS), "need an input of kind 'matrix'"),
        (([ENTITY], ()), "need an input of kind 'matrix'"),
        (([MATRIX], (), COLUMNS, False), "takes batches"),
        (([], [("y", "FP32", (), False)] * 65), "at most 64 outputs"),
        (([MATRIX], (), [str(i) for i in range(1024)]), "at most 1024 inputs"),
    ],
)
def test_a_plan_that_cannot_be_served_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        kernel.Plan("fraud", "7", *arguments)


# ---- Answers --------------------------------------------------------------------------------------------------------


def values_in(answer: pb.ModelInferResponse, index: int):
    """Output `index` of a parsed answer, as an array or a list of texts."""
    output, raw = answer.outputs[index], answer.raw_output_contents[index]
    if output.datatype == "BYTES":
        return reference.read_raw(raw, "BYTES", math.prod(output.shape))
    return np.frombuffer(raw, kernel.NUMPY[output.datatype]).reshape(tuple(output.shape))


@settings(max_examples=60)
@given(st.data())
def test_protobuf_reads_from_an_answer_what_was_put_in(data):
    """All datatypes, several outputs, rows cut out of a batch, timing, and the same bytes from the twin."""
    datatypes = data.draw(st.lists(st.sampled_from(kernel.DATATYPES[1:]), min_size=1, max_size=5))
    shapes = [tuple(data.draw(st.lists(st.integers(0, 3), max_size=2))) for _ in datatypes]
    outputs = [(f"y{i}", d, shape, False) for i, (d, shape) in enumerate(zip(datatypes, shapes, strict=True))]
    first, rows, rest = data.draw(st.integers(0, 3)), data.draw(st.integers(1, 3)), data.draw(st.integers(0, 2))
    batch = first + rows + rest
    arrays = {}
    for name, datatype, shape, _ in outputs:
        size = batch * math.prod(shape)
        if datatype == "BYTES":
            texts = data.draw(st.lists(st.binary(max_size=3) | short.map(str), min_size=size, max_size=size))
            flat = np.empty(size, object)
            flat[:] = texts
            arrays[name] = flat.reshape(batch, *shape)
        else:
            arrays[name] = data.draw(arrays_of(datatype, size)).reshape(batch, *shape)
    plan = plans([("x", "FP32", (), "tensor", False)], outputs, parameters={"digest": "sha256:00", "é": ""})
    request = body_of(("x", "FP32", [rows], {"fp32_contents": [0] * rows}), id=data.draw(short))
    timing = data.draw(st.none() | st.tuples(*[st.integers(0, 2**63 - 1)] * 4))
    body = kernel.encode(plan[kernel], request, arrays, first, timing)
    assert body == reference.encode(plan[reference], request, arrays, first, timing)
    answer = pb.ModelInferResponse.FromString(body)
    assert (answer.model_name, answer.model_version) == ("fraud", "7")
    assert answer.id == pb.ModelInferRequest.FromString(request).id
    told = {"digest": "sha256:00", "é": ""}
    told |= dict(zip(("batch_rows", "queue_us", "lookup_us", "compute_us"), timing or (), strict=bool(timing)))
    assert {k: getattr(p, p.WhichOneof("parameter_choice")) for k, p in answer.parameters.items()} == told
    assert [(o.name, o.datatype, tuple(o.shape)) for o in answer.outputs] == [
        (n, d, (rows, *s)) for n, d, s, _ in outputs
    ]
    for index, (name, datatype, *_) in enumerate(outputs):
        wanted, got = arrays[name][first : first + rows], values_in(answer, index)
        if datatype == "BYTES":
            assert got == [v if isinstance(v, bytes) else v.encode() for v in wanted.ravel().tolist()]
        else:
            assert same_bits(got, wanted)


@TWINS
def test_outputs_on_request_are_sent_to_those_who_name_them(wire):
    plan = plans([("x", "FP32", (), "tensor", False)], [("y", "FP32", (), False), ("why", "INT64", (2,), True)])
    x = ("x", "FP32", [1], {"fp32_contents": [1]})
    arrays = {"y": np.ones(1, "f4"), "why": np.ones((1, 2), "i8")}
    for asked, given_ in (([], ["y"]), (["why"], ["why"]), (["why", "y"], ["y", "why"])):
        answer = pb.ModelInferResponse.FromString(wire.encode(plan[wire], body_of(x, outputs=asked), arrays))
        assert [o.name for o in answer.outputs] == given_


@TWINS
def test_an_answer_without_a_batch_dimension_keeps_its_shape(wire):
    plan = plans(
        [("x", "FP32", (), "tensor", False)], [("y", "FP32", (), False), ("z", "BYTES", (2,), False)], batched=False
    )
    arrays = {"y": np.float32(3), "z": np.array(["a", "bc"], object)}
    body = wire.encode(plan[wire], body_of(("x", "FP32", [], {"fp32_contents": [1]})), arrays)
    answer = pb.ModelInferResponse.FromString(body)
    assert [list(o.shape) for o in answer.outputs] == [[], [2]]
    assert list(answer.raw_output_contents) == [struct.pack("<f", 3), raw_texts(b"a", b"bc")]


def test_outputs_in_any_memory_order_are_taken():
    plan = plans([("x", "FP32", (), "tensor", False)], [("y", "FP32", (2,), False)])
    x = ("x", "FP32", [2], {"fp32_contents": [1, 2]})
    values = np.arange(8, dtype="f4").reshape(2, 4).T[:, ::-1]
    answer = pb.ModelInferResponse.FromString(kernel.encode(plan[kernel], body_of(x), {"y": values}, 1))
    np.testing.assert_array_equal(values_in(answer, 0), values[1:3])


@pytest.mark.parametrize(
    ("arrays", "row", "words"),
    [
        ({}, 0, "'y' is wanted and was not given"),
        ({"y": np.ones(2, "f8")}, 0, "is float64, the version promises FP32"),
        ({"y": np.ones(2, ">f4")}, 0, "the version promises FP32"),
        ({"y": np.float32(1)}, 0, "for a batch of|has shape"),
        ({"y": np.ones((2, *[1] * 9), "f4")}, 0, "more than 8 dimensions"),
        ({"y": np.ones(2, "f4")}, 2, "ends before row 3"),
        ({"y": np.ones(2, "f4")}, 2**62, "ends before row"),
        ({"y": np.ones(2, "f4")}, -1, "row -1 is not in the batch"),
    ],
)
def test_outputs_that_are_not_what_the_plan_promises_are_refused(arrays, row, words):
    with pytest.raises(ValueError, match=words):
        kernel.encode(one[kernel], body_of(X), arrays, row)


@given(st.integers(0, 2**64 - 1), st.binary(max_size=300))
@example(0, b"")
def test_varints_and_fields_are_written_as_the_twin_writes_them(number, data):
    assert kernel.encode_varint(number) == reference.put_varint(number)
    assert kernel.encode_field(5, data) == reference.put_field(5, data)
