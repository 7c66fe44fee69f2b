"""Passes of a thread: what is due goes out, what came is read, and epoll waits no longer than the schedule allows."""

from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport free, malloc

from penstock.kernels._client cimport EPOLLET, alarm_new, alarm_set
from penstock.kernels._load cimport (
    DUE_A_PASS, EVENTS, FINISHING, NOT_CONNECTED, NOT_SENT, READ_BYTES, RETRY_NS, SECOND, SENDING, STOPPED, TICK_MS,
    TIMED_OUT, WRITE_BYTES, Call, Shared, Thread, Wire,
)
from penstock.kernels._nghttp2 cimport (
    NGHTTP2_CANCEL, NGHTTP2_FLAG_NONE, NGHTTP2_NO_ERROR, nghttp2_session_terminate_session, nghttp2_submit_rst_stream,
)
from penstock.kernels._samples cimport bucket_of
from penstock.kernels._sockets cimport EPOLL_CTL_ADD, EPOLLIN, poll_new, poll_set, poll_wait
from penstock.kernels._system cimport atomic_get, close, event_clear, flag_raised, monotonic_ns, tally
from penstock.kernels.load_calls cimport count, give_back, say_text, take_call
from penstock.kernels.load_requests cimport ask, ask_again, go_on
from penstock.kernels.load_wires cimport flush, free_wire, on_ready, open_wire, tidy

cdef int64_t SPIN_NS = 20_000     # setting the alarm takes about as long, above all in virtual machines


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


cdef inline int64_t send_at(const Thread* thread) noexcept nogil:
    """When the schedule's next request is to go out, together with those that are due by then."""
    cdef int64_t earliest = thread.written_at + thread.shared.quantum
    return thread.next_due if thread.next_due > earliest else earliest


cdef void send_due(Thread* thread) noexcept nogil:
    """Submit and write what the schedule asks for by now, if it is time, and note how late each request is.

    What goes out together goes out on one connection: a system call for each costs more than all else together.
    """
    cdef int64_t now = monotonic_ns()
    cdef int slot, i
    if now < send_at(thread):
        return
    slot = <int>(thread.turn % <uint64_t>thread.slot_count)
    thread.turn += 1
    submit_due(thread, slot, now)
    write_all(thread)
    now = thread.written_at = monotonic_ns()
    for i in range(thread.due_count):
        tally(&thread.lags[bucket_of(now - thread.due[i])])
    thread.due_count = 0


cdef void submit_due(Thread* thread, int slot, int64_t now) noexcept nogil:
    """At most DUE_A_PASS requests of the schedule."""
    cdef Shared* shared = thread.shared
    cdef Call* call
    cdef int _turn
    for _turn in range(DUE_A_PASS):
        if thread.next_due > now:
            return
        call = take_call(thread)
        if call == NULL:
            tally(&thread.outcomes[NOT_SENT])
        elif not ask(thread, call, slot, thread.next_due):
            tally(&thread.outcomes[NOT_CONNECTED])
            give_back(thread, call)
        else:
            thread.due[thread.due_count] = thread.next_due
            thread.due_count += 1
        thread.arrival += shared.threads
        thread.next_due = due_time(shared, thread.arrival)


cdef inline int64_t due_time(const Shared* shared, int64_t arrival) noexcept nogil:
    """When the schedule's request of this number is due."""
    return shared.begin + arrival // shared.offset_count * shared.period + shared.offsets[arrival % shared.offset_count]


cdef void write_all(Thread* thread) noexcept nogil:
    """Write what connections have to say."""
    cdef Wire* wire = thread.wires
    while wire != NULL:
        if not wire.lost:
            go_on(wire)
        wire = wire.next


cdef int patience_until(Thread* thread) noexcept nogil:
    """How long epoll may wait, in milliseconds, with the alarm set for what is to go out before."""
    cdef int64_t at = send_at(thread)
    cdef int64_t now = monotonic_ns()
    if at <= now or (thread.shared.quantum == 0 and at <= now + SPIN_NS):
        return 0
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
    write_all(thread)


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
    cdef int patience
    while True:
        phase = atomic_get(&shared.phase)
        if phase == STOPPED or (phase == FINISHING and thread.in_flight == 0):
            return
        if not begun and flag_raised(&shared.started):
            begun = True
            begin(thread)
        if begun and not open_loop and thread.in_flight == 0 and thread.parked == NULL:
            return           # every request that was asked for is answered
        patience = TICK_MS
        if begun and open_loop and phase == SENDING:
            send_due(thread)
            patience = patience_until(thread)
        serve_events(thread, poll_wait(thread.poll, thread.events, EVENTS, patience),
                     begun and open_loop and phase == SENDING)
        now = monotonic_ns()
        if thread.untidy:
            tidy(thread, now)
        if now >= thread.next_tick:
            tick(thread, now)


cdef void begin(Thread* thread) noexcept nogil:
    """The first request of every caller, or of the schedule."""
    thread.first = monotonic_ns()
    if thread.shared.offsets == NULL:
        begin_callers(thread)
        write_all(thread)
    else:
        thread.next_due = due_time(thread.shared, thread.arrival)


cdef void serve_events(Thread* thread, int found, bint scheduled) noexcept nogil:
    """What epoll found: all that came is read, and then written to, so that no answer waits for another's request.

    Where there is a schedule, what is due goes out between two connections.
    """
    cdef void* tag
    cdef int i
    for i in range(found):
        tag = thread.events[i].data.ptr
        if tag == &thread.wake:
            event_clear(thread.wake)
        elif tag != &thread.alarm and not (<Wire*>tag).lost:
            if scheduled and i:
                send_due(thread)
            on_ready(<Wire*>tag, thread.events[i].events)
    for i in range(found):
        tag = thread.events[i].data.ptr
        if tag != &thread.wake and tag != &thread.alarm:
            go_on(<Wire*>tag)
