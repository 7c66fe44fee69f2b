"""The queue of one served version and its batch former; no GIL where rows are touched.

Rules: an idle worker takes at once up to `max_batch_rows` of whatever is compatible, in arrival order; nothing is
timed unless the operator asks for a delay. Queued rows and bytes are bounded, and what does not fit is refused at once.
A call whose deadline passed or whose client is gone is dropped when it would be taken, and never run. Every admitted
call is answered exactly once.

What to decide (admit, expire, fit, wait) are pure functions of the state and of `now`; the rest only carries them out.
Submitting costs about 1 microsecond, of which parsing is the most; taking and answering about 0.5 a call.
"""

import numpy as np

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from penstock.kernels._datatypes cimport DT_BYTES, item_size
from penstock.kernels._system cimport (
    aligned_new, close, epoch_ms, event_clear, event_new, event_raise, flag_raise, flag_raised, lock_acquire,
    lock_broadcast, lock_free, lock_new, lock_release, lock_signal, lock_wait, monotonic_ns,
)
from penstock.kernels.wire cimport (
    KIND_ENTITY, OK, OUT_OF_MEMORY, Blocks, Fault, Plan, Request, Slot, Timing, explain, fill_numbers, free_request,
    init_request, match_request, parse_request, read_texts, same_shapes, write_response,
)

from penstock.kernels.wire import NUMPY as _NUMPY

# The gRPC status codes that a lane gives.
CANCELLED, INVALID_ARGUMENT, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, INTERNAL, UNAVAILABLE = 1, 3, 4, 8, 13, 14

cdef enum:
    STATUS_OK = 0
    STATUS_CANCELLED = 1
    STATUS_INVALID_ARGUMENT = 3
    STATUS_DEADLINE_EXCEEDED = 4
    STATUS_RESOURCE_EXHAUSTED = 8
    STATUS_INTERNAL = 13
    STATUS_UNAVAILABLE = 14

cdef enum:
    MIN_SHARE = 64           # rows

cdef int64_t MAX_DELAY_US = 3_600_000_000
cdef int64_t MAX_SPARE_BYTES = 1 << 24     # memory of larger batches is not kept
# Work on more bytes than this is worth handing the GIL over; on fewer, getting it back would cost more than the work.
# No lock is ever held by a thread that waits for the GIL, so that a thread with the GIL may take any of them.
cdef int64_t RELEASE_GIL_BYTES = 1 << 18

cdef extern from *:
    int __builtin_clzll(unsigned long long value) nogil


class Refused(Exception):
    """A call that gets no answer from the model: a gRPC status code and the line for the caller."""

    def __init__(self, status, message):
        super().__init__(status, message)
        self.status = status
        self.message = message


# ---------------------------------------------------------------------------------------------------------------------
# Decisions: pure functions of state and now
# ---------------------------------------------------------------------------------------------------------------------

cdef inline Admission admit(const Limits* limits, int64_t queued_rows, int64_t queued_bytes, int64_t rows, int64_t size,
                            bint draining) noexcept nogil:
    """Whether a call may join the queue. An empty queue takes any call that fits the bounds at all."""
    if draining:
        return DRAINING
    if rows > limits.max_queue_rows or size > limits.max_queue_bytes:
        return NEVER_FITS
    if queued_rows + rows > limits.max_queue_rows or queued_bytes + size > limits.max_queue_bytes:
        return QUEUE_FULL
    return ADMIT


cdef inline int status_of_admission(Admission admission) noexcept nogil:
    if admission == ADMIT:
        return STATUS_OK
    return STATUS_RESOURCE_EXHAUSTED if admission == NEVER_FITS else STATUS_UNAVAILABLE


cdef inline bint is_expired(int64_t deadline, int64_t now) noexcept nogil:
    return deadline != 0 and now >= deadline


cdef inline int64_t share_of(const Limits* limits, int64_t queued_rows, int idle) noexcept nogil:
    """How many rows a worker takes where `idle` others wait: what is queued is shared with them, so that one waits for
    the store while another computes; but not in batches so small that they cost more than they overlap."""
    cdef int64_t fair = (queued_rows + idle) // (idle + 1)
    if idle == 0 or limits.max_batch_rows <= MIN_SHARE:
        return limits.max_batch_rows
    return min(limits.max_batch_rows, max(fair, <int64_t>MIN_SHARE))


cdef inline bint fits(int64_t most, int64_t batch_rows, int64_t rows) noexcept nogil:
    """Whether a call joins a batch that has `batch_rows` already; the first one always does."""
    return batch_rows == 0 or batch_rows + rows <= most


cdef inline bint share(Plan plan, const Request* a, const Request* b) noexcept nogil:
    """Whether two calls can lie in one batch."""
    return plan.batched and (plan.fixed_shapes or same_shapes(a, b))


cdef inline int64_t hold(const Limits* limits, int64_t queued_rows, int64_t oldest, int64_t now,
                         bint draining) noexcept nogil:
    """How many nanoseconds an idle worker still waits for company; 0: take now."""
    cdef int64_t rest
    if limits.delay_ns == 0 or draining or queued_rows >= limits.max_batch_rows:
        return 0
    rest = oldest + limits.delay_ns - now
    return rest if rest > 0 else 0


cdef inline int bucket_of(int64_t ns) noexcept nogil:
    """The histogram bucket of a duration: four an octave from 1.024 microseconds on, so within 25 %."""
    cdef uint64_t units
    cdef int octave
    if ns < 0:
        ns = 0
    units = <uint64_t>ns >> 8
    if units < 4:
        return <int>units
    octave = 63 - __builtin_clzll(units)
    octave = 4 * (octave - 1) + <int>(units >> (octave - 2) & 3)
    return octave if octave < BUCKETS else BUCKETS - 1


def bucket_bounds():
    """Upper bound of each histogram bucket in seconds; the last one is infinity."""
    bounds = [(units + 1) * 256e-9 for units in range(4)]
    for index in range(4, BUCKETS):
        octave, quarter = index // 4 + 1, index % 4
        bounds.append((5 + quarter) * 2.0 ** (octave - 2) * 256e-9)
    bounds[BUCKETS - 1] = float("inf")
    return bounds


# ---------------------------------------------------------------------------------------------------------------------
# Calls and sinks
# ---------------------------------------------------------------------------------------------------------------------

cdef Call* new_call() noexcept nogil:
    """A blank call, or NULL where there is no memory."""
    cdef Call* call = <Call*>malloc(sizeof(Call))
    if call != NULL:
        memset(call, 0, sizeof(Call))
        init_request(&call.request)
    return call


cdef void free_call(Call* call) noexcept nogil:
    free_request(&call.request)
    if call.owns_body:
        free(<void*>call.body)
    free(call.answer)
    free(call)


cdef void cancel_call(Call* call) noexcept nogil:
    """Tell that nobody waits any more; a call still queued will be dropped. Only before it is delivered."""
    flag_raise(&call.cancelled)


cdef void set_answer(Call* call, int status, const char* text, size_t size) noexcept nogil:
    """A status that is not OK, with its message."""
    free(call.answer)
    call.status = status
    call.answer_size = 0
    call.answer = <uint8_t*>malloc(size) if size else NULL
    if call.answer != NULL:
        memcpy(call.answer, text, size)
        call.answer_size = size


cdef void deliver(Call* calls) noexcept nogil:
    """Hand finished calls to their sinks, a run of equal sinks at a time."""
    cdef Call* first
    cdef Call* last
    while calls != NULL:
        first = last = calls
        while last.next != NULL and last.next.sink == first.sink:
            last = last.next
        calls = last.next
        last.next = NULL
        first.sink.deliver(first.sink.owner, first)


cdef class Ticket:
    """What the submitter of a call holds: a way to cancel it. Used by the submitting thread only."""

    cdef Call* call          # NULL once the call was delivered
    cdef object future
    cdef object body         # alive as long as the call points into it
    cdef object sink         # alive as long as the call may be delivered to it

    def cancel(self):
        """Nobody waits for the answer any more. A call still queued is never run."""
        if self.call != NULL:
            cancel_call(self.call)


cdef class EventSink:
    """Answers for one event loop: workers add finished calls without the GIL and raise an eventfd; the loop drains.

    Futures are anything with `done`, `set_result` and `set_exception`; they get the reply's bytes, or `Refused`.
    """

    cdef Sink sink
    cdef void* lock
    cdef Call* head
    cdef Call* tail
    cdef int fd

    def __cinit__(self):
        self.fd = -1
        self.lock = lock_new()
        self.fd = event_new()
        self.sink.deliver = collect
        self.sink.owner = <void*>self
        if self.lock == NULL or self.fd < 0:
            raise MemoryError("no memory or file descriptor for an event sink")

    def __dealloc__(self):
        if self.fd >= 0:
            close(self.fd)
        lock_free(self.lock)

    def fileno(self):
        """The descriptor that turns readable when there is something to drain."""
        return self.fd

    def drain(self):
        """Give every finished call its answer. Call it in the loop's thread when `fileno` is readable.

        A future that raises (its loop was closed, say) keeps no other from its answer; the error is raised at the end.
        """
        cdef Call* call
        cdef Call* following
        error = None
        event_clear(self.fd)
        lock_acquire(self.lock)
        call = self.head
        self.head = self.tail = NULL
        lock_release(self.lock)
        while call != NULL:
            following = call.next
            try:
                settle(call)
            except Exception as raised:
                error = raised
            call = following
        if error is not None:
            raise error


cdef void collect(void* owner, Call* finished) noexcept nogil:
    """The deliver function of an EventSink; every call's ticket keeps the sink alive."""
    cdef Call* last = finished
    cdef void* lock = (<EventSink>owner).lock
    cdef bint was_empty
    while last.next != NULL:
        last = last.next
    lock_acquire(lock)
    was_empty = (<EventSink>owner).head == NULL
    if was_empty:
        (<EventSink>owner).head = finished
    else:
        (<EventSink>owner).tail.next = finished
    (<EventSink>owner).tail = last
    if was_empty:
        event_raise((<EventSink>owner).fd)
    lock_release(lock)


cdef int settle(Call* call) except -1:
    """Resolve the future of one finished call and free the call."""
    cdef Ticket ticket = <Ticket>call.context
    cdef object future = ticket.future
    cdef bytes answer = b"no memory for the answer"
    cdef int status = call.status
    try:
        answer = PyBytes_FromStringAndSize(<const char*>call.answer, <Py_ssize_t>call.answer_size)
    except MemoryError:
        status = STATUS_RESOURCE_EXHAUSTED
    ticket.call = NULL
    ticket.future = ticket.body = None
    free_call(call)
    Py_DECREF(ticket)
    if not future.done():
        if status == STATUS_OK:
            future.set_result(answer)
        else:
            future.set_exception(Refused(status, answer.decode("utf-8", "replace")))
    return 0


# ---------------------------------------------------------------------------------------------------------------------
# The lane
# ---------------------------------------------------------------------------------------------------------------------

cdef class Memory:
    """Aligned memory that numpy arrays can lie in."""

    cdef void* data
    cdef readonly size_t size

    def __cinit__(self, size_t size):
        self.size = size
        self.data = aligned_new(size)
        if self.data == NULL:
            raise MemoryError(f"no memory for a batch buffer of {size} bytes")

    def __dealloc__(self):
        free(self.data)

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.data, <Py_ssize_t>self.size, 0, flags)

    def __releasebuffer__(self, Py_buffer* buffer):
        pass


cdef class Lane:
    """The queue of one served version.

    Args:
        plan: what the version takes and gives.
        max_batch_rows: rows a worker takes at once. A call with more rows runs alone.
        max_queue_rows, max_queue_bytes: bounds of what may wait; request bodies are what is counted.
        max_queue_delay_us: how long a batch that is not full waits for company; 0 means never.
    """

    def __cinit__(self, Plan plan not None, *, int64_t max_batch_rows=256, int64_t max_queue_rows=65536,
                  int64_t max_queue_bytes=1 << 28, int64_t max_queue_delay_us=0):
        if max_batch_rows < 1 or max_queue_rows < 1 or max_queue_bytes < 1:
            raise ValueError("a lane's bounds are positive")
        if not 0 <= max_queue_delay_us <= MAX_DELAY_US:
            raise ValueError(f"a lane's delay is 0 to {MAX_DELAY_US} microseconds, not {max_queue_delay_us}")
        self.plan = plan
        self.limits.max_batch_rows = max_batch_rows
        self.limits.max_queue_rows = max_queue_rows
        self.limits.max_queue_bytes = max_queue_bytes
        self.limits.delay_ns = max_queue_delay_us * 1000
        self.spare = []
        self.lock = lock_new()
        self.size_counts = <uint64_t*>calloc(<size_t>max_batch_rows + 2, sizeof(uint64_t))
        self.size_ns = <uint64_t*>calloc(<size_t>max_batch_rows + 2, sizeof(uint64_t))
        if self.lock == NULL or self.size_counts == NULL or self.size_ns == NULL:
            raise MemoryError

    def __dealloc__(self):
        if self.head != NULL:       # a lane that nobody serves any more must not leave callers waiting
            fail_all(self.head, STATUS_UNAVAILABLE, b"the model was unloaded, try again", 33)
            deliver(self.head)
        free(self.size_counts)
        free(self.size_ns)
        lock_free(self.lock)

    def submit(self, bytes body not None, EventSink sink not None, future, int64_t deadline_ns=0, int64_t now_ns=0,
               bint wake=True):
        """Offer one ModelInferRequest; `future` is resolved by the sink's loop.

        Args:
            deadline_ns: time.monotonic_ns() after which the model is not to be run; 0 for none.
            now_ns: the present, for tests; 0 reads the clock.
            wake: tell an idle worker at once; else the submitter calls `wake` soon, once for several calls.

        Raises:
            Refused: malformed or not fitting (INVALID_ARGUMENT), queue full or draining (UNAVAILABLE), or larger than
                the queue (RESOURCE_EXHAUSTED). The future is left alone.
        """
        cdef Fault fault
        cdef Ticket ticket
        cdef int status
        cdef Call* call = new_call()
        if call == NULL:
            raise Refused(RESOURCE_EXHAUSTED, "no memory for the call")
        call.body = <const uint8_t*>PyBytes_AS_STRING(body)
        call.size = PyBytes_GET_SIZE(body)
        call.deadline_ns = deadline_ns
        call.sink = &sink.sink
        ticket = Ticket.__new__(Ticket)
        ticket.call = call
        ticket.future = future
        ticket.body = body
        ticket.sink = sink
        call.context = <void*>ticket
        Py_INCREF(ticket)        # the call's, given back when it is settled
        now_ns = now_ns if now_ns else monotonic_ns()
        if call.size > <size_t>RELEASE_GIL_BYTES:
            with nogil:
                status = self.offer(call, now_ns, wake, &fault)
        else:
            status = self.offer(call, now_ns, wake, &fault)
        if status == STATUS_OK:
            return ticket
        ticket.call = NULL
        Py_DECREF(ticket)
        try:
            raise Refused(status, self.reason(call, &fault, status))
        finally:
            free_call(call)

    cdef str reason(self, Call* call, Fault* fault, int status):
        if fault.code != OK:
            return explain(self.plan, &call.request, fault)
        if status == STATUS_RESOURCE_EXHAUSTED:
            return (f"the request has {call.request.rows} rows and {call.size} bytes; the queue never takes more than "
                    f"{self.limits.max_queue_rows} rows or {self.limits.max_queue_bytes} bytes: send smaller requests")
        return "the version is draining, try again" if self.draining else "the queue is full, try again later"

    cdef int offer(self, Call* call, int64_t now, bint wake, Fault* fault) noexcept nogil:
        """Parse, check and queue a call. Returns its status; any but 0 leaves the call with the transport."""
        fault.code = parse_request(call.body, call.size, &call.request)
        if fault.code == OK:
            match_request(self.plan, &call.request, fault)
        if fault.code == OK:
            return status_of_admission(self.enqueue(call, now, wake))
        lock_acquire(self.lock)
        self.statistics.invalid += 1
        lock_release(self.lock)
        return STATUS_RESOURCE_EXHAUSTED if fault.code == OUT_OF_MEMORY else STATUS_INVALID_ARGUMENT

    cdef bint takes(self, Call* call) noexcept nogil:
        """Whether a call that is parsed fits the plan. Where it does not, `offer` has the words for it."""
        cdef Fault fault
        fault.code = OK
        match_request(self.plan, &call.request, &fault)
        return fault.code == OK

    cdef Admission enqueue(self, Call* call, int64_t now, bint wake) noexcept nogil:
        """Queue a call that is parsed and fits. Anything but ADMIT leaves the call with the transport."""
        cdef Admission admission
        cdef int64_t until
        call.arrived_ns = now
        until = now + call.request.timeout_us * 1000
        if call.request.timeout_us and (call.deadline_ns == 0 or until < call.deadline_ns):
            call.deadline_ns = until
        lock_acquire(self.lock)
        admission = admit(&self.limits, self.rows, self.bytes, call.request.rows, <int64_t>call.size, self.draining)
        if admission == ADMIT:
            call.next = NULL
            if self.tail == NULL:
                self.head = call
            else:
                self.tail.next = call
            self.tail = call
            self.rows += call.request.rows
            self.bytes += <int64_t>call.size
            if wake and self.waiting:
                lock_signal(self.lock)
        else:
            self.statistics.refused += 1
        lock_release(self.lock)
        return admission

    cdef void wake_worker(self) noexcept nogil:
        """Tell an idle worker that calls were queued with `wake` off."""
        lock_acquire(self.lock)
        if self.waiting and self.head != NULL:
            lock_signal(self.lock)
        lock_release(self.lock)

    def wake(self):
        """Tell an idle worker that calls were submitted with `wake` off."""
        self.wake_worker()

    cdef int64_t wait_ns(self, int64_t now) noexcept nogil:
        """-1: nothing is queued; 0: take now; else nanoseconds to wait for company. The lock is held."""
        if self.head == NULL:
            return -1
        return hold(&self.limits, self.rows, self.head.arrived_ns, now, self.draining)

    cdef Call* form(self, int64_t now, Call** dropped, int64_t* rows) noexcept nogil:
        """Take one batch off the queue, and what is to be dropped on the way. The lock is held."""
        cdef Call* first = NULL
        cdef Call* last = NULL
        cdef Call* call
        cdef Call** drop_at = dropped
        cdef int64_t most = share_of(&self.limits, self.rows, self.waiting)
        rows[0] = 0
        dropped[0] = NULL
        while self.head != NULL:
            call = self.head
            if flag_raised(&call.cancelled) or is_expired(call.deadline_ns, now):
                if flag_raised(&call.cancelled):
                    self.statistics.cancelled += 1
                    set_answer(call, STATUS_CANCELLED, b"cancelled", 9)
                else:
                    self.statistics.expired += 1
                    set_answer(call, STATUS_DEADLINE_EXCEEDED,
                               b"deadline exceeded while queued; the model was not run", 53)
                self.unlink()
                drop_at[0] = call
                drop_at = &call.next
                continue
            if not fits(most, rows[0], call.request.rows):
                break
            if first != NULL and not share(self.plan, &first.request, &call.request):
                break
            self.unlink()
            call.first_row = rows[0]
            rows[0] += call.request.rows
            if first == NULL:
                first = call
            else:
                last.next = call
            last = call
        return first

    cdef void unlink(self) noexcept nogil:
        """Take the oldest call off the queue."""
        cdef Call* call = self.head
        self.head = call.next
        if self.head == NULL:
            self.tail = NULL
        call.next = NULL
        self.rows -= call.request.rows
        self.bytes -= <int64_t>call.size

    def take(self, *, block=True, int64_t now_ns=0):
        """The next batch, waiting for one without the GIL.

        Args:
            block: wait for a call; else return None at once where nothing is to be taken.
            now_ns: the present, for tests; 0 reads the clock.

        Returns:
            A Batch, or None once the lane is drained and empty.
        """
        cdef Call* calls
        cdef int64_t rows = 0
        cdef int64_t now = now_ns
        cdef bint blocking = block
        cdef Batch batch = None
        while batch is None:
            if blocking:
                with nogil:
                    calls = self.wait(True, &now, &rows)
            else:
                calls = self.wait(False, &now, &rows)
            if calls == NULL:
                return None
            batch = self.gather(calls, rows, now)
            now = now_ns
        return batch

    cdef Call* wait(self, bint block, int64_t* present, int64_t* rows) noexcept nogil:
        """The calls of the next batch, or NULL. `present` is 0 to read the clock; afterwards when they were taken."""
        cdef Call* calls = NULL
        cdef Call* dropped = NULL
        cdef int64_t given = present[0]
        cdef int64_t now, wait
        lock_acquire(self.lock)
        while calls == NULL:
            now = present[0] = given if given else monotonic_ns()
            wait = self.wait_ns(now)
            if wait == 0:
                calls = self.form(now, &dropped, rows)
                if self.head != NULL and self.waiting:   # what is left may have been told to nobody but this worker
                    lock_signal(self.lock)
                if dropped != NULL:
                    lock_release(self.lock)
                    deliver(dropped)
                    lock_acquire(self.lock)
                continue
            if not block or (wait < 0 and self.draining):
                break
            self.waiting += 1
            lock_wait(self.lock, now + wait if wait > 0 else 0)
            self.waiting -= 1
        lock_release(self.lock)
        return calls

    cdef Batch gather(self, Call* calls, int64_t rows, int64_t now):
        """Copy the rows of the calls into one batch; None, its calls refused, where there is no memory for it."""
        cdef Batch batch = Batch.__new__(Batch)
        batch.lane = self
        batch.calls = calls
        batch.rows = rows
        batch.taken_ns = now
        try:
            fill_batch(batch)
        except MemoryError:
            batch.fail(RESOURCE_EXHAUSTED, f"no memory for a batch of {rows} rows")
            return None
        return batch

    cdef void note_answers(self, Batch batch, int64_t lookup, int64_t compute, int64_t started,
                           int64_t now) noexcept nogil:
        """Count a batch that was answered; `started` is when answering began, 0 for a batch that failed."""
        cdef Call* call = batch.calls
        cdef int64_t size = batch.rows if batch.rows <= self.limits.max_batch_rows else self.limits.max_batch_rows + 1
        lock_acquire(self.lock)
        while call != NULL:
            if call.status == STATUS_OK:
                self.statistics.succeeded += 1
                note(&self.statistics.total, now - call.arrived_ns)
            else:
                self.statistics.failed += 1
                self.statistics.failed_ns += <uint64_t>(now - call.arrived_ns)
            note(&self.statistics.queue, batch.taken_ns - call.arrived_ns)
            call = call.next
        if started == 0:
            lock_release(self.lock)
            return
        self.statistics.rows += <uint64_t>batch.rows
        self.statistics.batches += 1
        self.statistics.last_ms = epoch_ms()
        note(&self.statistics.lookup, lookup)
        note(&self.statistics.compute, compute)
        note(&self.statistics.encode, now - started)
        self.size_counts[size] += 1
        self.size_ns[size] += <uint64_t>compute
        lock_release(self.lock)

    def drain(self):
        """Refuse new calls from now on; workers finish what is queued, then `take` gives None."""
        with nogil:
            lock_acquire(self.lock)
            self.draining = True
            lock_broadcast(self.lock)
            lock_release(self.lock)

    @property
    def queued_rows(self):
        """Rows waiting to be taken."""
        return self.read(&self.rows)

    @property
    def queued_bytes(self):
        """Bytes of the requests waiting to be taken."""
        return self.read(&self.bytes)

    cdef int64_t read(self, const int64_t* value) noexcept nogil:
        cdef int64_t present
        lock_acquire(self.lock)
        present = value[0]
        lock_release(self.lock)
        return present

    def snapshot(self):
        """Counters since the start, durations in nanoseconds: see `Statistics` in lanes.pxd.

        Phases (total, queue, lookup, compute, encode) are dicts of count, ns and buckets (bounds: `bucket_bounds`);
        `sizes` maps rows of a batch to (batches, compute ns), where max_batch_rows + 1 stands for everything larger.
        """
        cdef Statistics copy
        cdef int64_t rows, queued_bytes
        cdef size_t n = <size_t>self.limits.max_batch_rows + 2
        cdef uint64_t[::1] counts = np.empty(n, np.uint64)
        cdef uint64_t[::1] ns = np.empty(n, np.uint64)
        with nogil:       # no object is made under the lock: making one may run other code, which may want the lock
            lock_acquire(self.lock)
            copy = self.statistics
            rows, queued_bytes = self.rows, self.bytes
            memcpy(&counts[0], self.size_counts, n * sizeof(uint64_t))
            memcpy(&ns[0], self.size_ns, n * sizeof(uint64_t))
            lock_release(self.lock)
        sizes = {i: (counts[i], ns[i]) for i in range(<Py_ssize_t>n) if counts[i]}
        return {
            "succeeded": copy.succeeded, "failed": copy.failed, "refused": copy.refused, "invalid": copy.invalid,
            "expired": copy.expired, "cancelled": copy.cancelled, "rows": copy.rows, "batches": copy.batches,
            "failed_ns": copy.failed_ns, "last_ms": copy.last_ms, "queued_rows": rows, "queued_bytes": queued_bytes,
            "sizes": sizes, "total": phase(&copy.total), "queue": phase(&copy.queue), "lookup": phase(&copy.lookup),
            "compute": phase(&copy.compute), "encode": phase(&copy.encode),
        }


cdef inline void note(Phase* phase, int64_t ns) noexcept nogil:
    phase.count += 1
    phase.ns += <uint64_t>(ns if ns > 0 else 0)
    phase.buckets[bucket_of(ns)] += 1


cdef dict phase(Phase* counted):
    return {"count": counted.count, "ns": counted.ns, "buckets": [counted.buckets[i] for i in range(BUCKETS)]}


# ---------------------------------------------------------------------------------------------------------------------
# The batch
# ---------------------------------------------------------------------------------------------------------------------

cdef class Batch:
    """The rows of many calls, to be run at once and answered.

    Attributes:
        rows: how many.
        inputs: each tensor input of the plan to its ndarray [rows, ...] (or a list of bytes for BYTES). Memory is the
            batch's: valid until it is answered.
        matrix: float32 [rows, n_columns] of a version with a matrix, else None.
        source: uint8 [rows, n_columns], 1 where the caller sent the value and 0 where nobody did; None without matrix.
        entities: the entity id of each row as bytes, None where the caller sent none; None where nothing is looked up.
        taken_ns: when it was taken, CLOCK_MONOTONIC.

    `complete`, `fail` or `split` is called once, and ends it.
    """

    def __init__(self):
        raise TypeError("batches come from Lane.take")

    def __dealloc__(self):
        if self.calls != NULL:      # a worker that lost its batch must not leave callers waiting
            fail_all(self.calls, STATUS_INTERNAL, b"the batch was abandoned", 23)
            if self.lane is not None:
                self.lane.note_answers(self, 0, 0, 0, monotonic_ns())
            deliver(self.calls)

    cdef int check_open(self) except -1:
        if self.calls == NULL:
            raise ValueError("the batch was answered already")
        return 0

    def spans(self):
        """(first row, rows) of every call, in order."""
        cdef Call* call = self.calls
        spans = []
        while call != NULL:
            spans.append((call.first_row, call.request.rows))
            call = call.next
        return spans

    def open_rows(self):
        """Rows of the calls that were not refused, as an index array; None where that is all of them."""
        cdef Call* call = self.calls
        while call != NULL and call.status == STATUS_OK:   # the usual batch: nothing is made for it
            call = call.next
        if call == NULL:
            return None
        rows = [np.zeros(0, np.int64)]
        call = self.calls
        while call != NULL:
            if call.status == STATUS_OK:
                rows.append(np.arange(call.first_row, call.first_row + call.request.rows))
            call = call.next
        return np.concatenate(rows)

    def wants(self, int output):
        """Whether any caller wants output number `output` of the plan."""
        cdef Call* call = self.calls
        if not 0 <= output < len(self.lane.plan.outputs):
            raise ValueError(f"the plan has no output number {output}")
        while call != NULL:
            if call.request.wanted >> output & 1:
                return True
            call = call.next
        return False

    @property
    def deadline_ns(self):
        """The earliest deadline of its calls, CLOCK_MONOTONIC; 0 where none has one."""
        cdef Call* call = self.calls
        cdef int64_t earliest = 0
        while call != NULL:
            if call.deadline_ns and (earliest == 0 or call.deadline_ns < earliest):
                earliest = call.deadline_ns
            call = call.next
        return earliest

    @property
    def latest_deadline_ns(self):
        """The latest deadline of its calls, CLOCK_MONOTONIC; 0 where one of them has none."""
        cdef Call* call = self.calls
        cdef int64_t latest = 0
        while call != NULL:
            if call.deadline_ns == 0:
                return 0
            if call.deadline_ns > latest:
                latest = call.deadline_ns
            call = call.next
        return latest

    def shape_of(self, str name not None):
        """The shape of a tensor input in this batch; what BYTES inputs, which come as lists, are to be folded into."""
        for index, entry in enumerate(self.lane.plan.inputs):
            if entry.name == name:
                if -1 in entry.shape:
                    return sent_shape(self, <int>index)
                return (self.rows, *entry.shape) if self.lane.plan.batched else entry.shape
        raise ValueError(f"no input {name!r}")

    def unique_entities(self):
        """The ids that must be looked up, each once.

        Returns:
            (ids, row_of): ids is a list of bytes; row_of is int32 [rows], which id a row belongs to, or -1 for a row
            whose caller sent every value.
        """
        cdef const uint8_t[:, ::1] source = self.source
        cdef int32_t[::1] row_of
        cdef int64_t row, column
        cdef dict places = {}
        cdef object entity
        rows = np.empty(self.rows, np.int32)
        row_of = rows
        for row in range(self.rows):
            entity = self.entities[row]
            row_of[row] = -1
            if entity is None:
                continue
            for column in range(source.shape[1]):
                if source[row, column] == 0:
                    row_of[row] = places.setdefault(entity, len(places))
                    break
        return list(places), rows

    def complete(self, outputs, int64_t lookup_ns=0, int64_t compute_ns=0):
        """Answer every call from the outputs of the run.

        Args:
            outputs: name to ndarray [rows, ...] of every output that is wanted.
            lookup_ns, compute_ns: how long the batch's look-up and run took.

        Raises:
            ValueError: an output is missing or not what the plan promises: nothing was answered. Or all was answered
                before.
        """
        cdef Blocks blocks = Blocks()
        self.check_open()
        for index, entry in enumerate(self.lane.plan.outputs):
            if self.wants(index):
                if entry.name not in outputs:
                    raise ValueError(f"the model gave no output {entry.name!r}")
                blocks.set(self.lane.plan, index, outputs[entry.name], self.rows)
        self.answer(blocks, lookup_ns, compute_ns)

    cdef int answer(self, Blocks blocks, int64_t lookup_ns, int64_t compute_ns) except -1:
        if output_bytes(self.lane.plan, blocks, self.rows) > RELEASE_GIL_BYTES:
            with nogil:
                self.write_answers(blocks, lookup_ns, compute_ns)
        else:
            self.write_answers(blocks, lookup_ns, compute_ns)
        self.give_back()
        return 0

    cdef void write_answers(self, Blocks blocks, int64_t lookup_ns, int64_t compute_ns) noexcept nogil:
        """Write the reply of every call that has no status yet, count the batch and deliver it."""
        cdef Call* calls = self.calls
        cdef Call* call = calls
        cdef Timing timing
        cdef Timing* told
        cdef int64_t started = monotonic_ns()
        timing.batch_rows = self.rows
        timing.lookup_us = lookup_ns // 1000
        timing.compute_us = compute_ns // 1000
        while call != NULL:
            if call.status == STATUS_OK:
                timing.queue_us = (self.taken_ns - call.arrived_ns) // 1000
                told = &timing if call.request.timing else NULL
                write_answer(self.lane.plan, blocks, call, told)
            call = call.next
        self.lane.note_answers(self, lookup_ns, compute_ns, started, monotonic_ns())
        self.calls = NULL
        deliver(calls)

    def refuse(self, int64_t row, int status, str message not None):
        """Give the call that row belongs to a status instead of an answer; the others of the batch go on."""
        cdef Call* call = self.calls
        check_status(status)
        text = message.encode()
        while call != NULL:
            if call.first_row <= row < call.first_row + call.request.rows:
                set_answer(call, status, PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text))
            call = call.next

    def fail(self, int status, str message not None):
        """Give every call of the batch a status instead of an answer."""
        cdef Call* calls = self.calls
        check_status(status)
        self.check_open()
        text = message.encode()
        fail_all(calls, status, PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text))
        self.lane.note_answers(self, 0, 0, 0, monotonic_ns())
        self.calls = NULL
        deliver(calls)
        self.give_back()

    cdef void give_back(self):
        """Let the next batch use this one's memory."""
        cdef Memory memory = self.memory
        if memory is not None and len(self.lane.spare) < 8 and memory.size <= <size_t>MAX_SPARE_BYTES:
            self.lane.spare.append(memory)
        self.memory = None

    def split(self):
        """One batch for each call, over the same memory; this one is empty afterwards.

        For running the members of a failed batch singly. The memory is not reused while any of them lives.
        """
        cdef Call* call
        cdef Batch part
        parts = []
        self.check_open()
        while self.calls != NULL:       # each call has an owner at any moment, so that no error on the way loses one
            part = Batch.__new__(Batch)
            part.lane = self.lane
            call = part.calls = self.calls
            self.calls = call.next
            call.next = NULL
            part.rows = call.request.rows
            part.taken_ns = self.taken_ns
            rows = slice(call.first_row, call.first_row + call.request.rows) if self.lane.plan.batched else slice(None)
            part.inputs = {name: values[rows] for name, values in self.inputs.items()}
            part.matrix = None if self.matrix is None else self.matrix[rows]
            part.source = None if self.source is None else self.source[rows]
            part.entities = None if self.entities is None else self.entities[rows]
            call.first_row = 0
            parts.append(part)
        return parts


cdef int check_status(int status) except -1:
    if not 0 < status <= 16:
        raise ValueError(f"{status} is not the gRPC status code of a failure")
    return 0


cdef int64_t output_bytes(Plan plan, Blocks blocks, int64_t rows) noexcept nogil:
    """Bytes of all outputs of a batch."""
    cdef int64_t total = 0
    cdef int index
    for index in range(plan.n_outputs):
        if blocks.blocks[index].offsets != NULL:
            total += blocks.blocks[index].offsets[rows * blocks.blocks[index].item_bytes]
        else:
            total += rows * blocks.blocks[index].item_bytes
    return total


cdef void write_answer(Plan plan, Blocks blocks, Call* call, const Timing* timing) noexcept nogil:
    """Write the reply of one call."""
    call.answer_size = write_response(plan, &call.request, blocks.blocks, call.first_row, timing, NULL)
    call.answer = <uint8_t*>malloc(call.answer_size)
    if call.answer == NULL:
        set_answer(call, STATUS_RESOURCE_EXHAUSTED, b"no memory for the answer", 24)
    else:
        write_response(plan, &call.request, blocks.blocks, call.first_row, timing, call.answer)


cdef void fail_all(Call* call, int status, const char* text, size_t size) noexcept nogil:
    """A status for every call of a list that has none yet."""
    while call != NULL:
        if call.status == STATUS_OK:
            set_answer(call, status, text, size)
        call = call.next


cdef int fill_batch(Batch batch) except -1:
    """Make the arrays of a batch and copy every call's values into them."""
    cdef Plan plan = batch.lane.plan
    cdef uint8_t* buffers[1024]
    cdef uint8_t* source = NULL
    cdef Memory memory
    cdef Slot* slot
    cdef int64_t total = 0
    layout = []
    for index, entry in enumerate(plan.inputs):
        slot = &plan.slots[<int>index]
        if slot.kind == KIND_ENTITY or slot.code == DT_BYTES:
            continue
        shape = (batch.rows, *entry.shape) if plan.batched else entry.shape
        if slot.item_elements < 0:
            shape = sent_shape(batch, <int>index)
        items = 1
        for size in shape:
            items *= size
        layout.append((entry, shape, items, total))
        total += (items * item_size(slot.code) + 63) & ~63
    memory = batch.lane.spare.pop() if batch.lane.spare else None
    if memory is None or <int64_t>memory.size < total + batch.rows * plan.n_columns:
        memory = Memory(max(total + batch.rows * plan.n_columns, usual_size(plan, batch.lane.limits.max_batch_rows)))
    batch.memory = memory
    batch.inputs = {}
    for position, (entry, shape, items, offset) in enumerate(layout):
        buffers[<int>position] = <uint8_t*>memory.data + <int64_t>offset
        array = np.frombuffer(memory, _NUMPY[entry.datatype], items, offset).reshape(shape)
        batch.inputs[entry.name] = array
        if entry.kind == "matrix":
            batch.matrix = array
    if plan.n_columns:
        source = <uint8_t*>memory.data + total
        cells = np.frombuffer(memory, "u1", batch.rows * plan.n_columns, total)
        batch.source = cells.reshape(batch.rows, plan.n_columns)
    if total > RELEASE_GIL_BYTES:
        with nogil:
            fill_calls(plan, batch.calls, buffers, source)
    else:
        fill_calls(plan, batch.calls, buffers, source)
    if plan.n_texts:
        fill_texts(batch)
    return 0


cdef void fill_calls(Plan plan, Call* call, uint8_t** buffers, uint8_t* source) noexcept nogil:
    while call != NULL:
        fill_numbers(plan, &call.request, call.first_row, buffers, source)
        call = call.next


cdef int64_t usual_size(Plan plan, int64_t rows):
    """Bytes of a full batch where every shape is fixed and small, so that its memory can be used again and again."""
    cdef int64_t total = 0
    if not plan.fixed_shapes:
        return 0
    for index in range(len(plan.inputs)):
        total += (rows * plan.slots[<int>index].item_elements * item_size(plan.slots[<int>index].code) + 63) & ~63
    total += rows * plan.n_columns
    return total if total <= MAX_SPARE_BYTES else 0


cdef tuple sent_shape(Batch batch, int slot):
    """The shape of a tensor with free dimensions: that of the first call, with the batch's rows."""
    cdef Request* request = &batch.calls.request
    for index in range(request.n_inputs):
        if request.inputs[<int>index].slot == slot:
            dims = [request.inputs[<int>index].dims[i] for i in range(request.inputs[<int>index].n_dims)]
            return (batch.rows, *dims[1:]) if batch.lane.plan.batched else tuple(dims)
    return (0,)


cdef int fill_texts(Batch batch) except -1:
    """Collect BYTES inputs and entity ids, which become Python objects."""
    cdef Plan plan = batch.lane.plan
    cdef Call* call
    cdef Request* request
    if plan.entity_slot >= 0:
        batch.entities = [None] * batch.rows
    for entry in plan.inputs:
        if entry.datatype == "BYTES" and entry.kind == "tensor":
            batch.inputs[entry.name] = []
    call = batch.calls
    while call != NULL:
        request = &call.request
        for index in range(request.n_inputs):
            slot = request.inputs[<int>index].slot
            if slot == plan.entity_slot:
                batch.entities[call.first_row:call.first_row + request.rows] = read_texts(&request.inputs[<int>index])
            elif plan.slots[<int>slot].code == DT_BYTES:
                batch.inputs[plan.inputs[slot].name] += read_texts(&request.inputs[<int>index])
        call = call.next
    return 0


# ---------------------------------------------------------------------------------------------------------------------
# The decisions, for tests
# ---------------------------------------------------------------------------------------------------------------------

def decide_bucket(int64_t ns):
    """The histogram bucket of a duration in nanoseconds."""
    return bucket_of(ns)


def decide_share(int64_t max_batch_rows, int64_t queued_rows, int idle):
    """How many rows a worker takes of those queued, where `idle` others wait for some."""
    cdef Limits limits
    limits.max_batch_rows = max_batch_rows
    return share_of(&limits, queued_rows, idle)
