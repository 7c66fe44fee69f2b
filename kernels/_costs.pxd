"""What a run costs by its rows: t(n) = a + b n, learnt from the runs themselves.

Weighted least squares with forgetting. A run of n rows weighs 1 / (n + 1)^2, so that errors count in proportion to
what a run takes and one-row runs are not drowned by large ones. A run counts half as much 44 runs later. A curve
measured at warm-up stays in, as a prior that weighs a quarter of a run a point and is not forgotten: it keeps the
slope known where callers send one size only. Without any curve a lone size tells a slope and no fixed cost.

- A run that took more than CLIP times what was predicted counts as having taken that: one stall moves the line by
  a few per cent, a lasting change within some tens of runs.
- A run that took less than a CLIP-th of it is no stall: what was known is wrong (a slow spell that is over, say) and
  mostly forgotten; the curve only where it alone says as much too much, so that no number of slow spells wears it away.
- a and b are never negative.

Learning costs about 40 ns, predicting 1. Threads that share a Cost hold a lock for both. A zeroed one is blank.
"""

from libc.stdint cimport int64_t

cdef extern from *:
    """
    #define KEEP (63.0 / 64)        /* of the weight of earlier runs, at each run */
    #define KEEP_LITTLE 0.25        /* the same where they were wrong */
    #define SEED_WEIGHT 0.25        /* of a point of the warm-up curve, in runs */
    #define CLIP 4.0
    #define RIDGE 1e-3              /* towards a = 0; tells only where sizes hardly differ */
    #define ERROR_SHARE (1.0 / 32)
    """
    const double KEEP, KEEP_LITTLE, SEED_WEIGHT, CLIP, RIDGE, ERROR_SHARE

cdef struct Sums:                    # of weighted runs: what least squares needs of them
    double one
    double rows
    double rows2
    double ns
    double rows_ns

cdef struct Line:                    # a + b n
    double fixed_ns
    double row_ns

cdef struct Cost:
    double fixed_ns                  # a
    double row_ns                    # b
    double error                     # running mean of |predicted - taken| / taken
    int64_t runs                     # learnt from
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


cdef inline Line line_of(const Sums* sums) noexcept nogil:
    """The least squares line with a >= 0 and b >= 0."""
    cdef double one = sums.one * (1 + RIDGE)
    cdef double determinant = one * sums.rows2 - sums.rows * sums.rows   # > 0, by Cauchy and Schwarz and the ridge
    cdef Line line
    line.fixed_ns = (sums.rows2 * sums.ns - sums.rows * sums.rows_ns) / determinant
    line.row_ns = (one * sums.rows_ns - sums.rows * sums.ns) / determinant
    if line.fixed_ns < 0:
        line.fixed_ns = 0
        line.row_ns = sums.rows_ns / sums.rows2
    elif line.row_ns < 0:
        line.fixed_ns = sums.ns / one
        line.row_ns = 0
    return line


cdef inline void cost_solve(Cost* cost) noexcept nogil:
    """The line through both sums."""
    cdef Sums sums = cost.own
    cdef Line line
    sums.one += cost.prior.one
    sums.rows += cost.prior.rows
    sums.rows2 += cost.prior.rows2
    sums.ns += cost.prior.ns
    sums.rows_ns += cost.prior.rows_ns
    line = line_of(&sums)
    cost.fixed_ns, cost.row_ns = line.fixed_ns, line.row_ns


cdef inline void doubt(Cost* cost, double rows, double taken) noexcept nogil:
    """Mostly forget what said far more than a run of `rows` took: earlier runs, and the curve where it did itself."""
    cdef Line curve
    keep_of(&cost.own, KEEP_LITTLE)
    if cost.prior.one > 0:
        curve = line_of(&cost.prior)
        if CLIP * taken < curve.fixed_ns + curve.row_ns * rows:
            keep_of(&cost.prior, KEEP_LITTLE)


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
            doubt(cost, <double>rows, taken)
        else:
            keep_of(&cost.own, KEEP)
    cost.runs += 1
    cost.known += 1
    add_run(&cost.own, 1, <double>rows, taken)
    cost_solve(cost)
