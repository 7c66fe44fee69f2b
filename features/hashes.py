"""How hashes are read: the wanted fields by name (HMGET), or whole (HGETALL), whichever costs Redis less.

A small hash is a list to Redis, walked once for each field asked for: 64 entities of 30 fields take it 460 µs by name
and 160 whole. A hash with many other fields would be sent in vain. So what hashes hold is learned from the replies: now
and then the first entity of a look-up is read whole, and all of them are while they have at most `MOST` times the
wanted fields. No round trip is added, and views of other fields are judged apart.

Wanted are the view's columns and, where it says which field has it, the event time. Anybody may write these hashes, so
a time is text like all else: ms since 1970 in decimal. One that is missing or cannot be (seconds, microseconds, ISO
8601) is no time, and freshness takes a hash without a time for stale: what cannot be told to be new is not served as
new.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.features.schema import FeatureView
from penstock.kernels.hashes import parse_hashes
from penstock.kernels.rows import ROW_OK

MOST = 2.0
"""Fields of a hash over those wanted, up to which it is read whole."""
EVERY = 16
"""Of so many look-ups by name one reads its first entity whole."""
FIRST_MS, LAST_MS = 31_536_000_000, 253_402_300_799_999  # from 1971, lest seconds are taken for ms, to 9999
MAX_TIME = 32  # bytes of a text that is taken for a time


class Wholes:
    """What is known of the hashes behind each tuple of fields. Safe to use from many threads."""

    def __init__(self) -> None:
        self._looks: dict[tuple[bytes, ...], int] = {}

    def choose(self, fields: tuple[bytes, ...], entities: int) -> int:
        """How many of the entities of a look-up, from the first on, to read whole."""
        looks = self._looks.get(fields, 0)
        if looks < 0:
            return entities
        self._looks[fields] = (looks + 1) % EVERY
        return min(entities, looks == 0)

    def learn(self, fields: tuple[bytes, ...], replies: Sequence[Any]) -> None:
        """Look at what was read whole: lists of fields and values in turn; others say nothing."""
        sizes = [len(reply) // 2 for reply in replies if type(reply) is list and reply]
        if sizes:
            small = sum(sizes) <= MOST * len(fields) * len(sizes)
            self._looks[fields] = -1 if small else max(self._looks.get(fields, 0), 1)

    def forget(self) -> None:
        """Begin anew, by name: after a failure, which a reply that is far too large may be."""
        self._looks = dict.fromkeys(self._looks, 1)


def decode_hashes(
    view: FeatureView,
    replies: Sequence[Sequence[bytes | None]],
    out: NDArray[np.float32],
    event_times: NDArray[np.int64],
    status: NDArray[np.uint8],
) -> None:
    """Values of `view.read_fields` into arrays, as `evolution.unpack` does it with rows.

    Event times are left as they are, 0, where the view does not read them.
    """
    if not view.time_field:
        parse_hashes(replies, view.whole, out, status)
        return
    parse_hashes([reply[:-1] for reply in replies], view.whole, out, status)
    event_times[:] = [time_of(reply[-1]) for reply in replies]
    event_times[status != ROW_OK] = 0


def time_of(text: bytes | None) -> int:
    """The event time in ms since 1970 that stands in a field, without its fraction; 0 where there is none."""
    if not text or len(text) > MAX_TIME:
        return 0
    try:
        at = float(text)
    except ValueError:
        return 0
    return int(at) if FIRST_MS <= at <= LAST_MS else 0
