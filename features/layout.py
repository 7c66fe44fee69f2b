"""The columns between two steps of transforms: their names, and the numbers they have in the program being compiled."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from penstock.features.errors import TransformError
from penstock.kernels.transforms import Operation, Program

MAX_COLUMNS = 1 << 20


class Layout:
    """Names of columns while steps are compiled for them; what stays keeps its place, what is new comes behind it.

    Args:
        columns: of the batch, each name once.
    """

    def __init__(self, columns: Sequence[str]) -> None:
        self._width = self._next = len(columns)
        self._numbers = {name: number for number, name in enumerate(columns)}  # of the columns that are there now
        self._operations: list[Operation] = []

    @property
    def names(self) -> tuple[str, ...]:
        """The columns that are there now, in order."""
        return tuple(self._numbers)

    def change(self, op: str, columns: Sequence[str], parameters: Sequence[float]) -> None:
        """Change the first of `columns` by an operation of the kernel, which may read the others."""
        self._operations.append((op, tuple(self._numbers[name] for name in columns), parameters))

    def make(self, op: str, columns: Sequence[str], parameters: Sequence[float], names: Sequence[str]) -> None:
        """Make columns of those names by an operation of the kernel over `columns`.

        Raises:
            TransformError: a name is taken.
        """
        self.change(op, columns, parameters)
        self.add(names)

    def add(self, names: Sequence[str]) -> None:
        """New columns, already made.

        Raises:
            TransformError: a name is taken, or there would be more than a million columns.
        """
        if self._next + len(names) > MAX_COLUMNS:
            raise TransformError(f"the transforms make more than {MAX_COLUMNS:,} columns; name fewer of them")
        for name in names:
            if name in self._numbers:
                raise TransformError(f"there would be two columns {name!r}; rename one, or leave one out before")
            self._numbers[name] = self._next
            self._next += 1

    def leave_out(self, columns: Iterable[str]) -> None:
        """Go on without some columns."""
        for name in columns:
            del self._numbers[name]

    def select(self, columns: Sequence[str]) -> None:
        """Go on with these columns only, in this order."""
        self._numbers = {name: self._numbers[name] for name in columns}

    def program(self) -> Program:
        """What was compiled so far, from the batch to the columns that are there now."""
        return Program(self._width, self._operations, list(self._numbers.values()))

    @property
    def changed(self) -> bool:
        """Whether the program would do anything but copy."""
        return bool(self._operations) or list(self._numbers.values()) != list(range(self._width))
