"""Load on one method of a gRPC server: the client side of HTTP/2 on libnghttp2, in threads without the GIL.

**Closed loop**: so many callers, each of which asks again as soon as it is answered; latency runs from there.
**Open loop**: requests go out when a schedule says so, whatever the server does, and latency runs from the intended
time: a server that stalls is charged for every request that would have come meanwhile.

One pass of a thread: wait with epoll; read what connections have; send what is due; one `send` a connection. Answers
are judged by HTTP status, grpc-status and, where outputs are expected, by shape. What is counted is written by one
thread and may be read by any at any time: counters only grow, so that the difference of two readings is what happened
in between. 1 to 2 microseconds of CPU a request, nghttp2 and the kernel's sockets included.

A connection that is lost or told to leave is replaced; calls the server promised not to have seen are sent again.
"""

cimport cython
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, strlen

from penstock.kernels._client cimport (
    EPOLLET, NGHTTP2_SETTINGS_ENABLE_PUSH, alarm_new, alarm_set, count_more, nghttp2_session_client_new2,
    nghttp2_strerror, nghttp2_submit_request, socket_connect, strerror,
)
from penstock.kernels._fitting cimport (
    FIT_BYTES, FIT_DATATYPE, FIT_MALFORMED, FIT_OUTPUTS, FIT_SHAPE, FITS, MAX_DIMENSIONS, MAX_OUTPUTS, Output,
    fit_answer,
)
from penstock.kernels._grpc cimport PREFIX_BYTES, equals, message_size
from penstock.kernels._nghttp2 cimport *
from penstock.kernels._samples cimport BUCKETS, bucket_of
from penstock.kernels._sockets cimport (
    EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, epoll_event, poll_new, poll_set, poll_wait,
    socket_read, socket_write, would_block,
)
from penstock.kernels._system cimport (
    atomic_add, atomic_get, close, event_clear, event_new, event_raise, flag_raise, flag_raised, monotonic_ns, tallied,
    tally,
)

# What became of a call: 0 answered as it should be; 1 to 16 the gRPC status; beyond, what no status tells.
cdef enum:
    ANSWERED = 0
    STATUS_UNKNOWN = 2
    STATUSES = 17
    NOT_HTTP_OK = 17         # an HTTP status other than 200, or no grpc-status
    WAS_RESET = 18           # the server gave the stream up
    NOT_CONNECTED = 19       # the connection was lost, or there was none
    DOES_NOT_FIT = 20        # status OK, but not the outputs that were expected
    TIMED_OUT = 21           # no answer in time
    NOT_SENT = 22            # too many calls were in flight already
    OUTCOMES = 23

cdef enum Phase:
    CONNECTING = 0           # and then waiting for the start
    SENDING = 1
    FINISHING = 2            # what is in flight may still be answered
    STOPPED = 3

cdef enum:
    NO_COPY = 3              # of both name and value of a header
    READ_BYTES = 1 << 18     # of one read
    WRITE_BYTES = 1 << 18    # collected for one write
    FRAME_BYTES = 1 << 15    # more than a frame of nghttp2's has
    READS_A_PASS = 4         # of one connection
    DUE_A_PASS = 64          # requests of the schedule between two writes
    EVENTS = 64
    STREAM_WINDOW = 1 << 20
    CONNECTION_WINDOW = 1 << 24
    MAX_ANSWER_BYTES = 1 << 28
    WORDS = 256
    HOST_BYTES = 256
    MAX_HEADERS = 8
    TICK_MS = 20             # between looks at what takes long

cdef int64_t SECOND = 1_000_000_000
cdef int64_t RETRY_NS = 100_000_000
cdef int64_t SPIN_NS = 20_000     # setting the alarm takes about as long, above all in virtual machines
cdef int64_t NEVER = 1 << 62

cdef struct Body:            # a request as gRPC frames it
    const uint8_t* data
    size_t size
    int64_t rows

cdef struct Call:
    Wire* wire               # NULL: not in flight
    Call* next               # of those that are free or parked
    const Body* body
    size_t sent
    int64_t start            # the intended time
    int32_t stream
    int status               # -1: none came
    bint http_ok
    bint given_up            # and counted already
    uint8_t* answer          # bytes of the answer where they came in pieces
    size_t answer_size
    size_t answer_capacity
    int fit                  # -1: no message came
    int messages

cdef struct Wire:            # a connection
    Thread* thread
    Wire* next
    int slot
    int fd
    nghttp2_session* session
    bint ready               # the server's settings came
    bint waits               # to write
    bint leaving             # no more calls
    bint lost
    int64_t in_flight
    uint8_t* unsent          # what the socket did not take
    size_t unsent_size

cdef struct Shared:          # nothing of it changes while threads run, but the last four
    char[HOST_BYTES] host
    int port
    nghttp2_nv[MAX_HEADERS] headers
    size_t header_count
    nghttp2_session_callbacks* callbacks
    Body* bodies
    int64_t body_count
    Output* outputs
    int output_count         # 0: answers are not looked into
    const int64_t* offsets   # ns of the schedule's requests within its period; NULL: closed loop
    int64_t offset_count
    int64_t period
    int64_t quantum          # ns by which requests may be late to go out together; 0: none, threads rather spin
    int threads
    int64_t limit            # requests in all; 0: no limit
    int64_t timeout
    int64_t phase
    int64_t begin            # of the schedule
    int started              # after `begin` was set
    int64_t asked

cdef struct Thread:
    Shared* shared
    int index
    int poll
    int wake
    int alarm
    int64_t alarmed          # what the alarm is set to
    Wire** slots             # the connection of each slot that new calls take; NULL while there is none
    int slot_count
    int64_t retry_at         # for slots without one
    Wire* wires
    bint untidy              # a connection is lost or left
    Call* calls
    int64_t capacity
    int64_t used
    Call* spare
    Call* parked             # callers without a connection
    int64_t callers
    int64_t in_flight
    int64_t body_at
    int64_t arrival          # the number of the schedule's next request
    int64_t next_due
    int64_t[DUE_A_PASS] due  # intended times of what was submitted in this pass
    int due_count
    int64_t next_tick
    int64_t next_look        # for calls that take too long
    uint8_t* read_buffer
    uint8_t* write_buffer
    epoll_event[EVENTS] events
    uint64_t ready           # slots that were connected, ever
    uint64_t sent
    uint64_t rows            # of answered calls
    uint64_t latency_sum
    int64_t first
    int64_t last
    uint64_t[OUTCOMES] outcomes
    int[OUTCOMES] said
    char[OUTCOMES][WORDS] words
    uint64_t[BUCKETS] latencies
    uint64_t[BUCKETS] lags
    uint8_t* sample          # the first answer
    size_t sample_size
    int sampled


# ---------------------------------------------------------------------------------------------------------------------
# Calls
# ---------------------------------------------------------------------------------------------------------------------

cdef void say(Thread* thread, int outcome, const char* text, size_t size) noexcept nogil:
    """Keep the first words there are about an outcome."""
    if thread.said[outcome] or size == 0:
        return
    size = size if size < WORDS - 1 else WORDS - 1
    memcpy(thread.words[outcome], text, size)
    thread.words[outcome][size] = 0
    flag_raise(&thread.said[outcome])


cdef inline void say_text(Thread* thread, int outcome, const char* text) noexcept nogil:
    say(thread, outcome, text, strlen(text))


cdef Call* take_call(Thread* thread) noexcept nogil:
    cdef Call* call = thread.spare
    if call != NULL:
        thread.spare = call.next
    elif thread.used < thread.capacity:
        call = &thread.calls[thread.used]
        thread.used += 1
    return call


cdef inline void give_back(Thread* thread, Call* call) noexcept nogil:
    call.wire = NULL
    call.next = thread.spare
    thread.spare = call


cdef inline void park(Thread* thread, Call* call) noexcept nogil:
    call.wire = NULL
    call.next = thread.parked
    thread.parked = call


cdef ssize_t read_body(nghttp2_session* session, int32_t number, uint8_t* out, size_t room, uint32_t* flags,
                       nghttp2_data_source* source, void* user_data) noexcept nogil:
    """nghttp2 asks for the next piece of a request."""
    cdef Call* call = <Call*>source.ptr
    cdef size_t part = call.body.size - call.sent
    if part > room:
        part = room
    else:
        flags[0] |= NGHTTP2_DATA_FLAG_EOF
    memcpy(out, call.body.data + call.sent, part)
    call.sent += part
    return <ssize_t>part


cdef bint submit(Wire* wire, Call* call) noexcept nogil:
    """Put a call on a connection; False where the connection takes no more."""
    cdef Shared* shared = wire.thread.shared
    cdef nghttp2_data_provider provider
    provider.source.ptr = call
    provider.read_callback = read_body
    call.sent, call.status, call.http_ok, call.given_up = 0, -1, False, False
    call.answer_size, call.fit, call.messages = 0, -1, 0
    call.stream = nghttp2_submit_request(wire.session, NULL, shared.headers, shared.header_count, &provider, call)
    if call.stream < 0:      # its numbers are used up
        leave(wire)
        return False
    call.wire = wire
    wire.in_flight += 1
    return True


cdef bint ask(Thread* thread, Call* call, int slot, int64_t start) noexcept nogil:
    """Send the pool's next body; False where there is no connection to send it on."""
    cdef Shared* shared = thread.shared
    cdef Wire* wire = thread.slots[slot]
    call.body = &shared.bodies[thread.body_at]
    call.start = start
    if wire == NULL or not submit(wire, call):
        return False
    thread.body_at = thread.body_at + 1 if thread.body_at + 1 < shared.body_count else 0
    thread.in_flight += 1
    tally(&thread.sent)
    return True


cdef inline bint allowed(Thread* thread) noexcept nogil:
    """Whether a caller may ask once more."""
    cdef Shared* shared = thread.shared
    if atomic_get(&shared.phase) != SENDING:
        return False
    return shared.limit == 0 or atomic_add(&shared.asked, 1) <= shared.limit


cdef void ask_again(Thread* thread, Call* call, int slot, int64_t now) noexcept nogil:
    """What a caller of the closed loop does once it was answered."""
    if not allowed(thread):
        give_back(thread, call)
    elif not ask(thread, call, slot, now):
        park(thread, call)


cdef inline void count(Thread* thread, int outcome, const Call* call, int64_t now) noexcept nogil:
    """Note what became of a call."""
    tally(&thread.outcomes[outcome])
    thread.last = now
    if outcome == ANSWERED:
        tally(&thread.latencies[bucket_of(now - call.start)])
        count_more(&thread.latency_sum, <uint64_t>(now - call.start))
        count_more(&thread.rows, <uint64_t>call.body.rows)


cdef int judge(Call* call, uint32_t error) noexcept nogil:
    """What became of a call whose stream is closed."""
    if call.status < 0:
        return WAS_RESET if error else NOT_HTTP_OK
    if not call.http_ok:
        return NOT_HTTP_OK
    if call.status:
        return call.status
    if call.wire.thread.shared.output_count and (call.fit != FITS or call.messages != 1):
        return DOES_NOT_FIT
    return ANSWERED


cdef void explain(Thread* thread, int outcome, const Call* call) noexcept nogil:
    """Words for an outcome that the server gave none for."""
    if outcome == NOT_HTTP_OK:
        say_text(thread, outcome, b"an HTTP status other than 200, or no grpc-status: no gRPC server?")
    elif outcome == WAS_RESET:
        say_text(thread, outcome, b"the server reset the stream")
    elif outcome == DOES_NOT_FIT and call.messages != 1:
        say_text(thread, outcome, b"status OK without exactly one message that is not compressed")
    elif outcome == DOES_NOT_FIT:
        if call.fit == FIT_OUTPUTS:
            say_text(thread, outcome, b"other outputs than the first answer had")
        elif call.fit == FIT_DATATYPE:
            say_text(thread, outcome, b"an output of another datatype than in the first answer")
        elif call.fit == FIT_SHAPE:
            say_text(thread, outcome, b"an output of another shape than the request's rows and the metadata ask for")
        elif call.fit == FIT_BYTES:
            say_text(thread, outcome, b"an output whose bytes are not as many as its shape says")
        else:
            say_text(thread, outcome, b"not a ModelInferResponse")


cdef int on_close(nghttp2_session* session, int32_t number, uint32_t error, void* user_data) noexcept nogil:
    """nghttp2 is done with a stream."""
    cdef Wire* wire = <Wire*>user_data
    cdef Thread* thread = wire.thread
    cdef Call* call = <Call*>nghttp2_session_get_stream_user_data(session, number)
    cdef int64_t now
    cdef int outcome
    if call == NULL:
        return 0
    wire.in_flight -= 1
    if wire.in_flight == 0 and wire.leaving:
        thread.untidy = True
    if error == NGHTTP2_REFUSED_STREAM and wire.leaving and not call.given_up:
        if thread.slots[wire.slot] != NULL and submit(thread.slots[wire.slot], call):
            return 0         # the server has not seen it
    now = monotonic_ns()
    if not call.given_up:
        outcome = judge(call, error)
        if outcome != ANSWERED:
            explain(thread, outcome, call)
        count(thread, outcome, call, now)
    thread.in_flight -= 1
    if thread.shared.offsets == NULL:
        ask_again(thread, call, wire.slot, now)
    else:
        give_back(thread, call)
    return 0


# ---------------------------------------------------------------------------------------------------------------------
# Answers
# ---------------------------------------------------------------------------------------------------------------------

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


# ---------------------------------------------------------------------------------------------------------------------
# Connections
# ---------------------------------------------------------------------------------------------------------------------

cdef Wire* open_wire(Thread* thread, int slot) noexcept nogil:
    """Begin to connect; NULL, with the reason said, where that fails at once."""
    cdef Wire* wire = <Wire*>calloc(1, sizeof(Wire))
    if wire == NULL:
        return NULL
    wire.thread, wire.slot, wire.waits = thread, slot, True
    wire.fd = socket_connect(thread.shared.host, thread.shared.port)
    if wire.fd < 0:
        say_text(thread, NOT_CONNECTED, strerror(-wire.fd))
        free(wire)
        return NULL
    if not greet(wire) or poll_set(thread.poll, EPOLL_CTL_ADD, wire.fd, EPOLLIN | EPOLLOUT, wire) != 0:
        free_wire(wire)
        return NULL
    wire.next = thread.wires
    thread.wires = wire
    return wire


cdef bint greet(Wire* wire) noexcept nogil:
    """The session, its settings and wide windows."""
    cdef nghttp2_settings_entry[2] entries
    cdef nghttp2_option* option = NULL
    entries[0].settings_id, entries[0].value = NGHTTP2_SETTINGS_ENABLE_PUSH, 0
    entries[1].settings_id, entries[1].value = NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, STREAM_WINDOW
    if nghttp2_session_client_new2(&wire.session, wire.thread.shared.callbacks, wire, option) != 0:
        return False
    if nghttp2_submit_settings(wire.session, NGHTTP2_FLAG_NONE, entries, 2) != 0:
        return False
    return nghttp2_session_set_local_window_size(wire.session, NGHTTP2_FLAG_NONE, 0, CONNECTION_WINDOW) == 0


cdef void free_wire(Wire* wire) noexcept nogil:
    if wire.session != NULL:
        nghttp2_session_del(wire.session)
    close(wire.fd)           # which takes it out of epoll
    free(wire.unsent)
    free(wire)


cdef void leave(Wire* wire) noexcept nogil:
    """Give a connection no more calls, and its slot another one."""
    if wire.leaving:
        return
    wire.leaving = True
    wire.thread.untidy = True
    if wire.thread.slots[wire.slot] == wire:
        wire.thread.slots[wire.slot] = open_wire(wire.thread, wire.slot)


cdef void lose(Wire* wire, const char* why) noexcept nogil:
    """The connection is of no use any more; `tidy` ends its calls."""
    if wire.lost:
        return
    wire.lost = True
    wire.thread.untidy = True
    say_text(wire.thread, NOT_CONNECTED, why)
    if wire.thread.slots[wire.slot] == wire:
        wire.thread.slots[wire.slot] = NULL
        wire.thread.retry_at = monotonic_ns() + RETRY_NS


cdef int on_frame(nghttp2_session* session, const nghttp2_frame* frame, void* user_data) noexcept nogil:
    cdef Wire* wire = <Wire*>user_data
    if frame.hd.type == NGHTTP2_SETTINGS and not frame.hd.flags & NGHTTP2_FLAG_ACK and not wire.ready:
        wire.ready = True
        tally(&wire.thread.ready)
    elif frame.hd.type == NGHTTP2_GOAWAY:
        leave(wire)
    return 0


cdef void tidy(Thread* thread, int64_t now) noexcept nogil:
    """Free the connections that are lost or left, and end the calls of those that are lost."""
    cdef Wire** link = &thread.wires
    cdef Wire* wire
    thread.untidy = False
    while link[0] != NULL:
        wire = link[0]
        if not wire.lost and not (wire.leaving and wire.in_flight == 0):
            link = &wire.next
            continue
        link[0] = wire.next
        if wire.in_flight:
            end_calls(thread, wire, now)
        free_wire(wire)


cdef void end_calls(Thread* thread, Wire* wire, int64_t now) noexcept nogil:
    cdef int64_t i
    cdef Call* call
    for i in range(thread.used):
        call = &thread.calls[i]
        if call.wire != wire:
            continue
        if not call.given_up:
            count(thread, NOT_CONNECTED, call, now)
        thread.in_flight -= 1
        if thread.shared.offsets == NULL:
            park(thread, call)
        else:
            give_back(thread, call)


cdef bint write_out(Wire* wire, const uint8_t* data, size_t size) noexcept nogil:
    """Write, and keep what the socket does not take; whether it took all."""
    cdef size_t done = 0
    cdef ssize_t put
    cdef uint8_t* rest
    while done < size:
        put = socket_write(wire.fd, data + done, size - done)
        if put < 0:
            if not would_block(put):
                lose(wire, strerror(<int>-put))
                return False
            break
        done += <size_t>put
    if done == size:
        return True
    rest = <uint8_t*>malloc(size - done)
    if rest == NULL:
        lose(wire, b"out of memory")
        return False
    memcpy(rest, data + done, size - done)
    free(wire.unsent)        # after it was copied from, where `data` lies in it
    wire.unsent, wire.unsent_size = rest, size - done
    if not wire.waits:
        wire.waits = True
        poll_set(wire.thread.poll, EPOLL_CTL_MOD, wire.fd, EPOLLIN | EPOLLOUT, wire)
    return False


cdef void flush(Wire* wire) noexcept nogil:
    """Write all that the session has to say, unless the socket is full."""
    cdef uint8_t* buffer = wire.thread.write_buffer
    cdef const uint8_t* frame = NULL
    cdef size_t size
    cdef ssize_t got
    while not wire.waits and not wire.lost:
        size = 0
        while size <= WRITE_BYTES - FRAME_BYTES:
            got = nghttp2_session_mem_send(wire.session, &frame)
            if got <= 0:
                break
            if <size_t>got > WRITE_BYTES - size:
                got = -1
                break
            memcpy(buffer + size, frame, <size_t>got)
            size += <size_t>got
        else:
            got = 1
        if got < 0:
            lose(wire, b"cannot be written to")
            return
        if size and not write_out(wire, buffer, size):
            return
        if got == 0:
            break
    if not wire.waits and not wire.lost and not nghttp2_session_want_read(wire.session) and not (
            nghttp2_session_want_write(wire.session)):
        lose(wire, b"the server ended the connection")


cdef void on_ready(Wire* wire, uint32_t events) noexcept nogil:
    """What epoll says of a connection."""
    cdef ssize_t got
    cdef ssize_t used
    cdef int _read
    if events & (EPOLLIN | EPOLLERR | EPOLLHUP):
        for _read in range(READS_A_PASS):
            got = socket_read(wire.fd, wire.thread.read_buffer, READ_BYTES)
            if got <= 0:
                if got == 0:
                    lose(wire, b"the server closed the connection")
                elif not would_block(got):
                    lose(wire, strerror(<int>-got))
                break
            used = nghttp2_session_mem_recv(wire.session, wire.thread.read_buffer, <size_t>got)
            if used < 0:
                lose(wire, nghttp2_strerror(<int>used))
            if wire.lost or got < READ_BYTES:
                break
    if events & EPOLLOUT and wire.waits and not wire.lost:
        if write_out(wire, wire.unsent, wire.unsent_size):
            wire.unsent_size = 0
            wire.waits = False
            poll_set(wire.thread.poll, EPOLL_CTL_MOD, wire.fd, EPOLLIN, wire)
    if not wire.lost:
        flush(wire)


# ---------------------------------------------------------------------------------------------------------------------
# A thread
# ---------------------------------------------------------------------------------------------------------------------

cdef bint open_thread(Thread* thread) noexcept nogil:
    """Take what a thread needs and begin to connect; False where something is missing."""
    cdef int i
    thread.poll, thread.alarm = poll_new(), alarm_new()
    thread.read_buffer, thread.write_buffer = <uint8_t*>malloc(READ_BYTES), <uint8_t*>malloc(WRITE_BYTES)
    if thread.poll < 0 or thread.alarm < 0 or thread.read_buffer == NULL or thread.write_buffer == NULL:
        return False
    if poll_set(thread.poll, EPOLL_CTL_ADD, thread.wake, EPOLLIN, &thread.wake) != 0:
        return False
    if poll_set(thread.poll, EPOLL_CTL_ADD, thread.alarm, EPOLLIN | EPOLLET, &thread.alarm) != 0:
        return False
    for i in range(thread.slot_count):
        thread.slots[i] = open_wire(thread, i)
    thread.retry_at = monotonic_ns() + RETRY_NS
    return True


cdef void close_thread(Thread* thread) noexcept nogil:
    """End every connection politely, without waiting for anything."""
    cdef Wire* wire
    while thread.wires != NULL:
        wire = thread.wires
        thread.wires = wire.next
        if not wire.lost:
            nghttp2_session_terminate_session(wire.session, NGHTTP2_NO_ERROR)
            wire.thread.untidy = False
            flush(wire)
        free_wire(wire)
    if thread.poll > 0:
        close(thread.poll)
    if thread.alarm > 0:
        close(thread.alarm)
    free(thread.read_buffer)
    free(thread.write_buffer)
    thread.read_buffer, thread.write_buffer = NULL, NULL


cdef void begin_callers(Thread* thread) noexcept nogil:
    """Every caller of the closed loop asks for the first time."""
    cdef int64_t i
    cdef Call* call
    for i in range(thread.callers):
        call = take_call(thread)
        if call != NULL:
            ask_again(thread, call, <int>(i % thread.slot_count), monotonic_ns())


cdef void send_due(Thread* thread, int64_t now) noexcept nogil:
    """Submit what the schedule asks for by now, at most DUE_A_PASS."""
    cdef Shared* shared = thread.shared
    cdef Call* call
    cdef int64_t due
    cdef int _turn
    for _turn in range(DUE_A_PASS):
        due = shared.begin + thread.arrival // shared.offset_count * shared.period + (
            shared.offsets[thread.arrival % shared.offset_count])
        thread.next_due = due
        if due > now:
            return
        call = take_call(thread)
        if call == NULL:
            tally(&thread.outcomes[NOT_SENT])
        elif not ask(thread, call, <int>(thread.arrival // shared.threads % thread.slot_count), due):
            tally(&thread.outcomes[NOT_CONNECTED])
            give_back(thread, call)
        else:
            thread.due[thread.due_count] = due
            thread.due_count += 1
        thread.arrival += shared.threads


cdef void write_due(Thread* thread) noexcept nogil:
    """Write what was submitted, and note how late that is."""
    cdef Wire* wire = thread.wires
    cdef int64_t now
    cdef int i
    while wire != NULL:
        if not wire.lost:
            flush(wire)
        wire = wire.next
    now = monotonic_ns()
    for i in range(thread.due_count):
        tally(&thread.lags[bucket_of(now - thread.due[i])])
    thread.due_count = 0


cdef int patience_until(Thread* thread, int64_t now) noexcept nogil:
    """How long epoll may wait, in milliseconds, with the alarm set for what is due before."""
    cdef int64_t quantum = thread.shared.quantum
    cdef int64_t at = thread.next_due
    if at <= now + SPIN_NS and (quantum == 0 or at <= now):
        return 0
    if at < now + quantum:
        at = now + quantum
    if thread.alarmed <= now or thread.alarmed > at:
        alarm_set(thread.alarm, at)
        thread.alarmed = at
    return TICK_MS


cdef void tick(Thread* thread, int64_t now) noexcept nogil:
    """What is looked at now and then: lost connections, callers without one, calls that take too long."""
    cdef int slot
    cdef Call* call
    cdef Call* next
    thread.next_tick = now + TICK_MS * 1_000_000
    if now >= thread.retry_at:
        thread.retry_at = now + RETRY_NS
        for slot in range(thread.slot_count):
            if thread.slots[slot] == NULL:
                thread.slots[slot] = open_wire(thread, slot)
    call = thread.parked
    thread.parked = NULL
    slot = 0
    while call != NULL:
        next = call.next
        ask_again(thread, call, slot % thread.slot_count, now)
        slot += 1
        call = next
    if now >= thread.next_look:
        thread.next_look = now + (thread.shared.timeout >> 2 if thread.shared.timeout < SECOND else SECOND >> 2)
        give_up_late(thread, now)
    write_due(thread)


cdef void give_up_late(Thread* thread, int64_t now) noexcept nogil:
    cdef int64_t i
    cdef Call* call
    for i in range(thread.used):
        call = &thread.calls[i]
        if call.wire == NULL or call.given_up or now - call.start < thread.shared.timeout:
            continue
        call.given_up = True
        count(thread, TIMED_OUT, call, now)
        say_text(thread, TIMED_OUT, b"no answer within the time limit of a call")
        nghttp2_submit_rst_stream(call.wire.session, NGHTTP2_FLAG_NONE, call.stream, NGHTTP2_CANCEL)


cdef void live(Thread* thread) noexcept nogil:
    """Passes until the run is over."""
    cdef Shared* shared = thread.shared
    cdef bint begun = False
    cdef bint open_loop = shared.offsets != NULL
    cdef int64_t now, phase
    cdef int found, i, patience
    cdef void* tag
    while True:
        phase = atomic_get(&shared.phase)
        now = monotonic_ns()
        if phase == STOPPED or (phase == FINISHING and thread.in_flight == 0):
            return
        if not begun and flag_raised(&shared.started):
            begun = True
            thread.first = now
            if not open_loop:
                begin_callers(thread)
                write_due(thread)
        if begun and not open_loop and thread.in_flight == 0 and thread.parked == NULL:
            return           # every request that was asked for is answered
        patience = TICK_MS
        if begun and open_loop and phase == SENDING:
            send_due(thread, now)
            if thread.due_count:
                write_due(thread)
            patience = patience_until(thread, now)
        found = poll_wait(thread.poll, thread.events, EVENTS, patience)
        for i in range(found):
            tag = thread.events[i].data.ptr
            if tag == &thread.wake:
                event_clear(thread.wake)
            elif tag != &thread.alarm and not (<Wire*>tag).lost:
                on_ready(<Wire*>tag, thread.events[i].events)
        now = monotonic_ns()
        if thread.untidy:
            tidy(thread, now)
        if now >= thread.next_tick:
            tick(thread, now)


# ---------------------------------------------------------------------------------------------------------------------
# What Python sees
# ---------------------------------------------------------------------------------------------------------------------

cdef nghttp2_nv header(bytes name, bytes value):
    """A header whose bytes are kept elsewhere."""
    cdef nghttp2_nv made
    made.name, made.namelen = <uint8_t*><char*>name, <size_t>len(name)
    made.value, made.valuelen = <uint8_t*><char*>value, <size_t>len(value)
    made.flags = NO_COPY
    return made


cdef int set_output(Output* output, bytes name, bytes datatype, int width, object shape) except -1:
    """Fill in what is expected of an output; the bytes must be kept elsewhere."""
    if len(shape) > MAX_DIMENSIONS:
        raise ValueError("an output has more than 8 dimensions")
    output.name, output.name_size = name, <size_t>len(name)
    output.datatype, output.datatype_size = datatype, <size_t>len(datatype)
    output.width = <size_t>width
    output.dimensions = <int>len(shape)
    for i, size in enumerate(shape):
        output.shape[i] = size
    return 0


@cython.final
cdef class Load:

    cdef Shared shared
    cdef Thread* threads
    cdef list kept           # bytes that pointers point into
    cdef const int64_t[::1] schedule

    def __cinit__(
        self, *, bytes host not None, int port, headers, bodies, rows, int connections, int threads=1,
        int64_t callers=0, const int64_t[::1] schedule=None, int64_t period_ns=0, outputs=(), int64_t quantum_ns=0,
        int64_t limit=0, double timeout_s=30.0, int64_t most_in_flight=65536,
    ):
        self.kept = []
        if len(host) >= HOST_BYTES:
            raise ValueError("the host's name is too long")
        if not 0 <= port < 65536:
            raise ValueError("no such port")
        if not 1 <= threads <= 256 or not threads <= connections <= 65536:
            raise ValueError("there must be 1 to 256 threads, and at least one connection for each")
        if not bodies or len(bodies) != len(rows):
            raise ValueError("there must be bodies, and a number of rows for each")
        if len(headers) > MAX_HEADERS or len(outputs) > MAX_OUTPUTS:
            raise ValueError("there are too many headers or outputs")
        if (schedule is None) == (callers < 1):
            raise ValueError("either callers or a schedule")
        if schedule is not None and (schedule.shape[0] < 1 or period_ns < 1):
            raise ValueError("a schedule has requests and a period")
        if limit < 0 or not 0 <= quantum_ns <= SECOND or not 0 < timeout_s < 1e6 or not 1 <= most_in_flight <= 1 << 22:
            raise ValueError("a limit is out of bounds")
        memcpy(self.shared.host, <char*>host, len(host) + 1)
        self.shared.port = port
        self.shared.limit, self.shared.quantum = limit, quantum_ns
        self.shared.timeout = <int64_t>(timeout_s * 1e9)
        self.shared.threads = threads
        self.keep_request(headers, bodies, rows, outputs)
        if schedule is not None:
            self.schedule = schedule
            self.shared.offsets, self.shared.offset_count = &schedule[0], schedule.shape[0]
            self.shared.period = period_ns
        self.make_threads(connections, callers, most_in_flight)

    cdef int keep_request(self, object headers, object bodies, object rows, object outputs) except -1:
        """What is sent, and what is expected to come back."""
        cdef bytes body
        cdef Py_ssize_t i
        cdef Shared* shared = &self.shared
        shared.bodies = <Body*>calloc(len(bodies), sizeof(Body))
        shared.outputs = <Output*>calloc(max(len(outputs), 1), sizeof(Output))
        if shared.bodies == NULL or shared.outputs == NULL or nghttp2_session_callbacks_new(&shared.callbacks) != 0:
            raise MemoryError
        nghttp2_session_callbacks_set_on_header_callback(shared.callbacks, on_header)
        nghttp2_session_callbacks_set_on_data_chunk_recv_callback(shared.callbacks, on_data)
        nghttp2_session_callbacks_set_on_frame_recv_callback(shared.callbacks, on_frame)
        nghttp2_session_callbacks_set_on_stream_close_callback(shared.callbacks, on_close)
        for name, value in headers:
            self.kept += [name, value]
            shared.headers[shared.header_count] = header(name, value)
            shared.header_count += 1
        for i, content in enumerate(bodies):
            body = b"\0" + len(content).to_bytes(4, "big") + content
            self.kept.append(body)
            shared.bodies[i].data, shared.bodies[i].size = <const uint8_t*><char*>body, <size_t>len(body)
            shared.bodies[i].rows = rows[i]
        shared.body_count = len(bodies)
        for name, datatype, width, shape in outputs:
            self.kept += [name, datatype]
            set_output(&shared.outputs[shared.output_count], name, datatype, width, shape)
            shared.output_count += 1
        return 0

    cdef int make_threads(self, int connections, int64_t callers, int64_t most) except -1:
        """Threads, with connections and callers spread over them."""
        cdef int i
        cdef int count = self.shared.threads
        cdef Thread* thread
        self.threads = <Thread*>calloc(count, sizeof(Thread))
        if self.threads == NULL:
            raise MemoryError
        for i in range(count):
            self.threads[i].wake = -1
        for i in range(count):
            thread = &self.threads[i]
            thread.shared, thread.index, thread.arrival = &self.shared, i, i
            thread.slot_count = connections // count + (i < connections % count)
            thread.callers = callers // count + (i < callers % count)
            thread.capacity = thread.callers if callers else most // count + 1
            thread.body_at = self.shared.body_count * i // count
            thread.next_due = 0
            thread.slots = <Wire**>calloc(thread.slot_count, sizeof(Wire*))
            thread.calls = <Call*>calloc(max(thread.capacity, 1), sizeof(Call))
            thread.wake = event_new()
            if thread.slots == NULL or thread.calls == NULL or thread.wake < 0:
                raise MemoryError
        return 0

    def __dealloc__(self):
        cdef int i
        cdef int64_t j
        if self.threads != NULL:
            for i in range(self.shared.threads):
                if self.threads[i].calls != NULL:
                    for j in range(self.threads[i].used):
                        free(self.threads[i].calls[j].answer)
                free(self.threads[i].calls)
                free(self.threads[i].slots)
                free(self.threads[i].sample)
                if self.threads[i].wake >= 0:
                    close(self.threads[i].wake)
            free(self.threads)
        free(self.shared.bodies)
        free(self.shared.outputs)
        if self.shared.callbacks != NULL:
            nghttp2_session_callbacks_del(self.shared.callbacks)

    def run(self, int index):
        cdef bint opened
        cdef Thread* thread
        if not 0 <= index < self.shared.threads:
            raise ValueError(f"there is no thread {index}")
        thread = &self.threads[index]
        if thread.poll:
            raise ValueError(f"thread {index} was run already")
        with nogil:
            opened = open_thread(thread)
            if opened:
                live(thread)
            close_thread(thread)
        if not opened:
            raise MemoryError

    def start(self):
        self.shared.begin = monotonic_ns() + 1_000_000
        flag_raise(&self.shared.started)
        self.turn(SENDING)

    def finish(self):
        self.turn(FINISHING)

    def stop(self):
        self.turn(STOPPED)

    cdef turn(self, int phase):
        cdef int i
        atomic_add(&self.shared.phase, phase - atomic_get(&self.shared.phase))
        for i in range(self.shared.threads):
            event_raise(self.threads[i].wake)

    def counts(self):
        cdef int i, outcome
        cdef Thread* thread
        cdef uint64_t[OUTCOMES] outcomes
        cdef uint64_t connected = 0, sent = 0, rows = 0, latency_sum = 0
        for outcome in range(OUTCOMES):
            outcomes[outcome] = 0
        for i in range(self.shared.threads):
            thread = &self.threads[i]
            connected += tallied(&thread.ready)
            rows += tallied(&thread.rows)
            latency_sum += tallied(&thread.latency_sum)
            for outcome in range(OUTCOMES):
                outcomes[outcome] += tallied(&thread.outcomes[outcome])
            sent += tallied(&thread.sent)
        return {
            "connected": connected, "sent": sent, "rows": rows, "latency_ns": latency_sum,
            "outcomes": [outcomes[outcome] for outcome in range(OUTCOMES)],
        }

    def read_latencies(self, uint64_t[::1] out not None):
        self.read_into(out, False)

    def read_lags(self, uint64_t[::1] out not None):
        self.read_into(out, True)

    cdef int read_into(self, uint64_t[::1] out, bint lags) except -1:
        cdef int i, bucket
        cdef const uint64_t* counters
        if out.shape[0] != BUCKETS:
            raise ValueError(f"there are {BUCKETS} buckets")
        out[:] = 0
        for i in range(self.shared.threads):
            counters = &self.threads[i].lags[0] if lags else &self.threads[i].latencies[0]
            for bucket in range(BUCKETS):
                out[bucket] += tallied(&counters[bucket])
        return 0

    def words(self):
        cdef int i, outcome
        found = {}
        for i in range(self.shared.threads):
            for outcome in range(OUTCOMES):
                if outcome not in found and flag_raised(&self.threads[i].said[outcome]):
                    found[outcome] = <bytes>self.threads[i].words[outcome]
        return found

    def sample(self):
        cdef int i
        for i in range(self.shared.threads):
            if flag_raised(&self.threads[i].sampled):
                return self.threads[i].sample[PREFIX_BYTES:self.threads[i].sample_size]
        return None

    def seconds(self):
        cdef int i
        first, last = NEVER, 0
        for i in range(self.shared.threads):
            if self.threads[i].last:
                first, last = min(first, self.threads[i].first), max(last, self.threads[i].last)
        return max(last - first, 0) / 1e9


def decide_bucket(int64_t ns):
    return bucket_of(ns)


def decide_fit(bytes answer not None, int64_t rows, outputs):
    cdef Output* expected
    cdef int count = 0
    if len(outputs) > MAX_OUTPUTS:
        raise ValueError("there are too many outputs")
    expected = <Output*>calloc(max(len(outputs), 1), sizeof(Output))
    if expected == NULL:
        raise MemoryError
    try:
        for name, datatype, width, shape in outputs:
            set_output(&expected[count], name, datatype, width, shape)
            count += 1
        return <int>fit_answer(expected, count, rows, <const uint8_t*><char*>answer, <size_t>len(answer))
    finally:
        free(expected)
