"""Feature store on Redis: one round trip a batch, bounded in time, never another entity's row.

- `fetch` sends one MGET for all row-layout views and one HMGET an entity of hash-layout views in one write, and reads
  all replies (features/commands.py, features/links.py). No retries, but for an idle connection that turns out to be
  dead: every command here can be sent twice without harm, so it is sent again on a new one, within the same deadline.
- A failure or a late answer becomes `StoreUnavailable`; after some of them the breaker refuses at once.
- Refusals (password, ACL, TLS, cluster mode) become `StoreMisconfigured`.

Cost goal: for 64 entities of 30 float32 at most 25 µs of Python around the round trip.
"""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import hiredis
import numpy as np
from numpy.typing import NDArray
from redis import exceptions
from redis.backoff import NoBackoff
from redis.connection import Connection, parse_url
from redis.retry import Retry

from penstock.features.breaker import Breaker
from penstock.features.columns import check_table
from penstock.features.commands import decode_fetch, encode_fetch, is_wrong_type, pack
from penstock.features.errors import FeatureError, StoreMisconfigured, StoreUnavailable
from penstock.features.links import Link, Links, OutOfStep
from penstock.features.schema import FeatureView
from penstock.features.store import SLOW_S, FeatureStore, FetchedRows, Lookup, Write
from penstock.features.writes import Request, write_requests

VIEWS_KEY = b"fs:views"
READ_KEYS = 250  # of the largest rows in a reply of MAX_SLOW_REPLY bytes

# KEYS: the definitions. ARGV: name, what is expected there, what is to be there, and so on; "" is none
SWAP = b"""
for i = 1, #ARGV, 3 do
  if (redis.call('HGET', KEYS[1], ARGV[i]) or '') ~= ARGV[i + 1] then return 0 end
end
for i = 1, #ARGV, 3 do
  if ARGV[i + 2] ~= '' then redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 2]) end
end
return 1"""
CONNECT_S = 0.05
HANDSHAKE_S = 0.25  # each of TLS, AUTH and SELECT
MARK_S = 7 * 86400  # a job that nobody resumes is forgotten
FAIR_S = 0.01  # lateness within less says nothing about the store
MAX_VALUE = 1 << 16  # bytes of one row or field; the largest row has 24 + 512 + 4096 * 8
MAX_SLOW_REPLY = 1 << 24
BUSY = (
    "LOADING",
    "MASTERDOWN",
    "READONLY",
    "OOM",
    "BUSY",
    "CLUSTERDOWN",
    "TRYAGAIN",
    "MISCONF",
    "NOREPLICAS",
    "NOSCRIPT",
)
# Options a URL may carry that would bring back what this module decides.
OURS = ("retry", "retry_on_timeout", "retry_on_error", "max_connections", "health_check_interval", "protocol")


class RedisStore(FeatureStore):
    """A feature store at a redis://, rediss:// or unix:// URL; `before_connect` runs before each new connection.

    `what` is what errors call it.
    """

    def __init__(
        self, url: str, *, before_connect: Callable[[], None] = lambda: None, what: str = "the feature store"
    ) -> None:
        self._make, self.name = connector(url, what)
        self._what = what
        self._before_connect = before_connect
        self._links = Links(self._connect)
        self._breaker = Breaker()
        self._lock = threading.Lock()

    def fetch(self, lookups: Sequence[Lookup], timeout_s: float) -> list[FetchedRows]:
        """All rows of all lookups in one round trip (see `FeatureStore.fetch`)."""
        deadline = time.monotonic() + timeout_s
        keys = [lookup.view.keys(lookup.entities) for lookup in lookups]
        request, count, values = encode_fetch(lookups, keys)
        replies = self._guarded(request, count, timeout_s, deadline, MAX_VALUE * (values + 1)) if count else []
        try:
            return decode_fetch(lookups, keys, replies)
        except ValueError as error:
            raise self._unavailable(error) from error

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
        requests = list(write_requests(view, table, overwrite=overwrite))
        return lambda: sum(self._write(request) for request in requests)

    def _write(self, request: Request) -> int:
        replies = self.request(*request.commands)
        return sum(replies) if request.rows is None else request.rows

    def mark(self, job: str, new: bytes | None, ttl_s: int = MARK_S) -> bytes | None:
        """Keep the mark of a job, or remove it (see `FeatureStore.mark`)."""
        key = f"fs:ingest:{job}"
        command = pack(b"SET", key, new, b"EX", str(ttl_s), b"GET") if new is not None else pack(b"DEL", key)
        reply = self.request(command)[0]
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
                found += self.request(pack(b"MGET", *some))[0]
            else:
                commands = [pack(b"HMGET", key, *view.fields) for key in some]
                replies = self.request(*commands, tolerate=is_wrong_type)
                found += [None if is_wrong_type(reply) else reply for reply in replies]
        return found

    def definitions(self, names: Sequence[str] | None = None, *, timeout_s: float = SLOW_S) -> dict[str, bytes]:
        """The definitions under these names, or all (see `FeatureStore.definitions`)."""
        if names is None:
            reply = self.request(pack(b"HGETALL", VIEWS_KEY), timeout_s=timeout_s)[0]
            return {name.decode("utf-8", "replace"): text for name, text in zip(reply[::2], reply[1::2], strict=True)}
        found = self.request(pack(b"HMGET", VIEWS_KEY, *names), timeout_s=timeout_s)[0] if names else []
        return {name: text for name, text in zip(names, found, strict=True) if text is not None}

    def swap(self, expected: Mapping[str, bytes | None], new: Mapping[str, bytes]) -> bool:
        """Compare and set by a script, which Redis runs as one step (see `FeatureStore.swap`)."""
        words: list[bytes | str] = []
        for name, old in expected.items():
            words += [name, old or b"", new.get(name, b"")]
        return bool(self.request(pack(b"EVAL", SWAP, b"1", VIEWS_KEY, *words))[0])

    def scan(self, cursor: int, count: int) -> tuple[int, list[bytes]]:
        """Some keys, and where to go on (see `FeatureStore.scan`)."""
        following, keys = self.request(pack(b"SCAN", str(cursor), b"COUNT", str(count)))[0]
        return int(following), keys

    def size(self) -> int:
        """How many keys the database has."""
        return int(self.request(pack(b"DBSIZE"))[0])

    def ping(self) -> None:
        """Return if the store answers within a second."""
        self.request(pack(b"PING"), timeout_s=1.0)

    def close(self) -> None:
        """Close every connection."""
        self._links.close()

    def ask(self, commands: Sequence[bytes], timeout_s: float, limit: int) -> list[Any]:
        """Replies to packed commands, guarded as `fetch` is; for what is kept in a Redis beside features.

        Lateness counts for the breaker however short the time is. Replies of more than `limit` bytes are refused.
        Raises `StoreUnavailable` or `StoreMisconfigured`, also where one of the replies is an error.
        """
        deadline = time.monotonic() + timeout_s
        return self._guarded(b"".join(commands), len(commands), FAIR_S, deadline, limit)

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
        replies = self._exchange(b"".join(commands), len(commands), time.monotonic() + timeout_s, limit)
        self._refuse_errors(replies, tolerate)
        return replies

    # Requests and their failures ----------------------------------------------------------------------------------

    def _guarded(self, request: bytes, count: int, timeout_s: float, deadline: float, limit: int) -> list[Any]:
        """Replies, or at once `StoreUnavailable` while the breaker is open. WRONGTYPE replies are left in."""
        with self._lock:
            generation = self._breaker.admit(time.monotonic())
        if generation is None:
            raise StoreUnavailable(f"{self._what} at {self.name} failed a moment ago and is not asked again yet")
        well: bool | None = None
        try:
            replies = self._exchange(request, count, deadline, limit)
            self._refuse_errors(replies, tolerate=is_wrong_type)
            well = True
        except StoreMisconfigured:
            well = True  # it answers, and at once
            raise
        except StoreUnavailable as error:
            # A caller in a hurry must not close the store to everybody else.
            well = None if isinstance(error.__cause__, TimeoutError) and timeout_s < FAIR_S else False
            raise
        finally:
            if well is not None:
                with self._lock:
                    self._breaker.record(generation, time.monotonic(), ok=well)
        return replies

    def _exchange(self, request: bytes, count: int, deadline: float, limit: int) -> list[Any]:
        try:
            link = self._links.take(deadline)
            try:
                replies = link.exchange(request, count, deadline, limit)
            except TimeoutError:
                raise
            except OSError:
                if not link.used:
                    raise
                self._links.drop_idle()
                link = self._links.open(deadline)
                replies = link.exchange(request, count, deadline, limit)
        except (OSError, OutOfStep) as error:
            raise self._unavailable(error) from error
        self._links.give(link)
        return replies

    def _connect(self) -> Link:
        self._before_connect()
        connection = self._make()
        try:
            connection.connect()
        except BaseException as error:
            connection.disconnect()
            if isinstance(error, Exception):
                raise self._cannot_connect(error) from error
            raise
        return Link(connection, connection._sock)  # noqa: SLF001 -- redis-py has no public way to the socket

    def _unavailable(self, error: Exception) -> StoreUnavailable:
        reason = (
            "it did not answer in time"
            if isinstance(error, TimeoutError)
            else str(error).rstrip(".") or type(error).__name__
        )
        return StoreUnavailable(f"{self._what} at {self.name} is unavailable: {reason}")

    def _misconfigured(self, reason: object) -> StoreMisconfigured:
        return StoreMisconfigured(f"{self._what} at {self.name} refuses us: {reason}")

    def _refuse_errors(self, replies: Sequence[Any], tolerate: Callable[[Any], bool]) -> None:
        for reply in replies:
            if type(reply) is hiredis.ReplyError and not tolerate(reply):
                raise self._refusal(str(reply))

    def _refusal(self, text: str) -> FeatureError:
        """An error reply as an error: some pass with time, others need somebody."""
        return self._unavailable(OSError(text)) if text.startswith(BUSY) else self._misconfigured(text)

    def _cannot_connect(self, error: Exception) -> FeatureError:
        """redis-py's many ways to say that a connection cannot be made, in two."""
        if isinstance(error, FeatureError):
            return error
        cause = error.__context__
        tls = isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError)
        login = isinstance(error, exceptions.AuthenticationError | exceptions.AuthorizationError)
        if tls or login or isinstance(error, exceptions.ResponseError | TypeError | ValueError):
            return self._misconfigured(error)
        late = isinstance(error, exceptions.TimeoutError)
        return self._unavailable(TimeoutError() if late else error)


def connector(url: str, what: str = "the feature store") -> tuple[Callable[[], Any], str]:
    """What makes one connection to `url`, and the store's name without its password; `StoreMisconfigured`."""
    try:
        options: dict[str, Any] = dict(parse_url(url))  # type: ignore[no-untyped-call]  # redis-py forgot to annotate it
    except ValueError as error:
        raise StoreMisconfigured("a Redis URL is redis://[user:password@]host[:port][/db]; this one is not") from error
    for option in OURS:
        options.pop(option, None)
    kind = options.pop("connection_class", Connection)
    name = options.get("path") or f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"
    if url.startswith("rediss:"):
        options.setdefault("ssl_min_version", ssl.TLSVersion.TLSv1_2)
    options |= {"socket_connect_timeout": CONNECT_S, "socket_timeout": HANDSHAKE_S, "protocol": 2}

    def make() -> Any:
        return kind(retry=Retry(NoBackoff(), 0), **options)

    try:
        make()  # no input or output yet: this only tries the options
    except (TypeError, ValueError, exceptions.RedisError) as error:
        raise StoreMisconfigured(f"the URL of {what} at {name} has an option that is not known") from error
    return make, name
