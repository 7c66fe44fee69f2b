"""Callers that are slow, or silent, or gone: each is ended in its time, and costs nobody else anything.

The shared server gives handshakes, headers, bodies and answers one second each, and pings a silent peer after two.
"""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np

from penstock.client import Client

LATE_S = 4.0
"""Within this, all that may take a second must have been ended."""


@contextmanager
def opened(target, http2, count, **options):
    """Connections that have said hello, closed at the end of the block."""
    with ExitStack() as stack:
        yield [stack.enter_context(http2.connect(target.address, **options)) for _ in range(count)]


@contextmanager
def linked(target, http2, count):
    """Connections that have said nothing, closed at the end of the block."""
    with ExitStack() as stack:
        yield [stack.enter_context(http2.link(target.address)) for _ in range(count)]


# Answers that nobody reads


def test_zero_windows_end_with_a_reset(flood, target, http2, infer, body_of):
    """32 answers of 128 KiB on 4 connections whose windows never open."""
    large = body_of(np.ones((2, 16384)), "wide")

    def attack():
        with opened(target, http2, 4, settings={http2.INITIAL_WINDOW_SIZE: 0}) as peers:
            for peer in peers:
                streams = [peer.start_call(infer, large) for _ in range(8)]
                peer.until(lambda: all(peer.streams[s].blocks for s in streams))  # noqa: B023
            begun = time.monotonic()
            for peer in peers:
                peer.until(lambda: all(s.done for s in peer.streams.values()), LATE_S)  # noqa: B023
                assert {(s.reset, bytes(s.data)) for s in peer.streams.values()} == {(http2.CANCEL, b"")}
            assert time.monotonic() - begun < LATE_S

    flood(attack)


def test_a_window_opened_later_brings_the_answer(target, http2, infer, body_of):
    with http2.connect(target.address, settings={http2.INITIAL_WINDOW_SIZE: 0}) as peer:
        stream = peer.start_call(infer, body_of([[1.0, 2.0]]))
        peer.until(lambda: peer.streams[stream].blocks)
        peer.window_update(stream, 1 << 16)
        assert peer.answer(stream).code == 0


def test_answers_that_are_never_read_are_given_up(flood, target, http2, infer, body_of):
    """Windows are wide open, but nothing is ever taken from the socket: kernel buffers fill, then ours.

    Half of what may be in flight may stay with the allocator, which keeps what large answers took.
    """
    large = body_of(np.ones((64, 16384)), "wide")
    wide = {http2.INITIAL_WINDOW_SIZE: (1 << 31) - 1}

    def attack():
        with ExitStack() as stack:
            for _ in range(3):
                peer = stack.enter_context(http2.Peer(narrow(target.address), settings=wide))
                peer.window_update(0, 1 << 30)
                peer.started()
                for _ in range(3):
                    peer.body(peer.begin(infer), http2.framed(large))
            time.sleep(1.5)

    flood(attack, growth=32 << 20)


def narrow(address):
    """A connection that takes next to nothing from the server unless it is read."""
    link = socket.socket()
    link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    host, _, port = address.rpartition(":")
    link.connect((host, int(port)))
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return link


def answered(target, model):
    """Calls of a model that the server has answered."""
    with Client(target.address) as client:
        return sum(version.phases["success"].count for version in client.statistics(model))


def test_refusals_that_are_never_read_fill_no_memory(starting, small_limits, http2, blocks, infer, body_of, noting):
    """400,000 calls of no known method, each reset by its client at once, within the limit on resets.

    The socket is full of answers that nobody reads, so no refusal can leave.
    """
    settings = small_limits | {"max_resets_per_s": 1 << 20, "body_timeout_s": 20.0, "keepalive_s": 20.0}
    target = starting(**settings)
    first, others = blocks("/no.such/Method")
    with http2.Peer(narrow(target.address), settings={http2.INITIAL_WINDOW_SIZE: (1 << 31) - 1}) as peer:
        peer.window_update(0, 1 << 30)
        peer.started()
        for _ in range(4):
            peer.body(peer.begin(infer), http2.framed(body_of(np.ones((64, 16384)), "wide")))
        until_all(
            lambda: answered(target, "wide") == 4, lambda _: None
        )  # what these answers take is not what is measured
        peer.header_block(first)
        before, number = target.memory(), peer.new_stream()
        for _ in range(40):
            parts = []
            for _ in range(10_000):
                parts.append(http2.frame(http2.HEADERS, http2.END_HEADERS | http2.END_STREAM, number, others))
                parts.append(http2.frame(http2.RST_STREAM, 0, number, struct.pack(">I", http2.CANCEL)))
                number += 2
            peer.link.settimeout(3)
            try:
                peer.link.sendall(b"".join(parts))
            except OSError:
                break
        grown = target.memory() - before
    noting(f"memory {grown / 2**20:+.1f} MiB after {number // 2} calls")
    assert grown < 16 << 20
    target.serves()


# Requests that do not come


def until_all(done, step, every_s=0.02):
    """Take steps until it is done; the seconds that took."""
    begun = time.monotonic()
    while not done():
        step(time.monotonic() - begun)
        assert time.monotonic() - begun < LATE_S, "the server still waits"
        time.sleep(every_s)
    return time.monotonic() - begun


def closed(link):
    """Whether the server has closed the connection, as far as one can see without waiting."""
    link.settimeout(0)
    with suppress(BlockingIOError):
        try:
            while link.recv(1 << 16):
                pass
        except ConnectionError:
            pass
        return True
    return False


def test_a_preface_of_slow_bytes_is_cut_off(flood, target, http2):
    """A byte of it every 60 ms, on 20 connections."""

    def attack():
        with linked(target, http2, 20) as links:
            left, preface = list(links), iter(http2.PREFACE)

            def step(_):
                piece = bytes([next(preface)])
                for link in links:
                    with suppress(ConnectionError, BlockingIOError):
                        link.send(piece)
                left[:] = [link for link in left if not closed(link)]

            assert until_all(lambda: not left, step, 0.06) >= 0.9

    flood(attack, warm=0)


def test_headers_of_slow_bytes_are_cut_off(flood, target, http2):
    """HEADERS begun on 20 connections, then a byte of them at a time: each stream is reset in time."""

    def attack():
        with opened(target, http2, 20) as peers:
            for peer in peers:
                peer.started().new_stream()
                peer.send(http2.frame(http2.HEADERS, http2.END_HEADERS, 1, b"\0\x7f\x80\x10", size=4000))

            def step(_):
                for peer in peers:
                    peer.send(b"a")
                    _read_what_is_there(peer)

            assert until_all(lambda: all(peer.streams[1].done for peer in peers), step) >= 0.8
            assert {peer.streams[1].reset for peer in peers} == {http2.CANCEL}

    flood(attack, warm=0)


def _read_what_is_there(peer):
    with suppress(TimeoutError):
        peer.until(lambda: False, 0.001)


def test_bodies_of_slow_bytes_are_cut_off(flood, target, http2, infer):
    """A byte in each DATA frame, on 20 calls."""

    def attack():
        with http2.connect(target.address) as peer:
            streams = [peer.begin(infer) for _ in range(20)]
            for stream in streams:
                peer.data(stream, struct.pack(">BI", 0, 1 << 20))

            def step(_):
                for stream in streams:
                    if not peer.streams[stream].done:
                        peer.data(stream, b"x")
                _read_what_is_there(peer)

            assert until_all(lambda: all(peer.streams[stream].done for stream in streams), step) >= 0.8
            told = {(peer.streams[s].code, peer.streams[s].message) for s in streams}
            assert told == {(4, "the request did not arrive in time")}

    flood(attack, warm=0)


def test_a_huge_length_without_its_body_takes_no_memory(flood, target, http2, infer):
    """100 calls at a time that say 8 MiB, the largest there may be, and send a byte of it."""

    def attack():
        with http2.connect(target.address) as peer:
            streams = [peer.begin(infer) for _ in range(100)]
            before = target.memory()
            for stream in streams:
                peer.data(stream, struct.pack(">BI", 0, 8 << 20) + b"x")
            peer.echo()
            assert target.memory() - before < 16 << 20
            peer.until(lambda: all(peer.streams[s].done for s in streams), LATE_S)
            assert {peer.streams[s].code for s in streams} <= {4, 14}

    flood(attack, warm=0)


def test_a_length_beyond_the_limit_is_refused_at_once(target, http2, infer):
    with http2.connect(target.address) as peer:
        stream = peer.begin(infer)
        peer.data(stream, struct.pack(">BI", 0, (1 << 32) - 1))
        answer = peer.answer(stream, 1)
        assert (answer.code, answer.message) == (8, "the message has 4294967295 bytes, the limit is 8388608")


def test_messages_of_a_stream_that_do_not_come_are_given_up(starting, small_limits, http2, noting):
    """Half of a message of ModelStreamInfer holds bytes of the budget; it may not do so for as long as it likes."""
    target = starting(**small_limits)
    with http2.connect(target.address) as peer:
        stream = peer.begin("/inference.GRPCInferenceService/ModelStreamInfer")
        peer.body(stream, struct.pack(">BI", 0, 1 << 20) + bytes(1 << 19), end=False)
        peer.until(lambda: peer.streams[stream].done, LATE_S)
        assert peer.streams[stream].code == 4


# Connections that are nothing


def test_connections_that_say_nothing_are_closed(flood, target, http2):
    """150 at a time, of the 200 there may be."""

    def attack():
        begun = time.monotonic()
        with linked(target, http2, 150) as links:
            for link in links:
                link.settimeout(LATE_S)
                assert link.recv(100) == b""
        assert 0.8 < time.monotonic() - begun < LATE_S

    flood(attack, warm=0)


def test_connections_that_vanish_are_forgotten(flood, target, http2):
    """By FIN and by RST in turn, before a byte, after the preface, within a call."""

    def attack():
        for number in range(300):
            link = http2.link(target.address)
            if number % 3:
                link.sendall(http2.PREFACE + http2.frame(http2.SETTINGS, 0, 0))
            if number % 3 == 2:
                link.sendall(http2.frame(http2.HEADERS, 0, 1, b"\x83"))
            if number % 2:
                link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            link.close()

    flood(attack)


def test_silent_peers_are_found_out_by_ping(target, http2):
    """Connections that are open, do not answer the PING after two seconds of silence, and are closed a second later."""
    with opened(target, http2, 50, polite=False) as peers:
        begun = time.monotonic()
        for peer in peers:
            peer.until_closed(8)
            assert any(frame.type == http2.PING for frame in peer.frames)
        assert 2.5 < time.monotonic() - begun < 6


def test_a_goaway_of_the_client_leaves_its_calls_their_answers(flood, target, http2, infer, body_of):
    """In the middle of 10 calls, on one connection after another; then the server closes it."""

    def attack():
        with http2.connect(target.address) as peer:
            streams = [peer.begin(infer) for _ in range(10)]
            peer.goaway()
            for stream in streams:
                peer.body(stream, http2.framed(body_of([[1.0, 2.0]])))
            peer.until(lambda: all(peer.streams[s].done for s in streams))
            assert [peer.streams[s].code for s in streams] == 10 * [0]
            peer.until_closed(5)

    flood(attack)


VICTIM = """
import importlib.util, struct, sys, time
spec = importlib.util.spec_from_file_location("http2_client", sys.argv[1])
http2 = sys.modules["http2_client"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(http2)
peers, message = [], sys.stdin.buffer.read()
for number in range(5):
    peer = http2.Peer(http2.link(sys.argv[2]), settings={http2.INITIAL_WINDOW_SIZE: 1000}).started()
    for _ in range(4):
        peer.start_call("/inference.GRPCInferenceService/ModelInfer", message)
        stream = peer.begin("/inference.GRPCInferenceService/ModelInfer")
        peer.data(stream, struct.pack(">BI", 0, 1 << 20) + bytes(9000))
        peer.begin("/grpc.health.v1.Health/Watch")
    peers.append(peer)
print("calling", flush=True)
time.sleep(60)
"""


def test_a_client_that_is_killed_leaves_nothing(flood, target, http2, body_of):
    """Its 60 calls are half asked, half answered, or streams: up to 10 MiB, of which the allocator may keep some."""
    message = body_of(np.ones((4, 16384)), "wide")

    def attack():
        words = [sys.executable, "-c", VICTIM, str(Path(http2.__file__)), target.address]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as victim:
            victim.stdin.write(message)
            victim.stdin.close()
            assert victim.stdout.readline() == b"calling\n"
            victim.kill()

    flood(attack, warm=3, growth=16 << 20)
