"""The parts of the native transport: limits, streams, connections, loops. Each belongs to one I/O thread, its loop's.

What other threads may touch of a loop is its mailbox and what the mailbox's lock guards. The modules of the transport,
each of which cimports only from those below it:

    http2                what Python sees
    http2_loops          passes of an I/O thread
    http2_connections    opening, reading, and the time of a connection
    http2_sockets        writing and closing          http2_mailboxes    what other threads want of a loop
    http2_requests       what clients send
    http2_streams        beginning, end and time of a stream
    http2_calls          into lanes and to Python, and back
    http2_answers        what goes out on a stream
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from penstock.kernels._nghttp2 cimport nghttp2_option, nghttp2_session, nghttp2_session_callbacks
from penstock.kernels._sockets cimport epoll_event
from penstock.kernels._timers cimport Timer, Wheel
from penstock.kernels.exchanges cimport Budget, Command, EventQueue, Exchange, Mailbox
from penstock.kernels.calls cimport Call, Sink

cdef enum:
    READ_BYTES = 1 << 16     # of one read
    GATHER_BYTES = 1 << 16   # collected for one write
    WRITE_BYTES = GATHER_BYTES + (1 << 15)
    MAX_TOUCHED = 16         # lanes remembered to be woken at the end of a pass
    WINDOW_BYTES = 1 << 20   # a stream's, and four times that a connection's
    SECOND = 1_000_000_000   # in nanoseconds

cdef enum TimerKind:         # what a timer's owner is
    TIMER_STREAM = 0
    TIMER_CONNECTION = 1
    TIMER_ACCEPT = 2         # a loop, to listen again

cdef enum Kind:              # what answers a method
    KIND_UNKNOWN = 0
    KIND_INFER = 1           # the lanes
    KIND_UNARY = 2           # Python
    KIND_STREAM = 3          # Python, message by message

cdef enum Phase:             # of a connection
    PHASE_TLS = 0            # shaking hands
    PHASE_PREFACE = 1        # of HTTP/2: nothing is heard yet
    PHASE_OPEN = 2
    PHASE_LINGER = 3         # all is said; what the peer still sends is thrown away so that it hears us out
    PHASE_DEAD = 4           # freed at the end of the pass

cdef struct Limits:          # times in nanoseconds
    size_t max_message_bytes
    size_t max_header_bytes
    uint32_t max_streams
    int64_t max_connections
    int64_t default_deadline
    int64_t handshake
    int64_t header
    int64_t body
    int64_t idle
    int64_t keepalive
    int64_t keepalive_timeout
    int64_t age              # 0: any
    int64_t age_grace
    double resets            # a second, ten seconds' worth at once; likewise below
    double pings
    double settings
    double empty_frames

cdef struct Path:            # a method
    const uint8_t* data
    size_t size
    Kind kind

cdef struct Bucket:          # a token bucket; zeroed it is full
    double spent
    int64_t at

cdef struct Chunk:           # one message of an answer
    Chunk* next
    uint8_t* data
    size_t size
    size_t sent              # of prefix and data
    bint owned               # free(data) and the chunk itself
    uint8_t[5] prefix

cdef struct Stream:
    Stream* next
    Stream** link            # what points at this stream in its connection's list
    Connection* connection
    Timer timer
    int32_t id
    Kind kind
    bint is_post
    bint is_grpc
    bint too_large           # its headers are
    bint too_late            # its deadline had passed when it came
    bint begun               # all headers are in
    bint ended               # the client sends no more
    bint refused             # what comes is thrown away
    bint answered            # a response was submitted
    bint finished            # nothing will be added to the answer
    bint in_lane
    int encoding
    int accepts
    int64_t timeout          # grpc-timeout; 0: none
    int64_t deadline         # CLOCK_MONOTONIC; 0: none
    int64_t awaited          # since when the message that is being read is
    int64_t answered_at      # when the answer began
    int64_t taken            # bytes of it that the client took
    int64_t progressed       # when it last took some
    size_t header_bytes
    const Path* path
    uint8_t* text            # metadata for Python, as fields
    size_t text_size
    size_t text_capacity
    uint8_t[5] prefix        # of the message that is being read
    size_t prefix_size
    uint8_t* body
    size_t size              # of what has come
    size_t capacity
    size_t length            # of the whole
    bint whole               # the one message of a unary call is there
    int64_t charged          # bytes of the budget
    size_t unread            # bytes of messages that Python has not read yet
    size_t held              # bytes of flow control kept back until it has
    Call* call
    Exchange* exchange
    Chunk first              # the usual answer needs no memory of its own
    Chunk* out
    Chunk* last
    Command* finish          # how Python ended the answer

cdef struct Connection:
    Connection* next
    Connection** link
    Connection* next_dirty
    Loop* loop
    nghttp2_session* session
    void* tls
    int fd
    Phase phase
    bint dirty               # has something to write
    bint polls_out           # waits for the socket to take more
    bint deaf                # is not read until the socket has taken what is pending
    bint reads_on_out        # of TLS: reading goes on once the socket can be written
    bint calmed              # was told to calm down
    int draining             # 1: told that it is going to end; 2: told which calls are still answered
    bint pinged              # a PING of ours is not answered yet
    Stream* streams
    int64_t n_streams
    uint8_t* pending         # written by us, not yet taken by the socket
    size_t pending_size
    size_t pending_sent
    Timer timer
    int64_t born
    int64_t heard            # last read
    int64_t wrote            # last write that the socket took
    int64_t quiet            # since when no stream is open
    int64_t ping_at
    int64_t drain_at
    int64_t age
    Bucket resets
    Bucket pings
    Bucket settings
    Bucket empty_frames

cdef struct Handed:          # a connection that another loop accepted
    Handed* next
    int fd

cdef struct Counters:        # written by the loop's thread, read by any
    uint64_t accepted
    uint64_t refused         # connections beyond the limit
    uint64_t handshakes_failed
    uint64_t timed_out       # connections and calls that took too long
    uint64_t calmed          # connections told to calm down
    uint64_t reset           # calls the client gave up
    uint64_t over_budget     # calls refused for want of bytes
    uint64_t inferences      # calls that went straight to a lane
    uint64_t inlined         # of those, run and answered by the thread itself
    uint64_t exchanges       # calls that went to Python

cdef struct Shared:          # by all loops of one transport
    Limits limits
    Budget budget
    EventQueue events
    nghttp2_session_callbacks* callbacks
    nghttp2_option* option
    Path* paths
    int n_paths
    Loop** loops
    int n_loops
    int64_t connections

cdef struct Loop:            # one I/O thread
    Shared* shared
    int poll
    Sink sink
    Wheel wheel
    int64_t now
    void* routes             # borrowed: Http2 keeps it alive
    Connection* connections
    Connection* dirty
    Connection* dead
    Stream* spare            # for reuse
    int n_spare
    bint draining
    void* touched[MAX_TOUCHED]
    int n_touched
    Timer accepting          # set while there are no descriptors
    Counters counters
    epoll_event[128] polled
    uint8_t[READ_BYTES] read_buffer
    uint8_t[WRITE_BYTES] write_buffer
    # under the mailbox's lock
    Mailbox mailbox
    Call* done
    Call* done_last
    Handed* handed
    void* next_routes
    void* tls                # SSL_CTX of new connections, or NULL
    bint begun               # `run` was called; with the GIL only
    bint running
    bint stopping
    bint drain_asked
    bint orphaned            # freed with its last call
    int64_t in_lanes         # calls that are still to be delivered
    int64_t load             # open connections, atomic
    int n_listeners
    int[8] listeners


cdef inline int64_t earlier(int64_t a, int64_t b) noexcept nogil:
    return a if a < b else b


cdef inline bint allowed(Bucket* bucket, double rate, int64_t now) noexcept nogil:
    """Whether one more is within `rate` a second, ten seconds' worth at once."""
    bucket.spent -= <double>(now - bucket.at) * 1e-9 * rate
    if bucket.spent < 0:
        bucket.spent = 0
    bucket.at = now
    bucket.spent += 1
    return bucket.spent <= 10 * rate


cdef inline void to_write(Connection* connection) noexcept nogil:
    """Have the connection flushed at the end of the pass."""
    if not connection.dirty:
        connection.dirty = True
        connection.next_dirty = connection.loop.dirty
        connection.loop.dirty = connection
