"""Training: a scikit-learn pipeline, and the same preparation as data that the server can run.

Fraud is rare, so the classes are weighted inversely to their frequency (`class_weight="balanced"`): without that, a
model that never cries fraud is 99.8 % right and worthless.

The pipeline's first step is a Python function, which no converter can look into. So the preparation is fitted a second
time as Penstock's transforms, which are plain data stored beside the model; the classifier alone becomes ONNX. The two
are fitted by different code, and the demo compares their answers to 1e-5.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from penstock.converters import Converted, convert
from penstock.examples.fraud.data import SENT, World
from penstock.features.offline import join
from penstock.features.transforms import Transforms
from penstock.training.transforms import fit

MODEL = "fraud"
RECIPE = ({"op": "log1p"}, {"op": "standardize"})


@dataclass(frozen=True)
class Trained:
    """A fitted model in both forms.

    Attributes:
        pipeline: scikit-learn's own: the referee of every answer.
        transforms: its preparation, as data.
        fraud_share: of the training rows; what the class weights hide and decisions need back.
    """

    pipeline: Pipeline
    transforms: Transforms
    fraud_share: float

    @property
    def classifier(self) -> Any:
        """The last step, which becomes ONNX."""
        return self.pipeline[-1]

    def probabilities(self, rows: pd.DataFrame) -> NDArray[np.float64]:
        """[n, 2]: what scikit-learn says, in float64."""
        answers: NDArray[np.float64] = self.pipeline.predict_proba(rows.to_numpy(np.float64))
        return answers


def as_of(world: World, transactions: pd.DataFrame, history: Path) -> pd.DataFrame:
    """The model's rows, float32 [n, k]: each transaction with the features that were known at its time.

    The last ones known now would leak: they were computed from what happened after most of the transactions.
    """
    joined = join(transactions[["customer_id", "at", *SENT]], world.view, history, time="at")
    rows: pd.DataFrame = joined.select(list(world.columns)).to_pandas().astype(np.float32)
    return rows


def train(world: World, rows: pd.DataFrame, labels: NDArray[np.int64]) -> Trained:
    """Fit pipeline and transforms to labelled rows."""
    pipeline = make_pipeline(
        FunctionTransformer(np.log1p), StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000)
    )
    pipeline.fit(rows.to_numpy(np.float64), labels)
    return Trained(pipeline, fit(RECIPE, rows.to_numpy(), world.columns), float(labels.mean()))


def publish(trained: Trained, world: World, rows: pd.DataFrame, labels: NDArray[np.int64], registry: Path) -> Converted:
    """Convert the classifier, hold it against scikit-learn on every row of the holdout, and publish it."""
    return convert(
        trained.classifier,
        MODEL,
        rows,
        registry=registry,
        labels=labels,
        transforms=trained.transforms,
        views=[world.view],
        created_by="the fraud demo",
    )
