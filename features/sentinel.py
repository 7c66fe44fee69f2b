"""Redis Sentinel: whoever is the master now, asked anew for each connection.

Sentinels are asked in turn until one tells; who told last is asked first. A server is taken for the master only if it
says so itself (ROLE), for after a failover a sentinel may be behind. When a master is demoted, Sentinel has its
connections closed; where that does not come to us, the first READONLY reply does it (`features/nodes.py`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from penstock.features.commands import pack
from penstock.features.connecting import Connector
from penstock.features.errors import FeatureError
from penstock.features.links import Link, OutOfStep
from penstock.features.nodes import Name
from penstock.features.slots import Address

ASK_S = 0.25  # for a sentinel, or the master, to say what it is asked
MAX_TOLD = 4096  # bytes


class Sentinels:
    """The master of one service.

    Args:
        sentinels: connectors to some of them.
        service: the name under which they watch the master.
        servers: a connector with the options for the servers that keep rows, at any address.
    """

    def __init__(self, sentinels: Sequence[Connector], service: str, servers: Connector) -> None:
        self._sentinels = list(sentinels)
        self._service = service
        self._servers = servers
        self.name = Name(servers.name.what, f"{service} of {','.join(one.name.where for one in sentinels)}")

    def connect(self) -> Link:
        """A link to the master; raises `StoreUnavailable` or `StoreMisconfigured`."""
        found = self._servers.at(self._master())
        link = found.connect()
        try:
            role = _ask(link, pack(b"ROLE"))
        except (OSError, OutOfStep) as error:
            raise found.name.unavailable(error) from error
        if isinstance(role, list) and role[:1] != [b"master"]:  # an ACL user may not be allowed to ask
            link.close()
            raise found.name.unavailable(f"it is not the master of {self._service}")
        return link

    def _master(self) -> Address:
        failure: FeatureError = self.name.unavailable("no sentinel answers")
        for sentinel in self._sentinels:
            try:
                return self._ask_for_master(sentinel)
            except FeatureError as error:
                failure = error
            except (OSError, OutOfStep) as error:
                failure = sentinel.name.unavailable(error)
        raise failure

    def _ask_for_master(self, sentinel: Connector) -> Address:
        link = sentinel.connect()
        try:
            reply = _ask(link, pack(b"SENTINEL", b"get-master-addr-by-name", self._service))
        finally:
            link.close()
        match reply:
            case [bytes(host), bytes(port)] if port.isdigit() and 0 < int(port) < 1 << 16:
                self._sentinels = [sentinel, *(one for one in self._sentinels if one is not sentinel)]
                return host.decode("utf-8", "replace"), int(port)
            case None:
                raise sentinel.name.misconfigured(f"it watches no {self._service!r}")
        raise sentinel.name.misconfigured(reply if isinstance(reply, Exception) else "its answer is no address")


def _ask(link: Link, command: bytes) -> Any:
    return link.exchange(command, 1, time.monotonic() + ASK_S, MAX_TOLD)[0]
