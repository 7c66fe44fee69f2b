"""Which lane answers a (model name, version): a read-only hash table that threads without the GIL look up in.

A table is never changed; a new one takes its place. Open addressing, at most half full; a look-up costs about 20 ns.
"""

from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE

from penstock.kernels._protobuf cimport Slice
from penstock.kernels.lanes cimport Lane


cdef inline uint64_t hash_bytes(uint64_t state, const uint8_t* data, size_t size) noexcept nogil:
    """FNV-1a. Keys are the operator's own, so nobody can choose them to collide; probing is bounded in any case."""
    cdef size_t i
    for i in range(size):
        state = (state ^ data[i]) * 1099511628211u
    return state


cdef inline uint64_t hash_key(const uint8_t* name, size_t name_size, const uint8_t* version,
                              size_t version_size) noexcept nogil:
    cdef uint64_t state = hash_bytes(14695981039346656037u, name, name_size)
    return hash_bytes((state ^ 0xff) * 1099511628211u, version, version_size)


cdef class Routes:
    """A routing table.

    Args:
        lanes: (model name, version or alias or nothing) to the lane that answers.
    """

    def __cinit__(self, dict lanes not None):
        cdef size_t slots = 2
        cdef bytes name, version, key
        cdef Lane lane
        while slots < 2 * <size_t>len(lanes) + 1:
            slots *= 2
        self.mask = slots - 1
        self.entries = <Entry*>calloc(slots, sizeof(Entry))
        if self.entries == NULL:
            raise MemoryError("no memory for a routing table")
        self.keep = []
        for (name, version), lane in lanes.items():
            if lane is None:
                raise TypeError("a route leads to a lane")
            key = name + b"\0" + version
            self.keep.append((key, lane))
            self.add(key, len(name), <void*>lane)

    def __dealloc__(self):
        free(self.entries)

    cdef int add(self, bytes key, size_t name_size, void* lane) except -1:
        cdef const uint8_t* data = <const uint8_t*>PyBytes_AS_STRING(key)
        cdef size_t size = <size_t>PyBytes_GET_SIZE(key)
        cdef uint64_t hash = hash_key(data, name_size, data + name_size + 1, size - name_size - 1)
        cdef Entry* entry = &self.entries[hash & self.mask]
        while entry.lane != NULL:
            entry = &self.entries[(entry - self.entries + 1) & self.mask]
        entry.hash, entry.key, entry.size, entry.name_size, entry.lane = hash, data, size, name_size, lane
        return 0

    cdef void* find(self, Slice name, Slice version) noexcept nogil:
        """The lane, or NULL."""
        cdef uint64_t hash = hash_key(name.data, name.size, version.data, version.size)
        cdef Entry* entry = &self.entries[hash & self.mask]
        while entry.lane != NULL:
            if (entry.hash == hash and entry.name_size == name.size
                    and entry.size == name.size + 1 + version.size
                    and (name.size == 0 or memcmp(entry.key, name.data, name.size) == 0)
                    and (version.size == 0 or memcmp(entry.key + name.size + 1, version.data, version.size) == 0)):
                return entry.lane
            entry = &self.entries[(entry - self.entries + 1) & self.mask]
        return NULL

    def lookup(self, bytes name not None, bytes version not None):
        """The lane that answers, or None: what compiled code finds, for tests."""
        cdef void* lane = self.find(
            Slice(<const uint8_t*>PyBytes_AS_STRING(name), <size_t>PyBytes_GET_SIZE(name)),
            Slice(<const uint8_t*>PyBytes_AS_STRING(version), <size_t>PyBytes_GET_SIZE(version)),
        )
        return None if lane == NULL else <object>lane
