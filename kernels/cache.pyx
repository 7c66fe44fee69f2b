"""Answers of one version, kept for requests that come again; shared by threads that hold no GIL.

Rules: an answer is given again only to a request that is the same in full: names, datatypes, shapes, bytes and outputs
asked for are compared, and the hash only finds the place. The request's id, timeout and spelling of the model have no
part in it. All memory is taken from `size`, table included, and what time it is the caller says.

Entries lie one after the other in a ring. Room for a new one is made at its oldest end: an entry that was asked for
since it was written moves to the newest end instead (CLOCK, over bytes); after `MOVES` of them it is the new one that
is not kept. Once the ring is full an answer is kept only if its request was seen lately, so requests that never come
again push nothing out; and after `VAIN` look-ups in a row without one that was seen before, only one in `WATCHED` is
looked up, in turn by hash and time, until one was.

Cost goals for a request of 30 floats: 40 ns where none ever comes again, 50 ns for a hit, and two accesses to memory
more where table and entry are not in the processor's caches (100 ns and more).
"""

import os

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memmove, memset

from penstock.kernels._hashing cimport prefetch
from penstock.kernels._protobuf cimport Slice, Writer, put, put_field, varint_size
from penstock.kernels._system cimport (
    aligned_new, atomic_add, atomic_get, flag_lower, flag_raise, flag_raised, lock_acquire, lock_free, lock_new,
    lock_release, monotonic_ns,
)
from penstock.kernels._wire cimport OK, Fault, Request
from penstock.kernels.cache_keys cimport hash_key, key_size, same_key, write_key
from penstock.kernels.wire_faults cimport explain
from penstock.kernels.wire_match cimport match_request
from penstock.kernels.wire_plan cimport Plan
from penstock.kernels.wire_requests cimport free_request, init_request, parse_request

from penstock.kernels.wire_faults import WireError

MIN_BYTES = 1 << 16
"""The smallest cache."""

cdef enum:
    GRAIN = 16               # entries begin at multiples of it
    MOVES = 16               # entries moved for a new one at most
    TABLE_SHARE = 10         # of the bytes, one part for the table: at 200 bytes an entry its buckets are half full
    ENTRY_SHARE = 16         # of the ring, the most that one entry may take
    VAIN = 1024              # look-ups in a row after which only some are made
    WATCHED = 16             # of so many requests one is looked up then, for 2**WATCH_BITS ns; then others
    WATCH_BITS = 27
    TIMED_FIRST = 64         # look-ups timed at first; later one in so many, as a clock costs as much as a look-up

cdef size_t MAX_ENTRY = 1 << 20  # bytes; copied under the lock

# Fields of ModelInferResponse: the tag of `id`, and the response parameter `cached`, true.
cdef uint8_t ID_TAG = 0x1A
cdef bytes _CACHED = b"\x22\x0c\x0a\x06cached\x12\x02\x08\x01"
cdef const uint8_t* CACHED = <const uint8_t*>PyBytes_AS_STRING(_CACHED)
cdef size_t CACHED_SIZE = PyBytes_GET_SIZE(_CACHED)


# ---------------------------------------------------------------------------------------------------------------------
# The table
# ---------------------------------------------------------------------------------------------------------------------

cdef inline uint32_t tag_of(uint64_t hash) noexcept nogil:
    return <uint32_t>(hash >> 32)


cdef inline const uint8_t* key_of(const Entry* entry) noexcept nogil:
    return <const uint8_t*>entry + sizeof(Entry)


cdef inline bint is_watched(uint64_t hash, int64_t now) noexcept nogil:
    """Whether a request is among those that are looked up while others are not."""
    return (hash + (<uint64_t>now >> WATCH_BITS)) % WATCHED == 0


cdef inline bint haunts(Bucket* bucket, uint32_t tag) noexcept nogil:
    """Whether a request was seen lately; from now on it was."""
    cdef bint seen = False
    cdef int i
    for i in range(GHOSTS):
        seen = seen or bucket.ghosts[i] == tag
    if not seen:
        for i in range(GHOSTS - 1, 0, -1):
            bucket.ghosts[i] = bucket.ghosts[i - 1]
        bucket.ghosts[0] = tag
    return seen


cdef class Cache:
    """The answers kept for one version.

    Args:
        plan: what the version takes and gives.
        size: bytes of memory, table included; at least 65,536.
        ttl_ns: how long an answer may be given again.
    """

    def __cinit__(self, Plan plan not None, *, size_t size, int64_t ttl_ns):
        cdef size_t buckets = size // TABLE_SHARE // sizeof(Bucket)
        if size < <size_t>MIN_BYTES or size >= <size_t>1 << 36:
            raise ValueError(f"a cache has {MIN_BYTES} bytes or more, less than 64 GiB, not {size}")
        if ttl_ns < 1 or ttl_ns > <int64_t>1 << 60:
            raise ValueError("a cache's ttl is positive and at most 36 years")
        self.plan = plan
        self.size = size
        self.ttl_ns = ttl_ns
        self.n_buckets = buckets
        self.room = (size - buckets * sizeof(Bucket)) & ~<size_t>(GRAIN - 1)
        random = os.urandom(sizeof(Secrets))
        memcpy(&self.secrets, PyBytes_AS_STRING(random), sizeof(Secrets))
        self.lock = lock_new()
        self.buckets = <Bucket*>aligned_new(buckets * sizeof(Bucket))
        self.arena = <uint8_t*>malloc(self.room)   # the system gives pages as they are written
        if self.lock == NULL or self.buckets == NULL or self.arena == NULL:
            raise MemoryError(f"no memory for a cache of {size} bytes")
        memset(self.buckets, 0, buckets * sizeof(Bucket))

    def __dealloc__(self):
        free(self.buckets)
        free(self.arena)
        lock_free(self.lock)

    cdef bint takes(self, const Request* request) noexcept nogil:
        """Whether a request is looked up at all: not where its answer tells of its own run, or its key is too large."""
        return not request.timing and key_size(request) <= min(MAX_ENTRY, self.room // ENTRY_SHARE)

    cdef uint8_t* find(self, const Request* request, int64_t now, size_t* size, uint64_t* token) noexcept nogil:
        """A reply to a request that fits the plan, for the caller to free; NULL where the model has to be run.

        `token` is then what `keep` wants with the answer, or 0.
        """
        cdef uint64_t hash
        cdef uint8_t* reply
        token[0] = 0
        if not self.takes(request):
            lock_acquire(self.lock)
            self.counts.passed += 1
            lock_release(self.lock)
            return NULL
        hash = hash_key(&self.secrets, request)
        if flag_raised(&self.dry) and not is_watched(hash, now):
            atomic_add(&self.skipped, 1)
            return NULL
        prefetch(self.bucket_of(hash))
        lock_acquire(self.lock)
        reply = self.recall(request, hash, now, size, token)
        lock_release(self.lock)
        return reply

    cdef uint8_t* recall(self, const Request* request, uint64_t hash, int64_t now, size_t* size,
                         uint64_t* token) noexcept nogil:
        """What `find` does while it holds the lock."""
        cdef bint timed = self.lookups < TIMED_FIRST or self.lookups % TIMED_FIRST == 0
        cdef int64_t started = monotonic_ns() if timed else 0
        cdef uint64_t hits = self.counts.hits
        cdef uint8_t* reply = NULL
        cdef bint seen = False
        cdef Entry* entry
        cdef Slot* slot = self.locate(request, hash)
        self.lookups += 1
        if slot != NULL:
            entry = self.entry_at(slot)
            if now < entry.expires_ns:
                reply = give_reply(key_of(entry) + entry.key_size, entry.reply_size, &request.id, size)
                entry.asked = 2
                self.counts.hits += 1
            else:
                self.counts.expired += 1
                self.drop(slot)
        if reply == NULL:
            self.counts.misses += 1
            seen = slot != NULL or (self.full and haunts(self.bucket_of(hash), tag_of(hash)))
            if seen or not self.full:
                token[0] = hash
        self.note_worth(seen or reply != NULL)
        if timed:
            self.count_time(hits, monotonic_ns() - started)
        return reply

    cdef void note_worth(self, bint found) noexcept nogil:
        """Whether looking up is worth it; the lock is held."""
        if found:
            self.in_vain = 0
            flag_lower(&self.dry)
        elif self.full:
            self.in_vain += 1
            if self.in_vain == VAIN:
                flag_raise(&self.dry)

    cdef void count_time(self, uint64_t hits, int64_t ns) noexcept nogil:
        """Note what a look-up took, also for those that are not timed; `hits` is how many there were before it."""
        cdef uint64_t sum_ns = <uint64_t>ns * (1 if self.lookups <= TIMED_FIRST else TIMED_FIRST)
        if self.counts.hits > hits:
            self.counts.hits_ns += sum_ns
        else:
            self.counts.misses_ns += sum_ns

    cdef bint keep(self, const Request* request, uint64_t token, const Reply* reply, int64_t now) noexcept nogil:
        """Keep the answer to a request; False where it is too large, or all that would make room was asked for lately.

        `now` is when what it was made of was read.
        """
        cdef size_t keyed = key_size(request)
        cdef size_t size = sizeof(Entry) + keyed + reply_size(reply)
        cdef Slot* slot
        cdef Entry* entry
        size = (size + GRAIN - 1) & ~<size_t>(GRAIN - 1)
        if size > min(MAX_ENTRY, self.room // ENTRY_SHARE):
            return False
        lock_acquire(self.lock)
        slot = self.locate(request, token)
        if slot != NULL:         # another call with the same request was quicker
            self.drop(slot)
        entry = self.make_room(size, now)
        if entry == NULL:
            lock_release(self.lock)
            return False
        entry.hash = token
        entry.expires_ns = now + self.ttl_ns
        entry.size = <uint32_t>size
        entry.key_size = <uint32_t>keyed
        entry.reply_size = <uint32_t>reply_size(reply)
        entry.live = True
        entry.asked = 0
        write_key(request, <uint8_t*>key_of(entry))
        write_reply(reply, <uint8_t*>key_of(entry) + keyed)
        slot = self.spare_slot(token)
        slot.tag = tag_of(token)
        slot.place = <uint32_t>((<uint8_t*>entry - self.arena) // GRAIN) + 1
        self.counts.kept += 1
        self.counts.entries += 1
        self.counts.bytes += size
        lock_release(self.lock)
        return True

    cdef Bucket* bucket_of(self, uint64_t hash) noexcept nogil:
        return &self.buckets[<uint64_t><uint32_t>hash * self.n_buckets >> 32]

    cdef Entry* entry_at(self, const Slot* slot) noexcept nogil:
        return <Entry*>(self.arena + (<size_t>slot.place - 1) * GRAIN)

    cdef Slot* locate(self, const Request* request, uint64_t hash) noexcept nogil:
        """The slot of a request's entry, or NULL."""
        cdef Bucket* bucket = self.bucket_of(hash)
        cdef Entry* entry
        cdef int i
        for i in range(SLOTS):
            if bucket.slots[i].place and bucket.slots[i].tag == tag_of(hash):
                entry = self.entry_at(&bucket.slots[i])
                if entry.hash == hash and same_key(request, key_of(entry), entry.key_size):
                    return &bucket.slots[i]
        return NULL

    cdef Slot* slot_of(self, const Entry* entry) noexcept nogil:
        """The slot that points at a live entry."""
        cdef Bucket* bucket = self.bucket_of(entry.hash)
        cdef int i
        for i in range(SLOTS - 1):
            if bucket.slots[i].place and self.entry_at(&bucket.slots[i]) == entry:
                return &bucket.slots[i]
        return &bucket.slots[SLOTS - 1]

    cdef Slot* spare_slot(self, uint64_t hash) noexcept nogil:
        """An empty slot for an entry; where there is none, that of the one least asked for."""
        cdef Bucket* bucket = self.bucket_of(hash)
        cdef Slot* chosen = &bucket.slots[0]
        cdef int i
        for i in range(SLOTS):
            if bucket.slots[i].place == 0:
                return &bucket.slots[i]
            if self.entry_at(&bucket.slots[i]).asked < self.entry_at(chosen).asked:
                chosen = &bucket.slots[i]
        self.counts.evicted += 1
        self.drop(chosen)
        return chosen

    cdef void drop(self, Slot* slot) noexcept nogil:
        """Forget an entry. Its bytes are free once it is the oldest."""
        cdef Entry* entry = self.entry_at(slot)
        entry.live = False
        slot.place = 0
        self.counts.entries -= 1
        self.counts.bytes -= entry.size

    # -----------------------------------------------------------------------------------------------------------------
    # The ring
    # -----------------------------------------------------------------------------------------------------------------

    cdef Entry* make_room(self, size_t size, int64_t now) noexcept nogil:
        """A place for a new entry, at most `ENTRY_SHARE` of the ring; NULL where what is oldest was all asked for."""
        cdef int moved = 0
        cdef size_t place
        while True:
            if not self.wrapped:
                if self.room - self.head >= size:
                    break
                self.wrap = self.head
                self.head = 0
                self.wrapped = self.full = True
            if self.tail - self.head >= size:
                break
            if moved == MOVES:
                return NULL
            moved += self.retire(now)
        place = self.head
        self.head += size
        return <Entry*>(self.arena + place)

    cdef bint retire(self, int64_t now) noexcept nogil:
        """Take the oldest entry from the ring, or move it where it was asked for since it was written. Whether it was.

        Only while wrapped, so that the newest end is before the oldest and the entry is moved to a lower address.
        """
        cdef Entry* entry = <Entry*>(self.arena + self.tail)
        cdef size_t size = entry.size
        cdef Slot* slot
        self.tail += size
        if self.tail == self.wrap:
            self.tail = 0
            self.wrapped = False
        if not entry.live:
            return False
        slot = self.slot_of(entry)
        if now >= entry.expires_ns:
            self.counts.expired += 1
        elif entry.asked == 2:
            entry.asked = 1
            memmove(self.arena + self.head, entry, size)
            slot.place = <uint32_t>(self.head // GRAIN) + 1
            self.head += size
            return True
        else:
            self.counts.evicted += 1
        self.drop(slot)
        return False

    # -----------------------------------------------------------------------------------------------------------------
    # For Python
    # -----------------------------------------------------------------------------------------------------------------

    def look_up(self, bytes body not None, int64_t now_ns):
        """What `find` gives: (reply or None, token)."""
        cdef Request request
        cdef uint8_t* reply
        cdef size_t size = 0
        cdef uint64_t token = 0
        read_request(self.plan, body, &request)
        with nogil:
            reply = self.find(&request, now_ns, &size, &token)
            free_request(&request)
        if reply == NULL:
            return None, token
        try:
            return PyBytes_FromStringAndSize(<const char*>reply, <Py_ssize_t>size), token
        finally:
            free(reply)

    def store(self, bytes body not None, uint64_t token, bytes reply not None, int64_t now_ns):
        """What `keep` does."""
        cdef Request request
        cdef bint kept
        cdef Reply parts
        read_request(self.plan, body, &request)
        try:
            if token != hash_key(&self.secrets, &request):
                raise ValueError("the token is not of this request")
            if not split_reply(self.plan, &request, <const uint8_t*>PyBytes_AS_STRING(reply), PyBytes_GET_SIZE(reply),
                               &parts):
                raise ValueError("the reply is not to this request")
            kept = self.keep(&request, token, &parts, now_ns)
            return kept
        finally:
            free_request(&request)

    def key(self, bytes body not None):
        """What makes a request the one it is, as bytes."""
        cdef Request request
        read_request(self.plan, body, &request)
        try:
            return key_bytes(&request)
        finally:
            free_request(&request)

    def snapshot(self):
        """Counters since the start, and what is kept now; `hit_ns` and `miss_ns` are reckoned from those timed."""
        cdef Counts copy
        cdef uint64_t misses
        with nogil:
            lock_acquire(self.lock)
            copy = self.counts
            lock_release(self.lock)
            misses = copy.misses + <uint64_t>atomic_get(&self.skipped)
        return {
            "hits": copy.hits, "misses": misses, "passed": copy.passed, "kept": copy.kept,
            "evicted": copy.evicted, "expired": copy.expired, "entries": copy.entries, "bytes": copy.bytes,
            "hit_ns": copy.hits_ns,
            "miss_ns": copy.misses_ns,
        }


cdef bytes key_bytes(const Request* request):
    """A request's key as an object."""
    cdef bytes out = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>key_size(request))
    write_key(request, <uint8_t*>PyBytes_AS_STRING(out))
    return out


# ---------------------------------------------------------------------------------------------------------------------
# Replies: kept without their id, and given with that of the caller
# ---------------------------------------------------------------------------------------------------------------------

cdef bint split_reply(Plan plan, const Request* request, const uint8_t* data, size_t size, Reply* out) noexcept nogil:
    """The parts of a reply to a request, whose id comes after the plan's head; False where it cannot be one."""
    cdef size_t id = id_size(&request.id)
    if size < plan.head.size + id:
        return False
    out.head = Slice(data, plan.head.size)
    out.rest = Slice(data + plan.head.size + id, size - plan.head.size - id)
    return True


cdef bytes reply_bytes(const Reply* reply):
    """What is kept of a reply as an object."""
    cdef bytes out = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>reply_size(reply))
    write_reply(reply, <uint8_t*>PyBytes_AS_STRING(out))
    return out


cdef uint8_t* give_reply(const uint8_t* kept, size_t kept_size, const Slice* id, size_t* size) noexcept nogil:
    """A reply of what was kept of one, with the caller's id and `cached`, since protobuf takes fields in any order.

    For the caller to free; NULL where there is no memory.
    """
    cdef Writer writer
    cdef uint8_t* reply = <uint8_t*>malloc(kept_size + CACHED_SIZE + id_size(id))
    if reply == NULL:
        return NULL
    writer.at = reply
    writer.size = 0
    put(&writer, kept, kept_size)
    put(&writer, CACHED, CACHED_SIZE)
    if id.size:
        put_field(&writer, ID_TAG, id.data, id.size)
    size[0] = writer.size
    return reply


cdef inline size_t id_size(const Slice* id) noexcept nogil:
    """Bytes of an id in a reply."""
    return 1 + varint_size(id.size) + id.size if id.size else 0


cdef inline size_t reply_size(const Reply* reply) noexcept nogil:
    return reply.head.size + reply.rest.size


cdef inline void write_reply(const Reply* reply, uint8_t* out) noexcept nogil:
    memcpy(out, reply.head.data, reply.head.size)
    memcpy(out + reply.head.size, reply.rest.data, reply.rest.size)


cdef int read_request(Plan plan, bytes body, Request* request) except -1:
    """Parse and match; raises WireError."""
    cdef Fault fault
    init_request(request)
    fault.code = parse_request(<const uint8_t*>PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body), request)
    if fault.code == OK:
        match_request(plan, request, &fault)
    if fault.code == OK:
        return 0
    try:
        raise WireError(explain(plan, request, &fault))
    finally:
        free_request(request)
