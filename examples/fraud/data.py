"""Made-up card transactions: months of history, the features computed from it week by week, and labelled transactions.

Everything is drawn from one seed; only the clock is real. Features are computed as of four moments a week apart, the
last of them `CUT_OFF_AGO` before now, and known half an hour later. Labelled transactions lie between the first moment
and now, so each must be joined with what was known at its own time; traffic comes now and meets the last row. Fraud is
about 0.2 %: much larger amounts than the customer's own, more often at night, more often on young accounts.

Two kinds of gaps are there on purpose: customers who were not registered yet have no row at all, and customers who did
nothing for a month have no averages. Both get the view's defaults, in training and in serving.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.random import Generator
from numpy.typing import NDArray

from penstock.features import FeatureView, read_views

VIEW = Path(__file__).with_name("views.yaml")
SENT = ("amount", "hour")
"""Columns that only the caller knows: they belong to the transaction, not to the customer."""

FRAUD_SHARE = 0.002
NEW_SHARE = 0.02  # of transactions, by customers without a row
NIGHT_SHARE = 0.04
HISTORY_DAYS = 30  # that a feature looks back
WEEKS_AGO = (3, 2, 1, 0)  # features were computed, before the cut-off
CUT_OFF_AGO = pd.Timedelta(hours=1)
KNOWN_AFTER = pd.Timedelta(minutes=30)
DAYS = 7 * max(WEEKS_AGO)

Numbers = NDArray[np.float64]


def read_view() -> FeatureView:
    """The example's one feature view."""
    return read_views(VIEW)[0]


@dataclass(frozen=True)
class World:
    """N customers and what was known of them.

    Attributes:
        view: the declared features.
        usual: what each customer usually spends, [N].
        pace: transactions a day, [N].
        age: days since registration, [N].
        cut_off: when features were computed last, UTC.
        history: one row a customer and week: customer_id, the view's columns (NaN is unknown), computed_at, known_at.
    """

    view: FeatureView
    usual: Numbers
    pace: Numbers
    age: Numbers
    cut_off: pd.Timestamp
    history: pd.DataFrame

    @cached_property
    def features(self) -> pd.DataFrame:
        """The last row of each customer, indexed by customer id."""
        last = self.history[self.history["computed_at"] == self.cut_off]
        return last.set_index("customer_id")[list(self.view.column_names)]

    @property
    def columns(self) -> tuple[str, ...]:
        """What the model reads, in its order."""
        return (*SENT, *self.view.column_names)

    @cached_property
    def ids(self) -> NDArray[np.object_]:
        """The customers' ids, [N]."""
        return self.features.index.to_numpy(object)

    def joined(self, transactions: pd.DataFrame) -> pd.DataFrame:
        """The model's rows of transactions after the cut-off, float32 [n, k]: the last features, defaults for gaps.

        This is the demo's own account of what the server must look up; it shares no code with the server.
        """
        known = self.features.reindex(transactions["customer_id"])
        filled = known.fillna({column.name: column.default for column in self.view.columns})
        sent = transactions[list(SENT)].reset_index(drop=True)
        return pd.concat([sent, filled.reset_index(drop=True)], axis=1)[list(self.columns)].astype(np.float32)


def make_world(customers: int, rng: Generator) -> World:
    """Make up customers, seven weeks of their transactions, and the features of the last three."""
    usual = rng.lognormal(3.5, 0.6, customers)
    pace = rng.gamma(1.2, 0.8, customers)
    age = rng.integers(1, 3650, customers).astype(float)
    span = HISTORY_DAYS + DAYS
    owner = np.repeat(np.arange(customers), rng.poisson(pace * np.minimum(span, age)))
    days_ago = rng.uniform(0, np.minimum(span, age)[owner])
    spent = pd.DataFrame({"customer": owner, "days_ago": days_ago, **_honest(usual[owner], rng)})
    cut_off = (pd.Timestamp.now("UTC") - CUT_OFF_AGO).floor("ms")
    weeks = [_features(spent, age, 7 * week, cut_off) for week in WEEKS_AGO]
    return World(read_view(), usual, pace, age, cut_off, pd.concat(weeks, ignore_index=True))


def _features(spent: pd.DataFrame, age: Numbers, days_ago: int, cut_off: pd.Timestamp) -> pd.DataFrame:
    """The view's columns of every customer registered so many days before the cut-off, from the raw transactions."""
    since = spent.assign(days_ago=spent["days_ago"] - days_ago, night=spent["hour"] < 6)
    month = since[since["days_ago"].between(0, HISTORY_DAYS, inclusive="left")]
    groups = month.groupby("customer")
    recent = month[month["days_ago"] < 7].groupby("customer").size()
    everyone = pd.RangeIndex(len(age))
    features = pd.DataFrame(
        {
            "customer_id": [f"c{i:06d}" for i in everyone],
            "transaction_count_7d": recent.reindex(everyone, fill_value=0).astype(np.int32),
            "avg_transaction_amount": groups["amount"].mean().reindex(everyone).astype(np.float32),
            "max_transaction_amount_30d": groups["amount"].max().reindex(everyone).astype(np.float32),
            "night_share_30d": groups["night"].mean().reindex(everyone).astype(np.float32),
            "days_since_last_transaction": groups["days_ago"].min().reindex(everyone).astype(np.float32),
            "days_since_registration": (age - days_ago).astype(np.int32),
            "computed_at": cut_off - pd.Timedelta(days=days_ago),
            "known_at": cut_off - pd.Timedelta(days=days_ago) + KNOWN_AFTER,
        }
    )
    return features[age > days_ago]


def make_transactions(world: World, count: int, rng: Generator) -> pd.DataFrame:
    """Labelled transactions: customer_id, amount, hour, fraud; and `at`, a time since features are known, UTC."""
    fraud = rng.random(count) < FRAUD_SHARE
    fraud[:2] = True, False  # a classifier needs both, however few rows are asked for
    new = rng.random(count) < NEW_SHARE
    who = np.where(fraud, _draw(world, count, rng, young=3.0), _draw(world, count, rng))
    usual = np.where(new, 35.0, world.usual[who])
    rows = pd.DataFrame(_honest(usual, rng))
    rows.loc[fraud, "amount"] = _cents(usual[fraud] * rng.lognormal(1.8, 0.7, fraud.sum()))
    rows.loc[fraud, "hour"] = _hours(fraud.sum(), rng, night=0.6)
    strangers = np.array([f"new{i:06d}" for i in rng.integers(0, 1_000_000, count)], object)
    rows["customer_id"] = np.where(new, strangers, world.ids[who])
    rows["fraud"] = fraud.astype(np.int64)
    days_ago = rng.uniform(0, np.where(new, DAYS, np.minimum(DAYS, world.age[who])))
    rows["at"] = world.cut_off + CUT_OFF_AGO - pd.to_timedelta(days_ago, "D")
    return rows


def _draw(world: World, count: int, rng: Generator, young: float = 0.0) -> NDArray[np.int64]:
    """Customers by how busy they are; `young` prefers new accounts."""
    weight = world.pace * (1 + young * (world.age < 180))
    return rng.choice(len(weight), count, p=weight / weight.sum())


def _honest(usual: Numbers, rng: Generator) -> dict[str, Numbers]:
    """Amount and hour of ordinary transactions by customers who usually spend so much."""
    amounts = _cents(usual * rng.lognormal(0, 0.5, len(usual)))
    return {"amount": amounts, "hour": _hours(len(usual), rng, night=NIGHT_SHARE)}


def _hours(count: int, rng: Generator, night: float) -> Numbers:
    """Hours of the day, whole; the share `night` between midnight and six."""
    at_night = rng.random(count) < night
    return np.where(at_night, rng.integers(0, 6, count), rng.integers(6, 24, count)).astype(float)


def _cents(amounts: Numbers) -> Numbers:
    return np.maximum(np.round(amounts, 2), 0.01)
