"""The face of the routing table: what a transport without the GIL looks lanes up in."""

from libc.stdint cimport uint8_t, uint64_t

from penstock.kernels._protobuf cimport Slice

cdef struct Entry:           # a used slot has a lane
    uint64_t hash
    const uint8_t* key       # model name, a NUL, version
    size_t size
    size_t name_size
    void* lane               # borrowed: the table keeps it alive


cdef class Routes:
    cdef Entry* entries
    cdef size_t mask
    cdef list keep
    cdef int add(self, bytes key, size_t name_size, void* lane) except -1
    cdef void* find(self, Slice name, Slice version) noexcept nogil
