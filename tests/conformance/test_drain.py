"""Going down: told first, in-flight calls answered, the door closed, GOAWAY in two steps."""

from __future__ import annotations

import socket
import time

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

SERVING, NOT_SERVING = 1, 2
ANY_STREAM = (1 << 31) - 1


def queue(caller, server, rows, eventually):
    """Calls that wait in the queue of a server with a long `max_queue_delay_us`."""
    calls = [caller.send("double", [[row, row + 0.5]]) for row in range(rows)]
    eventually(lambda: scraped(server, 'penstock_queue_rows{model="double"') == rows)
    return calls


def scraped(server, start):
    from urllib.request import urlopen

    with urlopen(f"http://{server.metrics}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return next(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(start))


def refuses(address):
    host, port = address.split(":")
    try:
        socket.create_connection((host, int(port)), 1).close()
    except OSError:
        return True
    return False


def test_a_drain_answers_what_is_in_flight_and_ends_watchers(process, calling, eventually):
    server = process(max_queue_delay_us=1_500_000, metrics=True)
    caller = calling(server)
    watching = health_pb2_grpc.HealthStub(caller.channel).Watch(health_pb2.HealthCheckRequest())
    assert next(watching).status == SERVING
    calls = queue(caller, server, 20, eventually)
    started = time.monotonic()
    server.terminate()
    assert next(watching).status == NOT_SERVING
    assert list(watching) == []
    for row, call in enumerate(calls):
        assert caller.answer(call).tolist() == [[2 * row, 2 * row + 1]]
    server.stop(within_s=10)
    assert time.monotonic() - started < 8


def test_an_idle_server_ends_promptly_even_while_it_is_watched(process, calling):
    server = process()
    stub = health_pb2_grpc.HealthStub(calling(server).channel)
    watching = [stub.Watch(health_pb2.HealthCheckRequest(service=name)) for name in ("", "double", "nobody")]
    assert [next(one).status for one in watching] == [1, 1, 3]
    started = time.monotonic()
    server.stop()
    assert time.monotonic() - started < 4
    assert [[told.status for told in one] for one in watching] == [[NOT_SERVING], [NOT_SERVING], []]


def test_during_the_drain_delay_calls_are_still_answered(process, calling):
    server = process("--drain-delay", "1")
    caller = calling(server)
    watching = health_pb2_grpc.HealthStub(caller.channel).Watch(health_pb2.HealthCheckRequest())
    assert next(watching).status == SERVING
    server.terminate()
    assert next(watching).status == NOT_SERVING
    assert not caller.client.ready()
    assert caller.client.live()
    assert caller.answer(caller.send("double", [[1.0, 2.0]])).tolist() == [[2, 4]]
    server.stop()


def test_while_it_drains_new_connections_are_refused(process, calling, eventually):
    server = process(max_queue_delay_us=1_500_000, metrics=True)
    caller = calling(server)
    (call,) = queue(caller, server, 1, eventually)
    server.terminate()
    eventually(lambda: refuses(server.grpc))
    assert not call.done()
    assert caller.answer(call).tolist() == [[0, 1]]


@pytest.mark.parametrize("idle", [False, True], ids=["a call in flight", "idle"])
def test_goaway_comes_in_two_steps_and_calls_in_flight_finish(process, http2, infer, body_of, values_of, idle):
    """First that no new streams are wanted, without naming one; then the last stream that was taken."""
    server = process(max_queue_delay_us=1_500_000)
    with http2.connect(server.grpc) as peer:
        peer.started()
        before = peer.call(infer.replace("ModelInfer", "ServerLive"), b"")
        stream = 1 if idle else peer.start_call(infer, body_of("double", [[1.0, 2.0]]))
        peer.echo()
        server.terminate()
        peer.until(lambda: bool(peer.goaways))
        assert (peer.goaways[0].last, peer.goaways[0].code) == (ANY_STREAM, 0)
        peer.until_closed()
        assert (peer.goaways[-1].last, peer.goaways[-1].code) == (stream, 0)
        assert len(peer.goaways) == 2
        if not idle:
            assert values_of(peer.streams[stream].messages[0]).tolist() == [[2, 4]]
        assert before.code == 0
