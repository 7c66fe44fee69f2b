"""Settings: read whole or refused in one line."""

from __future__ import annotations

import pytest

from penstock.server.address import Address
from penstock.server.config import Config
from penstock.server.errors import BadConfig


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "penstock.yaml"
        path.write_text(text)
        return path

    return write


def test_an_empty_file_is_the_defaults(write):
    assert Config.read(write("")) == Config.read() == Config()


@pytest.mark.parametrize(("text", "cap"), [("off", "off"), ("'off'", "off"), ("auto", "auto"), ("16", "16")])
def test_a_cap_may_be_switched_off_as_yaml_writes_it(write, text, cap):
    assert Config.read(write(f"batch_cap: {text}\n")).cap_of("any") == cap


def test_a_cap_is_every_model_s_or_each_one_s_own(write):
    config = Config.read(write("batch_cap: {plain: 8, trees: off}\n"))
    assert [config.cap_of(model) for model in ("plain", "trees", "other")] == ["8", "off", "auto"]
    with pytest.raises(BadConfig, match=r"'batch_cap' of .*: it is auto, off .*, for plain not 'many'$"):
        Config.read(write("batch_cap: {plain: many}\n"))


@pytest.mark.parametrize("bad", ["on", "-1", "20", "1.5", "lots"])
def test_a_niceness_that_is_none_is_refused(write, bad):
    with pytest.raises(BadConfig, match="'worker_nice'"):
        Config.read(write(f"worker_nice: {bad}\n"))


def test_what_is_given_beside_the_file_wins_and_none_is_not_given(write):
    config = Config.read(write("workers: 3\npoll_s: 9\n"), workers=None, poll_s=1)
    assert (config.workers, config.poll_s) == (3, 1)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("worker: 1\n", "worker"),
        ("workers: -1\n", "workers"),
        ("workers: lots\n", "workers"),
        ("drain_grace_s: 0\n", "drain_grace_s"),
        ("max_message_bytes: 5\n", "max_message_bytes"),
        ("transport: carrier-pigeon\n", "transport"),
        ("- a list\n", "mapping"),
        ("a: [\n", "penstock.yaml"),
        ("feature_timeout_ms: .nan\n", "feature_timeout_ms"),
        ("default_deadline_s: .inf\n", "default_deadline_s"),
        ("keepalive_s: 0\n", "keepalive_s"),
        ("max_connection_age_s: 1e7\n", "max_connection_age_s"),
        ("max_header_bytes: 100\n", "max_header_bytes"),
        ("io_threads: -1\n", "io_threads"),
        ("tls_key: [1]\n", "tls_key"),
    ],
)
def test_what_cannot_be_used_is_named_in_one_line(write, text, told):
    with pytest.raises(BadConfig) as caught:
        Config.read(write(text))
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"\xff\xfe", None], ids=["not text", "absent"])
def test_a_file_that_cannot_be_read_is_named(tmp_path, content):
    path = tmp_path / "penstock.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadConfig, match=r"penstock\.yaml"):
        Config.read(path)


@pytest.mark.parametrize(
    ("value", "address"),
    [
        ("127.0.0.1:0", ("127.0.0.1", 0)),
        ("localhost:8001", ("localhost", 8001)),
        ("[::1]:65535", ("::1", 65535)),
        ("127.8.9.10:1", ("127.8.9.10", 1)),
    ],
)
def test_loopback_addresses_are_taken(value, address):
    assert Config(grpc=value).address("grpc") == Address(*address)


def test_unix_sockets_are_for_grpc_only():
    assert Config(grpc="unix:/run/penstock.sock").address("grpc") == Address(path="/run/penstock.sock")
    with pytest.raises(BadConfig, match=r"metrics: 'unix:/run/penstock\.sock' is not HOST:PORT"):
        Config(metrics="unix:/run/penstock.sock").address("metrics")


@pytest.mark.parametrize("value", ["localhost", "off", "unix:penstock.sock"])
def test_what_is_no_address_is_refused_by_the_name_of_the_setting(value):
    with pytest.raises(BadConfig, match=r"^grpc: "):
        Config(grpc=value).address("grpc")


@pytest.mark.parametrize("value", ["0.0.0.0:1", "[::]:1", "192.168.1.1:1", "example.org:1", "localhost.example.org:1"])
def test_addresses_others_can_reach_are_taken_only_when_that_is_meant(value):
    with pytest.raises(BadConfig, match="--allow-remote"):
        Config(grpc=value).address("grpc")
    assert str(Config(grpc=value, allow_remote=True).address("grpc")) == value


def test_callers_who_must_show_a_certificate_may_come_from_other_machines(certificates):
    pems = {"tls_certificate": certificates / "server.pem", "tls_key": certificates / "server.key"}
    with pytest.raises(BadConfig, match="--allow-remote"):
        Config(grpc="0.0.0.0:1", **pems).address("grpc")
    asking = Config(grpc="0.0.0.0:1", metrics="0.0.0.0:2", **pems, tls_client_ca=certificates / "ca.pem")
    assert asking.address("grpc") == Address("0.0.0.0", 1)
    with pytest.raises(BadConfig, match=r"metrics: .*--allow-remote"):
        asking.address("metrics")


@pytest.mark.parametrize(
    "given", [("tls_certificate",), ("tls_key",), ("tls_client_ca",), ("tls_certificate", "tls_client_ca")]
)
def test_tls_needs_a_certificate_and_its_key(given):
    with pytest.raises(BadConfig, match="TLS needs both tls_certificate and tls_key") as caught:
        Config(**dict.fromkeys(given, "some.pem")).certificates()
    assert str(caught.value).startswith(f"{given[0]}: ")


def test_without_tls_there_are_no_certificates():
    assert Config().certificates() is None


def test_metrics_may_be_off_and_grpc_may_not():
    assert Config(metrics="off").address("metrics") is None
    with pytest.raises(BadConfig):
        Config(grpc="off").address("grpc")
