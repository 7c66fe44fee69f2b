"""What may be cimported of requests: having nghttp2 tell this module of all that clients send."""

from penstock.kernels._nghttp2 cimport nghttp2_session_callbacks

cdef void hear_requests(nghttp2_session_callbacks* callbacks) noexcept nogil
