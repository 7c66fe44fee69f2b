"""Functions in transforms: registered by whoever runs them, checked, the same offline as served."""

from __future__ import annotations

import numpy as np
import pytest

from penstock.features.functions import Chain, load_functions
from penstock.features.transforms import FunctionStep, Select, Standardize, TransformError, Transforms
from penstock.kernels.transforms import Program


def spread(columns):
    return {"low": columns["a"] - 1, "high": columns["a"] + columns["b"]}


STEP = FunctionStep(name="spread", columns=("a", "b"), outputs=("low", "high"))
DOUBLE = Standardize(columns=("a",), mean=(0,), scale=(0.5,))
FRAME = {"a": [1.0, 2], "b": [10.0, np.nan]}


def run(*steps, function=spread):
    transforms = Transforms(columns=("a", "b"), steps=steps)
    assert Transforms.from_json(transforms.to_json()) == transforms
    return transforms.run(FRAME, {"spread": function})


def test_what_a_function_makes_stands_behind_what_was_there():
    np.testing.assert_array_equal(run(STEP), [[1, 10, 0, 11], [2, np.nan, 1, np.nan]])


def test_a_function_may_stand_between_steps():
    after = Standardize(columns=("low",), mean=(1,), scale=(1,))
    got = run(DOUBLE, STEP, after, Select(columns=("high", "low")))
    np.testing.assert_array_equal(got, [[12, 0], [np.nan, 2]])


def test_values_stay_float64_on_both_sides_of_a_function():
    far = Standardize(columns=("a",), mean=(-1e8,), scale=(1,))
    back = Standardize(columns=("low",), mean=(1e8 - 1,), scale=(1,))
    np.testing.assert_array_equal(run(far, STEP, back, Select(columns=("low",))), [[1], [2]])


def test_without_functions_there_is_a_program_and_with_them_a_chain_of_the_same_face():
    assert isinstance(Transforms(steps=(DOUBLE,)).compile(["a", "b"]), Program)
    chain = Transforms(steps=(STEP, DOUBLE)).compile(["a", "b"], {"spread": spread})
    assert isinstance(chain, Chain)
    assert (chain.n_inputs, chain.n_outputs, chain.timed) == (2, 4, False)
    x, out = np.ones((3, 2), np.float32), np.empty((3, 4), np.float32)
    chain.run(x, out)
    assert out.tolist() == [[2, 1, 0, 2]] * 3
    with pytest.raises(ValueError, match="x is"):
        chain.run(x, out[:, :2])


def test_a_function_that_is_not_registered_is_named_with_what_to_do():
    transforms = Transforms(steps=(STEP,))
    assert transforms.functions == ("spread",)
    assert transforms.output_columns(["a", "b"]) == ("a", "b", "low", "high")
    with pytest.raises(TransformError, match=r"'spread', which is not registered.*functions: \{spread: package"):
        transforms.compile(["a", "b"])


def test_a_column_that_a_function_needs_is_named():
    with pytest.raises(TransformError, match="the function step needs 'b'"):
        Transforms(steps=(STEP,)).compile(["a"], {"spread": spread})


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda _: {"low": np.zeros(2)}, r"gave \['low'\], not \['high', 'low'\]"),
        (lambda _: {"low": np.zeros(2), "high": np.zeros(3)}, r"'high' as float64 \(3,\), not as numbers \(2,\)"),
        (lambda _: {"low": np.zeros(2), "high": 0.0}, r"'high' as float64 \(\)"),
        (lambda _: {"low": np.zeros(2), "high": ["x", "y"]}, "'high' as <U1"),
        (lambda _: {"low": np.zeros(2), "high": np.zeros(2, complex)}, "'high' as complex128"),
        (lambda _: None, "failed: TypeError"),
        (lambda columns: columns["c"], "failed: KeyError: 'c'"),
        (lambda columns: columns["a"].fill(0), "failed: ValueError: assignment destination is read-only"),
    ],
)
def test_a_function_that_does_not_do_as_it_says_is_named(function, message):
    with pytest.raises(TransformError, match=f"function 'spread' (gave )?{message}") as caught:
        run(STEP, function=function)
    assert "\n" not in str(caught.value)


def test_functions_are_imported_by_the_place_that_the_operator_gives(tmp_path, monkeypatch):
    (tmp_path / "ours_for_test.py").write_text("limit = 3\ndef f(columns):\n    return {}\n")
    (tmp_path / "broken_for_test.py").write_text("raise RuntimeError('no\\nway')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert load_functions({"f": "ours_for_test:f"})["f"]({}) == {}
    for place, message in [
        ("ours_for_test", "is not package.module:function"),
        ("ours_for_test:", "is not package.module:function"),
        ("ours_for_test:g", "cannot be imported: AttributeError"),
        ("nowhere_for_test:f", "cannot be imported: ModuleNotFoundError"),
        ("broken_for_test:f", "cannot be imported: RuntimeError: no way"),
        ("ours_for_test:limit", "is no function"),
    ]:
        with pytest.raises(TransformError, match=f"function 'f': {place} {message}|{message}"):
            load_functions({"f": place})
