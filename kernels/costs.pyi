"""What a run costs by its rows, learnt from the runs."""

from typing import final

@final
class Cost:
    """t(n) = a + b n by weighted least squares with forgetting; the rules stand in `_costs.pxd`.

    A run of n rows weighs 1 / (n + 1)^2, earlier runs 63/64 as much at each run; runs that took over four times the
    prediction count as four times. Used by several threads under the interpreter's lock.
    """

    def seed(self, rows: int, ns: int) -> None:
        """A point of a curve measured beforehand: it weighs a quarter of a run and is never forgotten."""
    def learn(self, rows: int, ns: int) -> None:
        """A run of `rows` took `ns` nanoseconds. Fewer rows than one, or negative times, teach nothing."""
    def predict(self, rows: int) -> int:
        """Nanoseconds that a run of `rows` will take, at least 1; 0 where nothing is known."""
    @property
    def fixed_ns(self) -> float:
        """a: nanoseconds of every run."""
    @property
    def row_ns(self) -> float:
        """b: nanoseconds of every row."""
    @property
    def error(self) -> float:
        """Running mean of |predicted - taken| / taken, over about the last 32 runs."""
    @property
    def runs(self) -> int:
        """Runs learnt from; points of the curve are not counted."""
