"""Made-up card transactions: a month of history, the features computed from it, and labelled transactions after it.

Everything is drawn from one seed. Features are computed as of one moment, the cut-off, and every labelled transaction
comes later, so training sees exactly what serving will see (point-in-time correct). Fraud is about 0.2 %: much larger
amounts than the customer's own, more often at night, more often on young accounts.

Two kinds of gaps are there on purpose: customers who registered after the cut-off have no row at all, and customers who
did nothing for a month have no averages. Both get the view's defaults, in training and in serving.
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
HISTORY_DAYS = 30

Numbers = NDArray[np.float64]


def read_view() -> FeatureView:
    """The example's one feature view."""
    return read_views(VIEW)[0]


@dataclass(frozen=True)
class World:
    """N customers and what they did in the month before the cut-off.

    Attributes:
        view: the declared features.
        usual: what each customer usually spends, [N].
        pace: transactions a day, [N].
        age: days since registration, [N].
        features: one row a customer as of the cut-off, indexed by customer id; NaN is unknown.
    """

    view: FeatureView
    usual: Numbers
    pace: Numbers
    age: Numbers
    features: pd.DataFrame

    @property
    def columns(self) -> tuple[str, ...]:
        """What the model reads, in its order."""
        return (*SENT, *self.view.column_names)

    @cached_property
    def ids(self) -> NDArray[np.object_]:
        """The customers' ids, [N]."""
        return self.features.index.to_numpy(object)

    def joined(self, transactions: pd.DataFrame) -> pd.DataFrame:
        """The model's rows, float32 [n, k]: an offline join by customer id, with the view's defaults for gaps.

        This is the demo's own account of what the server must look up; it shares no code with the server.
        """
        known = self.features.reindex(transactions["customer_id"])
        filled = known.fillna({column.name: column.default for column in self.view.columns})
        sent = transactions[list(SENT)].reset_index(drop=True)
        return pd.concat([sent, filled.reset_index(drop=True)], axis=1)[list(self.columns)].astype(np.float32)


def make_world(customers: int, rng: Generator) -> World:
    """Make up customers and a month of their transactions."""
    usual = rng.lognormal(3.5, 0.6, customers)
    pace = rng.gamma(1.2, 0.8, customers)
    age = rng.integers(1, 3650, customers).astype(float)
    owner = np.repeat(np.arange(customers), rng.poisson(pace * HISTORY_DAYS))
    days_ago = rng.uniform(0, np.minimum(HISTORY_DAYS, age)[owner])
    history = pd.DataFrame({"customer": owner, "days_ago": days_ago, **_honest(usual[owner], rng)})
    return World(read_view(), usual, pace, age, _features(history, age))


def _features(history: pd.DataFrame, age: Numbers) -> pd.DataFrame:
    """The view's columns of every customer, from the raw transactions."""
    night = history.assign(night=history["hour"] < 6)
    groups = night.groupby("customer")
    recent = history[history["days_ago"] < 7].groupby("customer").size()
    everyone = pd.RangeIndex(len(age))
    features = pd.DataFrame(
        {
            "transaction_count_7d": recent.reindex(everyone, fill_value=0).astype(np.int32),
            "avg_transaction_amount": groups["amount"].mean().reindex(everyone).astype(np.float32),
            "max_transaction_amount_30d": groups["amount"].max().reindex(everyone).astype(np.float32),
            "night_share_30d": groups["night"].mean().reindex(everyone).astype(np.float32),
            "days_since_last_transaction": groups["days_ago"].min().reindex(everyone).astype(np.float32),
            "days_since_registration": age.astype(np.int32),
        }
    )
    return features.set_index(pd.Index([f"c{i:06d}" for i in everyone], name="customer_id"))


def make_transactions(world: World, count: int, rng: Generator) -> pd.DataFrame:
    """Labelled transactions after the cut-off: customer_id, amount, hour, fraud."""
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
