"""Feature store on Redis: one round trip a batch, bounded in time, never another entity's row.

- `fetch` sends one MGET for all row-layout views and one HMGET an entity of hash-layout views in one write, and reads
  all replies (features/commands.py, features/links.py). No retries, but for an idle connection that turns out to be
  dead: every command here can be sent twice without harm, so it is sent again on a new one, within the same deadline.
- A failure or a late answer becomes `StoreUnavailable`; after some of them the breaker refuses at once.
- Refusals (password, ACL, TLS, cluster mode) become `StoreMisconfigured`.

Cost goal: for 64 entities of 30 float32 at most 25 µs of Python around the round trip.
"""

from __future__ import annotations

import logging
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
from penstock.features.commands import decode_fetch, encode_fetch, is_wrong_type, pack, set_hashes, set_rows
from penstock.features.errors import FeatureError, InvalidView, StoreMisconfigured, StoreUnavailable, UnknownView
from penstock.features.links import Link, Links, OutOfStep
from penstock.features.schema import FeatureView
from penstock.features.store import FetchedRows, Lookup, refuse_change, stored_view

VIEWS_KEY = b"fs:views"
CONNECT_S = 0.05
HANDSHAKE_S = 0.25  # each of TLS, AUTH and SELECT
SLOW_S = 5.0  # time limit of a request that is not on the hot path
CHUNK = 2000  # commands in one write
FAIR_S = 0.01  # lateness within less says nothing about the store
MAX_VALUE = 1 << 16  # bytes of one row or field; the largest row has 24 + 512 + 4096 * 8
MAX_SLOW_REPLY = 1 << 24
BUSY = ("LOADING", "MASTERDOWN", "READONLY", "OOM", "BUSY", "CLUSTERDOWN", "TRYAGAIN", "MISCONF", "NOREPLICAS")
# Options a URL may carry that would bring back what this module decides.
OURS = ("retry", "retry_on_timeout", "retry_on_error", "max_connections", "health_check_interval", "protocol")

log = logging.getLogger(__name__)


class RedisStore:
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

    def put(
        self,
        view: FeatureView,
        entities: Sequence[bytes],
        columns: Mapping[str, NDArray[Any]],
        event_times: NDArray[np.int64] | None = None,
    ) -> int:
        """Write rows, some thousands in each pipeline (see `FeatureStore.put`)."""
        table = check_table(view, entities, columns, event_times)
        commands = set_rows(view, table) if view.layout == "row" else set_hashes(view, table)
        for start in range(0, len(commands), CHUNK):
            self._slow(commands[start : start + CHUNK])
        return len(entities)

    def apply(self, view: FeatureView, *, replace: bool = False) -> None:
        """Store the definition (see `FeatureStore.apply`); of two at the same moment the later one stays."""
        if not replace and (definition := self._stored(view.name)) is not None:
            refuse_change(stored_view(view.name, definition, self.name), view)
        self._slow([pack(b"HSET", VIEWS_KEY, view.name, view.model_dump_json())])

    def views(self) -> list[FeatureView]:
        """Every valid definition, by name."""
        reply = self._slow([pack(b"HGETALL", VIEWS_KEY)])[0]
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
        definition: bytes | None = self._slow([pack(b"HGET", VIEWS_KEY, name)])[0]
        return definition

    def ping(self) -> None:
        """Return if the store answers within a second."""
        self._slow([pack(b"PING")], timeout_s=1.0)

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

    def _slow(self, commands: Sequence[bytes], timeout_s: float = SLOW_S) -> list[Any]:
        """Replies to what is not on the hot path; any error reply is raised."""
        replies = self._exchange(b"".join(commands), len(commands), time.monotonic() + timeout_s, MAX_SLOW_REPLY)
        self._refuse_errors(replies, tolerate=lambda _: False)
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
