"""Profiles: how bins are chosen, and that what is stored is what was counted."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from penstock.errors import PenstockError
from penstock.kernels.drift import bin_counts
from penstock.monitoring import ColumnProfile, Profile, ProfileError, Reference


def profile_of(*columns, bins=20):
    matrix = np.array(columns, dtype=np.float32).T
    return Profile.of(matrix, [f"c{j}" for j in range(len(columns))], bins)


def one(values, bins=20):
    return profile_of(values, bins=bins).columns[0]


def test_many_distinct_values_fall_into_twenty_bins_of_equal_counts():
    column = one(np.random.default_rng(1).permutation(1000))
    assert column.counts == (50,) * 20 + (0,)
    assert column.edges[:2] == (49.0, 99.0)


def test_a_binary_flag_has_a_bin_for_each_value_and_one_on_either_side_for_what_was_never_seen():
    column = one([0, 1, 1, 0, 1])
    assert column.counts == (0, 2, 3, 0, 0)
    assert column.edges[1:] == (0.0, 1.0)
    assert -1e-30 < column.edges[0] < 0


def test_a_constant_column_tells_smaller_equal_and_larger_values_apart():
    edges = np.array(one([5.0] * 10).edges, dtype=np.float32)
    assert np.searchsorted(edges, np.float32([4.999, 5.0, 5.001]), side="left").tolist() == [0, 1, 2]


@pytest.mark.parametrize("values", [range(18), [-3, -3, 0, 7], [1e30, -1e30], [np.finfo(np.float32).tiny, 1]])
def test_few_distinct_values_each_have_their_own_bin(values):
    distinct = sorted(set(values))
    counts = one(values).counts
    assert sum(count > 0 for count in counts) == len(distinct)


def test_negative_zero_and_zero_are_one_value():
    assert one([0.0, -0.0, 1.0]).counts == (0, 2, 1, 0, 0)


def test_one_value_in_most_rows_leaves_fewer_bins():
    column = one([0.0] * 900 + list(range(1, 101)))
    assert column.edges[:2] == (0.0, 50.0)
    assert column.counts[0] == 900


def test_missing_values_are_counted_apart_and_do_not_move_the_edges():
    values = np.arange(100.0)
    column = one(np.concatenate([values, [np.nan] * 7]))
    assert column.edges == one(values).edges
    assert column.counts[-1] == 7


def test_a_column_without_any_value_has_no_edges():
    assert one([np.nan] * 4) == ColumnProfile(name="c0", edges=(), counts=(0, 4))


def test_an_empty_table_has_columns_without_edges():
    profile = Profile.of(np.empty((0, 2), np.float32), ["a", "b"])
    assert [column.counts for column in profile.columns] == [(0, 0), (0, 0)]


def test_infinite_values_fall_into_the_outer_bins():
    column = one([-np.inf, 1.0, np.inf])
    assert np.isfinite(column.edges).all()
    assert column.counts == (1, 1, 1, 0)


FLOATS = st.floats(width=32) | st.integers(-3, 3).map(float)


@given(arrays.arrays(np.float32, arrays.array_shapes(min_dims=2, max_dims=2, max_side=60), elements=FLOATS))
@settings(max_examples=150, deadline=None)
def test_any_table_has_at_most_twenty_bins_counted_as_the_kernel_counts_and_survives_json(matrix):
    profile = Profile.of(matrix, [f"c{j}" for j in range(matrix.shape[1])])
    assert all(len(column.edges) < 20 for column in profile.columns)
    counts = profile.layout.counters()
    bin_counts(matrix, profile.layout.edges, profile.layout.offsets, counts)
    assert counts.tolist() == profile.counts.tolist()
    again = Profile.from_json(profile.to_json())
    assert again == profile
    assert again.layout.edges.tobytes() == profile.layout.edges.tobytes()


@pytest.mark.parametrize("bins", [3, 7, 256])
def test_the_number_of_bins_can_be_chosen(bins):
    assert len(one(np.arange(5000.0), bins).counts) == bins + 1


def test_a_reference_keeps_features_and_score_apart():
    reference = Reference(features=profile_of([1, 2, 3], [4, 5, 6]), score=profile_of([0.1, 0.2, 0.9]))
    assert Reference.from_json(reference.to_json()) == reference
    assert json.loads(reference.to_json())["format"] == 1


@pytest.mark.parametrize(
    ("matrix", "names", "bins", "message"),
    [
        (np.zeros((2, 2)), ["a"], 20, "profile of 1 columns"),
        (np.zeros(2), ["a"], 20, "profile of 1 columns"),
        (np.zeros((2, 2)), ["a", "a"], 20, "same name"),
        (np.zeros((2, 1)), [""], 20, "name"),
        (np.zeros((2, 1)), ["a"], 2, "3 to 256"),
        (np.zeros((2, 1)), ["a"], 257, "3 to 256"),
    ],
)
def test_a_table_that_cannot_be_profiled_is_refused_in_one_line(matrix, names, bins, message):
    with pytest.raises(ProfileError, match=message) as caught:
        Profile.of(matrix, names, bins)
    assert "\n" not in str(caught.value)


STORED = {"format": 1, "rows": 3, "columns": [{"name": "a", "edges": [1.0, 2.0], "counts": [1, 0, 1, 1]}]}


def test_a_profile_written_by_hand_is_read():
    assert Profile.from_json(json.dumps(STORED)).counts.tolist() == [1, 0, 1, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"edges": [2.0, 1.0]}, "do not ascend"),
        ({"edges": [1.0, 1.0]}, "do not ascend"),
        ({"edges": [0.1, 2.0]}, "not float32"),
        ({"edges": [1.0, 1e39]}, "not float32"),
        ({"edges": [1.0]}, "needs 3 counts"),
        ({"edges": [float(e) for e in range(256)]}, "at most 255"),
        ({"counts": [1, 0, 1, 2]}, "sum to 4"),
        ({"counts": [4, 0, -1, 0]}, "greater than or equal to 0"),
        ({"counts": [2**63, 0, 0, 0]}, "less than"),
        ({"more": 1}, "Extra inputs"),
        ({"name": 1}, "string"),
    ],
)
def test_a_stored_profile_whose_parts_do_not_fit_is_refused_in_one_line(change, message):
    stored = STORED | {"columns": [STORED["columns"][0] | change]}
    with pytest.raises(ProfileError, match=message) as caught:
        Profile.from_json(json.dumps(stored))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b'{"format": 2, "rows": 0, "columns": []}', b"null"])
def test_what_is_not_a_profile_is_refused(data):
    with pytest.raises(PenstockError, match="cannot be read"):
        Profile.from_json(data)


def test_infinite_edges_are_refused():
    with pytest.raises(ProfileError, match="finite"):
        Profile.from_json(json.dumps(STORED).replace("2.0", "Infinity"))


def test_a_profile_cannot_be_changed():
    profile = profile_of([1, 2, 3])
    with pytest.raises(ValueError, match="frozen"):
        profile.rows = 4
    for array in (profile.counts, profile.layout.edges, profile.layout.offsets):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
