"""What `kernels.ids` must equal, in Python."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

MAX_PARTS = 64
PART = rb"((?:[^|\\]|\\.)+)"  # as it is written


class Splitter:
    """Takes ids apart, by one or more takes."""

    def __init__(self, n_parts: int, takes: Iterable[Iterable[int]]) -> None:
        self.n_parts = n_parts
        self.takes = tuple(tuple(take) for take in takes)
        if not 2 <= n_parts <= MAX_PARTS or not self.takes:
            raise ValueError("another number of parts, or no take")
        for take in self.takes:
            if not take or len(set(take)) < len(take) or not set(take) <= set(range(n_parts)):
                raise ValueError("a take that is none")
        self._pattern = re.compile(rb"\|".join([PART] * n_parts), re.DOTALL)

    def split(
        self, ids: Sequence[bytes], row_of: NDArray[np.int32], out: NDArray[np.int32]
    ) -> tuple[list[list[bytes]], list[int]]:
        """What each take gives of the ids; which of these are unfit."""
        if out.shape != (len(self.takes), len(row_of)) or (row_of >= len(ids)).any():
            raise ValueError("shapes do not fit, or a row is of an id that is not there")
        found = [self._pattern.fullmatch(one) for one in ids]
        taken: list[list[bytes]] = []
        for take, rows in zip(self.takes, out, strict=True):
            of_id = [None if parts is None else _taken(parts.groups(), take) for parts in found]
            known = list(dict.fromkeys(one for one in of_id if one is not None))
            places = [-1 if one is None else known.index(one) for one in of_id]
            rows[:] = [places[row] if row >= 0 else -1 for row in row_of]
            taken.append(known)
        return taken, [i for i, parts in enumerate(found) if parts is None]


def _taken(parts: Sequence[bytes], take: Sequence[int]) -> bytes:
    """One part without its backslashes, or several as they are written."""
    if len(take) == 1:
        return re.sub(rb"\\(.)", rb"\1", parts[take[0]], flags=re.DOTALL)
    return b"|".join(parts[place] for place in take)
