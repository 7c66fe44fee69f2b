"""The benchmark of transforms: it compares what agrees, and says what was missed."""

from __future__ import annotations

import pytest

from penstock.benchmarks import transforms


def test_both_sides_give_the_same_and_every_size_is_a_line():
    lines = transforms.measure((1, 64), rounds=3)
    assert [line["rows"] for line in lines] == [1, 64]
    assert all(line["penstock_us"] > 0 and line["scikit_learn_us"] > 0 for line in lines)
    (held,) = transforms.lines_of(lines)
    assert (held["limit"], held["held"]) == ("at least 10", True)
    assert held["range"] == pytest.approx([min(lines[1]["ratios"]), max(lines[1]["ratios"])], rel=0.01)


def test_the_lines_are_those_promised():
    assert transforms.LINES == {64: 10.0, 100_000: 1.0}
    assert set(transforms.LINES) < set(transforms.SIZES)
    assert len(transforms.NAMES) == 30
