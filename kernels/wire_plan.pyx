"""What one served version takes and gives: the table that every request is held against, made once when it is loaded.

Names, datatypes and shapes become slots that are compared without Python, and what never changes in an answer is
encoded beforehand. Whatever a version may not ask for is refused here.
"""

from collections import namedtuple

from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport calloc, free

from penstock.kernels._datatypes cimport Datatype
from penstock.kernels._protobuf cimport Slice
from penstock.kernels._wire cimport MAX_DIMS, MAX_ELEMENTS, MAX_TENSORS, slice_of

DATATYPES = ("", "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64",
             "FP16", "BF16", "FP32", "FP64", "BYTES")
"""Datatypes of the Open Inference Protocol; a datatype's place is its code."""

NUMPY = {"BOOL": "?", "UINT8": "u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8", "INT8": "i1", "INT16": "<i2",
         "INT32": "<i4", "INT64": "<i8", "FP16": "<f2", "BF16": "<u2", "FP32": "<f4", "FP64": "<f8"}
"""Numpy's form of each fixed-size datatype; BF16 travels as its bit pattern."""

PlanInput = namedtuple("PlanInput", "name datatype shape kind optional")
PlanOutput = namedtuple("PlanOutput", "name datatype shape on_request")


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
