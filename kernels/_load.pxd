"""The parts of the load generator: calls, connections and the threads that drive them. Each belongs to one thread.

What other threads may touch of a thread are its counters, which only grow, and its eventfd. The modules of the
generator, each of which cimports only from those below it:

    load                 what Python sees
    load_threads         passes of a thread: when to send, when to wait
    load_requests        a call sent, and its end
    load_wires           connections: opening, reading, writing, losing
    load_answers         what comes back on a stream
    load_calls           calls and what became of them
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t

from penstock.kernels._fitting cimport Output
from penstock.kernels._nghttp2 cimport nghttp2_nv, nghttp2_session, nghttp2_session_callbacks
from penstock.kernels._samples cimport BUCKETS
from penstock.kernels._sockets cimport epoll_event

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
    READ_BYTES = 1 << 18     # of one read
    SHORT_READ_BYTES = 1 << 14    # where there is a schedule: about 0.1 ms of answers
    WRITE_BYTES = 1 << 18    # collected for one write
    FRAME_BYTES = 1 << 15    # more than a frame of nghttp2's has
    READS_A_PASS = 4         # of one connection
    DUE_A_PASS = 256         # requests of the schedule between two writes
    EVENTS = 64
    STREAM_WINDOW = 1 << 20
    CONNECTION_WINDOW = 1 << 24
    MAX_ANSWER_BYTES = 1 << 28
    WORDS = 256
    HOST_BYTES = 256
    MAX_HEADERS = 8
    TICK_MS = 20             # between looks at what takes long
    SECOND = 1_000_000_000   # in nanoseconds
    RETRY_NS = 100_000_000   # between attempts to connect

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
    void* tls                # NULL: plaintext
    bint shaking             # hands
    nghttp2_session* session
    bint ready               # the server's settings came
    bint waits               # to write
    bint leaving             # no more calls
    bint lost
    int64_t in_flight
    Call* answered           # callers of the closed loop that are to ask again
    uint8_t* unsent          # what the socket did not take
    size_t unsent_size

cdef struct Shared:          # nothing of it changes while threads run, but the last four
    char[HOST_BYTES] host
    int port
    void* tls                # what connections are made of; NULL: plaintext
    const char* tls_name     # that the server is asked for
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
    int64_t written_at       # when requests of the schedule last went out
    uint64_t turn            # of connections, each time they do
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
