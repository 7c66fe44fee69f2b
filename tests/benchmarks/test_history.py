"""The benchmark of point-in-time joins, small."""

from __future__ import annotations

import json
import subprocess
import sys


def test_both_steps_are_measured():
    command = [sys.executable, "-m", "penstock.benchmarks.history", "--rows", "2000", "--labels", "100", "--json"]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()
    told = json.loads(done.stdout)
    assert [(step["name"], step["rows"]) for step in told["steps"]] == [("write", 2000), ("join", 100)]
    assert all(step["seconds"] > 0 and step["peak_mib"] > 20 for step in told["steps"])
