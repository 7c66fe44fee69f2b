"""The cost model of `_costs.pxd` as an object, for Python and for tests; lanes keep the struct itself."""

import cython
from libc.stdint cimport int64_t

from penstock.kernels._costs cimport Cost as Model, cost_learn, cost_seed, predict_ns


@cython.final
cdef class Cost:
    """What a run costs by its rows, t(n) = a + b n. The interpreter's lock is the lock that it needs."""

    cdef Model model

    def seed(self, int64_t rows, int64_t ns):
        """A point of a measured curve."""
        cost_seed(&self.model, rows, ns)

    def learn(self, int64_t rows, int64_t ns):
        """A run of `rows` took `ns`."""
        cost_learn(&self.model, rows, ns)

    def predict(self, int64_t rows):
        """Nanoseconds that a run of `rows` will take; 0 where nothing is known."""
        return predict_ns(&self.model, rows)

    @property
    def fixed_ns(self):
        """a: nanoseconds of every run."""
        return self.model.fixed_ns

    @property
    def row_ns(self):
        """b: nanoseconds of every row."""
        return self.model.row_ns

    @property
    def error(self):
        """Running mean of the relative error of predictions."""
        return self.model.error

    @property
    def runs(self):
        """Runs learnt from."""
        return self.model.runs
