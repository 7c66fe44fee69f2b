"""Timers of one event loop: a wheel of 4 ms slots.

Setting, moving and cancelling are O(1) and need no memory; a timer is a field of what it belongs to. A timer fires at
most 4.2 ms late and never early. One later than a turn of the wheel (8.6 s) stays in its slot and is passed over until
its turn comes. Used by one thread.
"""

from libc.stdint cimport int64_t

cdef enum:
    TICK_SHIFT = 22          # 4.19 ms
    WHEEL_SLOTS = 2048

cdef struct Timer:           # zeroed: not set
    Timer* next
    Timer** link             # what points at this timer; NULL where it is not set
    int64_t due              # CLOCK_MONOTONIC ns
    void* owner
    int kind

cdef struct Wheel:
    Timer* slots[WHEEL_SLOTS]
    Timer* due               # taken out of their slots and not fired yet
    int64_t tick             # every slot up to this tick was looked at
    int64_t soonest          # no timer is due before this tick
    int64_t count


cdef inline int64_t tick_of(int64_t ns) noexcept nogil:
    """The first tick at whose look `ns` has passed."""
    return (ns >> TICK_SHIFT) + 1


cdef inline void cancel_timer(Wheel* wheel, Timer* timer) noexcept nogil:
    if timer.link == NULL:
        return
    timer.link[0] = timer.next
    if timer.next != NULL:
        timer.next.link = timer.link
    timer.link = NULL
    wheel.count -= 1


cdef inline void put_in(Timer** list, Timer* timer) noexcept nogil:
    timer.next = list[0]
    timer.link = list
    if list[0] != NULL:
        list[0].link = &timer.next
    list[0] = timer


cdef inline void set_timer(Wheel* wheel, Timer* timer, int64_t due) noexcept nogil:
    """Have the timer fire at `due`, wherever it was before."""
    cdef int64_t tick = tick_of(due)
    cdef Timer** slot
    cancel_timer(wheel, timer)
    if tick <= wheel.tick:
        tick = wheel.tick + 1
    slot = &wheel.slots[tick & (WHEEL_SLOTS - 1)]
    timer.due = due
    put_in(slot, timer)
    wheel.count += 1
    if tick < wheel.soonest:
        wheel.soonest = tick


cdef inline void start_wheel(Wheel* wheel, int64_t now) noexcept nogil:
    """Begin with a zeroed wheel."""
    wheel.tick = now >> TICK_SHIFT
    wheel.soonest = wheel.tick + WHEEL_SLOTS


cdef inline int wait_ms(const Wheel* wheel, int64_t now) noexcept nogil:
    """How long a thread may sleep before it looks at the wheel again; -1 where no timer is set."""
    cdef int64_t ns
    if wheel.count == 0:
        return -1
    ns = (wheel.soonest << TICK_SHIFT) - now
    return <int>((ns + 999_999) // 1_000_000) if ns > 0 else 0


cdef inline void collect_due(Wheel* wheel, Timer* timer, int64_t present) noexcept nogil:
    """Move what is due of a slot to the due list, in one walk."""
    cdef Timer* following
    while timer != NULL:
        following = timer.next
        if tick_of(timer.due) <= present:
            cancel_timer(wheel, timer)
            put_in(&wheel.due, timer)
            wheel.count += 1
        timer = following


cdef inline Timer* take_due(Wheel* wheel, int64_t now) noexcept nogil:
    """Take one timer that is due; NULL once there is none. Call it until then."""
    cdef int64_t present = now >> TICK_SHIFT
    cdef int64_t tick, last
    cdef Timer* timer
    if wheel.due != NULL:
        timer = wheel.due
        cancel_timer(wheel, timer)
        return timer
    if wheel.soonest > present:
        return NULL
    last = present if present - wheel.tick < WHEEL_SLOTS else wheel.tick + WHEEL_SLOTS
    for tick in range(wheel.tick + 1, last + 1):
        collect_due(wheel, wheel.slots[tick & (WHEEL_SLOTS - 1)], present)
        wheel.tick = tick        # what is left in the slot waits for a later turn
        if wheel.due != NULL:
            timer = wheel.due
            cancel_timer(wheel, timer)
            return timer
    wheel.tick = present
    wheel.soonest = present + WHEEL_SLOTS
    for tick in range(present + 1, present + WHEEL_SLOTS):
        if wheel.slots[tick & (WHEEL_SLOTS - 1)] != NULL:
            wheel.soonest = tick
            break
    return NULL
