"""The overhead benchmark measures what it says: real servers, every request answered, CPU of the right process."""

from __future__ import annotations

import os
import shutil
import sys

import pytest

from penstock.bench.local import descendants
from penstock.benchmarks.generators import GrpcAio, H2load, LoadFailed
from penstock.benchmarks.overhead import Comparison, compare
from penstock.benchmarks.processes import Server, ServerFailed, cpu_s
from penstock.benchmarks.seeded import METHOD, vector_bodies
from penstock.benchmarks.sides import Run, Side, measure

GENERATORS = [
    pytest.param(GrpcAio(), id="grpc.aio"),
    pytest.param(H2load(4), id="h2load", marks=pytest.mark.skipif(not shutil.which("h2load"), reason="no h2load")),
]


@pytest.fixture
def echo(tmp_path):
    with Server("echo", [sys.executable, "-m", "penstock.benchmarks.echo"], tmp_path / "ready.json") as server:
        yield server


@pytest.mark.parametrize("generator", GENERATORS)
def test_a_run_answers_every_request_and_costs_the_server_cpu(echo, generator):
    load = generator(echo.address, METHOD, [b"one", b"two", b"three", b""], callers=8, requests=800)
    assert load.requests == 800
    assert load.rate == pytest.approx(800 / load.seconds)
    assert 0 < load.p50_us < 1e6 * load.seconds


@pytest.mark.parametrize("generator", GENERATORS)
def test_two_sides_are_driven_in_turn(echo, generator):
    sides = Side("a", echo, [b"x"]), Side("b", echo, [b"x"])
    comparison = compare("a / b", *sides, generator, callers=2, rounds=2, seconds=0.2, cores="")
    assert len(comparison.runs) == 2
    assert all(run.cpu_us > 0 for pair in comparison.runs for run in pair)
    assert comparison.as_json()["a"]["rate"] > 0


def test_requests_the_server_did_not_count_as_answered_fail_the_run(echo):
    side = Side("a", echo, [b"x"], counted=lambda: 0)
    with pytest.raises(LoadFailed, match="of 10 requests only 0 were answered OK"):
        measure(side, GrpcAio(), 2, 10, "")


def test_a_server_that_ends_at_once_is_reported_with_its_last_words(tmp_path):
    words = [sys.executable, "-c", "print('no such model'); raise SystemExit(3)"]
    with pytest.raises(ServerFailed, match="no such model"), Server("broken", words, tmp_path / "ready.json"):
        pass


def test_a_generator_without_a_server_fails():
    with pytest.raises(LoadFailed, match="UNAVAILABLE"):
        GrpcAio()("127.0.0.1:1", METHOD, [b"x"], callers=1, requests=1)


def test_the_ratio_is_the_median_of_neighbouring_runs():
    pairs = [(Run(1, 10, 1), Run(1, 11, 1)), (Run(1, 10, 1), Run(1, 30, 1)), (Run(1, 20, 3), Run(1, 24, 1))]
    comparison = Comparison("b / a", 64, ("a", "b"), tuple(pairs))
    assert comparison.ratio == pytest.approx(1.2)
    assert comparison.side(0) == Run(1, 10, 1)


def test_cpu_time_of_this_process_and_of_one_that_is_gone():
    assert cpu_s([os.getpid()]) > 0
    assert cpu_s([2**22 + 1]) == 0
    assert descendants(2**22 + 1) == []


def test_requests_differ_from_row_to_row():
    import numpy as np

    rows = np.arange(60, dtype=np.float32).reshape(2, 30)
    first, second = vector_bodies("m", "x", rows)
    assert first != second
    assert rows[1].tobytes() in second
