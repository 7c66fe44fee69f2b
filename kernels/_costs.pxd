"""What a run costs by its rows: t(n) = a + b n, learnt from the runs themselves.

Weighted least squares with forgetting. A run of n rows weighs 1 / (n + 1)^2, so that errors count in proportion to
what a run takes and one-row runs are not drowned by large ones. A run counts half as much 44 runs later. A curve
measured at warm-up stays in, as a prior that weighs a quarter of a run a point and is not forgotten: it keeps the
slope known where callers send one size only. Without any curve a lone size tells a slope and no fixed cost.

- A run that took more than CLIP times what was predicted counts as having taken that: one stall moves the line by
  a few per cent, a lasting change within some tens of runs.
- A run that took less than a CLIP-th of it is no stall: what was known is wrong (a cold start, say) and mostly
  forgotten, the curve as well.
- a and b are never negative.

Learning costs about 40 ns, predicting 1. Threads that share a Cost hold a lock for both. A zeroed one is blank.
"""

from libc.stdint cimport int64_t

cdef extern from *:
    """
    #define KEEP (63.0 / 64)        /* of the weight of earlier runs, at each run */
    #define KEEP_LITTLE 0.25        /* the same where they were wrong */
    #define SEED_WEIGHT 0.25        /* of a point of the warm-up curve, in runs */
    #define MOST_DOUBTS 8           /* times that the curve is forgotten so, or nothing would be left of it */
    #define CLIP 4.0
    #define RIDGE 1e-3              /* towards a = 0; tells only where sizes hardly differ */
    #define ERROR_SHARE (1.0 / 32)
    """
    const int MOST_DOUBTS
    const double KEEP, KEEP_LITTLE, SEED_WEIGHT, CLIP, RIDGE, ERROR_SHARE

cdef struct Sums:                    # of weighted runs: what least squares needs of them
    double one
    double rows
    double rows2
    double ns
    double rows_ns

cdef struct Cost:
    double fixed_ns                  # a
    double row_ns                    # b
    double error                     # running mean of |predicted - taken| / taken
    int64_t runs                     # learnt from
    int doubts                       # how often the curve was mostly forgotten
    int64_t known                    # runs and points of the curve; 0: nothing is known
    Sums own
    Sums prior


cdef inline void add_run(Sums* sums, double weight, double rows, double ns) noexcept nogil:
    weight /= (rows + 1) * (rows + 1)
    sums.one += weight
    sums.rows += weight * rows
    sums.rows2 += weight * rows * rows
    sums.ns += weight * ns
    sums.rows_ns += weight * rows * ns


cdef inline void keep_of(Sums* sums, double share) noexcept nogil:
    sums.one *= share
    sums.rows *= share
    sums.rows2 *= share
    sums.ns *= share
    sums.rows_ns *= share


cdef inline void cost_solve(Cost* cost) noexcept nogil:
    """The least squares line through both sums with a >= 0 and b >= 0."""
    cdef double one = (cost.own.one + cost.prior.one) * (1 + RIDGE)
    cdef double rows = cost.own.rows + cost.prior.rows
    cdef double rows2 = cost.own.rows2 + cost.prior.rows2
    cdef double ns = cost.own.ns + cost.prior.ns
    cdef double rows_ns = cost.own.rows_ns + cost.prior.rows_ns
    cdef double determinant = one * rows2 - rows * rows      # > 0, by Cauchy and Schwarz and the ridge
    cost.fixed_ns = (rows2 * ns - rows * rows_ns) / determinant
    cost.row_ns = (one * rows_ns - rows * ns) / determinant
    if cost.fixed_ns < 0:
        cost.fixed_ns = 0
        cost.row_ns = rows_ns / rows2
    elif cost.row_ns < 0:
        cost.fixed_ns = ns / one
        cost.row_ns = 0


cdef inline int64_t predict_ns(const Cost* cost, int64_t rows) noexcept nogil:
    """What a run of `rows` will take, at least 1 ns; 0 where nothing is known."""
    cdef double ns = cost.fixed_ns + cost.row_ns * <double>rows
    if cost.known == 0:
        return 0
    return <int64_t>(1 if ns < 1 else 1e18 if ns > 1e18 else ns)


cdef inline void cost_seed(Cost* cost, int64_t rows, int64_t ns) noexcept nogil:
    """A point of the warm-up curve: a run of `rows` took `ns`."""
    if rows < 1 or ns < 0:
        return
    cost.known += 1
    add_run(&cost.prior, SEED_WEIGHT, <double>rows, <double>ns)
    cost_solve(cost)


cdef inline void cost_learn(Cost* cost, int64_t rows, int64_t ns) noexcept nogil:
    """A run of `rows` took `ns`. Fewer rows than one, or a clock that went back, teach nothing."""
    cdef double taken = <double>ns
    cdef double predicted, error
    if rows < 1 or ns < 0:
        return
    if cost.known:
        predicted = <double>predict_ns(cost, rows)
        error = abs(predicted - taken) / (taken if taken > 1 else 1)
        cost.error += (error - cost.error) * (ERROR_SHARE if cost.runs else 1)
        if taken > CLIP * predicted:
            taken = CLIP * predicted
        if CLIP * taken < predicted:
            keep_of(&cost.own, KEEP_LITTLE)
            if cost.doubts < MOST_DOUBTS:
                cost.doubts += 1
                keep_of(&cost.prior, KEEP_LITTLE)
        else:
            keep_of(&cost.own, KEEP)
    cost.runs += 1
    cost.known += 1
    add_run(&cost.own, 1, <double>rows, taken)
    cost_solve(cost)
