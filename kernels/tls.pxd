"""The face of TLS: one connection over a non-blocking socket, driven by a thread without the GIL.

A connection is an OpenSSL `SSL*`, passed as `void*`, and belongs to one thread at a time. Rules for who drives it:

- The socket stays the caller's: `tls_free` does not close it. Free the connection before the descriptor is closed.
- TLS_AGAIN_READ may stand for a record that held no data, so bytes may still lie in the socket: watch it
  level-triggered, or read until the socket is empty by another measure.
- A buffer of at least TLS_RECORD bytes takes all that a record holds. With a smaller one, read until TLS_AGAIN_READ:
  what is left lies in OpenSSL, where epoll does not see it.
- After TLS_AGAIN_* from `tls_write`, offer the same bytes again, as many or more; they may lie elsewhere by then.
- Reading may want to write and the other way round (TLS 1.3 answers a key update).
- After -1 nothing may be read or written any more.
"""

cdef enum:
    TLS_DONE = 0
    TLS_WANT_READ = 1
    TLS_WANT_WRITE = 2
    TLS_FAILED = -1
    TLS_AGAIN_READ = -2
    TLS_AGAIN_WRITE = -3
    TLS_RECORD = 16384       # the most that one record holds

cdef void* tls_new(void* context, int fd) noexcept nogil
cdef void* tls_connect(void* context, int fd, const char* name) noexcept nogil
cdef int tls_handshake(void* tls) noexcept nogil
cdef ssize_t tls_read(void* tls, void* data, size_t size) noexcept nogil
cdef ssize_t tls_write(void* tls, const void* data, size_t size) noexcept nogil
cdef void tls_free(void* tls, bint say_goodbye) noexcept nogil


cdef class TlsContext:
    cdef void* context       # SSL_CTX*


cdef class TlsTrust:
    cdef void* context       # SSL_CTX*
    cdef bytes name          # that the server is asked for; empty for an address


cdef class TlsPeer:
    cdef void* tls
    cdef void* open(self) except NULL
