"""The files of TLS: read whole, checked before they are used, and read again when they change.

A certificate is renewed by replacing files under a running server. They are looked at (three `stat` calls) whenever a
connection comes; what does not fit together, such as the new certificate beside the old key, is logged once and the
pair in use goes on, until the files change again.
"""

from __future__ import annotations

import logging
import ssl
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import NoReturn

from penstock.server.errors import BadConfig

_log = logging.getLogger("penstock.server")

Signature = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class Pems:
    """What the files hold."""

    certificate: bytes
    key: bytes
    client_ca: bytes | None


@dataclass(frozen=True, slots=True)
class Certificates:
    """Paths of PEM files: the server's chain and key, and whom to trust as callers (None: they are not asked)."""

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def read(self) -> Pems:
        """What the files hold, checked.

        Raises:
            BadConfig: naming the setting, the file and what is wrong with it.
        """
        names = {"tls_certificate": self.certificate, "tls_key": self.key, "tls_client_ca": self.client_ca}
        read = {name: _bytes(name, path) for name, path in names.items() if path is not None}
        self._check()
        return Pems(read["tls_certificate"], read["tls_key"], read.get("tls_client_ca"))

    def _check(self) -> None:
        """Let OpenSSL say what does not fit."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

        def locked() -> NoReturn:
            raise BadConfig(f"tls_key: {self.key} is protected by a password; give a key without one")

        try:
            context.load_cert_chain(self.certificate, self.key, locked)
        except ssl.SSLError as error:
            told = "do not belong together" if error.reason == "KEY_VALUES_MISMATCH" else f"are refused: {_line(error)}"
            raise BadConfig(f"tls_certificate, tls_key: {self.certificate} and {self.key} {told}") from error
        if self.client_ca is not None:
            try:
                context.load_verify_locations(self.client_ca)
            except ssl.SSLError as error:
                raise BadConfig(f"tls_client_ca: {self.client_ca} is refused: {_line(error)}") from error

    def signature(self) -> Signature:
        """Changes when a file does; a file that is missing has zeros."""
        return tuple(_stamp(path) for path in (self.certificate, self.key, self.client_ca) if path is not None)


class Renewal:
    """Tells new contents of the files once. May be asked from any thread."""

    def __init__(self, certificates: Certificates) -> None:
        self._certificates = certificates
        self._lock = Lock()
        self._signature = certificates.signature()
        self.current = certificates.read()

    def changed(self) -> Pems | None:
        """The new contents where the files changed and can be used, else None."""
        with self._lock:
            signature = self._certificates.signature()
            if signature == self._signature:
                return None
            self._signature = signature  # taken before reading: a file that changes meanwhile is read once more
            try:
                self.current = self._certificates.read()
            except BadConfig as error:
                _log.warning("%s; the certificate in use goes on", error)
                return None
            _log.info("new TLS certificate taken up")
            return self.current


def _bytes(name: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadConfig(f"{name}: {path} cannot be read: {error.strerror}") from error


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError:
        return 0, 0, 0
    return found.st_ino, found.st_mtime_ns, found.st_size


def _line(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).replace("_", " ").lower()
