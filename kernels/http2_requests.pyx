"""What clients send: frames counted, headers noted, messages put together, until a request is whole.

All of it runs within `nghttp2_session_mem_recv`, as nghttp2's callbacks. Nothing is kept that was not checked against a
limit and charged to the budget first, and what is not gRPC, malformed or too large is refused as soon as that is known;
what still comes of a refused request is thrown away. nghttp2 itself answers SETTINGS and PING and holds clients to the
grammar of HTTP/2; how often they may make it do so is counted here.

Left to others: what becomes of a whole request (`http2_calls`) and of the connection (`http2_connections`), which looks
at what was noted on it once the bytes are read.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t
from libc.stdlib cimport realloc
from libc.string cimport memcpy

from penstock.kernels._grpc cimport (
    ENCODING_IDENTITY, ENCODING_UNKNOWN, MALFORMED_TIMEOUT, PREFIX_BYTES, STATUS_DEADLINE_EXCEEDED, STATUS_INTERNAL,
    STATUS_RESOURCE_EXHAUSTED, STATUS_UNIMPLEMENTED, encoding_of, encodings_in, equals, is_grpc, message_size,
    parse_timeout,
)
from penstock.kernels._http2 cimport (
    KIND_INFER, KIND_STREAM, KIND_UNKNOWN, PHASE_OPEN, WINDOW_BYTES, Connection, Limits, Loop, Path, Shared, Stream,
    allowed, earlier,
)
from penstock.kernels._nghttp2 cimport (
    NGHTTP2_DATA, NGHTTP2_ENHANCE_YOUR_CALM, NGHTTP2_ERR_CALLBACK_FAILURE, NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE,
    NGHTTP2_FLAG_ACK, NGHTTP2_FLAG_END_STREAM, NGHTTP2_FLAG_NONE, NGHTTP2_GOAWAY, NGHTTP2_HCAT_REQUEST, NGHTTP2_HEADERS,
    NGHTTP2_NO_ERROR,
    NGHTTP2_PING, NGHTTP2_REFUSED_STREAM, NGHTTP2_RST_STREAM, NGHTTP2_SETTINGS, NGHTTP2_WINDOW_UPDATE, nghttp2_frame,
    nghttp2_frame_hd, nghttp2_session, nghttp2_session_callbacks,
    nghttp2_session_callbacks_set_on_begin_frame_callback, nghttp2_session_callbacks_set_on_begin_headers_callback,
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback, nghttp2_session_callbacks_set_on_frame_recv_callback,
    nghttp2_session_callbacks_set_on_frame_send_callback, nghttp2_session_callbacks_set_on_header_callback,
    nghttp2_session_callbacks_set_on_stream_close_callback, nghttp2_session_consume_connection,
    nghttp2_session_consume_stream, nghttp2_session_get_stream_user_data, nghttp2_session_set_stream_user_data,
    nghttp2_session_terminate_session, nghttp2_submit_rst_stream,
)
from penstock.kernels._system cimport tally
from penstock.kernels._timers cimport cancel_timer, set_timer
from penstock.kernels.exchanges cimport ENDED, MESSAGE, charge, give_back, post_event
from penstock.kernels.http2_answers cimport (
    refuse, refuse_encoding, refuse_http, refuse_over_budget, refuse_size, reset,
)
from penstock.kernels.http2_calls cimport begin_exchange, hand_over_message, into_lane
from penstock.kernels.http2_streams cimport end_stream, new_stream

cdef enum:
    FIRST_BYTES = 1 << 16    # of a message's buffer, which doubles as bytes come


cdef void hear_requests(nghttp2_session_callbacks* callbacks) noexcept nogil:
    """Have nghttp2 call this module, in every session that is made with these callbacks."""
    nghttp2_session_callbacks_set_on_begin_frame_callback(callbacks, on_begin_frame)
    nghttp2_session_callbacks_set_on_begin_headers_callback(callbacks, on_begin_headers)
    nghttp2_session_callbacks_set_on_header_callback(callbacks, on_header)
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, on_data)
    nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, on_frame)
    nghttp2_session_callbacks_set_on_frame_send_callback(callbacks, on_sent)
    nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_close)


# Frames

cdef int on_begin_frame(nghttp2_session* session, const nghttp2_frame_hd* head, void* user_data) noexcept nogil:
    """Have a client calm down that sends too much of what costs it nothing and us something."""
    cdef Connection* connection = <Connection*>user_data
    if head.type == NGHTTP2_HEADERS or (head.type == NGHTTP2_DATA and head.length):
        return 0
    if not is_fine(connection, head):
        calm(connection)
    return 0


cdef void calm(Connection* connection) noexcept nogil:
    """Tell a client that it does too much of something, and that this is the end of the connection."""
    if not connection.calmed:
        connection.calmed = True
        tally(&connection.loop.counters.calmed)
        nghttp2_session_terminate_session(connection.session, NGHTTP2_ENHANCE_YOUR_CALM)


cdef bint is_fine(Connection* connection, const nghttp2_frame_hd* head) noexcept nogil:
    """Count a frame; whether there were not too many of its kind."""
    cdef const Limits* limits = &connection.loop.shared.limits
    cdef int64_t now = connection.loop.now
    if head.type == NGHTTP2_PING:
        return head.flags & NGHTTP2_FLAG_ACK or allowed(&connection.pings, limits.pings, now)
    if head.type == NGHTTP2_SETTINGS:
        return head.flags & NGHTTP2_FLAG_ACK or allowed(&connection.settings, limits.settings, now)
    if head.type == NGHTTP2_RST_STREAM:
        return allowed(&connection.resets, limits.resets, now)
    if head.type == NGHTTP2_DATA:
        return head.flags & NGHTTP2_FLAG_END_STREAM or allowed(&connection.empty_frames, limits.empty_frames, now)
    if head.type == NGHTTP2_WINDOW_UPDATE or head.type == NGHTTP2_GOAWAY:
        return True
    return allowed(&connection.empty_frames, limits.empty_frames, now)


cdef int on_frame(nghttp2_session* session, const nghttp2_frame* frame, void* user_data) noexcept nogil:
    """A frame is complete."""
    cdef Connection* connection = <Connection*>user_data
    cdef Stream* stream
    if frame.hd.type == NGHTTP2_HEADERS or frame.hd.type == NGHTTP2_DATA:
        stream = <Stream*>nghttp2_session_get_stream_user_data(session, frame.hd.stream_id)
        if stream != NULL:
            on_stream_frame(stream, frame)
    elif frame.hd.type == NGHTTP2_SETTINGS:
        connection.phase = PHASE_OPEN
    elif frame.hd.type == NGHTTP2_PING and frame.hd.flags & NGHTTP2_FLAG_ACK:
        connection.pinged = False
    return 0


cdef inline void on_stream_frame(Stream* stream, const nghttp2_frame* frame) noexcept nogil:
    """Headers or a piece of a body are complete."""
    cdef bint ends = frame.hd.flags & NGHTTP2_FLAG_END_STREAM != 0
    stream.ended = stream.ended or ends
    if frame.hd.type == NGHTTP2_HEADERS and frame.headers.cat == NGHTTP2_HCAT_REQUEST:
        begin_request(stream)
    if ends and not stream.refused:
        end_request(stream)


cdef int on_sent(nghttp2_session* session, const nghttp2_frame* frame, void* user_data) noexcept nogil:
    """An answer that has ended before its request asks for no more of that. Asked sooner, it would not be sent.

    After an answer a client may well PING (grpc-go measures the line so); what makes us reset streams is counted like
    resets of its own.
    """
    cdef Connection* connection = <Connection*>user_data
    cdef Stream* stream
    if frame.hd.type == NGHTTP2_HEADERS or frame.hd.type == NGHTTP2_DATA:
        connection.pings.spent = 0
    elif frame.hd.type == NGHTTP2_RST_STREAM and frame.rst_stream.error_code != NGHTTP2_NO_ERROR:
        if not allowed(&connection.resets, connection.loop.shared.limits.resets, connection.loop.now):
            calm(connection)
    if frame.hd.type == NGHTTP2_HEADERS and frame.hd.flags & NGHTTP2_FLAG_END_STREAM:
        stream = <Stream*>nghttp2_session_get_stream_user_data(session, frame.hd.stream_id)
        if stream != NULL and not stream.ended:
            reset(stream, NGHTTP2_NO_ERROR)
    return 0


cdef int on_close(nghttp2_session* session, int32_t number, uint32_t code, void* user_data) noexcept nogil:
    cdef Stream* stream = <Stream*>nghttp2_session_get_stream_user_data(session, number)
    if stream != NULL:
        if code != NGHTTP2_NO_ERROR and not stream.refused:
            tally(&stream.connection.loop.counters.reset)
        nghttp2_session_set_stream_user_data(session, number, NULL)
        end_stream(stream)
    return 0


# Headers

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
        stream.too_large = True          # said once all are in; a bomb is not worth decoding to its end
        return NGHTTP2_ERR_CALLBACK_FAILURE if stream.header_bytes > 8 * limit else 0
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


cdef bint add_field(Stream* stream, const uint8_t* name, size_t name_size, const uint8_t* value,
                    size_t value_size) noexcept nogil:
    cdef uint32_t[2] sizes
    sizes[0], sizes[1] = <uint32_t>name_size, <uint32_t>value_size
    return (add_text(stream, <const uint8_t*>sizes, sizeof(sizes)) and add_text(stream, name, name_size)
            and add_text(stream, value, value_size))


cdef bint add_text(Stream* stream, const uint8_t* data, size_t size) noexcept nogil:
    """Keep bytes for Python. Headers are counted before, so this is bounded by twice their limit."""
    cdef size_t needed = stream.text_size + size
    if needed > stream.text_capacity and not grow(stream, &stream.text, &stream.text_capacity, 2 * needed + 64):
        return False
    if size:
        memcpy(stream.text + stream.text_size, data, size)
    stream.text_size = needed
    return True


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
        stream.awaited = loop.now
        if stream.timeout or stream.kind != KIND_STREAM:
            stream.deadline = loop.now + limit
            set_timer(&loop.wheel, &stream.timer, earlier(stream.deadline, loop.now + loop.shared.limits.body))
        if stream.kind == KIND_STREAM:
            begin_exchange(stream)


# Messages

cdef int on_data(nghttp2_session* session, uint8_t flags, int32_t number, const uint8_t* data, size_t size,
                 void* user_data) noexcept nogil:
    """A piece of a body. The window opens again at once, unless Python has too much to read already."""
    cdef Stream* stream = <Stream*>nghttp2_session_get_stream_user_data(session, number)
    nghttp2_session_consume_connection(session, size)
    if stream != NULL:
        read_messages(stream, data, size)
        if stream.unread > WINDOW_BYTES and not stream.refused:
            stream.held += size
            return 0
    nghttp2_session_consume_stream(session, number, size)
    return 0


cdef void read_messages(Stream* stream, const uint8_t* data, size_t size) noexcept nogil:
    cdef size_t part
    while size and not stream.refused and not stream.whole:
        if stream.prefix_size == 0:
            await_message(stream)
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


cdef inline void await_message(Stream* stream) noexcept nogil:
    """A message has begun: it is to be whole before long. Of a unary call the clock runs since its headers."""
    cdef Loop* loop = stream.connection.loop
    cdef int64_t due = loop.now + loop.shared.limits.body
    if stream.kind == KIND_STREAM:
        stream.awaited = loop.now
        if stream.timer.link == NULL or stream.timer.due > due:
            set_timer(&loop.wheel, &stream.timer, due)


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
    if stream.size + more <= stream.capacity:
        return True
    wanted = max(<size_t>FIRST_BYTES, 2 * (stream.size + more))
    if grow(stream, &stream.body, &stream.capacity, min(wanted, stream.length)):
        return True
    refuse_over_budget(stream)
    return False


cdef bint grow(Stream* stream, uint8_t** buffer, size_t* capacity, size_t wanted) noexcept nogil:
    """Make a buffer of the stream larger; whether the budget and the memory for it are there."""
    cdef int64_t more = <int64_t>(wanted - capacity[0])
    cdef uint8_t* grown
    if not charge(&stream.connection.loop.shared.budget, more):
        return False
    grown = <uint8_t*>realloc(buffer[0], wanted)
    if grown == NULL:
        give_back(&stream.connection.loop.shared.budget, more)
        return False
    stream.charged += more
    buffer[0] = grown
    capacity[0] = wanted
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
    begin_exchange(stream)
