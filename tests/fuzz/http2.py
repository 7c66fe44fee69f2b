"""Fuzzing the native transport: each input is a client (frames.py) of a live server in this process.

What must hold, beside no report of a sanitizer:

- the server closes a connection soon after the client has said all, and what it sent are well-formed frames;
- others are served: every 32 inputs a call on a connection that is always there and one on a new connection are
  answered, and right;
- nothing is kept: open files and the heap do not grow with the inputs, and neither do the server's own counts of
  connections and of bytes held, whose limits are set so low that a leak soon refuses the healthy calls;
- in the end the server drains as on SIGTERM.

Start it by `scripts/fuzz http2`.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import gc
import select
import socket
import struct
import sys
import tempfile
import time
from pathlib import Path

import driver
import frames
import graphs
import http2_client as h2

from penstock.proto import inference_pb2 as pb
from penstock.registry import Registry
from penstock.server.config import Config
from penstock.server.testing import running

EVERY = 32  # inputs between two healthy calls
WARM = 2048  # inputs after which nothing may grow any more
PAUSE_MS = 2
UNAVAILABLE = 14
PATIENCE_S = 10.0
GROWTH, GROWTH_EACH = 16 << 20, 256  # bytes, once and for each input: libFuzzer's own corpus is in it

# Small limits, so that a few hundred bytes of an input reach each of them.
LIMITS = {
    "max_message_bytes": 1024,
    "max_header_bytes": 1024,
    "max_streams": 16,
    "max_connections": 16,
    "max_in_flight_bytes": 1 << 20,
    "max_connection_age_s": 1e6,
    "idle_timeout_s": 1e6,
}


class Server:
    """The server under test, a connection that stays, and what it held when it was warm."""

    def __init__(self) -> None:
        self.stack = contextlib.ExitStack()
        root = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        (root / "registry").mkdir()
        graphs.publish(Registry(root / "registry"), "double", graphs.double())
        self.address = f"unix:{root}/grpc"  # of TCP ports there are too few for so many connections
        config = Config(registry=root / "registry", grpc=self.address, metrics="off", transport="native", **LIMITS)
        self.stack.enter_context(running(config))
        self.steady = self.stack.enter_context(h2.connect(self.address))
        self.inputs = 0
        self.warm: tuple[int, int, int] | None = None  # inputs, open files, bytes on the heap

    def healthy(self) -> None:
        """Calls that must be answered, and what must not have grown."""
        answered(self.steady)
        with h2.connect(self.address) as peer:
            answered(peer)
        if self.inputs % (EVERY * 32) == 0:
            self.nothing_grew()

    def nothing_grew(self) -> None:
        gc.collect()
        # Frames are kept for tests to look at; here they would be what grows.
        self.steady.frames.clear()
        self.steady.streams = dict(list(self.steady.streams.items())[-8:])
        files, heap = sum(1 for _ in Path("/proc/self/fd").iterdir()), driver.heap()
        print(f"{self.inputs} clients: {files} open files, {heap >> 10} KiB on the heap", file=sys.stderr)
        if self.inputs <= WARM or self.warm is None:
            self.warm = (self.inputs, files, heap)
            return
        inputs, warm_files, warm_heap = self.warm
        allowed = warm_heap + GROWTH + GROWTH_EACH * (self.inputs - inputs)
        assert files <= warm_files + 4, f"{files} open files, {warm_files} when it was warm"
        assert heap <= allowed, f"{heap} bytes on the heap, {warm_heap} when it was warm"

    def finish(self) -> None:
        faulthandler.dump_traceback_later(60, exit=True)
        self.healthy()
        self.nothing_grew()
        self.stack.close()
        faulthandler.cancel_dump_traceback_later()


def answered(peer: h2.Peer) -> None:
    """One good call, answered right; as soon as the bytes of clients that have left are given back."""
    until = time.monotonic() + PATIENCE_S
    while (answer := peer.call(frames.PATHS[0], frames.GOOD, within_s=PATIENCE_S)).code == UNAVAILABLE:
        assert time.monotonic() < until, answer.message
        time.sleep(0.01)
    assert answer.code == 0, (answer.code, answer.message, answer.reset)
    (message,) = answer.messages
    values = pb.ModelInferResponse.FromString(message).raw_output_contents[0]
    assert values == struct.pack("<4f", 2, 4, 6, 8), values


def well_formed(received: bytes) -> None:
    """Frames of known types and legal sizes, the last one perhaps cut off; then, perhaps, words for HTTP/1 clients."""
    received, at = received.partition(b"HTTP/1.1 505 ")[0], 0
    while at + 9 <= len(received):
        size, kind = int.from_bytes(received[at : at + 3]), received[at + 3]
        assert size <= 16384, f"a frame of {size} bytes"
        assert kind <= h2.CONTINUATION and kind != h2.PUSH_PROMISE, f"a frame of type {kind}"  # noqa: PT018
        at += 9 + size


def read(link: socket.socket, wait_ms: float) -> bytes | None:
    """What has come or comes within the time; None where there is no more to come."""
    if not select.select([link], [], [], wait_ms / 1000)[0]:
        return b""
    return link.recv(1 << 16) or None


def speak(link: socket.socket, parts: tuple[bytes, ...], *, deaf: bool) -> bytes:
    """Send part by part; what came meanwhile."""
    received = b""
    for index, part in enumerate(parts):
        link.sendall(part)
        while index + 1 < len(parts) and not deaf and (found := read(link, PAUSE_MS)):
            received += found
    return received


def until_closed(link: socket.socket) -> bytes:
    """Say that nothing more comes, and read to the end."""
    link.shutdown(socket.SHUT_WR)
    received, late = b"", time.monotonic() + PATIENCE_S
    while (found := read(link, 100)) is not None:
        received += found
        assert time.monotonic() < late, f"not closed within {PATIENCE_S} seconds"
    return received


def visit(address: str, data: bytes) -> None:
    """One client from its first byte to the end of its connection."""
    script = frames.script(data)
    with h2.link(address) as link:
        link.settimeout(PATIENCE_S)
        with contextlib.suppress(ConnectionError):  # the server may hang up on any of these
            received = speak(link, script.parts, deaf=script.deaf)
            if not script.abrupt:
                received += until_closed(link)
            well_formed(received)


def target(server: Server, data: bytes) -> None:
    visit(server.address, data)
    server.inputs += 1
    if server.inputs % EVERY == 0:
        server.healthy()


def main() -> None:
    server, seeds = Server(), frames.seeds()
    server.healthy()
    driver.fuzz(
        functools.partial(target, server),
        seeds=seeds,
        mutate=lambda chance, data: frames.mutate(chance, data, seeds),
        finish=server.finish,
    )


if __name__ == "__main__":
    main()
