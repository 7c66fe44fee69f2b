"""TLS of a run: whom to trust and what to show, in the forms that the look, the client and the generator take it."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from penstock.client import Tls
from penstock.errors import PenstockError

if TYPE_CHECKING:
    from penstock.kernels.tls import TlsTrust


class BenchFailed(PenstockError):  # noqa: N818 - the house's errors say what happened
    """There is nothing to measure, or it cannot be measured."""


@dataclass(frozen=True, slots=True)
class Trust:
    """PEM files.

    Attributes:
        ca: certificates to trust; None for the system's.
        certificate: the client's own, where the server asks for one, with its `key`.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise BenchFailed("--certificate and --key belong together: give both, or neither")
        for option, path in (("--ca", self.ca), ("--certificate", self.certificate), ("--key", self.key)):
            if path is not None and not path.is_file():
                raise BenchFailed(f"{option}: there is no file {path}")

    def context(self) -> ssl.SSLContext:
        """For Python's own sockets; raises BenchFailed where a file is not what it should be."""
        try:
            made = ssl.create_default_context(cafile=self.ca)
            if self.certificate is not None:
                made.load_cert_chain(self.certificate, self.key)
        except ssl.SSLError as error:
            files = ", ".join(str(path) for path in (self.ca, self.certificate, self.key) if path is not None)
            raise BenchFailed(f"{files}: no certificates or no key in PEM format that fit ({error.reason})") from None
        made.set_alpn_protocols(["h2"])
        return made

    def client(self, name: str) -> Tls:
        """For a client of gRPC that connects to an address which was resolved; the certificate is for `name`."""
        ca, certificate, key = (
            p.read_bytes() if p is not None else None for p in (self.ca, self.certificate, self.key)
        )
        return Tls(ca, certificate, key, name)

    def kernel(self, name: str) -> TlsTrust:
        """For the generator."""
        from penstock.kernels.tls import TlsTrust

        return TlsTrust(name, *(str(path or "") for path in (self.ca, self.certificate, self.key)))
