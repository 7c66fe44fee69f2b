"""RPCs of the native transport that Python answers: what happened to them, and what is to be done with them."""

from collections.abc import Iterable
from typing import Any, final

BEGAN_EVENT: int
"""An RPC began; that of a unary method has its message with it."""
MESSAGE_EVENT: int
"""One message of a stream's client."""
ENDED_EVENT: int
"""The client of a stream sends no more."""
WRITTEN_EVENT: int
"""A message that `Rpc.send` gave has left the queue."""
CLOSED_EVENT: int
"""The RPC is over, whatever the reason: its last event, and every RPC gets it."""
DRAINED_EVENT: int
"""Of no RPC: the last connection is closed."""

@final
class Rpc:
    """One RPC that Python answers. Its methods may be called from any thread, and once it is closed they do nothing.

    Attributes:
        task: free for the transport's use, as is `conversation`.
    """

    task: Any
    conversation: Any
    def __init__(self, *args: object, **kwargs: object) -> None:
        """Raises TypeError: exchanges come from a transport."""

    @property
    def path(self) -> str:
        """Full method path."""
    @property
    def streaming(self) -> bool:
        """Whether it was begun by its headers alone, and messages follow; else its one message came with BEGAN."""
    @property
    def encoding(self) -> str:
        """What compressed messages of the client are compressed with: identity, gzip or deflate."""
    @property
    def metadata(self) -> tuple[tuple[bytes, bytes], ...]:
        """What the client sent beyond what gRPC itself uses, as (name, value) pairs."""
    @property
    def peer(self) -> str:
        """The caller's address, as gRPC writes it."""
    @property
    def deadline_ns(self) -> int:
        """CLOCK_MONOTONIC; 0 where the client set none."""
    def accepts(self, encoding: str) -> bool:
        """Whether the client takes answers compressed so."""
    def send(self, message: bytes, encoding: str = "") -> None:
        """Send one message; where `encoding` is given it is compressed with that already. WRITTEN tells that it left.

        Raises:
            ValueError: an encoding that is neither identity, gzip nor deflate.
        """
    def finish(self, status: int = 0, message: str = "", trailing: Iterable[tuple[bytes, bytes]] = ()) -> None:
        """End the RPC with a status and trailing metadata. Nothing can be sent after; a second end does nothing.

        Args:
            status: gRPC status code.
            message: told to the caller where the status is not 0; 2,000 bytes of UTF-8 at most are sent.
            trailing: (name, value) pairs; names in lower case. About 20 are sent.
        """
    def consumed(self, size: int) -> None:
        """Tell that `size` bytes of messages were read, so that the client may send as many more."""
