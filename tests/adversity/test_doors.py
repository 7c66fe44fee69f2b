"""At the door: more connections than there may be, no descriptors left, handshakes of TLS that lead to nothing."""

from __future__ import annotations

import contextlib
import os
import resource
import ssl
import time

import pytest

LATE_S = 4.0


def told_to_go(link) -> bool:
    """Whether the server closes a connection that is young."""
    link.settimeout(LATE_S)
    try:
        return link.recv(1 << 16) == b""
    except ConnectionError:
        return True


def test_connections_beyond_the_limit_are_closed_at_once(flood, target, http2):
    """190 good ones stand there, of the 200 that may be; 400 more knock, most in vain."""

    def attack():
        with contextlib.ExitStack() as stack:
            for _ in range(190):
                stack.enter_context(http2.connect(target.address)).started()
            begun = time.monotonic()
            links = [stack.enter_context(http2.link(target.address)) for _ in range(400)]
            for link in links[50:]:
                assert told_to_go(link)
            assert time.monotonic() - begun < 3

    flood(attack)


def test_a_place_that_is_free_again_is_given_away(starting, http2, eventually):
    target = starting(max_connections=3)
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(http2.connect(target.address)).started() for _ in range(3)]
        assert told_to_go(stack.enter_context(http2.link(target.address)))
        peers[0].close()

        def enters():
            with contextlib.suppress(ConnectionError), http2.connect(target.address) as peer:
                return peer.started()

        assert eventually(enters)


def test_no_descriptors_left_is_lived_through(starting, caller, http2, eventually, noting):
    """Those who are connected are served; those who come wait, and are taken in once there is room."""
    target = starting()
    healthy = caller(target.address)
    healthy.mark()
    before = resource.prlimit(target.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(target.pid, resource.RLIMIT_NOFILE, (target.descriptors() + 20, before[1]))
    with contextlib.ExitStack() as stack:
        links = [stack.enter_context(http2.link(target.address)) for _ in range(60)]
        eventually(lambda: target.descriptors() >= resource.prlimit(target.pid, resource.RLIMIT_NOFILE)[0])
        used = target.cpu_s()
        times = healthy.during(lambda: time.sleep(0.1), 1.0)
        used = target.cpu_s() - used
        resource.prlimit(target.pid, resource.RLIMIT_NOFILE, before)
        for link in links:
            http2.Peer(link).started()
    noting(f"{len(times['infer'])} calls answered meanwhile; server {used:.2f} s of CPU in 1 s")
    assert len(times["infer"]) > 100
    target.serves()


@pytest.fixture
def secure(starting, small_limits, certificates):
    """A server with TLS, and a context of its clients."""
    files = {"tls_certificate": certificates / "server.pem", "tls_key": certificates / "server.key"}
    return starting(**small_limits, **files), certificates / "ca.pem"


def through(target, ca, http2):
    """A call over TLS is answered."""
    with http2.connect(target.address, tls=http2.tls_context(str(ca))) as peer:
        assert peer.call("/inference.GRPCInferenceService/ServerLive", b"").messages == [b"\x08\x01"]


def client_hello(ca, http2):
    """The first flight of a handshake."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    shaking = http2.tls_context(str(ca)).wrap_bio(incoming, outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        shaking.do_handshake()
    return outgoing.read()


def tls_attacks(hello):
    """(name, what is sent) of each kind of handshake that leads to nothing."""
    return {
        "garbage": os.urandom(1000),
        "no TLS at all": b"GET / HTTP/1.1\r\n\r\n",
        "half a hello": hello[: len(hello) // 2],
        "a hello and no more": hello,
        "a hello and garbage": hello + b"\x17\x03\x03\x40\x00" + os.urandom(500),
        "a record too long": b"\x16\x03\x01\xff\xff" + bytes(2000),
        "nothing": b"",
    }


def test_tls_handshakes_that_lead_to_nothing_are_ended(secure, flood, http2):
    """20 of each kind at a time; every connection is closed within the time for handshakes, and new callers get in."""
    target, ca = secure
    attacks = tls_attacks(client_hello(ca, http2))
    through(target, ca, http2)

    def attack():
        with contextlib.ExitStack() as stack:
            begun, links = time.monotonic(), []
            for sent in 20 * list(attacks.values()):
                links.append(link := stack.enter_context(http2.link(target.address)))
                link.sendall(sent)
            at = time.monotonic()
            through(target, ca, http2)
            assert time.monotonic() - at < 1
            for link in links:
                while not told_to_go(link):
                    pass
            assert time.monotonic() - begun < LATE_S

    flood(attack, at=target, ca=str(ca))
