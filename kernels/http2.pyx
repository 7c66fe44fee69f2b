"""The native transport: gRPC over HTTP/2 on libnghttp2, in I/O threads that hold no GIL as long as they live.

A `ModelInfer` that fits its model never touches Python on its way into the lane and back. Everything else (other RPCs,
streams, compressed messages, what needs an explanation) goes to Python through `exchanges`. Here stands what Python
sees of it; the threads' work stands in the modules `http2_*`, whose order is drawn at the head of `_http2.pxd`.

Rules: nothing blocks but epoll; nothing is buffered that was not checked against a limit and charged to the budget
of bytes; every call gets exactly one end; a connection is freed only at the end of a pass, a stream only when nghttp2
closes it. About 2.5 microseconds of CPU a call, of which nghttp2 and the kernel's sockets are most.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from penstock.kernels._grpc cimport (
    MALFORMED_TIMEOUT, PREFIX_BYTES, encodings_in, is_grpc, message_size, parse_timeout, percent_encode, write_prefix,
)
from penstock.kernels._http2 cimport (
    KIND_INFER, KIND_STREAM, KIND_UNARY, Bucket, Limits, Loop, Path, Shared, allowed,
)
from penstock.kernels._nghttp2 cimport nghttp2_option_del, nghttp2_session_callbacks_del, nghttp2_version
from penstock.kernels._sockets cimport EPOLL_CTL_ADD, EPOLLIN, poll_set
from penstock.kernels._system cimport atomic_add, atomic_get, close, event_new, lock_free, lock_new, tallied
from penstock.kernels._timers cimport Timer, Wheel, cancel_timer, set_timer, start_wheel, take_due, wait_ms
from penstock.kernels.exchanges cimport discard_events, drain_events
from penstock.kernels.http2_connections cimport prepare_sessions
from penstock.kernels.http2_loops cimport run_loop
from penstock.kernels.http2_mailboxes cimport (
    ask_to_end, await_routes, hand_to, leave_routes, leave_tls, new_loop, orphan_loop,
)
from penstock.kernels.routes cimport Routes
from penstock.kernels.tls cimport TlsContext

from threading import Lock

from penstock.kernels.tls import openssl_version


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
    cdef object routing          # held while routes are swapped

    def __cinit__(self, *, int threads, bytes infer not None, unary, streams, **limits):
        self.shared.events.fd = -1       # first: __dealloc__ is called whatever happens here
        if not 1 <= threads <= 256:
            raise ValueError("1 to 256 threads")
        if limits.keys() != _LIMITS:
            raise TypeError(f"limits are {', '.join(sorted(_LIMITS))}")
        self.keep = [None]
        self.routing = Lock()
        self.set_limits(limits)
        self.set_paths([(infer, KIND_INFER), *((p, KIND_UNARY) for p in unary), *((p, KIND_STREAM) for p in streams)])
        if not prepare_sessions(&self.shared):
            raise MemoryError("no memory for a transport")
        self.shared.events.lock = lock_new()
        self.shared.events.fd = event_new()
        self.shared.loops = <Loop**>calloc(<size_t>threads, sizeof(void*))
        if self.shared.events.lock == NULL or self.shared.events.fd < 0 or self.shared.loops == NULL:
            raise MemoryError("no memory or file descriptor for a transport")
        for index in range(threads):
            self.shared.loops[<int>index] = new_loop(&self.shared)
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
        with self.routing:
            self.swap_routes(Routes(lanes))

    cdef int swap_routes(self, Routes routes) except -1:
        cdef int i
        before = self.keep[0]
        self.keep[0] = (before, routes)
        with nogil:
            for i in range(self.shared.n_loops):
                leave_routes(self.shared.loops[i], <void*>routes)
            for i in range(self.shared.n_loops):
                await_routes(self.shared.loops[i])
        self.keep[0] = routes
        return 0

    def set_tls(self, TlsContext context not None):
        """Have connections made from now on use TLS with this context."""
        cdef int i
        for i in range(self.shared.n_loops):
            leave_tls(self.shared.loops[i], context.context)
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
        if self.shared.loops[index].begun:
            raise ValueError(f"thread {index} was run already")
        self.shared.loops[index].begun = True
        with nogil:
            run_loop(self.shared.loops[index])

    def drain(self):
        """Close the listeners and end every connection in two steps; calls in flight are finished. DRAINED tells when
        the last one is gone."""
        cdef int i
        for i in range(self.shared.n_loops):
            ask_to_end(self.shared.loops[i], drain=True)

    def stop(self):
        """Close everything; `run` returns."""
        cdef int i
        for i in range(self.shared.n_loops):
            ask_to_end(self.shared.loops[i], drain=False)

    def snapshot(self):
        """Gauges and counters since the start: see `Counters` in _http2.pxd."""
        told = {"connections": atomic_get(&self.shared.connections), "bytes": atomic_get(&self.shared.budget.used),
                "in_lanes": 0, "accepted": 0, "refused": 0, "handshakes_failed": 0, "timed_out": 0, "calmed": 0,
                "reset": 0, "over_budget": 0, "inferences": 0, "inlined": 0, "exchanges": 0}
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
            told["inlined"] += tallied(&loop.counters.inlined)
            told["exchanges"] += tallied(&loop.counters.exchanges)
        return told


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
    """The known encodings of a grpc-accept-encoding, a bit for each: 1 identity, 2 gzip, 4 deflate."""
    return encodings_in(<const uint8_t*>PyBytes_AS_STRING(text), <size_t>PyBytes_GET_SIZE(text)) & 7


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
