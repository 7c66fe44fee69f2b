"""Views with rows, stores of every kind, and the proxy."""

from __future__ import annotations

import importlib.util
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from penstock.features import Column, FeatureView, open_store
from penstock.features.aggregates import Aggregates


def _load(name):
    spec = importlib.util.spec_from_file_location(f"feature_tests_{name}", Path(__file__).with_name(f"{name}.py"))
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


Proxy = _load("proxy").Proxy
servers = _load("servers")


def pytest_generate_tests(metafunc):
    """Tests that talk to a Redis hold for every server that is here: always where marked `every_server`, for which
    scripts of ours are run; else only with --slow."""
    if "redis_executable" in metafunc.fixturenames:
        always = metafunc.definition.get_closest_marker("every_server")
        params = servers.EVERY if always else servers.OTHERS_SELDOM
        metafunc.parametrize("redis_executable", params, indirect=True, scope="session")


@pytest.fixture
def proxy(redis_url):
    proxy = Proxy(redis_url.removeprefix("unix://"))
    yield proxy
    proxy.close()


@pytest.fixture(params=["redis", "memory"])
def store(request, redis_executable):
    """Each kind of store; every test that takes it holds for both."""
    url = request.getfixturevalue("redis_url") if request.param == "redis" else "memory://"
    with closing(open_store(url)) as store:
        yield store


@pytest.fixture(params=["row", "hash"])
def view(request):
    columns = [
        Column(name="count_7d", dtype="int64", default=0.0),
        Column(name="amount", dtype="float64"),
        Column(name="ratio", dtype="float32", default=0.5),
        Column(name="days", dtype="int32"),
        Column(name="is new", dtype="bool"),
    ]
    return FeatureView(name="activity", entity="customer_id", columns=columns, layout=request.param)


@pytest.fixture
def table():
    """Three customers' values for `view`, one of them with nulls."""
    return {
        "count_7d": np.ma.MaskedArray(np.array([42, 7, 0]), [False, False, True]),
        "amount": np.array([150.5, np.nan, 1e-3]),
        "ratio": np.array([0.1, 2.5, -3], np.float32),
        "days": np.array([365, -1, 2**31 - 1], np.int32),
        "is new": np.array([True, False, True]),
    }


@pytest.fixture
def matrix():
    """What `table` reads back as."""
    nan = np.nan
    rows = [[42, 150.5, 0.1, 365, 1], [7, nan, 2.5, -1, 0], [nan, 1e-3, -3, 2**31 - 1, 1]]
    return np.array(rows, np.float32)


FORMER_STATE = (  # format 1: three events of entity 1, two with amounts 5 and 2.5 and shops, at 1_800_000_000_000
    "010000008bf553ebf5b165224a58b791c342c2df020000000000000000000000000000000200000002000000000000000000000000000000"
    "030000000000000007000000000000000200000062c3c9010000000001000000000000000000f03f000000000000f03f000000000000f03f"
    "0100000000000000000004400000000000000440000000000000044080c3c90100000000020000000000000000000040000000000000f03f"
    "000000000000f03f0100000000000000000014400000000000001440000000000000144002000000ce121300000000000100000000000000"
    "0000f03f000000000000f03f000000000000f03f01000000000000000000044000000000000004400000000000000440d012130000000000"
    "020000000000000000000040000000000000f03f000000000000f03f01000000000000000000144000000000000014400000000000001440"
    "0200000040f89e395b66422f00505c18a30100008472c2e34d854f75c0d84018a3010000"
)


@pytest.fixture
def former_state():
    """A declaration, a key, and the state that the release before format 2 kept under it."""
    columns = {
        "n_1h": {"function": "count", "window": "1h"},
        "sum_24h": {"function": "sum", "of": "amount", "window": "24h"},
        "shops_24h": {"function": "distinct", "of": "shop", "window": "24h"},
    }
    of = Aggregates.model_validate({"late_s": 3600, "columns": columns})
    return of, b"fs:{1}:spending:state", bytes.fromhex(FORMER_STATE)
