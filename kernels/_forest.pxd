"""The walk over trees, below the gate of forest.pyx: blocks of rows, branches, leaves, what is made of sums.

**Columns.** Rows are copied into a block of columns first, so that a branch asks one thing only, `column <= threshold`:

- a feature, as it is: NaN is never at most a threshold, and goes right;
- a feature whose NaN goes left: NaN is copied as -inf;
- whether a feature equals a value: -inf if it does, inf if not, and the threshold is 0;
- the last column is -inf for every row. Leaves ask for it and lead to themselves, so that all rows of a group can walk
  as deep as the tree is, without a jump.

**Order of addition.** A row's sum is taken over the trees in their order, in float32, as ONNX Runtime's is in a thread.
"""

from libc.math cimport INFINITY, M_PI, expf, fabsf, logf, sqrtf
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc
from libc.string cimport memcpy

cdef enum:
    GROUP = 8              # rows, or trees for one row, that walk side by side
    MOST_STEPS = 8         # before the trees
    STRIDE = 4             # levels between two looks whether all have arrived

cdef enum Kind:
    REGRESSION = 0
    CLASSES = 1            # three or more, each with its own sum
    BINARY = 2             # two, by one sum
    PAIR = 3               # two, each with its own sum

cdef enum Aggregate:
    SUM = 0
    AVERAGE = 1
    MIN = 2
    MAX = 3

cdef enum Post:
    NONE = 0
    LOGISTIC = 1
    SOFTMAX = 2
    SOFTMAX_ZERO = 3
    PROBIT = 4

cdef enum Operation:
    SUB = 0
    ADD = 1
    MUL = 2
    DIV = 3
    IMPUTER = 4            # instead of what is `replaced`

cdef struct Node:                    # a branch, or a leaf that leads to itself
    float threshold                  # of a leaf: its weight, or the bits of the index of its first weight
    uint32_t link                    # where its children stand, counted from the root, and the column it asks for

cdef struct Tree:
    Py_ssize_t root
    int n_nodes
    int depth
    int target                       # what every leaf adds to; -1: leaves hold lists of weights

cdef struct Weight:
    int target                       # -1 ends a leaf's list
    float value

cdef struct Column:
    int feature
    bint missing                     # whether NaN goes where -inf goes
    float value                      # of a column that tells equality

cdef struct Step:                    # what is done to a feature before branches ask for it
    Operation operation
    float replaced                   # of IMPUTER; NaN for what is missing
    const float* values              # by feature

cdef struct Columns:
    const Column* each
    int n                            # the constant one included
    int n_plain                      # those that are features; then those that tell equality
    int n_steps
    Step[MOST_STEPS] steps


cdef inline void* taken(Py_ssize_t count, Py_ssize_t size) except NULL:
    """Zeroed memory for `count` things; one more than asked for, so that none is no special case."""
    cdef void* memory = calloc(count + 1, size)
    if memory == NULL:
        raise MemoryError
    return memory


cdef inline int left_of(const Node* node, int bits) noexcept nogil:
    """A branch's left child, counted from the root; a leaf itself."""
    return <int>(node.link >> bits)


cdef inline int column_of(const Node* node, int bits) noexcept nogil:
    """The column that a node asks for."""
    return <int>(node.link & ((<uint32_t>1 << bits) - 1))


# Blocks -----------------------------------------------------------------------------------------------------------

cdef inline float stepped(const Columns* columns, int feature, float x) noexcept nogil:
    """A feature after the steps, each rounded to float32 as ONNX's operators do."""
    cdef int s
    cdef float value
    cdef const Step* step
    for s in range(columns.n_steps):
        step = &columns.steps[s]
        value = step.values[feature]
        if step.operation == SUB:
            x -= value
        elif step.operation == MUL:
            x *= value
        elif step.operation == DIV:
            x /= value
        elif step.operation == ADD:
            x += value
        elif x == step.replaced or (x != x and step.replaced != step.replaced):
            x = value
    return x


cdef inline void stage(
    const Columns* columns, const float* row, float* block, Py_ssize_t step
) noexcept nogil:
    """One row's columns, `step` floats apart."""
    cdef int c
    cdef float x
    cdef const Column* column = columns.each
    for c in range(columns.n - 1):
        x = row[column.feature]
        if columns.n_steps:
            x = stepped(columns, column.feature, x)
        if c < columns.n_plain:
            block[c * step] = -INFINITY if column.missing and x != x else x
        else:
            block[c * step] = -INFINITY if x == column.value or (column.missing and x != x) else INFINITY
        column += 1
    block[(columns.n - 1) * step] = -INFINITY


# Walks ------------------------------------------------------------------------------------------------------------

cdef inline uint32_t after(const Node* tree, uint32_t at, int bits, const float* row) noexcept nogil:
    """Where a row goes from a node. The right child stands beside the left one."""
    cdef Node node = tree[at]
    return (node.link >> bits) + (not row[node.link & ((<uint32_t>1 << bits) - 1)] <= node.threshold)


cdef inline void walk_rows(
    const Node* tree, int depth, int bits, const float* block, Py_ssize_t width, uint32_t* reached
) noexcept nogil:
    """The leaves that GROUP rows reach in one tree."""
    cdef uint32_t[GROUP] at
    cdef uint64_t passed = 0, total
    cdef int r, level = 0, stop
    for r in range(GROUP):
        at[r] = 0
    while level < depth:
        stop = min(level + STRIDE, depth)
        while level < stop:
            for r in range(GROUP):
                at[r] = after(tree, at[r], bits, block + r * width)
            level += 1
        total = 0                                      # children stand behind parents: it grows until all are there
        for r in range(GROUP):
            total += at[r]
        if total == passed:
            break
        passed = total
    for r in range(GROUP):
        reached[r] = at[r]


cdef inline void walk_trees(
    const Node* nodes, const Tree* trees, int bits, const float* row, uint32_t* reached
) noexcept nogil:
    """The leaves that one row reaches in GROUP trees."""
    cdef uint32_t[GROUP] at
    cdef (const Node*)[GROUP] roots
    cdef uint64_t passed = 0, total
    cdef int t, level = 0, depth = 0, stop
    for t in range(GROUP):
        at[t] = 0
        roots[t] = nodes + trees[t].root
        depth = max(depth, trees[t].depth)
    while level < depth:
        stop = min(level + STRIDE, depth)
        while level < stop:
            for t in range(GROUP):
                at[t] = after(roots[t], at[t], bits, row)
            level += 1
        total = 0
        for t in range(GROUP):
            total += at[t]
        if total == passed:
            break
        passed = total
    for t in range(GROUP):
        reached[t] = at[t]


cdef inline uint32_t walk(const Node* tree, int bits, const float* row) noexcept nogil:
    """The leaf that one row reaches in one tree."""
    cdef uint32_t at = 0, to = after(tree, 0, bits, row)
    while to != at:
        at = to
        to = after(tree, at, bits, row)
    return at


# Sums -------------------------------------------------------------------------------------------------------------

cdef inline void join(float* total, float value, int aggregate) noexcept nogil:
    if aggregate <= AVERAGE:
        total[0] += value
    elif aggregate == MIN:
        total[0] = value if value < total[0] else total[0]
    else:
        total[0] = value if value > total[0] else total[0]


cdef inline const Weight* list_of(const Node* leaf, const Weight* weights) noexcept nogil:
    """The weights of a leaf that has several: where they begin stands in place of its threshold."""
    cdef uint32_t first
    memcpy(&first, &leaf.threshold, sizeof(first))
    return weights + first


cdef inline void add_leaf(
    float* sums, const Tree* tree, const Node* leaf, const Weight* weights, int aggregate
) noexcept nogil:
    cdef const Weight* weight
    if tree.target >= 0:
        join(sums + tree.target, leaf.threshold, aggregate)
        return
    weight = list_of(leaf, weights)
    while weight.target >= 0:
        join(sums + weight.target, weight.value, aggregate)
        weight += 1


cdef inline float joined(float total, const Node* nodes, const Tree* trees, const uint32_t* reached) noexcept nogil:
    """The sum with one leaf of each of GROUP trees, in their order."""
    cdef int t
    for t in range(GROUP):
        total += nodes[trees[t].root + reached[t]].threshold
    return total


# Scores: the formulas of ONNX's operators, in float32 as ONNX Runtime computes them ------------------------------

cdef inline float logistic(float x) noexcept nogil:
    cdef float one = 1     # a literal would be a double, and round otherwise
    cdef float v = one / (one + expf(-fabsf(x)))
    return one - v if x < 0 else v


cdef inline float probit(float p) noexcept nogil:
    """sqrt(2) * erfinv(2p - 1), with Winitzki's approximation of erfinv (a = 0.147)."""
    cdef float one = 1
    cdef float x = 2 * p - one
    cdef float sign = -one if x < 0 else one
    cdef float log = logf((one - x) * (one + x))
    cdef float half = <float>(2 / (<float>M_PI * <float>0.147)) + <float>0.5 * log
    cdef float rest = one / <float>0.147 * log
    return <float>1.41421356 * (sign * sqrtf(-half + sqrtf(half * half - rest)))


cdef inline void softmax(float* scores, int n, bint skip_zeros) noexcept nogil:
    """`skip_zeros`: a score of zero keeps weight zero (SOFTMAX_ZERO)."""
    cdef float most = scores[0], total = 0, smallest
    cdef int i
    for i in range(1, n):
        most = scores[i] if scores[i] > most else most
    smallest = expf(-most)
    for i in range(n):
        if skip_zeros and -<float>0.0000001 <= scores[i] <= <float>0.0000001:
            scores[i] *= smallest
        else:
            scores[i] = expf(scores[i] - most)
            total += scores[i]
    for i in range(n):
        scores[i] /= total


cdef inline void transform(float* scores, int n, int post) noexcept nogil:
    """`post` over two or more scores."""
    cdef int i
    if post == SOFTMAX or post == SOFTMAX_ZERO:
        softmax(scores, n, post == SOFTMAX_ZERO)
        return
    for i in range(n):
        if post == LOGISTIC:
            scores[i] = logistic(scores[i])
        elif post == PROBIT:
            scores[i] = probit(scores[i])


cdef inline int by_one_sum(float* scores, bint positive, int post) noexcept nogil:
    """Two scores from the sum in scores[0]; returns the class.

    Where no weight is negative the sum is a probability; otherwise it is a margin.
    """
    cdef float one = 1, x = scores[0]
    cdef int winner = x > <float>0.5 if positive else x > 0
    if post == LOGISTIC:
        scores[0], scores[1] = logistic(-x), logistic(x)
    else:
        scores[0], scores[1] = one - x if positive else -x, x
    return winner


cdef inline int largest(const float* scores, int n) noexcept nogil:
    """The first of the largest."""
    cdef int i, best = 0
    for i in range(1, n):
        if scores[i] > scores[best]:
            best = i
    return best
