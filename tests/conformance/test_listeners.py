"""Where a server listens: TCP of both families, unix sockets, several connections at once."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest


def has_ipv6():
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_ipv6_is_served(serving, calling):
    addresses = serving(grpc="[::1]:0")
    assert addresses.grpc.startswith("[::1]:")
    caller = calling(addresses)
    assert caller.answer(caller.send("double", [[1.0, 2.0]])).tolist() == [[2, 4]]


def test_a_unix_socket_is_served_and_gone_afterwards(tmp_path, process, calling):
    path = tmp_path / "penstock.sock"
    server = process("--grpc", f"unix:{path}")
    assert server.grpc == f"unix:{path}"
    assert path.stat().st_mode & 0o077 == 0
    caller = calling(server)
    assert caller.answer(caller.send("double", [[1.0, 2.0]])).tolist() == [[2, 4]]
    server.stop()
    assert not path.exists()


def test_a_unix_socket_left_by_a_killed_server_is_taken_over(tmp_path, process, calling):
    path = tmp_path / "penstock.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    caller = calling(process("--grpc", f"unix:{path}"))
    assert caller.answer(caller.send("double", [[1.0, 2.0]])).tolist() == [[2, 4]]


def test_100_connections_are_served_at_once(server, http2, infer, body_of, values_of):
    def call(value):
        with http2.connect(server.grpc) as peer:
            answers = [peer.call(infer, body_of("double", [[value, k]])) for k in range(5)]
            return [values_of(answer.messages[0]).tolist() for answer in answers]

    with ThreadPoolExecutor(20) as threads:
        found = list(threads.map(call, map(float, range(100))))
    assert found == [[[[2.0 * i, 2.0 * k]] for k in range(5)] for i in range(100)]


def test_connections_beyond_the_limit_are_closed_and_a_place_that_is_left_is_taken(serving, http2, live, eventually):
    address = serving(max_connections=3).grpc

    def served():
        try:
            peers.append(http2.Peer(http2.link(address)))
            return peers[-1].call(live, b"", within_s=5).code == 0
        except OSError:
            return False

    peers = []
    try:
        assert [served() for _ in range(3)] == [True] * 3
        assert not served()
        assert peers[0].call(live, b"").code == 0
        peers[0].close()
        eventually(served)
    finally:
        for peer in peers:
            peer.close()


async def test_a_caller_finds_a_server_that_starts_after_it(transport, models, infer, body_of, values_of):
    """wait_for_ready, as clients that start together with their server have it."""
    import asyncio

    from penstock.server.config import Config
    from penstock.server.testing import running

    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    options = [("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 100)]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        call = channel.unary_unary(infer)(body_of("double", [[1.0, 2.0]]), timeout=30, wait_for_ready=True)
        waiting = asyncio.ensure_future(asyncio.wait_for(call, 30))
        server = running(Config(registry=models, grpc=address, metrics="off", transport=transport))
        await asyncio.to_thread(server.__enter__)
        try:
            assert values_of(await waiting).tolist() == [[2, 4]]
        finally:
            await channel.close()
            await asyncio.to_thread(server.__exit__, None, None, None)
