"""Addresses: how they are written, and what is done about a unix socket that is there already."""

from __future__ import annotations

import socket
import stat

import pytest

from penstock.server.address import Address
from penstock.server.errors import BadConfig


@pytest.mark.parametrize(
    ("text", "address", "local"),
    [
        ("127.0.0.1:0", Address("127.0.0.1", 0), True),
        ("localhost:8001", Address("localhost", 8001), True),
        ("[::1]:65535", Address("::1", 65535), True),
        ("[::]:1", Address("::", 1), False),
        ("example.org:1", Address("example.org", 1), False),
        ("unix:/run/a.sock", Address(path="/run/a.sock"), True),
    ],
)
def test_an_address_is_written_as_it_is_read(text, address, local):
    assert Address.parse(text) == address
    assert str(address) == text
    assert address.local is local


def test_three_slashes_mean_the_same_path():
    assert Address.parse("unix:///run/a.sock") == Address(path="/run/a.sock")


@pytest.mark.parametrize(
    "text", ["localhost", ":8001", "", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:-1", "off", "h:²", "::1:80", "[]:1"]
)
def test_what_is_no_host_and_port_is_refused(text):
    with pytest.raises(BadConfig, match="is not HOST:PORT"):
        Address.parse(text)


@pytest.mark.parametrize("text", ["unix:", "unix:a.sock", "unix:/", "unix:///", "unix:/a\0b"])
def test_a_unix_socket_has_an_absolute_path(text):
    with pytest.raises(BadConfig, match="is not unix:/path"):
        Address.parse(text)


def test_a_path_longer_than_linux_takes_is_refused_before_it_is_tried():
    assert Address.parse("unix:/" + "a" * 106).path
    assert Address.parse("unix:/" + "é" * 53).path
    for long in ("a" * 107, "é" * 54):
        with pytest.raises(BadConfig, match="107 bytes"):
            Address.parse("unix:/" + long)


def test_a_socket_of_a_server_that_is_no_more_is_taken_away(tmp_path):
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
    assert path.exists()
    Address(path=str(path)).claim()
    assert not path.exists()


@pytest.mark.parametrize("waiting", [0, 1], ids=["idle", "so busy that it takes no more"])
def test_a_socket_that_somebody_listens_on_is_left_alone(tmp_path, waiting):
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(str(path))
        server.listen(0)
        if waiting:
            client.connect(str(path))
        with pytest.raises(BadConfig, match="another server listens there"):
            Address(path=str(path)).claim()
        assert path.exists()


def test_a_file_that_is_no_socket_is_left_alone(tmp_path):
    path = tmp_path / "notes"
    path.write_text("mine")
    with pytest.raises(BadConfig, match="no socket"):
        Address(path=str(path)).claim()
    assert path.read_text() == "mine"


def test_what_cannot_be_listened_on_is_told_in_one_line(tmp_path):
    with pytest.raises(BadConfig, match="cannot be listened on: No such file"):
        Address(path=str(tmp_path / "none" / "s")).claim()
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(BadConfig, match="cannot be listened on: Address already in use"),
    ):
        Address(*taken.getsockname()).claim()


def test_only_we_may_connect_to_a_protected_socket_and_a_released_one_is_gone(tmp_path):
    path = tmp_path / "s"
    address = Address(path=str(path))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        address.protect()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    ours = address.identity()
    address.release(ours)
    address.release(ours)
    assert not path.exists()
    assert address.identity() is None


def test_the_socket_of_who_came_after_us_is_left_alone(tmp_path):
    address = Address(path=str(tmp_path / "s"))
    with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
        first.bind(address.path)
        ours = address.identity()
        (tmp_path / "s").rename(tmp_path / "old")  # kept, so that its number is not given out again
        second.bind(address.path)
        address.release(ours)
        assert (tmp_path / "s").exists()
