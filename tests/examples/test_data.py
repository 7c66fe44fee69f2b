"""The demo's made-up data, and its decisions."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from penstock.examples.fraud.data import CUT_OFF_AGO, SENT, make_transactions, make_world
from penstock.examples.fraud.decisions import REVIEW_COST, outcome, real_probability
from penstock.examples.fraud.training import as_of
from penstock.features.offline import OfflineStore


@pytest.fixture(scope="module")
def world():
    return make_world(2000, np.random.default_rng(7))


def test_the_same_seed_makes_the_same_data(world):
    again = make_world(2000, np.random.default_rng(7))
    pd.testing.assert_frame_equal(world.features, again.features)
    assert len(world.features) < len(world.history) < 4 * len(world.features)


def test_about_two_transactions_in_a_thousand_are_fraud(world):
    rows = make_transactions(world, 100_000, np.random.default_rng(1))
    assert 0.0015 < rows["fraud"].mean() < 0.0025


def test_gaps_get_the_views_defaults_offline(world):
    """A customer without a row gets every default, one without history only those of the missing values."""
    idle = world.features.index[world.features["avg_transaction_amount"].isna()][0]
    asked = pd.DataFrame({"customer_id": ["stranger", idle], "amount": 10.0, "hour": 3.0})
    rows = world.joined(asked)
    defaults = [column.default for column in world.view.columns]
    assert rows.columns.tolist() == [*SENT, *world.view.column_names]
    assert rows.iloc[0].tolist() == [10.0, 3.0, *defaults]
    assert rows["avg_transaction_amount"].iloc[1] == 35
    assert rows["days_since_registration"].iloc[1] == world.features.loc[idle, "days_since_registration"]


def test_training_rows_hold_what_was_known_at_each_transaction_s_time(world, tmp_path):
    """Row by row, by hand; a customer who was not registered when features were computed gets the defaults."""
    OfflineStore(tmp_path).write(world.view, world.history, time="computed_at", created="known_at")
    asked = make_transactions(world, 300, np.random.default_rng(3))
    asked.loc[:20, "at"] = world.cut_off + CUT_OFF_AGO
    rows = as_of(world, asked, tmp_path)
    oldest = world.cut_off - pd.Timedelta(days=21)
    assert asked["at"].between(oldest, world.cut_off + CUT_OFF_AGO).all()
    seen = set()
    for (_, ask), row in zip(asked.iterrows(), rows.itertuples(index=False), strict=True):
        ours = world.history[world.history["customer_id"] == ask["customer_id"]]
        known = ours[ours["known_at"] <= ask["at"]]
        expected = [ask["amount"], ask["hour"], *(column.default for column in world.view.columns)]
        if len(known):
            last = known.sort_values("computed_at").iloc[-1]
            seen.add(last["computed_at"])
            values = [last[column.name] for column in world.view.columns]
            expected[2:] = [d if pd.isna(v) else v for v, d in zip(values, expected[2:], strict=True)]
        np.testing.assert_array_equal(np.array(row, np.float32), np.array(expected, np.float32))
    assert len(seen) == 4


def test_real_probabilities_undo_balanced_weights():
    """Under balanced weights an uninformative model says one half; the truth is the share of fraud."""
    assert real_probability(np.array([0.0, 0.5, 1.0]), 0.002) == pytest.approx([0.0, 0.002, 1.0])


def test_a_review_is_chosen_where_it_costs_less_than_the_expected_loss():
    amounts = np.array([1000.0, 1000.0, 2.0])
    scores = np.array([0.999, 0.001, 0.999])
    rows = pd.DataFrame({"amount": amounts, "fraud": [1, 0, 1]})
    found = outcome(rows, scores, fraud_share=0.01)
    assert (found.reviews, found.frauds, found.caught) == (1, 2, 1)
    assert found.cost == REVIEW_COST + 2.0
    assert found.cost_of_approving_all == 1002.0
