"""Answers of one version, kept for requests that come again."""

from typing import Any, Final, final

from penstock.kernels.wire import Plan

MIN_BYTES: Final[int]

@final
class Cache:
    """The answers kept for one version. Lanes and batches use it without the GIL; what is here is for tests and tiers.

    Args:
        plan: what the version takes and gives.
        size: bytes of memory, table included; at least 65,536.
        ttl_ns: how long an answer may be given again.

    Raises:
        ValueError: a size or time out of bounds.
        MemoryError: there are not as many bytes.
    """

    def __new__(cls, plan: Plan, *, size: int, ttl_ns: int) -> Cache: ...
    @property
    def plan(self) -> Plan: ...
    @property
    def size(self) -> int: ...
    @property
    def ttl_ns(self) -> int: ...
    def look_up(self, body: bytes, now_ns: int) -> tuple[bytes | None, int]:
        """(reply or None, token) for a ModelInferRequest; a token that is not 0 says that its answer is to be kept.

        Raises:
            WireError: the request is malformed or does not fit the plan.
        """
    def store(self, body: bytes, token: int, reply: bytes, now_ns: int) -> bool:
        """Keep a ModelInferResponse under the token that `look_up` gave.

        False where it is too large, or where all that would make room for it was asked for lately.

        Raises:
            WireError: the request is malformed or does not fit the plan.
            ValueError: the token is that of another request, or the reply is too short to be one.
        """
    def key(self, body: bytes) -> bytes:
        """What makes a request the one it is: equal for two requests exactly where they may share an answer.

        Raises:
            WireError: the request is malformed or does not fit the plan.
        """
    def snapshot(self) -> dict[str, Any]:
        """Counters since the start (hits, misses, passed, kept, evicted, expired, hit_ns, miss_ns); entries, bytes now.

        `passed` counts requests too large or asking for times; times are reckoned from a sample, in nanoseconds.
        """
