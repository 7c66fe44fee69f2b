"""The suite's command: a quick run of real servers, and what it says when it cannot measure."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys

import pytest

pytest.importorskip("penstock.kernels.load")

from penstock.bench.local import descendants  # after the kernel it needs is known to be there
from penstock.benchmarks.processes import command_of
from penstock.benchmarks.results import Results

SUITE = [sys.executable, "-X", "faulthandler", "-m", "penstock.benchmarks.suite"]


def run(*words):
    return subprocess.run([*SUITE, *words], capture_output=True, text=True, check=False, timeout=100)


def test_a_quick_run_measures_both_sides_and_writes_everything(tmp_path):
    file = tmp_path / "now.json"
    done = run("--quick", "--rounds", "2", "--seconds", "0.1", "--callers", "1,8", "--json", str(file))
    assert done.returncode == 0, done.stderr
    found = Results.read(file)
    assert [*found.titles] == ["native", "aio"]
    assert [str(cell) for cell in found.runs] == [
        f"plain/vector/{rows}/{count}" for rows in (1, 64) for count in (1, 8)
    ]
    for sides in found.runs.values():
        assert [*sides] == ["native", "aio"]
        assert all(
            run.rate > 0 and run.cpu_us > 0 and 0 < run.p50_us <= run.p99_us for runs in sides.values() for run in runs
        )
        assert all(len(runs) == 2 for runs in sides.values())
    assert min(found.resident.values()) > 5_000_000
    assert "| grpc.aio echo, no model |" in done.stdout
    assert "round 2 of 2" in done.stderr
    assert "<svg" in file.with_suffix(".html").read_text()
    assert len(file.with_suffix(".md").read_text().splitlines()) == 5 + 8
    again = run("--against", str(file), "--json", str(tmp_path / "later.json"))
    assert again.returncode in (0, 1), again.stderr  # another measurement: whatever it says of a busy machine
    assert "of them for the worse" in again.stdout
    later = Results.read(tmp_path / "later.json")
    assert (later.rounds, later.seconds, [*later.runs]) == (2, 0.1, [*found.runs])
    same = run("--from", str(file), "--against", str(file))
    assert same.returncode == 0, same.stderr
    assert "0 of them for the worse" in same.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sides", "native,kserve"], "--sides knows no 'kserve'; there are native, grpcio"),
        (["--models", "vgg"], "--models knows no 'vgg'"),
        (["--callers", "1,x"], "--callers is a list such as 1,8,32"),
        (["--against", "missing.json"], "missing.json: No such file or directory"),
        (["--quick", "--json", "figures.txt"], "must end in .json"),
    ],
)
def test_what_cannot_be_measured_is_told_in_one_line_before_anything_starts(words, said):
    done = run(*words)
    assert done.returncode == 1
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_every_server(tmp_path, number):
    words = ["--quick", "--rounds", "1000", "--json", str(tmp_path / "x.json")]
    process = subprocess.Popen([*SUITE, *words], stderr=subprocess.PIPE, text=True, start_new_session=True)
    family: dict[int, str] = {}
    try:
        assert any("round 1" in line for line in process.stderr)
        family = {pid: command_of(pid) for pid in descendants(process.pid)}
        assert len(family) >= 2
        os.kill(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGABRT)  # faulthandler says where it hangs
        rest = process.stderr.read()
        assert process.wait(10) == 130, rest
    finally:
        left = [pid for pid, command in family.items() if command and command_of(pid) == command]
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        process.kill()
        process.wait()
        process.stderr.close()
    assert "interrupted" in rest
    assert "Traceback" not in rest
    assert not [family[pid] for pid in left]
    assert not (tmp_path / "x.json").exists()
