"""When a call would be answered: pure functions of what runs take, of what runs and waits now, and of rows.

A run of n rows is taken to last a + b n nanoseconds. Nothing is known where both are 0; then nothing is foretold, and
nobody refused for it.
"""

from libc.stdint cimport int64_t

cdef struct Forecast:
    int64_t fixed_ns         # a: of every run, its look-up included
    int64_t row_ps           # b: of every row, in picoseconds
    int64_t running          # runs under way
    int64_t due_ns           # the sum of the times at which those should end, CLOCK_MONOTONIC


cdef inline bint foretells(const Forecast* forecast) noexcept nogil:
    return forecast.fixed_ns != 0 or forecast.row_ps != 0


cdef inline int64_t bounded(double ns) noexcept nogil:
    """As a whole number that can be added to any clock without overflow."""
    return <int64_t>(0 if ns < 0 else 1e17 if ns > 1e17 else ns)


cdef inline int64_t run_ns(const Forecast* forecast, int64_t rows) noexcept nogil:
    """How long a run of `rows` lasts; 0 where nothing is known."""
    return bounded(<double>forecast.fixed_ns + <double>forecast.row_ps * <double>rows / 1000)


cdef inline int64_t rest_ns(const Forecast* forecast, int64_t now) noexcept nogil:
    """What is left of the runs under way, together; one that should have ended long ago hides the rest of others."""
    cdef int64_t rest = forecast.due_ns - forecast.running * now
    return rest if forecast.running > 0 and rest > 0 else 0


cdef inline int64_t rows_within(const Forecast* forecast, int64_t most, int64_t budget) noexcept nogil:
    """How many rows a run has at most, so that it takes half of the `budget` its first call came with, in nanoseconds.

    The other half is for waiting: for the run before, and in a queue that keeps runs well filled. At least 1 row; with
    no budget (0) `most`.
    """
    cdef double rows
    if budget <= 0 or not foretells(forecast) or run_ns(forecast, most) <= budget // 2:
        return most
    rows = (<double>(budget // 2) - <double>forecast.fixed_ns) / (<double>forecast.row_ps / 1000)
    return <int64_t>(1 if rows < 1 else most if rows > <double>most else rows)


cdef inline int64_t finish_ns(const Forecast* forecast, int64_t most, int workers, int64_t queued, int64_t rows,
                              int64_t now) noexcept nogil:
    """In how many nanoseconds a call of `rows` that joined a queue of `queued` rows now would be answered.

    Ahead of it are the rest of what runs and the full runs of `most` rows that the queue makes; `workers` share them.
    Its own run has what is left, and as much again that comes while it waits, up to `most`.
    """
    cdef int64_t total = queued + rows
    cdef int64_t ahead = (total - 1) // most if rows < most else queued // most
    cdef int64_t own = total - ahead * most
    cdef double waits = <double>rest_ns(forecast, now) + <double>ahead * <double>run_ns(forecast, most)
    if waits > 0 and own < most:
        own = min(2 * own, most)
    return bounded(waits / <double>(workers if workers > 0 else 1) + <double>run_ns(forecast, own))
