"""Views with rows, stores of every kind, and the proxy."""

from __future__ import annotations

import importlib.util
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from penstock.features import Column, FeatureView, open_store


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
