"""Feature transforms of one version, compiled to a list and run over a batch in one pass.

A program is data: for each column its operations in order, with their fitted numbers in one pool. A column's values
are taken a block at a time into float64, go through all its operations, and are rounded to float32 once, at the end. So
training (`run_exact`, without that rounding) and serving (`run`) do the same arithmetic. Missing (NaN) stays missing
in every operation but impute. Nothing changes after construction: one program serves any number of threads.
Cost goal: 3 ns a value for impute, clip and standardize together.

Operations now keep the width: `n_outputs` equals `n_inputs`. What changes it later (one-hot, hashing, ratios) only adds
operations; callers already size `out` by `n_outputs`.
"""

cimport cython
from libc.math cimport isnan, log1p
from libc.stdlib cimport calloc, free

from collections.abc import Sequence

Operation = tuple[str, int, Sequence[float]]


cdef enum:
    BLOCK = 256            # values of a column at a time: 2 kB, well inside the first cache
    MAX_INDEX = 1 << 24    # an index above is not exact in float32

cdef Py_ssize_t SMALL_BATCH = 4096   # values; handing the GIL over would cost more than transforming fewer

cdef enum Code:
    IMPUTE = 0
    CLIP = 1
    LOG1P = 2
    STANDARDIZE = 3
    BUCKETIZE = 4
    ORDINAL = 5

cdef dict CODES = {
    "impute": IMPUTE, "clip": CLIP, "log1p": LOG1P,
    "standardize": STANDARDIZE, "bucketize": BUCKETIZE, "ordinal": ORDINAL,
}

ctypedef fused Real:
    float
    double


# One operation over one block -------------------------------------------------------------------------------------

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


cdef inline Py_ssize_t count_up_to(const double* sorted_values, Py_ssize_t count, double x) noexcept nogil:
    """How many of the ascending values are <= x."""
    cdef Py_ssize_t first = 0, half
    while count > 0:
        half = count >> 1
        if sorted_values[first + half] <= x:
            first += half + 1
            count -= half + 1
        else:
            count = half
    return first


cdef inline void bucketize(double* values, Py_ssize_t n, const double* edges, Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        if not isnan(values[i]):
            values[i] = <double>count_up_to(edges, count, values[i])


cdef inline void ordinal(
    double* values, Py_ssize_t n, double unknown, const double* categories, Py_ssize_t count
) noexcept nogil:
    cdef Py_ssize_t i, up_to
    for i in range(n):
        if not isnan(values[i]):
            up_to = count_up_to(categories, count, values[i])
            values[i] = <double>(up_to - 1) if up_to > 0 and categories[up_to - 1] == values[i] else unknown


cdef inline void apply(const Step* step, double* values, Py_ssize_t n) noexcept nogil:
    cdef const double* p = step.parameters
    cdef Py_ssize_t i
    if step.code == IMPUTE:
        impute(values, n, p[0])
    elif step.code == CLIP:
        clip(values, n, p[0], p[1])
    elif step.code == LOG1P:
        for i in range(n):
            values[i] = log1p(values[i])
    elif step.code == STANDARDIZE:
        standardize(values, n, p[0], p[1])
    elif step.code == BUCKETIZE:
        bucketize(values, n, p, step.count)
    else:
        ordinal(values, n, p[0], p + 1, step.count - 1)


# Programs ---------------------------------------------------------------------------------------------------------

cdef bint ascending(list values):
    return all([a < b for a, b in zip(values, values[1:])]) and all([value == value for value in values])


cdef object complaint(int code, list p):
    """What is wrong with the parameters of an operation; None if nothing is."""
    cdef dict counts = {IMPUTE: 1, CLIP: 2, LOG1P: 0, STANDARDIZE: 2}
    if code in counts and len(p) != counts[code]:
        return f"takes {counts[code]} parameters, not {len(p)}"
    if code == CLIP and not p[0] <= p[1]:
        return f"has low {p[0]} above high {p[1]}"
    if code == STANDARDIZE and not (p[0] == p[0] and p[1] != 0 and p[1] == p[1]):
        return f"has mean {p[0]} and scale {p[1]}"
    if code == BUCKETIZE and not ascending(p):
        return "needs edges that ascend"
    if code == ORDINAL and (not p or not ascending(p[1:])):
        return "needs the value of the unknown, then categories that ascend"
    return f"has {len(p)} parameters; at most {MAX_INDEX} can be told apart in float32" if len(p) > MAX_INDEX else None


cdef tuple checked(Py_ssize_t n_columns, object name, Py_ssize_t column, object parameters):
    """The operation as (code, column, list of floats)."""
    if name not in CODES:
        raise ValueError(f"unknown operation {name!r}; known are {', '.join(CODES)}")
    if not 0 <= column < n_columns:
        raise ValueError(f"{name} is for column {column}, but there are {n_columns} columns")
    cdef list numbers = [float(parameter) for parameter in parameters]
    wrong = complaint(CODES[name], numbers)
    if wrong is not None:
        raise ValueError(f"{name} of column {column} {wrong}")
    return CODES[name], column, numbers


@cython.final
cdef class Program:
    def __cinit__(self, Py_ssize_t n_columns, operations):
        cdef list compiled = [checked(n_columns, name, column, p) for name, column, p in operations]
        if not 1 <= n_columns <= 0x7FFFFFFF:
            raise ValueError(f"a program runs over at least one column, not {n_columns}")
        self.n_inputs = self.n_outputs = n_columns
        self.starts = <Py_ssize_t*>calloc(<size_t>n_columns + 1, sizeof(Py_ssize_t))
        self.steps = <Step*>calloc(<size_t>len(compiled) + 1, sizeof(Step))
        self.pool = <double*>calloc(sum([len(p) for _, _, p in compiled]) + 1, sizeof(double))
        if self.starts == NULL or self.steps == NULL or self.pool == NULL:
            raise MemoryError
        self.fill(sorted(compiled, key=lambda operation: operation[1]))

    def __dealloc__(self):
        free(self.starts)
        free(self.steps)
        free(self.pool)

    cdef int fill(self, list operations) except -1:
        """Copy operations that are sorted by column; the sort is stable, so their order within one is kept."""
        cdef Py_ssize_t s = 0, used = 0
        for code, column, parameters in operations:
            self.steps[s].code = code
            self.steps[s].count = len(parameters)
            self.steps[s].parameters = self.pool + used
            for parameter in parameters:
                self.pool[used] = parameter
                used += 1
            s += 1
            self.starts[<Py_ssize_t>column + 1] = s
        for j in range(self.n_inputs):   # columns without operations end where the one before ends
            self.starts[j + 1] = max(self.starts[j + 1], self.starts[j])
        return 0

    def run(self, const float[:, ::1] x not None, float[:, ::1] out not None):
        self.check_shapes(x.shape[0], x.shape[1], out.shape[0], out.shape[1])
        if x.shape[0] * x.shape[1] > SMALL_BATCH:
            with nogil:
                pass_over(self, &x[0, 0], &out[0, 0], x.shape[0])
        elif x.shape[0] > 0:
            pass_over(self, &x[0, 0], &out[0, 0], x.shape[0])

    def run_exact(self, const double[:, ::1] x not None, double[:, ::1] out not None):
        self.check_shapes(x.shape[0], x.shape[1], out.shape[0], out.shape[1])
        if x.shape[0] > 0:
            with nogil:
                pass_over(self, &x[0, 0], &out[0, 0], x.shape[0])

    cdef int check_shapes(self, Py_ssize_t n, Py_ssize_t k, Py_ssize_t n_out, Py_ssize_t k_out) except -1:
        if k != self.n_inputs or n_out != n or k_out != self.n_outputs:
            raise ValueError(
                f"x is ({n}, {k}) and out ({n_out}, {k_out}); this program takes {self.n_inputs} columns "
                f"and gives {self.n_outputs}"
            )
        return 0

    cdef void run_rows(self, const float* x, float* out, Py_ssize_t n) noexcept nogil:
        """`run` over memory: [n, n_inputs] to [n, n_outputs]."""
        pass_over(self, x, out, n)


cdef void pass_over(Program program, const Real* x, Real* out, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t first = 0, j, rows
    while first < n:
        rows = min(<Py_ssize_t>BLOCK, n - first)
        for j in range(program.n_inputs):
            run_block(program, x + first * program.n_inputs + j, out + first * program.n_outputs + j, rows, j)
        first += rows


cdef inline void run_block(Program program, const Real* x, Real* out, Py_ssize_t n, Py_ssize_t j) noexcept nogil:
    """Up to BLOCK values of column j through its operations."""
    cdef double[BLOCK] values
    cdef Py_ssize_t i, s
    for i in range(n):
        values[i] = x[i * program.n_inputs]
    for s in range(program.starts[j], program.starts[j + 1]):
        apply(&program.steps[s], values, n)
    for i in range(n):
        out[i * program.n_outputs] = <Real>values[i]
