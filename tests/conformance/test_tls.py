"""TLS and mutual TLS with grpcio clients, and certificates renewed under a running server."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
from pathlib import Path

import grpc
import pytest


@pytest.fixture
def tls(certificates):
    """Settings of a server with TLS; `mutual=True` asks callers for certificates."""

    def settings(folder=certificates, *, mutual=False):
        found = {"tls_certificate": folder / "server.pem", "tls_key": folder / "server.key"}
        return found | ({"tls_client_ca": folder / "ca.pem"} if mutual else {})

    return settings


@pytest.fixture
def call(certificates, infer, body_of, values_of):
    """One call over a connection of its own, with the trust and the certificate given; what [[1, 2]] became."""

    def make(address, ca="ca", own=None):
        pem = {path.stem: path.read_bytes() for path in certificates.glob("*.pem")}
        key = (certificates / f"{own}.key").read_bytes() if own else None
        credentials = grpc.ssl_channel_credentials(pem[ca], key, pem[own] if own else None)
        alone = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.secure_channel(address, credentials, options=alone) as channel:
            answer = channel.unary_unary(infer)(body_of("double", [[1.0, 2.0]]), timeout=10)
        return values_of(answer).tolist()

    return make


def test_tls_is_served(serving, tls, call):
    assert call(serving(**tls()).grpc) == [[2, 4]]


async def test_tls_is_served_to_asyncio_clients(serving, tls, certificates, infer, body_of, values_of):
    import asyncio

    credentials = grpc.ssl_channel_credentials((certificates / "ca.pem").read_bytes())
    async with grpc.aio.secure_channel(serving(**tls()).grpc, credentials) as channel:
        unary = channel.unary_unary(infer)
        answers = await asyncio.gather(*(unary(body_of("double", [[float(i), 0.0]]), timeout=20) for i in range(200)))
    assert [values_of(answer)[0, 0] for answer in answers] == [2 * i for i in range(200)]


def test_8_mib_go_both_ways_over_tls(serving, tls, certificates, infer, body_of, values_of):
    import numpy as np

    x = np.random.default_rng(1).random((256, 8192), np.float32)
    options = [("grpc.max_receive_message_length", -1)]
    credentials = grpc.ssl_channel_credentials((certificates / "ca.pem").read_bytes())
    with grpc.secure_channel(serving(**tls()).grpc, credentials, options=options) as channel:
        np.testing.assert_array_equal(values_of(channel.unary_unary(infer)(body_of("echo", x), timeout=60)), x)


def test_a_caller_who_does_not_trust_the_server_does_not_talk_to_it(serving, tls, call, refused):
    address = serving(**tls()).grpc
    assert refused(lambda: call(address, ca="another_ca"))[0] == "UNAVAILABLE"
    assert call(address) == [[2, 4]]


def test_with_mutual_tls_a_caller_of_the_authority_is_served(serving, tls, call):
    assert call(serving(**tls(mutual=True)).grpc, own="client") == [[2, 4]]


@pytest.mark.parametrize("own", [None, "another_ca"])
def test_with_mutual_tls_a_stranger_is_refused(serving, tls, call, refused, own):
    address = serving(**tls(mutual=True)).grpc
    assert refused(lambda: call(address, own=own))[0] == "UNAVAILABLE"
    assert call(address, own="client") == [[2, 4]]


def ends_soon(link):
    """Whether the other side closes within seconds, whatever it says before."""
    link.settimeout(5)
    try:
        while link.recv(65536):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


def test_a_caller_without_tls_is_closed(serving, tls, http2, call):
    address = serving(**tls()).grpc
    with http2.link(address) as link:
        link.sendall(http2.PREFACE + http2.frame(http2.SETTINGS, 0, 0))
        assert ends_soon(link)
    assert call(address) == [[2, 4]]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tls_of_version_1_2_and_newer_are_spoken(serving, tls, certificates, http2, live, version):
    context = http2.tls_context(certificates / "ca.pem")
    context.minimum_version = context.maximum_version = version
    with http2.connect(serving(**tls()).grpc, tls=context) as peer:
        assert peer.link.selected_alpn_protocol() == "h2"
        assert peer.call(live, b"").code == 0


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_older_versions_of_tls_are_refused(serving, tls, certificates, http2):
    context = http2.tls_context(certificates / "ca.pem")
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    address = serving(**tls()).grpc
    with pytest.raises(OSError):
        http2.link(address, tls=context)


def test_a_caller_who_does_not_speak_http2_is_not_served(serving, tls, certificates, http2, call):
    context = http2.tls_context(certificates / "ca.pem", protocols=["http/1.1"])
    address = serving(**tls()).grpc
    try:
        link = http2.link(address, tls=context)
    except OSError:  # refused in the handshake, which may be told after it
        link = None
    if link is not None:
        with link:
            link.sendall(b"GET / HTTP/1.1\r\n\r\n".ljust(64))
            assert ends_soon(link)
    assert call(address) == [[2, 4]]


def issue(folder, ca, name="server"):
    """A certificate for this machine by another authority, in place of the one there is."""
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-days", "2"]
    words += ["-CA", f"{ca}.pem", "-CAkey", f"{ca}.key", "-addext", "basicConstraints=critical,CA:FALSE"]
    words += ["-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "new.key", "-out", "new.pem"]
    subprocess.run(words, cwd=folder, check=True, capture_output=True)
    for suffix in ("key", "pem"):
        (folder / f"new.{suffix}").replace(folder / f"{name}.{suffix}")


def test_certificates_are_renewed_while_calls_go_on(
    serving, tls, certificates, tmp_path, call, eventually, infer, body_of, refused
):
    folder = Path(shutil.copytree(certificates, tmp_path / "renewed"))
    address = serving(**tls(folder)).grpc
    body, ended, fates = body_of("double", [[1.0, 2.0]]), threading.Event(), []
    credentials = grpc.ssl_channel_credentials((folder / "ca.pem").read_bytes())
    with grpc.secure_channel(address, credentials) as channel:
        unary = channel.unary_unary(infer)

        def keep_calling():
            while not ended.is_set():
                try:
                    unary(body, timeout=10)
                    fates.append("OK")
                except grpc.RpcError as error:
                    fates.append(error.code().name)

        threads = [threading.Thread(target=keep_calling) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            eventually(lambda: len(fates) > 20)
            issue(folder, "another_ca")
            eventually(lambda: not refused_now(call, address))
            so_far = len(fates)
            eventually(lambda: len(fates) > so_far + 20)
            assert refused(lambda: call(address, ca="ca"))[0] == "UNAVAILABLE"
        finally:
            ended.set()
            for thread in threads:
                thread.join()
    assert set(fates) == {"OK"}


def refused_now(call, address):
    try:
        return call(address, ca="another_ca") != [[2, 4]]
    except grpc.RpcError:
        return True


def test_a_certificate_that_does_not_fit_its_key_changes_nothing(serving, tls, certificates, tmp_path, call):
    folder = Path(shutil.copytree(certificates, tmp_path / "torn"))
    address = serving(**tls(folder)).grpc
    assert call(address) == [[2, 4]]
    (folder / "server.pem").write_bytes((folder / "client.pem").read_bytes())
    assert [call(address) for _ in range(3)] == [[[2, 4]]] * 3
    (folder / "server.pem").write_bytes(b"nonsense")
    assert call(address) == [[2, 4]]


def test_a_handshake_that_never_goes_on_harms_nobody(serving, tls, call):
    address = serving(**tls()).grpc
    host, port = address.split(":")
    silent = [socket.create_connection((host, int(port)), 10) for _ in range(20)]
    try:
        for link in silent[::2]:
            link.sendall(b"\x16\x03\x01\x02\x00\x01")
        assert call(address) == [[2, 4]]
    finally:
        for link in silent:
            link.close()
