"""Whom to send to: an address that is resolved once, and a first look at what listens there.

The look is a connection of our own that sends HTTP/2's preface: it tells a server that is not there, one that wants
TLS and one that speaks something else apart, and says so in words.
"""

from __future__ import annotations

import contextlib
import socket
from dataclasses import dataclass
from typing import Any

from penstock.errors import PenstockError

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0"  # and empty SETTINGS
PATIENCE_S = 5.0
TLS_ALERT, SETTINGS = b"\x15\x03", 4


class BenchFailed(PenstockError):  # noqa: N818 - the house's errors say what happened
    """There is nothing to measure, or it cannot be measured."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a server listens.

    Attributes:
        address: as it was given.
        host: numeric, or the path of a Unix socket.
        port: 0 for a Unix socket.
        local: whether the server is on this machine.
    """

    address: str
    host: str
    port: int
    local: bool

    @classmethod
    def reach(cls, address: str) -> Target:
        """Resolve HOST:PORT, [::1]:PORT or unix:/PATH and look at what listens; raises BenchFailed."""
        if address.startswith("unix:"):
            path = address.removeprefix("unix:").removeprefix("//")
            with _connected(socket.AF_UNIX, path, address) as connection:
                _look(connection, address)
            return cls(address, path, 0, local=True)
        with _first_connected(address) as connection:
            _look(connection, address)
            host, port = connection.getpeername()[:2]
            return cls(address, host, port, connection.getsockname()[0] == host)

    @property
    def grpc(self) -> str:
        """The address as a gRPC client takes it, where nothing is resolved any more."""
        if not self.port:
            return self.address
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def authority(self) -> str:
        return self.address if self.port else "localhost"


def _first_connected(address: str) -> socket.socket:
    """A connection to the first address of the host on which there is a server: localhost may be two."""
    host, _, port = address.rpartition(":")
    if not (host and port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise BenchFailed(f"{address!r} is not HOST:PORT, such as localhost:8001, or unix:/PATH")
    try:
        found = socket.getaddrinfo(host.removeprefix("[").removesuffix("]"), int(port), type=socket.SOCK_STREAM)
    except OSError as error:
        raise BenchFailed(f"{address}: there is no such host ({error.strerror})") from None
    for family, _kind, _protocol, _name, to in found[:-1]:
        with contextlib.suppress(BenchFailed):
            return _connected(family, to, address)
    return _connected(found[-1][0], found[-1][4], address)


def _connected(family: int, to: Any, address: str) -> socket.socket:
    connection = socket.socket(family, socket.SOCK_STREAM)
    connection.settimeout(PATIENCE_S)
    try:
        connection.connect(to)
    except OSError as error:
        connection.close()
        why = "no answer" if isinstance(error, TimeoutError) else (error.strerror or str(error)).lower()
        raise BenchFailed(f"no server answers on {address} ({why}); start it, or check the address") from None
    return connection


def _look(connection: socket.socket, address: str) -> None:
    """Whether HTTP/2 without TLS is spoken here: its first frame must be SETTINGS."""
    try:
        connection.sendall(PREFACE)
        said = connection.recv(64)
        while 0 < len(said) < 4 and (more := connection.recv(64)):
            said += more
    except TimeoutError:
        raise BenchFailed(f"{address} takes connections but says nothing: is it a gRPC server?") from None
    except OSError:
        said = b""
    if said.startswith(TLS_ALERT):
        raise BenchFailed(f"{address} wants TLS, which penstock bench does not speak; measure a plaintext listener")
    if not said:
        raise BenchFailed(f"{address} closed the connection: it wants TLS, or it is no gRPC server")
    if len(said) < 4 or said[3] != SETTINGS:
        raise BenchFailed(f"{address} does not speak HTTP/2, and so not gRPC; is it the REST or the metrics port?")
