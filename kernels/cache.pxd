"""The face of the cache of answers: what a lane looks up and a batch keeps, from any thread, without the GIL.

`find` is given a request that fits the plan; where it gives nothing, `token` is what `keep` is to be called with once
the answer is written, or 0 where that answer is not to be kept. What is kept of an answer, here and in a cache that
servers share, is its reply without the id; `give_reply` makes the reply of another caller of it.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from penstock.kernels._hashing cimport Secrets
from penstock.kernels._protobuf cimport Slice
from penstock.kernels._wire cimport Request
from penstock.kernels.wire_plan cimport Plan

cdef enum:
    SLOTS = 6                # of a bucket
    GHOSTS = 4               # of a bucket: requests seen lately whose answers were not kept

cdef struct Slot:
    uint32_t tag             # upper half of the hash
    uint32_t place           # of the entry: its offset / 16 + 1; 0: none

cdef struct Bucket:          # one cache line
    Slot slots[SLOTS]
    uint32_t ghosts[GHOSTS]  # tags

cdef struct Entry:           # key and reply come after it
    uint64_t hash
    int64_t expires_ns       # CLOCK_MONOTONIC
    uint32_t size            # of all of it, a multiple of 16
    uint32_t key_size
    uint32_t reply_size
    uint8_t live             # a slot points at it
    uint8_t asked            # 0: never, 1: before it was moved, 2: since

cdef struct Reply:           # what is kept of a reply: what comes before its id and what comes after it
    Slice head
    Slice rest

cdef struct Counts:
    uint64_t hits
    uint64_t misses
    uint64_t passed          # not looked up: answers tell of their own run, or the request is too large
    uint64_t kept
    uint64_t evicted
    uint64_t expired
    uint64_t entries
    uint64_t bytes           # of live entries
    uint64_t hits_ns         # of all, by a sample
    uint64_t misses_ns


cdef class Cache:
    cdef readonly Plan plan
    cdef readonly size_t size
    cdef readonly int64_t ttl_ns
    cdef Secrets secrets
    cdef Bucket* buckets
    cdef uint64_t n_buckets
    cdef uint8_t* arena      # entries one after the other, a ring
    cdef size_t room         # bytes of the arena
    cdef size_t head         # where the next entry goes
    cdef size_t tail         # the oldest entry
    cdef size_t wrap         # where entries end before the arena does, while `wrapped`
    cdef bint wrapped        # entries lie in [tail, wrap) and [0, head); else in [tail, head)
    cdef bint full           # the ring has gone round
    cdef uint64_t lookups
    cdef uint64_t in_vain    # look-ups since one last found an answer, or a request seen before
    cdef int dry             # a flag: there were many of those, so only some requests are looked up
    cdef int64_t skipped     # requests that were not
    cdef Counts counts
    cdef void* lock
    cdef bint takes(self, const Request* request) noexcept nogil
    cdef uint8_t* find(self, const Request* request, int64_t now, size_t* size, uint64_t* token) noexcept nogil
    cdef bint keep(self, const Request* request, uint64_t token, const Reply* reply, int64_t now) noexcept nogil
    cdef uint8_t* recall(self, const Request* request, uint64_t hash, int64_t now, size_t* size,
                         uint64_t* token) noexcept nogil
    cdef Slot* locate(self, const Request* request, uint64_t hash) noexcept nogil
    cdef Slot* slot_of(self, const Entry* entry) noexcept nogil
    cdef Slot* spare_slot(self, uint64_t hash) noexcept nogil
    cdef void note_worth(self, bint found) noexcept nogil
    cdef Bucket* bucket_of(self, uint64_t hash) noexcept nogil
    cdef Entry* entry_at(self, const Slot* slot) noexcept nogil
    cdef void drop(self, Slot* slot) noexcept nogil
    cdef Entry* make_room(self, size_t size, int64_t now) noexcept nogil
    cdef bint retire(self, int64_t now) noexcept nogil
    cdef void count_time(self, uint64_t hits, int64_t ns) noexcept nogil


cdef bytes key_bytes(const Request* request)
cdef bint split_reply(Plan plan, const Request* request, const uint8_t* data, size_t size, Reply* out) noexcept nogil
cdef bytes reply_bytes(const Reply* reply)
cdef uint8_t* give_reply(const uint8_t* kept, size_t kept_size, const Slice* id, size_t* size) noexcept nogil
