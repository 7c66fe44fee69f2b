"""The grammar of `ModelInferRequest`: where the parts of a request lie in its body, found without copying anything.

Every message is read through the checked cursor, unknown fields are stepped over, and strings must be UTF-8. Memory is
taken for more than INLINE_TENSORS inputs, raw contents or outputs only, and bounded by MAX_TENSORS. What the parts mean
is told by a plan (`wire_match.pyx`).
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t, uint8_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from penstock.kernels._cursor cimport Cursor, cursor_over, left, read_u64, read_varint
from penstock.kernels._datatypes cimport contents_wire_type
from penstock.kernels._protobuf cimport Slice, equals, read_message, read_slice, read_tag, skip_value
from penstock.kernels._wire cimport (
    INLINE_TENSORS, MALFORMED, MAX_DIMS, MAX_PARAMETERS, MAX_TENSORS, OK, OUT_OF_MEMORY, TOO_MANY_PARTS, FaultCode,
    InputRef, Request,
)

cdef int64_t MAX_TIMEOUT_US = <int64_t>1 << 50    # 35 years; as nanoseconds after any present still 63 bits


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
