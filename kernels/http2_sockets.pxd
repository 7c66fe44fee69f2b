"""What may be cimported of sockets: bytes in and out of a connection, and the ends it may come to."""

from libc.stdint cimport uint8_t

from penstock.kernels._http2 cimport Connection, Loop

cdef bint shake_hands(Connection* connection) noexcept nogil
cdef ssize_t read_some(Connection* connection, uint8_t* out, size_t size) noexcept nogil
cdef ssize_t write_some(Connection* connection, const uint8_t* data, size_t size) noexcept nogil
cdef void flush(Connection* connection) noexcept nogil
cdef void flush_all(Loop* loop) noexcept nogil
cdef void linger(Connection* connection) noexcept nogil
cdef void kill(Connection* connection) noexcept nogil
cdef void bury(Loop* loop) noexcept nogil
cdef void forsake(Loop* loop, int fd) noexcept nogil
