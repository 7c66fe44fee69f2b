"""Connections of the grpcio transport: where they may come from, who may make them, and when they end."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import ssl
import stat
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from typer.testing import CliRunner

from penstock.client import Client, Tls
from penstock.commands.drift import app
from penstock.errors import Unavailable
from penstock.server.config import Config
from penstock.server.errors import BadConfig, TransportFailed
from penstock.server.service import Service
from penstock.server.testing import running


@pytest.fixture
def start(registry, graphs, serving):
    """Starts a server of one model on this transport; its addresses."""
    graphs.publish(registry, "double", graphs.double())
    return lambda **settings: serving(transport="grpcio", **settings)


def answered(address, **how):
    """Whether a call at an address is answered as it should."""
    with Client(address, timeout=20, **how) as client:
        return client.predict("double", [[1.0, 2.0]])["y"].tolist() == [[2, 4]]


@pytest.fixture
def folder():
    """A folder whose path is short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="penstock-test-") as folder:
        yield Path(folder)


def test_ipv6_is_served_and_told_with_brackets(start):
    addresses = start(grpc="[::1]:0", metrics="[::1]:0")
    assert addresses.grpc.startswith("[::1]:")
    assert addresses.metrics.startswith("[::1]:")
    assert answered(addresses.grpc)


def test_a_unix_socket_is_served_to_us_alone_and_removed_in_the_end(start, registry, folder):
    path = folder / "s.sock"
    with running(Config(registry=registry.root, grpc=f"unix:{path}", metrics="off", transport="grpcio")) as addresses:
        assert addresses.grpc == f"unix:{path}"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not path.exists()
    assert answered(start(grpc=f"unix:{path}").grpc)


def test_a_unix_socket_in_use_is_refused_and_goes_on(start, serving, folder):
    address = start(grpc=f"unix:{folder}/s.sock").grpc
    with pytest.raises(BadConfig, match="another server listens there"):
        serving(grpc=address, transport="grpcio")
    assert answered(address)


def test_the_socket_of_a_server_that_was_killed_is_taken_over(start, folder):
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(f"{folder}/s.sock")
    assert answered(start(grpc=f"unix:{folder}/s.sock").grpc)


def test_the_command_line_asks_over_a_unix_socket(start, folder):
    address = start(grpc=f"unix:{folder}/s.sock").grpc
    run = CliRunner().invoke(app, ["--server", address, "--json"])
    assert (run.exit_code, json.loads(run.stdout)) == (0, [])


@pytest.fixture
def tls(start, certificates):
    """Starts a server that speaks TLS."""

    def begin(**settings):
        pems = {"tls_certificate": certificates / "server.pem", "tls_key": certificates / "server.key"}
        return start(**{**pems, **settings}).grpc

    return begin


@pytest.fixture
def trust(certificates):
    """How to trust the server, and to be known by the certificate of that name."""

    def trust(name="", roots="ca"):
        files = [f"{roots}.pem", *([f"{name}.pem", f"{name}.key"] if name else [])]
        return Tls(*((certificates / file).read_bytes() for file in files))

    return trust


@pytest.mark.parametrize("grpc", ["127.0.0.1:0", "localhost:0", "[::1]:0"])
def test_tls_is_spoken_with_those_who_trust_the_certificate(tls, trust, grpc):
    address = tls(grpc=grpc)
    assert answered(address, tls=trust())


def test_tls_is_spoken_over_a_unix_socket_too(tls, trust, folder):
    """The caller says which name to expect, for the address has none."""
    assert answered(tls(grpc=f"unix:{folder}/s.sock"), tls=replace(trust(), server_name="localhost"))


def test_without_tls_or_without_trust_nothing_is_answered(tls, trust):
    address = tls()
    for how in ({}, {"tls": trust(roots="another_ca")}):
        with Client(address, timeout=3, **how) as client, pytest.raises(Unavailable):
            client.server_metadata()


def test_tls_older_than_1_2_is_not_spoken(tls):
    host, port = tls().split(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("DEFAULT@SECLEVEL=0")
    context.set_alpn_protocols(["h2"])

    def shake():
        with socket.create_connection((host, int(port)), 10) as plain, context.wrap_socket(plain) as wrapped:
            return wrapped.version()

    assert shake() == "TLSv1.3"
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    assert shake() == "TLSv1.2"
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionError)):
        shake()


def test_callers_must_show_a_certificate_where_that_is_asked(tls, trust, certificates):
    address = tls(tls_client_ca=certificates / "ca.pem")
    assert answered(address, tls=trust("client"))
    for stranger in (trust(), trust("another_ca")):
        with Client(address, timeout=3, tls=stranger) as client, pytest.raises(Unavailable):
            client.server_metadata()


def test_files_that_cannot_be_used_keep_the_server_from_starting(tls, certificates):
    with pytest.raises(BadConfig, match="do not belong together"):
        tls(tls_key=certificates / "client.key")
    with pytest.raises(BadConfig, match=r"tls_client_ca: .* cannot be read"):
        tls(tls_client_ca=certificates / "none.pem")


def test_a_renewed_certificate_is_shown_to_new_connections_and_open_ones_go_on(tls, trust, certificates, tmp_path):
    for kind in ("pem", "key"):
        shutil.copy(certificates / f"server.{kind}", tmp_path / f"own.{kind}")
    address = tls(tls_certificate=tmp_path / "own.pem", tls_key=tmp_path / "own.key")
    shown = (certificates / "server.pem").read_text()
    host, port = address.split(":")
    assert ssl.get_server_certificate((host, int(port))) == shown
    with Client(address, timeout=20, tls=trust()) as client:
        assert client.live()
        for kind in ("pem", "key"):
            shutil.copy(certificates / f"client.{kind}", tmp_path / f"own.{kind}")
        assert ssl.get_server_certificate((host, int(port))) == (certificates / "client.pem").read_text()
        assert client.live()
        (tmp_path / "own.key").write_text("rubbish")
        assert ssl.get_server_certificate((host, int(port))) == (certificates / "client.pem").read_text()


@pytest.fixture
def echo(start, monkeypatch):
    """A server that tells a call what it knows of its caller, in a unary call and in a stream."""
    plain = Service.__init__

    def told(caller):
        metadata = [[key, value.hex() if isinstance(value, bytes) else value] for key, value in caller.metadata]
        return json.dumps({"metadata": metadata, "peer": caller.peer, "remaining_s": caller.remaining_s}).encode()

    async def stream(bodies, caller):
        async for _ in bodies:
            yield told(caller)

    def with_echo(self, *args):
        plain(self, *args)
        self.table["/test.Echo/Unary"] = lambda _, caller: told(caller)
        self.streams["/test.Echo/Stream"] = stream

    monkeypatch.setattr(Service, "__init__", with_echo)
    return start


METADATA = (("x-id", "7"), ("x-twice", "1"), ("x-twice", "2"), ("trace-bin", b"\x00\xff"))


@pytest.mark.parametrize("shape", ["Unary", "Stream"])
@pytest.mark.parametrize(("listen", "peer"), [("127.0.0.1:0", "ipv4:127.0.0.1:"), ("[::1]:0", "ipv6:[::1]:")])
def test_a_handler_is_told_who_calls_and_how_long_there_is(echo, calling, shape, listen, peer):
    channel = calling(echo(grpc=listen)).channel
    if shape == "Unary":
        told = json.loads(channel.unary_unary("/test.Echo/Unary")(b"", timeout=20, metadata=METADATA))
    else:
        (body,) = channel.stream_stream("/test.Echo/Stream")(iter([b""]), timeout=20, metadata=METADATA)
        told = json.loads(body)
    own = [entry for entry in told["metadata"] if entry[0] != "user-agent"]
    assert own == [["x-id", "7"], ["x-twice", "1"], ["x-twice", "2"], ["trace-bin", "00ff"]]
    assert told["peer"].startswith(peer)
    assert 15 < told["remaining_s"] < 20.1


def test_a_handler_is_told_that_there_is_no_deadline(echo, calling, folder):
    told = json.loads(calling(echo(grpc=f"unix:{folder}/s")).channel.unary_unary("/test.Echo/Unary")(b""))
    assert told["remaining_s"] is None
    assert told["peer"].startswith("unix:")


def test_metadata_over_the_limit_is_refused_and_the_connection_goes_on(echo, calling):
    call = calling(echo(max_header_bytes=2048)).channel.unary_unary("/test.Echo/Unary")
    with pytest.raises(grpc.RpcError) as caught:
        call(b"", timeout=20, metadata=(("x-large", "a" * 2048),))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert call(b"", timeout=20, metadata=(("x-small", "a" * 1024),))


def closed_after(address):
    """Seconds until the server closes a connection on which nothing is ever sent."""
    host, port = address.split(":")
    started = time.monotonic()
    with socket.create_connection((host, int(port)), 20) as connection, contextlib.suppress(ConnectionError):
        while connection.recv(4096):
            pass
    return time.monotonic() - started


def test_a_connection_that_never_speaks_is_closed(start):
    assert closed_after(start(handshake_timeout_s=0.3).grpc) < 10


@pytest.mark.parametrize("setting", ["idle_timeout_s", "max_connection_age_s"])
def test_a_connection_that_is_idle_or_old_is_told_to_leave_and_the_client_comes_again(start, calling, setting):
    caller = calling(start(**{setting: 0.5}))
    states = []
    caller.channel.subscribe(states.append, try_to_connect=True)
    stub = health_pb2_grpc.HealthStub(caller.channel)
    until = time.monotonic() + 20
    assert stub.Check(health_pb2.HealthCheckRequest(), timeout=20).status == 1
    while grpc.ChannelConnectivity.IDLE not in states[1:]:
        assert time.monotonic() < until, states
        time.sleep(0.02)
    assert stub.Check(health_pb2.HealthCheckRequest(), timeout=20).status == 1


def test_calls_of_an_old_connection_may_finish_within_the_grace(start, calling):
    stub = health_pb2_grpc.HealthStub(calling(start(max_connection_age_s=0.2, max_connection_age_grace_s=0.5)).channel)
    watching = stub.Watch(health_pb2.HealthCheckRequest(), timeout=20)
    assert next(watching).status == 1
    with pytest.raises(grpc.RpcError) as caught:
        next(watching)
    assert caught.value.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}


def test_a_server_that_grpcio_ends_by_itself_says_so_and_exits(registry, graphs, caplog, eventually):
    """grpcio cannot decode a path that is not UTF-8 and ends its server: nobody should find that out from clients."""
    graphs.publish(registry, "double", graphs.double())
    config = Config(registry=registry.root, grpc="127.0.0.1:0", metrics="off", transport="grpcio")
    headers = [(":method", "POST"), (":scheme", "http"), (":path", b"/x\xff"), (":authority", "localhost")]
    headers += [("te", "trailers"), ("content-type", "application/grpc")]
    with pytest.raises(TransportFailed, match="start it again"):  # noqa: PT012, SIM117 - raised where the block ends
        with running(config) as addresses:
            host, _, port = addresses.grpc.rpartition(":")
            with socket.create_connection((host, int(port)), 10) as caller:
                caller.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b""))
                caller.sendall(frame(1, 5, 1, literal(headers)))
                eventually(lambda: "does not listen" in caplog.text)


def frame(kind, flags, stream, payload):
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def literal(headers):
    """A header block without compression."""
    texts = [(name.encode(), value.encode() if isinstance(value, str) else value) for name, value in headers]
    return b"".join(b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value for name, value in texts)
