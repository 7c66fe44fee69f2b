"""What a run costs is learnt by size."""

from __future__ import annotations

from math import inf

from penstock.server.cost import Cost


def test_nothing_is_cheap_before_it_was_seen():
    assert Cost().predict(1) == inf


def test_a_larger_batch_costs_as_much_a_row_as_the_nearest_smaller_one():
    cost = Cost()
    cost.learn(1, 1000)
    assert cost.predict(1) == 1000
    assert cost.predict(4) == 4000
    cost.learn(5, 1600)
    assert cost.predict(4) == 1600
    assert cost.predict(8) == 3200


def test_one_slow_run_moves_the_estimate_by_a_fifth():
    cost = Cost()
    cost.learn(2, 1000)
    cost.learn(2, 6000)
    assert cost.predict(3) == 2000
