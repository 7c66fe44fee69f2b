"""TLS: what clients of the native transport may and may not do, with Python's ssl module as the client.

Both sides run in one thread over a socketpair, step by step, so that nothing here waits for time to pass.
"""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import ssl
import subprocess
import warnings
from itertools import pairwise
from pathlib import Path

import pytest

from penstock.errors import PenstockError

tls = pytest.importorskip("penstock.kernels.tls", reason="built without the native transport")

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]
RECORD = 16384  # the most that one record holds


# ---- Certificates ---------------------------------------------------------------------------------------------------


class Papers:
    """Certificates and keys (ECDSA P-256) in a folder: `<name>.pem` and `<name>.key`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.issue("ca", extensions="basicConstraints=critical,CA:TRUE")
        self.issue("middle", "ca", extensions="basicConstraints=critical,CA:TRUE")
        self.issue("server", "middle", extensions="subjectAltName=DNS:localhost")
        self.issue("client", "ca")
        self.issue("stranger")  # signed by itself
        self.write("chain.pem", self.read("server.pem") + self.read("middle.pem"))
        run("openssl", "ec", "-in", self["server.key"], "-aes128", "-passout", "pass:x", "-out", self["locked.key"])
        run("openssl", "pkcs8", "-topk8", "-in", self["server.key"], "-passout", "pass:x", "-out", self["pkcs8.key"])
        run("openssl", "genrsa", "-out", self["rsa.key"], "2048")

    def issue(self, name: str, issuer: str = "", extensions: str = "basicConstraints=CA:FALSE") -> None:
        key, certificate, request = self[f"{name}.key"], self[f"{name}.pem"], self[f"{name}.csr"]
        run("openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key)
        run("openssl", "req", "-new", "-key", key, "-subj", f"/CN={name}", "-out", request)
        by = ["-CA", self[f"{issuer}.pem"], "-CAkey", self[f"{issuer}.key"]] if issuer else ["-signkey", key]
        serial = str(1 + len(list(self.folder.iterdir())))
        extra = ["-days", "2", "-set_serial", serial, "-extfile", self.write("extensions", extensions)]
        run("openssl", "x509", "-req", "-in", request, *by, *extra, "-out", certificate)

    def __getitem__(self, name: str) -> str:
        return str(self.folder / name)

    def read(self, name: str) -> str:
        return (self.folder / name).read_text()

    def write(self, name: str, text: str) -> str:
        (self.folder / name).write_text(text)
        return self[name]


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def papers(tmp_path_factory) -> Papers:
    return Papers(tmp_path_factory.mktemp("papers"))


@pytest.fixture(scope="module")
def context(papers):
    return tls.TlsContext(papers["chain.pem"], papers["server.key"])


@pytest.fixture(scope="module")
def strict(papers):
    """Asks clients for a certificate of the CA."""
    return tls.TlsContext(papers["chain.pem"], papers["server.key"], papers["ca.pem"])


# ---- Two ends of a connection ---------------------------------------------------------------------------------------


class Pair:
    """A TlsPeer and Python's client on a socketpair, both non-blocking."""

    def __init__(self, context, papers, *, alpn=("h2",), version=None, certificate="", sockbuf=0) -> None:
        settings = ssl.create_default_context(cafile=papers["ca.pem"])
        settings.set_alpn_protocols(list(alpn))
        if version:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of TLS 1.1
                settings.minimum_version = settings.maximum_version = version
            settings.set_ciphers("ALL:@SECLEVEL=0")
        if certificate:
            settings.load_cert_chain(papers[f"{certificate}.pem"], papers[f"{certificate}.key"])
        self.socket, other = socket.socketpair()
        self.socket.setblocking(False)
        other.setblocking(False)
        for end in (self.socket, other) if sockbuf else ():
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, sockbuf)
        self.server = tls.TlsPeer(context, self.socket.fileno())
        self.client = settings.wrap_socket(other, server_hostname="localhost", do_handshake_on_connect=False)

    def shake(self) -> int:
        """Run the handshake to its end; the server's last code."""
        code, client_done = tls.WANT_READ, False
        for _ in range(20):
            if not client_done:
                try:
                    self.client.do_handshake()
                    client_done = True
                except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                    pass
            if code in (tls.WANT_READ, tls.WANT_WRITE):
                code = self.server.handshake()
            if code == tls.FAILED or (code == tls.DONE and client_done):
                return code
        raise AssertionError(f"the handshake goes nowhere: {code}, client done: {client_done}")

    def refusal(self) -> str:
        """Why the client was refused, in the words of its own library."""
        assert self.shake() == tls.FAILED
        try:
            self.client.do_handshake()
            self.client.read(1)  # TLS 1.3 has a client finish before its certificate is looked at
        except ssl.SSLError as told:
            return str(told).lower().replace("_", " ")
        raise AssertionError("the client was not told")

    def raw(self) -> socket.socket:
        """The client's end without TLS."""
        return socket.socket(fileno=os.dup(self.client.fileno()))

    def close(self) -> None:
        self.server.close(say_goodbye=False)
        self.socket.close()
        self.client.close()

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.close()


@pytest.fixture
def connect(papers):
    """Makes pairs, and closes them after the test."""
    pairs = []

    def make(context, **settings):
        pairs.append(Pair(context, papers, **settings))
        return pairs[-1]

    yield make
    for pair in pairs:
        pair.close()


# ---- Handshakes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS, ids=["1.2", "1.3"])
def test_a_client_of_http2_is_taken_and_its_bytes_arrive(connect, context, version):
    pair = connect(context, version=version)
    assert pair.shake() == tls.DONE
    assert pair.client.version() == version.name.replace("_", ".")
    assert pair.client.selected_alpn_protocol() == "h2"
    assert pair.server.read(100) == tls.AGAIN_READ
    pair.client.send(b"question")
    assert pair.server.read(3) == b"que"
    assert pair.server.read(100) == b"stion"
    assert pair.server.write(b"answer") == 6
    assert pair.client.recv(100) == b"answer"


def test_ciphers_of_tls_1_2_authenticate_and_keep_the_past_secret(connect, context):
    pair = connect(context, version=ssl.TLSVersion.TLSv1_2)
    assert pair.shake() == tls.DONE
    name = pair.client.cipher()[0]
    assert name.startswith("ECDHE-")
    assert "GCM" in name or "CHACHA20" in name
    assert pair.client.compression() is None


def test_tls_1_1_is_refused(connect, context):
    assert "protocol version" in connect(context, version=ssl.TLSVersion.TLSv1_1).refusal()


@pytest.mark.parametrize("version", VERSIONS, ids=["1.2", "1.3"])
@pytest.mark.parametrize("alpn", [(), ("http/1.1",), ("h", "h22", "H2")], ids=["none", "http/1.1", "others"])
def test_a_client_that_does_not_speak_http2_is_told_so(connect, context, alpn, version):
    assert "no application protocol" in connect(context, alpn=alpn, version=version).refusal()


def test_http2_is_chosen_among_others(connect, context):
    pair = connect(context, alpn=("http/1.1", "h2", "x"))
    assert pair.shake() == tls.DONE
    assert pair.client.selected_alpn_protocol() == "h2"


@pytest.mark.parametrize("version", VERSIONS, ids=["1.2", "1.3"])
def test_a_client_with_a_certificate_of_the_ca_is_taken(connect, strict, version):
    pair = connect(strict, version=version, certificate="client")
    assert pair.shake() == tls.DONE
    pair.client.send(b"question")
    assert pair.server.read(100) == b"question"


@pytest.mark.parametrize("version", VERSIONS, ids=["1.2", "1.3"])
@pytest.mark.parametrize(
    ("certificate", "told"),
    [("", ("certificate required", "handshake failure")), ("stranger", ("unknown ca", "bad certificate"))],
    ids=["none", "of another CA"],
)
def test_a_client_without_a_certificate_of_the_ca_is_refused(connect, strict, certificate, told, version):
    refusal = connect(strict, version=version, certificate=certificate).refusal()
    assert any(words in refusal for words in told), refusal


@pytest.mark.parametrize("version", VERSIONS, ids=["1.2", "1.3"])
def test_a_client_is_given_nothing_to_resume_a_session_with(connect, context, version):
    pair = connect(context, version=version)
    assert pair.shake() == tls.DONE
    pair.server.write(b"x")
    assert pair.client.recv(1) == b"x"  # tickets of TLS 1.3 would have come before
    session = pair.client.session
    assert session is None or (not session.has_ticket and not session.id)


def test_a_client_cannot_ask_for_a_second_handshake(papers, context):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        where = f"127.0.0.1:{listener.getsockname()[1]}"
        command = ["openssl", "s_client", "-connect", where, "-alpn", "h2", "-tls1_2"]
        client = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            listener.settimeout(20)
            connection, _ = listener.accept()
            connection.settimeout(20)  # makes the descriptor non-blocking, and `ready` wait
            server = tls.TlsPeer(context, connection.fileno())
            while (code := server.handshake()) == tls.WANT_READ:
                ready(connection)
            assert code == tls.DONE
            client.stdin.write(b"R\n")
            client.stdin.flush()
            ready(connection)
            assert server.read(100) == tls.AGAIN_READ  # the question was no data, and was not granted:
            assert server.write(b"still here") == 10
            said, _ = client.communicate(b"", 20)
            assert b"RENEGOTIATING" in said
            assert b"no renegotiation" in said.lower()
            server.close()
            connection.close()
        finally:
            client.kill()
            client.wait()


def ready(connection: socket.socket) -> None:
    """Wait until there is something to read."""
    assert connection.recv(1, socket.MSG_PEEK)


# ---- Data -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS, ids=["1.2", "1.3"])
def test_much_data_passes_both_ways_through_a_narrow_socket(connect, context, version):
    down, up = os.urandom(3_000_001), os.urandom(2_000_003)
    pair = connect(context, version=version, sockbuf=8192)
    assert pair.shake() == tls.DONE
    sent = sent_up = 0
    got, got_up = bytearray(), bytearray()
    seen = set()
    for _ in range(100_000):
        if sent < len(down):
            code = pair.server.write(bytes(down[sent : sent + 100_000]))  # other memory each time
            seen.add(code if code < 0 else "part" if code < 100_000 else "whole")
            sent += max(code, 0)
        if isinstance(data := pair.server.read(RECORD), bytes):
            assert data, "the peer said goodbye"
            got_up += data
        else:
            seen.add(data)
        try:
            sent_up += pair.client.send(up[sent_up : sent_up + 50_000]) if sent_up < len(up) else 0
        except ssl.SSLWantWriteError:
            seen.add("client waits")
        with contextlib.suppress(ssl.SSLWantReadError):
            got += pair.client.recv(60_000)
        if len(got) == len(down) and len(got_up) == len(up):
            break
    assert bytes(got) == down
    assert bytes(got_up) == up
    assert {"part", tls.AGAIN_WRITE, tls.AGAIN_READ} <= seen
    assert tls.FAILED not in seen


def test_a_buffer_of_a_record_leaves_nothing_behind(connect, context):
    pair = connect(context)
    assert pair.shake() == tls.DONE
    pair.client.send(bytes(RECORD))
    assert len(pair.server.read(RECORD)) == RECORD
    assert pair.server.read(RECORD) == tls.AGAIN_READ


def test_no_bytes_are_neither_read_nor_sent(connect, context):
    pair = connect(context)
    assert pair.shake() == tls.DONE
    assert pair.server.write(b"") == 0
    assert pair.server.read(0) == tls.FAILED
    assert pair.server.write(b"x") == 1
    assert pair.client.recv(2) == b"x"


# ---- Ends -----------------------------------------------------------------------------------------------------------


def test_goodbye_of_the_client_reads_as_the_end(connect, context):
    pair = connect(context)
    assert pair.shake() == tls.DONE
    pair.client.send(b"last words")
    with pytest.raises(ssl.SSLWantReadError):
        pair.client.unwrap()
    assert pair.server.read(100) == b"last words"
    assert pair.server.read(100) == b""
    assert pair.server.read(100) == b""


def test_goodbye_of_the_server_reaches_the_client_only_if_said(connect, context):
    polite, curt = connect(context), connect(context)
    assert polite.shake() == curt.shake() == tls.DONE
    polite.server.close(say_goodbye=True)
    curt.server.close(say_goodbye=False)
    with pytest.raises(ssl.SSLWantReadError):
        curt.client.recv(1)  # the socket is the caller's, and still open
    assert polite.client.recv(1) == b""


def test_goodbye_never_waits_for_a_peer_that_does_not_read(connect, context):
    pair = connect(context, sockbuf=4096)
    assert pair.shake() == tls.DONE
    while pair.server.write(bytes(100_000)) != tls.AGAIN_WRITE:
        pass
    pair.server.close(say_goodbye=True)


@pytest.mark.parametrize("say_goodbye", [False, True])
def test_a_cut_connection_fails_reading_and_writing(connect, context, say_goodbye):
    pair = connect(context)
    assert pair.shake() == tls.DONE
    pair.client.close()
    assert pair.server.read(100) == tls.FAILED  # and not as an end that the peer wished
    assert pair.server.write(b"anybody?") == tls.FAILED
    assert pair.server.read(100) == tls.FAILED
    pair.server.close(say_goodbye)


def test_a_client_that_leaves_in_the_middle_of_the_handshake_fails_it(connect, context):
    pair = connect(context)
    with pytest.raises(ssl.SSLWantReadError):
        pair.client.do_handshake()
    assert pair.server.handshake() == tls.WANT_READ
    pair.client.close()
    assert pair.server.handshake() == tls.FAILED
    assert pair.server.handshake() == tls.FAILED
    pair.server.close(say_goodbye=True)


@pytest.mark.parametrize(
    "garbage",
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\xff\xff" + bytes(200),
        b"\x16\x03\x01\x00\x05\x01\xff\xff\xff\xff",
        b"\x17\x03\x03\x00\x10" + bytes(16),
        b"\x80\x2e\x01\x00\x02" + bytes(60),
        bytes(1000),
    ],
)
def test_whatever_is_no_handshake_fails(connect, context, garbage):
    pair = connect(context)
    with pair.raw() as raw:
        raw.send(garbage)
        raw.shutdown(socket.SHUT_WR)
        codes = [pair.server.handshake() for _ in range(3)]
        assert codes[-1] == tls.FAILED
    pair.server.close(say_goodbye=True)


def test_changed_bytes_on_the_way_are_never_read_as_data(connect, context):
    pair = connect(context)
    assert pair.shake() == tls.DONE
    with pair.raw() as raw:
        raw.send(b"\x17\x03\x03\x00\x30" + os.urandom(48))
    assert pair.server.read(100) == tls.FAILED
    assert pair.server.write(b"x") == tls.FAILED


def test_no_complaint_is_left_for_others_in_the_thread(connect, context):
    """OpenSSL's error queue belongs to the thread: what a failed peer left there would fail Python's next call."""
    other, pair = connect(context), connect(context)
    assert other.shake() == tls.DONE
    with pair.raw() as raw:
        raw.send(b"GET / HTTP/1.1\r\n\r\n")
    assert pair.server.handshake() == tls.FAILED
    with pytest.raises(ssl.SSLWantReadError):
        other.client.recv(1)


def test_connections_outlive_their_context(connect, papers):
    mortal = tls.TlsContext(papers["chain.pem"], papers["server.key"])
    pair, early = connect(mortal), connect(mortal)
    assert pair.shake() == tls.DONE
    del mortal
    gc.collect()
    assert early.shake() == tls.DONE
    pair.client.send(b"still there?")
    assert pair.server.read(100) == b"still there?"


def test_a_closed_connection_is_not_used(connect, context):
    pair = connect(context)
    pair.server.close()
    pair.server.close()
    for use in (pair.server.handshake, lambda: pair.server.read(1), lambda: pair.server.write(b"x")):
        with pytest.raises(ValueError, match="closed"):
            use()


@pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="AddressSanitizer keeps freed memory")
def test_handshakes_leave_neither_descriptors_nor_memory_behind(context, papers):
    def many(count: int) -> None:
        for turn in range(count):
            with Pair(context, papers, alpn=("h2",) if turn % 4 else ("x",)) as pair:
                if turn % 4:
                    assert pair.shake() == tls.DONE
                    pair.server.write(b"x")
                else:
                    assert pair.refusal()

    def held() -> tuple[int, int]:
        gc.collect()
        return len(list(Path("/proc/self/fd").iterdir())), int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    many(100)
    marks = [held()]
    for _ in range(3):
        many(500)
        marks.append(held())
    assert marks[-1][0] - marks[0][0] < 100  # of 1,500 connections; servers of other tests open a file now and then
    grown = [after[1] - before[1] for before, after in pairwise(marks)]
    assert min(grown) < 2_000_000  # a connection that is not freed holds more than 4 kB, in every round


# ---- Files ----------------------------------------------------------------------------------------------------------


def refused(certificate: str, key: str, client_ca: str = "") -> str:
    """The line for an operator whose files cannot be used."""
    with pytest.raises(tls.TlsError) as told:
        tls.TlsContext(certificate, key, client_ca)
    line = str(told.value)
    assert isinstance(told.value, PenstockError)
    assert "\n" not in line
    return line


@pytest.mark.parametrize("place", ["certificate", "key", "client CA"])
@pytest.mark.parametrize("fault", ["missing", "folder", "not PEM", "empty", "cut", "nul"])
def test_a_file_that_cannot_be_used_is_named_with_the_reason(papers, tmp_path, place, fault):
    good = {"certificate": papers["chain.pem"], "key": papers["server.key"], "client CA": papers["ca.pem"]}
    text = Path(good[place]).read_text()
    contents = {"not PEM": "-----hello-----\n", "empty": "", "cut": text[: len(text) // 3]}
    bad = tmp_path / "bad.pem"
    if fault in contents:
        bad.write_text(contents[fault])
    elif fault == "folder":
        bad.mkdir()
    path = "a\0b" if fault == "nul" else str(bad)
    line = refused(*(good | {place: path}).values())
    expected = {"missing": "No such file or directory", "folder": "Is a directory", "nul": "embedded null byte"}
    assert f"the TLS {place} {path if fault != 'nul' else repr(path)} " in line
    assert expected.get(fault, "in PEM format") in line


def test_a_file_that_may_not_be_read_is_named(papers, tmp_path):
    secret = tmp_path / "secret.key"
    secret.write_text(papers.read("server.key"))
    secret.chmod(0)
    if os.access(secret, os.R_OK):
        pytest.skip("root may read everything")
    assert "Permission denied" in refused(papers["chain.pem"], str(secret))


@pytest.mark.parametrize("key", ["client.key", "rsa.key"])
def test_the_key_of_another_certificate_is_refused_with_both_names(papers, key):
    line = refused(papers["chain.pem"], papers[key])
    assert line == f"the TLS key {papers[key]} is not the key of the certificate {papers['chain.pem']}"


@pytest.mark.parametrize("key", ["locked.key", "pkcs8.key"])
def test_an_encrypted_key_is_refused_and_nobody_is_asked(papers, key):
    assert f"the TLS key {papers[key]} is encrypted" in refused(papers["chain.pem"], papers[key])


def test_certificate_and_key_swapped_are_refused(papers):
    assert "holds no private key" in refused(papers["server.key"], papers["chain.pem"])


def test_a_certificate_too_weak_is_refused_with_the_reason(papers, tmp_path):
    weak, key = str(tmp_path / "weak.pem"), str(tmp_path / "weak.key")
    run("openssl", "req", "-x509", "-newkey", "rsa:512", "-nodes", "-subj", "/CN=x", "-keyout", key, "-out", weak)
    line = refused(weak, key)
    assert "too small" in line


def test_paths_are_texts(papers):
    with pytest.raises(TypeError):
        tls.TlsContext(Path(papers["chain.pem"]), papers["server.key"])
    with pytest.raises(TypeError):
        tls.TlsContext(papers["chain.pem"], None)


def test_the_version_of_openssl_is_told():
    assert int(tls.openssl_version().split(".")[0]) >= 1


# ---- The client's side -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"name": ""}, "no server can be called"),
        ({"ca": "/no/such.pem"}, "the TLS CA /no/such.pem cannot be read"),
        ({"ca": "server.key"}, "holds no certificate in PEM format"),
        ({"certificate": "client.pem", "key": "server.key"}, "is not the key of the certificate"),
    ],
)
def test_what_a_client_cannot_trust_or_show_is_told(papers, words, said):
    files = {name: papers[value] if name != "name" and "/" not in value else value for name, value in words.items()}
    with pytest.raises(tls.TlsError, match=said):
        tls.TlsTrust(**({"name": "localhost"} | files))
