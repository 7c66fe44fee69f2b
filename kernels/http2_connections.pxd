"""What may be cimported of connections: opening them, what epoll and their timers tell of them, and ending them."""

from libc.stdint cimport uint32_t

from penstock.kernels._http2 cimport Connection, Loop, Shared

cdef bint prepare_sessions(Shared* shared) noexcept nogil
cdef void open_connection(Loop* loop, int fd) noexcept nogil
cdef void on_ready(Connection* connection, uint32_t events) noexcept nogil
cdef void on_connection_timer(Connection* connection) noexcept nogil
cdef void begin_drain(Connection* connection) noexcept nogil
cdef void end_connection(Connection* connection) noexcept nogil
