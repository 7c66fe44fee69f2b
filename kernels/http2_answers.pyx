"""What goes out on a stream: messages, then a status in trailers; or a status alone; or a reset.

An answer is a list of chunks, one a message. Their bytes stay where they are until nghttp2 asks for them, and are
copied once, into its frame. Whoever adds a chunk has charged the budget of bytes for it.

Rules: nothing is submitted twice on a stream; a call that is refused before its request has ended gets its whole answer
first and is reset then; what the client does not read is watched by a timer. Which answer a call gets is decided above.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t
from libc.stdio cimport snprintf
from libc.stdlib cimport free
from libc.string cimport memcpy, strlen

from penstock.kernels._grpc cimport (
    ENCODING_DEFLATE, ENCODING_GZIP, PREFIX_BYTES, STATUS_RESOURCE_EXHAUSTED, STATUS_UNAVAILABLE, percent_encode,
    write_prefix,
)
from penstock.kernels._http2 cimport Chunk, Loop, Stream, to_write
from penstock.kernels._nghttp2 cimport (
    NGHTTP2_CANCEL, NGHTTP2_DATA_FLAG_EOF, NGHTTP2_DATA_FLAG_NO_END_STREAM, NGHTTP2_ERR_DEFERRED,
    NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE, NGHTTP2_FLAG_NONE, NGHTTP2_INTERNAL_ERROR, NGHTTP2_NV_FLAG_NO_COPY_NAME,
    NGHTTP2_NV_FLAG_NO_COPY_VALUE, nghttp2_data_provider, nghttp2_data_source, nghttp2_nv, nghttp2_session,
    nghttp2_session_resume_data, nghttp2_submit_response, nghttp2_submit_rst_stream, nghttp2_submit_trailer,
)
from penstock.kernels._system cimport tally
from penstock.kernels._timers cimport set_timer
from penstock.kernels.exchanges cimport WRITTEN, Command, give_back, next_field, post_event

cdef enum:
    MAX_FIELDS = 24          # of a response's headers or trailers
    MAX_MESSAGE_TEXT = 2000  # bytes of a status message that are sent
    STATUS_TEXT = 16         # room for a status as digits
    TEXT_BYTES = STATUS_TEXT + 3 * MAX_MESSAGE_TEXT


cdef inline nghttp2_nv field(const char* name, const char* value, size_t value_size) noexcept nogil:
    """A header whose name and value outlive its sending."""
    cdef nghttp2_nv made
    made.name, made.namelen = <uint8_t*>name, strlen(name)
    made.value, made.valuelen = <uint8_t*>value, value_size
    made.flags = NGHTTP2_NV_FLAG_NO_COPY_NAME | NGHTTP2_NV_FLAG_NO_COPY_VALUE
    return made


cdef inline nghttp2_nv copied(const char* name, const uint8_t* value, size_t value_size) noexcept nogil:
    """A header whose value nghttp2 is to copy."""
    cdef nghttp2_nv made = field(name, <const char*>value, value_size)
    made.flags = NGHTTP2_NV_FLAG_NO_COPY_NAME
    return made


cdef void send_chunk(Stream* stream, Chunk* chunk, uint8_t* data, size_t size, bint compressed,
                     int encoding) noexcept nogil:
    """Add a message to the answer; the first one begins it, in an encoding."""
    add_chunk(stream, chunk, data, size, compressed)
    if stream.answered:
        nghttp2_session_resume_data(stream.connection.session, stream.id)
    else:
        begin_answer(stream, encoding)
    watch_reading(stream)
    to_write(stream.connection)


cdef void add_chunk(Stream* stream, Chunk* chunk, uint8_t* data, size_t size, bint compressed) noexcept nogil:
    chunk.next = NULL
    chunk.data = data
    chunk.size = size
    chunk.sent = 0
    write_prefix(chunk.prefix, size, compressed)
    if stream.out == NULL:
        stream.out = chunk
    else:
        stream.last.next = chunk
    stream.last = chunk


cdef void drop_chunk(Stream* stream) noexcept nogil:
    """Take the first chunk off the answer."""
    cdef Chunk* chunk = stream.out
    stream.out = chunk.next
    if stream.out == NULL:
        stream.last = NULL
    if chunk.owned:
        give_back(&stream.connection.loop.shared.budget, <int64_t>chunk.size)
        free(chunk.data)
        free(chunk)


cdef void begin_answer(Stream* stream, int encoding) noexcept nogil:
    """Submit the headers of an answer that has at least one message."""
    cdef nghttp2_nv[4] fields
    cdef nghttp2_data_provider provider
    cdef size_t n = 3
    fields[0] = field(":status", "200", 3)
    fields[1] = field("content-type", "application/grpc", 16)
    fields[2] = field("grpc-accept-encoding", "identity,deflate,gzip", 21)
    if encoding == ENCODING_GZIP:
        fields[3] = field("grpc-encoding", "gzip", 4)
        n = 4
    elif encoding == ENCODING_DEFLATE:
        fields[3] = field("grpc-encoding", "deflate", 7)
        n = 4
    provider.source.ptr = stream
    provider.read_callback = read_answer
    stream.answered = True
    stream.answered_at = stream.connection.loop.now
    if nghttp2_submit_response(stream.connection.session, stream.id, fields, n, &provider) != 0:
        reset(stream, NGHTTP2_INTERNAL_ERROR)


cdef void watch_reading(Stream* stream) noexcept nogil:
    """An answer that nobody reads is not kept for long, whatever the deadline."""
    cdef Loop* loop = stream.connection.loop
    cdef int64_t due = loop.now + loop.shared.limits.body
    stream.progressed = loop.now
    if stream.timer.link == NULL or stream.timer.due > due:
        set_timer(&loop.wheel, &stream.timer, due)


cdef ssize_t read_answer(nghttp2_session* session, int32_t number, uint8_t* out, size_t room, uint32_t* flags,
                         nghttp2_data_source* source, void* user_data) noexcept nogil:
    """nghttp2 asks for the next bytes of an answer."""
    cdef Stream* stream = <Stream*>source.ptr
    cdef Chunk* chunk
    cdef size_t written = 0
    stream.progressed = stream.connection.loop.now
    while stream.out != NULL and written < room:
        chunk = stream.out
        written += copy_part(chunk, out + written, room - written)
        if chunk.sent == chunk.size + PREFIX_BYTES:
            if chunk.owned and stream.exchange != NULL:
                post_event(&stream.connection.loop.shared.events, WRITTEN, stream.exchange, NULL, 0, False)
            drop_chunk(stream)
    stream.taken += <int64_t>written
    if stream.out == NULL and stream.finished:
        flags[0] |= NGHTTP2_DATA_FLAG_EOF | NGHTTP2_DATA_FLAG_NO_END_STREAM
        if send_trailers(stream) != 0:
            return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE
        return <ssize_t>written
    return <ssize_t>written if written else NGHTTP2_ERR_DEFERRED


cdef inline size_t copy_part(Chunk* chunk, uint8_t* out, size_t room) noexcept nogil:
    """Copy the rest of the prefix, or of the message behind it, as far as there is room; how many bytes that are."""
    cdef size_t part
    if chunk.sent < PREFIX_BYTES:
        part = min(PREFIX_BYTES - chunk.sent, room)
        memcpy(out, chunk.prefix + chunk.sent, part)
    else:
        part = min(chunk.size + PREFIX_BYTES - chunk.sent, room)
        memcpy(out, chunk.data + chunk.sent - PREFIX_BYTES, part)
    chunk.sent += part
    return part


cdef int send_trailers(Stream* stream) noexcept nogil:
    cdef nghttp2_nv[MAX_FIELDS] fields
    cdef uint8_t[TEXT_BYTES] text
    cdef size_t n = 1
    cdef Command* finish = stream.finish
    if finish == NULL:
        fields[0] = field("grpc-status", "0", 1)
    else:
        n = status_fields(fields, 0, text, finish.status, finish.data, finish.size, finish.data + finish.size,
                          finish.trailing)
    return nghttp2_submit_trailer(stream.connection.session, stream.id, fields, n)


cdef size_t status_fields(nghttp2_nv* fields, size_t n, uint8_t* text, int status, const uint8_t* message, size_t size,
                          const uint8_t* trailing, size_t trailing_size) noexcept nogil:
    """Add grpc-status, grpc-message and trailing metadata to `fields`; how many there are then.

    `text` has room for TEXT_BYTES and is read until the fields are submitted.
    """
    cdef const uint8_t* at = trailing
    cdef const uint8_t* name
    cdef const uint8_t* value
    cdef size_t name_size, value_size
    cdef int digits = snprintf(<char*>text, STATUS_TEXT, "%d", status)
    fields[n] = copied("grpc-status", text, <size_t>digits)
    n += 1
    if size:
        size = percent_encode(message, size_to_send(message, size), text + STATUS_TEXT)
        fields[n] = copied("grpc-message", text + STATUS_TEXT, size)
        n += 1
    if status == STATUS_UNAVAILABLE and trailing_size == 0:
        fields[n] = field("grpc-retry-pushback-ms", "50", 2)
        n += 1
    while n < MAX_FIELDS and next_field(&at, trailing + trailing_size, &name, &name_size, &value, &value_size):
        fields[n] = copied("", value, value_size)
        fields[n].name, fields[n].namelen, fields[n].flags = <uint8_t*>name, name_size, NGHTTP2_FLAG_NONE
        n += 1
    return n


cdef size_t size_to_send(const uint8_t* message, size_t size) noexcept nogil:
    """How many bytes of a status message are sent; no character is cut in two."""
    if size <= MAX_MESSAGE_TEXT:
        return size
    size = MAX_MESSAGE_TEXT
    while size and message[size] & 0xc0 == 0x80:
        size -= 1
    return size


cdef void end_with(Stream* stream, int status, const char* message, size_t size, const uint8_t* trailing,
                   size_t trailing_size) noexcept nogil:
    """End a call that has no answer yet with a status, in trailers alone."""
    cdef nghttp2_nv[MAX_FIELDS] fields
    cdef uint8_t[TEXT_BYTES] text
    cdef size_t n
    if stream.answered:
        reset(stream, NGHTTP2_CANCEL)
        return
    fields[0] = field(":status", "200", 3)
    fields[1] = field("content-type", "application/grpc", 16)
    n = status_fields(fields, 2, text, status, <const uint8_t*>message, size, trailing, trailing_size)
    respond(stream, fields, n)


cdef void respond(Stream* stream, const nghttp2_nv* fields, size_t n) noexcept nogil:
    """Answer with headers alone; what still comes of the request is thrown away."""
    stream.answered = stream.finished = stream.refused = True
    drop_body(stream)
    if nghttp2_submit_response(stream.connection.session, stream.id, fields, n, NULL) != 0:
        reset(stream, NGHTTP2_INTERNAL_ERROR)
    to_write(stream.connection)


cdef void drop_body(Stream* stream) noexcept nogil:
    if stream.body != NULL:
        free(stream.body)
        stream.body = NULL
        give_back(&stream.connection.loop.shared.budget, <int64_t>stream.capacity)
        stream.charged -= <int64_t>stream.capacity
        stream.capacity = 0


cdef void reset(Stream* stream, uint32_t code) noexcept nogil:
    stream.refused = True
    nghttp2_submit_rst_stream(stream.connection.session, NGHTTP2_FLAG_NONE, stream.id, code)
    to_write(stream.connection)


cdef void refuse(Stream* stream, int status, const char* message) noexcept nogil:
    end_with(stream, status, message, strlen(message), NULL, 0)


cdef void refuse_size(Stream* stream, const char* form, size_t size) noexcept nogil:
    """RESOURCE_EXHAUSTED with a message that takes the size and the limit."""
    cdef char[160] message
    cdef int written = snprintf(message, sizeof(message), form, size,
                                stream.connection.loop.shared.limits.max_message_bytes)
    end_with(stream, STATUS_RESOURCE_EXHAUSTED, message, <size_t>written, NULL, 0)


cdef void refuse_over_budget(Stream* stream) noexcept nogil:
    tally(&stream.connection.loop.counters.over_budget)
    refuse(stream, STATUS_UNAVAILABLE, "the server holds as many bytes as it may, try again later")


cdef void refuse_encoding(Stream* stream) noexcept nogil:
    """UNIMPLEMENTED, and which encodings are known."""
    cdef nghttp2_nv[5] fields
    cdef const char* message = "this grpc-encoding is not understood; identity, gzip and deflate are"
    fields[0] = field(":status", "200", 3)
    fields[1] = field("content-type", "application/grpc", 16)
    fields[2] = field("grpc-status", "12", 2)
    fields[3] = field("grpc-message", message, strlen(message))
    fields[4] = field("grpc-accept-encoding", "identity,deflate,gzip", 21)
    respond(stream, fields, 5)


cdef void refuse_http(Stream* stream, const char* status) noexcept nogil:
    """For what is not gRPC: an HTTP status of three digits and nothing else."""
    cdef nghttp2_nv[1] fields
    fields[0] = field(":status", status, 3)
    respond(stream, fields, 1)
