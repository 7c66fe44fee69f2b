"""A keyed hash of bytes: 64 bits, about 12 bytes a cycle on long inputs, 20 nanoseconds on 150 bytes.

Each step multiplies two words of input, both mixed with secrets, to 128 bits and folds the product: without the secrets
nobody can choose inputs that collide, and with them two different inputs do with a chance of about 2**-60. It is no
cryptographic hash: nothing made by it may leave the process. May be cimported by every kernel.
"""

from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy

cdef extern from *:
    """
    __extension__ typedef unsigned __int128 penstock_u128;
    static inline uint64_t fold(uint64_t a, uint64_t b) {
        penstock_u128 product = (penstock_u128)a * b;
        return (uint64_t)product ^ (uint64_t)(product >> 64);
    }
    static inline void prefetch(const void *address) { __builtin_prefetch(address, 1); }
    """
    uint64_t fold(uint64_t a, uint64_t b) nogil
    void prefetch(const void* address) nogil

cdef enum:
    LANES = 4                # independent chains, so that multiplications overlap


cdef struct Secrets:         # random, one set for each table
    uint64_t words[LANES]


cdef inline uint64_t word(const uint8_t* data) noexcept nogil:
    cdef uint64_t value
    memcpy(&value, data, 8)
    return value


cdef inline uint64_t absorb(const Secrets* secrets, uint64_t state, const uint8_t* data, size_t size) noexcept nogil:
    """The state after some more bytes. Their number has to be known from those before, as zeros are put after them."""
    cdef uint64_t[LANES] lanes
    cdef uint8_t[16] rest
    cdef int i
    if size >= 16 * LANES:
        for i in range(LANES):
            lanes[i] = state
        while size >= 16 * LANES:
            for i in range(LANES):
                lanes[i] = fold(word(data + 16 * i) ^ secrets.words[i], word(data + 16 * i + 8) ^ lanes[i])
            data += 16 * LANES
            size -= 16 * LANES
        state = fold(lanes[0] ^ secrets.words[1], lanes[1] ^ secrets.words[0])
        state ^= fold(lanes[2] ^ secrets.words[3], lanes[3] ^ secrets.words[2])
    while size >= 16:
        state = fold(word(data) ^ secrets.words[0], word(data + 8) ^ state)
        data += 16
        size -= 16
    if size:
        memcpy(rest, data, size)
        while size < 16:
            rest[size] = 0
            size += 1
        state = fold(word(rest) ^ secrets.words[1], word(rest + 8) ^ state)
    return state


cdef inline uint64_t finish(const Secrets* secrets, uint64_t state) noexcept nogil:
    return fold(state ^ secrets.words[2], secrets.words[3])
