"""What may be cimported of answers: what nghttp2 calls with the headers and the data that come."""

from libc.stdint cimport int32_t, uint8_t

from penstock.kernels._nghttp2 cimport nghttp2_frame, nghttp2_session

cdef int on_header(nghttp2_session* session, const nghttp2_frame* frame, const uint8_t* name, size_t name_size,
                   const uint8_t* value, size_t value_size, uint8_t flags, void* user_data) noexcept nogil
cdef int on_data(nghttp2_session* session, uint8_t flags, int32_t number, const uint8_t* data, size_t size,
                 void* user_data) noexcept nogil
