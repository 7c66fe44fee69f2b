"""Load on one method of a gRPC server, by libnghttp2 in threads without the GIL."""

from collections.abc import Sequence
from typing import TypeAlias, final

import numpy as np
import numpy.typing as npt

from penstock.kernels.tls import TlsTrust

_Expected: TypeAlias = tuple[bytes, bytes, int, Sequence[int]]

@final
class Load:
    """Requests to one server, made by threads each of which is a call of `run`.

    Life: every thread connects; `start` lets them send; `finish` has them send no more and end once what is in flight
    is answered; `stop` ends them at once. Whatever counts only grows, and may be read at any time by any thread.

    An outcome is 0 for an answer as it should be, 1 to 16 for another gRPC status, 17 where it was no gRPC, 18 where
    the server reset the stream, 19 where there was no connection, 20 where the answer does not fit, 21 where it did not
    come in time, and 22 where so many calls were in flight that one was not sent.
    """

    def __new__(
        cls,
        *,
        host: bytes,
        port: int,
        headers: Sequence[tuple[bytes, bytes]],
        bodies: Sequence[bytes],
        rows: Sequence[int],
        connections: int,
        threads: int = 1,
        callers: int = 0,
        schedule: npt.NDArray[np.int64] | None = None,
        period_ns: int = 0,
        outputs: Sequence[_Expected] = (),
        quantum_ns: int = 0,
        limit: int = 0,
        timeout_s: float = 30.0,
        most_in_flight: int = 65536,
        tls: TlsTrust | None = None,
    ) -> Load:
        """Make a load that does not run yet: a closed loop with `callers`, an open one with a `schedule`.

        Args:
            host: a numeric address; where `port` is 0, the path of a Unix socket.
            port: of TCP.
            headers: of every request, pseudo-headers first; at most 8.
            bodies: messages without gRPC's prefix, which are sent in turn.
            rows: how many rows each body has.
            connections: in all, at least one for each thread.
            threads: how many calls of `run` there will be, 1 to 256.
            callers: of the closed loop, in all.
            schedule: ascending ns within the period at which a request is due, over and over. It is not copied.
            period_ns: after which the schedule begins again.
            outputs: (name, datatype, bytes of an element or 0, shape) of what is expected, in order; -1 in a shape is
                any size, -2 the rows of the request. None: answers are not looked into.
            quantum_ns: requests may be so late, to go out together; 0 makes threads spin rather than be late.
            limit: of a closed loop, requests in all; 0 for none.
            timeout_s: a call is given up after that.
            most_in_flight: of an open loop; what would be more is not sent.
            tls: whom to trust and what to show; None for plaintext.

        Raises:
            ValueError: a number is out of bounds.
            MemoryError: no memory, or no file descriptor, is left.
        """

    def run(self, index: int) -> None:
        """The life of one thread. Holds no GIL. Each index is run once.

        Raises:
            ValueError: there is no thread `index`, or it was run already.
            MemoryError: no memory, or no file descriptor, is left.
        """
    def start(self) -> None:
        """Send from now on."""
    def finish(self) -> None:
        """Send no more; threads end once nothing is in flight."""
    def stop(self) -> None:
        """Threads end soon."""
    def counts(self) -> dict[str, int | list[int]]:
        """Counters of all threads: connected, sent, rows and latency_ns (sums of answered calls), outcomes."""
    def read_latencies(self, out: npt.NDArray[np.uint64]) -> None:
        """Fill in the histogram of answered calls: from when they were to go out to their end.

        Raises:
            ValueError: `out` has not as many elements as there are buckets.
        """
    def read_lags(self, out: npt.NDArray[np.uint64]) -> None:
        """Fill in the histogram of how late requests of the schedule were written.

        Raises:
            ValueError: `out` has not as many elements as there are buckets.
        """
    def words(self) -> dict[int, bytes]:
        """For each outcome, what the server or the system first said of it; a server's words are percent-encoded."""
    def sample(self) -> bytes | None:
        """The first message that came, without its prefix; None before."""
    def seconds(self) -> float:
        """From the start to the last end of a call. Read it when threads have ended."""

def decide_bucket(ns: int) -> int:
    """The bucket of a duration."""

def decide_fit(answer: bytes, rows: int, outputs: Sequence[_Expected]) -> int:
    """Whether a serialised answer fits what is expected of it for a request of so many rows.

    0 fits, 1 malformed, 2 other outputs, 3 another datatype, 4 another shape, 5 another number of bytes.
    """
