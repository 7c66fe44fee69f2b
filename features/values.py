"""Bytes under keys in a Redis, for what servers share beside features: read in one round trip, written in another.

Reading and writing have a breaker each, since a Redis that is full or read-only can still be read. With what is read
comes the time of Redis' own clock, so that the age of a value does not hang on the clocks of two machines.

Cost goal: 1 microsecond of Python for each key around the round trip.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from penstock.features.commands import pack
from penstock.features.errors import StoreUnavailable
from penstock.features.redis import RedisStore

MAX_REPLY = 64 << 20  # bytes of all values that are read at once
MAX_ACKNOWLEDGEMENT = 1 << 16


class Values:
    """Values at a redis://, rediss:// or unix:// URL. Connects at first use; safe to use from many threads.

    Args:
        url: of the Redis.
        what: what errors call it; they name its host, never its password.

    Raises:
        StoreMisconfigured: the URL cannot be used.
    """

    def __init__(self, url: str, what: str) -> None:
        self._reading = RedisStore(url, what=what)
        self._writing = RedisStore(url, what=what)
        self.name = f"{what} at {self._reading.name}"

    def read(self, keys: Sequence[bytes], timeout_s: float) -> tuple[int, list[bytes | None]]:
        """Redis' time in microseconds since 1970, and the value of each key or None.

        Raises:
            StoreUnavailable: not within `timeout_s`, or it failed lately.
            StoreMisconfigured: it refuses us.
        """
        clock, values = self._reading.ask([pack(b"TIME"), pack(b"MGET", *keys)], timeout_s, MAX_REPLY)
        if type(values) is not list or len(values) != len(keys) or {*map(type, values)} - {bytes, type(None)}:
            raise self._unfitting()
        try:
            seconds, microseconds = clock
            return int(seconds) * 1_000_000 + int(microseconds), values
        except (TypeError, ValueError) as error:
            raise self._unfitting() from error

    def write(self, values: Mapping[bytes, bytes], ttl_ms: int, timeout_s: float) -> None:
        """Write values that are gone after `ttl_ms` milliseconds; where this raises, some of them may be written.

        Raises:
            StoreUnavailable, StoreMisconfigured: as `read`; also where Redis is full or a replica.
        """
        ttl = b"%d" % ttl_ms
        commands = [pack(b"SET", key, value, b"PX", ttl) for key, value in values.items()]
        self._writing.ask(commands, timeout_s, MAX_ACKNOWLEDGEMENT)

    def close(self) -> None:
        """Close every connection."""
        self._reading.close()
        self._writing.close()

    def _unfitting(self) -> StoreUnavailable:
        return StoreUnavailable(f"{self.name} sent a reply that does not have the shape of the request")
