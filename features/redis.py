"""Feature store on Redis: one round trip a batch, bounded in time, never another entity's row.

`fetch` sends one MGET for all row-layout views and one HMGET an entity of hash-layout views in one write, and reads all
replies (`features/commands.py`). How a server is dealt with that fails, hangs or refuses stands in `features/nodes.py`,
how connections are made in `features/connecting.py`. Of a cluster every master is asked for its keys
(`features/cluster.py`); behind Sentinel it is whoever is the master (`features/sentinel.py`).

Cost goal: for 64 entities of 30 float32 at most 25 µs of Python around the round trip.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.features.cluster import Cluster, Lost
from penstock.features.columns import check_table
from penstock.features.commands import (
    decode_fetch,
    encode_fetch,
    encode_singly,
    is_wrong_type,
    mark_lost,
    pack,
    together,
)
from penstock.features.connecting import connector, connectors, without
from penstock.features.errors import InvalidView, StoreMisconfigured, UnknownView
from penstock.features.links import Link
from penstock.features.nodes import Ask, Node
from penstock.features.schema import FeatureView
from penstock.features.sentinel import Sentinels
from penstock.features.store import FetchedRows, Lookup, Write, refuse_change, stored_view
from penstock.features.writes import KEYS_A_CALL, Request, write_requests

VIEWS_KEY = b"fs:views"
SLOW_S = 5.0  # time limit of a request that is not on the hot path
MARK_S = 7 * 86400  # a job that nobody resumes is forgotten
FAIR_S = 0.01  # lateness within less says nothing about the store
MAX_VALUE = 1 << 16  # bytes of one row or field; the largest row has 24 + 512 + 4096 * 8
MAX_SLOW_REPLY = 1 << 24

log = logging.getLogger(__name__)


class RedisStore:
    """A feature store on Redis; the forms of its URL stand in `features/connecting.py`.

    Args:
        url: where it is.
        before_connect: runs before each new connection.
        what: what errors call it.
    """

    def __init__(
        self, url: str, *, before_connect: Callable[[], None] = lambda: None, what: str = "the feature store"
    ) -> None:
        self._servers = servers_of(url, before_connect, what)
        self.name = self._servers.name.where

    def fetch(self, lookups: Sequence[Lookup], timeout_s: float) -> list[FetchedRows]:
        """All rows of all lookups in one round trip (see `FeatureStore.fetch`)."""
        keys = [lookup.view.keys(lookup.entities) for lookup in lookups]
        fair, deadline = timeout_s >= FAIR_S, time.monotonic() + timeout_s
        if isinstance(self._servers, Cluster):
            return self._fetch_singly(self._servers, lookups, keys, deadline, fair=fair)
        request, count, values = encode_fetch(lookups, keys)
        ask = Ask(request, count, deadline, MAX_VALUE * (values + 1), is_wrong_type, guarded=True, fair=fair)
        return self._decoded(lookups, keys, self._servers.ask(ask) if count else [])

    def _fetch_singly(
        self, cluster: Cluster, lookups: Sequence[Lookup], keys: Sequence[list[bytes]], deadline: float, *, fair: bool
    ) -> list[FetchedRows]:
        """The same, each key asked of the master that has it; what one of them does not answer is lost."""
        commands, flat, values = encode_singly(lookups, keys)
        ask = Ask(b"", 0, deadline, MAX_VALUE * (values + 1), is_wrong_type, guarded=True, fair=fair)
        replies = cluster.ask_keys(commands, flat, ask) if commands else []
        lost = [reply.error if type(reply) is Lost else None for reply in replies]
        if lost and None not in lost:
            raise next(error for error in lost if error is not None)
        answers = self._decoded(lookups, keys, together(lookups, replies))
        return mark_lost(lookups, answers, [None if error is None else str(error) for error in lost])

    def _decoded(self, lookups: Sequence[Lookup], keys: Sequence[list[bytes]], replies: list[Any]) -> list[FetchedRows]:
        try:
            return decode_fetch(lookups, keys, replies)
        except ValueError as error:
            raise self._servers.name.unavailable(error) from error

    def prepare(
        self,
        view: FeatureView,
        entities: Sequence[bytes],
        columns: Mapping[str, NDArray[Any]],
        event_times: NDArray[np.int64] | None = None,
        *,
        overwrite: bool = False,
    ) -> Write:
        """Check and encode rows now, to be written when the result is called (see `FeatureStore.prepare`)."""
        table = check_table(view, entities, columns, event_times)
        keys_a_call = 1 if isinstance(self._servers, Cluster) else KEYS_A_CALL
        requests = list(write_requests(view, table, overwrite=overwrite, keys_a_call=keys_a_call))
        return lambda: sum(self._write(request) for request in requests)

    def put(
        self,
        view: FeatureView,
        entities: Sequence[bytes],
        columns: Mapping[str, NDArray[Any]],
        event_times: NDArray[np.int64] | None = None,
        *,
        overwrite: bool = False,
    ) -> int:
        """Write rows, some thousands in each pipeline (see `FeatureStore.put`)."""
        return self.prepare(view, entities, columns, event_times, overwrite=overwrite)()

    def _write(self, request: Request) -> int:
        replies = self.ask(request.data, request.replies)
        return sum(replies) if request.rows is None else request.rows

    def mark(self, job: str, new: bytes | None, ttl_s: int = MARK_S) -> bytes | None:
        """Keep the mark of a job, or remove it (see `FeatureStore.mark`)."""
        key = f"fs:ingest:{job}"
        command = pack(b"SET", key, new, b"EX", str(ttl_s), b"GET") if new is not None else pack(b"DEL", key)
        reply = self.ask(command, 1)[0]
        return reply if new is not None else None

    def marked(self, job: str) -> bytes | None:
        """The mark of a job."""
        mark: bytes | None = self.ask(pack(b"GET", f"fs:ingest:{job}"), 1)[0]
        return mark

    def apply(self, view: FeatureView, *, replace: bool = False) -> None:
        """Store the definition (see `FeatureStore.apply`); of two at the same moment the later one stays."""
        if not replace and (definition := self._stored(view.name)) is not None:
            refuse_change(stored_view(view.name, definition, self.name), view)
        self.ask(pack(b"HSET", VIEWS_KEY, view.name, view.model_dump_json()), 1)

    def views(self) -> list[FeatureView]:
        """Every valid definition, by name."""
        reply = self.ask(pack(b"HGETALL", VIEWS_KEY), 1)[0]
        views = []
        for name, definition in zip(reply[::2], reply[1::2], strict=True):
            try:
                views.append(stored_view(name.decode("utf-8", "replace"), definition, self.name))
            except InvalidView as error:
                log.warning("left out: %s", error)
        return sorted(views, key=lambda view: view.name)

    def view(self, name: str) -> FeatureView:
        """One definition; raises `UnknownView` or `InvalidView`."""
        definition = self._stored(name)
        if definition is None:
            raise UnknownView(f"no view {name!r} in the feature store at {self.name}; apply its YAML file first")
        return stored_view(name, definition, self.name)

    def _stored(self, name: str) -> bytes | None:
        definition: bytes | None = self.ask(pack(b"HGET", VIEWS_KEY, name), 1)[0]
        return definition

    def ping(self) -> None:
        """Return if the store answers within a second."""
        self.ask(pack(b"PING"), 1, timeout_s=1.0)

    def ask(
        self,
        commands: bytes,
        count: int,
        *,
        timeout_s: float = SLOW_S,
        tolerate: Callable[[Any], bool] = lambda _: False,
    ) -> list[Any]:
        """The `count` replies to commands that are not on the hot path and may be sent twice.

        An error reply is raised, as `StoreUnavailable` or `StoreMisconfigured`, unless `tolerate` says it may stay.
        """
        return self._servers.ask(Ask(commands, count, time.monotonic() + timeout_s, MAX_SLOW_REPLY, tolerate))

    def close(self) -> None:
        """Close every connection."""
        self._servers.close()


def servers_of(url: str, before_connect: Callable[[], None], what: str) -> Node | Cluster:
    """Who is asked; `StoreMisconfigured` for a URL that cannot be used."""
    scheme = url.partition("://")[0]
    if scheme.endswith("+cluster"):
        return Cluster(connectors(url, 6379, what)[0])
    if scheme.endswith("+sentinel"):
        sentinels = sentinels_of(url, what)
        return Node(sentinels.name, sentinels.connect)
    found = connector(url, what)

    def connect() -> Link:
        before_connect()
        return found.connect()

    return Node(found.name, connect)


def sentinels_of(url: str, what: str) -> Sentinels:
    """The sentinels of a URL, and how the servers are reached that they name."""
    bare, own = without(url, "sentinel_username", "sentinel_password")
    listed, path = connectors(bare, 26379, what)
    service, _, database = path.partition("/")
    if not service or (database and not database.isdigit()):
        raise StoreMisconfigured(f"the URL of {what} ends with the name of Sentinel's service: .../mymaster[/db]")
    login = {"username": own.get("sentinel_username"), "password": own.get("sentinel_password")}
    servers = listed[0].having(db=int(database or 0))
    return Sentinels([one.having(**login, db=0) for one in listed], service, servers)
