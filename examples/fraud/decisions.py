"""Decisions by expected utility: what a probability is for.

Each transaction is approved or reviewed. A review costs `REVIEW_COST`, whatever it finds; an approved fraud costs its
amount. With p the probability of fraud, approving loses p * amount on average, so a review pays where

    p * amount > REVIEW_COST

The model was trained on balanced classes, so its odds are those of a world where every second transaction is fraud.
Multiplying by the odds of fraud in the data gives the real ones back (Elkan, "The Foundations of Cost-Sensitive
Learning", IJCAI 2001, theorem 2).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

REVIEW_COST = 5.0
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Outcome:
    """What deciding cost, and what approving everything would have cost."""

    reviews: int
    frauds: int
    caught: int
    cost: float
    cost_of_approving_all: float


def real_probability(balanced: Numbers, fraud_share: float) -> Numbers:
    """Probabilities under the real share of fraud, from those of a model trained on balanced classes."""
    fraud, honest = balanced * fraud_share, (1 - balanced) * (1 - fraud_share)
    return fraud / (fraud + honest)


def decide(balanced: Numbers, amounts: Numbers, fraud_share: float) -> NDArray[np.bool_]:
    """True where a review has the greater expected utility."""
    return real_probability(balanced, fraud_share) * amounts > REVIEW_COST


def outcome(transactions: pd.DataFrame, balanced: Numbers, fraud_share: float) -> Outcome:
    """Decide every transaction and count what came of it, with the true labels."""
    amounts, fraud = transactions["amount"].to_numpy(np.float64), transactions["fraud"].to_numpy(bool)
    review = decide(balanced, amounts, fraud_share)
    return Outcome(
        reviews=int(review.sum()),
        frauds=int(fraud.sum()),
        caught=int((fraud & review).sum()),
        cost=float(REVIEW_COST * review.sum() + amounts[fraud & ~review].sum()),
        cost_of_approving_all=float(amounts[fraud].sum()),
    )
