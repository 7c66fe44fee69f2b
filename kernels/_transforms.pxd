"""The steps of a compiled program, each over one block of rows: what `transforms.pyx` compiles operations to.

A **register** holds one value of every row of the block, in float64. A step fills its target register, changes it in
place (with another register beside it, never itself), or writes it to the output. In place, because compilers then see
by themselves that a loop may take several values at once. NaN is missing and passes through all arithmetic by itself.
"""

from libc.math cimport NAN, copysign, fabs, isnan, log1p
from libc.stdint cimport int32_t, uint8_t, uint32_t
from libc.string cimport memcpy

cdef enum Code:
    # fill the target
    LOAD = 0                 # column `column` of x
    CLOCK = 1                # milliseconds since 1970
    COPY = 2                 # `other`
    # change it
    IMPUTE = 3
    CLIP = 4
    LOG1P = 5
    STANDARDIZE = 6
    MIN_MAX = 7
    BUCKETIZE = 8
    ORDINAL = 9
    SINE = 10
    COSINE = 11
    PLACE = 12               # which place of a one-hot group is hot; see `place`
    HASH = 13                # the same for feature hashing
    PICK = 14                # from such a place to one column of the group
    # change it by `other`
    SINCE = 15
    PRODUCT = 16
    RATIO = 17
    WEIGHTED_SUM = 18
    # write to column `column` of out
    STORE = 19
    ZERO = 20                # `count` columns from there
    SCATTER = 21             # add the target's place to the group that begins there

cdef struct Step:
    int code
    int target
    int other
    Py_ssize_t column
    Py_ssize_t count             # of parameters, or of columns
    const double* parameters     # into the program's pool


cdef inline void impute(double* values, Py_ssize_t n, double fill) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        values[i] = fill if isnan(values[i]) else values[i]


cdef inline void clip(double* values, Py_ssize_t n, double low, double high) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        values[i] = low if values[i] < low else values[i]      # false for NaN, which so passes
        values[i] = high if values[i] > high else values[i]


cdef inline void standardize(double* values, Py_ssize_t n, double mean, double scale) noexcept nogil:
    """Divides, as scikit-learn does; a product with 1/scale would differ in the last bit."""
    cdef Py_ssize_t i
    for i in range(n):
        values[i] = (values[i] - mean) / scale


cdef inline void min_max(double* values, Py_ssize_t n, double scale, double shift) noexcept nogil:
    """Multiplies and adds, as scikit-learn does."""
    cdef Py_ssize_t i
    for i in range(n):
        values[i] = values[i] * scale + shift


cdef inline Py_ssize_t count_up_to(const double* sorted_values, Py_ssize_t count, double x) noexcept nogil:
    """How many of the ascending values are <= x. Halves without branches, which no processor could foretell."""
    cdef Py_ssize_t first = 0, half
    if count == 0:
        return 0
    while count > 1:
        half = count >> 1
        first += half & -<Py_ssize_t>(sorted_values[first + half - 1] <= x)
        count -= half
    return first + <Py_ssize_t>(sorted_values[first] <= x)


cdef inline void bucketize(double* values, Py_ssize_t n, const double* edges, Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        if not isnan(values[i]):
            values[i] = <double>count_up_to(edges, count, values[i])


cdef inline Py_ssize_t find(const double* sorted_values, Py_ssize_t count, double x) noexcept nogil:
    """Where x stands among the ascending values, or -1."""
    cdef Py_ssize_t up_to = count_up_to(sorted_values, count, x)
    return up_to - 1 if up_to > 0 and sorted_values[up_to - 1] == x else -1


cdef inline void ordinal(
    double* values, Py_ssize_t n, double unknown, const double* categories, Py_ssize_t count
) noexcept nogil:
    cdef Py_ssize_t i, found
    for i in range(n):
        if not isnan(values[i]):
            found = find(categories, count, values[i])
            values[i] = <double>found if found >= 0 else unknown


# Turns: the sine and cosine of a circle's share ----------------------------------------------------------------------

cdef inline double wave(double x) noexcept nogil:
    """sin(2 pi x) for x from -1/4 to 1/4, within 4e-16 and exactly 1 at the end: the series to x**21."""
    cdef double square = x * x
    cdef double total = 0.0011309237482517963
    total = total * square - 0.012031585942120627
    total = total * square + 0.10422916220813984
    total = total * square - 0.7181223017785006
    total = total * square + 3.819952584848282
    total = total * square - 15.09464257682299
    total = total * square + 42.058693944897655
    total = total * square - 76.70585975306139
    total = total * square + 81.60524927607506
    total = total * square - 41.34170224039976
    total = total * square + 6.283185307179586
    return x * total


cdef inline void parts_of_turns(double* values, Py_ssize_t n, double offset, double period) noexcept nogil:
    """(x - offset) / period less the nearest whole number: -1/2 to 1/2, without rounding; NaN for infinity.

    Adding and taking away 1.5 * 2**52 rounds to a whole number up to 2**51 turns; what is beyond has no fraction worth
    the name and counts as 2**51. Loops without branches, so that compilers take several values at once.
    """
    cdef Py_ssize_t i
    cdef double turns
    for i in range(n):
        turns = (values[i] - offset) / period
        values[i] = turns + (turns - turns)
    clip(values, n, -2251799813685248.0, 2251799813685248.0)
    for i in range(n):
        values[i] = values[i] - ((values[i] + 6755399441055744.0) - 6755399441055744.0)


cdef inline void sine(double* values, Py_ssize_t n, double offset, double period) noexcept nogil:
    cdef Py_ssize_t i
    cdef double size, rest
    parts_of_turns(values, n, offset, period)
    for i in range(n):
        size = fabs(values[i])
        rest = 0.5 - size            # from the other side of the crest, where the sine is the same
        values[i] = copysign(wave(size if size < rest else rest), values[i])


cdef inline void cosine(double* values, Py_ssize_t n, double offset, double period) noexcept nogil:
    cdef Py_ssize_t i
    parts_of_turns(values, n, offset, period)
    for i in range(n):
        values[i] = wave(0.25 - fabs(values[i]))


# Groups of columns: where in it a value puts a 1 or -1 ---------------------------------------------------------------

cdef inline void place(double* values, Py_ssize_t n, const double* p, Py_ssize_t count) noexcept nogil:
    """From a category to its place in a one-hot group, from 1 on; 0 for none.

    Parameters: columns of the group, place of the unknown, place of the missing, categories, their places.
    """
    cdef const double* categories = p + 3
    cdef Py_ssize_t i, found, half = (count - 3) >> 1
    for i in range(n):
        if isnan(values[i]):
            values[i] = p[2]
        else:
            found = find(categories, half, values[i])
            values[i] = categories[half + found] if found >= 0 else p[1]


cdef inline uint32_t rotate(uint32_t x, int bits) noexcept nogil:
    return (x << bits) | (x >> (32 - bits))


cdef inline uint32_t scrambled(uint32_t block) noexcept nogil:
    return rotate(block * <uint32_t>0xCC9E2D51, 15) * <uint32_t>0x1B873593


cdef inline uint32_t murmur3(const uint8_t* data, Py_ssize_t size, uint32_t seed) noexcept nogil:
    """MurmurHash3_x86_32 of Austin Appleby, on a little-endian machine."""
    cdef uint32_t state = seed, block = 0
    cdef Py_ssize_t i = 0, k
    while i + 4 <= size:
        memcpy(&block, data + i, 4)
        state = rotate(state ^ scrambled(block), 13) * 5 + <uint32_t>0xE6546B64
        i += 4
    block = 0
    for k in range(size - 1, i - 1, -1):
        block = (block << 8) | data[k]
    state ^= scrambled(block) ^ <uint32_t>size       # nothing left scrambles to 0
    state = (state ^ (state >> 16)) * <uint32_t>0x85EBCA6B
    state = (state ^ (state >> 13)) * <uint32_t>0xC2B2AE35
    return state ^ (state >> 16)


cdef inline void hashed(double* values, Py_ssize_t n, const double* p) noexcept nogil:
    """From a value to its bucket, from 1 on, negative where the sign says so; 0 for none.

    Parameters: columns of the group, whether there are signs, the seed.
    """
    cdef uint32_t buckets = <uint32_t>p[0], seed = <uint32_t>p[2], size
    cdef Py_ssize_t i
    cdef double value, sign
    cdef int32_t hash
    for i in range(n):
        if isnan(values[i]):
            values[i] = 0
            continue
        value = values[i] + 0.0      # -0.0 becomes 0.0
        hash = <int32_t>murmur3(<const uint8_t*>&value, 8, seed)
        size = 0 - <uint32_t>hash if hash < 0 else <uint32_t>hash
        sign = -1.0 if hash < 0 and p[1] != 0 else 1.0
        values[i] = sign * <double>(size % buckets + 1)


cdef inline void pick(double* values, Py_ssize_t n, double chosen) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        values[i] = (1.0 if values[i] == chosen else 0.0) - (1.0 if values[i] == -chosen else 0.0)


# Two columns ----------------------------------------------------------------------------------------------------------

cdef inline void since(double* values, const double* now, Py_ssize_t n, const double* p) noexcept nogil:
    cdef Py_ssize_t i
    cdef double then_ms = p[0], now_ms = p[1], unit_ms = p[2]
    for i in range(n):
        values[i] = (now[i] * now_ms - values[i] * then_ms) / unit_ms


cdef inline void multiply(double* values, const double* other, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        values[i] = values[i] * other[i]


cdef inline void divide(double* values, const double* other, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        values[i] = values[i] / (other[i] if other[i] != 0 else NAN)


cdef inline void weigh(double* values, const double* other, Py_ssize_t n, double a, double b) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        values[i] = values[i] * a + other[i] * b
