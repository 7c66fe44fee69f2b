"""Threads that help with long runs: they wait without the GIL, know no Python, and end with the crew.

A run is cut into pieces, and whoever has none takes the next one: the thread that brought the run at once, others as
soon as they are awake (some 50 microseconds). So nobody waits for a thread that got no core, save at the end for a
piece it has begun. The crew has one run at a time; who finds it engaged runs alone. Nothing is allocated for a run.
"""

cimport cython
from libc.stdint cimport int64_t
from libc.stdlib cimport free

from penstock.kernels._forest cimport taken
from penstock.kernels._system cimport (
    atomic_add, lock_acquire, lock_broadcast, lock_free, lock_new, lock_release, lock_wait,
)

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <pthread.h>
    #include <signal.h>

    /* Signals are for Python's threads. */
    static int crew_start(pthread_t *thread, void *(*body)(void *), void *argument) {
        sigset_t every, before;
        int failed;
        sigfillset(&every);
        pthread_sigmask(SIG_SETMASK, &every, &before);
        failed = pthread_create(thread, NULL, body, argument);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        if (!failed) pthread_setname_np(*thread, "forest"); /* for whoever looks at threads */
        return failed;
    }
    """
    int crew_start(pthread_t* thread, void* (*body)(void*) noexcept nogil, void* argument) nogil
    int pthread_join(pthread_t thread, void** result) nogil

cdef enum:
    PIECES = 2             # of a run for each thread: more would be fairer, and each passes over all trees


@cython.final
cdef class Crew:
    """A crew of `n` threads, of which one is whoever brings a run."""

    def __cinit__(self, int n):
        self.lock = lock_new()
        if self.lock == NULL:
            raise MemoryError
        self.threads = <pthread_t*>taken(n, sizeof(pthread_t))
        while self.n_threads < n - 1:
            if crew_start(&self.threads[self.n_threads], helper, <void*>self) != 0:
                raise RuntimeError(f"a forest's thread {self.n_threads + 1} of {n - 1} could not be started")
            self.n_threads += 1

    def __dealloc__(self):
        cdef int i
        if self.lock == NULL:
            return
        lock_acquire(self.lock)
        self.closing = True
        lock_broadcast(self.lock)
        lock_release(self.lock)
        for i in range(self.n_threads):
            pthread_join(self.threads[i], NULL)
        free(self.threads)
        lock_free(self.lock)

    cdef void share(self, Work work, void* context, int64_t n, int64_t multiple) noexcept nogil:
        """Have `n` things done, in pieces of a multiple of so many; returns when all are."""
        cdef int64_t parts = PIECES * (self.n_threads + 1) * multiple
        lock_acquire(self.lock)
        if self.engaged:
            lock_release(self.lock)
            work(context, 0, n)
            return
        self.engaged = self.joinable = True
        self.work, self.context, self.n, self.taken = work, context, n, 0
        self.piece = (n + parts - 1) // parts * multiple
        self.turn += 1
        lock_broadcast(self.lock)
        lock_release(self.lock)
        self.take_pieces()
        lock_acquire(self.lock)
        self.joinable = False
        while self.busy:
            lock_wait(self.lock, 0)
        self.engaged = False
        lock_release(self.lock)

    cdef void take_pieces(self) noexcept nogil:
        cdef int64_t first = atomic_add(&self.taken, self.piece) - self.piece
        while first < self.n:
            self.work(self.context, first, min(self.piece, self.n - first))
            first = atomic_add(&self.taken, self.piece) - self.piece

    cdef void help(self) noexcept nogil:
        """A thread's life."""
        cdef int64_t seen = 0
        lock_acquire(self.lock)
        while not self.closing:
            if not self.joinable or seen == self.turn:
                lock_wait(self.lock, 0)
                continue
            seen = self.turn
            self.busy += 1
            lock_release(self.lock)
            self.take_pieces()
            lock_acquire(self.lock)
            self.busy -= 1
            lock_broadcast(self.lock)
        lock_release(self.lock)


cdef void* helper(void* crew) noexcept nogil:
    (<Crew>crew).help()
    return NULL
