"""skl2onnx conversions that we mend while its releases do not.

- HistGradientBoosting decides `x <= threshold` in float64 and skl2onnx rounds the threshold to the nearest float32,
  which may let a neighbour pass. For float32 inputs the threshold becomes the largest float32 not above it; for
  float64 inputs it stays float64. (Besides, skl2onnx leaves numpy scalars in the node's lists, which onnx refuses.)
  Categorical splits have no ONNX form; skl2onnx would read them as thresholds, so they are refused.
- The other trees cast rows to float32 before they compare. In a float64 graph that cast has to be written out. And
  they learn where a missing value goes, which skl2onnx leaves out.
- SimpleImputer: ONNX's Imputer knows no float64; a `Where` on missing values says the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from skl2onnx._supported_operators import sklearn_operator_name_map
from skl2onnx.common._registration import get_converter
from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType
from skl2onnx.operator_converters.common import concatenate_variables
from sklearn import ensemble, tree
from sklearn.impute import SimpleImputer

Converter = Callable[[Any, Any, Any], None]
Attributes = dict[str, Any]

HISTOGRAM = (ensemble.HistGradientBoostingClassifier, ensemble.HistGradientBoostingRegressor)
SINGLE = (
    tree.DecisionTreeClassifier,
    tree.DecisionTreeRegressor,
    tree.ExtraTreeClassifier,
    tree.ExtraTreeRegressor,
    ensemble.RandomForestClassifier,
    ensemble.RandomForestRegressor,
    ensemble.ExtraTreesClassifier,
    ensemble.ExtraTreesRegressor,
    ensemble.GradientBoostingClassifier,
    ensemble.GradientBoostingRegressor,
)
DOUBLE_LISTS = ("nodes_values", "class_weights", "target_weights", "base_values")


def float_below(thresholds: NDArray[np.float64]) -> NDArray[np.float32]:
    """The largest float32 not above each float64 threshold: for float32 x, `x <= t` exactly where `x <= w`."""
    nearest = thresholds.astype(np.float32)
    return np.where(nearest > thresholds, np.nextafter(nearest, np.float32(-np.inf)), nearest).astype(np.float32)


def mended() -> dict[type, Converter]:
    """The conversions to hand to `skl2onnx.convert_sklearn(custom_conversion_functions=...)`."""
    table: dict[type, Converter] = {}
    for kind in (*HISTOGRAM, *SINGLE):
        original: Converter = get_converter(sklearn_operator_name_map[kind])
        table[kind] = _histogram(original) if kind in HISTOGRAM else _single(original)
    table[SimpleImputer] = _imputer(get_converter(sklearn_operator_name_map[SimpleImputer]))
    return table


def _imputer(original: Converter) -> Converter:
    """Filling of missing float64 values; everything else as skl2onnx does it."""

    def convert(scope: Any, operator: Any, container: Any) -> None:
        model = operator.raw_operator
        plain = isinstance(model.missing_values, float) and np.isnan(model.missing_values) and not model.add_indicator
        if not plain or not all(isinstance(one.type, DoubleTensorType) for one in operator.inputs):
            original(scope, operator, container)
            return
        rows = concatenate_variables(scope, operator.inputs, container)
        missing, fill = scope.get_unique_variable_name("missing"), scope.get_unique_variable_name("fill")
        values = np.asarray(model.statistics_, np.float64)
        container.add_initializer(fill, TensorProto.DOUBLE, [1, len(values)], values)
        container.add_node("IsNaN", [rows], [missing])
        container.add_node("Where", [missing, fill, rows], [operator.outputs[0].full_name])

    return convert


def _single(original: Converter) -> Converter:
    """A tree that reads float32, whatever comes before it, and sends missing values where the source does."""

    def convert(scope: Any, operator: Any, container: Any) -> None:
        first = operator.inputs[0]
        table = _TreeTable(container, _missing_left(operator.raw_operator))
        if not isinstance(first.type, DoubleTensorType):
            original(scope, operator, table)
            return
        cast = scope.declare_local_variable("single", FloatTensorType(first.type.shape))
        container.add_node("Cast", [first.full_name], [cast.full_name], to=TensorProto.FLOAT)
        original(scope, _Reading(operator, cast), table)

    return convert


def _missing_left(model: Any) -> Attributes:
    """Which nodes send a missing value to the left, which skl2onnx leaves out. Gradient boosting takes none."""
    trees = [model] if hasattr(model, "tree_") else list(np.ravel(model.estimators_))
    nodes = [one.tree_ for one in trees]
    left = np.concatenate([(node.missing_go_to_left != 0) & (node.children_left >= 0) for node in nodes])
    return {"nodes_missing_value_tracks_true": left.astype(int).tolist()}


def _histogram(original: Converter) -> Converter:
    """Histogram boosting with thresholds that decide as the source does."""

    def convert(scope: Any, operator: Any, container: Any) -> None:
        model = operator.raw_operator
        categorical = getattr(model, "is_categorical_", None)
        if categorical is not None and np.any(categorical):
            raise NotImplementedError("categorical features of HistGradientBoosting have no ONNX form")
        nodes = np.concatenate([tree.nodes for trees in model._predictors for tree in trees])  # noqa: SLF001
        thresholds = np.where(nodes["is_leaf"].astype(bool), 0.0, nodes["num_threshold"])
        double = isinstance(operator.inputs[0].type, DoubleTensorType)
        values = thresholds if double else float_below(thresholds)
        original(scope, operator, _TreeTable(container, {"nodes_values": values}, double=double))

    return convert


class _Reading:
    """An operator of skl2onnx that reads another variable than the one it was parsed with."""

    def __init__(self, operator: Any, variable: Any) -> None:
        self._operator = operator
        self.inputs = [variable]
        self.input_full_names = [variable.full_name]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._operator, name)


class _TreeTable:
    """A container of skl2onnx that mends the attributes of the tree node put into it."""

    def __init__(self, container: Any, mended: Attributes, *, double: bool = False) -> None:
        self._container = container
        self._mended = mended
        self._double = double

    def __getattr__(self, name: str) -> Any:
        return getattr(self._container, name)

    def add_node(self, op_type: str, *args: Any, **attributes: Any) -> None:
        if op_type.startswith("TreeEnsemble"):
            require_same_nodes(attributes, self._mended)
            attributes = {name: _plain(value) for name, value in (attributes | self._mended).items()}
            if self._double:
                attributes = _double(attributes)
        self._container.add_node(op_type, *args, **attributes)


def require_same_nodes(attributes: Attributes, mended: Attributes) -> None:
    """Refuse to mend a table of other trees than were counted, such as one tree of a forest on its own."""
    count = len(attributes["nodes_treeids"])
    if any(len(values) != count for values in mended.values()):
        raise NotImplementedError("this release of skl2onnx lays trees out in another way")


def _double(attributes: Attributes) -> Attributes:
    """The attributes of a tree node that compares and adds in float64 (ai.onnx.ml 3)."""
    tensors = {name: np.asarray(attributes.pop(name), np.float64) for name in DOUBLE_LISTS if name in attributes}
    attributes.pop("nodes_hitrates", None)
    made = {f"{name}_as_tensor": numpy_helper.from_array(array, name) for name, array in tensors.items()}
    return attributes | made | {"op_version": 3}


def _plain(value: Any) -> Any:
    """Lists of numpy integers and bools as lists of int; the rest as it is."""
    if isinstance(value, list) and value and isinstance(value[0], (int, np.integer, np.bool_)):
        return [int(one) for one in value]
    return value
