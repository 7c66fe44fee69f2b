"""Masks made of a forest's nodes, and run over a block of columns: what they are is told in `_forest_masks.h`.

10 bytes a branch, 4 for each leaf and sum, some 40 a tree. A branch that clears leaves of two words counts twice.
"""

cimport cython
from libc.stdlib cimport free
from libc.stdint cimport uint16_t, uint32_t

from penstock.kernels._forest cimport Node, Tree, Weight, column_of, left_of, list_of, taken

cdef enum:
    WORD = 32              # leaves of a word
    LEAVES_A_LANE = 8      # leaves of a tree for each lane, on the average, up to which masks beat walks
    MOST_NODES = 2047      # of one tree
    SPANNED = 2            # words that a branch clears leaves of, on the average at most
    SPARSE = 2             # times as many values as there are weights, at most


cdef Masks masks_of(const Node* nodes, const Tree* trees, const Weight* weights, int n_trees, int n_sums, int bits,
                    int lanes):
    """Masks of so many lanes; None where the processor has none of those, walks are faster, or leaves are not plain
    tables (`listed`)."""
    cdef Masks masks = Masks()
    cdef int* below                    # by node of one tree: its leaves,
    cdef int* first                    # and the number of the first of them
    cdef int t
    masks.function = mask_function(lanes)
    masks.lanes, masks.n_trees = lanes, n_trees
    for t in range(n_trees):
        if trees[t].n_nodes > MOST_NODES:
            return None
    if masks.function == NULL or n_trees == 0:
        return None
    below = <int*>taken(2 * MOST_NODES, sizeof(int))
    first = below + MOST_NODES
    try:
        masks.trees = <MaskTree*>taken(n_trees, sizeof(MaskTree))
        if not masks.measure(nodes, trees, weights, n_sums, bits, below, first):
            return None
        masks.words = <uint32_t*>taken(masks.n_words, sizeof(uint32_t))
        masks.tests = <Test*>taken(masks.n_tests, sizeof(Test))
        masks.values = <float*>taken(masks.n_values + WORD, sizeof(float))
        masks.n_words = masks.n_tests = masks.n_values = 0
        for t in range(n_trees):
            masks.keep(t, nodes + trees[t].root, weights, trees[t].n_nodes, bits, below, first)
    finally:
        free(below)
    return masks


cdef void number_leaves(const Node* nodes, int n, int bits, int* below, int* first) noexcept:
    """From left to right; nodes stand behind their parents."""
    cdef int i, left
    for i in range(n - 1, -1, -1):
        left = left_of(&nodes[i], bits)
        below[i] = 1 if left == i else below[left] + below[left + 1]
    first[0] = 0
    for i in range(n):
        left = left_of(&nodes[i], bits)
        if left != i:
            first[left], first[left + 1] = first[i], first[i] + below[left]


cdef inline int listed(const Weight* weight) noexcept:
    """How many weights a leaf has; -1 where their sums do not ascend: one may come twice, and masks know one value."""
    cdef int n = 0, last = -1
    while weight[n].target >= 0:
        if weight[n].target <= last:
            return -1
        last = weight[n].target
        n += 1
    return n


@cython.final
cdef class Masks:
    def __dealloc__(self):
        free(self.trees)
        free(self.words)
        free(self.tests)
        free(self.values)

    cdef Py_ssize_t nbytes(self) noexcept:
        return (self.n_trees * sizeof(MaskTree) + self.n_words * sizeof(uint32_t) + self.n_tests * sizeof(Test)
                + self.n_values * sizeof(float))

    cdef bint measure(self, const Node* nodes, const Tree* trees, const Weight* weights, int n_sums, int bits,
                      int* below, int* first) noexcept:
        """How much of everything there will be; whether that is worth it."""
        cdef const Node* node
        cdef MaskTree* mask
        cdef Py_ssize_t n_weights = 0
        cdef int t, i, left, n
        for t in range(self.n_trees):
            node = nodes + trees[t].root
            mask = &self.trees[t]
            number_leaves(node, trees[t].n_nodes, bits, below, first)
            mask.n_leaves, mask.n_words = below[0], (below[0] + WORD - 1) // WORD
            mask.n_sums = 1 if trees[t].target >= 0 else n_sums
            mask.first_sum = max(trees[t].target, 0)
            self.n_leaves += mask.n_leaves
            self.n_values += <Py_ssize_t>mask.n_leaves * mask.n_sums
            self.n_words += mask.n_words
            for i in range(trees[t].n_nodes):
                left = left_of(&node[i], bits)
                if left != i:
                    self.n_tests += (first[i] + below[left] - 1) // WORD - first[i] // WORD + 1
                    continue
                n = 1 if trees[t].target >= 0 else listed(list_of(&node[i], weights))
                if n < 0:
                    return False
                n_weights += n
        return (self.n_leaves <= <Py_ssize_t>LEAVES_A_LANE * self.lanes * self.n_trees
                and self.n_tests <= SPANNED * self.n_leaves and self.n_values <= SPARSE * n_weights)

    cdef void keep(self, int t, const Node* nodes, const Weight* weights, int n, int bits, int* below,
                   int* first) noexcept:
        """Write one tree behind those before it."""
        cdef MaskTree* mask = &self.trees[t]
        cdef Test* test = self.tests + self.n_tests
        cdef uint32_t* words = self.words + self.n_words
        cdef float* values = self.values + self.n_values
        cdef int word, i, left, begin, end
        mask.words, mask.tests, mask.leaves = words, test, values
        number_leaves(nodes, n, bits, below, first)
        for i in range(n):
            if left_of(&nodes[i], bits) == i:
                self.keep_leaf(mask, values + first[i], &nodes[i], weights)
        for word in range(mask.n_words - 1, -1, -1):
            for i in range(n):
                left = left_of(&nodes[i], bits)
                if left == i:
                    continue
                begin, end = max(first[i] - word * WORD, 0), min(first[i] + below[left] - word * WORD, <int>WORD)
                if begin < end:
                    test.threshold = nodes[i].threshold
                    test.column = <uint16_t>(column_of(&nodes[i], bits) * self.lanes)
                    test.cleared = (<uint32_t>0xFFFFFFFF >> (WORD - (end - begin))) << begin
                    test += 1
                    words[0] += 1
            words += 1
        self.n_tests = test - self.tests
        self.n_words = words - self.words
        self.n_values += <Py_ssize_t>mask.n_leaves * mask.n_sums

    cdef void keep_leaf(self, const MaskTree* mask, float* values, const Node* leaf, const Weight* weights) noexcept:
        """Write what one leaf adds to each sum; what it does not name stays 0."""
        cdef const Weight* weight
        if mask.n_sums == 1:
            values[0] = leaf.threshold
            return
        weight = list_of(leaf, weights)
        while weight.target >= 0:
            values[<Py_ssize_t>weight.target * mask.n_leaves] = weight.value
            weight += 1

    cdef void run(self, const float* block, Py_ssize_t step, int groups, float* sums) noexcept nogil:
        """Add to `sums`, [targets, groups * lanes], what rows of a block [groups, columns, lanes] reach."""
        cdef int t
        for t in range(self.n_trees):
            self.function(&self.trees[t], block, step, groups, sums)
