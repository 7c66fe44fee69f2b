"""The native transport: gRPC over HTTP/2 on libnghttp2, in I/O threads without the GIL."""

from collections.abc import Iterable, Sequence
from typing import final

from penstock.kernels.exchanges import Rpc
from penstock.kernels.lanes import Lane
from penstock.kernels.tls import TlsContext

@final
class Http2:
    """A gRPC server over HTTP/2. Each of its I/O threads is a call of `run`; its owner reads `events`.

    What it does with a call: one of the method `infer` that is not compressed and fits its lane goes there and is
    answered from there; one of a path in `unary` or `streams`, and any other of `infer`, is told as an event; any other
    path is UNIMPLEMENTED.
    """

    def __new__(
        cls,
        *,
        threads: int,
        infer: bytes,
        unary: Iterable[bytes],
        streams: Iterable[bytes],
        max_message_bytes: int,
        max_header_bytes: int,
        max_streams: int,
        max_connections: int,
        max_in_flight_bytes: int,
        default_deadline_s: float,
        handshake_timeout_s: float,
        header_timeout_s: float,
        body_timeout_s: float,
        idle_timeout_s: float,
        keepalive_s: float,
        keepalive_timeout_s: float,
        max_connection_age_s: float,
        max_connection_age_grace_s: float,
        max_resets_per_s: float,
        max_pings_per_s: float,
        max_settings_per_s: float,
        max_empty_frames_per_s: float,
    ) -> Http2:
        """Make a transport that does not run yet.

        The rest are limits, as docs/reference.md has them: bytes, counts, seconds, or a rate a second.

        Args:
            threads: how many I/O threads there will be, 1 to 256.
            infer: path of the method whose calls go to lanes.
            unary: paths that Python answers, one message for one.
            streams: paths that Python answers message by message.
            max_message_bytes: of one request or answer.
            max_header_bytes: of one call.
            max_streams: calls in flight on one connection.
            max_connections: open ones.
            max_in_flight_bytes: of requests and answers held, over all connections.
            default_deadline_s: for callers who send none.
            handshake_timeout_s: for TLS and the first frame.
            header_timeout_s: for the headers of a call.
            body_timeout_s: for a request's body, and for an answer to be read.
            idle_timeout_s: of a connection without calls.
            keepalive_s: a peer silent for so long is sent a PING.
            keepalive_timeout_s: for the answer to that PING.
            max_connection_age_s: then it is told to leave; 0 for any age.
            max_connection_age_grace_s: for its calls to finish.
            max_resets_per_s: RST_STREAM frames of a connection.
            max_pings_per_s: PING frames of one.
            max_settings_per_s: SETTINGS frames of one.
            max_empty_frames_per_s: frames without content of one.

        Raises:
            TypeError: a limit is missing or unknown.
            ValueError: a number of threads out of bounds.
            MemoryError: no memory, or no file descriptor, is left.
        """

    def listen(self, fd: int) -> None:
        """Accept connections from a listening, non-blocking socket, which belongs to the transport from now on.

        Before `run` is called only, and at most 8 times.

        Raises:
            ValueError: a ninth listener.
            OSError: the socket cannot be watched; it stays the caller's.
        """
    def adopt(self, fd: int) -> bool:
        """Serve a connected, non-blocking socket, which belongs to the transport from now on.

        False where thread 0 does not run: the socket then stays the caller's.
        """
    def set_routes(self, lanes: dict[tuple[bytes, bytes], Lane]) -> None:
        """Send calls to these lanes from now on: (model name, version or alias or nothing) to `Lane`.

        Returns once no thread uses the routes there were before: no call reaches a lane through them any more.
        """
    def set_tls(self, context: TlsContext) -> None:
        """Have connections made from now on use TLS with this context; those that are open go on."""
    def fileno(self) -> int:
        """The descriptor that turns readable when there are events. It stays the transport's."""
    def events(self) -> list[tuple[int, Rpc | None, bool, bytes]]:
        """What happened since the last time, in order: (kind, RPC, whether its message is compressed, message).

        The kinds are those of `kernels.exchanges`; only DRAINED_EVENT has no RPC. Read by one thread.
        """
    def run(self, index: int) -> None:
        """The life of one I/O thread: serve until `stop`. Holds no GIL. Each index is run once.

        Raises:
            ValueError: there is no thread `index`.
        """
    def drain(self) -> None:
        """Close the listeners and end every connection in two steps; calls in flight are finished.

        DRAINED_EVENT tells when the last connection is gone. Returns at once.
        """
    def stop(self) -> None:
        """Close everything; `run` returns soon. What is still in lanes is answered to nobody."""
    def snapshot(self) -> dict[str, int]:
        """Gauges and counters since the start.

        Gauges: connections, bytes (of requests and answers held), in_lanes (calls). Counters: accepted, refused (beyond
        max_connections), handshakes_failed (of TLS), timed_out (connections and calls), calmed (connections told to
        calm down), reset (calls the client gave up), over_budget (calls refused for want of bytes), inferences (calls
        that went straight to a lane), inlined (of those, calls that the thread ran itself), exchanges (calls that
        Python answers).
        """

def versions() -> dict[str, str]:
    """Of the libraries that this transport runs on."""

def decide_timeout(text: bytes) -> int | None:
    """Nanoseconds of a grpc-timeout; None where it is malformed."""

def decide_message(text: bytes) -> bytes:
    """A status message as grpc-message carries it."""

def decide_content_type(text: bytes) -> bool:
    """Whether a content-type is gRPC's."""

def decide_encodings(text: bytes) -> int:
    """The known encodings of a grpc-accept-encoding, a bit for each: 1 identity, 2 gzip, 4 deflate."""

def decide_prefix(size: int, compressed: bool) -> tuple[bytes, int]:
    """The prefix of a message of `size` bytes, less than 4 GiB, and the size that is read from it."""

def decide_allowed(rate: float, times: Sequence[int]) -> list[bool]:
    """Which of the events at these times, in nanoseconds and ascending, are within `rate` a second."""

@final
class TimerWheel:
    """The timers of one loop, for tests: `size` of them, known by their numbers. Times are nanoseconds."""

    def __new__(cls, size: int, now: int) -> TimerWheel: ...
    def set(self, timer: int, due: int) -> None:
        """Have a timer fire at `due`, wherever it was before."""
    def cancel(self, timer: int) -> None:
        """Have a timer not fire."""
    def take_due(self, now: int) -> int | None:
        """A timer that is due; None once there is none."""
    def wait_ms(self, now: int) -> int:
        """How long a thread may sleep; -1 where no timer is set."""
