"""The rows of many calls in one piece of memory, and the replies cut out of what came of them."""

import sys
from collections.abc import Mapping
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from penstock.kernels.ledger import Ledger
from penstock.kernels.wire import Plan

@final
class Memory:
    """Aligned memory that numpy arrays can lie in."""

    def __new__(cls, size: int) -> Memory: ...
    if sys.version_info >= (3, 12):
        def __buffer__(self, flags: int, /) -> memoryview: ...
        def __release_buffer__(self, buffer: memoryview, /) -> None: ...

    @property
    def size(self) -> int: ...

@final
class Batch:
    """The rows of many calls, to be run at once and answered: `complete`, `fail` or `split` is called once."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        """Raises TypeError: batches come from `Lane.take`."""

    @property
    def plan(self) -> Plan: ...
    @property
    def ledger(self) -> Ledger: ...
    @property
    def rows(self) -> int: ...
    @property
    def taken_ns(self) -> int: ...
    @property
    def inputs(self) -> dict[str, Any]: ...
    @property
    def matrix(self) -> NDArray[np.float32] | None: ...
    @property
    def source(self) -> NDArray[np.uint8] | None: ...
    @property
    def entities(self) -> list[bytes | None] | None: ...
    @property
    def copies(self) -> list[tuple[bytes, bytes]] | None:
        """(key, reply without id) of each call that was run since `recall` and answered with OK; None before it."""
    degraded: bool
    @property
    def deadline_ns(self) -> int:
        """The earliest deadline of its calls, CLOCK_MONOTONIC; 0 where none has one."""
    @property
    def latest_deadline_ns(self) -> int:
        """The latest deadline of its calls, CLOCK_MONOTONIC; 0 where one of them has none."""
    def shape_of(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor input in this batch; what BYTES inputs, which come as lists, are to be folded into.

        Raises:
            ValueError: the plan has no such input.
        """
    def spans(self) -> list[tuple[int, int]]:
        """(first row, rows) of every call, in order."""
    def open_rows(self) -> NDArray[np.int64] | None:
        """Rows of the calls that were not refused; None where that is all of them."""
    def wants(self, output: int) -> bool:
        """Whether any caller wants output number `output` of the plan."""
    def unique_entities(self) -> tuple[list[bytes], NDArray[np.int32]]:
        """The ids that must be looked up, each once, and which of them each row belongs to (-1: none)."""
    def keys(self) -> list[bytes | None]:
        """What makes each call's request the one it is, in order; None where its answer is its own or too large.

        Raises:
            ValueError: the batch is of a version that keeps no answers.
        """
    def recall(self, replies: list[bytes | None], made_ns: NDArray[np.int64], took_ns: int = 0) -> bool:
        """Answer the calls that `replies` has one for, and have the answers of the others copied, see `copies`.

        Args:
            replies: for every call, in order, what was kept of a reply to the same request, or None.
            made_ns: for every call: since when its reply held, CLOCK_MONOTONIC; the version's own cache keeps it from
                then on.
            took_ns: how long finding them took: a part of the batch's look-up.

        Returns:
            Whether any call is left. If not the batch has ended, else its rows are those of the others.

        Raises:
            ValueError: there is not one reply and one time for each call, or the batch was answered.
        """
    def complete(self, outputs: Mapping[str, Any], lookup_ns: int = 0, compute_ns: int = 0) -> None:
        """Answer every call from the outputs of the run.

        Raises:
            ValueError: an output is missing or not what the plan promises: nothing was answered. Or all was answered
                before.
        """
    def refuse(self, row: int, status: int, message: str) -> None:
        """Give the call that row belongs to a status instead of an answer; the others of the batch go on."""
    def fail(self, status: int, message: str) -> None:
        """Give every call of the batch a status instead of an answer."""
    def split(self) -> list[Batch]:
        """One batch for each call, over the same memory; this one is empty afterwards."""
