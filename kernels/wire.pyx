"""The codec of `ModelInferRequest` and `ModelInferResponse` as Python sees it: one request read, decoded or answered.

Lanes and batches do the same with many, by the same parts: `_wire.pxd` has the theory and the order of them. Of the
functions only `peek` is called where requests are served; the others are for tests and tools.
"""

import numpy as np

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint32_t, uint8_t

from penstock.kernels cimport wire_plan
from penstock.kernels._cursor cimport Cursor, cursor_over, left
from penstock.kernels._datatypes cimport (
    DT_BOOL, DT_BYTES, DT_FP32, DT_FP64, DT_INT32, DT_INT64, DT_UINT32, DT_UINT64, Datatype, item_size,
)
from penstock.kernels._protobuf cimport Slice, read_slice, read_tag, skip_value
from penstock.kernels._wire cimport CONTENTS_FIELDS, MAX_TENSORS, OK, Fault, InputRef, Request
from penstock.kernels.wire_answers cimport Timing, write_response
from penstock.kernels.wire_blocks cimport Blocks
from penstock.kernels.wire_faults cimport wire_error
from penstock.kernels.wire_match cimport match_request
from penstock.kernels.wire_plan cimport KIND_ENTITY, KIND_MATRIX, Slot
from penstock.kernels.wire_requests cimport free_request, init_request, parse_request
from penstock.kernels.wire_values cimport copy_contents, fill_numbers, read_texts

# Python finds all of these here, whether they are used or not.
from penstock.kernels.wire_faults import FAULTS, STRICTER, WireError  # no-cython-lint
from penstock.kernels.wire_plan import DATATYPES, NUMPY, Plan
from penstock.kernels.wire_plan import PlanInput, PlanOutput, encode_field, encode_varint  # no-cython-lint


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


def decode(wire_plan.Plan plan not None, bytes body not None):
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


cdef object matched_shape(wire_plan.Plan plan, const Request* request, int slot):
    """The full shape in which a slot was sent, or None."""
    for index in range(request.n_inputs):
        if request.inputs[<int>index].slot == slot:
            return tuple(request.inputs[<int>index].dims[i] for i in range(request.inputs[<int>index].n_dims))
    return None


def encode(wire_plan.Plan plan not None, bytes body not None, outputs, int64_t row=0, timing=None):
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
