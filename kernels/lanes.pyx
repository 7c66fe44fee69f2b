"""The queue of one served version and its batch former; no GIL where rows are touched.

Rules: an idle worker takes at once up to `max_batch_rows` of whatever is compatible, in arrival order; nothing is
timed unless the operator asks for a delay. Queued rows and bytes are bounded, and what does not fit is refused at once.
A call whose deadline passed or whose client is gone is dropped when it would be taken, and never run. Every admitted
call is answered exactly once.

With `foresee`, what runs take is foretold from those that were (`_forecast.pxd`): a call that could not be answered in
time is refused at once, runs are no longer than half of what their first call came with, and a call that would expire
before its run ends is dropped. A lane that knows nothing refuses nothing, and one that is idle always takes a call
whose deadline has not passed, so that it learns when it was wrong.

What to decide (admit, expire, fit, wait) are pure functions of the state and of `now`; the rest only carries them out.
Submitting costs about 1 microsecond, of which parsing is the most; taking and answering about 0.5 a call.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int64_t, uint8_t
from libc.stdio cimport snprintf

from penstock.kernels._forecast cimport Forecast, finish_ns, foretells, rows_within, run_ns
from penstock.kernels._system cimport (
    flag_raised, lock_acquire, lock_broadcast, lock_free, lock_new, lock_release, lock_signal, lock_wait, monotonic_ns,
)
from penstock.kernels._wire cimport OK, OUT_OF_MEMORY, Fault
from penstock.kernels.batches cimport Batch, keep_answers, new_batch
from penstock.kernels.cache cimport Cache
from penstock.kernels.engines cimport Engine
from penstock.kernels.calls cimport (
    RELEASE_GIL_BYTES, STATUS_CANCELLED, STATUS_DEADLINE_EXCEEDED, STATUS_INVALID_ARGUMENT, STATUS_OK,
    STATUS_RESOURCE_EXHAUSTED, STATUS_UNAVAILABLE, Call, EventSink, Ticket, deliver, fail_all, free_call, new_call,
    set_answer,
)
from penstock.kernels.ledger cimport Ledger
from penstock.kernels.wire_faults cimport explain
from penstock.kernels.wire_match cimport match_request, same_shapes
from penstock.kernels.wire_plan cimport Plan
from penstock.kernels.wire_requests cimport parse_request

from penstock.kernels.calls import Refused

cdef enum:
    MIN_SHARE = 64           # rows
    LONG_NS = 200_000        # a run that callers may well ask again in
    HARDLY = 10              # one part in so many
    SPARE = 10               # one part in so many of a call's time is left for what nobody foretells: the way back

cdef int64_t MAX_DELAY_US = 3_600_000_000
cdef int64_t NEVER = 1 << 62

INLINE_NS = INLINE_BUDGET_NS


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
    if admission == TOO_LATE:
        return STATUS_DEADLINE_EXCEEDED
    return STATUS_RESOURCE_EXHAUSTED if admission == NEVER_FITS else STATUS_UNAVAILABLE


cdef inline int64_t share_of(const Limits* limits, int64_t queued_rows, int idle) noexcept nogil:
    """How many rows a worker takes where `idle` others wait: what is queued is shared with them, so that one waits for
    the store while another computes; but not in batches so small that they cost more than they overlap."""
    cdef int64_t fair = (queued_rows + idle) // (idle + 1)
    if idle == 0 or limits.max_batch_rows <= MIN_SHARE:
        return limits.max_batch_rows
    return min(limits.max_batch_rows, max(fair, <int64_t>MIN_SHARE))


cdef inline int64_t overlapped(const Forecast* forecast, int64_t queued_rows, int64_t most) noexcept nogil:
    """`most`, or half of what is queued where one long run would take it all and two take hardly longer: the first half
    is answered sooner, and its callers may ask again while the second runs. Else a worker would wait for them."""
    cdef int64_t half = (queued_rows + 1) // 2
    cdef int64_t whole_ns = run_ns(forecast, queued_rows)
    if queued_rows > most or half < MIN_SHARE or whole_ns < LONG_NS:
        return most
    return half if 2 * run_ns(forecast, half) <= whole_ns + whole_ns // HARDLY else most


cdef inline int64_t too_late(const Forecast* forecast, const Limits* limits, int64_t queued_rows, int64_t rows,
                             int64_t deadline, int64_t now) noexcept nogil:
    """0 where a call can be answered in time, else in how many nanoseconds it would be answered."""
    cdef int64_t most, finish
    if deadline == 0 or not foretells(forecast) or (queued_rows == 0 and forecast.running <= 0):
        return 0
    most = rows_within(forecast, limits.max_batch_rows, deadline - now)
    finish = finish_ns(forecast, most, limits.workers, queued_rows, rows, now)
    return finish if finish > (deadline - now) - (deadline - now) // SPARE else 0


cdef inline int64_t spare_of(const Call* call) noexcept nogil:
    return (call.deadline_ns - call.arrived_ns) // SPARE


cdef inline bint would_expire(const Call* call, int64_t now, int64_t end) noexcept nogil:
    """Whether a call's deadline has passed, or a run that ends then leaves no time to answer it."""
    if call.deadline_ns == 0:
        return False
    return now >= call.deadline_ns or (end > now and end >= call.deadline_ns - spare_of(call))


cdef inline int64_t due_of(const Call* call) noexcept nogil:
    """When the run of a call that waits for company is to end: as much again is left for a worker to wake up."""
    return call.deadline_ns - 2 * spare_of(call) if call.deadline_ns else NEVER


cdef inline bint fits(int64_t most, int64_t batch_rows, int64_t rows) noexcept nogil:
    """Whether a call joins a batch that has `batch_rows` already; the first one always does."""
    return batch_rows == 0 or batch_rows + rows <= most


cdef inline bint share(Plan plan, const Call* a, const Call* b) noexcept nogil:
    """Whether two calls can lie in one batch."""
    if not plan.batched or a.alone or b.alone:
        return False
    return plan.fixed_shapes or same_shapes(&a.request, &b.request)


cdef inline int64_t hold(const Limits* limits, int64_t queued_rows, int64_t oldest, int64_t latest, int64_t now,
                         bint draining) noexcept nogil:
    """How many nanoseconds an idle worker still waits for company, at most until `latest`; 0: take now."""
    cdef int64_t rest
    if limits.delay_ns == 0 or draining or queued_rows >= limits.max_batch_rows:
        return 0
    rest = min(oldest + limits.delay_ns, latest) - now
    return rest if rest > 0 else 0


cdef inline Call** append(Call** end, Call* calls) noexcept nogil:
    """Put calls at the end of a list; where that ends now."""
    end[0] = calls
    while end[0] != NULL:
        end = &end[0].next
    return end


# ---------------------------------------------------------------------------------------------------------------------
# The lane
# ---------------------------------------------------------------------------------------------------------------------

cdef class Lane:
    """The queue of one served version.

    Args:
        plan: what the version takes and gives.
        max_batch_rows: rows a worker takes at once. A call with more rows runs alone.
        max_queue_rows, max_queue_bytes: bounds of what may wait; request bodies are what is counted.
        max_queue_delay_us: how long a batch that is not full waits for company; 0 means never. It waits no longer than
            its calls' deadlines leave time for, by what runs took so far where `foresee` is on.
        cache: where answers are kept and looked up, of the same plan; None: nowhere.
        workers: how many threads take batches at once.
        foresee: whether calls that could not be answered in time are refused, by what runs took so far.
    """

    def __cinit__(self, Plan plan not None, *, int64_t max_batch_rows=256, int64_t max_queue_rows=65536,
                  int64_t max_queue_bytes=1 << 28, int64_t max_queue_delay_us=0,
                  int workers=1, bint foresee=False, Cache cache=None):
        if max_batch_rows < 1 or max_queue_rows < 1 or max_queue_bytes < 1:
            raise ValueError("a lane's bounds are positive")
        if not 0 <= max_queue_delay_us <= MAX_DELAY_US:
            raise ValueError(f"a lane's delay is 0 to {MAX_DELAY_US} microseconds, not {max_queue_delay_us}")
        if cache is not None and cache.plan is not plan:
            raise ValueError("a lane's cache has the lane's plan")
        self.plan = plan
        self.cache = cache
        self.limits.max_batch_rows = max_batch_rows
        self.limits.max_queue_rows = max_queue_rows
        self.limits.max_queue_bytes = max_queue_bytes
        self.limits.delay_ns = max_queue_delay_us * 1000
        self.limits.workers = workers
        self.limits.foresee = foresee
        self.spare = []
        self.lock = lock_new()
        self.ledger = Ledger(max_batch_rows)
        if self.lock == NULL:
            raise MemoryError("no memory for a lane")

    def __dealloc__(self):
        if self.head != NULL:       # a lane that nobody serves any more must not leave callers waiting
            fail_all(self.head, STATUS_UNAVAILABLE, b"the model was unloaded, try again", 33)
            deliver(self.head)
        lock_free(self.lock)

    def submit(self, bytes body not None, EventSink sink not None, future, int64_t deadline_ns=0, int64_t now_ns=0,
               bint wake=True):
        """Offer one ModelInferRequest; `future` is resolved by the sink's loop.

        Args:
            deadline_ns: time.monotonic_ns() after which the model is not to be run; 0 for none.
            now_ns: the present, for tests; 0 reads the clock.
            wake: tell an idle worker at once; else the submitter calls `wake` soon, once for several calls.

        Raises:
            Refused: malformed or not fitting (INVALID_ARGUMENT), queue full or draining (UNAVAILABLE), larger than
                the queue (RESOURCE_EXHAUSTED), or not to be answered in time (DEADLINE_EXCEEDED). The future is left
                alone.
        """
        cdef Fault fault
        cdef Ticket ticket
        cdef int status
        cdef Call* call = new_call()
        if call == NULL:
            raise Refused(STATUS_RESOURCE_EXHAUSTED, "no memory for the call")
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
        if status == STATUS_DEADLINE_EXCEEDED:
            return (<bytes>call.answer[:call.answer_size]).decode()
        return "the version is draining, try again" if self.draining else "the queue is full, try again later"

    cdef int offer(self, Call* call, int64_t now, bint wake, Fault* fault) noexcept nogil:
        """Parse, check and queue a call. Returns its status; any but 0 leaves the call with the transport."""
        fault.code = parse_request(call.body, call.size, &call.request)
        if fault.code == OK:
            match_request(self.plan, &call.request, fault)
        if fault.code == OK and self.recall(call, now):
            deliver(call)
            return STATUS_OK
        if fault.code == OK:
            return status_of_admission(self.enqueue(call, now, wake))
        self.ledger.note_invalid()
        return STATUS_RESOURCE_EXHAUSTED if fault.code == OUT_OF_MEMORY else STATUS_INVALID_ARGUMENT

    cdef bint takes(self, Call* call) noexcept nogil:
        """Whether a call that is parsed fits the plan. Where it does not, `offer` has the words for it."""
        cdef Fault fault
        fault.code = OK
        match_request(self.plan, &call.request, &fault)
        return fault.code == OK

    cdef bint recall(self, Call* call, int64_t now) noexcept nogil:
        """Answer a call that is parsed and fits from the cache; it stays with the transport. False: it is to be queued.

        Before the queue, so that a full one and a run's wait are nothing to a request that comes again.
        """
        if self.cache is None:
            return False
        call.answer = self.cache.find(&call.request, now, &call.answer_size, &call.token)
        if call.answer == NULL:
            return False
        call.next = NULL
        call.arrived_ns = now
        self.ledger.note_recalled(monotonic_ns() - now)
        return True

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
        if admission == ADMIT and self.limits.foresee and self.hopeless(call, now):
            admission = TOO_LATE
        if admission == ADMIT:
            call.next = NULL
            if self.tail == NULL:
                self.head = call
                self.due = due_of(call)
            else:
                self.tail.next = call
                self.due = min(self.due, due_of(call))
            self.tail = call
            self.rows += call.request.rows
            self.bytes += <int64_t>call.size
            if wake:
                self.tell()
        lock_release(self.lock)
        if admission == TOO_LATE:
            self.ledger.note_too_late()
        elif admission != ADMIT:
            self.ledger.note_refused()
        return admission

    cdef bint hopeless(self, Call* call, int64_t now) noexcept nogil:
        """Whether a call could not be answered in time; then it has the status and the words. The lock is held."""
        cdef Forecast forecast = self.ledger.foretold()
        cdef int64_t finish = too_late(&forecast, &self.limits, self.rows, call.request.rows, call.deadline_ns, now)
        cdef char[160] message
        if finish == 0:
            return False
        set_answer(call, STATUS_DEADLINE_EXCEEDED, message, <size_t>snprintf(
            message, sizeof(message), "the answer would take %.3f ms and the deadline is in %.3f ms; the model was "
            "not run", 1e-6 * <double>finish, 1e-6 * <double>max(call.deadline_ns - now, <int64_t>0)))
        return True

    cdef void wake_worker(self) noexcept nogil:
        """Tell an idle worker that calls were queued with `wake` off."""
        lock_acquire(self.lock)
        if self.head != NULL:
            self.tell()
        lock_release(self.lock)

    cdef void tell(self) noexcept nogil:
        """Leave what is queued to the workers. The lock is held."""
        self.told = True
        if self.waiting:
            lock_signal(self.lock)

    def wake(self):
        """Tell an idle worker that calls were submitted with `wake` off."""
        self.wake_worker()

    cdef int64_t wait_ns(self, int64_t now) noexcept nogil:
        """-1: nothing is queued; 0: take now; else nanoseconds to wait for company. The lock is held."""
        cdef int64_t latest = 0
        if self.head == NULL:
            return -1
        if self.limits.delay_ns and self.rows < self.limits.max_batch_rows:
            latest = self.latest_begin()
        return hold(&self.limits, self.rows, self.head.arrived_ns, latest, now, self.draining)

    cdef int64_t latest_begin(self) noexcept nogil:
        """When a run of all that is queued is to begin, so that each of its calls is answered. The lock is held."""
        cdef Forecast forecast
        cdef Call* call = self.head
        if self.due == 0:
            self.due = NEVER
            while call != NULL:
                self.due = min(self.due, due_of(call))
                call = call.next
        if not self.limits.foresee:
            return self.due
        forecast = self.ledger.foretold()
        return self.due - run_ns(&forecast, self.rows)

    cdef Call* form(self, int64_t now, int idle, Call** dropped, int64_t* rows) noexcept nogil:
        """Take one batch off the queue, to be shared with `idle` others, and what is to be dropped on the way. The lock
        is held."""
        cdef Call* first = NULL
        cdef Call* last = NULL
        cdef Call* call
        cdef Call** drop_at = dropped
        cdef Forecast forecast = self.ledger.foretold()
        cdef int64_t most = 0
        cdef int64_t end = now   # of the run, as far as it is foretold
        rows[0] = 0
        dropped[0] = NULL
        while self.head != NULL:
            call = self.head
            if first == NULL:
                most = overlapped(&forecast, self.rows, share_of(&self.limits, self.rows, idle))
            if first == NULL and self.limits.foresee:
                most = rows_within(&forecast, most, call.deadline_ns - call.arrived_ns if call.deadline_ns else 0)
                end = now + run_ns(&forecast, min(most, self.rows))
                if call.next == NULL and forecast.running <= 0:
                    end = now    # whatever is foretold, an idle lane runs what it can learn from
            if flag_raised(&call.cancelled) or would_expire(call, now, end):
                drop(call, now)
                self.unlink()
                drop_at[0] = call
                drop_at = &call.next
                continue
            if not fits(most, rows[0], call.request.rows):
                break
            if first != NULL and not share(self.plan, first, call):
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
            self.told = False
        call.next = NULL
        self.due = 0
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
            batch = new_batch(self.plan, self.ledger, self.cache, self.spare, calls, rows, now)
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
                calls = self.form(now, self.waiting, &dropped, rows)
                if self.head != NULL and self.waiting:   # what is left may have been told to nobody but this worker
                    lock_signal(self.lock)
                if dropped != NULL:
                    lock_release(self.lock)
                    self.ledger.note_dropped(dropped)
                    deliver(dropped)
                    lock_acquire(self.lock)
                continue
            if not block or (wait < 0 and self.draining and self.lent == 0):
                break
            self.waiting += 1
            lock_wait(self.lock, now + wait if wait > 0 else 0)
            self.waiting -= 1
        lock_release(self.lock)
        return calls

    def use(self, Engine engine not None, *, bint always=False):
        """Let threads that queue calls have them run by an engine; before any call comes."""
        self.mode = INLINE_ON if always else INLINE_AUTO
        self.engine = engine

    def run_now(self, int64_t budget_ns=INLINE_BUDGET_NS):
        """Run what was submitted with `wake` off, where it is to be run inline, and deliver it: what an I/O thread does
        at the end of a pass. Returns what is left of the budget."""
        with nogil:
            deliver(self.run_inline(&budget_ns))
        return budget_ns

    cdef bint runs_inline(self, int64_t budget_ns) noexcept nogil:
        """Whether what is queued is to be run inline. The lock is held."""
        if self.mode == INLINE_OFF or self.head == NULL or self.told:
            return False
        if self.head.request.rows > self.limits.max_batch_rows:      # workers run such a call in parts
            return False
        return self.mode == INLINE_ON or self.engine.fits(self.rows, budget_ns)

    cdef Call* run_inline(self, int64_t* budget_ns) noexcept nogil:
        """Run what was queued with `wake` off, here and now, where nothing older waits and it fits the budget, which
        what it takes is taken from; a worker is woken for the rest. The finished calls, to be delivered."""
        cdef Call* finished = NULL
        cdef Call** end = &finished
        cdef Call* dropped
        cdef Call* calls
        cdef int64_t rows, started
        lock_acquire(self.lock)
        while self.runs_inline(budget_ns[0]):
            started = monotonic_ns()
            calls = self.form(started, 0, &dropped, &rows)
            self.lent += 1
            lock_release(self.lock)
            if dropped != NULL:
                self.ledger.note_dropped(dropped)
                end = append(end, dropped)
            if calls != NULL and self.run_batch(calls, rows, started):
                end = append(end, calls)
                calls = NULL
            lock_acquire(self.lock)
            self.lent -= 1
            if calls != NULL:
                self.put_back(calls)
            if self.draining:
                lock_broadcast(self.lock)
            budget_ns[0] -= monotonic_ns() - started
        if self.head != NULL:
            self.tell()
        lock_release(self.lock)
        return finished

    cdef bint run_batch(self, Call* calls, int64_t rows, int64_t now) noexcept nogil:
        """Have the engine answer a batch; False: its calls are as they were."""
        cdef int64_t due = self.ledger.note_taken(rows, now)
        cdef bint done = rows <= self.limits.max_batch_rows and self.engine.run(calls, rows, now)
        self.ledger.note_left(due)
        if done and self.cache is not None:
            keep_answers(self.cache, calls, now)
        return done

    cdef void put_back(self, Call* calls) noexcept nogil:
        """Have the calls of a batch that failed run again by a worker, each alone. The lock is held."""
        cdef Call* last = NULL
        cdef Call* call = calls
        while call != NULL:
            call.alone = True
            self.rows += call.request.rows
            self.bytes += <int64_t>call.size
            last = call
            call = call.next
        last.next = self.head
        self.head = calls
        self.due = 0
        if self.tail == NULL:
            self.tail = last
        self.tell()

    def drain(self):
        """Refuse new calls from now on; workers finish what is queued, then `take` gives None."""
        with nogil:
            lock_acquire(self.lock)
            self.draining = True
            lock_broadcast(self.lock)
            lock_release(self.lock)

    @property
    def always_inline(self):
        """Whether the engine is used whatever it costs."""
        return self.mode == INLINE_ON

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
        """Counters since the start, durations in nanoseconds: see `Ledger.snapshot`; and what is queued."""
        return self.ledger.snapshot() | {"queued_rows": self.queued_rows, "queued_bytes": self.queued_bytes}


cdef void drop(Call* call, int64_t now) noexcept nogil:
    """Give a call that is not run its status."""
    if flag_raised(&call.cancelled):
        set_answer(call, STATUS_CANCELLED, b"cancelled", 9)
    elif would_expire(call, now, now):
        set_answer(call, STATUS_DEADLINE_EXCEEDED, b"deadline exceeded while queued; the model was not run", 53)
    else:
        set_answer(call, STATUS_DEADLINE_EXCEEDED, b"deadline too near to be met; the model was not run", 50)


# ---------------------------------------------------------------------------------------------------------------------
# The decisions, for tests
# ---------------------------------------------------------------------------------------------------------------------

def decide_share(int64_t max_batch_rows, int64_t queued_rows, int idle):
    """How many rows a worker takes of those queued, where `idle` others wait for some."""
    cdef Limits limits
    limits.max_batch_rows = max_batch_rows
    return share_of(&limits, queued_rows, idle)


def decide_overlapped(int64_t fixed_ns, int64_t row_ns, int64_t queued_rows, int64_t most):
    """How many of `most` rows a worker takes, so that it need not wait for callers."""
    cdef Forecast forecast = Forecast(fixed_ns, row_ns * 1000, 0, 0)
    return overlapped(&forecast, queued_rows, most)


def decide_rows_within(int64_t fixed_ns, int64_t row_ns, int64_t most, int64_t budget):
    """How many rows a run has at most where its first call came with so many nanoseconds."""
    cdef Forecast forecast = Forecast(fixed_ns, row_ns * 1000, 0, 0)
    return rows_within(&forecast, most, budget)


def decide_too_late(int64_t fixed_ns, int64_t row_ns, int64_t max_batch_rows, int workers, running,
                    int64_t queued_rows, int64_t rows, int64_t deadline, int64_t now):
    """0 where a call can be answered in time, else in how many nanoseconds; `running` are ends of runs."""
    cdef Forecast forecast = Forecast(fixed_ns, row_ns * 1000, len(running), sum(running))
    cdef Limits limits
    limits.max_batch_rows, limits.workers = max_batch_rows, workers
    return too_late(&forecast, &limits, queued_rows, rows, deadline, now)
