"""What comes back on a stream: its status, and a message that is looked into where it lies if it came in one piece."""

from libc.stdint cimport int32_t, uint8_t
from libc.stdlib cimport malloc, realloc
from libc.string cimport memcpy

from penstock.kernels._fitting cimport FIT_MALFORMED, fit_answer
from penstock.kernels._grpc cimport PREFIX_BYTES, equals, message_size
from penstock.kernels._load cimport MAX_ANSWER_BYTES, STATUS_UNKNOWN, STATUSES, Call, Shared, Thread, Wire
from penstock.kernels._nghttp2 cimport (
    NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE, nghttp2_frame, nghttp2_session, nghttp2_session_get_stream_user_data,
)
from penstock.kernels._system cimport flag_raise
from penstock.kernels.load_calls cimport say


cdef int on_header(nghttp2_session* session, const nghttp2_frame* frame, const uint8_t* name, size_t name_size,
                   const uint8_t* value, size_t value_size, uint8_t flags, void* user_data) noexcept nogil:
    cdef Call* call
    cdef Thread* thread = (<Wire*>user_data).thread
    if name_size < 7 or (name[0] != c':' and name[0] != c'g'):
        return 0
    call = <Call*>nghttp2_session_get_stream_user_data(session, frame.hd.stream_id)
    if call == NULL:
        return 0
    if equals(name, name_size, b":status", 7):
        call.http_ok = equals(value, value_size, b"200", 3)
    elif equals(name, name_size, b"grpc-status", 11):
        call.status = status_of(value, value_size)
    elif equals(name, name_size, b"grpc-message", 12) and call.status > 0:
        say(thread, call.status, <const char*>value, value_size)
    return 0


cdef int status_of(const uint8_t* text, size_t size) noexcept nogil:
    cdef int status = 0
    cdef size_t i
    if size < 1 or size > 2:
        return STATUS_UNKNOWN
    for i in range(size):
        if not c'0' <= text[i] <= c'9':
            return STATUS_UNKNOWN
        status = status * 10 + text[i] - c'0'
    return status if status < STATUSES else STATUS_UNKNOWN


cdef int on_data(nghttp2_session* session, uint8_t flags, int32_t number, const uint8_t* data, size_t size,
                 void* user_data) noexcept nogil:
    cdef Call* call = <Call*>nghttp2_session_get_stream_user_data(session, number)
    if call == NULL or size == 0:
        return 0
    if call.answer_size == 0 and is_whole(data, size):
        take_message(call, data, size)
    elif not keep(call, data, size):
        return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE
    elif is_whole(call.answer, call.answer_size):
        take_message(call, call.answer, call.answer_size)
        call.answer_size = 0
    return 0


cdef inline bint is_whole(const uint8_t* data, size_t size) noexcept nogil:
    return size >= PREFIX_BYTES and size - PREFIX_BYTES == message_size(data)


cdef void take_message(Call* call, const uint8_t* data, size_t size) noexcept nogil:
    """Look at a message, which has its prefix."""
    cdef Thread* thread = call.wire.thread
    cdef Shared* shared = thread.shared
    call.messages += 1
    if not thread.sampled:
        thread.sample = <uint8_t*>malloc(size)
        if thread.sample != NULL:
            memcpy(thread.sample, data, size)
            thread.sample_size = size
            flag_raise(&thread.sampled)
    if data[0]:              # compressed, which nobody asked for
        call.fit = FIT_MALFORMED
    elif shared.output_count:
        call.fit = fit_answer(shared.outputs, shared.output_count, call.body.rows, data + PREFIX_BYTES,
                              size - PREFIX_BYTES)


cdef bint keep(Call* call, const uint8_t* data, size_t size) noexcept nogil:
    """Put a piece of an answer to what came of it; False where that gets too large."""
    cdef size_t needed = call.answer_size + size
    cdef size_t capacity = call.answer_capacity if call.answer_capacity else 4096
    cdef uint8_t* grown
    if needed > MAX_ANSWER_BYTES:
        return False
    while capacity < needed:
        capacity *= 2
    if capacity != call.answer_capacity:
        grown = <uint8_t*>realloc(call.answer, capacity)
        if grown == NULL:
            return False
        call.answer, call.answer_capacity = grown, capacity
    memcpy(call.answer + call.answer_size, data, size)
    call.answer_size = needed
    return True
