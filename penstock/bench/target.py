"""Whom to send to: an address that is resolved once, and a first look at what listens there.

The look is a connection of our own that sends HTTP/2's preface: it tells a server that is not there, one that wants
TLS, one whose certificate is not trusted and one that speaks something else apart, and says so in words.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from dataclasses import dataclass
from typing import Any

from penstock.bench.trust import BenchFailed, Trust

__all__ = ["BenchFailed", "Target"]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0"  # and empty SETTINGS
PATIENCE_S = 5.0
TLS_ALERT, SETTINGS = b"\x15\x03", 4


@dataclass(frozen=True, slots=True)
class Target:
    """Where a server listens.

    Attributes:
        address: as it was given.
        host: numeric, or the path of a Unix socket.
        port: 0 for a Unix socket.
        local: whether the server is on this machine.
        trust: of TLS; None for plaintext.
    """

    address: str
    host: str
    port: int
    local: bool
    trust: Trust | None = None

    @classmethod
    def reach(cls, address: str, trust: Trust | None = None) -> Target:
        """Resolve HOST:PORT, [::1]:PORT or unix:/PATH and look at what listens; raises BenchFailed."""
        if address.startswith("unix:"):
            path = address.removeprefix("unix:").removeprefix("//")
            with _connected(socket.AF_UNIX, path, address) as connection:
                _look(connection, address, trust)
            return cls(address, path, 0, local=True, trust=trust)
        with _first_connected(address) as connection:
            host, port = connection.getpeername()[:2]
            local = connection.getsockname()[0] == host
            _look(connection, address, trust)
            return cls(address, host, port, local, trust)

    @property
    def grpc(self) -> str:
        """The address as a gRPC client takes it, where nothing is resolved any more."""
        if not self.port:
            return self.address
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def name(self) -> str:
        """The host as it was given, which a certificate must be for."""
        return _name_of(self.address)

    @property
    def authority(self) -> str:
        return self.address if self.port else "localhost"


def _name_of(address: str) -> str:
    if address.startswith("unix:"):
        return "localhost"
    return address.rpartition(":")[0].removeprefix("[").removesuffix("]")


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


def _look(connection: socket.socket, address: str, trust: Trust | None) -> None:
    """Whether HTTP/2 is spoken here, over TLS where there is `trust`: its first frame must be SETTINGS."""
    if trust is not None:
        with _secured(connection, address, trust) as secured:
            _look_into(secured, address, secure=True)
    else:
        _look_into(connection, address, secure=False)


def _secured(connection: socket.socket, address: str, trust: Trust) -> ssl.SSLSocket:
    context = trust.context()
    try:
        secured = context.wrap_socket(connection, server_hostname=_name_of(address))
    except ssl.SSLCertVerificationError as error:
        raise BenchFailed(
            f"{address}: the server's certificate is not trusted ({error.verify_message}); give its CA with --ca"
        ) from None
    except (OSError, TimeoutError) as error:
        why = getattr(error, "reason", None) or error.strerror or str(error)
        raise BenchFailed(f"{address} does not take TLS ({why}); is it a plaintext listener?") from None
    if secured.selected_alpn_protocol() != "h2":
        secured.close()
        raise BenchFailed(f"{address} takes TLS but not HTTP/2 over it, and so not gRPC")
    return secured


def _look_into(connection: socket.socket, address: str, *, secure: bool) -> None:
    why = ""
    try:
        connection.sendall(PREFACE)
        said = connection.recv(64)
        while 0 < len(said) < 4 and (more := connection.recv(64)):
            said += more
    except TimeoutError:
        raise BenchFailed(f"{address} takes connections but says nothing: is it a gRPC server?") from None
    except OSError as error:
        said, why = b"", str(getattr(error, "reason", "") or "")
    if said.startswith(TLS_ALERT):
        raise BenchFailed(f"{address} wants TLS: give --tls, with --ca where its certificate is of a CA of your own")
    if not said and secure:
        told = f" ({why})" if why else ""
        raise BenchFailed(f"{address} ended the connection{told}; if it asks for one, give --certificate and --key")
    if not said:
        raise BenchFailed(f"{address} closed the connection: it wants TLS (--tls), or it is no gRPC server")
    if len(said) < 4 or said[3] != SETTINGS:
        raise BenchFailed(f"{address} does not speak HTTP/2, and so not gRPC; is it the REST or the metrics port?")
