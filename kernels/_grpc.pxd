"""The small grammar of gRPC over HTTP/2: timeouts, content types, encodings, status messages, metadata on the way in.

Pure functions of bytes; every one is given the size of what it reads and writes no more than it says. Source: the
"gRPC over HTTP2" document of the gRPC project.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.string cimport memcmp

cdef enum:
    PREFIX_BYTES = 5         # flag and big-endian length before every message
    MALFORMED_TIMEOUT = -1

cdef enum Encoding:          # how a message is compressed
    ENCODING_IDENTITY = 0
    ENCODING_GZIP = 1
    ENCODING_DEFLATE = 2
    ENCODING_UNKNOWN = 3

cdef enum:                   # status codes that are given without Python
    STATUS_OK = 0
    STATUS_DEADLINE_EXCEEDED = 4
    STATUS_RESOURCE_EXHAUSTED = 8
    STATUS_UNIMPLEMENTED = 12
    STATUS_INTERNAL = 13
    STATUS_UNAVAILABLE = 14

cdef inline int64_t longest_ns() noexcept nogil:
    """Thirty years."""
    return 1_000_000_000_000_000_000


cdef inline bint equals(const uint8_t* data, size_t size, const char* text, size_t text_size) noexcept nogil:
    return size == text_size and memcmp(data, text, text_size) == 0


cdef inline int64_t parse_timeout(const uint8_t* data, size_t size) noexcept nogil:
    """Nanoseconds of a grpc-timeout: one to eight digits and a unit; MALFORMED_TIMEOUT for anything else."""
    cdef int64_t value = 0
    cdef int64_t unit
    cdef size_t i
    if size < 2 or size > 9:
        return MALFORMED_TIMEOUT
    for i in range(size - 1):
        if not c'0' <= data[i] <= c'9':
            return MALFORMED_TIMEOUT
        value = value * 10 + data[i] - c'0'
    if data[size - 1] == c'H':
        unit = 3_600_000_000_000
    elif data[size - 1] == c'M':
        unit = 60_000_000_000
    elif data[size - 1] == c'S':
        unit = 1_000_000_000
    elif data[size - 1] == c'm':
        unit = 1_000_000
    elif data[size - 1] == c'u':
        unit = 1_000
    elif data[size - 1] == c'n':
        unit = 1
    else:
        return MALFORMED_TIMEOUT
    return value * unit if value < longest_ns() // unit else longest_ns()


cdef inline bint is_grpc(const uint8_t* data, size_t size) noexcept nogil:
    """Whether a content-type is application/grpc, with a +format or ;parameters or not."""
    if size < 16 or memcmp(data, b"application/grpc", 16) != 0:
        return False
    return size == 16 or data[16] == c'+' or data[16] == c';'


cdef inline Encoding encoding_of(const uint8_t* data, size_t size) noexcept nogil:
    if equals(data, size, b"identity", 8):
        return ENCODING_IDENTITY
    if equals(data, size, b"gzip", 4):
        return ENCODING_GZIP
    return ENCODING_DEFLATE if equals(data, size, b"deflate", 7) else ENCODING_UNKNOWN


cdef inline int encodings_in(const uint8_t* value, size_t size) noexcept nogil:
    """The encodings of a list with commas, a bit for each."""
    cdef size_t begin = 0
    cdef size_t end
    cdef int found = 0
    while begin < size:
        while begin < size and (value[begin] == c',' or value[begin] == c' '):
            begin += 1
        end = begin
        while end < size and value[end] != c',' and value[end] != c' ':
            end += 1
        found |= 1 << encoding_of(value + begin, end - begin)
        begin = end
    return found


cdef inline size_t percent_encode(const uint8_t* data, size_t size, uint8_t* out) noexcept nogil:
    """A grpc-message: what is not printable ASCII, and the percent sign, as %XX. `out` has room for 3 * size."""
    cdef const char* digits = b"0123456789ABCDEF"
    cdef size_t written = 0
    cdef size_t i
    for i in range(size):
        if 0x20 <= data[i] <= 0x7e and data[i] != c'%':
            out[written] = data[i]
            written += 1
        else:
            out[written] = c'%'
            out[written + 1] = digits[data[i] >> 4]
            out[written + 2] = digits[data[i] & 15]
            written += 3
    return written


cdef inline uint32_t message_size(const uint8_t* prefix) noexcept nogil:
    """The length in a message's prefix, which has PREFIX_BYTES."""
    return <uint32_t>prefix[1] << 24 | <uint32_t>prefix[2] << 16 | <uint32_t>prefix[3] << 8 | prefix[4]


cdef inline void write_prefix(uint8_t* out, size_t size, bint compressed) noexcept nogil:
    """The prefix of a message of `size` bytes, less than 4 GiB."""
    out[0] = 1 if compressed else 0
    out[1] = <uint8_t>(size >> 24)
    out[2] = <uint8_t>(size >> 16)
    out[3] = <uint8_t>(size >> 8)
    out[4] = <uint8_t>size
