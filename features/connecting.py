"""How connections to Redis are made: URLs, and redis-py for what it does well (TLS, ACL users, unix sockets).

    redis://[user:password@]host[:port][/db]       rediss:// with TLS      unix:///path.sock
    redis+cluster://[user:password@]host[:port],host[:port],...             rediss+cluster://
    redis+sentinel://[user:password@]host[:port],.../service[/db]           rediss+sentinel://

Hosts of a cluster are some of its nodes, the others are found. Those of Sentinel are sentinels, and the service is the
name under which they watch the master. Options follow as redis-py has them (`?ssl_ca_certs=/etc/ca.pem`). User,
password and database are for servers that keep rows, `sentinel_username` and `sentinel_password` for sentinels, and TLS
for both.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from redis import exceptions
from redis.backoff import NoBackoff
from redis.connection import Connection, parse_url
from redis.retry import Retry

from penstock.features.errors import FeatureError, StoreMisconfigured
from penstock.features.links import Link
from penstock.features.nodes import Name
from penstock.features.slots import Address

CONNECT_S = 0.05
HANDSHAKE_S = 0.25  # each of TLS, AUTH and SELECT
MAX_HOSTS = 64
FORM = "a Redis URL is redis://[user:password@]host[:port][/db]; this one is not"
# Options a URL may carry that would bring back what is decided here.
OURS = ("retry", "retry_on_timeout", "retry_on_error", "max_connections", "health_check_interval", "protocol")


@dataclass(frozen=True)
class Connector:
    """Makes connections with the options of one URL; `name` is what errors call the server."""

    name: Name
    kind: Any
    options: dict[str, Any] = field(repr=False)  # with the password

    @property
    def address(self) -> Address:
        """Host and port; of a unix socket, nothing that is used."""
        return str(self.options.get("host", "localhost")), int(self.options.get("port", 6379))

    def at(self, address: Address) -> Connector:
        """The same for another server."""
        host, port = address
        where = Name(self.name.what, f"{host}:{port}")
        return Connector(where, self.kind, {**self.options, "host": host, "port": port})

    def having(self, **options: Any) -> Connector:
        """The same with other options; None removes one."""
        merged = {**self.options, **options}
        return replace(self, options={name: value for name, value in merged.items() if value is not None})

    def make(self) -> Any:
        """A connection that is not connected yet."""
        made = self.kind(retry=Retry(NoBackoff(), 0), **self.options)
        # CLIENT SETINFO would cost two round trips for each connection, and a server of before 7.2 refuses it.
        made.driver_info = made.lib_name = made.lib_version = None
        return made

    def connect(self) -> Link:
        """A connected link; raises `StoreUnavailable` or `StoreMisconfigured`."""
        connection = self.make()
        try:
            connection.connect()
        except BaseException as error:
            connection.disconnect()
            if isinstance(error, Exception):
                raise self._told(error) from error
            raise
        return Link(connection, connection._sock)  # noqa: SLF001 -- redis-py has no public way to the socket

    def _told(self, error: Exception) -> FeatureError:
        """redis-py's many ways to say that a connection cannot be made, in two."""
        cause = error.__context__
        tls = isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError)
        login = isinstance(error, exceptions.AuthenticationError | exceptions.AuthorizationError)
        if isinstance(error, exceptions.BusyLoadingError):
            return self.name.unavailable(error)
        if tls or login or isinstance(error, exceptions.ResponseError | TypeError | ValueError):
            return self.name.misconfigured(error)
        late = isinstance(error, exceptions.TimeoutError)
        return self.name.unavailable(TimeoutError() if late else error)


def connector(url: str, what: str = "the feature store") -> Connector:
    """What makes connections to a redis://, rediss:// or unix:// URL; `StoreMisconfigured` shows no password."""
    try:
        options: dict[str, Any] = dict(parse_url(url))  # type: ignore[no-untyped-call]  # redis-py forgot to annotate it
    except ValueError as error:
        raise StoreMisconfigured(FORM) from error
    for option in OURS:
        options.pop(option, None)
    kind = options.pop("connection_class", Connection)
    where = options.get("path") or f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"
    if url.startswith("rediss:"):
        options.setdefault("ssl_min_version", ssl.TLSVersion.TLSv1_2)
    options |= {"socket_connect_timeout": CONNECT_S, "socket_timeout": HANDSHAKE_S, "protocol": 2}
    made = Connector(Name(what, where), kind, options)
    try:
        made.make()  # no input or output yet: this only tries the options
    except (TypeError, ValueError, exceptions.RedisError) as error:
        raise StoreMisconfigured(f"the URL of {what} at {where} has an option that is not known") from error
    return made


def connectors(url: str, default_port: int, what: str = "the feature store") -> tuple[list[Connector], str]:
    """One connector for each host of a URL with several, and the path after them; `StoreMisconfigured`.

    The scheme's part behind the plus is left out, and so is the path.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise StoreMisconfigured(FORM) from error
    scheme = parts.scheme.partition("+")[0]
    login, at, hosts = parts.netloc.rpartition("@")
    listed = hosts.split(",")
    if not 1 <= len(listed) <= MAX_HOSTS or not all(listed):
        raise StoreMisconfigured(f"the URL of {what} names 1 to {MAX_HOSTS} hosts, with commas between them")
    made = []
    for host in listed:
        bare = host.startswith("[") and host.endswith("]")
        given = host if ":" in host and not bare else f"{host}:{default_port}"
        made.append(connector(urlunsplit((scheme, f"{login}{at}{given}", "", parts.query, "")), what))
    return made, parts.path.strip("/")


def without(url: str, *options: str) -> tuple[str, dict[str, str]]:
    """The URL without some of its options, and those that it had."""
    bare, _, query = url.partition("?")  # urlunsplit would make unix:/path of unix:///path
    given = parse_qsl(query, keep_blank_values=True)
    kept = urlencode([(name, value) for name, value in given if name not in options])
    return f"{bare}?{kept}" if kept else bare, {name: value for name, value in given if name in options}
