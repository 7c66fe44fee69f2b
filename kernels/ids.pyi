"""Ids of several entities: see the head of ids.pyx, and `reference/ids.py` for the same in Python."""

from collections.abc import Iterable, Sequence
from typing import final

import numpy as np
from numpy.typing import NDArray

MAX_PARTS: int
"""Of one id."""

@final
class Splitter:
    """Takes ids of `n_parts` parts apart, by one or more takes; does not change.

    Args:
        n_parts: of each id, 2 to `MAX_PARTS`.
        takes: for each view which of the parts its keys are, in its order: distinct places from 0 on.

    Raises:
        ValueError: another number of parts, no take, or a take of none, of one twice or of one that is not there.
    """

    def __new__(cls, n_parts: int, takes: Iterable[Iterable[int]]) -> Splitter: ...
    @property
    def n_parts(self) -> int: ...
    @property
    def takes(self) -> tuple[tuple[int, ...], ...]: ...
    def split(
        self, ids: Sequence[bytes], row_of: NDArray[np.int32], out: NDArray[np.int32]
    ) -> tuple[list[list[bytes]], list[int]]:
        """What each take gives of many ids.

        Args:
            ids: u ids.
            row_of: (n,) which of them belongs to a batch row, negative where none does.
            out: (takes, n) which of a take's ids belongs to a batch row; -1 where none does, or one that is unfit.

        Returns:
            (taken, unfit): for each take its ids, each once, in the order in which they come up; and which of `ids`
            do not have just `n_parts` parts, none of them empty. Of these nothing is taken.

        Raises:
            ValueError: shapes that do not fit, or a row of an id that is not there.
            TypeError: an id that is not bytes.
        """
