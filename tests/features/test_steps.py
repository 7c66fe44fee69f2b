"""Steps that make columns: what they are called, where they stand, what is in them, and what cannot be."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from penstock.features.transforms import (
    Cyclical,
    Difference,
    Hash,
    Interactions,
    MinMax,
    OneHot,
    Ratio,
    Select,
    Standardize,
    Time,
    TimeSince,
    TransformError,
    Transforms,
)
from penstock.kernels.transforms import murmur3_32

NAN = np.nan


def run(steps, frame, **more):
    """Names and values after some steps."""
    transforms = Transforms(columns=tuple(frame), steps=tuple(steps))
    assert Transforms.from_json(transforms.to_json()) == transforms
    return transforms.output_columns(tuple(frame)), transforms.run(frame, **more).tolist()


def test_new_columns_stand_behind_those_that_stay():
    steps = [OneHot(columns=("b",), categories=((1, 2),)), Ratio(columns=("a",), by=("c",))]
    names, values = run(steps, {"a": [6.0], "b": [2.0], "c": [3.0]})
    assert names == ("a", "c", "b_1.0", "b_2.0", "a/c")
    assert values == [[6, 3, 0, 1, 2]]


def test_columns_that_give_way_may_be_kept():
    names, values = run([OneHot(columns=("b",), categories=((1,),), keep=True)], {"b": [1.0]})
    assert (names, values) == (("b", "b_1.0"), [[1, 1]])


def test_select_leaves_out_and_orders():
    assert run([Select(columns=("c", "a"))], {"a": [1], "b": [2], "c": [3]}) == (("c", "a"), [[3, 1]])


def test_one_hot_knows_the_missing_the_infrequent_and_the_unknown():
    step = OneHot(
        columns=("a", "b"),
        categories=((5, 7), (1,)),
        infrequent=((3, 4), ()),
        missing=("infrequent", "column"),
        unknown="infrequent",
    )
    names, values = run([step], {"a": [5.0, 4, NAN, 99], "b": [1.0, NAN, 2, 1]})
    assert names == ("a_5.0", "a_7.0", "a_infrequent_sklearn", "b_1.0", "b_nan")
    assert values == [[1, 0, 0, 1, 0], [0, 0, 1, 0, 1], [0, 0, 1, 0, 0], [0, 0, 1, 1, 0]]


def test_a_value_of_no_category_has_no_one():
    step = OneHot(columns=("a",), categories=((1, 2),))
    assert run([step], {"a": [3.0, NAN, 2]})[1] == [[0, 0], [0, 0], [0, 1]]


def test_hashing_adds_up_over_columns():
    step = Hash(columns=("a", "b"), buckets=3, seeds=(1, 2), signs=False, name="h")
    names, values = run([step], {"a": [4.0, NAN], "b": [9.0, NAN]})
    assert names == ("h_0", "h_1", "h_2")
    expected = [0, 0, 0]
    for value, seed in ((4.0, 1), (9.0, 2)):
        code = murmur3_32(np.float64(value).tobytes(), seed)
        expected[abs(code - 2**32 if code >= 2**31 else code) % 3] += 1
    assert values == [expected, [0, 0, 0]]


def test_cyclical_takes_a_period_and_an_offset_for_each_column():
    step = Cyclical(columns=("hour", "month"), period=(24, 12), offset=(0, 1))
    names, values = run([step], {"hour": [6.0], "month": [7.0]})
    assert names == ("hour_sin", "hour_cos", "month_sin", "month_cos")
    assert values == [[1, 0, 0, -1]]


def test_min_max_may_clip():
    step = {"columns": ("a",), "scale": (0.5,), "shift": (-1,)}
    frame = {"a": [2.0, 8, NAN]}
    np.testing.assert_array_equal(run([MinMax(**step)], frame)[1], [[0], [3], [NAN]])
    np.testing.assert_array_equal(run([MinMax(**step, clip=(0, 1))], frame)[1], [[0], [1], [NAN]])


def test_differences_and_ratios_of_one_column_to_several():
    frame = {"a": [1.0], "b": [4.0], "c": [0.0]}
    names, values = run([Ratio(columns=("a", "a"), by=("b", "c")), Difference(columns=("b",), less=("a",))], frame)
    assert names == ("a", "b", "c", "a/b", "a/c", "b-a")
    np.testing.assert_array_equal(values, [[1, 4, 0, 0.25, NAN, 3]])


@pytest.mark.parametrize(
    ("squares", "names"),
    [(False, ("a", "b", "c", "a b", "a c", "b c")), (True, ("a", "b", "c", "a^2", "a b", "a c", "b^2", "b c", "c^2"))],
)
def test_interactions_are_named_and_ordered_as_polynomial_features(squares, names):
    step = Interactions(columns=("a", "b", "c"), squares=squares)
    got, values = run([step], {"a": [2.0], "b": [3.0], "c": [5.0]})
    assert got == names
    numbers = {"a": 2, "b": 3, "c": 5}
    expected = [np.prod([numbers[part[0]] ** (2 if "^" in part else 1) for part in name.split()]) for name in names]
    assert values == [expected]


def test_time_since_the_clock_or_a_column_in_any_unit():
    frame = {"day": [19_000.0, 19_001], "sent": [19_003.0, 19_003]}
    by_clock = TimeSince(columns=("day",), of="d", unit="h")
    assert run([by_clock], frame, now=19_002 * 86_400_000)[1] == [[48, 19_003], [24, 19_003]]
    by_row = run([by_clock], frame, now=[19_002 * 86_400_000, 19_004 * 86_400_000])[1]
    assert by_row == [[48, 19_003], [72, 19_003]]
    by_column = TimeSince(columns=("day",), of="d", unit="d", now="sent")
    assert run([by_column], frame)[1] == [[3, 19_003], [2, 19_003]]
    with pytest.raises(TransformError, match="'sent', which is not among"):
        run([by_column], {"day": [1.0]})


def test_a_time_of_two_columns_is_exact_to_the_millisecond():
    """In one float32 it would be off by up to 65 seconds."""
    when = 1_753_000_123_456  # ms
    frame = {"day": [when // 86_400_000], "second": [when % 86_400_000 / 1000]}
    steps = [Time(columns=("day", "second"), name="t"), TimeSince(columns=("t",), of="ms", unit="ms")]
    [[got]] = run(steps, frame, now=when + 1000)[1]
    assert abs(got - 1000) <= 4
    [[single]] = run([TimeSince(columns=("t",), of="ms", unit="ms")], {"t": [when]}, now=when + 1000)[1]
    assert abs(single - 1000) > 4


def test_steps_after_see_the_new_columns_in_float64():
    steps = [
        Difference(columns=("a",), less=("b",)),
        Standardize(columns=("a-b",), mean=(1e8,), scale=(1,)),
        Standardize(columns=("a-b",), mean=(-1e8,), scale=(1,)),
    ]
    assert run([*steps, Select(columns=("a-b",))], {"a": [3.0], "b": [2.0]})[1] == [[1]]


def test_a_frame_is_rounded_as_served_and_its_other_columns_left():
    transforms = Transforms(columns=("a",), steps=(Standardize(columns=("a",), mean=(0,), scale=(1,)),))
    frame = pd.DataFrame({"z": ["text"], "a": [0.1]})
    assert transforms.run(frame).tolist() == [[float(np.float32(0.1))]]
    with pytest.raises(TransformError, match="no column 'a'"):
        transforms.run(frame[["z"]])
    with pytest.raises(TransformError, match="not \\[n\\] numbers"):
        Transforms().run(frame)


def test_a_name_that_is_taken_is_refused():
    with pytest.raises(TransformError, match=r"two columns 'a/b'"):
        Transforms(steps=(Ratio(columns=("a",), by=("b",)),)).program(["a", "b", "a/b"])


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"op": "one_hot", "columns": ["a"], "categories": [[]]}, "one_hot of column 'a' makes 1 to 65536 columns"),
        ({"op": "one_hot", "columns": ["a"], "categories": [[1, 1]]}, "column 'a' has a category twice"),
        ({"op": "one_hot", "columns": ["a"], "categories": [[1]], "infrequent": [[1]]}, "category twice"),
        ({"op": "one_hot", "columns": ["a"], "categories": [[1]], "missing": ["no"]}, "missing"),
        ({"op": "one_hot", "columns": ["a", "b"], "categories": [[1]]}, "categories has 1 entries for 2 columns"),
        ({"op": "one_hot", "columns": 3, "categories": [[1]]}, "columns"),
        ({"op": "hash", "columns": ["a"], "buckets": 0, "seeds": [0]}, "buckets"),
        ({"op": "hash", "columns": ["a"], "buckets": 70000, "seeds": [0]}, "buckets"),
        ({"op": "hash", "columns": ["a"], "buckets": 7, "seeds": [-1]}, "seeds of 32 bits"),
        ({"op": "hash", "columns": ["a"], "buckets": 7, "seeds": []}, "seeds has 0 entries"),
        ({"op": "cyclical", "columns": ["a"], "period": [0], "offset": [0]}, "cyclical of column 'a' has the period 0"),
        ({"op": "ratio", "columns": ["a"], "by": []}, "by has 0 entries"),
        ({"op": "ratio", "columns": ["a", "a"], "by": ["b", "b"]}, "two columns 'a/b'"),
        ({"op": "time", "columns": ["a"], "name": "t"}, "columns"),
        ({"op": "time", "columns": ["a", "b"], "units": ["d", "y"], "name": "t"}, "units"),
        ({"op": "time_since", "columns": ["a"], "now": "a"}, "named twice"),
        ({"op": "interactions", "columns": ["a", "a"]}, "named twice"),
        ({"op": "select", "columns": []}, "columns"),
        ({"op": "min_max", "columns": ["a"], "scale": [1], "shift": [0], "clip": [2, 1]}, "low 2.0 above high 1.0"),
        ({"op": "function", "name": "f", "columns": ["a"], "outputs": []}, "outputs"),
        ({"op": "function", "name": "f", "columns": ["a"], "outputs": ["b", "b"]}, "two columns 'b'"),
    ],
)
def test_a_step_that_cannot_be_is_refused_in_one_line(step, message):
    with pytest.raises(TransformError, match=message) as caught:
        Transforms.from_json(json.dumps({"steps": [step]}))
    assert "\n" not in str(caught.value)
