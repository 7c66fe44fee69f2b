"""Transforms as data: they survive JSON to the bit, compile to what they say, and refuse what they cannot mean."""

from __future__ import annotations

import json

import numpy as np
import pytest

from penstock.errors import PenstockError
from penstock.features.transforms import (
    Bucketize,
    Clip,
    Impute,
    Log1p,
    Ordinal,
    Standardize,
    TransformError,
    Transforms,
)

EVERY_OP = Transforms(
    steps=(
        Impute(columns=("a", "b"), fill=(0.1, 2)),
        Clip(columns=("b",), low=(-1,), high=(1e300,)),
        Log1p(columns=("b",)),
        Standardize(columns=("a",), mean=(1 / 3,), scale=(2 / 3,)),
        Bucketize(columns=("c",), edges=((0.5, 1.5),)),
        Ordinal(columns=("d",), categories=((-1, 4, 9),), unknown=-7),
    )
)


def run(transforms, columns, rows):
    x, program = np.array(rows, np.float32), transforms.program(columns)
    out = np.empty((len(x), program.n_outputs), np.float32)
    program.run(x, out)
    return out


def test_transforms_come_back_from_json_equal_to_the_bit():
    assert Transforms.from_json(EVERY_OP.to_json()) == EVERY_OP
    assert Transforms.model_validate_json(EVERY_OP.model_dump_json()) == EVERY_OP


def test_each_step_does_what_it_says_to_the_columns_it_names():
    nan = np.nan
    got = run(EVERY_OP, ["d", "c", "b", "a", "other"], [[4, 1, nan, nan, nan], [5, nan, -9, 1, 3]])
    first = [1, 1, np.log1p(2), (0.1 - 1 / 3) / (2 / 3), nan]
    np.testing.assert_array_equal(got, np.array([first, [-7, nan, -np.inf, 1, 3]], np.float32))


def test_steps_run_in_the_order_given():
    double, shift = (Standardize(columns=("a",), mean=(m,), scale=(s,)) for m, s in ((0, 0.5), (1, 1)))
    assert run(Transforms(steps=(double, shift)), ["a"], [[3]]) == 5
    assert run(Transforms(steps=(shift, double)), ["a"], [[3]]) == 4


def test_no_steps_leave_the_batch_as_it_is():
    assert run(Transforms(), ["a", "b"], [[1, 2]]).tolist() == [[1, 2]]


def test_names_after_the_transforms_are_known_beforehand():
    assert EVERY_OP.output_columns(["a", "b", "c", "d"]) == ("a", "b", "c", "d")


@pytest.mark.parametrize("ask", [EVERY_OP.program, EVERY_OP.output_columns])
def test_a_column_that_is_not_there_is_named(ask):
    with pytest.raises(PenstockError, match=r"the impute step needs 'b', which is not among the columns 'a', 'c'"):
        ask(["a", "c"])


@pytest.mark.parametrize("columns", [[], ["a", "b", "c", "d", "a"]])
def test_columns_without_names_of_their_own_are_refused(columns):
    with pytest.raises(TransformError):
        EVERY_OP.program(columns)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"op": "square", "columns": ["a"]}, "square"),
        ({"op": "log1p", "columns": []}, "columns"),
        ({"op": "log1p", "columns": ["a", "a"]}, "named twice"),
        ({"op": "log1p", "columns": ["a"], "base": 2}, "base"),
        ({"op": "impute", "columns": ["a", "b"], "fill": [1]}, "fill has 1 entries for 2 columns"),
        ({"op": "impute", "columns": ["a"], "fill": [None]}, "fill"),
        ({"op": "clip", "columns": ["a"], "low": [2], "high": [1]}, "clip of column 'a' has low 2.0 above high 1.0"),
        ({"op": "standardize", "columns": ["a"], "mean": [0], "scale": [0]}, "scale 0.0"),
        ({"op": "bucketize", "columns": ["a"], "edges": [[1, 1]]}, "ascend"),
        ({"op": "ordinal", "columns": ["a"], "categories": [[2, 1]]}, "ascend"),
    ],
)
def test_a_step_that_cannot_be_is_refused_in_one_line(step, message):
    with pytest.raises(TransformError, match=message) as caught:
        Transforms.from_json(json.dumps({"format": 1, "steps": [step]}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"format": 3}',
        '{"stages": []}',
        b"\xff",
        '{"steps": [{"op": "impute", "columns": ["a"], "fill": [NaN]}]}',
    ],
)
def test_text_that_is_no_transforms_is_refused(text):
    with pytest.raises(TransformError, match="transforms cannot be read"):
        Transforms.from_json(text)


def test_files_of_format_1_are_read():
    text = '{"format": 1, "steps": [{"op": "impute", "columns": ["a"], "fill": [2.5]}]}'
    assert Transforms.from_json(text).steps == (Impute(columns=("a",), fill=(2.5,)),)


def test_fitted_steps_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        EVERY_OP.steps[0].fill = (1.0,)
