"""Where a listener is: a host and a port, or the path of a unix socket.

Written HOST:PORT, [::1]:PORT or unix:/path. A unix socket is a file that outlives a server which was killed; such a
file is taken away, one that somebody listens on is refused. Its mode is 0600: only the user who serves, and root, may
connect.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import stat
from dataclasses import dataclass
from pathlib import Path

from penstock.server.errors import BadConfig

SOCKET_MODE = 0o600
LONGEST_PATH = 107
"""Bytes of a unix socket's path, as Linux has it."""


@dataclass(frozen=True, slots=True)
class Address:
    """A place to listen on; `path` is empty where it is host and port."""

    host: str = ""
    port: int = 0
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> Address:
        """The address written so.

        Raises:
            BadConfig: it is none; the message says what one looks like.
        """
        if text.startswith("unix:"):
            return cls(path=_path(text.removeprefix("unix:")))
        host, separator, port = text.rpartition(":")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            raise BadConfig(f"{text!r} is not HOST:PORT; an IPv6 address stands in brackets, as in [::1]:8001")
        if not separator or not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
            raise BadConfig(f"{text!r} is not HOST:PORT")
        return cls(host, int(port))

    def __str__(self) -> str:
        """As it is written, and as gRPC takes it."""
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def local(self) -> bool:
        """Whether only this machine can reach it."""
        if self.path or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def claim(self) -> None:
        """Make sure that it can be listened on; a socket file that nobody listens on is taken away.

        Raises:
            BadConfig: somebody listens there, or it is not for us.
        """
        try:
            if self.path:
                _take_away_stale(self.path)
                with socket.socket(socket.AF_UNIX) as tried:
                    tried.bind(self.path)
                Path(self.path).unlink()
            else:
                family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
                socket.create_server((self.host, self.port), family=family).close()
        except OSError as error:
            raise BadConfig(f"grpc: {self} cannot be listened on: {error.strerror}") from error

    def protect(self) -> None:
        """Let only our own user connect to a unix socket; called once it is bound and before it is answered."""
        if self.path:
            Path(self.path).chmod(SOCKET_MODE)

    def identity(self) -> tuple[int, int] | None:
        """What tells the file of a unix socket from another one at the same path; None where there is none."""
        try:
            found = os.lstat(self.path) if self.path else None
        except FileNotFoundError:
            return None
        return (found.st_dev, found.st_ino) if found else None

    def release(self, ours: tuple[int, int] | None) -> None:
        """Remove the file of a unix socket if it is still the one that was `ours`, not that of who came after us."""
        if ours is not None and self.identity() == ours:
            Path(self.path).unlink(missing_ok=True)


def _path(text: str) -> str:
    """The path of unix:/path or unix:///path."""
    path = "/" + text.lstrip("/")
    if not text.startswith("/") or path == "/" or "\0" in text:
        raise BadConfig(f"'unix:{text}' is not unix:/path: the path of a socket must be absolute")
    if len(os.fsencode(path)) > LONGEST_PATH:
        raise BadConfig(f"the path of a unix socket has at most {LONGEST_PATH} bytes: {path}")
    return path


def _take_away_stale(path: str) -> None:
    """Remove the socket of a server that is no more."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise BadConfig(f"grpc: unix:{path} cannot be listened on: there is a file that is no socket")
    with socket.socket(socket.AF_UNIX) as caller:
        caller.setblocking(False)
        try:
            caller.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink()
            return
        except BlockingIOError:  # so many wait there that it cannot take us: somebody listens
            pass
    raise BadConfig(f"grpc: unix:{path} cannot be listened on: another server listens there")
