"""The native transport: gRPC over HTTP/2 on libnghttp2, in I/O threads that hold no GIL as long as they live.

One pass of a thread: wait with epoll; read what connections have; parse small messages where they lie and queue them in
their lanes; wake a worker for each lane touched; take the answers that workers left in the mailbox; write, one `send` a
connection. A `ModelInfer` that fits its model never touches Python on its way into the lane. Everything else (other
RPCs, streams, compressed messages, what needs an explanation) goes to Python through `exchanges`.

Rules: nothing here blocks but epoll; nothing is buffered that was not checked against a limit and charged to the budget
of bytes; every call gets exactly one end; a connection is freed only at the end of a pass, a stream only when nghttp2
closes it. About 2.5 microseconds of CPU a call, of which nghttp2 and the kernel's sockets are most.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memset, strlen

from penstock.kernels._grpc cimport (
    ENCODING_DEFLATE, ENCODING_GZIP, ENCODING_IDENTITY, ENCODING_UNKNOWN, MALFORMED_TIMEOUT, PREFIX_BYTES,
    encoding_of, equals, is_grpc, message_size, parse_timeout, percent_encode, write_prefix,
)
from penstock.kernels._nghttp2 cimport *
from penstock.kernels._sockets cimport (
    EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD, EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, SHUT_WR, out_of_descriptors,
    poll_new, poll_set, poll_wait, shutdown, socket_accept, socket_peer, socket_read, socket_write, would_block,
)
from penstock.kernels._system cimport (
    atomic_add, atomic_get, close, event_clear, event_new, event_raise, lock_acquire, lock_broadcast, lock_free,
    lock_new, lock_release, lock_wait, monotonic_ns, retain, tallied, tally,
)
from penstock.kernels._timers cimport Timer, cancel_timer, set_timer, start_wheel, take_due, wait_ms
from penstock.kernels.exchanges cimport (
    BEGAN, CLOSED, CONSUMED, DRAINED, ENDED, FINISH, MESSAGE, SEND, WRITTEN, Command, Event, Exchange, charge,
    discard_events, drain_events, free_command, give_back, new_exchange, next_field, post_event, release_exchange, take_commands,
)
from penstock.kernels.lanes cimport (
    ADMIT, DRAINING, NEVER_FITS, Admission, Call, Lane, Limits as LaneLimits, cancel_call, free_call, new_call,
)
from penstock.kernels.routes cimport Routes
from penstock.kernels.tls cimport (
    TLS_AGAIN_READ, TLS_AGAIN_WRITE, TLS_DONE, TLS_WANT_READ, TLS_WANT_WRITE, TlsContext, tls_free, tls_handshake,
    tls_new, tls_read, tls_write,
)
from penstock.kernels.wire cimport OK as FAULT_OK, parse_request

from penstock.kernels.tls import openssl_version

cdef enum:                   # gRPC status codes given here
    STATUS_OK = 0
    STATUS_CANCELLED = 1
    STATUS_DEADLINE_EXCEEDED = 4
    STATUS_RESOURCE_EXHAUSTED = 8
    STATUS_UNIMPLEMENTED = 12
    STATUS_INTERNAL = 13
    STATUS_UNAVAILABLE = 14

cdef enum TimerKind:
    TIMER_STREAM = 0
    TIMER_CONNECTION = 1
    TIMER_ACCEPT = 2

cdef enum:
    NO_COPY = 3              # of both name and value
    SETTINGS_NO_RFC7540_PRIORITIES = 9   # by RFC 9218; older nghttp2 have no name for it and send it all the same
    MAX_FIELDS = 24          # of a response's headers or trailers
    READS_A_PASS = 4         # of one connection
    MAX_SPARE = 4096         # streams kept for reuse
    WINDOW_BYTES = 1 << 20   # a stream's, and four times that a connection's
    FIRST_BYTES = 1 << 16    # of a message's buffer, which doubles as bytes come
    STREAM_BYTES = 1 << 10   # what the budget is charged for a stream as such, ours and nghttp2's part of it
    EXCHANGE_BYTES = 1 << 13  # and for one that Python answers

cdef extern from *:
    """
    /* Resets are counted here, against the operator's limit; nghttp2's own, where it has one, must not come first. */
    static void lift_reset_limit(nghttp2_option *option) {
    #ifdef PENSTOCK_NGHTTP2_RESET_LIMIT
        nghttp2_option_set_stream_reset_rate_limit(option, 1ull << 40, 1ull << 40);
    #else
        (void)option;
    #endif
    }
    """
    void lift_reset_limit(nghttp2_option* option) nogil

cdef int64_t SECOND = 1_000_000_000
cdef int64_t LINGER_NS = SECOND
cdef const uint8_t* DRAIN_PING = b"drained?"
cdef const uint8_t* ALIVE_PING = b"stillup?"
cdef enum:
    CALM_DOWN_BYTES = 17
cdef const uint8_t* CALM_DOWN = b"\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\x0b"   # GOAWAY, ENHANCE_YOUR_CALM
cdef const char* HTTP1_ANSWER = (
    b"HTTP/1.1 505 HTTP Version Not Supported\r\nContent-Type: text/plain\r\nConnection: close\r\n"
    b"Content-Length: 47\r\n\r\nthis port speaks gRPC over HTTP/2, not HTTP/1.1"
)


# ---------------------------------------------------------------------------------------------------------------------
# Small decisions
# ---------------------------------------------------------------------------------------------------------------------

cdef inline bint allowed(Bucket* bucket, double rate, int64_t now) noexcept nogil:
    """Whether one more is within `rate` a second, ten seconds' worth at once."""
    bucket.spent -= <double>(now - bucket.at) * 1e-9 * rate
    if bucket.spent < 0:
        bucket.spent = 0
    bucket.at = now
    bucket.spent += 1
    return bucket.spent <= 10 * rate


cdef inline int64_t earlier(int64_t a, int64_t b) noexcept nogil:
    return a if a < b else b


cdef inline nghttp2_nv field(const char* name, const char* value, size_t value_size) noexcept nogil:
    """A header whose name and value outlive its sending."""
    cdef nghttp2_nv made
    made.name, made.namelen = <uint8_t*>name, strlen(name)
    made.value, made.valuelen = <uint8_t*>value, value_size
    made.flags = NO_COPY
    return made


cdef inline nghttp2_nv copied(const char* name, const uint8_t* value, size_t value_size) noexcept nogil:
    """A header whose value nghttp2 is to copy."""
    cdef nghttp2_nv made = field(name, <const char*>value, value_size)
    made.flags = NGHTTP2_NV_FLAG_NO_COPY_NAME
    return made


# ---------------------------------------------------------------------------------------------------------------------
# Streams
# ---------------------------------------------------------------------------------------------------------------------

cdef Stream* new_stream(Connection* connection, int32_t number) noexcept nogil:
    """A stream in its connection's list, or NULL where there is no memory."""
    cdef Loop* loop = connection.loop
    cdef Stream* stream = loop.spare
    if not charge(&loop.shared.budget, STREAM_BYTES):
        return NULL
    if stream != NULL:
        loop.spare = stream.next
        loop.n_spare -= 1
    else:
        stream = <Stream*>malloc(sizeof(Stream))
        if stream == NULL:
            give_back(&loop.shared.budget, STREAM_BYTES)
            return NULL
    memset(stream, 0, sizeof(Stream))
    stream.connection = connection
    stream.id = number
    stream.charged = STREAM_BYTES
    stream.timer.owner = stream
    stream.timer.kind = TIMER_STREAM
    stream.next = connection.streams
    stream.link = &connection.streams
    if stream.next != NULL:
        stream.next.link = &stream.next
    connection.streams = stream
    connection.n_streams += 1
    return stream


cdef void end_stream(Stream* stream) noexcept nogil:
    """Let go of all that belongs to a stream. A call that is in a lane goes on without it, and is not run if it can be
    helped."""
    cdef Connection* connection = stream.connection
    cdef Loop* loop = connection.loop
    cancel_timer(&loop.wheel, &stream.timer)
    leave_call(stream)
    leave_exchange(stream)
    while stream.out != NULL:
        drop_chunk(stream)
    if stream.finish != NULL:
        free_command(stream.finish)
    free(stream.body)
    free(stream.text)
    give_back(&loop.shared.budget, stream.charged)
    stream.link[0] = stream.next
    if stream.next != NULL:
        stream.next.link = stream.link
    connection.n_streams -= 1
    if connection.n_streams == 0:
        connection.quiet = loop.now
    if loop.n_spare < MAX_SPARE:
        stream.next = loop.spare
        loop.spare = stream
        loop.n_spare += 1
    else:
        free(stream)


cdef void leave_call(Stream* stream) noexcept nogil:
    cdef Call* call = stream.call
    stream.call = NULL
    if call == NULL:
        return
    if stream.in_lane:
        stream.in_lane = False
        stream.charged -= <int64_t>call.size      # given back when the lane is done with it
        call.context = NULL
        cancel_call(call)
    else:
        free_call(call)


cdef void leave_exchange(Stream* stream) noexcept nogil:
    if stream.exchange != NULL:
        stream.exchange.stream = NULL
        post_event(&stream.connection.loop.shared.events, CLOSED, stream.exchange, NULL, 0, False)
        release_exchange(stream.exchange)
        stream.exchange = NULL


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


cdef inline void to_write(Connection* connection) noexcept nogil:
    """Have the connection flushed at the end of the pass."""
    if not connection.dirty:
        connection.dirty = True
        connection.next_dirty = connection.loop.dirty
        connection.loop.dirty = connection


# ---------------------------------------------------------------------------------------------------------------------
# Answers
# ---------------------------------------------------------------------------------------------------------------------

cdef void answer_call(Stream* stream, Call* call) noexcept nogil:
    """Send what a lane gave: the reply, or a status with its message."""
    cdef Loop* loop = stream.connection.loop
    if call.status != STATUS_OK:
        end_with(stream, call.status, <const char*>call.answer, call.answer_size, NULL, 0)
        return
    if call.answer_size > loop.shared.limits.max_message_bytes:
        refuse_size(stream, "the answer has %zu bytes, the limit is %zu: ask for fewer rows or outputs",
                    call.answer_size)
        return
    if not charge(&loop.shared.budget, <int64_t>call.answer_size):
        refuse_over_budget(stream)
        return
    stream.charged += <int64_t>call.answer_size
    stream.finished = True
    add_chunk(stream, &stream.first, call.answer, call.answer_size, False)
    begin_answer(stream, ENCODING_IDENTITY)


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
    if nghttp2_submit_response(stream.connection.session, stream.id, fields, n, &provider) != 0:
        reset(stream, NGHTTP2_INTERNAL_ERROR)
    watch_reading(stream)
    to_write(stream.connection)


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
    cdef size_t part
    stream.progressed = stream.connection.loop.now
    while stream.out != NULL and written < room:
        chunk = stream.out
        if chunk.sent < PREFIX_BYTES:
            part = min(PREFIX_BYTES - chunk.sent, room - written)
            memcpy(out + written, chunk.prefix + chunk.sent, part)
        else:
            part = min(chunk.size + PREFIX_BYTES - chunk.sent, room - written)
            memcpy(out + written, chunk.data + chunk.sent - PREFIX_BYTES, part)
        chunk.sent += part
        written += part
        if chunk.sent == chunk.size + PREFIX_BYTES:
            if chunk.owned:
                post_event(&stream.connection.loop.shared.events, WRITTEN, stream.exchange, NULL, 0, False)
            drop_chunk(stream)
    if stream.out == NULL and stream.finished:
        flags[0] |= NGHTTP2_DATA_FLAG_EOF | NGHTTP2_DATA_FLAG_NO_END_STREAM
        if send_trailers(stream) != 0:
            return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE
        return <ssize_t>written
    return <ssize_t>written if written else NGHTTP2_ERR_DEFERRED


cdef int send_trailers(Stream* stream) noexcept nogil:
    cdef nghttp2_nv[MAX_FIELDS] fields
    cdef uint8_t[3 * MAX_MESSAGE_TEXT + 16] text
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

    `text` has room for 3 * MAX_MESSAGE_TEXT + 16 bytes and is read until the fields are submitted.
    """
    cdef const uint8_t* at = trailing
    cdef const uint8_t* name
    cdef const uint8_t* value
    cdef size_t name_size, value_size
    cdef int digits = snprintf(<char*>text, 16, "%d", status)
    fields[n] = copied("grpc-status", text, <size_t>digits)
    n += 1
    if size > MAX_MESSAGE_TEXT:
        size = MAX_MESSAGE_TEXT
        while size and message[size] & 0xc0 == 0x80:      # not in the middle of a character
            size -= 1
    if size:
        fields[n] = copied("grpc-message", text + 16, percent_encode(message, size, text + 16))
        n += 1
    if status == STATUS_UNAVAILABLE and trailing_size == 0:
        fields[n] = field("grpc-retry-pushback-ms", "50", 2)
        n += 1
    while n < MAX_FIELDS and next_field(&at, trailing + trailing_size, &name, &name_size, &value, &value_size):
        fields[n] = copied("", value, value_size)
        fields[n].name, fields[n].namelen, fields[n].flags = <uint8_t*>name, name_size, NGHTTP2_FLAG_NONE
        n += 1
    return n


cdef void end_with(Stream* stream, int status, const char* message, size_t size, const uint8_t* trailing,
                   size_t trailing_size) noexcept nogil:
    """End a call that has no answer yet with a status, in trailers alone."""
    cdef nghttp2_nv[MAX_FIELDS] fields
    cdef uint8_t[3 * MAX_MESSAGE_TEXT + 16] text
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


cdef int on_sent(nghttp2_session* session, const nghttp2_frame* frame, void* user_data) noexcept nogil:
    """An answer that has ended before its request asks for no more of that. Asked sooner, it would not be sent."""
    cdef Stream* stream
    if frame.hd.type == NGHTTP2_HEADERS and frame.hd.flags & NGHTTP2_FLAG_END_STREAM:
        stream = <Stream*>nghttp2_session_get_stream_user_data(session, frame.hd.stream_id)
        if stream != NULL and not stream.ended:
            reset(stream, NGHTTP2_NO_ERROR)
    return 0


cdef void reset(Stream* stream, uint32_t code) noexcept nogil:
    stream.refused = True
    nghttp2_submit_rst_stream(stream.connection.session, NGHTTP2_FLAG_NONE, stream.id, code)
    to_write(stream.connection)


cdef void drop_body(Stream* stream) noexcept nogil:
    if stream.body != NULL:
        free(stream.body)
        stream.body = NULL
        give_back(&stream.connection.loop.shared.budget, <int64_t>stream.capacity)
        stream.charged -= <int64_t>stream.capacity
        stream.capacity = 0


cdef inline void refuse(Stream* stream, int status, const char* message) noexcept nogil:
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


cdef void refuse_http(Stream* stream, const char* status) noexcept nogil:
    """For what is not gRPC: an HTTP status of three digits and nothing else."""
    cdef nghttp2_nv[1] fields
    fields[0] = field(":status", status, 3)
    respond(stream, fields, 1)


# ---------------------------------------------------------------------------------------------------------------------
# Requests
# ---------------------------------------------------------------------------------------------------------------------

cdef int on_begin_headers(nghttp2_session* session, const nghttp2_frame* frame, void* user_data) noexcept nogil:
    cdef Connection* connection = <Connection*>user_data
    cdef Loop* loop = connection.loop
    cdef Stream* stream
    if frame.hd.type != NGHTTP2_HEADERS or frame.headers.cat != NGHTTP2_HCAT_REQUEST:
        return 0
    connection.phase = PHASE_OPEN
    stream = new_stream(connection, frame.hd.stream_id)
    if stream == NULL:           # refused, which tells the client that it may safely send it again
        tally(&loop.counters.over_budget)
        nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, frame.hd.stream_id, NGHTTP2_REFUSED_STREAM)
        return 0
    nghttp2_session_set_stream_user_data(session, frame.hd.stream_id, stream)
    set_timer(&loop.wheel, &stream.timer, loop.now + loop.shared.limits.header)
    return 0


cdef int on_header(nghttp2_session* session, const nghttp2_frame* frame, const uint8_t* name, size_t name_size,
                   const uint8_t* value, size_t value_size, uint8_t flags, void* user_data) noexcept nogil:
    cdef Connection* connection = <Connection*>user_data
    cdef size_t limit = connection.loop.shared.limits.max_header_bytes
    cdef Stream* stream
    if frame.hd.type != NGHTTP2_HEADERS or frame.headers.cat != NGHTTP2_HCAT_REQUEST:
        return 0                # trailers of a client mean nothing in gRPC
    stream = <Stream*>nghttp2_session_get_stream_user_data(session, frame.hd.stream_id)
    if stream == NULL:
        return 0
    stream.header_bytes += name_size + value_size + 32
    if stream.header_bytes > limit:
        stream.too_large = True
        return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE if stream.header_bytes > 8 * limit else 0
    if name_size == 5 and equals(name, 5, ":path", 5):
        stream.path = path_of(connection.loop.shared, value, value_size)
        stream.kind = stream.path.kind if stream.path != NULL else KIND_UNKNOWN
    elif name_size and name[0] == c':':
        if equals(name, name_size, ":method", 7):
            stream.is_post = equals(value, value_size, "POST", 4)
    elif not note_header(stream, name, name_size, value, value_size) and stream.kind != KIND_INFER:
        if not add_field(stream, name, name_size, value, value_size):
            return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE
    return 0


cdef const Path* path_of(const Shared* shared, const uint8_t* path, size_t size) noexcept nogil:
    """The method; NULL for an unknown one."""
    cdef int i
    for i in range(shared.n_paths):
        if equals(path, size, <const char*>shared.paths[i].data, shared.paths[i].size):
            return &shared.paths[i]
    return NULL


cdef bint note_header(Stream* stream, const uint8_t* name, size_t name_size, const uint8_t* value,
                      size_t value_size) noexcept nogil:
    """Take what gRPC itself uses; False for metadata."""
    if name_size == 2 and equals(name, name_size, "te", 2):
        return True
    if name_size < 12:
        return False
    if equals(name, name_size, "content-type", 12):
        stream.is_grpc = is_grpc(value, value_size)
    elif equals(name, name_size, "grpc-timeout", 12):
        stream.timeout = parse_timeout(value, value_size)
        stream.too_late = stream.timeout == 0
    elif equals(name, name_size, "grpc-encoding", 13):
        stream.encoding = encoding_of(value, value_size)
    elif equals(name, name_size, "grpc-accept-encoding", 20):
        stream.accepts = encodings_in(value, value_size)
    else:
        return False
    return True


cdef int encodings_in(const uint8_t* value, size_t size) noexcept nogil:
    """The encodings of a list with commas, a bit for each."""
    cdef size_t begin = 0
    cdef size_t end
    cdef int found = 0
    while begin < size:
        while begin < size and (value[begin] == c',' or value[begin] == c' '):
            begin += 1
        end = begin
        while end < size and value[end] != c',' and value[end] != c' ':
            end += 1
        found |= 1 << encoding_of(value + begin, end - begin)
        begin = end
    return found


cdef bint add_text(Stream* stream, const uint8_t* data, size_t size) noexcept nogil:
    """Keep bytes for Python. Headers are counted before, so this is bounded by twice their limit."""
    cdef size_t needed = stream.text_size + size
    cdef uint8_t* grown
    if needed > stream.text_capacity:
        grown = <uint8_t*>realloc(stream.text, 2 * needed + 64)
        if grown == NULL:
            return False
        stream.text = grown
        stream.text_capacity = 2 * needed + 64
    if size:
        memcpy(stream.text + stream.text_size, data, size)
    stream.text_size = needed
    return True


cdef bint add_field(Stream* stream, const uint8_t* name, size_t name_size, const uint8_t* value,
                    size_t value_size) noexcept nogil:
    cdef uint32_t[2] sizes
    sizes[0], sizes[1] = <uint32_t>name_size, <uint32_t>value_size
    return (add_text(stream, <const uint8_t*>sizes, sizeof(sizes)) and add_text(stream, name, name_size)
            and add_text(stream, value, value_size))


cdef int on_begin_frame(nghttp2_session* session, const nghttp2_frame_hd* head, void* user_data) noexcept nogil:
    """Count what costs the client nothing and us something."""
    cdef Connection* connection = <Connection*>user_data
    cdef const Limits* limits = &connection.loop.shared.limits
    cdef int64_t now = connection.loop.now
    cdef bint fine = True
    if head.type == NGHTTP2_HEADERS or (head.type == NGHTTP2_DATA and head.length):
        return 0
    if head.type == NGHTTP2_PING:
        fine = head.flags & NGHTTP2_FLAG_ACK or allowed(&connection.pings, limits.pings, now)
    elif head.type == NGHTTP2_SETTINGS:
        fine = head.flags & NGHTTP2_FLAG_ACK or allowed(&connection.settings, limits.settings, now)
    elif head.type == NGHTTP2_RST_STREAM:
        fine = allowed(&connection.resets, limits.resets, now)
    elif head.type == NGHTTP2_DATA:
        fine = head.flags & NGHTTP2_FLAG_END_STREAM or allowed(&connection.empty_frames, limits.empty_frames, now)
    elif head.type != NGHTTP2_WINDOW_UPDATE and head.type != NGHTTP2_GOAWAY:
        fine = allowed(&connection.empty_frames, limits.empty_frames, now)
    if not fine and not connection.calmed:
        connection.calmed = True
        tally(&connection.loop.counters.calmed)
        nghttp2_session_terminate_session(session, NGHTTP2_ENHANCE_YOUR_CALM)
    return 0


cdef int on_frame(nghttp2_session* session, const nghttp2_frame* frame, void* user_data) noexcept nogil:
    """A frame is complete."""
    cdef Connection* connection = <Connection*>user_data
    cdef Stream* stream
    if frame.hd.type == NGHTTP2_SETTINGS:
        connection.phase = PHASE_OPEN
    elif frame.hd.type == NGHTTP2_PING:
        if frame.hd.flags & NGHTTP2_FLAG_ACK:
            connection.pinged = False
            if connection.draining == 1:
                say_goodbye(connection)
    elif frame.hd.type == NGHTTP2_HEADERS or frame.hd.type == NGHTTP2_DATA:
        stream = <Stream*>nghttp2_session_get_stream_user_data(session, frame.hd.stream_id)
        if stream == NULL:
            return 0
        if frame.hd.type == NGHTTP2_HEADERS and frame.headers.cat == NGHTTP2_HCAT_REQUEST:
            stream.ended = (frame.hd.flags & NGHTTP2_FLAG_END_STREAM) != 0
            begin_request(stream)
        if frame.hd.flags & NGHTTP2_FLAG_END_STREAM:
            stream.ended = True
            if not stream.refused:
                end_request(stream)
    return 0


cdef void begin_request(Stream* stream) noexcept nogil:
    """All headers are in: refuse what cannot be answered, and set the clock."""
    cdef Loop* loop = stream.connection.loop
    cdef int64_t limit = stream.timeout if stream.timeout else loop.shared.limits.default_deadline
    cancel_timer(&loop.wheel, &stream.timer)
    stream.begun = True
    if stream.too_large:
        refuse(stream, STATUS_RESOURCE_EXHAUSTED, "the metadata is larger than the server takes")
    elif not stream.is_post:
        refuse_http(stream, "405")
    elif not stream.is_grpc:
        refuse_http(stream, "415")
    elif stream.timeout == MALFORMED_TIMEOUT:
        refuse(stream, STATUS_INTERNAL, "grpc-timeout is malformed")
    elif stream.too_late:
        refuse(stream, STATUS_DEADLINE_EXCEEDED, "the deadline passed before the call came")
    elif stream.kind == KIND_UNKNOWN:
        refuse(stream, STATUS_UNIMPLEMENTED, "no such method")
    elif stream.encoding == ENCODING_UNKNOWN:
        refuse_encoding(stream)
    else:
        if stream.timeout or stream.kind != KIND_STREAM:
            stream.deadline = loop.now + limit
            set_timer(&loop.wheel, &stream.timer, earlier(stream.deadline, loop.now + loop.shared.limits.body))
        if stream.kind == KIND_STREAM:
            begin_exchange(stream, NULL, 0, False)


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


cdef int on_data(nghttp2_session* session, uint8_t flags, int32_t number, const uint8_t* data, size_t size,
                 void* user_data) noexcept nogil:
    """A piece of a body. The window opens again at once, unless Python has too much to read already."""
    cdef Stream* stream = <Stream*>nghttp2_session_get_stream_user_data(session, number)
    nghttp2_session_consume_connection(session, size)
    if stream != NULL:
        read_messages(stream, data, size)
    if stream != NULL and stream.unread > WINDOW_BYTES and not stream.refused:
        stream.held += size
    else:
        nghttp2_session_consume_stream(session, number, size)
    return 0


cdef void read_messages(Stream* stream, const uint8_t* data, size_t size) noexcept nogil:
    cdef size_t part
    while size and not stream.refused and not stream.whole:
        if stream.prefix_size < PREFIX_BYTES:
            part = min(size, PREFIX_BYTES - stream.prefix_size)
            memcpy(stream.prefix + stream.prefix_size, data, part)
            stream.prefix_size += part
            if stream.prefix_size == PREFIX_BYTES:
                begin_message(stream)
        else:
            part = min(size, stream.length - stream.size)
            if not make_room(stream, part):
                return
            memcpy(stream.body + stream.size, data, part)
            stream.size += part
        data += part
        size -= part
        if stream.prefix_size == PREFIX_BYTES and stream.size == stream.length and not stream.refused:
            end_message(stream)


cdef void begin_message(Stream* stream) noexcept nogil:
    """The prefix of a message is in: nothing is kept of one that is too long."""
    stream.size = 0
    stream.length = message_size(stream.prefix)
    if stream.prefix[0] > 1 or (stream.prefix[0] == 1 and stream.encoding == ENCODING_IDENTITY):
        refuse(stream, STATUS_INTERNAL, "a message's compression flag does not fit grpc-encoding")
    elif stream.length > stream.connection.loop.shared.limits.max_message_bytes:
        refuse_size(stream, "the message has %zu bytes, the limit is %zu", stream.length)


cdef bint make_room(Stream* stream, size_t more) noexcept nogil:
    """Room for the bytes at hand: exactly the message's size where that is small, and else what has come, doubled."""
    cdef size_t wanted
    cdef uint8_t* grown
    if stream.size + more <= stream.capacity:
        return True
    wanted = max(<size_t>FIRST_BYTES, 2 * (stream.size + more))
    if wanted > stream.length:
        wanted = stream.length
    if not charge(&stream.connection.loop.shared.budget, <int64_t>(wanted - stream.capacity)):
        refuse_over_budget(stream)
        return False
    stream.charged += <int64_t>(wanted - stream.capacity)
    grown = <uint8_t*>realloc(stream.body, wanted)
    if grown == NULL:
        give_back(&stream.connection.loop.shared.budget, <int64_t>(wanted - stream.capacity))
        stream.charged -= <int64_t>(wanted - stream.capacity)
        refuse_over_budget(stream)
        return False
    stream.body = grown
    stream.capacity = wanted
    return True


cdef void end_message(Stream* stream) noexcept nogil:
    """A message is complete. A unary call waits for the end of the stream; what comes after its message is ignored, as
    gRPC's own servers do."""
    if stream.kind != KIND_STREAM:
        stream.whole = True
        return
    hand_over_message(stream, MESSAGE)
    stream.prefix_size = 0


cdef void end_request(Stream* stream) noexcept nogil:
    """The client sends no more."""
    cdef Loop* loop = stream.connection.loop
    if stream.kind == KIND_STREAM:
        if stream.prefix_size:
            refuse(stream, STATUS_INTERNAL, "the stream ended within a message")
        elif stream.exchange != NULL:
            post_event(&loop.shared.events, ENDED, stream.exchange, NULL, 0, False)
        return
    if not stream.whole:
        refuse(stream, STATUS_INTERNAL, "the stream ended before its message was complete" if stream.prefix_size
               else "the stream ended without a message")
        return
    set_timer(&loop.wheel, &stream.timer, stream.deadline)
    if stream.kind == KIND_INFER and stream.prefix[0] == 0 and into_lane(stream):
        return
    begin_exchange(stream, stream.body, stream.length, stream.prefix[0] != 0)


cdef bint into_lane(Stream* stream) noexcept nogil:
    """Queue a ModelInfer; False where Python has to say what is wrong with it, or where it goes."""
    cdef Loop* loop = stream.connection.loop
    cdef void* lane = NULL
    cdef Call* call = new_call()
    cdef Admission admission
    if call == NULL:
        refuse_over_budget(stream)
        return True
    call.body = stream.body
    call.size = stream.length
    if parse_request(call.body, call.size, &call.request) == FAULT_OK and loop.routes != NULL:
        lane = (<Routes>loop.routes).find(call.request.model_name, call.request.model_version)
    if lane == NULL or not (<Lane>lane).takes(call):
        free_call(call)          # the body stays with the stream
        return False
    call.sink = &loop.sink
    call.context = stream
    call.deadline_ns = stream.deadline
    call.owns_body = True
    stream.body = NULL           # the call's now; its bytes stay charged to the stream
    stream.call = call
    stream.in_lane = True
    atomic_add(&loop.in_lanes, 1)
    tally(&loop.counters.inferences)
    admission = (<Lane>lane).enqueue(call, loop.now, False)
    if admission == ADMIT:
        touch(loop, lane)
        return True
    atomic_add(&loop.in_lanes, -1)
    stream.in_lane = False
    refuse_admission(stream, admission, call, &(<Lane>lane).limits)
    return True


cdef void refuse_admission(Stream* stream, Admission admission, const Call* call,
                           const LaneLimits* limits) noexcept nogil:
    cdef char[256] message
    cdef int written
    if admission == NEVER_FITS:
        written = snprintf(
            message, sizeof(message), "the request has %lld rows and %zu bytes; the queue never takes more than %lld "
            "rows or %lld bytes: send smaller requests", <long long>call.request.rows, call.size,
            <long long>limits.max_queue_rows, <long long>limits.max_queue_bytes)
        end_with(stream, STATUS_RESOURCE_EXHAUSTED, message, <size_t>written, NULL, 0)
    elif admission == DRAINING:
        refuse(stream, STATUS_UNAVAILABLE, "the version is draining, try again")
    else:
        refuse(stream, STATUS_UNAVAILABLE, "the queue is full, try again later")


cdef void touch(Loop* loop, void* lane) noexcept nogil:
    """Have a worker of the lane woken at the end of the pass."""
    cdef int i
    for i in range(loop.n_touched):
        if loop.touched[i] == lane:
            return
    if loop.n_touched == MAX_TOUCHED:
        wake_workers(loop)
    loop.touched[loop.n_touched] = lane
    loop.n_touched += 1


cdef void wake_workers(Loop* loop) noexcept nogil:
    cdef int i
    for i in range(loop.n_touched):
        (<Lane>loop.touched[i]).wake_worker()
    loop.n_touched = 0


cdef void begin_exchange(Stream* stream, const uint8_t* message, size_t size, bint compressed) noexcept nogil:
    """Give a call to Python; that of a unary one takes its message along."""
    cdef Loop* loop = stream.connection.loop
    cdef Exchange* exchange = NULL
    if charge(&loop.shared.budget, EXCHANGE_BYTES):
        exchange = new_exchange(stream.path.data, stream.path.size, stream.text, stream.text_size)
        if exchange == NULL:
            give_back(&loop.shared.budget, EXCHANGE_BYTES)
    if exchange == NULL:
        refuse_over_budget(stream)
        return
    tally(&loop.counters.exchanges)
    exchange.stream = stream
    exchange.mailbox = &loop.mailbox
    exchange.events = &loop.shared.events
    exchange.budget = &loop.shared.budget
    exchange.charged = EXCHANGE_BYTES
    exchange.streaming = stream.kind == KIND_STREAM
    exchange.encoding = stream.encoding
    exchange.accepts = stream.accepts
    exchange.deadline_ns = stream.deadline if stream.timeout else 0
    socket_peer(stream.connection.fd, exchange.peer, sizeof(exchange.peer))
    stream.exchange = exchange
    free(stream.text)
    stream.text = NULL
    hand_over_message(stream, BEGAN)


cdef void hand_over_message(Stream* stream, int kind) noexcept nogil:
    """Tell Python of the message that is complete, if there is one, and give it the bytes."""
    cdef uint8_t* body = stream.body
    cdef size_t size = stream.size
    cdef int64_t charged = <int64_t>stream.capacity
    cdef bint compressed = stream.prefix[0] != 0
    stream.body = NULL
    stream.capacity = 0
    stream.size = stream.length = 0
    stream.charged -= charged
    stream.unread += size
    atomic_add(&stream.exchange.charged, charged)
    if not post_event(&stream.connection.loop.shared.events, kind, stream.exchange, body, size, compressed):
        free(body)
        refuse_over_budget(stream)


cdef int on_close(nghttp2_session* session, int32_t number, uint32_t code, void* user_data) noexcept nogil:
    cdef Stream* stream = <Stream*>nghttp2_session_get_stream_user_data(session, number)
    if stream != NULL:
        if code != NGHTTP2_NO_ERROR and not stream.refused:
            tally(&stream.connection.loop.counters.reset)
        nghttp2_session_set_stream_user_data(session, number, NULL)
        end_stream(stream)
    return 0


# ---------------------------------------------------------------------------------------------------------------------
# Connections
# ---------------------------------------------------------------------------------------------------------------------

cdef void open_connection(Loop* loop, int fd) noexcept nogil:
    """Serve a connected socket from now on; it is closed where that cannot be."""
    cdef Connection* connection = <Connection*>calloc(1, sizeof(Connection))
    cdef bint secure
    if connection == NULL:
        forsake(loop, fd)
        return
    connection.fd = fd
    connection.loop = loop
    connection.born = connection.heard = connection.quiet = connection.wrote = loop.now
    connection.timer.owner = connection
    connection.timer.kind = TIMER_CONNECTION
    connection.age = aged(loop, fd)
    lock_acquire(loop.mailbox.lock)
    secure = loop.tls != NULL
    connection.tls = tls_new(loop.tls, fd) if secure else NULL
    lock_release(loop.mailbox.lock)
    connection.phase = PHASE_TLS if secure else PHASE_PREFACE
    if ((secure and connection.tls == NULL)
            or nghttp2_session_server_new2(&connection.session, loop.shared.callbacks, connection,
                                           loop.shared.option) != 0
            or not greet(connection)
            or poll_set(loop.poll, EPOLL_CTL_ADD, fd, EPOLLIN, connection) != 0):
        if connection.tls != NULL:
            tls_free(connection.tls, False)
        if connection.session != NULL:
            nghttp2_session_del(connection.session)
        free(connection)
        forsake(loop, fd)
        return
    connection.next = loop.connections
    connection.link = &loop.connections
    if connection.next != NULL:
        connection.next.link = &connection.next
    loop.connections = connection
    set_timer(&loop.wheel, &connection.timer, loop.now + loop.shared.limits.handshake)
    if loop.draining:
        begin_drain(connection)


cdef void forsake(Loop* loop, int fd) noexcept nogil:
    close(fd)
    atomic_add(&loop.load, -1)
    atomic_add(&loop.shared.connections, -1)


cdef int64_t aged(const Loop* loop, int fd) noexcept nogil:
    """How old a connection may get: the limit, 10 % more or less, so that they do not all end together."""
    cdef int64_t percent = 90 + ((loop.now >> 10) + 7 * fd) % 21
    return loop.shared.limits.age // 100 * percent


cdef bint greet(Connection* connection) noexcept nogil:
    """Our SETTINGS, sent once the client has said anything, so that one of HTTP/1.1 can be answered in its own way.

    Priorities of RFC 7540 are declined: they cost, and gRPC clients set none.
    """
    cdef nghttp2_settings_entry[4] entries
    cdef const Limits* limits = &connection.loop.shared.limits
    entries[0].settings_id, entries[0].value = NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, limits.max_streams
    entries[1].settings_id, entries[1].value = NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, WINDOW_BYTES
    entries[2].settings_id = NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE
    entries[2].value = <uint32_t>limits.max_header_bytes
    entries[3].settings_id, entries[3].value = SETTINGS_NO_RFC7540_PRIORITIES, 1
    return (nghttp2_submit_settings(connection.session, NGHTTP2_FLAG_NONE, entries, 4) == 0
            and nghttp2_session_set_local_window_size(connection.session, NGHTTP2_FLAG_NONE, 0, 4 * WINDOW_BYTES) == 0)


cdef void on_ready(Connection* connection, uint32_t events) noexcept nogil:
    """The socket can be read or written, or is broken, which reading tells."""
    if connection.phase == PHASE_DEAD:
        return
    if connection.phase == PHASE_TLS and not shake_hands(connection):
        return
    if events & EPOLLOUT:
        to_write(connection)
    if events & (EPOLLIN | EPOLLERR | EPOLLHUP) or connection.reads_on_out:
        connection.reads_on_out = False
        read_connection(connection)


cdef bint shake_hands(Connection* connection) noexcept nogil:
    """Go on with TLS; whether it is done."""
    cdef int result = tls_handshake(connection.tls)
    if result == TLS_DONE:
        connection.phase = PHASE_PREFACE
        watch_writing(connection, False)
        return True
    if result == TLS_WANT_READ or result == TLS_WANT_WRITE:
        watch_writing(connection, result == TLS_WANT_WRITE)
    else:
        tally(&connection.loop.counters.handshakes_failed)
        kill(connection)
    return False


cdef ssize_t read_some(Connection* connection, uint8_t* out, size_t size) noexcept nogil:
    """Bytes read; 0 where the peer is done or broken; -1 where there is nothing now."""
    cdef ssize_t got
    if connection.tls == NULL:
        got = socket_read(connection.fd, out, size)
        if got < 0:
            return -1 if would_block(got) else 0
        return got
    got = tls_read(connection.tls, out, size)
    if got == TLS_AGAIN_READ:
        return -1
    if got == TLS_AGAIN_WRITE:
        connection.reads_on_out = True
        watch_writing(connection, True)
        return -1
    return got if got > 0 else 0


cdef ssize_t write_some(Connection* connection, const uint8_t* data, size_t size) noexcept nogil:
    """Bytes written, 0 for none now; -1 where the connection is broken."""
    cdef ssize_t put
    if connection.tls == NULL:
        put = socket_write(connection.fd, data, size)
        if put < 0:
            return 0 if would_block(put) else -1
        return put
    put = tls_write(connection.tls, data, size)
    if put == TLS_AGAIN_READ or put == TLS_AGAIN_WRITE:
        return 0
    return put if put > 0 else -1


cdef void read_connection(Connection* connection) noexcept nogil:
    cdef Loop* loop = connection.loop
    cdef ssize_t got, used
    cdef int i
    for i in range(READS_A_PASS):
        got = read_some(connection, loop.read_buffer, READ_BYTES)
        if got == 0:
            kill(connection)
        if got <= 0:
            return
        if connection.phase == PHASE_LINGER:
            continue
        connection.heard = loop.now
        used = nghttp2_session_mem_recv(connection.session, loop.read_buffer, <size_t>got)
        to_write(connection)
        if used < 0:
            give_up(connection, used == NGHTTP2_ERR_BAD_CLIENT_MAGIC)
            return
        if got < READ_BYTES and connection.tls == NULL:
            return


cdef void give_up(Connection* connection, bint is_http1) noexcept nogil:
    """The peer broke the protocol beyond what nghttp2 can answer. One that speaks HTTP/1.1 is told what this port is."""
    if connection.pending == NULL:
        if is_http1:
            write_some(connection, <const uint8_t*>HTTP1_ANSWER, strlen(HTTP1_ANSWER))
        else:
            tally(&connection.loop.counters.calmed)
            write_some(connection, CALM_DOWN, CALM_DOWN_BYTES)
    linger(connection)


cdef void flush(Connection* connection) noexcept nogil:
    """Write what there is to write, as far as the socket takes it."""
    cdef Loop* loop = connection.loop
    cdef size_t total
    cdef ssize_t put
    if connection.phase >= PHASE_LINGER or connection.phase == PHASE_TLS:
        return
    while flush_pending(connection):
        total = gather(connection)
        if connection.phase >= PHASE_LINGER:
            return
        if total == 0:
            watch_writing(connection, False)
            if not (nghttp2_session_want_read(connection.session) or nghttp2_session_want_write(connection.session)):
                linger(connection)
            return
        put = write_some(connection, loop.write_buffer, total)
        if put < 0:
            kill(connection)
            return
        if put:
            connection.wrote = loop.now
        if <size_t>put < total and not keep_pending(connection, loop.write_buffer + put, total - <size_t>put):
            kill(connection)
            return


cdef size_t gather(Connection* connection) noexcept nogil:
    """Collect frames in the loop's buffer: GATHER_BYTES and the rest of the last one at most."""
    cdef const uint8_t* data
    cdef size_t total = 0
    cdef ssize_t size
    while total < GATHER_BYTES:
        size = nghttp2_session_mem_send(connection.session, &data)
        if size < 0 or <size_t>size > WRITE_BYTES - total:
            kill(connection)
            return 0
        if size == 0:
            break
        memcpy(connection.loop.write_buffer + total, data, <size_t>size)
        total += <size_t>size
    return total


cdef bint keep_pending(Connection* connection, const uint8_t* data, size_t size) noexcept nogil:
    """Keep what the socket did not take; the budget is charged even where nothing is left of it."""
    connection.pending = <uint8_t*>malloc(size)
    if connection.pending == NULL:
        return False
    memcpy(connection.pending, data, size)
    connection.pending_size = size
    connection.pending_sent = 0
    atomic_add(&connection.loop.shared.budget.used, <int64_t>size)
    return True


cdef bint flush_pending(Connection* connection) noexcept nogil:
    """Whether nothing is pending any more."""
    cdef ssize_t put
    if connection.pending == NULL:
        return True
    put = write_some(connection, connection.pending + connection.pending_sent,
                     connection.pending_size - connection.pending_sent)
    if put < 0:
        kill(connection)
        return False
    if put:
        connection.wrote = connection.loop.now
    connection.pending_sent += <size_t>put
    if connection.pending_sent < connection.pending_size:
        watch_writing(connection, True)
        return False
    drop_pending(connection)
    return True


cdef void drop_pending(Connection* connection) noexcept nogil:
    if connection.pending != NULL:
        give_back(&connection.loop.shared.budget, <int64_t>connection.pending_size)
        free(connection.pending)
        connection.pending = NULL


cdef void watch_writing(Connection* connection, bint wanted) noexcept nogil:
    if connection.polls_out != wanted and connection.phase != PHASE_DEAD:
        connection.polls_out = wanted
        poll_set(connection.loop.poll, EPOLL_CTL_MOD, connection.fd, EPOLLIN | (EPOLLOUT if wanted else 0), connection)


cdef void linger(Connection* connection) noexcept nogil:
    """All is said. Closing at once would take back what the peer has not read yet, so it may read it first."""
    if connection.phase >= PHASE_LINGER:
        return
    connection.phase = PHASE_LINGER
    end_streams(connection)
    drop_pending(connection)
    watch_writing(connection, False)
    if connection.tls == NULL:
        shutdown(connection.fd, SHUT_WR)
    set_timer(&connection.loop.wheel, &connection.timer, connection.loop.now + LINGER_NS)


cdef void end_streams(Connection* connection) noexcept nogil:
    while connection.streams != NULL:
        nghttp2_session_set_stream_user_data(connection.session, connection.streams.id, NULL)
        end_stream(connection.streams)


cdef void kill(Connection* connection) noexcept nogil:
    """Close a connection now. Its memory lives until the end of the pass, for events may still name it."""
    cdef Loop* loop = connection.loop
    if connection.phase == PHASE_DEAD:
        return
    end_streams(connection)
    drop_pending(connection)
    cancel_timer(&loop.wheel, &connection.timer)
    if connection.tls != NULL:
        tls_free(connection.tls, connection.phase == PHASE_LINGER)
        connection.tls = NULL
    connection.phase = PHASE_DEAD
    connection.link[0] = connection.next
    if connection.next != NULL:
        connection.next.link = connection.link
    connection.next = loop.dead
    loop.dead = connection
    poll_set(loop.poll, EPOLL_CTL_DEL, connection.fd, 0, NULL)
    forsake(loop, connection.fd)
    if loop.draining and atomic_get(&loop.shared.connections) == 0:
        post_event(&loop.shared.events, DRAINED, NULL, NULL, 0, False)


cdef void bury(Loop* loop) noexcept nogil:
    """Free the connections that were closed in this pass."""
    cdef Connection* connection
    while loop.dead != NULL:
        connection = loop.dead
        loop.dead = connection.next
        nghttp2_session_del(connection.session)
        free(connection)


# Time. One timer a connection, set to the earliest thing that may be due; one a stream.

cdef void on_connection_timer(Connection* connection) noexcept nogil:
    cdef Loop* loop = connection.loop
    cdef const Limits* limits = &loop.shared.limits
    cdef int64_t now = loop.now
    if (connection.phase == PHASE_LINGER
            or (connection.phase < PHASE_OPEN and now >= connection.born + limits.handshake)
            or (connection.pinged and now >= connection.ping_at + limits.keepalive_timeout)
            or (connection.pending != NULL and now >= connection.wrote + limits.body)):
        if connection.phase != PHASE_LINGER:
            tally(&loop.counters.timed_out)
        kill(connection)
        return
    if connection.draining == 0:
        if connection.age and now >= connection.born + connection.age:
            begin_drain(connection)
        elif connection.n_streams == 0 and now >= connection.quiet + limits.idle:
            begin_drain(connection)
    elif connection.draining == 1 and now >= connection.drain_at + SECOND:
        say_goodbye(connection)
    elif connection.draining == 2 and now >= connection.drain_at + limits.age_grace:
        nghttp2_session_terminate_session(connection.session, NGHTTP2_NO_ERROR)
        flush(connection)
        linger(connection)
        return
    if not connection.pinged and now >= connection.heard + limits.keepalive:
        ping(connection, ALIVE_PING)
    set_timer(&loop.wheel, &connection.timer, next_look(connection))


cdef int64_t next_look(const Connection* connection) noexcept nogil:
    """When the next thing may be due. Looking too early does no harm."""
    cdef const Limits* limits = &connection.loop.shared.limits
    cdef int64_t due
    if connection.phase < PHASE_OPEN:
        return connection.born + limits.handshake
    due = connection.ping_at + limits.keepalive_timeout if connection.pinged else connection.heard + limits.keepalive
    if connection.pending != NULL:
        due = earlier(due, connection.wrote + limits.body)
    if connection.draining == 1:
        return earlier(due, connection.drain_at + SECOND)
    if connection.draining == 2:
        return earlier(due, connection.drain_at + limits.age_grace)
    if connection.age:
        due = earlier(due, connection.born + connection.age)
    return earlier(due, (connection.quiet if connection.n_streams == 0 else connection.loop.now) + limits.idle)


cdef void ping(Connection* connection, const uint8_t* opaque) noexcept nogil:
    connection.pinged = True
    connection.ping_at = connection.loop.now
    nghttp2_submit_ping(connection.session, NGHTTP2_FLAG_NONE, opaque)
    to_write(connection)


cdef void begin_drain(Connection* connection) noexcept nogil:
    """First step: tell that the connection is going to end. Calls that are on their way are still answered."""
    if connection.draining or connection.phase >= PHASE_LINGER:
        return
    if connection.phase == PHASE_TLS:
        kill(connection)
        return
    connection.draining = 1
    connection.drain_at = connection.loop.now
    nghttp2_submit_shutdown_notice(connection.session)
    ping(connection, DRAIN_PING)
    set_timer(&connection.loop.wheel, &connection.timer, next_look(connection))


cdef void say_goodbye(Connection* connection) noexcept nogil:
    """Second step, once the client knows: which calls are answered. Later ones it may safely send elsewhere."""
    connection.draining = 2
    nghttp2_submit_goaway(connection.session, NGHTTP2_FLAG_NONE,
                          nghttp2_session_get_last_proc_stream_id(connection.session), NGHTTP2_NO_ERROR, NULL, 0)
    to_write(connection)
    set_timer(&connection.loop.wheel, &connection.timer, next_look(connection))


cdef void on_stream_timer(Stream* stream) noexcept nogil:
    """A stream's time is up: for its headers, its body, its answer, or for the client to read that."""
    cdef Loop* loop = stream.connection.loop
    cdef int64_t until = stream.progressed + loop.shared.limits.body
    cdef bint expired = stream.deadline and loop.now >= stream.deadline
    if not stream.begun:
        tally(&loop.counters.timed_out)
        reset(stream, NGHTTP2_CANCEL)
    elif stream.answered and expired and stream.timeout:
        tally(&loop.counters.timed_out)
        reset(stream, NGHTTP2_CANCEL)
    elif stream.answered and stream.out == NULL and not stream.finished:     # waiting for Python, not for the client
        if stream.deadline:
            set_timer(&loop.wheel, &stream.timer, stream.deadline)
    elif stream.answered and loop.now < until:
        set_timer(&loop.wheel, &stream.timer, until)
    elif stream.answered:
        tally(&loop.counters.timed_out)
        reset(stream, NGHTTP2_CANCEL)
    elif stream.kind == KIND_STREAM and not expired:
        set_timer(&loop.wheel, &stream.timer, stream.deadline)
    else:
        tally(&loop.counters.timed_out)
        leave_call(stream)
        leave_exchange(stream)
        refuse_late(stream, expired)


cdef void refuse_late(Stream* stream, bint expired) noexcept nogil:
    if not expired:
        refuse(stream, STATUS_DEADLINE_EXCEEDED, "the request did not arrive in time")
    elif stream.timeout:
        refuse(stream, STATUS_DEADLINE_EXCEEDED, "the deadline passed before there was an answer")
    else:
        refuse(stream, STATUS_DEADLINE_EXCEEDED, "no answer within the server's default deadline")


# ---------------------------------------------------------------------------------------------------------------------
# The mailbox
# ---------------------------------------------------------------------------------------------------------------------

cdef void collect(void* owner, Call* finished) noexcept nogil:
    """The deliver function of a loop's sink: called by workers, with or without the GIL."""
    cdef Loop* loop = <Loop*>owner
    cdef Call* last = finished
    cdef int64_t n = 1
    cdef bint orphaned
    while last.next != NULL:
        last = last.next
        n += 1
    lock_acquire(loop.mailbox.lock)
    orphaned = loop.orphaned
    if not orphaned:
        if loop.done == NULL:
            loop.done = finished
            event_raise(loop.mailbox.fd)
        else:
            loop.done_last.next = finished
        loop.done_last = last
    lock_release(loop.mailbox.lock)
    if orphaned:
        free_calls(loop, finished)
        if atomic_add(&loop.in_lanes, -n) == 0:
            free_loop(loop)


cdef void free_calls(Loop* loop, Call* call) noexcept nogil:
    cdef Call* following
    while call != NULL:
        following = call.next
        free_call(call)
        call = following


cdef void empty_mailbox(Loop* loop) noexcept nogil:
    cdef Call* call
    cdef Command* command
    cdef Handed* handed
    cdef bint drain
    event_clear(loop.mailbox.fd)
    lock_acquire(loop.mailbox.lock)
    call, loop.done, loop.done_last = loop.done, NULL, NULL
    command = take_commands(&loop.mailbox)
    handed, loop.handed = loop.handed, NULL
    drain, loop.drain_asked = loop.drain_asked, False
    take_routes(loop)
    lock_release(loop.mailbox.lock)
    while call != NULL:
        call = deliver_one(loop, call)
    while command != NULL:
        command = carry_out(loop, command)
    while handed != NULL:
        handed = take_over(loop, handed)
    if drain:
        drain_loop(loop)


cdef void take_routes(Loop* loop) noexcept nogil:
    """Use the routes that were left; the lock is held."""
    if loop.next_routes != NULL:
        loop.routes = loop.next_routes
        loop.next_routes = NULL
        lock_broadcast(loop.mailbox.lock)


cdef Call* deliver_one(Loop* loop, Call* call) noexcept nogil:
    """Answer a finished call; the next one."""
    cdef Call* following = call.next
    cdef Stream* stream = <Stream*>call.context
    atomic_add(&loop.in_lanes, -1)
    if stream == NULL:           # its client has left
        give_back(&loop.shared.budget, <int64_t>call.size)
        free_call(call)
    else:
        stream.in_lane = False
        answer_call(stream, call)
    return following


cdef Handed* take_over(Loop* loop, Handed* handed) noexcept nogil:
    cdef Handed* following = handed.next
    open_connection(loop, handed.fd)
    free(handed)
    return following


cdef Command* carry_out(Loop* loop, Command* command) noexcept nogil:
    """Do what Python wants of one of its exchanges; the next command."""
    cdef Command* following = command.next
    cdef Stream* stream = <Stream*>command.exchange.stream
    if stream == NULL or stream.finished:
        free_command(command)
    elif command.kind == SEND:
        send_message(stream, command)
    elif command.kind == CONSUMED:
        consumed(stream, command)
    elif stream.answered:
        stream.finish = command
        stream.finished = True
        nghttp2_session_resume_data(stream.connection.session, stream.id)
        to_write(stream.connection)
    else:
        end_with(stream, command.status, <const char*>command.data, command.size, command.data + command.size,
                 command.trailing)
        free_command(command)
    return following


cdef void send_message(Stream* stream, Command* command) noexcept nogil:
    cdef Loop* loop = stream.connection.loop
    cdef Chunk* chunk
    if command.size > loop.shared.limits.max_message_bytes:
        refuse_size(stream, "the answer has %zu bytes, the limit is %zu", command.size)
    elif not charge(&loop.shared.budget, <int64_t>command.size):
        refuse_over_budget(stream)
    else:
        chunk = <Chunk*>malloc(sizeof(Chunk))
        if chunk == NULL:
            give_back(&loop.shared.budget, <int64_t>command.size)
            refuse_over_budget(stream)
        else:
            chunk.owned = True
            add_chunk(stream, chunk, command.data, command.size, command.compressed)
            command.data = NULL
            if stream.answered:
                watch_reading(stream)
                nghttp2_session_resume_data(stream.connection.session, stream.id)
                to_write(stream.connection)
            else:
                begin_answer(stream, command.encoding)
    free_command(command)


cdef void consumed(Stream* stream, Command* command) noexcept nogil:
    """Python has read a message: where the client was held back for it, it may send on."""
    cdef int64_t freed = <int64_t>command.size
    stream.unread -= min(stream.unread, command.size)
    atomic_add(&command.exchange.charged, -freed)
    give_back(&stream.connection.loop.shared.budget, freed)
    if stream.held and stream.unread <= WINDOW_BYTES:
        nghttp2_session_consume_stream(stream.connection.session, stream.id, stream.held)
        stream.held = 0
        to_write(stream.connection)
    free_command(command)


# ---------------------------------------------------------------------------------------------------------------------
# The loop
# ---------------------------------------------------------------------------------------------------------------------

cdef void accept_connections(Loop* loop, int listener) noexcept nogil:
    """Take what waits at a listener, and give each connection to the loop that has fewest."""
    cdef Loop* chosen
    cdef int fd, i
    for i in range(64):
        fd = socket_accept(listener)
        if fd < 0:
            if out_of_descriptors(fd):       # trying again at once would spin: the connection still waits
                watch_listeners(loop, False)
                set_timer(&loop.wheel, &loop.accepting, loop.now + SECOND // 10)
            return
        tally(&loop.counters.accepted)
        if atomic_add(&loop.shared.connections, 1) > loop.shared.limits.max_connections:
            atomic_add(&loop.shared.connections, -1)
            tally(&loop.counters.refused)
            close(fd)
            continue
        chosen = least_loaded(loop)
        atomic_add(&chosen.load, 1)
        if chosen == loop or not hand_to(chosen, fd):
            if chosen != loop:
                atomic_add(&chosen.load, -1)
                atomic_add(&loop.load, 1)
            open_connection(loop, fd)


cdef Loop* least_loaded(Loop* loop) noexcept nogil:
    cdef Loop* chosen = loop
    cdef int i
    for i in range(loop.shared.n_loops):
        if atomic_get(&loop.shared.loops[i].load) < atomic_get(&chosen.load):
            chosen = loop.shared.loops[i]
    return chosen


cdef bint hand_to(Loop* loop, int fd) noexcept nogil:
    cdef Handed* handed = <Handed*>malloc(sizeof(Handed))
    cdef bint running
    if handed == NULL:
        return False
    handed.fd = fd
    lock_acquire(loop.mailbox.lock)
    running = loop.running and not loop.stopping
    if running:
        handed.next = loop.handed
        loop.handed = handed
        event_raise(loop.mailbox.fd)
    lock_release(loop.mailbox.lock)
    if not running:
        free(handed)
    return running


cdef void watch_listeners(Loop* loop, bint wanted) noexcept nogil:
    cdef int i
    for i in range(loop.n_listeners):
        poll_set(loop.poll, EPOLL_CTL_MOD, loop.listeners[i], EPOLLIN if wanted else 0, &loop.listeners[i])


cdef void drain_loop(Loop* loop) noexcept nogil:
    """Take no more connections, and end those there are in two steps."""
    cdef Connection* connection = loop.connections
    cdef Connection* following
    cdef int i
    loop.draining = True
    cancel_timer(&loop.wheel, &loop.accepting)
    for i in range(loop.n_listeners):
        poll_set(loop.poll, EPOLL_CTL_DEL, loop.listeners[i], 0, NULL)
        close(loop.listeners[i])
    loop.n_listeners = 0
    while connection != NULL:
        following = connection.next
        begin_drain(connection)
        connection = following
    if atomic_get(&loop.shared.connections) == 0:
        post_event(&loop.shared.events, DRAINED, NULL, NULL, 0, False)


cdef void run_timers(Loop* loop) noexcept nogil:
    cdef Timer* timer = take_due(&loop.wheel, loop.now)
    while timer != NULL:
        if timer.kind == TIMER_STREAM:
            on_stream_timer(<Stream*>timer.owner)
        elif timer.kind == TIMER_CONNECTION:
            on_connection_timer(<Connection*>timer.owner)
        else:
            watch_listeners(loop, True)
        timer = take_due(&loop.wheel, loop.now)


cdef void flush_all(Loop* loop) noexcept nogil:
    cdef Connection* connection
    while loop.dirty != NULL:
        connection = loop.dirty
        loop.dirty = connection.next_dirty
        connection.dirty = False
        flush(connection)


cdef void run_pass(Loop* loop) noexcept nogil:
    """One pass; see the head of this file."""
    cdef int found = poll_wait(loop.poll, loop.polled, 128, wait_ms(&loop.wheel, loop.now))
    cdef bint mail = False
    cdef void* tag
    cdef int i
    loop.now = monotonic_ns()
    for i in range(found):
        tag = loop.polled[i].data.ptr
        if tag == <void*>&loop.mailbox:
            mail = True
        elif <char*>&loop.listeners[0] <= <char*>tag < <char*>&loop.listeners[8]:
            accept_connections(loop, (<int*>tag)[0])
        else:
            on_ready(<Connection*>tag, loop.polled[i].events)
    wake_workers(loop)
    if mail:
        empty_mailbox(loop)
    run_timers(loop)
    flush_all(loop)
    bury(loop)


cdef void run_loop(Loop* loop) noexcept nogil:
    cdef bint stopping = False
    loop.now = monotonic_ns()
    start_wheel(&loop.wheel, loop.now)
    lock_acquire(loop.mailbox.lock)
    loop.running = True
    take_routes(loop)
    lock_release(loop.mailbox.lock)
    while not stopping:
        run_pass(loop)
        lock_acquire(loop.mailbox.lock)
        stopping = loop.stopping
        lock_release(loop.mailbox.lock)
    end_loop(loop)


cdef void end_loop(Loop* loop) noexcept nogil:
    """Close everything. What is still in lanes is delivered to nobody."""
    cdef Connection* connection
    cdef int i
    for i in range(loop.n_listeners):
        close(loop.listeners[i])
    loop.n_listeners = 0
    while loop.connections != NULL:
        connection = loop.connections
        nghttp2_session_terminate_session(connection.session, NGHTTP2_NO_ERROR)
        flush(connection)
        kill(connection)
    flush_all(loop)
    bury(loop)
    lock_acquire(loop.mailbox.lock)
    loop.running = False
    loop.mailbox.closed = True
    take_routes(loop)
    lock_broadcast(loop.mailbox.lock)
    lock_release(loop.mailbox.lock)


cdef Loop* new_loop(Shared* shared, int index) noexcept nogil:
    cdef Loop* loop = <Loop*>calloc(1, sizeof(Loop))
    if loop == NULL:
        return NULL
    loop.shared = shared
    loop.index = index
    loop.sink.deliver = collect
    loop.sink.owner = loop
    loop.accepting.kind = TIMER_ACCEPT
    loop.poll = poll_new()
    loop.mailbox.fd = event_new()
    loop.mailbox.lock = lock_new()
    if (loop.poll < 0 or loop.mailbox.fd < 0 or loop.mailbox.lock == NULL
            or poll_set(loop.poll, EPOLL_CTL_ADD, loop.mailbox.fd, EPOLLIN, &loop.mailbox) != 0):
        free_loop(loop)
        return NULL
    return loop


cdef void free_loop(Loop* loop) noexcept nogil:
    cdef Stream* stream
    while loop.spare != NULL:
        stream = loop.spare
        loop.spare = stream.next
        free(stream)
    if loop.poll >= 0:
        close(loop.poll)
    if loop.mailbox.fd >= 0:
        close(loop.mailbox.fd)
    lock_free(loop.mailbox.lock)
    free(loop)


cdef void orphan_loop(Loop* loop) noexcept nogil:
    """Free a loop that has ended, or leave that to the last of its calls that is still in a lane."""
    cdef Command* command
    cdef Command* following
    cdef Call* done
    cdef Call* call
    cdef Handed* handed
    cdef int64_t n = 0
    lock_acquire(loop.mailbox.lock)
    done, loop.done = loop.done, NULL
    command = take_commands(&loop.mailbox)
    call = done
    while call != NULL:
        n += 1
        call = call.next
    loop.orphaned = True
    atomic_add(&loop.in_lanes, 1)        # ours, so that nobody frees the loop under us
    lock_release(loop.mailbox.lock)
    while command != NULL:
        following = command.next
        free_command(command)
        command = following
    while loop.handed != NULL:
        handed = loop.handed
        loop.handed = handed.next
        close(handed.fd)
        free(handed)
    free_calls(loop, done)
    if atomic_add(&loop.in_lanes, -n - 1) == 0:
        free_loop(loop)


# ---------------------------------------------------------------------------------------------------------------------
# Python's side
# ---------------------------------------------------------------------------------------------------------------------

cdef class Http2:
    """A gRPC server over HTTP/2.

    Args:
        threads: how many I/O threads there will be; each is a call of `run`.
        infer: path of the method whose calls go to lanes.
        unary: paths that Python answers, one message for one.
        streams: paths that Python answers message by message.
        limits: see `_LIMITS` below; bytes, counts, seconds, or a rate a second.
    """

    cdef Shared shared
    cdef list keep               # the routes in use, then the bytes that paths point into
    cdef object tls

    def __cinit__(self, *, int threads, bytes infer not None, unary, streams, **limits):
        if not 1 <= threads <= 256:
            raise ValueError("1 to 256 threads")
        if limits.keys() != _LIMITS:
            raise TypeError(f"limits are {', '.join(sorted(_LIMITS))}")
        self.shared.events.fd = -1
        self.keep = [None]
        self.set_limits(limits)
        self.set_paths([(infer, KIND_INFER), *((p, KIND_UNARY) for p in unary), *((p, KIND_STREAM) for p in streams)])
        self.set_callbacks()
        self.shared.events.lock = lock_new()
        self.shared.events.fd = event_new()
        self.shared.loops = <Loop**>calloc(<size_t>threads, sizeof(void*))
        if self.shared.events.lock == NULL or self.shared.events.fd < 0 or self.shared.loops == NULL:
            raise MemoryError("no memory or file descriptor for a transport")
        for index in range(threads):
            self.shared.loops[<int>index] = new_loop(&self.shared, <int>index)
            if self.shared.loops[<int>index] == NULL:
                raise MemoryError("no memory or file descriptor for an I/O thread")
            self.shared.n_loops += 1

    def __dealloc__(self):
        cdef int i
        for i in range(self.shared.n_loops):
            orphan_loop(self.shared.loops[i])
        free(self.shared.loops)
        free(self.shared.paths)
        discard_events(&self.shared.events)
        lock_free(self.shared.events.lock)
        if self.shared.events.fd >= 0:
            close(self.shared.events.fd)
        if self.shared.callbacks != NULL:
            nghttp2_session_callbacks_del(self.shared.callbacks)
        if self.shared.option != NULL:
            nghttp2_option_del(self.shared.option)

    cdef int set_limits(self, dict given) except -1:
        cdef Limits* limits = &self.shared.limits
        limits.max_message_bytes = <size_t>given["max_message_bytes"]
        limits.max_header_bytes = <size_t>given["max_header_bytes"]
        limits.max_streams = <uint32_t>given["max_streams"]
        limits.max_connections = given["max_connections"]
        limits.default_deadline = nanoseconds(given["default_deadline_s"])
        limits.handshake = nanoseconds(given["handshake_timeout_s"])
        limits.header = nanoseconds(given["header_timeout_s"])
        limits.body = nanoseconds(given["body_timeout_s"])
        limits.idle = nanoseconds(given["idle_timeout_s"])
        limits.keepalive = nanoseconds(given["keepalive_s"])
        limits.keepalive_timeout = nanoseconds(given["keepalive_timeout_s"])
        limits.age = nanoseconds(given["max_connection_age_s"])
        limits.age_grace = nanoseconds(given["max_connection_age_grace_s"])
        limits.resets = given["max_resets_per_s"]
        limits.pings = given["max_pings_per_s"]
        limits.settings = given["max_settings_per_s"]
        limits.empty_frames = given["max_empty_frames_per_s"]
        self.shared.budget.limit = given["max_in_flight_bytes"]
        return 0

    cdef int set_paths(self, list paths) except -1:
        cdef int i
        cdef bytes path
        self.shared.paths = <Path*>calloc(<size_t>len(paths), sizeof(Path))
        if self.shared.paths == NULL:
            raise MemoryError("no memory for a table of methods")
        for i in range(len(paths)):
            path = paths[i][0]
            self.keep.append(path)
            self.shared.paths[i].data = <const uint8_t*>PyBytes_AS_STRING(path)
            self.shared.paths[i].size = <size_t>PyBytes_GET_SIZE(path)
            self.shared.paths[i].kind = paths[i][1]
        self.shared.n_paths = <int>len(paths)
        return 0

    cdef int set_callbacks(self) except -1:
        cdef nghttp2_session_callbacks* callbacks
        if (nghttp2_session_callbacks_new(&self.shared.callbacks) != 0
                or nghttp2_option_new(&self.shared.option) != 0):
            raise MemoryError("no memory for a transport")
        callbacks = self.shared.callbacks
        nghttp2_session_callbacks_set_on_begin_frame_callback(callbacks, on_begin_frame)
        nghttp2_session_callbacks_set_on_begin_headers_callback(callbacks, on_begin_headers)
        nghttp2_session_callbacks_set_on_header_callback(callbacks, on_header)
        nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, on_data)
        nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, on_frame)
        nghttp2_session_callbacks_set_on_frame_send_callback(callbacks, on_sent)
        nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_close)
        nghttp2_option_set_no_auto_window_update(self.shared.option, 1)
        nghttp2_option_set_no_closed_streams(self.shared.option, 1)
        lift_reset_limit(self.shared.option)
        return 0

    def listen(self, int fd):
        """Accept connections from a listening, non-blocking socket, which belongs to the transport from now on.

        Before `run` is called only.
        """
        cdef Loop* loop = self.shared.loops[0]
        if loop.n_listeners == 8:
            raise ValueError("a transport has at most 8 listeners")
        if poll_set(loop.poll, EPOLL_CTL_ADD, fd, EPOLLIN, &loop.listeners[loop.n_listeners]) != 0:
            raise OSError("the socket cannot be watched")
        loop.listeners[loop.n_listeners] = fd
        loop.n_listeners += 1

    def adopt(self, int fd):
        """Serve a connected, non-blocking socket, which belongs to the transport from now on. False: nobody runs."""
        atomic_add(&self.shared.connections, 1)
        atomic_add(&self.shared.loops[0].load, 1)
        if hand_to(self.shared.loops[0], fd):
            return True
        atomic_add(&self.shared.connections, -1)
        atomic_add(&self.shared.loops[0].load, -1)
        return False

    def set_routes(self, dict lanes not None):
        """Send calls to these lanes from now on: (model name, version or alias or nothing) as bytes to `Lane`.

        Returns once no thread uses the routes there were before.
        """
        cdef int i
        cdef Loop* loop
        routes = Routes(lanes)
        before = self.keep[0]
        self.keep[0] = (before, routes)
        for i in range(self.shared.n_loops):
            loop = self.shared.loops[i]
            lock_acquire(loop.mailbox.lock)
            loop.next_routes = <void*>routes
            event_raise(loop.mailbox.fd)
            lock_release(loop.mailbox.lock)
        with nogil:
            for i in range(self.shared.n_loops):
                await_routes(self.shared.loops[i])
        self.keep[0] = routes

    def set_tls(self, TlsContext context not None):
        """Have connections made from now on use TLS with this context."""
        cdef int i
        cdef Loop* loop
        for i in range(self.shared.n_loops):
            loop = self.shared.loops[i]
            lock_acquire(loop.mailbox.lock)
            loop.tls = context.context
            lock_release(loop.mailbox.lock)
        self.tls = context       # only now may the one before go

    def fileno(self):
        """The descriptor that turns readable when there are events."""
        return self.shared.events.fd

    def events(self):
        """What happened to RPCs that Python answers, as (kind, Rpc or None, compressed, message), in order."""
        return drain_events(&self.shared.events, self)

    def run(self, int index):
        """The life of one I/O thread: serve until `stop`. Holds no GIL."""
        if not 0 <= index < self.shared.n_loops:
            raise ValueError(f"there is no thread {index}")
        with nogil:
            run_loop(self.shared.loops[index])

    def drain(self):
        """Close the listeners and end every connection in two steps; calls in flight are finished. DRAINED tells when
        the last one is gone."""
        self.ask(drain=True)

    def stop(self):
        """Close everything; `run` returns."""
        self.ask(drain=False)

    cdef int ask(self, bint drain) except -1:
        cdef int i
        cdef Loop* loop
        for i in range(self.shared.n_loops):
            loop = self.shared.loops[i]
            lock_acquire(loop.mailbox.lock)
            if drain:
                loop.drain_asked = True
            else:
                loop.stopping = True
            event_raise(loop.mailbox.fd)
            lock_release(loop.mailbox.lock)
        return 0

    def snapshot(self):
        """Gauges and counters since the start: see `Counters` in http2.pxd."""
        told = {"connections": atomic_get(&self.shared.connections), "bytes": atomic_get(&self.shared.budget.used),
                "in_lanes": 0, "accepted": 0, "refused": 0, "handshakes_failed": 0, "timed_out": 0, "calmed": 0,
                "reset": 0, "over_budget": 0, "inferences": 0, "exchanges": 0}
        cdef int i
        cdef Loop* loop
        for i in range(self.shared.n_loops):
            loop = self.shared.loops[i]
            told["in_lanes"] += atomic_get(&loop.in_lanes)
            told["accepted"] += tallied(&loop.counters.accepted)
            told["refused"] += tallied(&loop.counters.refused)
            told["handshakes_failed"] += tallied(&loop.counters.handshakes_failed)
            told["timed_out"] += tallied(&loop.counters.timed_out)
            told["calmed"] += tallied(&loop.counters.calmed)
            told["reset"] += tallied(&loop.counters.reset)
            told["over_budget"] += tallied(&loop.counters.over_budget)
            told["inferences"] += tallied(&loop.counters.inferences)
            told["exchanges"] += tallied(&loop.counters.exchanges)
        return told


cdef void await_routes(Loop* loop) noexcept nogil:
    """Wait until a loop that runs has taken its new routes; one that does not takes them when it starts."""
    lock_acquire(loop.mailbox.lock)
    while loop.running and loop.next_routes != NULL:
        lock_wait(loop.mailbox.lock, 0)
    if not loop.running:
        take_routes(loop)
    lock_release(loop.mailbox.lock)


cdef int64_t nanoseconds(double seconds):
    return <int64_t>(min(seconds, 1e9) * 1e9)


_LIMITS = {
    "max_message_bytes", "max_header_bytes", "max_streams", "max_connections", "max_in_flight_bytes",
    "default_deadline_s", "handshake_timeout_s", "header_timeout_s", "body_timeout_s", "idle_timeout_s", "keepalive_s",
    "keepalive_timeout_s", "max_connection_age_s", "max_connection_age_grace_s", "max_resets_per_s", "max_pings_per_s",
    "max_settings_per_s", "max_empty_frames_per_s",
}


def versions():
    """Of the libraries that this transport runs on."""
    return {"nghttp2": nghttp2_version(0).version_str.decode(), "OpenSSL": openssl_version()}


# ---------------------------------------------------------------------------------------------------------------------
# The grammar, for tests
# ---------------------------------------------------------------------------------------------------------------------

def decide_timeout(bytes text not None):
    """Nanoseconds of a grpc-timeout; None where it is malformed."""
    ns = parse_timeout(<const uint8_t*>PyBytes_AS_STRING(text), <size_t>PyBytes_GET_SIZE(text))
    return None if ns == MALFORMED_TIMEOUT else ns


def decide_message(bytes text not None):
    """A status message as grpc-message carries it."""
    out = bytearray(3 * len(text) + 1)
    cdef uint8_t[::1] view = out
    size = percent_encode(<const uint8_t*>PyBytes_AS_STRING(text), <size_t>PyBytes_GET_SIZE(text), &view[0])
    return bytes(out[:size])


def decide_content_type(bytes text not None):
    """Whether a content-type is gRPC's."""
    return bool(is_grpc(<const uint8_t*>PyBytes_AS_STRING(text), <size_t>PyBytes_GET_SIZE(text)))


def decide_encodings(bytes text not None):
    """The encodings of a grpc-accept-encoding, a bit for each: 1 identity, 2 gzip, 4 deflate, 8 any other."""
    return encodings_in(<const uint8_t*>PyBytes_AS_STRING(text), <size_t>PyBytes_GET_SIZE(text))


def decide_prefix(uint32_t size, bint compressed):
    """The prefix of a message of `size` bytes, and the size that is read from it."""
    cdef uint8_t[PREFIX_BYTES] prefix
    write_prefix(prefix, size, compressed)
    return <bytes>(<char*>prefix)[:PREFIX_BYTES], message_size(prefix)


def decide_allowed(double rate, times):
    """Which of the events at these times, in nanoseconds and ascending, are within `rate` a second."""
    cdef Bucket bucket
    memset(&bucket, 0, sizeof(Bucket))
    return [bool(allowed(&bucket, rate, now)) for now in times]


cdef class TimerWheel:
    """The timers of one loop: `size` of them, known by their numbers. Times are nanoseconds."""

    cdef Wheel wheel
    cdef Timer* timers
    cdef int size

    def __cinit__(self, int size, int64_t now):
        if size < 1:
            raise ValueError("a wheel for tests has at least one timer")
        self.timers = <Timer*>calloc(<size_t>size, sizeof(Timer))
        if self.timers == NULL:
            raise MemoryError("no memory for timers")
        self.size = size
        start_wheel(&self.wheel, now)

    def __dealloc__(self):
        free(self.timers)

    cdef Timer* at(self, int timer) except NULL:
        if not 0 <= timer < self.size:
            raise IndexError(f"there is no timer {timer}")
        self.timers[timer].kind = timer
        return &self.timers[timer]

    def set(self, int timer, int64_t due):
        """Have a timer fire at `due`, wherever it was before."""
        set_timer(&self.wheel, self.at(timer), due)

    def cancel(self, int timer):
        """Have a timer not fire."""
        cancel_timer(&self.wheel, self.at(timer))

    def take_due(self, int64_t now):
        """A timer that is due; None once there is none."""
        cdef Timer* timer = take_due(&self.wheel, now)
        return None if timer == NULL else timer.kind

    def wait_ms(self, int64_t now):
        """How long a thread may sleep; -1 where no timer is set."""
        return wait_ms(&self.wheel, now)
