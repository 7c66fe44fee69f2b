"""Counts of what was served in each period of a fixed length, over bins that never move.

Windows follow one another from the moment the counter was made; one is filled, and the last complete one that saw any
rows is kept. Time is whatever the caller says. Several threads count at once under one lock, held for the few
microseconds of counting; a batch that takes longer is counted apart first. About 4 ns a value, see `drift`.
"""

import numpy as np

cimport cython
from libc.math cimport fmod, rint
from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from penstock.kernels._system cimport lock_acquire, lock_free, lock_new, lock_release
from penstock.kernels.drift cimport count_rows

cdef Py_ssize_t LARGE = 65_536       # values whose counting is worth memory of its own
cdef Py_ssize_t SMALL_BATCH = 4096   # values; handing the GIL over would cost more than counting fewer


@cython.final
cdef class Windows:
    def __cinit__(self, const float[::1] edges not None, const int32_t[::1] offsets not None, double window_s,
                  double now):
        cdef Py_ssize_t j
        self.columns = offsets.shape[0] - 1
        if not window_s > 0:
            raise ValueError(f"a window lasts more than 0 seconds, not {window_s:g}")
        if self.columns < 0 or offsets[0] != 0 or offsets[self.columns] != edges.shape[0]:
            raise ValueError(f"offsets must run from 0 to {edges.shape[0]}, the number of edges")
        for j in range(self.columns):
            if offsets[j + 1] < offsets[j]:
                raise ValueError(f"offsets must not fall, but do at column {j}")
        self.window_s, self.start = window_s, now
        self.n_counts = edges.shape[0] + 2 * self.columns
        self.lock = lock_new()
        self.edges = <float*>calloc(<size_t>edges.shape[0] + 1, sizeof(float))
        self.offsets = <int32_t*>calloc(<size_t>offsets.shape[0], sizeof(int32_t))
        self.counts = <int64_t*>calloc(<size_t>self.n_counts + 1, sizeof(int64_t))
        self.kept = <int64_t*>calloc(<size_t>self.n_counts + 1, sizeof(int64_t))
        if (self.lock == NULL or self.edges == NULL or self.offsets == NULL or self.counts == NULL
                or self.kept == NULL):
            raise MemoryError("no memory for a version's drift counters")
        for j in range(edges.shape[0]):
            self.edges[j] = edges[j]
        for j in range(offsets.shape[0]):
            self.offsets[j] = offsets[j]

    def __dealloc__(self):
        free(self.edges)
        free(self.offsets)
        free(self.counts)
        free(self.kept)
        lock_free(self.lock)

    def add(self, const float[:, ::1] x not None, double now):
        cdef Py_ssize_t rows = x.shape[0]
        cdef const float* first
        if x.shape[1] != self.columns:
            raise ValueError(f"{self.columns} columns are counted, the batch has {x.shape[1]}")
        first = &x[0, 0] if rows and self.columns else NULL
        if rows * self.columns <= SMALL_BATCH:
            self.count(first, rows, now)
            return
        with nogil:
            self.count(first, rows, now)

    cdef void count(self, const float* x, Py_ssize_t rows, double now) noexcept nogil:
        """Count a batch, [rows, columns]."""
        cdef int64_t* apart = NULL
        cdef Py_ssize_t i
        if rows * self.columns > LARGE:
            apart = <int64_t*>calloc(<size_t>self.n_counts, sizeof(int64_t))
        if apart != NULL:            # where there is no memory, the others wait
            count_rows(x, rows, self.columns, self.edges, self.offsets, apart)
        lock_acquire(self.lock)
        self.rotate(now)
        if apart == NULL:
            count_rows(x, rows, self.columns, self.edges, self.offsets, self.counts)
        else:
            for i in range(self.n_counts):
                self.counts[i] += apart[i]
        self.rows += rows
        lock_release(self.lock)
        free(apart)

    cdef void rotate(self, double now) noexcept nogil:
        """Close the current window if `now` lies beyond its end; periods nobody served in are passed over. The lock is
        held."""
        cdef double gone = now - self.start
        if not gone >= self.window_s:
            return
        if self.rows:
            memcpy(self.kept, self.counts, <size_t>self.n_counts * sizeof(int64_t))
            self.kept_start, self.kept_rows = self.start, self.rows
            memset(self.counts, 0, <size_t>self.n_counts * sizeof(int64_t))
            self.rows = 0
        self.start += rint((gone - fmod(gone, self.window_s)) / self.window_s) * self.window_s

    def current(self, double now):
        return self.read(now, False)

    def last(self, double now):
        return self.read(now, True)

    def read(self, double now, bint complete):
        """A copy of the current window, or of the one kept where there is one."""
        cdef int64_t[::1] copy = np.zeros(self.n_counts + 1, np.int64)
        cdef int64_t rows
        cdef double start
        cdef bint kept
        with nogil:       # no object is made under the lock: making one may run other code, which may want the lock
            lock_acquire(self.lock)
            self.rotate(now)
            kept = complete and self.kept_rows > 0
            start, rows = (self.kept_start, self.kept_rows) if kept else (self.start, self.rows)
            memcpy(&copy[0], self.kept if kept else self.counts, <size_t>self.n_counts * sizeof(int64_t))
            lock_release(self.lock)
        return start, rows, np.asarray(copy)[:self.n_counts], bool(kept)
