"""What kernels use of the operating system: locks, clocks, eventfds, atomic counters and aligned memory.

Each is one C function of a few nanoseconds to a microsecond; none touches Python.
"""

from libc.stdint cimport int64_t, uint64_t

cdef extern from *:
    """
    #include <errno.h>
    #include <pthread.h>
    #include <stdlib.h>
    #include <sys/eventfd.h>
    #include <time.h>
    #include <unistd.h>

    typedef struct { pthread_mutex_t mutex; pthread_cond_t ready; } penstock_lock;

    static penstock_lock *lock_new(void) {
        penstock_lock *lock = malloc(sizeof *lock);
        pthread_condattr_t attributes;
        if (!lock) return NULL;
        pthread_mutex_init(&lock->mutex, NULL);
        pthread_condattr_init(&attributes);
        pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
        pthread_cond_init(&lock->ready, &attributes);
        pthread_condattr_destroy(&attributes);
        return lock;
    }
    static void lock_free(penstock_lock *lock) {
        if (!lock) return;
        pthread_cond_destroy(&lock->ready);
        pthread_mutex_destroy(&lock->mutex);
        free(lock);
    }
    static void lock_acquire(void *lock) { pthread_mutex_lock(&((penstock_lock *)lock)->mutex); }
    static void lock_release(void *lock) { pthread_mutex_unlock(&((penstock_lock *)lock)->mutex); }
    static void lock_signal(void *lock) { pthread_cond_signal(&((penstock_lock *)lock)->ready); }
    static void lock_broadcast(void *lock) { pthread_cond_broadcast(&((penstock_lock *)lock)->ready); }
    /* Wait to be signalled, at most until the CLOCK_MONOTONIC time `until` (0: for ever). */
    static void lock_wait(void *lock, long long until) {
        penstock_lock *l = lock;
        struct timespec at = {until / 1000000000, until % 1000000000};
        if (until) pthread_cond_timedwait(&l->ready, &l->mutex, &at);
        else pthread_cond_wait(&l->ready, &l->mutex);
    }
    static long long clock_ns(clockid_t clock) {
        struct timespec now;
        clock_gettime(clock, &now);
        return now.tv_sec * 1000000000LL + now.tv_nsec;
    }
    static long long monotonic_ns(void) { return clock_ns(CLOCK_MONOTONIC); }
    static long long epoch_ms(void) { return clock_ns(CLOCK_REALTIME) / 1000000; }
    static void flag_raise(int *flag) { __atomic_store_n(flag, 1, __ATOMIC_RELEASE); }
    static void flag_lower(int *flag) { __atomic_store_n(flag, 0, __ATOMIC_RELEASE); }
    static int flag_raised(const int *flag) { return __atomic_load_n(flag, __ATOMIC_ACQUIRE); }
    static long long atomic_add(int64_t *value, int64_t more) {
        return __atomic_add_fetch(value, more, __ATOMIC_ACQ_REL);
    }
    static long long atomic_get(const int64_t *value) { return __atomic_load_n(value, __ATOMIC_RELAXED); }
    static void retain(int64_t *references) { __atomic_add_fetch(references, 1, __ATOMIC_RELAXED); }
    /* Whether that was the last reference. */
    static int let_go(int64_t *references) { return __atomic_sub_fetch(references, 1, __ATOMIC_ACQ_REL) == 0; }
    /* For counters that one thread writes and any may read. */
    static void tally(uint64_t *counter) {
        __atomic_store_n(counter, __atomic_load_n(counter, __ATOMIC_RELAXED) + 1, __ATOMIC_RELAXED);
    }
    static uint64_t tallied(const uint64_t *counter) { return __atomic_load_n(counter, __ATOMIC_RELAXED); }
    static int event_new(void) { return eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC); }
    static void event_raise(int fd) { eventfd_write(fd, 1); }
    static void event_clear(int fd) { eventfd_t value; eventfd_read(fd, &value); }
    static void *aligned_new(size_t size) {
        void *memory = NULL;
        return posix_memalign(&memory, 64, size ? size : 64) ? NULL : memory;
    }
    """
    void* lock_new() nogil
    void lock_free(void* lock) nogil
    void lock_acquire(void* lock) nogil
    void lock_release(void* lock) nogil
    void lock_signal(void* lock) nogil
    void lock_broadcast(void* lock) nogil
    void lock_wait(void* lock, int64_t until) nogil
    int64_t monotonic_ns() nogil
    int64_t epoch_ms() nogil
    void flag_raise(int* flag) nogil
    void flag_lower(int* flag) nogil
    int flag_raised(const int* flag) nogil
    int64_t atomic_add(int64_t* value, int64_t more) nogil
    int64_t atomic_get(const int64_t* value) nogil
    void retain(int64_t* references) nogil
    bint let_go(int64_t* references) nogil
    void tally(uint64_t* counter) nogil
    uint64_t tallied(const uint64_t* counter) nogil
    int event_new() nogil
    void event_raise(int fd) nogil
    void event_clear(int fd) nogil
    void* aligned_new(size_t size) nogil
    int close(int fd) nogil
