"""What a run costs, learnt from the runs themselves: CPU time of the running thread, by batch size.

Sizes are kept in octaves; a size not seen yet is taken to cost as much a row as the nearest smaller one that was. CPU
time rather than wall time, so that waiting for the interpreter or a busy machine does not look like work.
"""

from __future__ import annotations

from math import inf

SHARE = 0.2
"""How much of the estimate a new run replaces."""


class Cost:
    """Nanoseconds of CPU by rows. One thread learns at a time in practice; a lost update does no harm."""

    def __init__(self) -> None:
        self._ns = [0.0] * 65

    def learn(self, rows: int, ns: int) -> None:
        """A run of `rows` took `ns`."""
        octave = rows.bit_length()
        known = self._ns[octave]
        self._ns[octave] = known + (ns - known) * SHARE if known else float(ns)

    def predict(self, rows: int) -> float:
        """What a run of `rows` will take; infinite where nothing of that size or smaller was seen."""
        octave = rows.bit_length()
        for smaller in range(octave, 0, -1):
            if self._ns[smaller]:
                return self._ns[smaller] * (1 << (octave - smaller))
        return inf
