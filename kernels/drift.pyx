"""Drift: counting a batch into fixed bins, and the distances between two samples or two sets of counts.

Counts are integers over bins that never move, so what many workers and windows counted adds up exactly. Rules:

- bin `i` of a column with ascending edges `e` holds `e[i-1] < x <= e[i]` (a value on an edge goes left); one more
  counter holds NaN. A bin is the number of edges below the value, so edges in a wrong order give wrong bins, never a
  wrong address.
- the Smirnov distance is found in whole numbers, in units of 1/lcm(n, m), so ties and equal sizes cost no rounding.
  Values are first counted into equal-width buckets; only buckets that could hold the largest gap are sorted (radix sort
  of the float's bits) and merged. Where all values share one bucket this is a plain sort and merge.
- its p-value is exact up to 10,000 values a sample, asymptotic above, as `scipy.stats.ks_2samp` decides. One
  difference: where scipy's exact sum comes out above 1 by rounding (true value 1 or nearly) it warns and falls back to
  the asymptote; here it stays 1.

Cost: about 4 ns a counted value at 19 edges, 0.2 ns for each edge more; 0.1 to 0.3 ms for 10,000 against 10,000.
The GIL is released, except for batches so small that handing it over would cost more than counting. What numbers mean
an alarm is `monitoring`'s business.
"""

from libc.float cimport DBL_MIN
from libc.math cimport INFINITY, M_PI, NAN, exp, fabs, isfinite, isnan, log, log1p, sqrt
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from math import gcd

cdef Py_ssize_t EXACT_UP_TO = 10_000  # the larger sample up to which the p-value is exact; scipy calls it MAX_AUTO_N
cdef Py_ssize_t LARGEST_SAMPLE = 0x7FFFFFFF   # keeps n * m / gcd(n, m) within 63 bits
cdef Py_ssize_t SMALL_BATCH = 4096  # values; counting them takes about 15 us
cdef int64_t HAS_NAN = -1
cdef int64_t NO_MEMORY = -2

cdef enum:
    DIGIT_BITS = 11
    DIGITS = 2048              # 2 ** DIGIT_BITS
    PASSES = 6                 # enough digits for 64 bits
    MOST_BUCKETS = 8192


# --- counting ---------------------------------------------------------------------------------------------------------


def bin_counts(
    const float[:, ::1] x,
    const float[::1] edges,
    const int32_t[::1] offsets,
    int64_t[::1] counts,
):
    cdef Py_ssize_t rows = x.shape[0], columns = x.shape[1]
    check_layout(columns, edges.shape[0], offsets, counts.shape[0])
    if rows == 0 or columns == 0:
        return
    cdef const float* first_edge = &edges[0] if edges.shape[0] else NULL
    if rows * columns <= SMALL_BATCH:
        count_rows(&x[0, 0], rows, columns, first_edge, &offsets[0], &counts[0])
        return
    with nogil:
        count_rows(&x[0, 0], rows, columns, first_edge, &offsets[0], &counts[0])


cdef int check_layout(
    Py_ssize_t columns, Py_ssize_t edges, const int32_t[::1] offsets, Py_ssize_t counts,
) except -1:
    """Refuse offsets or counters that do not fit; everything below trusts them."""
    cdef Py_ssize_t j
    if offsets.shape[0] != columns + 1:
        raise ValueError(f"{columns} columns need {columns + 1} offsets, got {offsets.shape[0]}")
    if offsets[0] != 0 or offsets[columns] != edges:
        raise ValueError(f"offsets must run from 0 to {edges}, the number of edges")
    for j in range(columns):
        if offsets[j + 1] < offsets[j]:
            raise ValueError(f"offsets must not fall, but do at column {j}")
    if counts != edges + 2 * columns:
        raise ValueError(f"{edges} edges over {columns} columns need {edges + 2 * columns} counters, got {counts}")
    return 0


cdef void count_rows(
    const float* x, Py_ssize_t rows, Py_ssize_t columns, const float* edges, const int32_t* offsets, int64_t* counts,
) noexcept nogil:
    cdef Py_ssize_t _row, j
    cdef int32_t first, size
    for _row in range(rows):
        for j in range(columns):
            first = offsets[j]
            size = offsets[j + 1] - first
            counts[first + 2 * j + bin_of(x[j], edges + first, size)] += 1
        x += columns


cdef inline int32_t bin_of(float value, const float* edges, int32_t size) noexcept nogil:
    """The number of edges below the value, or `size + 1` for NaN.

    Compared with every edge: no branch to guess wrong, several edges an instruction. A binary search waits for each of
    its loads in turn and was 2.5 times slower at 19 edges.
    """
    cdef int32_t edge, below = (size + 1) * (value != value)
    for edge in range(size):
        below += edges[edge] < value
    return below


# --- Smirnov's distance -----------------------------------------------------------------------------------------------


def ks_2samp(const double[::1] a, const double[::1] b):
    cdef Py_ssize_t n = a.shape[0], m = b.shape[0]
    if n == 0 or m == 0:
        raise ValueError("a sample is empty; both must hold at least one value")
    if n > LARGEST_SAMPLE or m > LARGEST_SAMPLE:
        raise ValueError(f"a sample holds more than {LARGEST_SAMPLE} values")
    cdef int64_t common = gcd(n, m)
    cdef int64_t gap
    cdef double p
    with nogil:
        gap = largest_gap(&a[0], n, m // common, &b[0], m, n // common)
    if gap == HAS_NAN:
        raise ValueError("a sample holds NaN; drop missing values first")
    if gap == NO_MEMORY:
        raise MemoryError
    cdef double distance = <double>gap / <double>(n // common * m)
    if max(n, m) > EXACT_UP_TO:
        return distance, ks_asymptotic(distance, n, m)
    with nogil:
        p = exact_equal(n, gap) if n == m else exact_unequal(min(n, m), max(n, m), common, gap)
    if p < 0:
        raise MemoryError
    return distance, min(p, 1.0)


def ks_asymptotic(double distance, Py_ssize_t n, Py_ssize_t m):
    if n <= 0 or m <= 0:
        raise ValueError("a sample is empty; both must hold at least one value")
    from scipy.stats import kstwo  # a second to import: only for who asks

    cdef double size = <double>n * <double>m / (<double>n + <double>m)
    return float(min(max(kstwo.sf(distance, round(size)), 0.0), 1.0))


def ks_limit(double distance, Py_ssize_t n, Py_ssize_t m):
    if n <= 0 or m <= 0:
        raise ValueError("a sample is empty; both must hold at least one value")
    return kolmogorov(distance * sqrt(<double>n * <double>m / (<double>n + <double>m)))


cdef struct Buckets:
    double low        # the smallest value
    double scale      # buckets per unit of value; 0 puts all in one bucket
    Py_ssize_t size
    int32_t* a        # values of either sample in each bucket
    int32_t* b
    uint8_t* live     # the bucket may hold the largest gap


cdef struct Sides:
    int64_t a         # what one value of a adds to the gap: m / gcd
    int64_t b         # what one value of b takes from it: n / gcd


cdef int64_t largest_gap(
    const double* a, Py_ssize_t n, int64_t step_a, const double* b, Py_ssize_t m, int64_t step_b,
) noexcept nogil:
    """The largest |F_a - F_b| in units of 1/lcm(n, m), or HAS_NAN or NO_MEMORY."""
    cdef Sides step
    cdef Buckets buckets
    cdef int64_t best
    cdef double low = INFINITY, high = -INFINITY
    step.a = step_a
    step.b = step_b
    if not (widen(a, n, &low, &high) and widen(b, m, &low, &high)):
        return HAS_NAN
    if not open_buckets(&buckets, low, high, n + m):
        return NO_MEMORY
    fill(&buckets, a, n, buckets.a)
    fill(&buckets, b, m, buckets.b)
    best = mark_live(&buckets, step)
    best = refine(&buckets, a, n, b, m, step, best)
    free(buckets.a)
    return best


cdef inline bint widen(const double* x, Py_ssize_t n, double* low, double* high) noexcept nogil:
    """Widen the range to hold all of `x`; False if there is a NaN."""
    cdef double least = low[0], most = high[0]
    cdef Py_ssize_t i
    cdef int bad = 0
    for i in range(n):
        least = x[i] if x[i] < least else least
        most = x[i] if x[i] > most else most
        bad |= x[i] != x[i]
    low[0] = least
    high[0] = most
    return not bad


cdef inline bint open_buckets(Buckets* buckets, double low, double high, Py_ssize_t values) noexcept nogil:
    cdef Py_ssize_t size = 1
    while size * 4 < values and size < MOST_BUCKETS:
        size *= 2
    buckets.low = low
    buckets.scale = size / (high - low)
    if not (isfinite(high - low) and isfinite(buckets.scale)):
        buckets.scale = 0
        buckets.low = 0
    buckets.size = size + 1                       # the largest value lands at `size`, rounding included
    buckets.a = <int32_t*>calloc(buckets.size, 2 * sizeof(int32_t) + 1)
    if buckets.a == NULL:
        return False
    buckets.b = buckets.a + buckets.size
    buckets.live = <uint8_t*>(buckets.b + buckets.size)
    return True


cdef inline int32_t bucket_of(const Buckets* buckets, double value) noexcept nogil:
    """Never falls as the value grows: subtraction, multiplication and truncation all keep order."""
    return <int32_t>((value - buckets.low) * buckets.scale)


cdef inline void fill(const Buckets* buckets, const double* x, Py_ssize_t n, int32_t* counts) noexcept nogil:
    cdef Py_ssize_t i
    if buckets.scale == 0:
        counts[0] = <int32_t>n                    # infinities times 0 would be NaN
        return
    for i in range(n):
        counts[bucket_of(buckets, x[i])] += 1


cdef inline int64_t mark_live(Buckets* buckets, Sides step) noexcept nogil:
    """The largest gap at the buckets' borders; inside a bucket that cannot beat it nobody needs to look."""
    cdef int64_t best = 0, gap = 0, up, down
    cdef Py_ssize_t i
    for i in range(buckets.size):
        gap += buckets.a[i] * step.a - buckets.b[i] * step.b
        best = max(best, gap, -gap)
    gap = 0
    for i in range(buckets.size):
        up = buckets.a[i] * step.a
        down = buckets.b[i] * step.b
        buckets.live[i] = gap + up > best or down - gap > best
        gap += up - down
    return best


cdef inline int64_t refine(
    const Buckets* buckets, const double* a, Py_ssize_t n, const double* b, Py_ssize_t m, Sides step, int64_t best,
) noexcept nogil:
    """The largest gap, after sorting and merging what lies in live buckets."""
    cdef Py_ssize_t live_a = 0, live_b = 0, i
    for i in range(buckets.size):
        live_a += buckets.live[i] * buckets.a[i]
        live_b += buckets.live[i] * buckets.b[i]
    if live_a + live_b == 0:
        return best
    cdef uint64_t* keys = <uint64_t*>malloc((live_a + live_b + max(live_a, live_b)) * sizeof(uint64_t))
    cdef uint32_t* digits = <uint32_t*>malloc(PASSES * DIGITS * sizeof(uint32_t))
    if keys != NULL and digits != NULL:
        gather(buckets, a, n, keys)
        gather(buckets, b, m, keys + live_a)
        radix_sort(keys, keys + live_a + live_b, live_a, digits)
        radix_sort(keys + live_a, keys + live_a + live_b, live_b, digits)
        best = merge_buckets(buckets, keys, keys + live_a, step, best)
    else:
        best = NO_MEMORY
    free(keys)
    free(digits)
    return best


cdef inline uint64_t key_of(double value) noexcept nogil:
    """The float's bits, turned so that unsigned order is the order of the values; -0.0 and 0.0 are one."""
    cdef uint64_t bits
    value += 0.0
    memcpy(&bits, &value, sizeof(bits))
    return bits ^ ((-(bits >> 63)) | (<uint64_t>1 << 63))


cdef inline void gather(const Buckets* buckets, const double* x, Py_ssize_t n, uint64_t* keys) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        if buckets.scale == 0 or buckets.live[bucket_of(buckets, x[i])]:
            keys[0] = key_of(x[i])
            keys += 1


cdef void radix_sort(uint64_t* keys, uint64_t* spare, Py_ssize_t n, uint32_t* digits) noexcept nogil:
    """Sort `keys`, least digit first (Knuth, TAOCP vol. 3, 5.2.5); a digit all keys share costs no pass."""
    cdef uint64_t* source = keys
    cdef uint64_t* target = spare
    cdef uint64_t* other
    cdef uint32_t* count
    cdef uint32_t seen, place
    cdef Py_ssize_t i
    cdef int p, shift
    if n < 2:
        return
    memset(digits, 0, PASSES * DIGITS * sizeof(uint32_t))
    for i in range(n):
        for p in range(PASSES):
            digits[p * DIGITS + ((keys[i] >> (p * DIGIT_BITS)) & (DIGITS - 1))] += 1
    for p in range(PASSES):
        shift = p * DIGIT_BITS
        count = digits + p * DIGITS
        if count[(keys[0] >> shift) & (DIGITS - 1)] == n:
            continue
        place = 0
        for i in range(DIGITS):
            seen = count[i]
            count[i] = place
            place += seen
        for i in range(n):
            other = target + count[(source[i] >> shift) & (DIGITS - 1)]
            other[0] = source[i]
            count[(source[i] >> shift) & (DIGITS - 1)] += 1
        other = source
        source = target
        target = other
    if source != keys:
        memcpy(keys, source, n * sizeof(uint64_t))


cdef inline int64_t merge_buckets(
    const Buckets* buckets, const uint64_t* a, const uint64_t* b, Sides step, int64_t best,
) noexcept nogil:
    """Walk both sorted samples through each live bucket, starting from the gap at its left border."""
    cdef int64_t gap = 0
    cdef Py_ssize_t i
    for i in range(buckets.size):
        if buckets.live[i]:
            best = merge(a, buckets.a[i], b, buckets.b[i], step, gap, best)
            a += buckets.a[i]
            b += buckets.b[i]
        gap += buckets.a[i] * step.a - buckets.b[i] * step.b
    return best


cdef inline int64_t merge(
    const uint64_t* a, Py_ssize_t n, const uint64_t* b, Py_ssize_t m, Sides step, int64_t gap, int64_t best,
) noexcept nogil:
    """The gap counts only where all equal values of both samples have been passed."""
    cdef Py_ssize_t i = 0, j = 0
    cdef uint64_t value
    while i < n or j < m:
        value = a[i] if j == m or (i < n and a[i] < b[j]) else b[j]
        while i < n and a[i] == value:
            gap += step.a
            i += 1
        while j < m and b[j] == value:
            gap -= step.b
            j += 1
        best = max(best, gap, -gap)
    return best


# --- its p-value ------------------------------------------------------------------------------------------------------


cdef double exact_equal(Py_ssize_t n, int64_t h) noexcept nogil:
    """P(D >= h/n) for two samples of n: Gnedenko and Korolyuk (1951), in Hodges (1958), section 4.

    2 (C(2n, n-h) - C(2n, n-2h) + ...) / C(2n, n) as 2 A0 (1 - A1 (1 - A2 ...)), where A_k is the product over j < h of
    (n - kh - j) / (n + kh + j + 1), at most exp(-(2k + 1) h^2 / (n + 1/2)). So A1 ... A_k is at most
    exp(-((k + 1)^2 - 1) h^2 / (n + 1/2)), and terms below exp(-44) = 8e-20 are left out: O(sqrt(n)) steps.
    """
    cdef double series = 0, term, x
    cdef int64_t k, j
    if h == 0:
        return 1.0
    k = <int64_t>min(<double>(n // h), sqrt(1 + 44 * (n + 0.5) / (<double>h * h)))
    while k >= 0:
        term = 1
        for j in range(h):
            x = <double>(k * h + j)
            term *= (n - x) / (n + x + 1)
        series = term * (1 - series)
        k -= 1
    return 2 * series


cdef double exact_unequal(Py_ssize_t n, Py_ssize_t m, int64_t common, int64_t h) noexcept nogil:
    """P(D >= h/lcm(n, m)) for n <= m by the lattice of Hodges (1958), section 2; -1 if out of memory.

    Let P(i, j) be the share of paths from (0, 0) to (i, j) that touched the border |i m - j n| >= h gcd. It is 1 on and
    beyond the border, and inside (i P(i-1, j) + j P(i, j-1)) / (i + j), since the last step came from the left with
    probability i / (i + j). Diagonals i + j = s are walked in order; along one no cell waits for another.
    """
    cdef double* before = <double*>malloc(2 * (n + 3) * sizeof(double))
    if before == NULL:
        return -1.0
    cdef double* now = before + n + 3
    cdef double* swap
    cdef double* memory = before
    cdef int64_t step_n = n // common, width = n // common + m // common
    cdef int64_t s, low, high
    cdef double p = 0.0 if h > 0 else 1.0
    before[1] = p                                 # cell i is kept at i + 1, so that i - 1 needs no check
    before[0] = before[2] = 1.0
    for s in range(1, n + m + 1):
        low = max(0, s - m, floor_div(s * step_n - h, width) + 1)
        high = min(n, s, -floor_div(-(s * step_n + h), width) - 1)
        if low > high:                            # the border closes: every path touched it
            now[0] = now[n + 1] = 1.0
            p = 1.0
            break
        diagonal(now + 1, before + 1, low, high, s)
        now[low] = now[high + 2] = 1.0
        p = now[high + 1]
        swap = before
        before = now
        now = swap
    free(memory)
    return p


cdef inline double kolmogorov(double x) noexcept nogil:
    """P(K > x) by Kolmogorov's (1933) two series, each where it converges fast: four terms leave less than 1e-18."""
    cdef double total = 0
    cdef int k
    if not x > 0:
        return 1.0
    if x < 1.18:
        for k in range(4):
            total += exp(-(2 * k + 1) * (2 * k + 1) * M_PI * M_PI / (8 * x * x))
        return max(0.0, 1 - sqrt(2 * M_PI) / x * total)
    for k in range(4, 0, -1):
        total = exp(-2 * x * x * (2 * k - 1)) * (1 - total)
    return 2 * total


cdef inline int64_t floor_div(int64_t a, int64_t b) noexcept nogil:
    """a / b rounded down, for b > 0; C rounds towards zero."""
    return a // b - (a % b < 0)


cdef inline void diagonal(double* now, const double* before, int64_t low, int64_t high, int64_t s) noexcept nogil:
    cdef int64_t i
    cdef double x = <double>low, total = <double>s
    for i in range(low, high + 1):
        now[i] = (before[i - 1] * x + before[i] * (total - x)) / total
        x += 1


# --- distances between counts and shares ------------------------------------------------------------------------------


def ks_counts(const int64_t[::1] reference, const int64_t[::1] current):
    cdef Py_ssize_t i, bins = reference.shape[0]
    cdef int64_t n = 0, m = 0, seen_n = 0, seen_m = 0
    cdef double best = 0
    same_length(bins, current.shape[0])
    for i in range(bins):
        if reference[i] < 0 or current[i] < 0:
            raise ValueError(f"bin {i} has a negative count")
        n += reference[i]
        m += current[i]
    if n == 0 or m == 0:
        raise ValueError("one side has no counts; a distance needs both")
    for i in range(bins):
        seen_n += reference[i]
        seen_m += current[i]
        best = max(best, fabs(<double>seen_n / <double>n - <double>seen_m / <double>m))
    return best


def kl_divergence(const double[::1] p, const double[::1] q):
    cdef Py_ssize_t i
    cdef double total = 0
    same_length(p.shape[0], q.shape[0])
    for i in range(p.shape[0]):
        total += relative_entropy(p[i], q[i])
    return total


def psi(const double[::1] p, const double[::1] q):
    cdef Py_ssize_t i
    cdef double total = 0
    same_length(p.shape[0], q.shape[0])
    for i in range(p.shape[0]):
        if p[i] == 0 and q[i] == 0:
            continue
        total += (q[i] - p[i]) * log(q[i] / p[i])
    return total


cdef inline int same_length(Py_ssize_t n, Py_ssize_t m) except -1:
    if n != m:
        raise ValueError(f"both sides need the same bins, got {n} and {m}")
    return 0


cdef inline double relative_entropy(double p, double q) noexcept nogil:
    """p ln(p / q), 0 at p = 0, infinite where q is 0 or either is negative; near 1 without cancellation."""
    cdef double ratio
    if isnan(p) or isnan(q):
        return NAN
    if p == 0 and q >= 0:
        return 0
    if p <= 0 or q <= 0:
        return INFINITY
    ratio = p / q
    if 0.5 < ratio < 2:
        return p * log1p((p - q) / q)
    if DBL_MIN < ratio < INFINITY:
        return p * log(ratio)
    return p * (log(p) - log(q))
