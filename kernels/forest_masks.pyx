"""Masks made of a forest's nodes, and run over a block of columns: what they are is told in `_forest_masks.h`.

10 bytes a branch and 4 a leaf, beside some 40 for each tree; a branch that clears leaves of two words counts twice.
"""

cimport cython
from libc.stdlib cimport free
from libc.stdint cimport uint16_t, uint32_t

from penstock.kernels._forest cimport Node, Tree, column_of, left_of, taken

cdef enum:
    WORD = 32              # leaves of a word
    LEAVES_A_LANE = 8      # leaves of a tree for each lane, on the average, up to which masks beat walks
    MOST_NODES = 2047      # of one tree
    SPANNED = 2            # words that a branch clears leaves of, on the average at most


cdef Masks masks_of(const Node* nodes, const Tree* trees, int n_trees, int bits, int lanes):
    """Masks of so many lanes; None where the processor has none of those, or walks are faster."""
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
        masks.trees = <Masked*>taken(n_trees, sizeof(Masked))
        masks.lay_out(nodes, trees, bits, below, first)
        if masks.n_leaves > <Py_ssize_t>LEAVES_A_LANE * lanes * n_trees or masks.n_tests > SPANNED * masks.n_leaves:
            return None
        masks.words = <uint32_t*>taken(masks.n_words, sizeof(uint32_t))
        masks.tests = <Test*>taken(masks.n_tests, sizeof(Test))
        masks.leaves = <float*>taken(masks.n_leaves + WORD, sizeof(float))
        for t in range(n_trees):
            masks.keep(&masks.trees[t], nodes + trees[t].root, trees[t].n_nodes, bits, below, first)
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


@cython.final
cdef class Masks:
    def __dealloc__(self):
        free(self.trees)
        free(self.words)
        free(self.tests)
        free(self.leaves)

    cdef Py_ssize_t nbytes(self) noexcept:
        return (self.n_trees * sizeof(Masked) + self.n_words * sizeof(uint32_t) + self.n_tests * sizeof(Test)
                + self.n_leaves * sizeof(float))

    cdef void lay_out(self, const Node* nodes, const Tree* trees, int bits, int* below, int* first) noexcept:
        """Where the parts of each tree begin."""
        cdef const Node* node
        cdef int t, i, left
        for t in range(self.n_trees):
            node = nodes + trees[t].root
            number_leaves(node, trees[t].n_nodes, bits, below, first)
            self.trees[t] = Masked(self.n_tests, self.n_leaves, self.n_words, (below[0] + WORD - 1) // WORD,
                                   trees[t].target)
            self.n_leaves += below[0]
            self.n_words += self.trees[t].n_words
            for i in range(trees[t].n_nodes):
                left = left_of(&node[i], bits)
                if left != i:
                    self.n_tests += (first[i] + below[left] - 1) // WORD - first[i] // WORD + 1

    cdef void keep(self, const Masked* masked, const Node* nodes, int n, int bits, int* below, int* first) noexcept:
        cdef Test* test = self.tests + masked.tests
        cdef uint32_t* words = self.words + masked.words
        cdef int word, i, left, begin, end
        number_leaves(nodes, n, bits, below, first)
        for word in range(masked.n_words - 1, -1, -1):
            for i in range(n):
                left = left_of(&nodes[i], bits)
                if left == i:
                    self.leaves[masked.leaves + first[i]] = nodes[i].threshold
                    continue
                begin, end = max(first[i] - word * WORD, 0), min(first[i] + below[left] - word * WORD, <int>WORD)
                if begin < end:
                    test.threshold = nodes[i].threshold
                    test.column = <uint16_t>(column_of(&nodes[i], bits) * self.lanes)
                    test.cleared = (<uint32_t>0xFFFFFFFF >> (WORD - (end - begin))) << begin
                    test += 1
                    words[0] += 1
            words += 1

    cdef void run(self, const float* block, Py_ssize_t step, int groups, float* sums) noexcept nogil:
        """Add to `sums`, [targets, groups * lanes], what rows of a block [groups, columns, lanes] reach."""
        cdef const Masked* tree = self.trees
        cdef int _t
        for _t in range(self.n_trees):
            self.function(self.words + tree.words, tree.n_words, self.tests + tree.tests, self.leaves + tree.leaves,
                          block, step, groups, sums + tree.target * groups * self.lanes)
            tree += 1
