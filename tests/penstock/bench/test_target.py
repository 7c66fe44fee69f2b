"""What is wrong with an address is said in words, and a local server's process is found by its socket."""

from __future__ import annotations

import os
import socket
import threading
from contextlib import contextmanager

import pytest

from penstock.bench import local
from penstock.bench.target import BenchFailed, Target


@contextmanager
def speaking(answer, family=socket.AF_INET, at=("127.0.0.1", 0)):
    """A listener that gives one connection an answer, or closes it if that is empty."""
    with socket.socket(family) as listener:
        listener.bind(at)
        listener.listen()

        def serve():
            connection, _ = listener.accept()
            with connection:
                connection.recv(100)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()
        thread.join(20)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"\x15\x03\x01\0\x02\x02\x46", "wants TLS"),
        (b"", "it wants TLS .--tls., or it is no gRPC server"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not speak HTTP/2"),
    ],
)
def test_what_is_no_grpc_server_is_told_apart(answer, words):
    with speaking(answer) as (host, port), pytest.raises(BenchFailed, match=words):
        Target.reach(f"{host}:{port}")


def test_a_server_is_reached_by_its_first_frame():
    with speaking(b"\0\0\0\x04\0\0\0\0\0") as (_, port):
        target = Target.reach(f"127.0.0.1:{port}")
    assert (target.host, target.port, target.local) == ("127.0.0.1", port, True)


def test_a_unix_socket_is_reached(tmp_path):
    path = str(tmp_path / "s")
    with speaking(b"\0\0\0\x04\0\0\0\0\0", socket.AF_UNIX, path):
        target = Target.reach(f"unix:{path}")
        assert local.listeners(0, path) == [os.getpid()]
    assert (target.host, target.port, target.local) == (path, 0, True)


@pytest.mark.parametrize("address", ["localhost", "localhost:x", ":8001", "localhost:0", "localhost:70000"])
def test_what_is_no_address_is_told_with_an_example(address):
    with pytest.raises(BenchFailed, match="is not HOST:PORT, such as localhost:8001"):
        Target.reach(address)


def test_where_nobody_listens_nobody_answers():
    with pytest.raises(BenchFailed, match=r"no server answers on 127\.0\.0\.1:1 \(connection refused\)"):
        Target.reach("127.0.0.1:1")
    with pytest.raises(BenchFailed, match="no server answers on unix:/no/such"):
        Target.reach("unix:/no/such")


def test_the_process_that_listens_is_found_and_its_cpu_time_read():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert local.listeners(listener.getsockname()[1]) == [os.getpid()]
    assert local.family_cpu_s([os.getpid()]) > 0
    assert local.family_cpu_s([2**22 + 1]) == 0


def test_a_port_nobody_listens_on_has_no_process():
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        assert local.listeners(unheard.getsockname()[1]) == []
    assert local.listeners(0, "/no/such/socket") == []


def test_the_cores_of_a_process_are_told_and_how_long_they_worked():
    cores = local.cores_of([os.getpid(), 2**22 + 1])
    assert cores == os.sched_getaffinity(0)
    assert local.busy_s(cores) >= local.busy_s([min(cores)]) > 0
    assert local.cores_of([2**22 + 1]) == set()


@pytest.mark.parametrize(
    ("address", "name", "grpc"),
    [
        ("localhost:8001", "localhost", "127.0.0.1:8001"),
        ("[::1]:8001", "::1", "[::1]:8001"),
        ("unix:/a/socket", "localhost", "unix:/a/socket"),
    ],
)
def test_a_certificate_must_be_for_the_host_as_it_was_given(address, name, grpc):
    port = 8001 if "8001" in address else 0
    target = Target(address, "::1" if "::1" in address else "127.0.0.1", port, local=True)
    assert (target.name, target.grpc) == (name, grpc)
