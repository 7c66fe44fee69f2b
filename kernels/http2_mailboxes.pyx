"""A loop as other threads see it: made, left things for, freed.

Workers leave finished calls, Python leaves commands (through `exchanges`), routes, TLS and wishes, another loop leaves
connections that it accepted. All of that lies in the loop under its mailbox's lock, and the mailbox's eventfd is raised
where the loop has to look. The lock is held for a few assignments at most; the loop empties the mailbox once a pass.

A loop may have ended while lanes still hold calls of it. Then whoever comes last frees it: `in_lanes` counts them.
"""

from libc.stdint cimport int64_t
from libc.stdlib cimport calloc, free, malloc

from penstock.kernels._http2 cimport TIMER_ACCEPT, Handed, Loop, Shared, Stream
from penstock.kernels._sockets cimport EPOLL_CTL_ADD, EPOLLIN, poll_new, poll_set
from penstock.kernels._system cimport (
    atomic_add, close, event_new, event_raise, lock_acquire, lock_broadcast, lock_free, lock_new, lock_release,
    lock_wait,
)
from penstock.kernels.exchanges cimport Command, free_command, take_commands
from penstock.kernels.calls cimport Call, free_call


cdef Loop* new_loop(Shared* shared) noexcept nogil:
    """A loop that is not running yet; NULL where there is no memory or no descriptor."""
    cdef Loop* loop = <Loop*>calloc(1, sizeof(Loop))
    if loop == NULL:
        return NULL
    loop.shared = shared
    loop.sink.deliver = collect
    loop.sink.owner = loop
    loop.accepting.kind = TIMER_ACCEPT
    loop.poll = poll_new()
    loop.mailbox.fd = event_new()
    loop.mailbox.lock = lock_new()
    if (loop.poll < 0 or loop.mailbox.fd < 0 or loop.mailbox.lock == NULL
            or poll_set(loop.poll, EPOLL_CTL_ADD, loop.mailbox.fd, EPOLLIN, &loop.mailbox) != 0):
        free_loop(loop)
        return NULL
    return loop


cdef void collect(void* owner, Call* finished) noexcept nogil:
    """The deliver function of a loop's sink: called by workers, with or without the GIL."""
    cdef Loop* loop = <Loop*>owner
    cdef Call* last = finished
    cdef int64_t n = 1
    cdef bint orphaned
    while last.next != NULL:
        last = last.next
        n += 1
    lock_acquire(loop.mailbox.lock)
    orphaned = loop.orphaned
    if not orphaned:
        if loop.done == NULL:
            loop.done = finished
            event_raise(loop.mailbox.fd)
        else:
            loop.done_last.next = finished
        loop.done_last = last
    lock_release(loop.mailbox.lock)
    if orphaned:
        free_calls(finished)
        if atomic_add(&loop.in_lanes, -n) == 0:
            free_loop(loop)


cdef bint hand_to(Loop* loop, int fd) noexcept nogil:
    """Have a loop serve a connected socket; False where it does not run or there is no memory."""
    cdef Handed* handed = <Handed*>malloc(sizeof(Handed))
    cdef bint running
    if handed == NULL:
        return False
    handed.fd = fd
    lock_acquire(loop.mailbox.lock)
    running = loop.running and not loop.stopping
    if running:
        handed.next = loop.handed
        loop.handed = handed
        event_raise(loop.mailbox.fd)
    lock_release(loop.mailbox.lock)
    if not running:
        free(handed)
    return running


cdef void leave_routes(Loop* loop, void* routes) noexcept nogil:
    """Have a loop use other routes. Those it uses now must live until `await_routes` returns."""
    lock_acquire(loop.mailbox.lock)
    loop.next_routes = routes
    event_raise(loop.mailbox.fd)
    lock_release(loop.mailbox.lock)


cdef void await_routes(Loop* loop) noexcept nogil:
    """Wait until a loop that runs has taken its new routes; one that does not takes them when it starts."""
    lock_acquire(loop.mailbox.lock)
    while loop.running and loop.next_routes != NULL:
        lock_wait(loop.mailbox.lock, 0)
    if not loop.running:
        take_routes(loop)
    lock_release(loop.mailbox.lock)


cdef void take_routes(Loop* loop) noexcept nogil:
    """Use the routes that were left; the lock is held."""
    if loop.next_routes != NULL:
        loop.routes = loop.next_routes
        loop.next_routes = NULL
        lock_broadcast(loop.mailbox.lock)


cdef void leave_tls(Loop* loop, void* context) noexcept nogil:
    """Have connections that are opened from now on use this SSL_CTX; the one before is not touched any more."""
    lock_acquire(loop.mailbox.lock)
    loop.tls = context
    lock_release(loop.mailbox.lock)


cdef void ask_to_end(Loop* loop, bint drain) noexcept nogil:
    """Have a loop drain, or stop at once."""
    lock_acquire(loop.mailbox.lock)
    if drain:
        loop.drain_asked = True
    else:
        loop.stopping = True
    event_raise(loop.mailbox.fd)
    lock_release(loop.mailbox.lock)


cdef void orphan_loop(Loop* loop) noexcept nogil:
    """Free a loop that has ended, or leave that to the last of its calls that is still in a lane."""
    cdef int i
    cdef Command* command
    cdef Call* done
    cdef int64_t n
    for i in range(loop.n_listeners):    # of one that never ran
        close(loop.listeners[i])
    lock_acquire(loop.mailbox.lock)
    done, loop.done = loop.done, NULL
    command = take_commands(&loop.mailbox)
    loop.orphaned = True
    atomic_add(&loop.in_lanes, 1)        # ours, so that nobody frees the loop under us
    lock_release(loop.mailbox.lock)
    throw_away(loop, command)
    n = free_calls(done)
    if atomic_add(&loop.in_lanes, -n - 1) == 0:
        free_loop(loop)


cdef void throw_away(Loop* loop, Command* command) noexcept nogil:
    """Free what Python and other loops left for a loop that will not look any more."""
    cdef Command* following
    cdef Handed* handed
    while command != NULL:
        following = command.next
        free_command(command)
        command = following
    while loop.handed != NULL:
        handed = loop.handed
        loop.handed = handed.next
        close(handed.fd)
        free(handed)


cdef int64_t free_calls(Call* call) noexcept nogil:
    """Free a list of calls; how many they were."""
    cdef Call* following
    cdef int64_t n = 0
    while call != NULL:
        following = call.next
        free_call(call)
        call = following
        n += 1
    return n


cdef void free_loop(Loop* loop) noexcept nogil:
    cdef Stream* stream
    while loop.spare != NULL:
        stream = loop.spare
        loop.spare = stream.next
        free(stream)
    if loop.poll >= 0:
        close(loop.poll)
    if loop.mailbox.fd >= 0:
        close(loop.mailbox.fd)
    lock_free(loop.mailbox.lock)
    free(loop)
