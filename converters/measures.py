"""What the published graph itself says about the sample: metrics, the watched score, golden rows, drift reference.

All of it is computed from the ONNX answers, because these are what will be served.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics as measure

from penstock.converters.errors import BadSample
from penstock.monitoring.profile import Profile, Reference
from penstock.registry import Score

GOLDEN_ROWS = 64
Arrays = Mapping[str, NDArray[Any]]


def metrics_of(outputs: Arrays, labels: Sequence[Any] | NDArray[Any], classes: NDArray[Any] | None) -> dict[str, float]:
    """Metrics of the answers against the true labels.

    Args:
        outputs: the graph's outputs for all rows.
        labels: the true labels or values, [n].
        classes: the model's classes, int64 or text; None for a regressor.

    Returns:
        Classifiers: accuracy, f1 (of the second class if there are two, else the mean over classes) and log_loss where
        there are probabilities. Regressors: r2, mean_absolute_error.

    Raises:
        BadSample: labels are missing, or are no labels of this model.
    """
    truth = np.asarray(labels)
    count = len(next(iter(outputs.values())))
    if len(truth) != count:
        raise BadSample(f"there are {len(truth)} labels for {count} rows")
    if classes is None:
        values = outputs["value"].reshape(count, -1)
        return {
            "r2": float(measure.r2_score(truth.astype(float), values)),
            "mean_absolute_error": float(measure.mean_absolute_error(truth.astype(float), values)),
        }
    known = _as_classes(truth, classes)
    said = _as_classes(outputs["label"].reshape(-1), classes)
    binary = len(classes) == 2
    found = {
        "accuracy": float(measure.accuracy_score(known, said)),
        "f1": float(
            measure.f1_score(known, said, pos_label=classes[1], zero_division=0.0)
            if binary
            else measure.f1_score(known, said, labels=classes, average="macro", zero_division=0.0)
        ),
    }
    if "probabilities" in outputs:
        probabilities = np.clip(outputs["probabilities"].astype(np.float64), 1e-15, 1.0)
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        found["log_loss"] = float(measure.log_loss(known, probabilities, labels=classes))
    return found


def _as_classes(labels: NDArray[Any], classes: NDArray[Any]) -> NDArray[Any]:
    try:
        same = labels.astype(str) if classes.dtype.kind == "U" else labels.astype(np.int64)
    except (TypeError, ValueError) as error:
        raise BadSample(f"labels are not of the model's kind (such as {classes[0]}): {error}") from error
    strange = set(np.unique(same)) - set(classes)
    if strange or (classes.dtype.kind != "U" and np.any(same != labels.astype(np.float64))):
        shown = ", ".join(str(one) for one in sorted(strange)[:5]) or "fractions"
        raise BadSample(f"labels that the model does not know: {shown}; it knows {', '.join(map(str, classes[:10]))}")
    return same


def score_of(outputs: Arrays, positive: int) -> tuple[Score | None, NDArray[np.float32] | None]:
    """Which output value is watched for drift, and its values [n] on the sample.

    Two classes: the probability of the positive one. More: the largest probability (`column` None). No probabilities:
    the decision score likewise. A regressor: its first value. None where there are labels only.
    """
    name = next((name for name in ("probabilities", "scores", "value") if name in outputs), None)
    if name is None:
        return None, None
    values = outputs[name].astype(np.float32)
    values = values.reshape(len(values), -1)
    if name == "value" or values.shape[1] == 1:
        return Score(output=name, column=0), values[:, 0]
    if values.shape[1] == 2:
        return Score(output=name, column=positive), values[:, positive]
    return Score(output=name, column=None), values.max(axis=1)


def reference_of(matrix: NDArray[np.float32], names: Sequence[str], score: NDArray[np.float32] | None) -> Reference:
    """The drift reference: bins and counts of every float feature [n, k] and of the score [n]."""
    watched = None if score is None else Profile.of(np.ascontiguousarray(score.reshape(-1, 1)), ["score"])
    return Reference(features=Profile.of(matrix, list(names)), score=watched)


def golden_rows(count: int) -> NDArray[np.int64]:
    """Which rows are kept as golden: at most `GOLDEN_ROWS`, evenly over the sample."""
    return np.linspace(0, count - 1, min(count, GOLDEN_ROWS)).astype(np.int64)


def golden(inputs: Arrays, outputs: Arrays, now: NDArray[np.float64] | None = None) -> bytes:
    """`golden.npz`: arrays `input/<name>` as a caller sends them and `output/<name>` as answered; text as unicode.

    `now`, milliseconds since 1970, one or for each row, is kept as `clock`.
    """
    arrays = {} if now is None else {"clock": now}
    arrays |= {f"input/{name}": _plain(array) for name, array in inputs.items()}
    arrays |= {f"output/{name}": _plain(array) for name, array in outputs.items()}
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, **arrays)
    return stream.getvalue()


def _plain(array: NDArray[Any]) -> NDArray[Any]:
    return array.astype(str) if array.dtype.kind in "OU" else array
