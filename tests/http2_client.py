"""A blocking HTTP/2 client that does just what a test tells it to, right or wrong.

Frames are written by hand, header blocks as literals without indexing, so that every byte on the wire is the test's
choice; what the server sends is read into plain state (`streams`, `settings`, `goaways`, `pongs`, `frames`). Nothing
is read unless a method says so: a test that wants to be a caller who does not read has only to stop calling. It is
polite by default (acknowledges SETTINGS, answers PING, opens windows as data comes); each politeness can be left out.

Load it by path, as tests/conformance/conftest.py does: `tests` is no package.

    with connect("127.0.0.1:8001") as peer:                   # or [::1]:8001, unix:/path, with tls=...
        answer = peer.call("/inference.GRPCInferenceService/ServerLive", b"")
        assert (answer.code, answer.messages) == (0, [b"\x08\x01"])
"""
# ruff: noqa: N818 - exceptions named after what they tell, as penstock/errors.py does

from __future__ import annotations

import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import NamedTuple, Self
from urllib.parse import unquote_to_bytes

import hpack

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED, WITH_PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = (
    range(1, 7)
)
NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR, SETTINGS_TIMEOUT, STREAM_CLOSED, FRAME_SIZE_ERROR = range(
    7
)
REFUSED_STREAM, CANCEL, COMPRESSION_ERROR, CONNECT_ERROR, ENHANCE_YOUR_CALM = range(7, 12)

Pairs = Iterable[tuple[str | bytes, str | bytes]]


class Closed(ConnectionError):
    """The server closed the connection before what was waited for came."""


class TookTooLong(TimeoutError):
    """What was waited for did not come in time."""


class Frame(NamedTuple):
    """One frame as it came; the payload of DATA is left out (its size is in `size`)."""

    type: int
    flags: int
    stream: int
    size: int
    payload: bytes


class GoAway(NamedTuple):
    """What a GOAWAY frame says."""

    last: int
    code: int
    text: bytes


@dataclass
class Stream:
    """What came on one stream. `headers` and `trailers` keep the last value of a name; `blocks` keep all."""

    window: int
    """How many bytes the server still takes."""
    blocks: list[list[tuple[str, str]]] = field(default_factory=list)
    data: bytearray = field(default_factory=bytearray)
    sizes: list[int] = field(default_factory=list)
    """The size of each DATA frame's data."""
    ended: bool = False
    reset: int | None = None
    """The error code of RST_STREAM."""

    @property
    def done(self) -> bool:
        return self.ended or self.reset is not None

    @property
    def headers(self) -> dict[str, str]:
        return dict(self.blocks[0]) if self.blocks else {}

    @property
    def trailers(self) -> dict[str, str]:
        """The last block of a stream that ended with one; of a Trailers-Only answer that is the first, too."""
        return dict(self.blocks[-1]) if self.blocks and self.ended else {}

    @property
    def code(self) -> int | None:
        """grpc-status, None where there is none."""
        return int(found) if (found := self.trailers.get("grpc-status")) is not None else None

    @property
    def message(self) -> str:
        """grpc-message, decoded."""
        return unquote_to_bytes(self.trailers.get("grpc-message", "")).decode()

    @property
    def messages(self) -> list[bytes]:
        """The whole gRPC messages in what came."""
        found, at = [], 0
        while at + 5 <= len(self.data):
            (size,) = struct.unpack_from(">I", self.data, at + 1)
            if at + 5 + size > len(self.data):
                break
            found.append(bytes(self.data[at + 5 : at + 5 + size]))
            at += 5 + size
        return found


def framed(message: bytes, flag: int = 0) -> bytes:
    """A gRPC message with its prefix of flag and length."""
    return struct.pack(">BI", flag, len(message)) + message


def frame(kind: int, flags: int, stream: int, payload: bytes = b"", *, size: int | None = None) -> bytes:
    """A frame's bytes; `size` tells another length than the payload's."""
    length = len(payload) if size is None else size
    return struct.pack(">I", length)[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def block(pairs: Pairs) -> bytes:
    """A header block of literals without indexing and without Huffman codes (RFC 7541, 6.2.2)."""
    return b"".join(b"\0" + _text(name) + _text(value) for name, value in pairs)


def _text(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return _integer(len(data)) + data


def _integer(value: int, bits: int = 7) -> bytes:
    """An HPACK integer with a prefix of so many bits, the others 0."""
    most = (1 << bits) - 1
    if value < most:
        return bytes([value])
    out, value = bytearray([most]), value - most
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


class Peer:
    """One connection. Write methods put bytes on the wire at once; `until` and `call` read."""

    def __init__(
        self,
        link: socket.socket,
        *,
        authority: str = "localhost",
        scheme: str = "http",
        settings: Mapping[int, int] | None = None,
        start: bool = True,
        polite: bool = True,
        open_windows: bool = True,
    ) -> None:
        """Speak over a connected socket.

        Args:
            link: connected; closed by `close`.
            authority: what calls send as :authority.
            scheme: what calls send as :scheme.
            settings: our SETTINGS, sent with the preface.
            start: send preface and SETTINGS now.
            polite: acknowledge SETTINGS and answer PING when they are read.
            open_windows: send WINDOW_UPDATE for all DATA that is read.
        """
        self.link = link
        self.authority, self.scheme = authority, scheme
        self.polite, self.open_windows = polite, open_windows
        self.settings: dict[int, int] = {}
        """The server's."""
        self.acknowledged = 0
        """How many of our SETTINGS the server acknowledged."""
        self.streams: dict[int, Stream] = {}
        self.goaways: list[GoAway] = []
        self.pongs: list[bytes] = []
        self.frames: list[Frame] = []
        """Every frame that came, in order."""
        self.window = 65535
        """How many bytes of DATA the server still takes on the connection."""
        self.closed = False
        """Whether the server closed its side; found out by reading."""
        self._received = bytearray()
        self._partial: tuple[int, int, bytearray] | None = None
        self._decoder = hpack.Decoder(max_header_list_size=1 << 24)
        self._next = 1
        if start:
            self._start(settings or {})

    def _start(self, settings: Mapping[int, int]) -> None:
        try:
            self.send(PREFACE)
            self.send_settings(settings)
        except OSError:
            self.close()
            raise

    # What is written

    def send(self, data: bytes) -> None:
        """Any bytes at all.

        Raises:
            Closed: the server has closed the connection.
            TimeoutError: it takes nothing for 30 seconds.
        """
        self.link.settimeout(30)
        try:
            self.link.sendall(data)
        except (ConnectionError, ssl.SSLError) as error:
            raise Closed(f"the server closed the connection; so far came {self._told()}") from error

    def send_frame(self, kind: int, flags: int, stream: int, payload: bytes = b"") -> None:
        self.send(frame(kind, flags, stream, payload))

    def send_settings(self, values: Mapping[int, int]) -> None:
        self.send_frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", *item) for item in values.items()))

    def acknowledge_settings(self) -> None:
        self.send_frame(SETTINGS, ACK, 0)

    def headers(
        self, pairs: Pairs, *, stream: int | None = None, end: bool = False, whole: bool = True, pad: int | None = None
    ) -> int:
        """A HEADERS frame of exactly these pairs; the stream. `whole=False` leaves END_HEADERS to `continuation`."""
        return self.header_block(block(pairs), stream=stream, end=end, whole=whole, pad=pad)

    def header_block(
        self, data: bytes, *, stream: int | None = None, end: bool = False, whole: bool = True, pad: int | None = None
    ) -> int:
        """A HEADERS frame of any bytes as header block."""
        stream = self.new_stream() if stream is None else stream
        flags = (END_STREAM if end else 0) | (END_HEADERS if whole else 0) | (0 if pad is None else PADDED)
        self.send_frame(HEADERS, flags, stream, data if pad is None else bytes([pad]) + data + bytes(pad))
        return stream

    def continuation(self, stream: int, data: bytes, *, end: bool = True) -> None:
        """`end` sets END_HEADERS."""
        self.send_frame(CONTINUATION, END_HEADERS if end else 0, stream, data)

    def data(self, stream: int, data: bytes, *, end: bool = False, pad: int | None = None) -> None:
        """One DATA frame, whatever the windows say."""
        flags = (END_STREAM if end else 0) | (0 if pad is None else PADDED)
        self.send_frame(DATA, flags, stream, data if pad is None else bytes([pad]) + data + bytes(pad))
        self.window -= len(data)
        self.streams[stream].window -= len(data)

    def rst(self, stream: int, code: int = CANCEL) -> None:
        self.send_frame(RST_STREAM, 0, stream, struct.pack(">I", code))

    def ping(self, payload: bytes = b"12345678", *, ack: bool = False) -> None:
        self.send_frame(PING, ACK if ack else 0, 0, payload)

    def window_update(self, stream: int, by: int) -> None:
        self.send_frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", by))

    def priority(self, stream: int, *, depends_on: int = 0, weight: int = 15) -> None:
        self.send_frame(PRIORITY, 0, stream, struct.pack(">IB", depends_on, weight))

    def goaway(self, last: int = 0, code: int = NO_ERROR, text: bytes = b"") -> None:
        self.send_frame(GOAWAY, 0, 0, struct.pack(">II", last, code) + text)

    def new_stream(self) -> int:
        """The next number of ours."""
        stream, self._next = self._next, self._next + 2
        self.streams[stream] = Stream(self.settings.get(INITIAL_WINDOW_SIZE, 65535))
        return stream

    # Calls

    def pairs(self, path: str, *more: tuple[str | bytes, str | bytes], **instead: str | None) -> list[tuple]:
        """The headers of a gRPC call and more; `content_type=..., te=None` and the like replace or leave out."""
        usual: dict[str, str | None] = {"method": "POST", "scheme": self.scheme, "path": path}
        usual |= {"authority": self.authority, "te": "trailers", "content_type": "application/grpc"} | instead
        pseudo = ("method", "scheme", "path", "authority")
        names = {name: f":{name}" if name in pseudo else name.replace("_", "-") for name in usual}
        return [(names[name], value) for name, value in usual.items() if value is not None] + list(more)

    def begin(self, path: str, *more: tuple[str | bytes, str | bytes], end: bool = False, **instead: str | None) -> int:
        """Open a call with its headers; the stream."""
        return self.headers(self.pairs(path, *more, **instead), end=end)

    def body(self, stream: int, data: bytes, *, end: bool = True, chunk: int = 16384) -> None:
        """DATA frames of at most `chunk` bytes, as the server's windows allow; gives up where the stream is done."""
        view = memoryview(data)
        while view:
            self.until(lambda: self._may_send(stream) > 0 or self.streams[stream].done)
            if self.streams[stream].done:
                return
            now = min(len(view), chunk, self._may_send(stream))
            self.data(stream, bytes(view[:now]), end=end and now == len(view))
            view = view[now:]
        if end and not data:
            self.data(stream, b"", end=True)

    def _may_send(self, stream: int) -> int:
        return min(self.window, self.streams[stream].window)

    def start_call(
        self, path: str, message: bytes, *more: tuple[str | bytes, str | bytes], **instead: str | None
    ) -> int:
        """A whole unary call without waiting for its answer; the stream."""
        stream = self.begin(path, *more, **instead)
        self.body(stream, framed(message))
        return stream

    def call(
        self,
        path: str,
        message: bytes,
        *more: tuple[str | bytes, str | bytes],
        within_s: float = 20,
        **instead: str | None,
    ) -> Stream:
        """A whole unary call and its answer."""
        return self.answer(self.start_call(path, message, *more, **instead), within_s)

    def answer(self, stream: int, within_s: float = 20) -> Stream:
        """Read until the stream has ended or was reset."""
        self.until(lambda: self.streams[stream].done, within_s)
        return self.streams[stream]

    # What is read

    def until(self, holds: Callable[[], bool], within_s: float = 20) -> Self:
        """Read frames until something holds.

        Raises:
            Closed: the server closed the connection first.
            TookTooLong: it did not come to hold in time.
        """
        at = time.monotonic() + within_s
        while not holds():
            self._read_some(at)
        return self

    def until_closed(self, within_s: float = 20) -> Self:
        """Read until the server closes the connection."""
        try:
            return self.until(lambda: self.closed, within_s)
        except Closed:
            return self

    def started(self) -> Self:
        """Read until the server's SETTINGS came and ours are acknowledged."""
        return self.until(lambda: SETTINGS in {found.type for found in self.frames} and self.acknowledged > 0)

    def echo(self, within_s: float = 20) -> Self:
        """Send a PING and read until it comes back: the server has then read everything before it."""
        before = len(self.pongs)
        self.ping(struct.pack(">Q", before))
        return self.until(lambda: len(self.pongs) > before, within_s)

    def settle(self, quiet_s: float) -> Self:
        """Read until nothing came for so long; for what must not come."""
        while not self.closed:
            before = len(self.frames)
            try:
                self.until(lambda before=before: len(self.frames) > before, quiet_s)
            except (Closed, TookTooLong):
                break
        return self

    def _read_some(self, at: float) -> None:
        left = at - time.monotonic()
        if left <= 0:
            raise TookTooLong(f"not in time; so far came {self._told()}")
        if self._take_frame():
            return
        self.link.settimeout(left)
        try:
            found = self.link.recv(1 << 18)
        except TimeoutError:
            return
        except (ConnectionError, ssl.SSLError):
            found = b""
        if not found:
            self.closed = True
            raise Closed(f"the server closed the connection; so far came {self._told()}")
        self._received += found

    def _told(self) -> str:
        kinds = [found.type for found in self.frames[-8:]]
        return f"{len(self.frames)} frames, the last of types {kinds}; {self.goaways or 'no GOAWAY'}"

    def _take_frame(self) -> bool:
        if len(self._received) < 9:
            return False
        size = int.from_bytes(self._received[:3])
        if len(self._received) < 9 + size:
            return False
        kind, flags, stream = struct.unpack_from(">BBI", self._received, 3)
        payload = bytes(self._received[9 : 9 + size])
        del self._received[: 9 + size]
        self.frames.append(Frame(kind, flags, stream, size, b"" if kind == DATA else payload))
        self._taken(kind, flags, stream, payload)
        return True

    def _taken(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        here = self.streams.get(stream)
        if kind == DATA:
            self._took_data(flags, stream, payload)
        elif kind in (HEADERS, CONTINUATION):
            self._took_block(kind, flags, stream, payload)
        elif kind == RST_STREAM and here is not None:
            here.reset = struct.unpack(">I", payload)[0]
        elif kind == SETTINGS:
            self._took_settings(flags, payload)
        elif kind == PING and flags & ACK:
            self.pongs.append(payload)
        elif kind == PING and self.polite:
            self._reply(frame(PING, ACK, 0, payload))
        elif kind == GOAWAY:
            self.goaways.append(GoAway(*struct.unpack_from(">II", payload), payload[8:]))
        elif kind == WINDOW_UPDATE:
            by = struct.unpack(">I", payload)[0]
            if stream == 0:
                self.window += by
            elif here is not None:
                here.window += by

    def _took_data(self, flags: int, stream: int, payload: bytes) -> None:
        data = payload[1 : len(payload) - payload[0]] if flags & PADDED else payload
        here = self.streams[stream]
        here.data += data
        here.sizes.append(len(data))
        here.ended |= bool(flags & END_STREAM)
        if self.open_windows and payload:
            updates = frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", len(payload)))
            if not here.ended:
                updates += frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", len(payload)))
            self._reply(updates)

    def _took_block(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == HEADERS:
            if flags & PADDED:
                payload = payload[1 : len(payload) - payload[0]]
            if flags & WITH_PRIORITY:
                payload = payload[5:]
            self._partial = (stream, flags, bytearray())
        assert self._partial is not None, "CONTINUATION without HEADERS"
        self._partial[2].extend(payload)
        if flags & END_HEADERS:
            (stream, first, whole), self._partial = self._partial, None
            here = self.streams[stream]
            here.blocks.append([_decoded(name, value) for name, value in self._decoder.decode(bytes(whole), raw=True)])
            here.ended |= bool(first & END_STREAM)

    def _took_settings(self, flags: int, payload: bytes) -> None:
        if flags & ACK:
            self.acknowledged += 1
            return
        told = dict(struct.iter_unpack(">HI", payload))
        grown = told.get(INITIAL_WINDOW_SIZE, 0) - self.settings.get(INITIAL_WINDOW_SIZE, 65535)
        if INITIAL_WINDOW_SIZE in told:
            for stream in self.streams.values():
                stream.window += grown
        self.settings |= told
        if self.polite:
            self._reply(frame(SETTINGS, ACK, 0))

    def _reply(self, data: bytes) -> None:
        """A polite frame; a server that is gone already is told nothing, and found gone by the next read."""
        with suppress(OSError):
            self.send(data)

    def close(self) -> None:
        """Close the socket as it is, without GOAWAY."""
        self.link.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _decoded(name: bytes, value: bytes) -> tuple[str, str]:
    return name.decode("latin-1"), value.decode("latin-1")


def link(address: str, *, tls: ssl.SSLContext | None = None, server_name: str = "localhost") -> socket.socket:
    """A connected socket to HOST:PORT, [::1]:PORT or unix:/path, with TLS inside where a context is given."""
    if address.startswith("unix:"):
        plain = socket.socket(socket.AF_UNIX)
        plain.settimeout(20)
        plain.connect(address.removeprefix("unix:"))
    else:
        host, _, port = address.rpartition(":")
        plain = socket.create_connection((host.strip("[]"), int(port)), 20)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if tls is None:
        return plain
    try:
        return tls.wrap_socket(plain, server_hostname=server_name)
    except BaseException:
        plain.close()
        raise


def tls_context(
    ca: str, *, certificate: str | None = None, key: str | None = None, protocols: Iterable[str] = ("h2",)
) -> ssl.SSLContext:
    """A client's context that trusts `ca` and may have a certificate of its own; all PEM files."""
    context = ssl.create_default_context(cafile=ca)
    context.set_alpn_protocols(list(protocols))
    if certificate is not None:
        context.load_cert_chain(certificate, key)
    return context


@contextmanager
def connect(address: str, *, tls: ssl.SSLContext | None = None, **options: object) -> Iterator[Peer]:
    """A `Peer` over a new connection for as long as the block lasts; options as `Peer` takes them."""
    with Peer(link(address, tls=tls), scheme="http" if tls is None else "https", **options) as peer:  # type: ignore[arg-type]
        yield peer
