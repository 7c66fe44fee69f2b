"""A request against a plan: every input known, of a datatype, shape and count that the version takes, and none missing.

Nothing is copied or allocated. What fits has its slots, sizes and wanted outputs noted in the request itself; what does
not is told by a code and three numbers, which `wire_faults.pyx` turns into words only where somebody reads them.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t, uint8_t
from libc.string cimport memset

from penstock.kernels._cursor cimport Cursor, cursor_over, left, read_bytes, read_u32
from penstock.kernels._datatypes cimport (
    DT_BF16, DT_BYTES, DT_FP16, DT_INT64, DT_NONE, Datatype, contents_field, datatype_of, item_size,
)
from penstock.kernels._protobuf cimport Slice, equals
from penstock.kernels._wire cimport (
    BAD_BYTES_LENGTH, BATCH_MISMATCH, CLASSIFICATION, CONTENTS_AND_RAW, CONTENTS_FIELDS, DUPLICATE_INPUT, MAX_ELEMENTS,
    MAX_TENSORS, MISSING_FEATURES, MISSING_INPUT, NO_ROWS, OK, SHARED_MEMORY, TOO_MANY_TEXTS, UNKNOWN_INPUT,
    UNKNOWN_OUTPUT, VALUE_OUT_OF_RANGE, WRONG_CONTENTS_COUNT, WRONG_CONTENTS_FIELD, WRONG_DATATYPE, WRONG_RAW_COUNT,
    WRONG_RAW_SIZE, WRONG_SHAPE, Fault, FaultCode, InputRef, Request,
)
from penstock.kernels.wire_plan cimport KIND_COLUMN, KIND_ENTITY, Plan, Slot
from penstock.kernels.wire_values cimport copy_contents

cdef int64_t MAX_TEXTS = 1 << 20    # values of one BYTES or entity input, each of which becomes an object


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
