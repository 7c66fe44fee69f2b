"""Ensembles of trees: what ONNX's TreeEnsemble operators compute, several times faster.

The cost of a tree is waiting: each level needs the one above, and a branch that a processor cannot foretell costs more
than the compare. So nothing here jumps on data. There are two ways, over the same block of columns (`_forest.pxd`):

- **walks**: eight rows side by side through one tree, or eight trees side by side for a single row, so that their
  waits overlap. A node has 8 bytes, whatever its mode; siblings stand together, so that a child is an addition. Trees
  are the outer loop over a block of up to 256 rows, and stay in the cache while the block passes;
- **masks**: every branch of a tree compared for 8 or 16 rows at once in a vector register, where the processor has AVX2
  or AVX-512 and trees have no more than a hundred leaves or so (`_forest_masks.h`).

Nothing is allocated for a run; the block lies on the stack, 80 kB. Cost goal: 1.2 microseconds a row for 200 trees of
depth 6 by walks, 0.4 by masks of 16; 1.5 for one row alone. Memory: 8 bytes a node, 16 with masks;
where leaves have weights for several outputs about 4 more for each of those, 6 with masks.
"""

import numpy as np

cimport cython
from libc.math cimport INFINITY
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uintptr_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

from penstock.kernels._forest cimport (
    ADD, AVERAGE, BINARY, CLASSES, DIV, GROUP, IMPUTER, LOGISTIC, MAX, MIN, MOST_STEPS, MUL, NONE, PAIR, PROBIT,
    REGRESSION, SOFTMAX, SOFTMAX_ZERO, SUB, SUM, Column, Node, Operation, Tree, Weight,
    add_leaf, by_one_sum, joined, largest, probit, stage, taken, transform, walk, walk_rows, walk_trees,
)
from penstock.kernels.forest_crew cimport Crew
from penstock.kernels.forest_layout cimport Layout
from penstock.kernels.forest_masks cimport masks_of

cdef enum:
    BLOCK = 16384          # floats of a block of columns: 64 kB
    SUMS = 2048            # floats of the sums beside masks
    GROUPS = 4             # of rows that masks take at once
    FEW = 2                # walks are faster for less than a group divided by this
    BLOCK_ROWS = 256
    PART = 64              # rows that a thread takes of a shared run, or a multiple of it
    SMALL_RUN = 2048       # trees times rows; handing the GIL over would cost more

cdef dict KINDS = {"regression": REGRESSION, "classes": CLASSES, "binary": BINARY, "pair": PAIR}
cdef dict AGGREGATES = {"SUM": SUM, "AVERAGE": AVERAGE, "MIN": MIN, "MAX": MAX}
cdef dict OPERATIONS = {"Sub": SUB, "Add": ADD, "Mul": MUL, "Div": DIV, "Imputer": IMPUTER}
cdef dict POSTS = {
    "NONE": NONE, "LOGISTIC": LOGISTIC, "SOFTMAX": SOFTMAX, "SOFTMAX_ZERO": SOFTMAX_ZERO, "PROBIT": PROBIT,
}


cdef int number_of(dict names, name, what) except -1:
    if name not in names:
        raise ValueError(f"unknown {what} {name!r}: known are {', '.join(names)}")
    return names[name]


cdef struct Run:           # that threads share
    void* forest
    const float* rows
    float* scores
    int64_t* labels


cdef void run_part(void* context, int64_t first, int64_t n) noexcept nogil:
    cdef const Run* run = <const Run*>context
    cdef int64_t stride = (<Forest>run.forest).n_features
    (<Forest>run.forest).run_rows(
        run.rows + first * stride, n, stride, run.scores + first * (<Forest>run.forest).n_outputs,
        NULL if run.labels == NULL else run.labels + first,
    )


@cython.final
cdef class Forest:
    def __cinit__(
        self, *,
        const int64_t[::1] features not None, const float[::1] values not None, const uint8_t[::1] modes not None,
        const int64_t[::1] true_children not None, const int64_t[::1] false_children not None,
        const uint8_t[::1] missing not None, const int64_t[::1] roots not None,
        const int64_t[::1] leaf_nodes not None, const int64_t[::1] leaf_targets not None,
        const float[::1] leaf_weights not None,
        Py_ssize_t n_features, Py_ssize_t n_targets=1, kind="regression", aggregate="SUM", post="NONE",
        base=(), labels=(), steps=(), int lanes=-1, int threads=1,
    ):
        cdef Layout layout
        if not 1 <= n_features <= 1 << 20:
            raise ValueError(f"{n_features} features: 1 to {1 << 20} are served")
        if not 1 <= n_targets <= SUMS:
            raise ValueError(f"{n_targets} outputs: 1 to {<int>SUMS} are served")
        self.n_features, self.n_targets = <int>n_features, <int>n_targets
        self.kind = number_of(KINDS, kind, "kind")
        self.aggregate = number_of(AGGREGATES, aggregate, "aggregate function")
        self.post = number_of(POSTS, post, "post transform")
        self.n_outputs = 2 if self.kind == BINARY else self.n_targets
        self.check_kind(tuple(labels), len(base))
        layout = Layout(features, values, modes, true_children, false_children, missing, roots,
                        (leaf_nodes, leaf_targets, leaf_weights), n_features, n_targets)
        self.check_sums(layout)
        self.n_trees, self.n_nodes = layout.n_trees, layout.n_placed
        self.keep_numbers(base, labels)
        self.keep_steps(list(steps))
        self.keep_columns(layout)
        self.keep_trees(layout)
        self.keep_masks(lanes)
        if threads > 1:
            self.crew = Crew(threads)

    def __dealloc__(self):
        free(self.column)
        free(self.nodes)
        free(self.trees)
        free(self.weights)
        free(self.numbers)
        free(self.steps)
        free(self.labels)

    def run(
        self, const float[:, ::1] rows not None, float[:, ::1] scores not None, int64_t[::1] labels=None,
        *, bint shared=False,
    ):
        cdef Py_ssize_t n = rows.shape[0]
        cdef int64_t* first = NULL
        cdef Run run
        if rows.shape[1] != self.n_features:
            raise ValueError(f"rows of {rows.shape[1]} features, expected {self.n_features}")
        if scores.shape[0] != n or scores.shape[1] != self.n_outputs:
            raise ValueError(
                f"scores has shape ({scores.shape[0]}, {scores.shape[1]}), expected ({n}, {self.n_outputs})")
        if labels is not None and (self.kind == REGRESSION or labels.shape[0] != n):
            raise ValueError(f"{labels.shape[0]} labels: expected {0 if self.kind == REGRESSION else n}")
        if n == 0:
            return
        if labels is not None:
            first = &labels[0]
        if shared and self.crew is not None:
            run = Run(<void*>self, &rows[0, 0], &scores[0, 0], first)
            with nogil:
                self.crew.share(run_part, &run, n, PART)
        elif n * self.n_trees < SMALL_RUN:
            self.run_rows(&rows[0, 0], n, self.n_features, &scores[0, 0], first)
        else:
            with nogil:
                self.run_rows(&rows[0, 0], n, self.n_features, &scores[0, 0], first)

    # What is refused ----------------------------------------------------------------------------------------------

    cdef void check_kind(self, tuple labels, Py_ssize_t n_base) except *:
        cdef int n = self.n_targets
        if (self.kind == BINARY and n != 1) or (self.kind == PAIR and n != 2) or (self.kind == CLASSES and n < 3):
            raise ValueError(f"{n} outputs do not fit the kind: binary has 1, pair 2, classes 3 or more")
        if len(labels) != (0 if self.kind == REGRESSION else self.n_outputs):
            raise ValueError(f"{len(labels)} labels for {0 if self.kind == REGRESSION else self.n_outputs} classes")
        if self.kind == PAIR and (labels != (0, 1) or n_base):
            raise ValueError("two classes with a sum each, but other labels than 0 and 1 or base values")
        if n_base and n_base != n:
            raise ValueError(f"{n_base} base values for {n} outputs")
        if self.kind != REGRESSION and self.aggregate != SUM:
            raise ValueError("classes are told by sums only")
        if self.kind == BINARY and self.post == PROBIT:
            raise ValueError("PROBIT of one sum for two classes")

    cdef void check_sums(self, Layout layout) except *:
        cdef Py_ssize_t i
        self.positive = True
        for i in range(layout.weight.shape[0]):
            if layout.weight[i] < 0:
                self.positive = False
        for i in range(layout.n_trees):
            if self.n_targets == 1 and layout.only[i] < 0:
                raise ValueError(f"a leaf of tree {i} has no weight, or several for the one output")
        if self.kind == CLASSES or self.kind == PAIR or self.aggregate == MIN or self.aggregate == MAX:
            layout.require_every_target()

    # What is kept -------------------------------------------------------------------------------------------------

    cdef void keep_numbers(self, base, labels) except *:
        cdef Py_ssize_t i
        self.numbers = <float*>taken(self.n_targets, sizeof(float))
        self.labels = <int64_t*>taken(len(labels), sizeof(int64_t))
        for i in range(len(base)):
            self.numbers[i] = base[i]
        for i in range(len(labels)):
            self.labels[i] = labels[i]

    cdef void keep_steps(self, list steps) except *:
        cdef float[::1] values
        cdef Py_ssize_t i
        cdef int s
        if len(steps) > MOST_STEPS:
            raise ValueError(f"{len(steps)} steps before the trees: at most {<int>MOST_STEPS} are served")
        self.steps = <float*>taken(len(steps) * self.n_features, sizeof(float))
        for s in range(<int>len(steps)):
            name, given, replaced = steps[s]
            values = np.array(given, np.float32)
            if values.shape[0] != self.n_features:
                raise ValueError(f"a step {name} of {values.shape[0]} values for {self.n_features} features")
            for i in range(self.n_features):
                self.steps[s * self.n_features + i] = values[i]
            self.columns.steps[s].operation = <Operation>number_of(OPERATIONS, name, "step")
            self.columns.steps[s].replaced = replaced
            self.columns.steps[s].values = self.steps + s * self.n_features
        self.columns.n_steps = <int>len(steps)

    cdef void keep_columns(self, Layout layout) except *:
        cdef int i, n = <int>len(layout.columns)
        if n >= BLOCK:
            raise ValueError(f"the branches ask {n} different columns: at most {BLOCK - 1} are served")
        self.column = <Column*>taken(n, sizeof(Column))
        for i in range(n):
            feature, missing, value = layout.columns[i]
            self.column[i].feature, self.column[i].missing = feature, missing
            self.column[i].value = 0 if value is None else value
            self.columns.n_plain += value is None
        self.columns.each, self.columns.n = self.column, n + 1
        self.bits = n.bit_length()

    cdef void keep_trees(self, Layout layout) except *:
        cdef Py_ssize_t at = 0, end, n_weights = 0, most = (<Py_ssize_t>1 << (32 - self.bits)) - 1
        cdef Tree* tree
        cdef int t
        self.nodes = <Node*>taken(layout.n_placed, sizeof(Node))
        self.trees = <Tree*>taken(layout.n_trees, sizeof(Tree))
        self.weights = <Weight*>taken(layout.n_listed(), sizeof(Weight))
        for t in range(layout.n_trees):
            tree = &self.trees[t]
            tree.root, tree.depth, tree.target = at, layout.depth[t], layout.only[t]
            self.depth = max(self.depth, tree.depth)
            end = layout.end_of(t)
            if end - at > most:
                raise ValueError(f"tree {t} has {end - at} nodes: beside so many columns at most {most} are served")
            tree.n_nodes = <int>(end - at)
            while at < end:
                n_weights += self.keep_node(layout, tree, at, n_weights)
                at += 1
        self.nbytes = layout.n_placed * sizeof(Node) + layout.n_trees * sizeof(Tree) + n_weights * sizeof(Weight)

    cdef Py_ssize_t keep_node(self, Layout layout, const Tree* tree, Py_ssize_t at, Py_ssize_t n_weights) noexcept:
        """Write one node; returns how many weights that took."""
        cdef Node* made = &self.nodes[at]
        cdef Weight* weight = &self.weights[n_weights]
        cdef int32_t i, node = layout.node[at]
        cdef uint32_t first = <uint32_t>n_weights
        made.link = <uint32_t>layout.left[at] << self.bits
        if layout.modes[node] != 0:
            made.link |= <uint32_t>layout.column[node]
            made.threshold = layout.threshold[node]
            return 0
        made.link |= <uint32_t>(self.columns.n - 1)
        if tree.target >= 0:
            made.threshold = layout.weight[layout.first[node]]
            return 0
        memcpy(&made.threshold, &first, sizeof(first))
        for i in range(layout.first[node], layout.first[node + 1]):
            weight.target, weight.value = layout.target[i], layout.weight[i]
            weight += 1
        weight.target = -1
        return weight + 1 - &self.weights[n_weights]

    cdef void keep_masks(self, int lanes) except *:
        """The widest masks that this processor and the block have room for; `lanes` as told to Forest."""
        cdef int wanted
        if self.aggregate > AVERAGE:
            return
        for wanted in (16, 8):
            if lanes >= 0 and lanes != wanted:
                continue
            if self.columns.n * wanted <= BLOCK and self.n_targets * wanted <= SUMS:
                self.masks = masks_of(self.nodes, self.trees, self.weights, self.n_trees, self.n_targets,
                                      self.bits, wanted)
                if self.masks is not None:
                    self.lanes = wanted
                    self.nbytes += self.masks.nbytes()
                    return

    # Runs ---------------------------------------------------------------------------------------------------------

    cdef void run_rows(
        self, const float* rows, int64_t n, int64_t stride, float* scores, int64_t* labels
    ) noexcept nogil:
        cdef float[BLOCK + SUMS + 16] room
        cdef float* block = <float*>((<uintptr_t>room + 63) & ~<uintptr_t>63)
        cdef int64_t done = 0, i
        cdef int most = self.masked_rows(), now, winner, rest
        while self.lanes and n - done >= self.lanes // FEW:
            now = <int>min(<int64_t>most, n - done)
            rest = now % self.lanes
            if rest < self.lanes // FEW:
                now -= rest
            self.mask_block(rows + done * stride, now, stride, scores + done * self.n_outputs, block)
            done += now
        most = self.walked_rows()
        while done < n:
            now = <int>min(<int64_t>most, n - done)
            self.walk_block(rows + done * stride, now, stride, scores + done * self.n_outputs, block)
            done += now
        for i in range(n):
            winner = self.finish(scores + i * self.n_outputs)
            if labels != NULL:
                labels[i] = self.labels[winner]

    cdef int masked_rows(self) noexcept nogil:
        cdef int groups = GROUPS
        if not self.lanes:
            return 0
        groups = min(groups, BLOCK // (self.columns.n * self.lanes))
        return self.lanes * max(1, min(groups, SUMS // (self.n_targets * self.lanes)))

    cdef int walked_rows(self) noexcept nogil:
        cdef int fit = min(<int>BLOCK_ROWS, BLOCK // self.columns.n)
        return fit - fit % GROUP if fit >= GROUP else fit

    cdef void mask_block(
        self, const float* rows, int n, int64_t stride, float* scores, float* block
    ) noexcept nogil:
        cdef int lanes = self.lanes, groups = (n + lanes - 1) // lanes, padded = groups * lanes, r, i
        cdef Py_ssize_t step = <Py_ssize_t>lanes * self.columns.n
        cdef float* sums = block + groups * step
        for r in range(padded):                        # lanes behind the last row get the first row: it costs nothing
            stage(&self.columns, rows + (r if r < n else 0) * stride, block + r // lanes * step + r % lanes, lanes)
        memset(sums, 0, padded * self.n_targets * sizeof(float))
        self.masks.run(block, step, groups, sums)
        for r in range(n):
            for i in range(self.n_targets):
                scores[r * self.n_outputs + i] = sums[i * padded + r]

    cdef void walk_block(
        self, const float* rows, int n, int64_t stride, float* scores, float* block
    ) noexcept nogil:
        cdef int r, i, grouped = n // GROUP * GROUP
        cdef float start = 0 if self.aggregate <= AVERAGE else INFINITY if self.aggregate == MIN else -INFINITY
        for r in range(n):
            stage(&self.columns, rows + r * stride, block + r * self.columns.n, 1)
            for i in range(self.n_targets):
                scores[r * self.n_outputs + i] = start
        if grouped:
            self.walk_groups(block, grouped, scores)
        for r in range(grouped, n):
            self.walk_one(block + r * self.columns.n, scores + r * self.n_outputs)

    cdef void walk_groups(self, const float* block, int n, float* scores) noexcept nogil:
        cdef uint32_t[GROUP] reached
        cdef const Tree* tree = self.trees
        cdef const Node* nodes
        cdef int _t, r, g, first
        for _t in range(self.n_trees):
            nodes = self.nodes + tree.root
            for g in range(n // GROUP):
                first = g * GROUP
                walk_rows(nodes, tree.depth, self.bits, block + first * self.columns.n, self.columns.n, reached)
                for r in range(GROUP):
                    add_leaf(
                        scores + (first + r) * self.n_outputs, tree, &nodes[reached[r]], self.weights, self.aggregate
                    )
            tree += 1

    cdef void walk_one(self, const float* row, float* sums) noexcept nogil:
        cdef uint32_t[GROUP] reached
        cdef const Tree* tree = self.trees
        cdef int _t, i, groups = self.n_trees // GROUP
        cdef bint single = self.n_targets == 1 and self.aggregate <= AVERAGE
        for _t in range(groups):
            walk_trees(self.nodes, tree, self.bits, row, reached)
            if single:                                 # in a register: by way of memory a sum takes as long as a walk
                sums[0] = joined(sums[0], self.nodes, tree, reached)
                tree += GROUP
                continue
            for i in range(GROUP):
                add_leaf(sums, tree, &self.nodes[tree.root + reached[i]], self.weights, self.aggregate)
                tree += 1
        for _t in range(groups * GROUP, self.n_trees):
            i = <int>walk(self.nodes + tree.root, self.bits, row)
            add_leaf(sums, tree, &self.nodes[tree.root + i], self.weights, self.aggregate)
            tree += 1

    cdef int finish(self, float* scores) noexcept nogil:
        """From a row's sums to its scores; returns the class."""
        cdef int i, n = self.n_targets, winner = 0
        for i in range(n):
            if self.aggregate == AVERAGE:
                scores[i] /= <float>self.n_trees
            scores[i] += self.numbers[i]
        if self.kind == BINARY:
            return by_one_sum(scores, self.positive, self.post)
        if n == 1:
            if self.post == PROBIT:                    # the only one that ONNX Runtime applies to one output
                scores[0] = probit(scores[0])
            return 0
        winner = scores[1] > 0 if self.kind == PAIR else largest(scores, n)
        transform(scores, n, self.post)
        return winner
