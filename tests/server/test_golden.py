"""A version that computes something else than where it was published does not serve."""

from __future__ import annotations

import io

import numpy as np
import pytest

from penstock.server.golden import GoldenMismatch, read


def stored(**arrays):
    stream = io.BytesIO()
    np.savez(stream, **{name.replace("__", "/"): array for name, array in arrays.items()})
    return stream.getvalue()


ROWS = np.arange(6, dtype=np.float32).reshape(3, 2)


def test_rows_that_come_out_as_they_did_pass():
    golden = stored(input__x=ROWS, output__y=ROWS * 2, output__label=np.array(["a", "b", "c"]))
    read(golden).check(lambda feeds: {"y": feeds["x"] * 2 + 1e-6, "label": np.array(["a", "b", "c"], object)})


def test_a_float_output_that_moved_is_refused_and_named():
    golden = stored(input__x=ROWS, output__y=ROWS * 2)
    with pytest.raises(GoldenMismatch, match=r"'y' differs .* by up to 0\.5"):
        read(golden).check(lambda feeds: {"y": feeds["x"] * 2 + 0.5})


def test_a_label_on_the_border_may_fall_either_way_where_the_scores_agree():
    golden = stored(input__x=ROWS, output__y=ROWS, output__label=np.array([0, 1, 1]))
    read(golden).check(lambda feeds: {"y": feeds["x"], "label": np.array([0, 1, 0])})


def test_labels_are_compared_where_there_is_nothing_else():
    golden = stored(input__x=ROWS, output__label=np.array([0, 1, 1]))
    with pytest.raises(GoldenMismatch, match="'label'"):
        read(golden).check(lambda _: {"label": np.array([0, 1, 0])})


def test_texts_are_run_as_objects():
    golden = stored(input__x=np.array([["a"], ["bc"]]), output__y=np.array([1.0, 2.0]))
    read(golden).check(lambda feeds: {"y": np.array([len(text) for (text,) in feeds["x"].tolist()], float)})


@pytest.mark.parametrize("damaged", [b"", b"PK\x03\x04nonsense", stored(input__x=ROWS)[:-30]])
def test_a_file_that_cannot_be_read_is_refused(damaged):
    with pytest.raises(GoldenMismatch, match=r"golden\.npz cannot be read"):
        read(damaged)


def test_nothing_in_it_is_unpickled():
    with pytest.raises(GoldenMismatch, match=r"golden\.npz cannot be read"):
        read(stored(input__x=np.array([{"a": 1}], object)))
