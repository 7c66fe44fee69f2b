"""The face of keys: what makes two requests the same."""

from libc.stdint cimport uint8_t, uint64_t

from penstock.kernels._hashing cimport Secrets
from penstock.kernels._wire cimport Request

cdef size_t key_size(const Request* request) noexcept nogil
cdef uint64_t hash_key(const Secrets* secrets, const Request* request) noexcept nogil
cdef void write_key(const Request* request, uint8_t* out) noexcept nogil
cdef bint same_key(const Request* request, const uint8_t* key, size_t size) noexcept nogil
