"""The face of the ledger: what one served version has done, and what it will take by that; under a lock of its own."""

from libc.stdint cimport int64_t, uint64_t

from penstock.kernels._costs cimport Cost
from penstock.kernels._forecast cimport Forecast
from penstock.kernels.calls cimport Call

cdef enum:
    BUCKETS = 128            # of a latency histogram, four an octave

cdef struct Phase:           # durations of one step
    uint64_t count
    uint64_t ns
    uint64_t[BUCKETS] buckets

cdef struct Statistics:
    uint64_t succeeded
    uint64_t failed
    uint64_t refused         # not admitted: queue full or draining
    uint64_t too_late        # not admitted: could not have been answered in time
    uint64_t invalid         # not a fitting request
    uint64_t expired         # deadline passed while queued
    uint64_t cancelled       # client gone while queued
    uint64_t rows
    uint64_t late_rows       # of calls whose deadline had passed when their run began
    uint64_t batches
    uint64_t failed_ns
    int64_t last_ms          # of the last finished batch, since the epoch
    Phase total              # of calls, from arrival to answer
    Phase queue              # of calls, from arrival to being taken
    Phase lookup             # of batches
    Phase compute            # of batches
    Phase encode             # of batches
    uint64_t shared          # calls of batches that were run; each is told all of its batch's durations:
    uint64_t shared_lookup_ns
    uint64_t shared_compute_ns
    uint64_t shared_encode_ns


cdef class Ledger:
    cdef Statistics statistics
    cdef int64_t max_batch_rows
    cdef uint64_t* size_counts       # batches by their rows; the last entry is everything larger
    cdef uint64_t* size_ns
    cdef Cost lookup_cost            # of look-ups
    cdef Cost run_cost               # of all else a worker does for a batch, from taking it to its last answer
    cdef Forecast forecast           # of both, and of the runs under way
    cdef void* lock                  # pthread mutex and condition
    cdef Forecast foretold(self) noexcept nogil
    cdef void publish(self) noexcept nogil
    cdef int64_t note_taken(self, int64_t rows, int64_t now) noexcept nogil
    cdef void note_left(self, int64_t due) noexcept nogil
    cdef void note_run(self, int64_t rows, int64_t lookup, int64_t run, int64_t late_rows) noexcept nogil
    cdef void note_refused(self) noexcept nogil
    cdef void note_too_late(self) noexcept nogil
    cdef void note_invalid(self) noexcept nogil
    cdef void note_recalled(self, int64_t ns) noexcept nogil
    cdef void note_dropped(self, const Call* dropped) noexcept nogil
    cdef void note_ended(self, const Call* calls, int64_t taken, int64_t now) noexcept nogil
    cdef void note_answers(self, const Call* calls, int64_t rows, int64_t taken, int64_t lookup, int64_t compute,
                           int64_t started, int64_t now) noexcept nogil
    cdef uint64_t note_calls(self, const Call* calls, int64_t taken, int64_t now) noexcept nogil
