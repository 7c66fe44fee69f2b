"""Two servers restarted in turn under a standard client: no call fails.

The client is as any gRPC client may be: round robin over both, the standard health check, and a retry policy on
UNAVAILABLE. With `drain_delay_s` it hears NOT_SERVING from the health check and calls the other server before the door
closes, so that hardly a call is tried again. Without it calls meet a server that is closing; those the native transport
never took are tried again by gRPC itself, while grpc.aio cancels some of them, and CANCELLED is not retried.
"""

from __future__ import annotations

import collections
import json
import socket
import threading
import time

import grpc
import pytest

CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "healthCheckConfig": {"serviceName": ""},
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.05s",
                "maxBackoff": "0.5s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
}


def free_ports(count):
    links = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [link.getsockname()[1] for link in links]
    for link in links:
        link.close()
    return ports


class Callers:
    """Threads that call until they are told to end."""

    def __init__(self, channel, infer, body_of, values_of, threads=4) -> None:
        self.fates = collections.Counter()
        self._call = channel.unary_unary(infer)
        self._ended = threading.Event()
        self._bodies = [body_of("double", [[float(i), 1.0]]) for i in range(threads)]
        self._values_of = values_of
        self._threads = [threading.Thread(target=self._run, args=(i,)) for i in range(threads)]

    def _run(self, number):
        while not self._ended.is_set():
            try:
                answer = self._call(self._bodies[number], timeout=20)
            except grpc.RpcError as error:
                self.fates[f"{error.code().name}: {error.details()}"] += 1
            else:
                right = self._values_of(answer).tolist() == [[2.0 * number, 2.0]]
                self.fates["OK" if right else "wrong"] += 1
            time.sleep(0.0005)

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        for thread in self._threads:
            thread.join()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("drain_delay_s", [0.3, 0.0])
@pytest.mark.parametrize("rounds", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_servers_restarted_in_turn_cost_no_call(
    transport, process, channel, infer, body_of, values_of, eventually, rounds, drain_delay_s
):
    if transport == "grpcio" and not drain_delay_s:
        pytest.skip("grpc.aio cancels calls that arrive while it closes; docs: give it a drain delay")
    addresses = [f"127.0.0.1:{port}" for port in free_ports(2)]
    servers = [process("--grpc", address, metrics=True, drain_delay_s=drain_delay_s) for address in addresses]
    options = [("grpc.service_config", json.dumps(CONFIG)), ("grpc.max_reconnect_backoff_ms", 200)]
    to_both = channel(f"ipv4:{','.join(addresses)}", *options)
    never_again = channel(f"ipv4:{','.join(addresses)}", *options, ("grpc.enable_retries", 0))
    with (
        Callers(to_both, infer, body_of, values_of) as callers,
        Callers(never_again, infer, body_of, values_of, threads=2) as measured,
    ):
        for _ in range(rounds):
            for turn, address in enumerate(addresses):
                eventually(lambda: all(served(server) > 100 for server in servers))
                servers[turn].stop()
                servers[turn] = process("--grpc", address, metrics=True, drain_delay_s=drain_delay_s)
        eventually(lambda: all(served(server) > 100 for server in servers))
    lost = {fate: count for fate, count in measured.fates.items() if fate != "OK"}
    print(
        f"{callers.fates.total()} calls over {2 * rounds} restarts; without retries {lost} of {measured.fates.total()}"
    )
    assert set(callers.fates) == {"OK"}, callers.fates


def served(server):
    from urllib.request import urlopen

    with urlopen(f"http://{server.metrics}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    found = [line for line in lines if line.startswith("penstock_requests_total") and 'result="succeeded"' in line]
    return sum(float(line.rsplit(" ", 1)[1]) for line in found if 'model="double"' in line)
