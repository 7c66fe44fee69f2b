"""Fitted models and their data, small enough to fit in every test session, made once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler


@dataclass(frozen=True)
class Case:
    """A fitted model, the rows it was fitted on and their labels."""

    model: Any
    rows: pd.DataFrame
    labels: np.ndarray


@pytest.fixture(scope="session")
def cancer() -> tuple[pd.DataFrame, np.ndarray]:
    rows, labels = load_breast_cancer(return_X_y=True, as_frame=True)
    return rows, labels.to_numpy()


@pytest.fixture(scope="session")
def digits() -> tuple[pd.DataFrame, np.ndarray]:
    rows, labels = load_digits(return_X_y=True, as_frame=True)
    return rows, labels.to_numpy()


@pytest.fixture(scope="session")
def diabetes() -> tuple[pd.DataFrame, np.ndarray]:
    rows, values = load_diabetes(return_X_y=True, as_frame=True)
    return rows, values.to_numpy()


@pytest.fixture(scope="session")
def logistic(cancer) -> Case:
    rows, labels = cancer
    return Case(make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(rows, labels), rows, labels)


@pytest.fixture(scope="session")
def forest(cancer) -> Case:
    rows, labels = cancer
    return Case(RandomForestClassifier(20, random_state=0).fit(rows, labels), rows, labels)


def mixed_rows(count: int = 400) -> pd.DataFrame:
    """Text, whole numbers, flags and numbers with gaps, under names that skl2onnx would rewrite."""
    random = np.random.default_rng(3)
    rows = pd.DataFrame(
        {
            "card type": random.choice(["visa", "amex", "maestro"], count),
            "amount.eur": random.lognormal(3, 1, count),
            "age": random.integers(18, 90, count),
            "is new": random.random(count) > 0.5,
            "unused column": random.random(count),
            "card.type": random.choice(["débit", "credit"], count),
        }
    )
    rows.loc[::7, "amount.eur"] = np.nan
    return rows


@pytest.fixture(scope="session")
def mixed() -> Case:
    rows = mixed_rows()
    labels = np.where((rows["age"] > 50) ^ (rows["card type"] == "amex"), "good", "bad")
    columns = ColumnTransformer(
        [
            ("numbers", make_pipeline(SimpleImputer(), StandardScaler()), ["amount.eur", "age"]),
            ("kinds", OneHotEncoder(handle_unknown="ignore"), ["card type", "card.type"]),
            ("order", OrdinalEncoder(), ["card.type"]),
            ("flags", "passthrough", ["is new"]),
        ]
    )
    model = make_pipeline(columns, RandomForestClassifier(20, random_state=0)).fit(rows, labels)
    return Case(model, rows, labels)
