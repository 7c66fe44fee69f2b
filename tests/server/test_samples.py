"""Rows made up for measuring: like the profile's, all different, and requests that the plan takes."""

from __future__ import annotations

import numpy as np
import pytest

from penstock.kernels.calls import EventSink
from penstock.kernels.lanes import Lane
from penstock.kernels.wire import Plan
from penstock.monitoring import Profile
from penstock.server.samples import LARGEST_POOL, NothingToDraw, Samples, from_golden, from_profile

MATRIX = Plan("m", "1", [("m", "FP32", (2,), "matrix", True)], [("y", "FP32", (), False)], ("a", "b"))
MIXED = Plan(
    "m",
    "1",
    [("a", "FP64", (1,), "tensor", False), ("n", "INT64", (), "tensor", False), ("t", "BYTES", (1,), "tensor", False)],
    [("y", "FP32", (), False)],
)


class Future:
    def done(self):
        return True

    def set_result(self, result): ...

    def set_exception(self, error): ...


def batch_of(plan, samples, rows):
    """The rows of a request, as a worker gets them."""
    lane = Lane(plan, max_queue_bytes=1 << 40)
    lane.submit(samples.request(rows), EventSink(), Future())
    return lane.take(block=False)


def test_a_profile_is_drawn_from_as_it_counts():
    chance = np.random.default_rng(1)
    column = np.where(chance.random(5000) < 0.2, np.nan, chance.normal(3, 1, 5000)).astype(np.float32)
    profile = Profile.of(np.stack([column, np.full(5000, np.nan, np.float32)], axis=1), ["a", "b"])
    drawn = from_profile(profile, 4000, chance)
    assert np.isnan(drawn[:, 0]).mean() == pytest.approx(0.2, abs=0.03)
    assert np.nanmedian(drawn[:, 0]) == pytest.approx(3, abs=0.1)
    assert np.nanquantile(drawn[:, 0], 0.9) == pytest.approx(np.nanquantile(column, 0.9), abs=0.2)
    assert np.isnan(drawn[:, 1]).all()


def test_columns_of_whole_numbers_are_drawn_as_whole_numbers():
    """A category's index is one of a word, and no number between two of them."""
    chance = np.random.default_rng(1)
    few, many, halves = chance.integers(0, 3, 5000), chance.poisson(400, 5000), chance.integers(0, 3, 5000) / 2
    profile = Profile.of(np.stack([few, many, halves], axis=1).astype(np.float32), ["few", "many", "halves"])
    drawn = from_profile(profile, 4000, chance)
    assert set(drawn[:, 0]) == {0, 1, 2}
    assert (drawn[:, 1] == np.round(drawn[:, 1])).all()
    assert drawn[:, 1].mean() == pytest.approx(400, rel=0.01)
    assert (drawn[:, 2] != np.round(drawn[:, 2])).any()


def test_golden_rows_are_mixed_and_jittered_texts_and_whole_numbers_drawn_as_they_are():
    chance, values = np.random.default_rng(1), np.arange(12, dtype=np.float32).reshape(4, 3)
    mixed = from_golden(values, 500, chance)
    assert mixed.dtype == np.float32
    assert len(np.unique(mixed, axis=0)) == 500
    whole = from_golden(values.astype(np.int64), 100, chance)
    assert {tuple(row) for row in whole.tolist()} <= {tuple(row) for row in values.tolist()}


def test_requests_go_through_the_pool_and_are_as_the_plan_takes_them():
    chance = np.random.default_rng(1)
    profile = Profile.of(chance.normal(size=(500, 2)).astype(np.float32), ["a", "b"])
    samples = Samples(MATRIX, profile, {}, 64)
    first, second = batch_of(MATRIX, samples, 64), batch_of(MATRIX, samples, 64)
    assert first.rows == 64
    assert len(np.unique(np.concatenate([first.matrix, second.matrix]), axis=0)) == 128
    again = Samples(MATRIX, profile, {}, 64)
    np.testing.assert_array_equal(batch_of(MATRIX, again, 64).matrix, first.matrix)


def test_inputs_of_their_own_are_drawn_by_type():
    profile = Profile.of(np.array([[1.5, 7], [2.5, 9]], np.float32), ["a", "n"])
    golden = {"t": np.array([["x"], ["yy"]], object)}
    batch = batch_of(MIXED, Samples(MIXED, profile, golden, 4), 4)
    assert set(np.unique(batch.inputs["n"])) <= {7, 8, 9}
    assert batch.inputs["a"].dtype == np.float64
    assert {bytes(text) for text in batch.inputs["t"]} <= {b"x", b"yy"}


def test_an_input_that_nothing_is_known_of_is_named():
    with pytest.raises(NothingToDraw, match="neither a profile nor golden rows to draw 't' from"):
        Samples(MIXED, Profile.of(np.ones((3, 2), np.float32), ["a", "n"]), {}, 4)


def test_a_pool_of_large_rows_is_bounded():
    plan = Plan("m", "1", [("x", "FP32", (1000, 100), "tensor", False)], [("y", "FP32", (), False)])
    samples = Samples(plan, None, {"x": np.ones((1, 1000, 100), np.float32)}, 256)
    assert samples.rows == LARGEST_POOL // 400_000
