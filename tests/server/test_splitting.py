"""A run in parts gives what one run gives."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.server.splitting import in_parts


@given(rows=st.integers(0, 40), most=st.integers(1, 45))
def test_parts_come_out_as_one(rows, most):
    sizes = []

    def run(feeds):
        sizes.append(len(feeds["x"]))
        return {"y": feeds["x"] * 2, "text": np.array([t.upper() for t in feeds["t"]], object)}

    x, t = np.arange(rows * 3, dtype=np.float32).reshape(rows, 3), np.array([f"t{i}" for i in range(rows)], object)
    outputs = in_parts(run, {"x": x, "t": t}, most)
    np.testing.assert_array_equal(outputs["y"], x * 2)
    assert outputs["y"].dtype == np.float32
    assert list(outputs["text"]) == [f"T{i}" for i in range(rows)]
    assert sum(sizes) == rows
    assert max(sizes) <= most


def test_parts_of_other_widths_are_no_whole():
    with pytest.raises(ValueError, match="output 'y' is of another shape in one part than in another"):
        in_parts(lambda feeds: {"y": feeds["x"][:, : int(feeds["x"].max())]}, {"x": np.diag([1.0, 2, 3])}, 1)


def test_an_output_of_other_rows_is_no_part():
    with pytest.raises(ValueError, match="output 'y' has 1 rows for 2 rows of input"):
        in_parts(lambda _: {"y": np.zeros(1)}, {"x": np.zeros((5, 1))}, 2)
