"""Feature transforms of one version, compiled to a list of steps and run over a batch in one pass.

A program is data: operations over numbered columns, with their fitted numbers in one pool. Those of the batch come
first; an operation changes the column it names, or makes columns that get the next numbers; `outputs` says which become
the columns of the result. It is compiled in three steps, in Python, once:

1. a `_Draft` of values: each column of the batch, and what each operation makes of others;
2. the order: output by output, whatever it needs and is not there yet, so that what nobody asks for is never computed;
3. registers, taken at a value's first use and free again after its last. A value that is needed again is copied before
   an operation changes it.

A run takes a block of rows at a time through all steps, in float64, and rounds to float32 once, at the end. So training
(`run_exact`, without that rounding) and serving (`run`) do the same arithmetic; the steps are in `_transforms.pxd`.
Groups (one-hot, hashing) that become neighbouring outputs are written as zeros and then a one or two, whatever their
width. Nothing changes after construction and nothing is allocated by a run: one program serves any number of threads.
Cost goal: 3 ns a value for impute, clip and standardize together.
"""

cimport cython
from libc.stdlib cimport calloc, free
from libc.stdint cimport uint8_t
from libc.string cimport memcpy, memset

from penstock.kernels._transforms cimport (
    BUCKETIZE, CLIP, CLOCK, COPY, COSINE, HASH, IMPUTE, LOAD, LOG1P, MIN_MAX, ORDINAL, PICK, PLACE, PRODUCT, RATIO,
    SCATTER, SINCE, SINE, STANDARDIZE, STORE, WEIGHTED_SUM, ZERO, Step, bucketize, clip, cosine, divide, hashed, impute,
    log1p, min_max, multiply, murmur3, ordinal, pick, place, since, sine, standardize, weigh,
)

from collections.abc import Sequence

Operation = tuple[str, int | tuple[int, ...], Sequence[float]]

cdef enum:
    BLOCK = 128            # rows at a time, so that a register is 1 kB and some dozen lie in the first cache
    ROOM = 8192            # values in all registers of a block, 64 kB of the stack; more registers, fewer rows
    MAX_REGISTERS = 1024
    MAX_INDEX = 1 << 24    # an index above is not exact in float32
    MAX_GROUP = 1 << 16    # columns that one operation makes

cdef Py_ssize_t SMALL_BATCH = 4096   # values; handing the GIL over would cost more than transforming fewer

cdef dict CHANGES = {
    "impute": IMPUTE, "clip": CLIP, "log1p": LOG1P, "standardize": STANDARDIZE, "min_max": MIN_MAX,
    "bucketize": BUCKETIZE, "ordinal": ORDINAL,
}
cdef dict PAIRS = {"product": PRODUCT, "ratio": RATIO, "weighted_sum": WEIGHTED_SUM}
cdef tuple OTHERS = ("time_since", "cyclical", "one_hot", "hash")
cdef dict COUNTS = {
    "impute": 1, "clip": 2, "log1p": 0, "standardize": 2, "min_max": 2, "product": 0, "ratio": 0, "weighted_sum": 2,
    "time_since": 3, "cyclical": 2,
}

ctypedef fused Real:
    float
    double


def murmur3_32(const uint8_t[::1] data not None, unsigned int seed=0):
    return murmur3(&data[0] if data.shape[0] else NULL, data.shape[0], seed)


# What may be asked for ----------------------------------------------------------------------------------------------

cdef bint ascending(list values):
    return all([a < b for a, b in zip(values, values[1:])]) and all([value == value for value in values])


cdef bint whole(double value, double low, double high):
    return low <= value <= high and value == <double><long long>value


cdef object complaint(str name, list p, Py_ssize_t n_columns):
    """What is wrong with the parameters of an operation; None if nothing is."""
    if len(p) != COUNTS.get(name, len(p)):
        return f"takes {COUNTS[name]} parameters, not {len(p)}"
    if name == "clip" and not p[0] <= p[1]:
        return f"has low {p[0]} above high {p[1]}"
    if name == "standardize" and not (p[0] == p[0] and p[1] != 0 and p[1] == p[1]):
        return f"has mean {p[0]} and scale {p[1]}"
    if name in ("min_max", "weighted_sum", "time_since", "cyclical") and not all([abs(x) <= 1e300 for x in p]):
        return "has parameters that are no finite numbers"
    if name == "time_since" and not min(p) > 0:
        return f"has a unit of {min(p)} ms"
    if name == "cyclical" and not p[1] > 0:
        return f"has the period {p[1]}"
    if name == "bucketize" and not ascending(p):
        return "needs edges that ascend"
    if name == "ordinal" and (not p or not ascending(p[1:])):
        return "needs the value of the unknown, then categories that ascend"
    if name == "one_hot":
        return group_complaint(p)
    if name == "hash":
        return hash_complaint(p, n_columns)
    return f"has {len(p)} parameters; at most {MAX_INDEX} can be told apart in float32" if len(p) > MAX_INDEX else None


cdef object group_complaint(list p):
    cdef Py_ssize_t half = (len(p) - 3) // 2
    if len(p) < 3 or (len(p) - 3) % 2 or not whole(p[0], 1, MAX_GROUP):
        return f"makes 1 to {MAX_GROUP} columns, and has a place among them for every category"
    if not ascending(p[3:3 + half]):
        return "needs categories that ascend"
    if not all([whole(x, 0, p[0]) for x in p[1:3] + p[3 + half:]]):
        return "has a place outside its columns"
    return None


cdef object hash_complaint(list p, Py_ssize_t n_columns):
    if len(p) != 2 + n_columns:
        return f"takes the buckets, whether there are signs, and a seed for each of {n_columns} columns"
    if not whole(p[0], 1, MAX_GROUP):
        return f"makes 1 to {MAX_GROUP} columns, not {p[0]:g}"
    if p[1] not in (0, 1) or not all([whole(seed, 0, 0xFFFFFFFF) for seed in p[2:]]):
        return "has signs (1) or none (0), and seeds of 32 bits"
    return None


cdef bint takes(str name, Py_ssize_t count):
    """Whether an operation can have so many columns."""
    if name == "hash":
        return count > 0
    if name == "time_since":
        return count in (1, 2)
    return count == (2 if name in PAIRS else 1)


cdef tuple checked(Py_ssize_t n_columns, object name, object columns, object parameters):
    """The operation as (name, tuple of columns, list of floats)."""
    if name not in CHANGES and name not in PAIRS and name not in OTHERS:
        raise ValueError(f"unknown operation {name!r}; known are {', '.join([*CHANGES, *PAIRS, *OTHERS])}")
    cdef tuple chosen = (columns,) if isinstance(columns, int) else tuple(columns)
    for column in chosen:
        if not 0 <= column < n_columns:
            raise ValueError(f"{name} is for column {column}, but there are {n_columns} columns")
    if not takes(name, len(chosen)):
        raise ValueError(f"{name} cannot be of {len(chosen)} columns")
    cdef list numbers = [float(parameter) for parameter in parameters]
    wrong = complaint(name, numbers, len(chosen))
    if wrong is not None:
        raise ValueError(f"{name} of column {chosen[0]} {wrong}")
    return name, chosen, numbers


# Compiling ----------------------------------------------------------------------------------------------------------

@cython.final
cdef class _Draft:
    """The values that a program may compute, each by its number; what a value is made of has lower numbers.

    A value is (code, operand or -1, operand or -1, column of x, parameters). What a column is at the moment is a value,
    or (group, index): one column of a group, of which there are values only where something other than the output asks.
    """

    cdef list values
    cdef list columns
    cdef list groups         # (values with places, number of columns)
    cdef dict picked
    cdef object clock

    def __cinit__(self, Py_ssize_t n_columns):
        self.values = [(LOAD, -1, -1, j, []) for j in range(n_columns)]
        self.columns = list(range(n_columns))
        self.groups = []
        self.picked = {}
        self.clock = None

    cdef object add(self, int code, a, b=-1, parameters=()):
        self.values.append((code, a, b, 0, parameters))
        return len(self.values) - 1

    cdef int operate(self, str name, tuple columns, list p) except -1:
        """Change or make columns by one operation."""
        cdef Py_ssize_t first = columns[0]
        a = self.value_of(self.columns[first]) if name != "hash" else -1
        if name in CHANGES:
            self.columns[first] = self.add(CHANGES[name], a, -1, p)
        elif name in PAIRS:
            self.columns.append(self.add(PAIRS[name], a, self.value_of(self.columns[columns[1]]), p))
        elif name == "time_since":
            now = self.value_of(self.columns[columns[1]]) if len(columns) == 2 else self.now()
            self.columns[first] = self.add(SINCE, a, now, p)
        elif name == "cyclical":
            self.columns += [self.add(SINE, a, -1, p), self.add(COSINE, a, -1, p)]
        elif name == "one_hot":
            self.group([self.add(PLACE, a, -1, p)], int(p[0]))
        else:
            values = [self.value_of(self.columns[column]) for column in columns]
            places = [self.add(HASH, v, -1, [p[0], p[1], seed]) for v, seed in zip(values, p[2:])]
            self.group(places, int(p[0]))
        return 0

    cdef int group(self, list places, Py_ssize_t count) except -1:
        self.columns += [(len(self.groups), i) for i in range(count)]
        self.groups.append((places, count))
        return 0

    cdef object now(self):
        if self.clock is None:
            self.clock = self.add(CLOCK, -1)
        return self.clock

    cdef object value_of(self, column):
        """The value that a column is."""
        if isinstance(column, int):
            return column
        if column not in self.picked:
            places, _ = self.groups[column[0]]
            parts = [self.add(PICK, place, -1, [column[1] + 1]) for place in places]
            total = parts[0]
            for part in parts[1:]:
                total = self.add(WEIGHTED_SUM, total, part, [1.0, 1.0])
            self.picked[column] = total
        return self.picked[column]

    cdef list writes(self, list outputs):
        """What is written to the result, as (code, value or -1, column of out, count)."""
        cdef list found = []
        cdef Py_ssize_t j = 0
        while j < len(outputs):
            column = self.columns[outputs[j]]
            if not isinstance(column, int) and column[1] == 0:
                places, count = self.groups[column[0]]
                now = [self.columns[output] for output in outputs[j:j + count]]
                if now == [(column[0], i) for i in range(count)]:
                    found.append((ZERO, -1, j, count))
                    found += [(SCATTER, value, j, 0) for value in places]
                    j += count
                    continue
            found.append((STORE, self.value_of(column), j, 0))
            j += 1
        return found

    cdef list needed(self, value, set done):
        """The values that are to be computed before one and with it, in order."""
        cdef set found = set()
        cdef list stack = [value]
        while stack:
            one = stack.pop()
            if one >= 0 and one not in done and one not in found:
                found.add(one)
                stack += self.values[one][1:3]
        done |= found
        return sorted(found)

    cdef list order(self, list outputs):
        """All there is to do, as (code, value to make or -1, operand, operand, column, count, parameters)."""
        cdef list todo = []
        cdef set done = set()
        for code, value, column, count in self.writes(outputs):
            for one in self.needed(value, done):
                made, a, b, source, parameters = self.values[one]
                todo.append((made, one, a, b, source, len(parameters), parameters))
            todo.append((code, -1, value, -1, column, count, []))
        return todo


cdef Py_ssize_t with_registers(list todo, list steps) except -1:
    """Add steps as (code, target, other, column, count, parameters), with registers for values; how many of these."""
    cdef dict last = {}, registers = {}
    cdef list free_ones = []
    cdef Py_ssize_t i, used = 0
    for i, (_, _, a, b, _, _, _) in enumerate(todo):
        last[a] = last[b] = i
    for i, (code, made, a, b, column, count, parameters) in enumerate(todo):
        if made >= 0 and a >= 0 and last[a] == i and a != b:
            target = registers.pop(a)                    # nobody needs the operand any more
        elif made >= 0:
            if not free_ones:
                free_ones.append(used)
                used += 1
            target = free_ones.pop()
            if a >= 0:
                steps.append((COPY, target, registers[a], 0, 0, []))
        else:
            target = registers.get(a, 0)
        steps.append((code, target, registers.get(b, 0), column, count, parameters))
        for operand in {a, b}:
            if operand in registers and last[operand] == i:
                free_ones.append(registers.pop(operand))
        if made >= 0:
            registers[made] = target
    return used


@cython.final
cdef class Program:
    def __cinit__(self, Py_ssize_t n_columns, operations, outputs=None):
        if not 1 <= n_columns <= 0x7FFFFFFF:
            raise ValueError(f"a program runs over at least one column, not {n_columns}")
        cdef _Draft draft = _Draft(n_columns)
        for name, columns, parameters in operations:
            name, columns, parameters = checked(len(draft.columns), name, columns, parameters)
            draft.operate(name, columns, parameters)
        cdef list chosen = list(range(len(draft.columns)) if outputs is None else outputs)
        for column in chosen:
            if not 0 <= column < len(draft.columns):
                raise ValueError(f"column {column} cannot be an output; there are {len(draft.columns)} columns")
        if not chosen:
            raise ValueError("a program has at least one output")
        self.n_inputs, self.n_outputs = n_columns, len(chosen)
        cdef list steps = []
        cdef Py_ssize_t used = with_registers(draft.order(chosen), steps)
        if used > MAX_REGISTERS:
            raise ValueError(f"{used} columns are needed at once; at most {MAX_REGISTERS} can be kept")
        self.block = min(<Py_ssize_t>BLOCK, ROOM // max(<Py_ssize_t>used, 1))
        self.timed = any([step[0] == CLOCK for step in steps])
        self.n_steps = len(steps)
        self.steps = <Step*>calloc(<size_t>len(steps), sizeof(Step))
        self.pool = <double*>calloc(sum([len(step[5]) for step in steps]) + 1, sizeof(double))
        if self.steps == NULL or self.pool == NULL:
            raise MemoryError
        self.fill(steps)

    def __dealloc__(self):
        free(self.steps)
        free(self.pool)

    cdef int fill(self, list steps) except -1:
        cdef Step* step = self.steps
        cdef double* pool = self.pool
        for code, target, other, column, count, parameters in steps:
            step.code, step.target, step.other, step.column, step.count = code, target, other, column, count
            step.parameters = pool
            for parameter in parameters:
                pool[0] = parameter
                pool += 1
            step += 1
        return 0

    def run(self, const float[:, ::1] x not None, float[:, ::1] out not None, const double[::1] now=None):
        cdef Py_ssize_t n = x.shape[0]
        if n == 0 or out.shape[0] == 0:
            self.check(NULL, n, x.shape[1], NULL, out.shape[0], out.shape[1], 0, now)
            return
        self.check(&x[0, 0], n, x.shape[1], &out[0, 0], out.shape[0], out.shape[1], sizeof(float), now)
        cdef const double* clock = &now[0] if self.timed else NULL
        cdef Py_ssize_t tick = 1 if self.timed and now.shape[0] > 1 else 0
        if n * (x.shape[1] + out.shape[1]) > SMALL_BATCH:
            with nogil:
                pass_over(self, &x[0, 0], &out[0, 0], n, clock, tick)
        else:
            pass_over(self, &x[0, 0], &out[0, 0], n, clock, tick)

    def run_exact(self, const double[:, ::1] x not None, double[:, ::1] out not None, const double[::1] now=None):
        cdef Py_ssize_t n = x.shape[0]
        if n == 0 or out.shape[0] == 0:
            self.check(NULL, n, x.shape[1], NULL, out.shape[0], out.shape[1], 0, now)
            return
        self.check(&x[0, 0], n, x.shape[1], &out[0, 0], out.shape[0], out.shape[1], sizeof(double), now)
        cdef const double* clock = &now[0] if self.timed else NULL
        cdef Py_ssize_t tick = 1 if self.timed and now.shape[0] > 1 else 0
        with nogil:
            pass_over(self, &x[0, 0], &out[0, 0], n, clock, tick)

    cdef int check(self, const void* x, Py_ssize_t n, Py_ssize_t k, const void* out, Py_ssize_t n_out,
                   Py_ssize_t k_out, Py_ssize_t item, const double[::1] now) except -1:
        if k != self.n_inputs or n_out != n or k_out != self.n_outputs:
            raise ValueError(
                f"x is ({n}, {k}) and out ({n_out}, {k_out}); this program takes {self.n_inputs} columns "
                f"and gives {self.n_outputs}"
            )
        if <const char*>x < <const char*>out + n * k_out * item and <const char*>out < <const char*>x + n * k * item:
            raise ValueError("out lies in the memory of x; a program writes apart from what it reads")
        if self.timed and (now is None or now.shape[0] not in (1, n)):
            raise ValueError(f"this program reads the clock: now has one time, or one for each of {n} rows")
        return 0

    cdef void run_rows(self, const float* x, float* out, Py_ssize_t n, double now_ms) noexcept nogil:
        """`run` over memory: [n, n_inputs] to [n, n_outputs], apart from each other."""
        pass_over(self, x, out, n, &now_ms, 0)


# Running ------------------------------------------------------------------------------------------------------------

cdef void pass_over(
    Program program, const Real* x, Real* out, Py_ssize_t n, const double* now, Py_ssize_t tick
) noexcept nogil:
    cdef double[ROOM] room
    cdef Py_ssize_t first = 0, rows
    while first < n:
        rows = min(program.block, n - first)
        run_block(program, room, x + first * program.n_inputs, out + first * program.n_outputs, rows, now, tick)
        now += rows * tick
        first += rows


cdef inline void run_block(
    Program program, double* room, const Real* x, Real* out, Py_ssize_t n, const double* now, Py_ssize_t tick
) noexcept nogil:
    """Up to a block of rows through all steps."""
    cdef Py_ssize_t i, s
    cdef const Step* step
    cdef double* values
    cdef double place_of
    for s in range(program.n_steps):
        step = &program.steps[s]
        values = room + step.target * program.block
        if step.code == LOAD:
            for i in range(n):
                values[i] = x[i * program.n_inputs + step.column]
        elif step.code == STORE:
            for i in range(n):
                out[i * program.n_outputs + step.column] = <Real>values[i]
        elif step.code == CLOCK:
            for i in range(n):
                values[i] = now[i * tick]
        elif step.code == ZERO:
            for i in range(n):
                memset(&out[i * program.n_outputs + step.column], 0, <size_t>step.count * sizeof(Real))
        elif step.code == SCATTER:
            for i in range(n):
                place_of = values[i]
                if place_of > 0:
                    out[i * program.n_outputs + step.column + <Py_ssize_t>place_of - 1] += 1
                elif place_of < 0:
                    out[i * program.n_outputs + step.column + <Py_ssize_t>(-place_of) - 1] -= 1
        else:
            change(step, values, room + step.other * program.block, n)


cdef inline void change(const Step* step, double* values, const double* other, Py_ssize_t n) noexcept nogil:
    """A step that goes from registers to registers."""
    cdef const double* p = step.parameters
    cdef Py_ssize_t i
    if step.code == COPY:
        memcpy(values, other, <size_t>n * sizeof(double))
    elif step.code == IMPUTE:
        impute(values, n, p[0])
    elif step.code == CLIP:
        clip(values, n, p[0], p[1])
    elif step.code == LOG1P:
        for i in range(n):
            values[i] = log1p(values[i])
    elif step.code == STANDARDIZE:
        standardize(values, n, p[0], p[1])
    elif step.code == MIN_MAX:
        min_max(values, n, p[0], p[1])
    elif step.code == BUCKETIZE:
        bucketize(values, n, p, step.count)
    elif step.code == ORDINAL:
        ordinal(values, n, p[0], p + 1, step.count - 1)
    elif step.code == SINE:
        sine(values, n, p[0], p[1])
    elif step.code == COSINE:
        cosine(values, n, p[0], p[1])
    elif step.code == PLACE:
        place(values, n, p, step.count)
    elif step.code == HASH:
        hashed(values, n, p)
    elif step.code == PICK:
        pick(values, n, p[0])
    elif step.code == SINCE:
        since(values, other, n, p)
    elif step.code == PRODUCT:
        multiply(values, other, n)
    elif step.code == RATIO:
        divide(values, other, n)
    else:
        weigh(values, other, n, p[0], p[1])
