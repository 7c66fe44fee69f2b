"""`penstock serve`: what is refused before anything is started. `tests/server/test_app.py` has the rest."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from penstock.client import Client, Tls
from penstock.commands.serve import serve
from penstock.errors import PenstockError

app = typer.Typer()
app.command()(serve)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--ready-file", "/none/ready.json"], "--ready-file: there is no folder /none"),
        (["--http", "127.0.0.1:8080"], "--http: the REST gateway is not built yet"),
        (["--transport", "pigeon"], "setting 'transport'"),
        (["--io-threads", "65"], "setting 'io_threads'"),
    ],
)
def test_what_cannot_work_is_told_in_one_line(words, told):
    error = CliRunner().invoke(app, words).exception
    assert isinstance(error, PenstockError)
    assert told in str(error)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--grpc", "unix:penstock.sock"], "grpc: 'unix:penstock.sock' is not unix:/path"),
        (["--grpc", "[::]:8001"], "--allow-remote"),
        (["--tls-key", "server.key"], "tls_key: TLS needs both tls_certificate and tls_key"),
        (["--tls-certificate", "none.pem", "--tls-key", "none.key"], "tls_certificate: none.pem cannot be read"),
    ],
)
def test_where_it_cannot_serve_is_told_in_one_line(words, told, tmp_path):
    error = CliRunner().invoke(app, ["--registry", str(tmp_path), "--metrics", "off", *words]).exception
    assert isinstance(error, PenstockError)
    assert told in str(error)
    assert "\n" not in str(error)


def test_it_serves_with_tls_on_a_unix_socket_as_it_is_told(tmp_path, certificates, penstock_server):
    with tempfile.TemporaryDirectory(prefix="penstock-test-") as folder:
        address = f"unix:{folder}/s.sock"
        words = ["--grpc", address, "--transport", "grpcio", "--tls-certificate", str(certificates / "server.pem")]
        words += ["--tls-key", str(certificates / "server.key"), "--tls-client-ca", str(certificates / "ca.pem")]
        server = penstock_server(tmp_path, *words)
        assert server.grpc == address
        files = [(certificates / name).read_bytes() for name in ("ca.pem", "client.pem", "client.key")]
        with Client(address, tls=Tls(*files, server_name="localhost")) as client:
            assert client.ready()
        server.stop()
        assert not list(Path(folder).iterdir())
