"""Views with rows, stores of every kind, and the proxy."""

from __future__ import annotations

import importlib.util
import math
import sys
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

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


# Changes of a column, for every place where rows written before are read ------------------------------------------


class Change(NamedTuple):
    """A column as rows were written, as it is read now, values given, and the numbers that a model sees of them."""

    written: Column
    read: Column
    values: list[Any]
    numbers: list[Any]


def changed(written, read, values, numbers):
    def column(told):
        return Column(name="x", **({"dtype": told} if isinstance(told, str) else told))

    return Change(column(written), column(read), values, numbers)


def words(*vocabulary, **more):
    return {"dtype": "category", "vocabulary": vocabulary} | more


LARGE, ROUNDED = 2**62 + 2**38 + 1, 2.0**62 + 2.0**39  # through float64 it would be 2**62
CHANGES = {
    "float32 to float64": changed("float32", "float64", [0.1, None, 1e30], [0.1, math.nan, 1e30]),
    "float64 to float32": changed("float64", "float32", [0.1, 1e300, -1e300], [0.1, math.inf, -math.inf]),
    "int32 to int64": changed("int32", "int64", [2**31 - 1, None, -5], [2**31 - 1, math.nan, -5]),
    "int64 to int32": changed("int64", "int32", [2**40 + 1, None, -5], [2**40, math.nan, -5]),
    "int64 to float32": changed("int64", "float32", [LARGE, 2**63 - 1], [ROUNDED, 2.0**63]),
    "int64 to float64": changed("int64", "float64", [LARGE, -1], [ROUNDED, -1]),
    "float64 to int64": changed("float64", "int64", [1.5, 1e300, None], [1.5, math.inf, math.nan]),
    "bool to int32": changed("bool", "int32", [True, False, None], [1, 0, math.nan]),
    "bool to float64": changed("bool", "float64", [True, False, None], [1, 0, math.nan]),
    "another default": changed({"dtype": "int32", "default": 1}, {"dtype": "int32", "default": 2}, [3], [3]),
    "more words": changed(words("a", "b"), words("c", "a", "b"), ["a", "b", None], [1, 2, math.nan]),
    "fewer words": changed(words("a", "b"), words("b"), ["a", "b"], [-1, 0]),
    "fewer words and a default": changed(words("a", "b"), words("b", default="b"), ["a", "b"], [math.nan, 0]),
    "a vector": changed(
        {"dtype": "vector", "size": 2}, {"dtype": "vector", "size": 2, "default": 0}, [[1, 2]], [[1, 2]]
    ),
}


@pytest.fixture(params=CHANGES.values(), ids=CHANGES)
def change(request):
    """Each change under which rows that were written stay readable."""
    return request.param


OTHER_KINDS = {
    "a number to words": ("int64", words("a")),
    "words to a number": (words("a"), "float64"),
    "a number to a bool": ("int32", "bool"),
    "a vector to a number": ({"dtype": "vector", "size": 1}, "float32"),
    "a vector of another size": ({"dtype": "vector", "size": 2}, {"dtype": "vector", "size": 4}),
}


@pytest.fixture(params=OTHER_KINDS.values(), ids=OTHER_KINDS)
def other_kind(request):
    """Each change to another kind of column: what was written cannot be read as it."""
    written, read = request.param
    value = {"category": "a", "vector": [1.0] * 2}.get(
        dict(written).get("dtype", "") if isinstance(written, dict) else "", 1
    )
    made = changed(written, read, [], [])
    return made._replace(values=[value[: made.written.size] if made.written.size else value])


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
