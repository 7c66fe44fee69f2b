"""The I/O thread: one pass after another until it is told to stop, without the GIL as long as it lives.

One pass: wait with epoll; read what connections have; run what that queued where it is cheap, and wake workers for the
rest; take what the mailbox holds, workers' answers first; look at the timers; write, one `send` a connection; free
what was closed. Nothing here blocks but epoll, and models run for no longer than `INLINE_BUDGET_NS` and one run beyond.
Connections are accepted by the first loop and go to the one that has fewest.
"""

from libc.stdlib cimport free

from penstock.kernels._http2 cimport SECOND, TIMER_CONNECTION, TIMER_STREAM, Connection, Handed, Loop, Stream
from penstock.kernels._sockets cimport (
    EPOLL_CTL_DEL, EPOLL_CTL_MOD, EPOLLIN, out_of_descriptors, poll_set, poll_wait, socket_accept,
)
from penstock.kernels._system cimport (
    atomic_add, atomic_get, close, event_clear, lock_acquire, lock_broadcast, lock_release, monotonic_ns, tally,
)
from penstock.kernels._timers cimport Timer, cancel_timer, set_timer, start_wheel, take_due, wait_ms
from penstock.kernels.exchanges cimport DRAINED, Command, post_event, take_commands
from penstock.kernels.http2_calls cimport carry_out, deliver_one, run_touched
from penstock.kernels.http2_connections cimport (
    begin_drain, end_connection, on_connection_timer, on_ready, open_connection,
)
from penstock.kernels.http2_mailboxes cimport hand_to, take_routes
from penstock.kernels.http2_sockets cimport bury, flush_all, forsake
from penstock.kernels.http2_streams cimport on_stream_timer
from penstock.kernels.calls cimport Call

cdef enum:
    ACCEPTS_A_PASS = 16      # of one listener


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
    run_touched(loop)
    if mail:
        empty_mailbox(loop)
    run_timers(loop)
    flush_all(loop)
    bury(loop)


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


cdef void empty_mailbox(Loop* loop) noexcept nogil:
    """Take what other threads left, all at once, and see to it."""
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
        command = carry_out(command)
    while handed != NULL:
        handed = take_over(loop, handed)
    if drain:
        drain_loop(loop)


cdef Handed* take_over(Loop* loop, Handed* handed) noexcept nogil:
    cdef Handed* following = handed.next
    open_connection(loop, handed.fd)
    free(handed)
    return following


cdef void accept_connections(Loop* loop, int listener) noexcept nogil:
    """Take what waits at a listener."""
    cdef int fd, _attempt
    for _attempt in range(ACCEPTS_A_PASS):
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
        give_to_one(loop, fd)


cdef void give_to_one(Loop* loop, int fd) noexcept nogil:
    """Have the loop serve a connection that has fewest; this one where that has ended."""
    cdef Loop* chosen = least_loaded(loop)
    atomic_add(&chosen.load, 1)
    if chosen != loop:
        if hand_to(chosen, fd):
            return
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


cdef void watch_listeners(Loop* loop, bint wanted) noexcept nogil:
    cdef int i
    for i in range(loop.n_listeners):
        poll_set(loop.poll, EPOLL_CTL_MOD, loop.listeners[i], EPOLLIN if wanted else 0, &loop.listeners[i])


cdef void drain_loop(Loop* loop) noexcept nogil:
    """Take no more connections, and end those there are in two steps."""
    cdef Connection* connection = loop.connections
    cdef Connection* following
    loop.draining = True
    cancel_timer(&loop.wheel, &loop.accepting)
    close_listeners(loop)
    while connection != NULL:
        following = connection.next
        begin_drain(connection)
        connection = following
    if atomic_get(&loop.shared.connections) == 0:
        post_event(&loop.shared.events, DRAINED, NULL, NULL, 0, False)


cdef void end_loop(Loop* loop) noexcept nogil:
    """Close everything. What is still in lanes is delivered to nobody."""
    cdef Handed* handed
    cdef Handed* following
    close_listeners(loop)
    while loop.connections != NULL:
        end_connection(loop.connections)
    flush_all(loop)
    bury(loop)
    lock_acquire(loop.mailbox.lock)
    loop.running = False
    loop.mailbox.closed = True
    handed, loop.handed = loop.handed, NULL
    take_routes(loop)
    lock_broadcast(loop.mailbox.lock)
    lock_release(loop.mailbox.lock)
    while handed != NULL:        # given to us after the last look
        following = handed.next
        forsake(loop, handed.fd)
        free(handed)
        handed = following


cdef void close_listeners(Loop* loop) noexcept nogil:
    cdef int i
    for i in range(loop.n_listeners):
        poll_set(loop.poll, EPOLL_CTL_DEL, loop.listeners[i], 0, NULL)
        close(loop.listeners[i])
    loop.n_listeners = 0
