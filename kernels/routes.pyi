"""Which lane answers a (model name, version): the table that I/O threads look up in without the GIL."""

from typing import final

from penstock.kernels.lanes import Lane

@final
class Routes:
    """A routing table. Does not change afterwards: a new one takes its place. Keeps its lanes alive."""

    def __new__(cls, lanes: dict[tuple[bytes, bytes], Lane]) -> Routes:
        """Make a table of (model name, version or alias or nothing) to the lane that answers.

        Names may hold any bytes. A look-up costs about 20 ns.
        """

    def lookup(self, name: bytes, version: bytes) -> Lane | None:
        """The lane that answers, or None: what compiled code finds, for tests."""
