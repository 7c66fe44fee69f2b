"""`penstock.server.testing.running`, the server for tests."""

from __future__ import annotations

import threading

import pytest

from penstock.client import Client
from penstock.server.config import Config
from penstock.server.errors import BadConfig
from penstock.server.testing import running


@pytest.fixture
def config(registry, graphs):
    graphs.publish(registry, "double", graphs.double())
    return Config(registry=registry.root, grpc="127.0.0.1:0", metrics="127.0.0.1:0")


def test_it_answers_inside_the_block_and_leaves_nothing_behind(config):
    before = set(threading.enumerate())
    with running(config, version="9") as addresses, Client(addresses.grpc) as client:
        assert client.predict("double", [[1.0, 2.0]])["y"].tolist() == [[2, 4]]
        assert client.server_metadata().version == "9"
        assert addresses.models == {"double": 1}
        assert addresses.metrics
    with Client(addresses.grpc, timeout=2) as client:
        assert not client.live()
    left = {thread for thread in set(threading.enumerate()) - before if "grpc" not in thread.name.lower()}
    assert not {thread.name for thread in left if thread.name.startswith(("worker", "registry", "penstock"))}


def test_several_run_side_by_side(config):
    with running(config) as first, running(config) as second:
        assert first.grpc != second.grpc
        for addresses in (first, second):
            with Client(addresses.grpc) as client:
                assert client.ready()


def test_what_keeps_it_from_starting_is_raised(tmp_path):
    with pytest.raises(BadConfig, match="is not a folder"), running(Config(registry=tmp_path / "none")):
        pass


def test_an_error_in_the_block_still_ends_the_server(config):
    with pytest.raises(ZeroDivisionError), running(config) as addresses:
        raise ZeroDivisionError
    with Client(addresses.grpc, timeout=2) as client:
        assert not client.live()
