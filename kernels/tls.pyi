"""TLS for the native transport: what a server shows and asks for. Connections are driven by the kernel `http2`."""

from typing import Self, final

from penstock.errors import PenstockError

DONE: int
WANT_READ: int
WANT_WRITE: int
FAILED: int
AGAIN_READ: int
AGAIN_WRITE: int

class TlsError(PenstockError):
    """A certificate, key or client CA that cannot be used."""

def openssl_version() -> str:
    """Version of the OpenSSL that this process runs on, such as "3.0.15"."""

@final
class TlsContext:
    """A certificate with its key, and the rules for connections: TLS 1.2 or newer, HTTP/2 only.

    It reads the files once; connections made from it outlive it. Does not change afterwards.
    """

    def __new__(cls, certificate: str, key: str, client_ca: str = "") -> Self:
        """Read the files.

        Args:
            certificate: path of a PEM file: the server's certificate, then those between it and its CA, if any.
            key: path of a PEM file with the certificate's private key, without a passphrase.
            client_ca: path of a PEM file with the CA certificates of clients; where given, each client must show a
                certificate that one of them signed. Empty: clients are not asked.

        Raises:
            TlsError: a file cannot be read, is not what it should be, or the key is not that of the certificate.
        """

@final
class TlsTrust:
    """Whom a client trusts and what it shows: TLS 1.2 or newer, HTTP/2 only. Does not change afterwards."""

    def __new__(cls, name: str, ca: str = "", certificate: str = "", key: str = "") -> Self:
        """Read the files.

        Args:
            name: a host's name, or an address, that the server's certificate must be for.
            ca: path of a PEM file with CA certificates to trust; empty for the system's.
            certificate: path of a PEM file with the client's own certificate, where servers ask for one.
            key: path of a PEM file with its private key, without a passphrase.

        Raises:
            TlsError: a file cannot be read, is not what it should be, or the key is not that of the certificate.
        """

@final
class TlsPeer:
    """One connection as the kernel `http2` drives it, but from Python: the tests' way to the functions of tls.pxd."""

    def __new__(cls, context: TlsContext, fd: int) -> Self:
        """Take the server's side of the connected, non-blocking socket `fd`, which stays the caller's."""

    def handshake(self) -> int:
        """One step: DONE, WANT_READ, WANT_WRITE or FAILED."""

    def read(self, size: int) -> bytes | int:
        """Up to `size` bytes; none: the peer said goodbye; or AGAIN_READ, AGAIN_WRITE, FAILED."""

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """How many bytes were written, or AGAIN_READ, AGAIN_WRITE, FAILED."""

    def close(self, say_goodbye: bool = True) -> None:
        """Free the connection, telling the peer if asked to. The socket stays open."""
