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
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from penstock.kernels._fitting cimport MAX_DIMENSIONS, MAX_OUTPUTS, Output, fit_answer
from penstock.kernels._grpc cimport PREFIX_BYTES
from penstock.kernels._load cimport (
    FINISHING, HOST_BYTES, MAX_HEADERS, OUTCOMES, SECOND, SENDING, STOPPED, Body, Call, Shared, Thread, Wire,
)
from penstock.kernels._nghttp2 cimport (
    nghttp2_nv, nghttp2_session_callbacks_del, nghttp2_session_callbacks_new,
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback, nghttp2_session_callbacks_set_on_frame_recv_callback,
    nghttp2_session_callbacks_set_on_header_callback, nghttp2_session_callbacks_set_on_stream_close_callback,
)
from penstock.kernels._samples cimport BUCKETS, bucket_of
from penstock.kernels._system cimport (
    atomic_add, atomic_get, close, event_new, event_raise, flag_raise, flag_raised, monotonic_ns, tallied,
)
from penstock.kernels.load_answers cimport on_data, on_header
from penstock.kernels.load_requests cimport on_close
from penstock.kernels.load_threads cimport close_thread, live, open_thread
from penstock.kernels.load_wires cimport on_frame
from penstock.kernels.tls cimport TlsTrust

cdef enum:
    NO_COPY = 3              # of both name and value of a header


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
    cdef TlsTrust tls
    cdef const int64_t[::1] schedule

    def __cinit__(
        self, *, bytes host not None, int port, headers, bodies, rows, int connections, int threads=1,
        int64_t callers=0, const int64_t[::1] schedule=None, int64_t period_ns=0, outputs=(), int64_t quantum_ns=0,
        int64_t limit=0, double timeout_s=30.0, int64_t most_in_flight=65536, TlsTrust tls=None,
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
        if tls is not None:
            self.tls = tls
            self.shared.tls, self.shared.tls_name = tls.context, tls.name
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
        first, last = 1 << 62, 0
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
