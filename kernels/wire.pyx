"""The codec of `ModelInferRequest` and `ModelInferResponse`: bytes to batch buffers and back, without protobuf objects.

Bodies are parsed in place: a request is a set of pointers into the body until its values are copied, once, into the
tensor that the model reads. Every read goes through the checked cursor, every size is checked in 64 bits before it is
used, and memory taken to parse a request is bounded by MAX_TENSORS, never by a number found in it. What fits takes its
values in full: as many bytes as were sent raw, up to 8 times as many sent as varints, up to 20 times as many sent as
short texts, which become Python objects. One row of 30 floats costs about
0.1 microseconds in and as much out.

Parsing accepts what the protobuf library accepts, but for a few things refused on purpose: see `STRICTER`.
"""

from collections import namedtuple

import numpy as np

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.math cimport NAN
from libc.stdint cimport int64_t, uint32_t, uint64_t, uint8_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from penstock.kernels._cursor cimport Cursor, cursor_over, left, read_bytes, read_u32, read_u64, read_varint
from penstock.kernels._datatypes cimport (
    DT_BF16, DT_BOOL, DT_BYTES, DT_FP16, DT_FP32, DT_FP64, DT_INT32, DT_INT64, DT_NONE, DT_UINT32, DT_UINT64, Datatype,
    contents_field, contents_wire_type, datatype_of, item_size, read_number, store,
)
from penstock.kernels._protobuf cimport (
    Slice, Writer, equals, put, put_field, put_varint, read_message, read_slice, read_tag, skip_value,
    varint_size,
)

DATATYPES = ("", "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64",
             "FP16", "BF16", "FP32", "FP64", "BYTES")
"""Datatypes of the Open Inference Protocol; a datatype's place is its code."""

NUMPY = {"BOOL": "?", "UINT8": "u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8", "INT8": "i1", "INT16": "<i2",
         "INT32": "<i4", "INT64": "<i8", "FP16": "<f2", "BF16": "<u2", "FP32": "<f4", "FP64": "<f8"}
"""Numpy's form of each fixed-size datatype; BF16 travels as its bit pattern."""

STRICTER = (
    "more than 8 dimensions, 1,024 inputs, raw contents or requested outputs, or 64 parameters in one place",
    "groups (wire types 3 and 4), which proto3 does not have",
    "an input with two `contents` fields, which protobuf would merge",
)
"""What protobuf would accept and this codec refuses."""

FAULTS = ("OK", "MALFORMED", "TOO_MANY_PARTS", "OUT_OF_MEMORY", "UNKNOWN_INPUT", "DUPLICATE_INPUT", "MISSING_INPUT",
          "WRONG_DATATYPE", "WRONG_SHAPE", "WRONG_RAW_COUNT", "WRONG_RAW_SIZE", "CONTENTS_AND_RAW",
          "WRONG_CONTENTS_FIELD", "WRONG_CONTENTS_COUNT", "VALUE_OUT_OF_RANGE", "BAD_BYTES_LENGTH", "BATCH_MISMATCH",
          "NO_ROWS", "UNKNOWN_OUTPUT", "SHARED_MEMORY", "CLASSIFICATION", "MISSING_FEATURES", "TOO_MANY_TEXTS")
"""Why a request is refused; a fault's place is its FaultCode."""

PlanInput = namedtuple("PlanInput", "name datatype shape kind optional")
PlanOutput = namedtuple("PlanOutput", "name datatype shape on_request")

cdef int64_t MAX_ELEMENTS = 1 << 40
cdef int64_t MAX_TEXTS = 1 << 20                 # values of one BYTES or entity input, each of which becomes an object
cdef int64_t MAX_TIMEOUT_US = <int64_t>1 << 50   # 35 years; as nanoseconds after any present still 63 bits


class WireError(ValueError):
    """A body is not a well-formed or not a fitting request; the text says what was expected and what came.

    Attributes:
        fault: which of FAULTS it is.
    """

    def __init__(self, message, fault="MALFORMED"):
        super().__init__(message)
        self.fault = fault


# ---------------------------------------------------------------------------------------------------------------------
# The parts of a request
# ---------------------------------------------------------------------------------------------------------------------

cdef bint is_utf8(const uint8_t* data, size_t size) noexcept nogil:
    """Whether the bytes are UTF-8 (RFC 3629: no overlong forms, no surrogates, at most U+10FFFF)."""
    cdef size_t i = 0
    cdef size_t tail, j
    cdef uint8_t lead
    cdef uint32_t point
    while i < size:
        lead = data[i]
        i += 1
        if lead < 0x80:
            continue
        if 0xC2 <= lead <= 0xDF:
            tail = 1
            point = lead & 0x1F
        elif 0xE0 <= lead <= 0xEF:
            tail = 2
            point = lead & 0x0F
        elif 0xF0 <= lead <= 0xF4:
            tail = 3
            point = lead & 0x07
        else:
            return False
        if tail > size - i:
            return False
        for j in range(tail):
            if data[i + j] & 0xC0 != 0x80:
                return False
            point = (point << 6) | (data[i + j] & 0x3F)
        i += tail
        if tail == 2 and (point < 0x800 or 0xD800 <= point <= 0xDFFF):
            return False
        if tail == 3 and not 0x10000 <= point <= 0x10FFFF:
            return False
    return True


cdef inline bint read_text(Cursor* cursor, Slice* out) noexcept nogil:
    """A proto3 string: length-delimited UTF-8."""
    return read_slice(cursor, out) and is_utf8(out.data, out.size)


cdef void init_request(Request* request) noexcept nogil:
    memset(request, 0, sizeof(Request))
    request.inputs = &request.inline_inputs[0]
    request.raws = &request.inline_raws[0]
    request.outputs = &request.inline_outputs[0]
    request.cap_inputs = request.cap_raws = request.cap_outputs = INLINE_TENSORS


cdef void free_request(Request* request) noexcept nogil:
    if request.inputs != &request.inline_inputs[0]:
        free(request.inputs)
    if request.raws != &request.inline_raws[0]:
        free(request.raws)
    if request.outputs != &request.inline_outputs[0]:
        free(request.outputs)
    init_request(request)


cdef FaultCode make_room(void** items, const void* inlined, int count, int* capacity, size_t size) noexcept nogil:
    """Room for one more of `count` items of `size` bytes, doubling up to MAX_TENSORS."""
    cdef void* larger
    cdef int wanted
    if count < capacity[0]:
        return OK
    if count >= MAX_TENSORS:
        return TOO_MANY_PARTS
    wanted = min(max(8, capacity[0] * 4), <int>MAX_TENSORS)
    larger = malloc(<size_t>wanted * size)
    if larger == NULL:
        return OUT_OF_MEMORY
    memcpy(larger, items[0], <size_t>count * size)
    if items[0] != inlined:
        free(items[0])
    items[0] = larger
    capacity[0] = wanted
    return OK


cdef bint read_parameter(Cursor* entry, Slice* key, int64_t* number, bint* is_integer, bint* is_true) noexcept nogil:
    """One entry of a map<string, InferParameter>; of the value only what the server acts on is kept.

    An entry with any other field than key and value gets no key, for protobuf sets it aside as unknown.
    """
    cdef uint32_t field = 0
    cdef uint32_t wire_type = 0
    cdef Cursor value
    cdef uint64_t raw = 0
    cdef Slice text
    cdef bint known = True
    key.data = NULL
    key.size = 0
    number[0] = 0
    is_integer[0] = is_true[0] = False
    while left(entry):
        if not read_tag(entry, &field, &wire_type):
            return False
        if field == 1 and wire_type == 2:
            if not read_text(entry, key):
                return False
        elif field == 2 and wire_type == 2:
            if not read_message(entry, &value):
                return False
            while left(&value):
                if not read_tag(&value, &field, &wire_type):
                    return False
                if wire_type == 0 and field in (1, 2, 5):
                    if not read_varint(&value, &raw):
                        return False
                    number[0] = <int64_t>raw
                    is_integer[0] = field != 1
                    is_true[0] = field == 1 and raw != 0
                elif field == 3 and wire_type == 2:
                    if not read_text(&value, &text):
                        return False
                    is_integer[0] = is_true[0] = False
                elif field == 4 and wire_type == 1:
                    if not read_u64(&value, &raw):
                        return False
                    is_integer[0] = is_true[0] = False
                elif not skip_value(&value, wire_type):
                    return False
        else:
            known = False
            if not skip_value(entry, wire_type):
                return False
    if not known:
        key.size = 0
    return True


cdef FaultCode parse_request_parameter(Cursor* cursor, Request* request, int* count) noexcept nogil:
    cdef Cursor entry
    cdef Slice key
    cdef int64_t number = 0
    cdef bint is_integer = False
    cdef bint is_true = False
    if not read_message(cursor, &entry) or not read_parameter(&entry, &key, &number, &is_integer, &is_true):
        return MALFORMED
    count[0] += 1
    if count[0] > MAX_PARAMETERS:
        return TOO_MANY_PARTS
    if equals(&key, b"timeout", 7):
        request.timeout_us = min(number, MAX_TIMEOUT_US) if is_integer and number > 0 else 0
    elif equals(&key, b"timing", 6):
        request.timing = is_true
    return OK


cdef FaultCode parse_tensor_parameter(Cursor* cursor, int* count, bint* shared_memory,
                                      bint* classification) noexcept nogil:
    cdef Cursor entry
    cdef Slice key
    cdef int64_t number = 0
    cdef bint is_integer = False
    cdef bint is_true = False
    if not read_message(cursor, &entry) or not read_parameter(&entry, &key, &number, &is_integer, &is_true):
        return MALFORMED
    count[0] += 1
    if count[0] > MAX_PARAMETERS:
        return TOO_MANY_PARTS
    if equals(&key, b"shared_memory_region", 20):
        shared_memory[0] = True
    elif equals(&key, b"classification", 14):
        classification[0] = True
    return OK


cdef inline FaultCode add_dim(InputRef* ref, uint64_t value) noexcept nogil:
    if ref.n_dims >= MAX_DIMS:
        return TOO_MANY_PARTS
    ref.dims[ref.n_dims] = <int64_t>value
    ref.n_dims += 1
    return OK


cdef FaultCode parse_shape(Cursor* cursor, uint32_t wire_type, InputRef* ref) noexcept nogil:
    """`shape`, packed or one by one."""
    cdef uint64_t value = 0
    cdef Cursor packed
    cdef FaultCode code = OK
    if wire_type == 0:
        return add_dim(ref, value) if read_varint(cursor, &value) else MALFORMED
    if not read_message(cursor, &packed):
        return MALFORMED
    while left(&packed) and code == OK:
        code = add_dim(ref, value) if read_varint(&packed, &value) else MALFORMED
    return code


cdef bint scan_contents(InputRef* ref) noexcept nogil:
    """Check the grammar of `contents` and count the values of each field."""
    cdef Cursor cursor = cursor_over(ref.contents.data, ref.contents.size)
    cdef Cursor packed
    cdef Slice text
    cdef uint32_t field = 0
    cdef uint32_t wire_type = 0
    cdef uint32_t natural
    while left(&cursor):
        if not read_tag(&cursor, &field, &wire_type):
            return False
        natural = contents_wire_type(field)
        if field > 8:
            if not skip_value(&cursor, wire_type):
                return False
        elif field == 8 and wire_type == 2:
            if not read_slice(&cursor, &text):
                return False
            ref.counts[8] += 1
        elif wire_type == 2:
            if not read_message(&cursor, &packed):
                return False
            while left(&packed):
                if not skip_value(&packed, natural):
                    return False
                ref.counts[field] += 1
        elif wire_type == natural:
            if not skip_value(&cursor, wire_type):
                return False
            ref.counts[field] += 1
        elif not skip_value(&cursor, wire_type):
            return False
    return True


cdef FaultCode parse_input(Cursor* cursor, Request* request) noexcept nogil:
    cdef Cursor part
    cdef Slice contents
    cdef InputRef* ref
    cdef uint32_t field = 0
    cdef uint32_t wire_type = 0
    cdef int parameters = 0
    cdef bint ignored = False
    cdef bint good
    cdef FaultCode code
    if not read_message(cursor, &part):
        return MALFORMED
    code = make_room(<void**>&request.inputs, &request.inline_inputs[0], request.n_inputs, &request.cap_inputs,
                     sizeof(InputRef))
    if code != OK:
        return code
    ref = &request.inputs[request.n_inputs]
    memset(ref, 0, sizeof(InputRef))
    request.n_inputs += 1
    while left(&part):
        if not read_tag(&part, &field, &wire_type):
            return MALFORMED
        good = True
        if field == 1 and wire_type == 2:
            good = read_text(&part, &ref.name)
        elif field == 2 and wire_type == 2:
            good = read_text(&part, &ref.datatype)
        elif field == 3 and (wire_type == 0 or wire_type == 2):
            code = parse_shape(&part, wire_type, ref)
        elif field == 4 and wire_type == 2:
            code = parse_tensor_parameter(&part, &parameters, &ref.shared_memory, &ignored)
        elif field == 5 and wire_type == 2:
            if not read_slice(&part, &contents):
                return MALFORMED
            if ref.contents.data != NULL:
                return TOO_MANY_PARTS
            ref.contents = contents
            good = scan_contents(ref)
        else:
            good = skip_value(&part, wire_type)
        if not good:
            return MALFORMED
        if code != OK:
            return code
    return OK


cdef FaultCode parse_output(Cursor* cursor, Request* request) noexcept nogil:
    cdef Cursor part
    cdef Slice* name
    cdef uint32_t field = 0
    cdef uint32_t wire_type = 0
    cdef int parameters = 0
    cdef FaultCode code
    if not read_message(cursor, &part):
        return MALFORMED
    code = make_room(<void**>&request.outputs, &request.inline_outputs[0], request.n_outputs, &request.cap_outputs,
                     sizeof(Slice))
    if code != OK:
        return code
    name = &request.outputs[request.n_outputs]
    memset(name, 0, sizeof(Slice))
    request.n_outputs += 1
    while left(&part):
        if not read_tag(&part, &field, &wire_type):
            return MALFORMED
        if field == 1 and wire_type == 2:
            if not read_text(&part, name):
                return MALFORMED
        elif field == 2 and wire_type == 2:
            code = parse_tensor_parameter(&part, &parameters, &request.output_shared_memory, &request.classification)
            if code != OK:
                return code
        elif not skip_value(&part, wire_type):
            return MALFORMED
    return OK


cdef FaultCode parse_raw(Cursor* cursor, Request* request) noexcept nogil:
    cdef Slice raw
    cdef FaultCode code
    if not read_slice(cursor, &raw):
        return MALFORMED
    code = make_room(<void**>&request.raws, &request.inline_raws[0], request.n_raws, &request.cap_raws, sizeof(Slice))
    if code == OK:
        request.raws[request.n_raws] = raw
        request.n_raws += 1
    return code


cdef FaultCode parse_request(const uint8_t* data, size_t size, Request* request) noexcept nogil:
    """Find the parts of a body. `request` must be fresh from init_request and points into `data` afterwards."""
    cdef Cursor cursor = cursor_over(data, size)
    cdef uint32_t field = 0
    cdef uint32_t wire_type = 0
    cdef int parameters = 0
    cdef bint good
    cdef FaultCode code = OK
    while left(&cursor):
        if not read_tag(&cursor, &field, &wire_type):
            return MALFORMED
        good = True
        if wire_type != 2:
            good = skip_value(&cursor, wire_type)
        elif field == 1:
            good = read_text(&cursor, &request.model_name)
        elif field == 2:
            good = read_text(&cursor, &request.model_version)
        elif field == 3:
            good = read_text(&cursor, &request.id)
        elif field == 4:
            code = parse_request_parameter(&cursor, request, &parameters)
        elif field == 5:
            code = parse_input(&cursor, request)
        elif field == 6:
            code = parse_output(&cursor, request)
        elif field == 7:
            code = parse_raw(&cursor, request)
        else:
            good = skip_value(&cursor, wire_type)
        if not good:
            return MALFORMED
        if code != OK:
            return code
    return OK


# ---------------------------------------------------------------------------------------------------------------------
# The plan of a version
# ---------------------------------------------------------------------------------------------------------------------

cdef Slice slice_of(bytes data):
    cdef Slice slice
    slice.data = <const uint8_t*>PyBytes_AS_STRING(data)
    slice.size = PyBytes_GET_SIZE(data)
    return slice


cdef class Plan:
    """What one served version takes and gives, compiled: the table every request is held against.

    Args:
        model_name, model_version: as they stand in every answer.
        inputs: PlanInput(name, datatype, shape of one row (-1: any size), kind, optional) in the graph's order; kind is
            "tensor", "matrix" or "entity".
        outputs: PlanOutput(name, datatype, shape of one row, on_request): outputs on request are sent only to callers
            who name them. At most 64.
        columns: names of the matrix's columns; each is also taken as an input of its own.
        batched: whether the first dimension of every tensor is the batch; shapes above leave it out.
        parameters: text parameters put into every answer.

    Raises:
        ValueError: for a datatype, kind or count that cannot be served.
    """

    def __cinit__(self, model_name, model_version, inputs, outputs, columns=(), batched=True, parameters=None):
        cdef Slot* slot
        self.batched = batched
        self.columns = tuple(columns)
        self.n_columns = len(self.columns)
        self.inputs = tuple(PlanInput(*entry) for entry in inputs)
        self.outputs = tuple(PlanOutput(*entry) for entry in outputs)
        self.matrix_slot = self.entity_slot = -1
        self.fixed_shapes = True
        self.keep = []
        if len(self.outputs) > 64:
            raise ValueError(f"a version gives at most 64 outputs, not {len(self.outputs)}")
        if len(self.inputs) + self.n_columns > MAX_TENSORS:
            raise ValueError(f"a version takes at most {MAX_TENSORS} inputs")
        self.slots = <Slot*>calloc(len(self.inputs) + self.n_columns + 1, sizeof(Slot))
        if self.slots == NULL:
            raise MemoryError
        for entry in self.inputs:
            self.add_input(entry)
        self.check_kinds()
        for index, name in enumerate(self.columns):
            slot = self.add_slot(name, "FP32", KIND_COLUMN, ())
            slot.column = index
            slot.optional = True
        self.head_bytes = encode_head(model_name, model_version, parameters or {})
        self.head = slice_of(self.head_bytes)
        self.output_heads = [encode_field(1, o.name) + encode_field(2, o.datatype) for o in self.outputs]
        self.n_outputs = len(self.outputs)
        self.output_names = <Slice*>calloc(self.n_outputs + 1, sizeof(Slice))
        if self.output_names == NULL:
            raise MemoryError
        for index, output in enumerate(self.outputs):
            encoded = output.name.encode()
            self.keep.append(encoded)
            self.output_names[<int>index] = slice_of(encoded)
            if not output.on_request:
                self.default_outputs |= <uint64_t>1 << <int>index

    def __dealloc__(self):
        free(self.slots)
        free(self.output_names)

    cdef int check_kinds(self) except -1:
        """Columns and ids have rows to go to; `fill_numbers` relies on it."""
        if self.matrix_slot < 0 and (self.n_columns or self.entity_slot >= 0):
            raise ValueError("columns and entity ids need an input of kind 'matrix'")
        if self.matrix_slot >= 0 and not self.batched:
            raise ValueError("a version with a matrix takes batches")
        return 0

    cdef int add_input(self, entry) except -1:
        cdef Kind kind
        cdef Slot* slot
        if entry.kind not in ("tensor", "matrix", "entity"):
            raise ValueError(f"input kind {entry.kind!r} is none of tensor, matrix, entity")
        kind = KIND_MATRIX if entry.kind == "matrix" else KIND_ENTITY if entry.kind == "entity" else KIND_TENSOR
        slot = self.add_slot(entry.name, entry.datatype, kind, entry.shape)
        slot.optional = entry.optional
        if (self.entity_slot if kind == KIND_ENTITY else self.matrix_slot) >= 0 and kind != KIND_TENSOR:
            raise ValueError(f"a version has at most one input of kind {entry.kind!r}")
        if kind == KIND_TENSOR and entry.optional:
            raise ValueError(f"input {entry.name!r} cannot be optional: a batch has no value to put in its place")
        if kind == KIND_ENTITY:
            self.entity_slot = self.n_slots - 1
        elif kind == KIND_MATRIX:
            self.matrix_slot = self.n_slots - 1
            if entry.datatype != "FP32" or tuple(entry.shape) != (self.n_columns,):
                got = f"{entry.datatype} {list(entry.shape)}"
                raise ValueError(f"the matrix is FP32 [{self.n_columns}] a row, not {got}")
        if kind == KIND_ENTITY or entry.datatype == "BYTES":
            slot.buffer = self.n_texts
            self.n_texts += 1
        else:
            slot.buffer = self.n_buffers
            self.n_buffers += 1
        return 0

    cdef Slot* add_slot(self, name, datatype, Kind kind, shape) except NULL:
        cdef Slot* slot = &self.slots[self.n_slots]
        cdef int64_t elements = 1
        if datatype not in DATATYPES[1:]:
            raise ValueError(f"input {name!r} has the unknown datatype {datatype!r}")
        if len(shape) > MAX_DIMS - 1:
            raise ValueError(f"input {name!r} has {len(shape)} dimensions; at most {MAX_DIMS - 1} a row are served")
        encoded = name.encode()
        self.keep.append(encoded)
        slot.name = slice_of(encoded)
        slot.code = <Datatype><int>DATATYPES.index(datatype)
        slot.kind = kind
        slot.buffer = -1
        for index, size in enumerate(shape):
            if size > MAX_ELEMENTS or (size > 0 and elements > MAX_ELEMENTS // <int64_t>size):
                raise ValueError(f"input {name!r} has more than 2**40 values a row")
            slot.dims[<int>index] = size
            elements = -1 if size < 0 or elements < 0 else elements * <int64_t>size
        slot.n_dims = len(shape)
        slot.item_elements = elements
        if elements < 0:
            self.fixed_shapes = False
        self.n_slots += 1
        return slot


# ---------------------------------------------------------------------------------------------------------------------
# A request against the plan
# ---------------------------------------------------------------------------------------------------------------------

cdef inline FaultCode refuse(Fault* fault, FaultCode code, int part, int64_t expected, int64_t got) noexcept nogil:
    fault.code = code
    fault.part = part
    fault.expected = expected
    fault.got = got
    return code


cdef inline int find_slot(Plan plan, const Slice* name, int hint) noexcept nogil:
    """The slot called `name`, looked for from `hint` on: callers send inputs in the same order as a rule."""
    cdef int step, index
    for step in range(plan.n_slots):
        index = hint + step
        if index >= plan.n_slots:
            index -= plan.n_slots
        if equals(&plan.slots[index].name, <const char*>name.data, name.size):
            return index
    return -1


cdef inline bint takes_datatype(const Slot* slot, Datatype code) noexcept nogil:
    """A column takes any number, an entity id text or INT64, a tensor just its own."""
    if slot.kind == KIND_COLUMN:
        return code != DT_NONE and code != DT_BYTES and code != DT_FP16 and code != DT_BF16
    if slot.kind == KIND_ENTITY:
        return code == DT_BYTES or code == DT_INT64
    return code == slot.code


cdef inline bint takes_shape(const Slot* slot, const InputRef* ref, bint batched) noexcept nogil:
    """Whether the dimensions fit; a column or entity may be [n] or [n, 1]."""
    cdef int first = 1 if batched else 0
    cdef int i
    if slot.kind == KIND_COLUMN or slot.kind == KIND_ENTITY:
        return ref.n_dims == 1 or (ref.n_dims == 2 and ref.dims[1] == 1)
    if ref.n_dims != slot.n_dims + first:
        return False
    for i in range(slot.n_dims):
        if slot.dims[i] >= 0 and ref.dims[i + first] != slot.dims[i]:
            return False
    return True


cdef inline int64_t count_elements(const InputRef* ref) noexcept nogil:
    """Values of the whole tensor; -1 where a dimension is negative or the product leaves 2**40.

    Zeros are left out of that product, for numpy and ONNX Runtime multiply the others too and refuse what overflows.
    """
    cdef int64_t elements = 1
    cdef bint empty = False
    cdef int i
    for i in range(ref.n_dims):
        if ref.dims[i] < 0 or (ref.dims[i] > 0 and elements > MAX_ELEMENTS // ref.dims[i]):
            return -1
        if ref.dims[i] == 0:
            empty = True
        else:
            elements *= ref.dims[i]
    return 0 if empty else elements


cdef int64_t count_raw_texts(const Slice* raw) noexcept nogil:
    """How many length-prefixed values lie in a raw BYTES tensor; -1 where a length leads past the end."""
    cdef Cursor cursor = cursor_over(raw.data, raw.size)
    cdef const uint8_t* ignored
    cdef uint32_t size = 0
    cdef int64_t count = 0
    while left(&cursor):
        if not read_u32(&cursor, &size) or not read_bytes(&cursor, size, &ignored):
            return -1
        count += 1
    return count


cdef FaultCode match_raw(const Request* request, int index, Fault* fault) noexcept nogil:
    """The raw bytes of input `index` hold just what its shape says."""
    cdef InputRef* ref = &request.inputs[index]
    cdef int64_t count
    if ref.contents.data != NULL:
        return refuse(fault, CONTENTS_AND_RAW, index, 0, 0)
    ref.is_raw = True
    ref.data = request.raws[index]
    if ref.code != DT_BYTES:
        if <uint64_t>(ref.elements * item_size(ref.code)) != ref.data.size:
            return refuse(fault, WRONG_RAW_SIZE, index, ref.elements * item_size(ref.code), <int64_t>ref.data.size)
        return OK
    count = count_raw_texts(&ref.data)
    if count < 0:
        return refuse(fault, BAD_BYTES_LENGTH, index, 0, 0)
    if count != ref.elements:
        return refuse(fault, WRONG_CONTENTS_COUNT, index, ref.elements, count)
    return OK


cdef FaultCode match_contents(const Request* request, int index, Fault* fault) noexcept nogil:
    """The typed contents of input `index` hold just what its shape says, in the field of its datatype."""
    cdef InputRef* ref = &request.inputs[index]
    cdef int field = <int>contents_field(ref.code)
    cdef int other
    for other in range(1, CONTENTS_FIELDS):
        if other != field and ref.counts[other] > 0:
            return refuse(fault, WRONG_CONTENTS_FIELD, index, field, other)
    if field == 0 and ref.elements > 0:
        return refuse(fault, WRONG_CONTENTS_FIELD, index, 0, 0)
    if ref.counts[field] != ref.elements:
        return refuse(fault, WRONG_CONTENTS_COUNT, index, ref.elements, ref.counts[field])
    if ref.code != DT_BYTES and not copy_contents(ref, ref.code, NULL, 0):
        return refuse(fault, VALUE_OUT_OF_RANGE, index, 0, 0)
    return OK


cdef FaultCode match_input(Plan plan, Request* request, int index, int hint, Fault* fault) noexcept nogil:
    cdef InputRef* ref = &request.inputs[index]
    cdef Slot* slot
    ref.slot = find_slot(plan, &ref.name, hint)
    if ref.slot < 0:
        return refuse(fault, UNKNOWN_INPUT, index, 0, 0)
    slot = &plan.slots[ref.slot]
    if ref.shared_memory:
        return refuse(fault, SHARED_MEMORY, index, 0, 0)
    ref.code = datatype_of(&ref.datatype)
    if not takes_datatype(slot, ref.code):
        return refuse(fault, WRONG_DATATYPE, index, 0, 0)
    ref.elements = count_elements(ref)
    if ref.elements < 0 or not takes_shape(slot, ref, plan.batched):
        return refuse(fault, WRONG_SHAPE, index, 0, 0)
    if (ref.code == DT_BYTES or slot.kind == KIND_ENTITY) and ref.elements > MAX_TEXTS:
        return refuse(fault, TOO_MANY_TEXTS, index, MAX_TEXTS, ref.elements)
    if plan.batched:
        if index == 0:
            request.rows = ref.dims[0]
        elif ref.dims[0] != request.rows:
            return refuse(fault, BATCH_MISMATCH, index, request.rows, ref.dims[0])
    return match_raw(request, index, fault) if request.n_raws else match_contents(request, index, fault)


cdef inline int find_output(Plan plan, const Slice* name) noexcept nogil:
    cdef int index
    for index in range(plan.n_outputs):
        if equals(&plan.output_names[index], <const char*>name.data, name.size):
            return index
    return -1


cdef FaultCode match_outputs(Plan plan, Request* request, Fault* fault) noexcept nogil:
    """Which outputs of the plan the caller wants: those named, else all that are not on request only."""
    cdef int i, j
    if request.n_outputs == 0:
        request.wanted = plan.default_outputs
        return OK
    if request.classification:
        return refuse(fault, CLASSIFICATION, 0, 0, 0)
    if request.output_shared_memory:
        return refuse(fault, SHARED_MEMORY, -1, 0, 0)
    request.wanted = 0
    for i in range(request.n_outputs):
        j = find_output(plan, &request.outputs[i])
        if j < 0:
            return refuse(fault, UNKNOWN_OUTPUT, i, 0, 0)
        request.wanted |= <uint64_t>1 << j
    return OK


cdef FaultCode match_presence(Plan plan, const Request* request, uint8_t* seen, Fault* fault) noexcept nogil:
    """Every input the version needs is there: matrix, entity id or all the columns for a version with a matrix."""
    cdef int index
    cdef int columns = 0
    for index in range(plan.n_slots):
        if seen[index]:
            columns += plan.slots[index].kind == KIND_COLUMN
        elif not plan.slots[index].optional:
            return refuse(fault, MISSING_INPUT, index, 0, 0)
    if plan.matrix_slot < 0 or seen[plan.matrix_slot] or columns == plan.n_columns:
        return OK
    if plan.entity_slot >= 0 and seen[plan.entity_slot]:
        return OK
    return refuse(fault, MISSING_FEATURES, 0, plan.n_columns, columns)


cdef void match_request(Plan plan, Request* request, Fault* fault) noexcept nogil:
    """Hold a parsed request against a plan; on return it can be filled in and `fault.code` is OK, or says why not."""
    cdef int index
    cdef int hint = 0
    cdef uint8_t[MAX_TENSORS + 1] seen
    fault.code = OK
    request.rows = 0 if plan.batched else 1
    request.has_entity = False
    if request.n_raws and request.n_raws != request.n_inputs:
        refuse(fault, WRONG_RAW_COUNT, 0, request.n_inputs, request.n_raws)
        return
    memset(seen, 0, <size_t>plan.n_slots)
    for index in range(request.n_inputs):
        if match_input(plan, request, index, hint, fault) != OK:
            return
        if seen[request.inputs[index].slot]:
            refuse(fault, DUPLICATE_INPUT, index, 0, 0)
            return
        seen[request.inputs[index].slot] = 1
        hint = request.inputs[index].slot + 1
    if plan.entity_slot >= 0:
        request.has_entity = seen[plan.entity_slot]
    if match_presence(plan, request, seen, fault) != OK:
        return
    if request.rows == 0:
        refuse(fault, NO_ROWS, 0, 0, 0)
        return
    match_outputs(plan, request, fault)


cdef bint same_shapes(const Request* a, const Request* b) noexcept nogil:
    """Whether two matched requests of one plan can share a batch: the same inputs with equal non-batch dimensions."""
    cdef int i, j
    if a.n_inputs != b.n_inputs:
        return False
    for i in range(a.n_inputs):
        if a.inputs[i].slot != b.inputs[i].slot or a.inputs[i].n_dims != b.inputs[i].n_dims:
            return False
        for j in range(1, a.inputs[i].n_dims):
            if a.inputs[i].dims[j] != b.inputs[i].dims[j]:
                return False
    return True


# ---------------------------------------------------------------------------------------------------------------------
# Values into batch buffers
# ---------------------------------------------------------------------------------------------------------------------

cdef bint copy_contents(const InputRef* ref, Datatype target, uint8_t* out, int64_t stride) noexcept nogil:
    """Copy typed contents to `out`, a value every `stride` bytes; with `out` NULL only look whether all values fit."""
    cdef Cursor cursor = cursor_over(ref.contents.data, ref.contents.size)
    cdef Cursor values
    cdef uint32_t wanted = contents_field(ref.code)
    cdef uint32_t natural = contents_wire_type(wanted)
    cdef uint32_t field = 0
    cdef uint32_t wire_type = 0
    cdef uint64_t bits = 0
    while left(&cursor):
        if not read_tag(&cursor, &field, &wire_type):
            return False
        if field != wanted or (wire_type != 2 and wire_type != natural):
            if not skip_value(&cursor, wire_type):
                return False
            continue
        if wire_type == 2:
            if not read_message(&cursor, &values):
                return False
        else:
            values = cursor
        while left(&values):
            if not read_number(&values, ref.code, &bits):
                return False
            if out != NULL:
                store(ref.code, target, bits, out)
                out += stride
            if wire_type != 2:
                cursor.at = values.at
                break
    return True


cdef void copy_raw_column(const InputRef* ref, uint8_t* out, int64_t stride) noexcept nogil:
    """Raw values of any number type to float32, one every `stride` bytes."""
    cdef Cursor cursor = cursor_over(ref.data.data, ref.data.size)
    cdef const uint8_t* item
    cdef int64_t size = item_size(ref.code)
    cdef uint64_t bits
    while read_bytes(&cursor, size, &item):
        bits = 0
        memcpy(&bits, item, <size_t>size)
        if ref.code == DT_BOOL:
            bits = bits != 0
        store(ref.code, DT_FP32, bits, out)
        out += stride


cdef void copy_tensor(const InputRef* ref, uint8_t* out) noexcept nogil:
    cdef size_t i
    if not ref.is_raw:
        copy_contents(ref, ref.code, out, item_size(ref.code))
        return
    if ref.data.size == 0:      # and there may be no memory at all
        return
    memcpy(out, ref.data.data, ref.data.size)
    if ref.code == DT_BOOL:
        for i in range(ref.data.size):
            out[i] = out[i] != 0


cdef inline bint sends(const Request* request, int slot) noexcept nogil:
    """Whether a matched request feeds a slot."""
    cdef int index
    for index in range(request.n_inputs):
        if request.inputs[index].slot == slot:
            return True
    return False


cdef void fill_numbers(Plan plan, const Request* request, int64_t row, uint8_t** buffers,
                       uint8_t* source) noexcept nogil:
    """Copy a matched request's numbers into the batch's buffers, from batch row `row` on.

    `source` is the batch's [rows, n_columns] map of where each value of the matrix came from, set to 1 (the request)
    where the caller sent it and 0 elsewhere, where the matrix holds NaN; NULL for a version without a matrix. Texts are
    left to `read_texts`.
    """
    cdef int index
    cdef int64_t i
    cdef int64_t width = plan.n_columns
    cdef const InputRef* ref
    cdef const Slot* slot
    cdef uint8_t* matrix = NULL
    cdef float* values
    if plan.matrix_slot >= 0:
        matrix = buffers[plan.slots[plan.matrix_slot].buffer]
        if not sends(request, plan.matrix_slot):
            values = <float*>matrix + row * width
            for i in range(request.rows * width):
                values[i] = NAN
            memset(source + row * width, 0, <size_t>(request.rows * width))
    for index in range(request.n_inputs):
        ref = &request.inputs[index]
        slot = &plan.slots[ref.slot]
        if slot.kind == KIND_MATRIX:
            copy_tensor(ref, matrix + row * width * 4)
            memset(source + row * width, 1, <size_t>(request.rows * width))
        elif slot.kind == KIND_TENSOR and ref.code != DT_BYTES:
            copy_tensor(ref, buffers[slot.buffer] + row * (ref.elements // request.rows) * item_size(ref.code))
    for index in range(request.n_inputs):
        ref = &request.inputs[index]
        slot = &plan.slots[ref.slot]
        if slot.kind != KIND_COLUMN:
            continue
        if ref.is_raw:
            copy_raw_column(ref, matrix + (row * width + slot.column) * 4, width * 4)
        else:
            copy_contents(ref, DT_FP32, matrix + (row * width + slot.column) * 4, width * 4)
        for i in range(request.rows):
            source[(row + i) * width + slot.column] = 1


cdef list read_texts(const InputRef* ref):
    """The values of a matched BYTES input, or of an INT64 entity id in decimal, as bytes objects."""
    cdef Cursor cursor
    cdef Slice text
    cdef uint32_t field = 0
    cdef uint32_t wire_type = 0
    cdef list values = []
    if ref.code == DT_INT64:
        return [b"%d" % number for number in read_integers(ref)]
    if ref.is_raw:
        cursor = cursor_over(ref.data.data, ref.data.size)
        while left(&cursor) and read_u32(&cursor, &wire_type) and read_bytes(&cursor, wire_type, &text.data):
            values.append(PyBytes_FromStringAndSize(<const char*>text.data, wire_type))
        return values
    cursor = cursor_over(ref.contents.data, ref.contents.size)
    while left(&cursor) and read_tag(&cursor, &field, &wire_type):
        if field == 8 and wire_type == 2:
            if not read_slice(&cursor, &text):
                break
            values.append(PyBytes_FromStringAndSize(<const char*>text.data, text.size))
        elif not skip_value(&cursor, wire_type):
            break
    return values


cdef list read_integers(const InputRef* ref):
    """The values of a matched INT64 input."""
    cdef int64_t* numbers = <int64_t*>malloc(<size_t>ref.elements * 8 + 8)
    if numbers == NULL:
        raise MemoryError
    try:
        copy_tensor(ref, <uint8_t*>numbers)
        return [numbers[i] for i in range(ref.elements)]
    finally:
        free(numbers)


# ---------------------------------------------------------------------------------------------------------------------
# Answers
# ---------------------------------------------------------------------------------------------------------------------

cdef void put_number_parameter(Writer* writer, const char* key, size_t key_size, int64_t value) noexcept nogil:
    """One entry of `parameters` with an int64_param."""
    cdef uint8_t tag = 0x22
    cdef size_t inner = 1 + varint_size(<uint64_t>value)
    put(writer, &tag, 1)
    put_varint(writer, 2 + key_size + 2 + inner)
    put_field(writer, 0x0A, key, key_size)
    tag = 0x12
    put(writer, &tag, 1)
    put_varint(writer, inner)
    tag = 0x10
    put(writer, &tag, 1)
    put_varint(writer, <uint64_t>value)


cdef void put_output(Writer* writer, const OutputBlock* block, bint batched, int64_t rows) noexcept nogil:
    """The InferOutputTensor of one output: name, datatype and packed shape."""
    cdef size_t shape = varint_size(<uint64_t>rows) if batched else 0
    cdef uint8_t tag = 0x2A
    cdef int i
    for i in range(block.n_dims):
        shape += varint_size(<uint64_t>block.dims[i])
    put(writer, &tag, 1)
    put_varint(writer, block.head.size + 1 + varint_size(shape) + shape)
    put(writer, block.head.data, block.head.size)
    tag = 0x1A
    put(writer, &tag, 1)
    put_varint(writer, shape)
    if batched:
        put_varint(writer, <uint64_t>rows)
    for i in range(block.n_dims):
        put_varint(writer, <uint64_t>block.dims[i])


cdef size_t write_response(Plan plan, const Request* request, const OutputBlock* blocks, int64_t row,
                           const Timing* timing, uint8_t* out) noexcept nogil:
    """Write the answer to one call, whose rows begin at batch row `row`; with `out` NULL only count its bytes.

    `blocks` holds one entry per output of the plan; `timing` is NULL unless the caller asked for it.
    """
    cdef Writer writer
    cdef const OutputBlock* block
    cdef int index
    cdef int64_t first, last
    writer.at = out
    writer.size = 0
    put(&writer, plan.head.data, plan.head.size)
    if request.id.size:
        put_field(&writer, 0x1A, request.id.data, request.id.size)
    if timing != NULL:
        put_number_parameter(&writer, b"batch_rows", 10, timing.batch_rows)
        put_number_parameter(&writer, b"queue_us", 8, timing.queue_us)
        put_number_parameter(&writer, b"lookup_us", 9, timing.lookup_us)
        put_number_parameter(&writer, b"compute_us", 10, timing.compute_us)
    for index in range(plan.n_outputs):
        if request.wanted >> index & 1:
            put_output(&writer, &blocks[index], plan.batched, request.rows)
    for index in range(plan.n_outputs):
        if request.wanted >> index & 1:
            block = &blocks[index]
            first = row * block.item_bytes
            last = (row + request.rows) * block.item_bytes
            if block.offsets != NULL:
                first = block.offsets[first]
                last = block.offsets[last]
            put_field(&writer, 0x32, block.data + first, <size_t>(last - first))
    return writer.size


def encode_field(number, value):
    """A length-delimited field of protobuf: text or bytes."""
    data = value.encode() if isinstance(value, str) else bytes(value)
    return encode_varint(number << 3 | 2) + encode_varint(len(data)) + data


def encode_varint(value):
    """A non-negative number as protobuf writes it."""
    digits = bytearray()
    while value >= 0x80:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    digits.append(value)
    return bytes(digits)


cdef bytes encode_head(model_name, model_version, parameters):
    """The part of every answer that never changes: model name, version and text parameters."""
    entries = [encode_field(4, encode_field(1, key) + encode_field(2, encode_field(3, value)))
               for key, value in parameters.items()]
    return encode_field(1, model_name) + encode_field(2, model_version) + b"".join(entries)


# ---------------------------------------------------------------------------------------------------------------------
# Words for what was wrong
# ---------------------------------------------------------------------------------------------------------------------

cdef str text_of(const Slice* slice):
    """Text from the wire, cut short and without control characters, for an error message."""
    cdef size_t size = slice.size if slice.size < 100 else 100
    text = (<const char*>slice.data)[:size].decode("utf-8", "replace") if size else ""
    return "".join(c if c.isprintable() else "?" for c in text) + ("..." if slice.size > size else "")


cdef str list_names(names):
    shown = ", ".join(repr(name) for name in names[:12])
    return shown + (f" and {len(names) - 12} more" if len(names) > 12 else "")


cdef str expected_shape(Plan plan, const Slot* slot):
    if slot.kind == KIND_COLUMN or slot.kind == KIND_ENTITY:
        return "[n] or [n,1]"
    dims = ["-1"] if plan.batched else []
    return "[" + ",".join(dims + [str(slot.dims[i]) for i in range(slot.n_dims)]) + "]"


cdef str expected_type(const Slot* slot):
    if slot.kind == KIND_COLUMN:
        return "any number type"
    return "'BYTES' or 'INT64'" if slot.kind == KIND_ENTITY else f"'{DATATYPES[<int>slot.code]}'"


cdef str explain(Plan plan, const Request* request, const Fault* fault):
    """One line for the caller: which part was wrong, what was expected, what came."""
    cdef const InputRef* ref = NULL
    cdef const Slot* slot = NULL
    if fault.code == MALFORMED:
        return "the request is not a well-formed ModelInferRequest"
    if fault.code == TOO_MANY_PARTS:
        return f"the request has more parts than are served: {STRICTER[0]}; or an input with two contents"
    if fault.code == OUT_OF_MEMORY:
        return "no memory for the request"
    model = f"for model '{text_of(&request.model_name)}'"
    if fault.code == UNKNOWN_OUTPUT:
        name = text_of(&request.outputs[fault.part])
        return f"unexpected inference output '{name}' {model}; it has {list_names([o.name for o in plan.outputs])}"
    if fault.code == MISSING_INPUT:
        name = (<bytes>(<const char*>plan.slots[fault.part].name.data)[:plan.slots[fault.part].name.size]).decode()
        return f"input '{name}' is missing {model}; it takes {list_names([i.name for i in plan.inputs])}"
    if fault.code == MISSING_FEATURES:
        wanted = " or ".join(f"'{i.name}'" for i in plan.inputs)
        wanted += f" or all {fault.expected} columns by name"
        return f"features are missing {model}: send {wanted}, got {fault.got} columns"
    if fault.code == WRONG_RAW_COUNT:
        return (f"the number of inputs ({fault.expected}) does not match the number of raw input contents "
                f"({fault.got}) {model}")
    if fault.code == NO_ROWS:
        return f"the request has no rows {model}; send at least one"
    if fault.code == CLASSIFICATION:
        return "the classification extension is not served; ask for the output itself"
    if fault.code == SHARED_MEMORY:
        return "shared memory is not served; send the tensor in the request"
    ref = &request.inputs[fault.part]
    name = f"input '{text_of(&ref.name)}'"
    if fault.code == UNKNOWN_INPUT:
        columns = f" and the columns {list_names(plan.columns)}" if plan.n_columns else ""
        return f"unexpected inference {name} {model}; it takes {list_names([i.name for i in plan.inputs])}{columns}"
    if fault.code == DUPLICATE_INPUT:
        return f"{name} was sent twice {model}"
    slot = &plan.slots[ref.slot]
    if fault.code == WRONG_DATATYPE:
        got = text_of(&ref.datatype)
        return f"inference {name} data-type is '{got}', but {model[4:]} expects {expected_type(slot)}"
    shape = "[" + ",".join(str(ref.dims[i]) for i in range(ref.n_dims)) + "]"
    if fault.code == WRONG_SHAPE:
        return f"unexpected shape for {name} {model}. Expected {expected_shape(plan, slot)}, got {shape}."
    if fault.code == TOO_MANY_TEXTS:
        return f"{name} has {fault.got} values {model}; at most {fault.expected} are served at once: send fewer rows"
    if fault.code == BATCH_MISMATCH:
        return f"{name} batch size does not match other inputs {model}. Expected {fault.expected}, got {fault.got}."
    if fault.code == WRONG_RAW_SIZE:
        return f"input byte size mismatch for {name} {model}. Expected {fault.expected}, got {fault.got}."
    if fault.code == CONTENTS_AND_RAW:
        return f"contents field must not be specified when using raw_input_contents for {name} {model}"
    if fault.code == WRONG_CONTENTS_COUNT:
        return f"unexpected number of values for {name} {model}. Expected {fault.expected}, got {fault.got}."
    if fault.code == BAD_BYTES_LENGTH:
        return f"incomplete string length indicator for {name} {model}: each value is a 4-byte length and its bytes"
    if fault.code == VALUE_OUT_OF_RANGE:
        return f"a value of {name} does not fit {DATATYPES[<int>ref.code]} {model}"
    if fault.code == WRONG_CONTENTS_FIELD and contents_field(ref.code) == 0:
        return f"{name} is {DATATYPES[<int>ref.code]}, which travels in raw_input_contents only, {model}"
    return f"{name} has values in the wrong field of its contents {model}"


# ---------------------------------------------------------------------------------------------------------------------
# The gates for Python
# ---------------------------------------------------------------------------------------------------------------------

def peek(bytes body not None):
    """Model name and version of a request, as bytes, without looking into its inputs.

    Steps over every top-level field, since the last of several names counts: a few nanoseconds each.

    Raises:
        WireError: the bytes are not a sequence of protobuf fields.
    """
    cdef Cursor cursor = cursor_over(<const uint8_t*>PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body))
    cdef uint32_t field = 0
    cdef uint32_t wire_type = 0
    cdef bint good = True
    cdef Slice name, version
    name.size = version.size = 0
    name.data = version.data = NULL
    while good and left(&cursor):
        good = read_tag(&cursor, &field, &wire_type)
        if good and wire_type == 2 and field <= 2:
            good = read_slice(&cursor, &name if field == 1 else &version)
        elif good:
            good = skip_value(&cursor, wire_type)
    if not good:
        raise WireError("the request is not a well-formed ModelInferRequest")
    return bytes_of(&name), bytes_of(&version)


cdef object wire_error(Plan plan, const Request* request, const Fault* fault):
    return WireError(explain(plan, request, fault), FAULTS[<int>fault.code])


cdef bytes bytes_of(const Slice* slice):
    return PyBytes_FromStringAndSize(<const char*>slice.data, slice.size)


cdef str string_of(const Slice* slice):
    return bytes_of(slice).decode()


cdef list contents_values(InputRef* ref, uint32_t field):
    """The values of one field of typed contents, at the width protobuf gives them."""
    cdef list codes = [0, <int>DT_BOOL, <int>DT_INT32, <int>DT_INT64, <int>DT_UINT32, <int>DT_UINT64, <int>DT_FP32,
                       <int>DT_FP64, <int>DT_BYTES]
    cdef InputRef copy = ref[0]
    copy.code = <Datatype><int>codes[field]
    copy.is_raw = False
    if copy.code == DT_BYTES:
        return read_texts(&copy)
    values = np.zeros(copy.counts[field], NUMPY[DATATYPES[<int>copy.code]])
    cdef uint8_t[::1] out = values.view("u1")
    if values.size:
        copy_contents(&copy, copy.code, &out[0], item_size(copy.code))
    return values.tolist()


def parse(bytes body not None):
    """A request as plain Python values, without a plan: the codec's own view, for tests and tools.

    Returns:
        dict with model_name, model_version, id, timeout_us, timing, raws (bytes), outputs (names) and inputs: name,
        datatype, shape and contents (field number of InferTensorContents to its values, or None where absent).

    Raises:
        WireError: not a well-formed request.
    """
    cdef Request request
    cdef InputRef* ref
    cdef Fault fault
    init_request(&request)
    try:
        fault.code = parse_request(<const uint8_t*>PyBytes_AS_STRING(body), len(body), &request)
        if fault.code != OK:
            raise wire_error(None, &request, &fault)
        inputs = []
        for index in range(request.n_inputs):
            ref = &request.inputs[<int>index]
            contents = None
            if ref.contents.data != NULL:
                contents = {f: contents_values(ref, f) for f in range(1, CONTENTS_FIELDS) if ref.counts[<int>f]}
            inputs.append({"name": string_of(&ref.name), "datatype": string_of(&ref.datatype),
                           "shape": [ref.dims[i] for i in range(ref.n_dims)], "contents": contents})
        return {"model_name": string_of(&request.model_name), "model_version": string_of(&request.model_version),
                "id": string_of(&request.id), "timeout_us": request.timeout_us, "timing": bool(request.timing),
                "inputs": inputs,
                "outputs": [string_of(&request.outputs[<int>i]) for i in range(request.n_outputs)],
                "raws": [bytes_of(&request.raws[<int>i]) for i in range(request.n_raws)]}
    finally:
        free_request(&request)


def decode(Plan plan not None, bytes body not None):
    """One request held against a plan and decoded into arrays of its own.

    Returns:
        (arrays, source, rows): arrays maps each input of the plan that is fed to its ndarray ([rows, ...], the datatype
        of the plan) or to a list of bytes; source is the uint8 [rows, n_columns] map of the matrix (1: from the
        caller; 0: from nobody, the value is NaN), or None where the version has no matrix.

    Raises:
        WireError: malformed, or it does not fit the plan.
    """
    cdef Request request
    cdef Fault fault
    cdef uint8_t* buffers[MAX_TENSORS]
    cdef uint8_t[::1] bytes_view
    cdef uint8_t[:, ::1] source_view
    cdef uint8_t* source_data = NULL
    cdef InputRef* ref
    cdef Slot* slot
    init_request(&request)
    try:
        fault.code = parse_request(<const uint8_t*>PyBytes_AS_STRING(body), len(body), &request)
        if fault.code == OK:
            match_request(plan, &request, &fault)
        if fault.code != OK:
            raise wire_error(plan, &request, &fault)
        arrays, source = {}, None
        for index, entry in enumerate(plan.inputs):
            slot = &plan.slots[<int>index]
            shape = matched_shape(plan, &request, <int>index)
            if shape is None and slot.kind != KIND_MATRIX:
                continue
            if slot.kind == KIND_ENTITY or slot.code == DT_BYTES:
                continue
            if shape is None:
                shape = (request.rows, plan.n_columns)
            arrays[entry.name] = np.zeros(shape, NUMPY[entry.datatype])
            bytes_view = arrays[entry.name].reshape(-1).view("u1")
            buffers[slot.buffer] = &bytes_view[0] if bytes_view.shape[0] else NULL
        if plan.matrix_slot >= 0:
            source = np.zeros((request.rows, plan.n_columns), "u1")
            source_view = source
            source_data = &source_view[0, 0]
        fill_numbers(plan, &request, 0, buffers, source_data)
        for index in range(request.n_inputs):
            ref = &request.inputs[<int>index]
            slot = &plan.slots[ref.slot]
            if slot.kind == KIND_ENTITY or ref.code == DT_BYTES:
                arrays[plan.inputs[ref.slot].name] = read_texts(ref)
        return arrays, source, request.rows
    finally:
        free_request(&request)


cdef object matched_shape(Plan plan, const Request* request, int slot):
    """The full shape in which a slot was sent, or None."""
    for index in range(request.n_inputs):
        if request.inputs[<int>index].slot == slot:
            return tuple(request.inputs[<int>index].dims[i] for i in range(request.inputs[<int>index].n_dims))
    return None


cdef tuple pack_texts(array):
    """Length-prefixed values of a text array in one bytes object, and where each begins (the end last)."""
    values = [v if isinstance(v, bytes) else str(v).encode() for v in array.ravel().tolist()]
    offsets = np.zeros(len(values) + 1, np.int64)
    np.cumsum([4 + len(v) for v in values], out=offsets[1:])
    return b"".join([part for v in values for part in (len(v).to_bytes(4, "little"), v)]), offsets


cdef class Blocks:
    """The outputs of one batch, ready to be cut into answers: holds the arrays that `OutputBlock`s point into."""

    def __cinit__(self):
        memset(self.blocks, 0, sizeof(self.blocks))
        self.keep = []

    cdef int set(self, Plan plan, int index, array, int64_t rows) except -1:
        """Output `index` of the plan is `array` ([rows, ...] where the version is batched)."""
        cdef OutputBlock* block = &self.blocks[index]
        cdef const uint8_t[::1] data
        cdef const int64_t[::1] places
        entry = plan.outputs[index]
        array = np.asarray(array, order="C")
        shape = array.shape[1:] if plan.batched else array.shape
        if plan.batched and (array.ndim == 0 or array.shape[0] != rows):
            raise ValueError(f"output {entry.name!r} has shape {list(array.shape)} for a batch of {rows} rows")
        if len(shape) > MAX_DIMS:
            raise ValueError(f"output {entry.name!r} has more than {MAX_DIMS} dimensions")
        block.head = slice_of(plan.output_heads[index])
        block.n_dims = len(shape)
        items = 1
        for i, size in enumerate(shape):
            block.dims[<int>i] = size
            items *= size
        if entry.datatype == "BYTES":
            packed, offsets = pack_texts(array)
            self.keep += [packed, offsets]
            places = offsets
            block.offsets = &places[0]
            block.item_bytes = items
            block.data = <const uint8_t*>PyBytes_AS_STRING(packed)
            return 0
        if array.dtype != np.dtype(NUMPY[entry.datatype]):
            raise ValueError(f"output {entry.name!r} is {array.dtype}, the version promises {entry.datatype}")
        block.item_bytes = items * array.itemsize
        if array.size:
            data = array.reshape(-1).view("u1")
            block.data = &data[0]
        self.keep.append(array)
        return 0


def encode(Plan plan not None, bytes body not None, outputs, int64_t row=0, timing=None):
    """The answer to one request whose rows begin at `row` of a batch's outputs.

    Args:
        plan: what the version gives.
        body: the request the answer is for (its id and requested outputs are read).
        outputs: name to ndarray for every output wanted, [batch rows, ...].
        timing: batch_rows, queue_us, lookup_us, compute_us, or None.

    Raises:
        WireError: the request does not fit the plan.
        ValueError: an output's shape or dtype is not what the plan promises.
    """
    cdef Request request
    cdef Fault fault
    cdef Timing times
    cdef Blocks blocks = Blocks()
    cdef bytes answer
    cdef size_t size
    init_request(&request)
    try:
        fault.code = parse_request(<const uint8_t*>PyBytes_AS_STRING(body), len(body), &request)
        if fault.code == OK:
            match_request(plan, &request, &fault)
        if fault.code != OK:
            raise wire_error(plan, &request, &fault)
        if row < 0 or (row and not plan.batched):
            raise ValueError(f"row {row} is not in the batch")
        for index, entry in enumerate(plan.outputs):
            if request.wanted >> <int>index & 1:
                if entry.name not in outputs:
                    raise ValueError(f"output {entry.name!r} is wanted and was not given")
                array = np.asarray(outputs[entry.name])
                given = array.shape[0] if array.ndim else 1   # indexing is unchecked in compiled code
                blocks.set(plan, index, array, given)
                if plan.batched and given - request.rows < row:
                    raise ValueError(f"output {entry.name!r} ends before row {row + request.rows}")
        if timing is not None:
            times.batch_rows, times.queue_us, times.lookup_us, times.compute_us = timing
        size = write_response(plan, &request, blocks.blocks, row, &times if timing is not None else NULL, NULL)
        answer = PyBytes_FromStringAndSize(NULL, size)
        write_response(plan, &request, blocks.blocks, row, &times if timing is not None else NULL,
                       <uint8_t*>PyBytes_AS_STRING(answer))
        return answer
    finally:
        free_request(&request)
