"""Triton's perf_analyzer measures Penstock, and `penstock bench` writes the very columns that it writes.

It is part of an older wheel of tritonclient, and lives in a virtual environment of its own under build/peers, made
once. It wants Debian's libb64-0d and CUDA's runtime, which it never calls here.
"""

from __future__ import annotations

import csv
import fcntl
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from penstock.registry import Registry

pytest.importorskip("penstock.kernels.load")

HERE = Path(__file__).parent
HOME = HERE.parents[1] / "build" / "peers" / "perf_analyzer"
REQUIREMENTS = ["tritonclient==2.41.0", "nvidia-cuda-runtime-cu12==12.9.79"]
STAMP = f"{REQUIREMENTS} for Python {sys.version}\n"


@pytest.fixture(scope="session")
def perf_analyzer():
    """Runs it with some words; skips where a library of the system is missing."""
    HOME.parent.mkdir(parents=True, exist_ok=True)
    stamp = HOME / "stamp"
    with (HOME.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.exists() or stamp.read_text() != STAMP:
            subprocess.run([sys.executable, "-m", "venv", "--clear", HOME], check=True)
            pip = [HOME / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
            done = subprocess.run([*pip, "--no-deps", *REQUIREMENTS], capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"pip install {REQUIREMENTS}:\n{done.stderr}"
            stamp.write_text(STAMP)
    (cuda,) = HOME.glob("lib/python*/site-packages/nvidia/cuda_runtime/lib")
    environment = os.environ | {"LD_LIBRARY_PATH": str(cuda)}

    def run(*words):
        command = [HOME / "bin" / "perf_analyzer", *map(str, words)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)

    done = run("--version")
    if "cannot open shared object file" in done.stderr:
        pytest.skip(f"perf_analyzer lacks a library (apt-get install libb64-0d): {done.stderr.strip()}")
    assert "Perf Analyzer Version" in done.stdout + done.stderr
    return run


@pytest.fixture
def address(tmp_path, penstock_server):
    """Of a server that gives back three numbers; rows.npz holds some."""
    identity = runpy.run_path(str(HERE / "identity.py"))
    registry = Registry(tmp_path / "registry")
    identity["publish_identity"](registry, "identity", ("FP32",))
    np.savez(tmp_path / "rows.npz", in_FP32=np.random.default_rng(7).normal(size=(512, 3)).astype(np.float32))
    return penstock_server(registry.root).grpc


def read(path):
    """As tools read perf_analyzer's CSV: rows by the names in the header, every value a number."""
    with path.open() as file:
        rows = csv.DictReader(file, delimiter=",")
        return rows.fieldnames, [{name: float(value) for name, value in row.items()} for row in rows]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("theirs", "ours", "asked"),
    [
        (["--concurrency-range", "1:2"], ["--concurrency", "1,2"], [1, 2]),
        (["--request-rate-range", "100:200:100"], ["--rate", "100,200"], [100, 200]),
    ],
    ids=["concurrency", "request rate"],
)
def test_both_write_the_same_columns(perf_analyzer, address, tmp_path, theirs, ours, asked):
    words = ["-m", "identity", "-u", address, "-i", "grpc", "--shape", "in_FP32:3", "--measurement-interval", "400"]
    words += ["--max-trials", "3", "--stability-percentage", "999", "--verbose-csv", "-f", tmp_path / "theirs.csv"]
    done = perf_analyzer(*words, *theirs)
    assert (tmp_path / "theirs.csv").exists(), done.stdout + done.stderr
    command = [sys.executable, "-m", "penstock.cli", "bench", address, "--model", "identity", "--duration", "0.5"]
    command += ["--warmup", "0.1", "--input", str(tmp_path / "rows.npz"), "--csv", str(tmp_path / "ours.csv"), *ours]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    their_header, their_rows = read(tmp_path / "theirs.csv")
    our_header, our_rows = read(tmp_path / "ours.csv")
    server = [name for name in their_header if name.startswith(("Server ", "Network+"))]
    assert [name for name in their_header if name in our_header or name not in server] == our_header
    assert sorted(row[our_header[0]] for row in our_rows) == sorted(row[our_header[0]] for row in their_rows) == asked
    for row in our_rows:
        assert row["p50 latency"] <= row["p90 latency"] <= row["p95 latency"] <= row["p99 latency"]
        assert row["Inferences/Second"] > 0
