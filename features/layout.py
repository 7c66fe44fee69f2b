"""The columns between two steps of transforms: their names, and the numbers they have in the program being compiled."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from penstock.features.errors import TransformError
from penstock.kernels.transforms import Operation, Program


class Layout:
    """Names of columns while steps are compiled for them.

    Args:
        columns: of the batch, each name once.

    Attributes:
        names: of the columns that are there now, in order: what stays keeps its place, what is new comes behind it.
    """

    def __init__(self, columns: Sequence[str]) -> None:
        self.names = list(columns)
        self._width = self._next = len(columns)
        self._numbers = {name: number for number, name in enumerate(columns)}
        self._operations: list[Operation] = []

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
            TransformError: a name is taken.
        """
        for name in names:
            if name in self.names:
                raise TransformError(f"there would be two columns {name!r}; rename one, or leave one out before")
            self.names.append(name)
            self._numbers[name] = self._next
            self._next += 1

    def leave_out(self, columns: Iterable[str]) -> None:
        """Go on without some columns."""
        gone = set(columns)
        self.names = [name for name in self.names if name not in gone]

    def select(self, columns: Sequence[str]) -> None:
        """Go on with these columns only, in this order."""
        self.names = list(columns)

    def program(self) -> Program:
        """What was compiled so far, from the batch to the columns that are there now."""
        return Program(self._width, self._operations, [self._numbers[name] for name in self.names])

    @property
    def changed(self) -> bool:
        """Whether the program would do anything but copy."""
        return bool(self._operations) or [self._numbers[name] for name in self.names] != list(range(self._width))
