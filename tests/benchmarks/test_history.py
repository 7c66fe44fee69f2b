"""The benchmark of point-in-time joins, small."""

from __future__ import annotations

from penstock.benchmarks.history import look_up, write


def test_both_steps_are_measured(tmp_path):
    for step, name, rows in ((write(tmp_path, 2000), "write", 2000), (look_up(tmp_path, 100, 2000), "join", 100)):
        assert (step.name, step.rows) == (name, rows)
        assert step.seconds > 0
        assert step.peak_mib > 20
