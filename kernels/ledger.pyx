"""What one served version has done: calls by their end, durations by phase, batches by size. And what runs will take.

Durations go into histograms of four buckets an octave, so percentiles read from them are within 25 %. Counting a batch
takes the lock once and about 10 nanoseconds a call.
"""

import numpy as np

from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from penstock.kernels._costs cimport Cost, cost_learn, cost_seed
from penstock.kernels._forecast cimport Forecast, rest_ns, run_ns
from penstock.kernels._system cimport (
    epoch_ms, lock_acquire, lock_free, lock_new, lock_release, monotonic_ns,
)
from penstock.kernels.calls cimport STATUS_CANCELLED, STATUS_OK, Call

cdef extern from *:
    int __builtin_clzll(unsigned long long value) nogil


cdef class Ledger:
    """The counters of one served version.

    Args:
        max_batch_rows: batches of up to so many rows are counted by size, larger ones together.
    """

    def __cinit__(self, int64_t max_batch_rows):
        self.max_batch_rows = max_batch_rows
        self.lock = lock_new()
        self.size_counts = <uint64_t*>calloc(<size_t>max_batch_rows + 2, sizeof(uint64_t))
        self.size_ns = <uint64_t*>calloc(<size_t>max_batch_rows + 2, sizeof(uint64_t))
        if self.lock == NULL or self.size_counts == NULL or self.size_ns == NULL:
            raise MemoryError("no memory for a version's counters")

    def __dealloc__(self):
        free(self.size_counts)
        free(self.size_ns)
        lock_free(self.lock)

    cdef Forecast foretold(self) noexcept nogil:
        """The present forecast. Its numbers are of one moment: half of a run's beginning would look like a long one."""
        cdef Forecast copy
        lock_acquire(self.lock)
        copy = self.forecast
        lock_release(self.lock)
        return copy

    cdef void publish(self) noexcept nogil:
        """Put what was learnt into the forecast; the lock is held."""
        cdef double fixed = self.lookup_cost.fixed_ns + self.run_cost.fixed_ns
        cdef double row = 1e3 * (self.lookup_cost.row_ns + self.run_cost.row_ns)
        if self.run_cost.known:
            self.forecast.fixed_ns = <int64_t>min(fixed, 1e17) + 1
            self.forecast.row_ps = <int64_t>min(row, 1e17)

    cdef int64_t note_taken(self, int64_t rows, int64_t now) noexcept nogil:
        """A run of so many rows begins; gives when it should end, which `note_left` is to be told."""
        cdef int64_t due
        lock_acquire(self.lock)
        due = now + run_ns(&self.forecast, rows)
        self.forecast.running += 1
        self.forecast.due_ns += due
        lock_release(self.lock)
        return due

    cdef void note_left(self, int64_t due) noexcept nogil:
        """A run that `note_taken` was told of is over, whatever came of it."""
        lock_acquire(self.lock)
        self.forecast.running -= 1
        self.forecast.due_ns -= due
        lock_release(self.lock)

    cdef void note_run(self, int64_t rows, int64_t lookup, int64_t run, int64_t late_rows) noexcept nogil:
        """Learn what a run took: its look-up, and all else; negative where nothing is to be learnt."""
        lock_acquire(self.lock)
        if lookup > 0 and run >= 0:
            cost_learn(&self.lookup_cost, rows, lookup)
        cost_learn(&self.run_cost, rows, run)
        self.statistics.late_rows += <uint64_t>late_rows
        self.publish()
        lock_release(self.lock)

    def seed(self, int64_t rows, int64_t ns):
        """A point of a curve measured beforehand: what a run of `rows` takes without its look-up."""
        with nogil:
            lock_acquire(self.lock)
            cost_seed(&self.run_cost, rows, ns)
            self.publish()
            lock_release(self.lock)

    def predict(self, int64_t rows):
        """Nanoseconds that a run of `rows` will take, its look-up included; 0 where nothing is known."""
        cdef Forecast copy = self.foretold()
        return run_ns(&copy, rows)

    cdef void note_refused(self) noexcept nogil:
        """A call was not admitted."""
        lock_acquire(self.lock)
        self.statistics.refused += 1
        lock_release(self.lock)

    cdef void note_too_late(self) noexcept nogil:
        """A call was not admitted, since it could not have been answered in time."""
        lock_acquire(self.lock)
        self.statistics.too_late += 1
        lock_release(self.lock)

    cdef void note_invalid(self) noexcept nogil:
        """A request was malformed or did not fit."""
        lock_acquire(self.lock)
        self.statistics.invalid += 1
        lock_release(self.lock)

    cdef void note_recalled(self, int64_t ns) noexcept nogil:
        """A call was answered from the cache."""
        lock_acquire(self.lock)
        self.statistics.succeeded += 1
        note(&self.statistics.total, ns)
        lock_release(self.lock)

    cdef void note_dropped(self, const Call* dropped) noexcept nogil:
        """Calls left the queue without being run: cancelled, or their deadline passed."""
        lock_acquire(self.lock)
        while dropped != NULL:
            if dropped.status == STATUS_CANCELLED:
                self.statistics.cancelled += 1
            else:
                self.statistics.expired += 1
            dropped = dropped.next
        lock_release(self.lock)

    cdef void note_ended(self, const Call* calls, int64_t taken, int64_t now) noexcept nogil:
        """Calls that were taken are over without a run: they got statuses, or were answered from a shared cache."""
        lock_acquire(self.lock)
        self.note_calls(calls, taken, now)
        lock_release(self.lock)

    cdef void note_answers(self, const Call* calls, int64_t rows, int64_t taken, int64_t lookup, int64_t compute,
                           int64_t started, int64_t now) noexcept nogil:
        """A batch of so many rows was run and answered; `started` is when answering began."""
        cdef int64_t size = rows if rows <= self.max_batch_rows else self.max_batch_rows + 1
        cdef uint64_t n
        lock_acquire(self.lock)
        n = self.note_calls(calls, taken, now)
        self.statistics.shared += n
        self.statistics.shared_lookup_ns += n * <uint64_t>max(lookup, <int64_t>0)
        self.statistics.shared_compute_ns += n * <uint64_t>max(compute, <int64_t>0)
        self.statistics.shared_encode_ns += n * <uint64_t>max(now - started, <int64_t>0)
        self.statistics.rows += <uint64_t>rows
        self.statistics.batches += 1
        self.statistics.last_ms = epoch_ms()
        note(&self.statistics.lookup, lookup)
        note(&self.statistics.compute, compute)
        note(&self.statistics.encode, now - started)
        self.size_counts[size] += 1
        self.size_ns[size] += <uint64_t>compute
        lock_release(self.lock)

    cdef uint64_t note_calls(self, const Call* call, int64_t taken, int64_t now) noexcept nogil:
        """Count the calls of a batch, the refused ones among them; how many they are. The lock is held."""
        cdef uint64_t n = 0
        while call != NULL:
            if call.status == STATUS_OK:
                self.statistics.succeeded += 1
                note(&self.statistics.total, now - call.arrived_ns)
            else:
                self.statistics.failed += 1
                self.statistics.failed_ns += <uint64_t>(now - call.arrived_ns)
            note(&self.statistics.queue, taken - call.arrived_ns)
            n += 1
            call = call.next
        return n

    def snapshot(self):
        """Counters since the start, durations in nanoseconds: see `Statistics` in ledger.pxd.

        Phases (total, queue, lookup, compute, encode) are dicts of count, ns and buckets (bounds: `bucket_bounds`);
        `shared` sums those of batches for each of their calls, and says how many calls that were;
        `sizes` maps rows of a batch to (batches, compute ns), where max_batch_rows + 1 stands for everything larger;
        `lookup_cost` and `run_cost` are dicts of fixed_ns, row_ns, error and runs: what was learnt of either.
        """
        cdef Statistics copy
        cdef Cost lookup_cost, run_cost
        cdef size_t n = <size_t>self.max_batch_rows + 2
        cdef uint64_t[::1] counts = np.empty(n, np.uint64)
        cdef uint64_t[::1] ns = np.empty(n, np.uint64)
        with nogil:       # no object is made under the lock: making one may run other code, which may want the lock
            lock_acquire(self.lock)
            copy = self.statistics
            lookup_cost, run_cost = self.lookup_cost, self.run_cost
            memcpy(&counts[0], self.size_counts, n * sizeof(uint64_t))
            memcpy(&ns[0], self.size_ns, n * sizeof(uint64_t))
            lock_release(self.lock)
        sizes = {i: (counts[i], ns[i]) for i in range(<Py_ssize_t>n) if counts[i]}
        return {
            "succeeded": copy.succeeded, "failed": copy.failed, "refused": copy.refused, "invalid": copy.invalid,
            "expired": copy.expired, "cancelled": copy.cancelled, "rows": copy.rows, "batches": copy.batches,
            "failed_ns": copy.failed_ns, "last_ms": copy.last_ms,
            "sizes": sizes, "total": phase(&copy.total), "queue": phase(&copy.queue), "lookup": phase(&copy.lookup),
            "compute": phase(&copy.compute), "encode": phase(&copy.encode), "too_late": copy.too_late,
            "shared": {
                "calls": copy.shared, "lookup_ns": copy.shared_lookup_ns, "compute_ns": copy.shared_compute_ns,
                "encode_ns": copy.shared_encode_ns,
            },
            "late_rows": copy.late_rows, "lookup_cost": learnt(&lookup_cost), "run_cost": learnt(&run_cost),
        }


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


cdef inline void note(Phase* phase, int64_t ns) noexcept nogil:
    phase.count += 1
    phase.ns += <uint64_t>(ns if ns > 0 else 0)
    phase.buckets[bucket_of(ns)] += 1


cdef dict phase(Phase* counted):
    return {"count": counted.count, "ns": counted.ns, "buckets": [counted.buckets[i] for i in range(BUCKETS)]}


cdef dict learnt(const Cost* cost):
    return {"fixed_ns": cost.fixed_ns, "row_ns": cost.row_ns, "error": cost.error, "runs": cost.runs}


def bucket_bounds():
    """Upper bound of each histogram bucket in seconds; the last one is infinity."""
    bounds = [(units + 1) * 256e-9 for units in range(4)]
    for index in range(4, BUCKETS):
        octave, quarter = index // 4 + 1, index % 4
        bounds.append((5 + quarter) * 2.0 ** (octave - 2) * 256e-9)
    bounds[BUCKETS - 1] = float("inf")
    return bounds


def decide_bucket(int64_t ns):
    """The histogram bucket of a duration in nanoseconds, for tests."""
    return bucket_of(ns)


def decide_rest(Ledger ledger not None, int64_t count, bint run):
    """Note `count` runs that begin and end at once, without the GIL; or else forecast `count` times, which gives the
    longest rest of runs under way. For tests."""
    cdef int64_t _turn, now
    cdef int64_t longest = 0
    cdef Forecast forecast
    with nogil:
        for _turn in range(count):
            now = monotonic_ns()
            if run:
                ledger.note_left(ledger.note_taken(1, now))
            else:
                forecast = ledger.foretold()
                longest = max(longest, rest_ns(&forecast, now))
    return longest
