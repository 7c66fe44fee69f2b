"""Durations as an HDR histogram counts them: 128 buckets for each power of two.

A bucket is at most 1/128 of its lower edge wide, so a value that is taken to be the middle of its bucket is wrong by at
most 0.4 %; below 256 ns buckets are single nanoseconds. What is longer than 18 minutes counts as that long.
`penstock/bench/histogram.py` is the other half, and its tests hold both to each other.
"""

from libc.stdint cimport int64_t, uint64_t

from penstock.kernels._client cimport highest_bit

cdef enum:
    FINE_BITS = 7
    LONGEST_BITS = 40
    BUCKETS = ((LONGEST_BITS - FINE_BITS - 1) << FINE_BITS) + (2 << FINE_BITS)


cdef inline int bucket_of(int64_t ns) noexcept nogil:
    """The bucket of a duration, below BUCKETS; negative ones are none at all."""
    cdef int shift
    if ns < 2 << FINE_BITS:
        return <int>ns if ns > 0 else 0
    if ns >= <int64_t>1 << LONGEST_BITS:
        return BUCKETS - 1
    shift = highest_bit(<uint64_t>ns) - FINE_BITS
    return (shift << FINE_BITS) + <int>(ns >> shift)
