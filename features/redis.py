"""Feature store on Redis: one round trip a batch, bounded in time, never another entity's row.

`fetch` sends one MGET for all row-layout views and one command an entity of hash-layout views in one write, and reads
all replies (`features/commands.py`). How a server is dealt with that fails, hangs or refuses stands in
`features/nodes.py`, how connections are made in `features/connecting.py`. Of a cluster every master is asked for its
keys (`features/cluster.py`); behind Sentinel it is whoever is the master (`features/sentinel.py`).

Cost goal: for 64 entities of 30 float32 at most 25 µs of Python around the round trip.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.features.cluster import Cluster, Lost
from penstock.features.columns import check_table
from penstock.features.commands import (
    decode_fetch,
    encode_fetch,
    encode_singly,
    hmgets,
    is_wrong_type,
    mark_lost,
    pack,
    together,
)
from penstock.features.connecting import connector, connectors, without
from penstock.features.errors import StoreMisconfigured, StoreUnavailable
from penstock.features.hashes import Wholes
from penstock.features.links import Link
from penstock.features.nodes import Ask, Node
from penstock.features.schema import FeatureView
from penstock.features.sentinel import Sentinels
from penstock.features.store import SLOW_S, FeatureStore, FetchedRows, Lookup, Write, Written
from penstock.features.writes import KEYS_A_CALL, Request, write_requests

VIEWS_KEY = b"fs:views"
READ_KEYS = 250  # of the largest rows in a reply of MAX_SLOW_REPLY bytes

# KEYS: the definitions. ARGV: name, what is expected there ("" is none), what is to be there ("" leaves it as it is,
# "-" takes it away), and so on
SWAP = b"""
for i = 1, #ARGV, 3 do
  if (redis.call('HGET', KEYS[1], ARGV[i]) or '') ~= ARGV[i + 1] then return 0 end
end
for i = 1, #ARGV, 3 do
  if ARGV[i + 2] == '-' then redis.call('HDEL', KEYS[1], ARGV[i])
  elseif ARGV[i + 2] ~= '' then redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 2]) end
end
return 1"""
MARK_S = 7 * 86400  # a job that nobody resumes is forgotten
FAIR_S = 0.01  # lateness within less says nothing about the store
MAX_VALUE = 1 << 16  # bytes of one row or field; the largest row has 24 + 512 + 4096 * 8
MAX_SLOW_REPLY = 1 << 24
MAX_REPLICAS = 100
DROP_KEYS = 1000


class RedisStore(FeatureStore):
    """A feature store on Redis; the forms of its URL stand in `features/connecting.py`.

    Args:
        url: where it is. With the option `replicas=N` what is written counts once N replicas of each master have it.
        before_connect: runs before each new connection.
        what: what errors call it.
    """

    def __init__(
        self, url: str, *, before_connect: Callable[[], None] = lambda: None, what: str = "the feature store"
    ) -> None:
        url, self._replicas = replicas_of(url, what)
        self._servers = servers_of(url, before_connect, what)
        self.name = self._servers.name.where
        self._wholes = Wholes()

    def fetch(self, lookups: Sequence[Lookup], timeout_s: float) -> list[FetchedRows]:
        """All rows of all lookups in one round trip (see `FeatureStore.fetch`)."""
        keys = [lookup.view.keys(lookup.entities) for lookup in lookups]
        whole = [self._whole(lookup) for lookup in lookups]
        fair, deadline = timeout_s >= FAIR_S, time.monotonic() + timeout_s
        if isinstance(self._servers, Cluster):
            return self._fetch_singly(self._servers, lookups, keys, whole, deadline, fair=fair)
        request, count, values = encode_fetch(lookups, keys, whole)
        ask = Ask(request, count, deadline, MAX_VALUE * (values + 1), is_wrong_type, guarded=True, fair=fair)
        try:
            return self._decoded(lookups, keys, self._servers.ask(ask) if count else [], whole)
        except StoreUnavailable:
            self._wholes.forget()
            raise

    def _whole(self, lookup: Lookup) -> int:
        """How many of a look-up's hashes to read whole."""
        return self._wholes.choose(lookup.view.read_fields, len(lookup.entities)) if lookup.view.layout == "hash" else 0

    def _fetch_singly(
        self,
        cluster: Cluster,
        lookups: Sequence[Lookup],
        keys: Sequence[list[bytes]],
        whole: Sequence[int],
        deadline: float,
        *,
        fair: bool,
    ) -> list[FetchedRows]:
        """The same, each key asked of the master that has it; what one of them does not answer is lost."""
        commands, flat, values = encode_singly(lookups, keys, whole)
        ask = Ask(b"", 0, deadline, MAX_VALUE * (values + 1), is_wrong_type, guarded=True, fair=fair)
        replies = cluster.ask_keys(commands, flat, ask) if commands else []
        lost = [reply.error if type(reply) is Lost else None for reply in replies]
        if any(lost):
            self._wholes.forget()
        if lost and None not in lost:
            raise next(error for error in lost if error is not None)
        answers = self._decoded(lookups, keys, together(lookups, replies, whole), whole)
        return mark_lost(lookups, answers, [None if error is None else str(error) for error in lost])

    def _decoded(
        self, lookups: Sequence[Lookup], keys: Sequence[list[bytes]], replies: list[Any], whole: Sequence[int]
    ) -> list[FetchedRows]:
        try:
            return decode_fetch(lookups, keys, replies, whole, self._wholes.learn)
        except (ValueError, TypeError) as error:  # of something else than texts
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
        keys_a_call = 1 if self.is_sharded else KEYS_A_CALL
        requests = list(write_requests(view, table, overwrite=overwrite, keys_a_call=keys_a_call))
        return lambda: sum(map(self._write, requests), Written())

    def _write(self, request: Request) -> Written:
        replies = self.write(*request.commands)
        return sum((Written(*reply) for reply in replies), Written()) if request.written is None else request.written

    def mark(self, job: str, new: bytes | None, ttl_s: int = MARK_S) -> bytes | None:
        """Keep the mark of a job, or remove it (see `FeatureStore.mark`)."""
        key = f"fs:ingest:{job}"
        command = pack(b"SET", key, new, b"EX", str(ttl_s), b"GET") if new is not None else pack(b"DEL", key)
        reply = self.write(command)[0]
        return reply if new is not None else None

    def marked(self, job: str) -> bytes | None:
        """The mark of a job."""
        mark: bytes | None = self.request(pack(b"GET", f"fs:ingest:{job}"))[0]
        return mark

    def stored(self, view: FeatureView, entities: Sequence[bytes]) -> list[Any]:
        """What is kept of entities, some hundred in each request (see `FeatureStore.stored`)."""
        found: list[Any] = []
        keys = view.keys(entities)
        for start in range(0, len(keys), READ_KEYS):
            some = keys[start : start + READ_KEYS]
            if view.layout == "row":
                found += self.values(some)
            else:
                commands = hmgets(some, view.read_fields)
                replies = self.request(*commands, tolerate=is_wrong_type)
                found += [None if is_wrong_type(reply) else reply for reply in replies]
        return found

    @property
    def is_sharded(self) -> bool:
        """Whether entities are kept by several servers, so that no command or script takes the keys of two of them."""
        return isinstance(self._servers, Cluster)

    def values(self, keys: Sequence[bytes], limit: int = MAX_SLOW_REPLY) -> list[bytes | None]:
        """What strings stand under these keys, None where there is none; of `limit` bytes at most (see `request`)."""
        if not self.is_sharded:
            found: list[bytes | None] = self.request(pack(b"MGET", *keys), limit=limit)[0]
            return found
        replies = self.request(*[pack(b"GET", key) for key in keys], limit=limit, tolerate=is_wrong_type)
        return [None if is_wrong_type(reply) else reply for reply in replies]

    def definitions(self, names: Sequence[str] | None = None, *, timeout_s: float = SLOW_S) -> dict[str, bytes]:
        """The definitions under these names, or all (see `FeatureStore.definitions`)."""
        if names is None:
            reply = self.request(pack(b"HGETALL", VIEWS_KEY), timeout_s=timeout_s)[0]
            return {name.decode("utf-8", "replace"): text for name, text in zip(reply[::2], reply[1::2], strict=True)}
        found = self.request(pack(b"HMGET", VIEWS_KEY, *names), timeout_s=timeout_s)[0] if names else []
        return {name: text for name, text in zip(names, found, strict=True) if text is not None}

    def swap(self, expected: Mapping[str, bytes | None], new: Mapping[str, bytes | None]) -> bool:
        """Compare and set by a script, which Redis runs as one step (see `FeatureStore.swap`)."""
        words: list[bytes | str] = []
        for name, old in expected.items():
            words += [name, old or b"", new.get(name, b"") or (b"-" if name in new else b"")]
        return bool(self.write(pack(b"EVAL", SWAP, b"1", VIEWS_KEY, *words))[0])

    def scan(self, cursor: int, count: int) -> tuple[int, list[bytes]]:
        """Some keys, and where to go on (see `FeatureStore.scan`)."""
        nodes = self._nodes()
        inner, place = divmod(cursor, len(nodes))
        command = pack(b"SCAN", str(inner), b"COUNT", str(count))
        following, keys = nodes[place].ask(Ask(command, 1, time.monotonic() + SLOW_S, MAX_SLOW_REPLY))[0]
        if int(following):
            return int(following) * len(nodes) + place, keys
        return (place + 1) % len(nodes), keys

    def unlink(self, keys: Sequence[bytes]) -> int:
        """Take away keys, one by one, for they may be of many servers (see `FeatureStore.unlink`)."""
        return sum(sum(self.write(*[pack(b"UNLINK", key) for key in some])) for some in _parts(keys))

    def drop_fields(self, keys: Sequence[bytes], fields: Sequence[bytes]) -> int:
        """Take away fields (see `FeatureStore.drop_fields`)."""
        dropped = 0
        for some in _parts(keys):
            replies = self.write(*[pack(b"HDEL", key, *fields) for key in some], tolerate=is_wrong_type)
            dropped += sum(not is_wrong_type(reply) and reply > 0 for reply in replies)
        return dropped

    def size(self) -> int:
        """How many keys the database has."""
        ask = Ask(pack(b"DBSIZE"), 1, time.monotonic() + SLOW_S, MAX_SLOW_REPLY)
        return sum(int(node.ask(ask)[0]) for node in self._nodes())

    def _nodes(self) -> list[Node]:
        """The servers that keep rows."""
        if isinstance(self._servers, Cluster):
            return self._servers.masters(time.monotonic() + SLOW_S)
        return [self._servers]

    def snapshot(self) -> dict[str, int]:
        """How its servers are (see `FeatureStore.snapshot`)."""
        nodes = self._servers.known() if isinstance(self._servers, Cluster) else [self._servers]
        return {
            "servers": len(nodes),
            "shunned": sum(node.breaker.is_open for node in nodes),
            "outages": sum(node.breaker.opened for node in nodes),
            "connections": sum(node.links.opened for node in nodes),
        }

    def ping(self) -> None:
        """Return if the store answers within a second."""
        self.request(pack(b"PING"), timeout_s=1.0)

    def ask(self, commands: Sequence[bytes], timeout_s: float, limit: int) -> list[Any]:
        """Replies to packed commands, guarded as `fetch` is; for what is kept in a Redis beside features.

        Lateness counts for the breaker however short the time is. Replies of more than `limit` bytes are refused.
        Raises `StoreUnavailable` or `StoreMisconfigured`, also where one of the replies is an error.
        """
        deadline = time.monotonic() + timeout_s
        return self._servers.ask(Ask(b"".join(commands), len(commands), deadline, limit, is_wrong_type, guarded=True))

    def request(
        self,
        *commands: bytes,
        timeout_s: float = SLOW_S,
        limit: int = MAX_SLOW_REPLY,
        tolerate: Callable[[Any], bool] = lambda _: False,
    ) -> list[Any]:
        """Replies, of `limit` bytes at most, to packed commands off the hot path that may be sent twice.

        The breaker has no part in it. An error reply is raised, as `StoreUnavailable` or `StoreMisconfigured`, unless
        `tolerate` says it may stay.
        """
        return self._servers.ask(self._slow(commands, timeout_s, limit, tolerate))

    def write(
        self, *commands: bytes, timeout_s: float = SLOW_S, tolerate: Callable[[Any], bool] = lambda _: False
    ) -> list[Any]:
        """Replies as those of `request`, once as many replicas have what was written as the URL asks for."""
        ask = self._slow(commands, timeout_s, MAX_SLOW_REPLY, tolerate)
        return self._servers.ask(ask._replace(replicas=self._replicas))

    @staticmethod
    def _slow(commands: Sequence[bytes], timeout_s: float, limit: int, tolerate: Callable[[Any], bool]) -> Ask:
        return Ask(b"".join(commands), len(commands), time.monotonic() + timeout_s, limit, tolerate)

    def close(self) -> None:
        """Close every connection."""
        self._servers.close()


def replicas_of(url: str, what: str) -> tuple[str, int]:
    """The URL without the option `replicas`, and what that says; `StoreMisconfigured` where it is no number."""
    if "replicas=" not in url:
        return url, 0
    bare, own = without(url, "replicas")
    told = own.get("replicas", "0")
    if not told.isdecimal() or int(told) > MAX_REPLICAS:
        raise StoreMisconfigured(f"the URL of {what} says replicas={told!r}: expected a number up to {MAX_REPLICAS}")
    return bare, int(told)


def _parts(keys: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """Keys in parts that are asked about at a time."""
    return (keys[start : start + DROP_KEYS] for start in range(0, len(keys), DROP_KEYS))


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
