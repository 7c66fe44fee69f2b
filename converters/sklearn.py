"""scikit-learn estimators and pipelines to ONNX bytes that keep the contract of `inputs.py`.

A conversion is tried in up to two arithmetics, and the parity gate takes the first that answers as the source does:

- `float32`: what skl2onnx does by itself. Scalers multiply by 1/scale where scikit-learn divides, in float32, so a
  value next to a tree's threshold may fall on the other side.
- `float64`: rows are cast on entry and everything is computed in float64, as scikit-learn does. (The scaler option
  `div_cast` of skl2onnx 1.20 is no way out: it rounds the mean to float32 first.)

Thresholds of TunedThresholdClassifierCV and FixedThresholdClassifier, which skl2onnx drops without a word, are
written into the graph. ZipMap is off; opset and IR are pinned (`OPSET`, `IR_VERSION`) to what every onnxruntime
since 1.24 runs.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto
from sklearn.base import is_classifier, is_regressor
from sklearn.model_selection import FixedThresholdClassifier, TunedThresholdClassifierCV
from sklearn.pipeline import Pipeline
from sklearn.svm import SVC, NuSVC

from penstock.converters import graph
from penstock.converters.errors import UnsupportedModel
from penstock.converters.inputs import MATRIX_INPUT, Inputs, as_frame, inputs_of

Arithmetic = Literal["float32", "float64"]
ARITHMETICS: tuple[Arithmetic, ...] = ("float32", "float64")  # those worth trying, the cheap one first

OPSET = {"": 21, "ai.onnx.ml": 3}
IR_VERSION = 10
ELEMENTS = {"FP32": TensorProto.FLOAT, "INT64": TensorProto.INT64, "BYTES": TensorProto.STRING}
OUTPUTS = {"classifier": ("label", "probabilities"), "scorer": ("label", "scores"), "regressor": ("value",)}


@dataclass(frozen=True)
class Rule:
    """A decision threshold: class `positive` where its probability is at least `threshold`."""

    threshold: float
    positive: int


def to_onnx(estimator: Any, rows: Any, *, arithmetic: Arithmetic = "float32") -> bytes:
    """The ONNX form of a fitted estimator.

    Args:
        estimator: a fitted scikit-learn classifier or regressor, or a pipeline that ends in one.
        rows: a frame, Arrow table or [n, k] array like those it was fitted on; only names and types are read.
        arithmetic: see the head of this module.

    Returns:
        The serialized model. Outputs of a classifier are `label` [n] (INT64 or text) and `probabilities` [n, classes]
        (or `scores`, its decision function, where it has no probabilities); of a regressor `value` [n, targets].

    Raises:
        UnsupportedModel: a part has no ONNX form; the message names it.
        BadSample: the rows do not fit the estimator.
    """
    return convert_estimator(estimator, inputs_of(estimator, as_frame(rows)), arithmetic)


def convert_estimator(estimator: Any, inputs: Inputs, arithmetic: Arithmetic = "float32") -> bytes:
    """As `to_onnx`, for inputs decided before."""
    require_supported(estimator)
    inner, rule = split_rule(estimator)
    model = _skl2onnx(inner, inputs, arithmetic)
    _shape_inputs(model, inputs)
    _name_outputs(model, inner)
    if output_names(inner) == OUTPUTS["scorer"] and len(label_classes(inner)) == 2:
        _single_score(model, inner)
    for value in model.graph.output:
        graph.single_output(model, value)
    if rule is not None:
        classes = label_classes(inner)
        graph.decide_by_threshold(model, "label", "probabilities", classes, rule.positive, rule.threshold)
    try:
        graph.pin(model, OPSET, IR_VERSION)
        onnx.checker.check_model(model)
    except (ValueError, onnx.checker.ValidationError) as error:
        raise UnsupportedModel(f"{type(estimator).__name__} gives no valid graph: {_first_line(error)}") from error
    serialized: bytes = model.SerializeToString(deterministic=True)
    return serialized


def output_names(estimator: Any) -> tuple[str, ...]:
    """Names of the outputs that a converted estimator has."""
    if is_regressor(estimator):
        return OUTPUTS["regressor"]
    return OUTPUTS["classifier" if hasattr(estimator, "predict_proba") else "scorer"]


def label_classes(estimator: Any) -> NDArray[Any]:
    """The classes as the graph answers them: int64 or text."""
    classes = np.asarray(estimator.classes_)
    return classes.astype(str) if classes.dtype.kind in "OU" else classes.astype(np.int64)


def require_supported(estimator: Any) -> None:
    """Refuse early what would only fail later, and less clearly."""
    if not is_classifier(estimator) and not is_regressor(estimator):
        raise UnsupportedModel(f"{type(estimator).__name__} is neither a classifier nor a regressor")
    if is_regressor(estimator):
        return
    classes = getattr(estimator, "classes_", None)
    if classes is None:
        raise UnsupportedModel(f"{type(estimator).__name__} is not fitted: it has no classes_")
    if isinstance(classes, list):
        raise UnsupportedModel("classifiers with several outputs are not supported: publish one model for each")
    if classes.dtype.kind == "f" and not np.all(classes == np.round(classes)):
        raise UnsupportedModel("classes are fractions, which ONNX would cut to integers: fit on integers or text")
    if classes.dtype.kind not in "biufOU":
        raise UnsupportedModel(f"classes of type {classes.dtype} have no ONNX form: fit on integers or text")


def split_rule(estimator: Any) -> tuple[Any, Rule | None]:
    """The estimator without its decision threshold, and the threshold.

    Raises:
        UnsupportedModel: the threshold applies to a decision function instead of a probability.
    """
    if hasattr(estimator, "best_estimator_"):
        return split_rule(estimator.best_estimator_)
    if isinstance(estimator, Pipeline):
        inner, rule = split_rule(estimator.steps[-1][1])
        return Pipeline([*estimator.steps[:-1], (estimator.steps[-1][0], inner)]) if rule else estimator, rule
    if not isinstance(estimator, TunedThresholdClassifierCV | FixedThresholdClassifier):
        return estimator, None
    inner = getattr(estimator, "estimator_", estimator.estimator)
    if estimator.response_method == "decision_function" or not hasattr(inner, "predict_proba"):
        raise UnsupportedModel("a threshold on decision_function is not supported: use response_method='predict_proba'")
    return inner, Rule(_threshold(estimator), _positive(estimator))


def _threshold(estimator: Any) -> float:
    if isinstance(estimator, TunedThresholdClassifierCV):
        return float(estimator.best_threshold_)
    return 0.5 if estimator.threshold == "auto" else float(estimator.threshold)


def _positive(estimator: Any) -> int:
    """Index of the positive class, by scikit-learn's rule: pos_label, else the larger of the two."""
    if isinstance(estimator, TunedThresholdClassifierCV):
        label = estimator._curve_scorer._get_pos_label()  # noqa: SLF001  # has no public name
    else:
        label = estimator.pos_label
    return 1 if label is None else int(np.flatnonzero(np.asarray(estimator.classes_) == label)[0])


def _skl2onnx(estimator: Any, inputs: Inputs, arithmetic: Arithmetic) -> onnx.ModelProto:
    """Convert by skl2onnx; what it cannot do becomes one clear line."""
    import skl2onnx

    from penstock.converters.operators import mended

    zipmap = {id(estimator): {"zipmap": False}} if is_classifier(estimator) else {}
    arguments = {
        "name": type(estimator).__name__,
        "initial_types": _types(inputs, arithmetic),
        "target_opset": OPSET,
        "custom_conversion_functions": mended(),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about scikit-learn attributes that skl2onnx reads
        try:
            try:
                model = skl2onnx.convert_sklearn(estimator, options=zipmap, **arguments)
            except NameError:
                # The option is unknown to classifiers that never make a ZipMap, and a pipeline forces it upon them
                # unless they have an entry of their own.
                model = skl2onnx.convert_sklearn(estimator, options={id(_last(estimator)): {}}, **arguments)
        except Exception as error:  # skl2onnx raises many kinds
            raise UnsupportedModel(f"{type(estimator).__name__} cannot be converted: {_first_line(error)}") from error
    assert isinstance(model, onnx.ModelProto)
    return model


_LONGEST = 300


def _first_line(error: Exception) -> str:
    """What an error of skl2onnx says before its page of advice."""
    text = " ".join(str(error).split())
    said = text.split(" It usually means")[0].split(" You may raise an issue")[0]
    return said if len(said) <= _LONGEST else said[:_LONGEST].rsplit(" ", 1)[0] + " ..."


def _types(inputs: Inputs, arithmetic: Arithmetic) -> list[tuple[str, Any]]:
    """The input types that skl2onnx is told: in float64 arithmetic every number is a double."""
    from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType, Int64TensorType, StringTensorType

    number = DoubleTensorType if arithmetic == "float64" else FloatTensorType
    if inputs.kind == "matrix":
        return [(MATRIX_INPUT, number([None, len(inputs.columns)]))]
    integer = DoubleTensorType if arithmetic == "float64" else Int64TensorType
    kinds = {"FP32": number, "INT64": integer, "BYTES": StringTensorType}
    return [(name, kinds[kind]([None, 1])) for name, kind in zip(inputs.columns, inputs.datatypes, strict=True)]


def _shape_inputs(model: onnx.ModelProto, inputs: Inputs) -> None:
    """Give the graph's inputs the caller's names and types. skl2onnx keeps their order and drops none."""
    matrix = inputs.kind == "matrix"
    names, datatypes = ((MATRIX_INPUT,), ("FP32",)) if matrix else (inputs.columns, inputs.datatypes)
    graph.name_inputs(model, names)
    graph.drop_unused_inputs(model)
    kinds = dict(zip(names, datatypes, strict=True))
    for value in list(model.graph.input):
        graph.retype_input(model, value, ELEMENTS[kinds[value.name]])
    if inputs.kind == "joined":
        vocabularies = {name: category.vocabulary for name, category in inputs.categories.items()}
        graph.join_inputs(model, MATRIX_INPUT, inputs.columns, vocabularies)


def _name_outputs(model: onnx.ModelProto, estimator: Any) -> None:
    names = output_names(estimator)
    for value, name in zip(list(model.graph.output), names, strict=True):
        if value.name != name:
            graph.rename(model, name, graph.free_name(model, f"{name}__inner"))
            graph.rename(model, value.name, name)


def _single_score(model: onnx.ModelProto, estimator: Any) -> None:
    """Answer the decision function s as [n, 1]: skl2onnx answers (s, -s) for SVC, (-s, s) or s for others."""
    graph.keep_column(model, "scores", 0 if isinstance(_last(estimator), SVC | NuSVC) else -1)


def _last(estimator: Any) -> Any:
    """The estimator that answers: the last step of a pipeline, the best of a search."""
    if hasattr(estimator, "best_estimator_"):
        return _last(estimator.best_estimator_)
    return _last(estimator.steps[-1][1]) if isinstance(estimator, Pipeline) else estimator
