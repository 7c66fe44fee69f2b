"""The demo as a stranger runs it: a process of its own, small, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

COMMAND = [sys.executable, "-m", "penstock.cli", "demo", "--customers", "1000", "--calls", "1000"]
IN_THE_BACKGROUND = ["sh", "-c", 'trap "" INT; exec "$0" "$@"']
"""Runs a command as a shell does with `&`."""
SERVING = b"Start the server, a process of its own"


def environment(scratch):
    """All processes of one demo can be told by this folder, which they inherit."""
    return os.environ | {"TMPDIR": str(scratch), "COLUMNS": "80"}


def processes_of(scratch):
    """Command lines of the running processes that inherited this scratch folder."""
    mark, found = f"TMPDIR={scratch}\0".encode(), []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (folder / "environ").read_bytes() + b"\0" and (line := (folder / "cmdline").read_bytes()):
                found.append(line.replace(b"\0", b" ").decode(errors="replace"))
        except OSError:  # ended meanwhile, or not ours
            continue
    return found


def assert_nothing_is_left(scratch):
    until = time.monotonic() + 10
    while left := processes_of(scratch):
        assert time.monotonic() < until, left
        time.sleep(0.02)
    assert list(scratch.iterdir()) == []


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """One small run, as JSON."""
    scratch = tmp_path_factory.mktemp("demo")
    done = subprocess.run([*COMMAND, "--json"], env=environment(scratch), capture_output=True, timeout=110, check=False)
    return scratch, done, json.loads(done.stdout or b"null")


def test_the_demo_ends_well_and_prints_json_only_on_stdout(demo):
    _, done, summary = demo
    assert done.returncode == 0, done.stderr.decode()
    assert summary["calls"] == 1000
    assert summary["customers"] == 1000
    assert SERVING in done.stderr


def test_every_answer_equals_scikit_learn(demo):
    parity = demo[2]["parity"]
    assert parity["compared"] == 500 + 1000 + 500
    assert parity["worst"] <= 1e-5
    assert parity["holds"]


def test_every_value_served_is_what_the_history_says(demo):
    report = demo[2]["consistency"]
    assert report["rows"] == 2 + 500 + 1000 + 500
    assert report["unsettled"] == 0
    assert [f["compared"] for f in report["features"]] == [report["rows"]] * 6
    assert all(f["missing"] == f["extra"] == f["mismatched"] == f["smape"] == 0 for f in report["features"])


def test_the_drift_table_names_the_column_that_was_shifted(demo):
    drift = demo[2]["drift"]
    psi = {name: {f["name"]: f["psi"] for f in drift[name]["features"]} for name in drift}
    assert drift["after"]["moved_most"] == "amount"
    assert psi["after"].pop("amount") > 1.0
    assert max([*psi["before"].values(), *psi["after"].values()]) < 0.25


def test_no_drift_window_mixes_two_kinds_of_traffic(demo):
    """A window with some of both would hold fewer shifted amounts, and a smaller PSI than the amounts alone have."""
    before, after = demo[2]["drift"]["before"], demo[2]["drift"]["after"]
    assert before["complete"]
    assert after["complete"]
    assert before["window_end_ms"] <= after["window_start_ms"]
    assert after["rows"] <= 500


def test_the_summary_has_every_figure(demo):
    summary = demo[2]
    assert 0 < summary["latency_ms"]["p50"] <= summary["latency_ms"]["p95"] <= summary["latency_ms"]["p99"]
    assert summary["calls_per_s"] > 0
    assert summary["mean_batch"] >= 1
    assert summary["decisions"]["caught"] <= summary["decisions"]["frauds"]


def test_no_process_and_no_file_is_left(demo):
    assert_nothing_is_left(demo[0])


@pytest.mark.parametrize(("number", "before"), [(signal.SIGINT, []), (signal.SIGTERM, IN_THE_BACKGROUND)])
def test_an_interrupt_while_calls_run_leaves_nothing(tmp_path, number, before):
    """Ctrl-C reaches every process of the terminal, a polite kill only the demo itself."""
    demo = subprocess.Popen(
        [*before, *COMMAND, "--calls", "1000000"],
        env=environment(tmp_path) | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        for line in demo.stdout:
            if b"one call at a time" in line:  # a million calls are under way next
                break
        os.killpg(demo.pid, number) if number == signal.SIGINT else demo.send_signal(number)
        _, told = demo.communicate(timeout=60)
    finally:
        demo.kill()
        demo.communicate()
    assert demo.returncode == 130
    assert told.decode() == "interrupted\n"
    assert_nothing_is_left(tmp_path)


def test_a_server_that_cannot_start_is_told_in_one_line(tmp_path):
    from penstock.examples.fraud.serving import ServerError, serving

    with (
        pytest.raises(ServerError, match=r"did not start: .*no-such-folder is not a folder"),
        serving(tmp_path / "no-such-folder", "memory://", 1.0, tmp_path),
    ):
        pass


def test_an_answer_that_is_off_fails_the_demo():
    from penstock.examples.fraud.report import Parity
    from penstock.examples.fraud.traffic import Answers

    expected = np.array([[0.9, 0.1], [0.2, 0.8]])
    assert Parity.of(Answers(expected + 1e-6, np.ones(2), 1.0), expected).holds
    assert not Parity.of(Answers(expected + 1e-4, np.ones(2), 1.0), expected).holds
    assert not Parity.of(Answers(expected * np.nan, np.ones(2), 1.0), expected).holds
