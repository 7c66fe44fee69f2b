"""From an ensemble as ONNX writes it to the order in which it is walked, or what is wrong with it.

Every branch becomes `column <= threshold`: `<` by the float32 below the threshold, `>` and `>=` by their opposites with
the children changed over, equality by a column that tells it. What a missing value does is the column's matter, too.
Checked here is all that the walk relies on. Cost: about 60 ns a node.
"""

from libc.math cimport INFINITY, isfinite, isnan, nextafterf

import numpy as np

cdef enum:
    MOST_NODES = 1 << 28
    COPIES = 4             # nodes placed for one given, at most, where branches share what they lead to

cdef object never_met = float("nan")

cdef enum Mode:
    LEAF = 0
    LEQ = 1
    LT = 2
    GTE = 3
    GT = 4
    EQ = 5
    NEQ = 6


cdef class Layout:
    def __init__(self, features, values, modes, yes, no, missing, roots, weights, int n_features, int n_targets):
        """The arguments of Forest; `weights` is (nodes, targets, values)."""
        self.features, self.values, self.modes, self.missing = features, values, modes, missing
        self.yes, self.no = yes, no
        self.n_features, self.n_targets, self.n_nodes = n_features, n_targets, self.features.shape[0]
        self.check_nodes()
        self.read_branches()
        self.place(roots)
        self.sort_weights(weights[0], weights[1], weights[2])

    cdef void check_nodes(self) except *:
        cdef Py_ssize_t i, n = self.n_nodes
        for name, size in (("values", self.values.shape[0]), ("modes", self.modes.shape[0]),
                           ("true_children", self.yes.shape[0]), ("false_children", self.no.shape[0]),
                           ("missing", self.missing.shape[0])):
            if size != n:
                raise ValueError(f"{n} features but {size} {name}: every node has one of each")
        if n > MOST_NODES:
            raise ValueError(f"{n} nodes: at most {<int>MOST_NODES} are served")
        for i in range(n):
            if self.modes[i] > NEQ:
                raise ValueError(f"node {i} has mode {self.modes[i]}: known are 0 to {<int>NEQ}")
            if self.modes[i] == LEAF:
                continue
            if not 0 <= self.features[i] < self.n_features:
                raise ValueError(f"node {i} asks for feature {self.features[i]} of {self.n_features}")
            if not (0 <= self.yes[i] < n and 0 <= self.no[i] < n):
                raise ValueError(f"node {i} leads to nodes {self.yes[i]} and {self.no[i]} of {n}")

    cdef void read_branches(self) except *:
        """What each branch asks: thresholds, sides and columns.

        A comparison that is true for no number (with NaN, or `< -inf`) asks whether the feature equals NaN.
        """
        cdef Py_ssize_t i
        cdef int mode
        cdef bint missing, never
        cdef float value
        cdef int32_t[::1] plain = np.full(2 * self.n_features, -1, np.int32)
        cdef int32_t[::1] key = np.zeros(self.n_nodes, np.int32)
        cdef dict equal = {}
        self.columns = []
        self.column, self.threshold = np.zeros(self.n_nodes, np.int32), np.zeros(self.n_nodes, np.float32)
        self.swapped = np.zeros(self.n_nodes, np.uint8)
        for i in range(self.n_nodes):
            mode, value = self.modes[i], self.values[i]
            if mode == LEAF:
                continue
            never = isnan(value) or (value == -INFINITY and (mode == LT or mode == GTE))
            self.swapped[i] = mode == NEQ or (not isnan(value) and (mode == GT or mode == GTE))
            missing = mode != NEQ and (self.missing[i] != 0) != self.swapped[i]    # whether NaN goes left
            if never or mode == EQ or mode == NEQ:
                asked = (self.features[i], missing, None if never else value + 0)  # + 0: one zero, not two
                self.column[i] = -1 - <int>equal.setdefault(asked, len(equal))
                continue
            self.threshold[i] = nextafterf(value, -INFINITY) if mode == LT or mode == GTE else value
            key[i] = <int>self.features[i] + (self.n_features if missing else 0)
            if plain[key[i]] < 0:
                plain[key[i]] = <int>len(self.columns)
                self.columns.append((self.features[i], missing, None))
            self.column[i] = plain[key[i]]
        for i in range(self.n_nodes):
            if self.column[i] < 0:
                self.column[i] = <int>len(self.columns) - 1 - self.column[i]
        self.columns += [(feature, left, never_met if met is None else met) for feature, left, met in equal]

    cdef void place(self, const int64_t[::1] roots) except *:
        """Each tree level by level. What several branches lead to is copied; a circle would be copied without end."""
        cdef Py_ssize_t at, end = 0, start, level_end, most = COPIES * self.n_nodes + roots.shape[0]
        cdef int32_t node
        cdef int t
        if roots.shape[0] > MOST_NODES:
            raise ValueError(f"{roots.shape[0]} trees: at most {<int>MOST_NODES} are served")
        self.n_trees = <int>roots.shape[0]
        self.root, self.depth = np.zeros(self.n_trees, np.int64), np.zeros(self.n_trees, np.int32)
        self.node, self.left = np.zeros(most, np.int32), np.zeros(most, np.int32)
        for t in range(self.n_trees):
            if not 0 <= roots[t] < self.n_nodes:
                raise ValueError(f"tree {t} begins at node {roots[t]} of {self.n_nodes}")
            self.root[t] = start = at = end
            if end >= most:
                raise ValueError(f"tree {t} leads to nodes that other trees lead to, too often")
            self.node[end] = <int32_t>roots[t]
            end += 1
            level_end = end
            while at < end:
                if at == level_end:
                    level_end = end
                    self.depth[t] += 1
                node = self.node[at]
                self.left[at] = <int32_t>((at if self.modes[node] == LEAF else end) - start)
                if self.modes[node] != LEAF:
                    if end + 2 > most:
                        raise ValueError(f"tree {t} leads in a circle, or to the same nodes too often (node {node})")
                    self.node[end] = <int32_t>(self.no[node] if self.swapped[node] else self.yes[node])
                    self.node[end + 1] = <int32_t>(self.yes[node] if self.swapped[node] else self.no[node])
                    end += 2
                at += 1
        self.n_placed = end

    cdef void sort_weights(
        self, const int64_t[::1] nodes, const int64_t[::1] targets, const float[::1] values
    ) except *:
        """Weights in the order of nodes, those of one node in the order given."""
        cdef Py_ssize_t i, n = nodes.shape[0]
        cdef int t
        cdef int32_t[::1] next_one
        if targets.shape[0] != n or values.shape[0] != n:
            raise ValueError(f"{n} leaf nodes, {targets.shape[0]} targets and {values.shape[0]} weights: not as many")
        if n > MOST_NODES:
            raise ValueError(f"{n} weights: at most {<int>MOST_NODES} are served")
        next_one = np.zeros(self.n_nodes + 1, np.int32)
        for i in range(n):
            if not 0 <= nodes[i] < self.n_nodes or self.modes[nodes[i]] != LEAF:
                raise ValueError(f"weight {i} belongs to node {nodes[i]}, which is no leaf")
            if not 0 <= targets[i] < self.n_targets:
                raise ValueError(f"weight {i} adds to output {targets[i]} of {self.n_targets}")
            if not isfinite(values[i]):
                raise ValueError(f"weight {i} is {values[i]}, which is no number to add")
            next_one[nodes[i] + 1] += 1
        for i in range(self.n_nodes):
            next_one[i + 1] += next_one[i]
        self.first = np.array(next_one)
        self.target, self.weight = np.zeros(n, np.int32), np.zeros(n, np.float32)
        for i in range(n):
            self.target[next_one[nodes[i]]] = <int32_t>targets[i]
            self.weight[next_one[nodes[i]]] = values[i]
            next_one[nodes[i]] += 1
        self.only = np.zeros(self.n_trees, np.int32)
        for t in range(self.n_trees):
            self.only[t] = self.target_of(t)

    cdef Py_ssize_t end_of(self, int tree) noexcept:
        return self.n_placed if tree + 1 == self.n_trees else self.root[tree + 1]

    cdef Py_ssize_t n_listed(self) except -1:
        """How much room the lists of weights take, an end to each."""
        cdef Py_ssize_t at, listed = 0
        cdef int t
        cdef int32_t node
        for t in range(self.n_trees):
            if self.only[t] >= 0:
                continue
            for at in range(self.root[t], self.end_of(t)):
                node = self.node[at]
                if self.modes[node] == LEAF:
                    listed += self.first[node + 1] - self.first[node] + 1
        if listed > MOST_NODES:
            raise ValueError(f"{listed} weights in lists: at most {<int>MOST_NODES} are served")
        return listed

    cdef int target_of(self, int tree) noexcept:
        """The target that every leaf adds one weight to; -1 where leaves differ or add several or none."""
        cdef Py_ssize_t at
        cdef int found = -1
        cdef int32_t node
        for at in range(self.root[tree], self.end_of(tree)):
            node = self.node[at]
            if self.modes[node] == LEAF:
                if self.first[node + 1] - self.first[node] != 1:
                    return -1
                if found >= 0 and found != self.target[self.first[node]]:
                    return -1
                found = self.target[self.first[node]]
        return found

    cdef void require_every_target(self) except *:
        """Refuse an ensemble some of whose sums may get no summand: ONNX says nothing of those."""
        cdef Py_ssize_t at
        cdef int t, i, leaves, n = self.n_targets
        cdef int32_t node
        cdef uint8_t[::1] sure = np.zeros(n, np.uint8)
        cdef int32_t[::1] found = np.zeros(n, np.int32)
        cdef int64_t[::1] seen = np.zeros(n, np.int64)
        for t in range(self.n_trees):
            if self.only[t] >= 0:
                sure[self.only[t]] = 1
                continue
            leaves = 0
            for at in range(self.root[t], self.end_of(t)):
                node = self.node[at]
                if self.modes[node] != LEAF:
                    continue
                leaves += 1
                for i in range(self.first[node], self.first[node + 1]):
                    if seen[self.target[i]] != at + 1:
                        seen[self.target[i]] = at + 1
                        found[self.target[i]] += 1
            for i in range(n):
                sure[i] |= found[i] == leaves
                found[i] = 0
        for i in range(n):
            if not sure[i]:
                raise ValueError(f"some rows may reach no leaf that adds to output {i}")
