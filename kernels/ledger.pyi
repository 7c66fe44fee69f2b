"""What one served version has done: calls by their end, durations by phase, batches by size."""

from typing import Any, final

@final
class Ledger:
    """The counters of one served version.

    Args:
        max_batch_rows: batches of up to so many rows are counted by size, larger ones together.
    """

    def __new__(cls, max_batch_rows: int) -> Ledger: ...
    def seed(self, rows: int, ns: int) -> None:
        """A point of a curve measured beforehand: what a run of `rows` takes without its look-up."""
    def predict(self, rows: int) -> int:
        """Nanoseconds that a run of `rows` will take, its look-up included; 0 where nothing is known."""
    def snapshot(self) -> dict[str, Any]:
        """Counters since the start, durations in nanoseconds."""

def bucket_bounds() -> list[float]:
    """Upper bound of each histogram bucket in seconds; the last one is infinity."""

def decide_bucket(ns: int) -> int:
    """The histogram bucket of a duration in nanoseconds, for tests."""

def decide_rest(ledger: Ledger, count: int, run: bool) -> int:
    """Note `count` runs that begin and end at once, without the GIL; or else forecast `count` times. For tests.

    Returns:
        Nanoseconds that were left of runs under way by the forecasts, at most.
    """
