"""An ONNX graph cut at its one ensemble: what comes before it, the ensemble, and what comes after. At load only.

Before and after are graphs of their own, which ONNX Runtime runs. Most models have neither, since what does nothing to
numbers (Identity, a Cast to the same type, or to double and back, a product with one) is seen through, and what is done
in float32 to each feature on its own becomes part of the forest, which rounds as often: an Imputer, a Scaler, and sums,
differences, products and quotients with constants.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from penstock.server.ensembles import OPERATORS, Ensemble, Unfit, read

if TYPE_CHECKING:
    import onnx

Floats = NDArray[np.float32]
Step = tuple[str, Any, float]
"""Name, values and number as `Forest` takes them; one value stands for all features."""
MOST_STEPS = 8
FLOAT, INT64, STRING, DOUBLE = 1, 7, 8, 11  # onnx.TensorProto
STANDARD = ("", "ai.onnx")
KEEPS_TYPE = ("Identity", "Add", "Div", "Imputer", "Mul", "Scaler", "Sub")
"""Of float32 also the width. Behind an ensemble, and in ai.onnx.ml, onnx infers nothing."""
COMMUTE = ("Add", "Mul")
ALONE = ("penstock.label", "penstock.score")
"""Outputs of the ensemble alone."""


@dataclass(frozen=True)
class Graft:
    """A model in parts.

    Attributes:
        inputs: of the model.
        ensemble: the ensemble, with the steps in front that its forest takes over.
        n_features: columns of its input.
        input: the input of the model, or the output of `before`, that is its rows.
        before: what makes the rows, as ONNX; None where the rows are the model's input.
        alone: the ensemble with its steps as a model of its own, for the referee: input `input`, outputs ALONE, of
            which a regression has the second only.
        score: outputs of the model that are the scores as they are.
        label: outputs of the model that are the labels as they are.
        after: what makes the other outputs, as ONNX; it reads `after_inputs`.
        after_inputs: name of an input of `after` to "label", "score" or an input of the model.
        after_outputs: the outputs of the model that it makes.
    """

    inputs: tuple[str, ...]
    ensemble: Ensemble
    n_features: int
    input: str
    before: bytes | None
    alone: bytes
    score: tuple[str, ...]
    label: tuple[str, ...]
    after: bytes | None
    after_inputs: dict[str, str]
    after_outputs: tuple[str, ...]

    @property
    def outputs(self) -> tuple[str, ...]:
        """All outputs of the model."""
        return self.score + self.label + self.after_outputs


def cut(model_bytes: bytes) -> Graft:
    """Cut a model at its ensemble.

    Raises:
        Unfit: there is no ensemble that a forest can serve, and why.
    """
    import onnx

    model = onnx.load_model_from_string(model_bytes)
    return _Cut(model).graft()


class _Cut:
    def __init__(self, model: onnx.ModelProto) -> None:
        self._model, self._graph = model, model.graph
        trees = [node for node in self._graph.node if node.op_type in OPERATORS and node.domain == "ai.onnx.ml"]
        if len(trees) != 1:
            raise Unfit("no ensemble of trees in the graph" if not trees else f"{len(trees)} ensembles in one graph")
        self._tree = trees[0]
        if any(attribute.type in (5, 10) for node in self._graph.node for attribute in node.attribute):
            raise Unfit("the graph has branches or loops")
        self._maker = {name: node for node in self._graph.node for name in node.output if name}
        self._constants = {tensor.name: tensor for tensor in self._graph.initializer}
        self._inputs = {value.name: value for value in self._graph.input if value.name not in self._constants}
        for name, value in self._inputs.items():
            shape = value.type.tensor_type.shape
            if shape.dim and shape.dim[0].HasField("dim_value"):
                raise Unfit(f"the input {name!r} takes {shape.dim[0].dim_value} rows, no more and no fewer")

    def graft(self) -> Graft:
        ensemble = read(self._tree)
        rows, steps = self._rows(self._tree.input[0])
        kind, n_features = self._type_of(rows)
        if kind != FLOAT:
            raise Unfit("the ensemble reads another type than float32")
        if not n_features:
            raise Unfit("the graph does not tell how many features the ensemble reads")
        ensemble.arrays["steps"] = [
            (name, np.resize(np.asarray(values, np.float32), n_features), replaced) for name, values, replaced in steps
        ]
        label, score = self._ends(ensemble)
        outputs = [value.name for value in self._graph.output]
        origins = {name: self._see_through(name) for name in outputs}
        left = tuple(name for name in outputs if origins[name] not in (label, score))
        after, after_inputs = self._after(
            left, {label: "label", score: "score"} if label else {score: "score"}, ensemble
        )
        return Graft(
            inputs=tuple(self._inputs),
            ensemble=ensemble,
            n_features=n_features,
            input=rows,
            before=None if rows in self._inputs else self._model_of([rows], list(self._inputs.values())),
            alone=self._alone(rows, ensemble, n_features),
            score=tuple(name for name in outputs if origins[name] == score),
            label=tuple(name for name in outputs if label and origins[name] == label),
            after=after,
            after_inputs=after_inputs,
            after_outputs=left,
        )

    def _ends(self, ensemble: Ensemble) -> tuple[str, str]:
        """The names of the ensemble's label and scores; a graph may leave either without one."""
        names = [*self._tree.output, "", ""]
        return (names[0] or "~label", names[1] or "~score") if ensemble.classifies else ("", names[0])

    def _rows(self, name: str) -> tuple[str, list[Step]]:
        """Where the ensemble's rows come from, past what the forest can do itself; and that, first things first."""
        steps: list[Step] = []
        for _ in self._graph.node:
            name = self._see_through(name)
            node = self._maker.get(name)
            if node is None:
                break
            taken = self._steps(node)
            if not taken or len(taken) + len(steps) > MOST_STEPS:
                break
            source = self._data(node)
            kind, width = self._type_of(source)
            if kind != FLOAT or any(np.size(values) not in (1, width) for _, values, _ in taken):
                break  # ONNX Runtime computes it in the input's type, or makes more columns of one
            steps, name = taken + steps, source
        return name, steps

    def _steps(self, node: onnx.NodeProto) -> list[Step]:
        """What a node does to each feature on its own; nothing where it does something else."""
        from onnx import helper

        given = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
        if node.op_type == "Scaler" and node.domain == "ai.onnx.ml":
            return [("Sub", given.get("offset", (0.0,)), 0.0), ("Mul", given.get("scale", (1.0,)), 0.0)]
        if node.op_type == "Imputer" and node.domain == "ai.onnx.ml":
            known = "imputed_value_floats" in given and "replaced_value_float" in given
            return [("Imputer", given["imputed_value_floats"], given["replaced_value_float"])] if known else []
        if node.op_type not in ("Add", "Div", "Mul", "Sub") or node.domain or given:
            return []
        values = self._constant(node.input[1 if self._data(node) == node.input[0] else 0])
        return [] if values is None else [(node.op_type, values.ravel(), 0.0)]

    def _data(self, node: onnx.NodeProto) -> str:
        """The input of a node that is no constant: the first, or the second where either may stand first."""
        swapped = node.op_type in COMMUTE and self._constant(node.input[0]) is not None
        name: str = node.input[1 if swapped else 0]
        return name

    def _constant(self, name: str) -> Floats | None:
        """A float32 constant of one row, [], [n] or [1, n]."""
        from onnx import numpy_helper

        node = self._maker.get(name)
        tensor = self._constants.get(name)
        if node is not None and (node.op_type, node.attribute and node.attribute[0].name) == ("Constant", "value"):
            tensor = node.attribute[0].t if node.domain in STANDARD else None
        if tensor is None or tensor.data_type != FLOAT or list(tensor.dims[:-1]) not in ([], [1]):
            return None
        return np.array(numpy_helper.to_array(tensor), np.float32)

    def _see_through(self, name: str) -> str:
        """The value that `name` is, past nodes that change nothing."""
        for _ in self._graph.node:  # a circle, which ONNX Runtime refuses, ends here too
            node = self._maker.get(name)
            if node is None or not self._changes_nothing(node):
                break
            name = node.input[0]
            if node.op_type == "Cast" and self._type_of(name)[0] == DOUBLE:
                name = self._maker[name].input[0]
        return name

    def _changes_nothing(self, node: onnx.NodeProto) -> bool:
        if node.domain not in STANDARD:  # a function of the model's own may have any name
            return False
        if node.op_type == "Identity":
            return True
        if node.op_type == "Cast":
            inner = self._maker.get(node.input[0])
            if inner is not None and inner.op_type == "Cast" and _cast_to(inner) == DOUBLE:
                return _cast_to(node) == FLOAT == self._type_of(inner.input[0])[0]  # there and back is exact
            return _cast_to(node) == self._type_of(node.input[0])[0]
        ones = self._constant(node.input[1]) if node.op_type == "Mul" else None
        return ones is not None and ones.tolist() in (1, [1]) and self._type_of(node.input[0])[0] == FLOAT

    def _type_of(self, name: str) -> tuple[int, int]:
        """The element type of a value and the size of its second dimension; 0 for what is not known."""
        if name in self._tree.output:
            is_label = len(self._tree.output) == 2 and name == self._tree.output[0]
            texts = any(entry.name == "classlabels_strings" and entry.strings for entry in self._tree.attribute)
            return (STRING if texts else INT64) if is_label else FLOAT, 0
        if (value := self._inputs.get(name)) is not None:
            return _type(value)
        for value in self._inferred():
            if value.name == name:
                return _type(value)
        node = self._maker.get(name)
        if node is not None and node.op_type in KEEPS_TYPE:
            kind, width = self._type_of(self._data(node))
            return (kind, width) if node.op_type != "Scaler" or kind == FLOAT else (FLOAT, width)
        return 0, 0

    def _inferred(self) -> Iterable[onnx.ValueInfoProto]:
        from onnx import shape_inference

        if not hasattr(self, "_known"):
            self._known = list(shape_inference.infer_shapes(self._model).graph.value_info)
        return self._known

    def _after(
        self, outputs: tuple[str, ...], ends: dict[str, str], ensemble: Ensemble
    ) -> tuple[bytes | None, dict[str, str]]:
        """The model of what is still to be made, and where each of its inputs comes from."""
        from onnx import helper

        if not outputs:
            return None, {}
        infos = {
            "score": lambda name: helper.make_tensor_value_info(name, FLOAT, [None, None]),
            "label": lambda name: helper.make_tensor_value_info(name, STRING if ensemble.texts else INT64, [None]),
        }
        given = [infos[what](name) for name, what in ends.items()]
        made = self._model_of(list(outputs), [*given, *self._inputs.values()])
        import onnx

        used = [value.name for value in onnx.load_model_from_string(made).graph.input]
        return made, {name: ends.get(name, name) for name in used}

    def _model_of(self, outputs: list[str], inputs: list[onnx.ValueInfoProto]) -> bytes:
        """A model of the nodes between inputs and outputs; inputs that nothing reads are left out."""
        import onnx
        from onnx import helper

        known = {value.name for value in inputs}
        needed, waiting, reads = set(), list(outputs), set()
        while waiting:
            name = waiting.pop()
            reads.add(name)
            node = self._maker.get(name)
            if name in known or node is None or id(node) in needed:
                continue
            needed.add(id(node))
            waiting.extend(node.input)
        typed = {value.name: value for value in (*self._graph.output, *self._inferred())}
        ends = [typed.get(name) or helper.make_empty_tensor_value_info(name) for name in outputs]
        given = self._model
        made = onnx.ModelProto(ir_version=given.ir_version, opset_import=given.opset_import, functions=given.functions)
        made.graph.name = given.graph.name
        made.graph.node.extend(node for node in self._graph.node if id(node) in needed)
        made.graph.input.extend(value for value in inputs if value.name in reads)
        made.graph.output.extend(ends)
        made.graph.initializer.extend(tensor for tensor in self._graph.initializer if tensor.name in reads)
        serialized: bytes = made.SerializeToString()
        return serialized

    def _alone(self, rows: str, ensemble: Ensemble, n_features: int) -> bytes:
        """The scaler, if there is one, and the ensemble, whose outputs are called as in ALONE."""
        import onnx
        from onnx import helper

        given = helper.make_tensor_value_info(rows, FLOAT, [None, n_features])
        names = [name for name in self._tree.output if name]
        model = onnx.load_model_from_string(self._model_of(names, [given]))
        del model.graph.output[:]
        tree = next(node for node in model.graph.node if node.op_type in OPERATORS)
        if ensemble.classifies:
            tree.output[:] = ALONE
            kind = STRING if ensemble.texts else INT64
            model.graph.output.append(helper.make_tensor_value_info(ALONE[0], kind, [None]))
        else:
            tree.output[:] = ALONE[1:]
        model.graph.output.append(helper.make_tensor_value_info(ALONE[1], FLOAT, [None, None]))
        serialized: bytes = model.SerializeToString()
        return serialized


def _cast_to(node: onnx.NodeProto) -> int:
    """The element type that a Cast makes; 0 where it does not say."""
    return next((entry.i for entry in node.attribute if entry.name == "to"), 0)


def _type(value: onnx.ValueInfoProto) -> tuple[int, int]:
    tensor = value.type.tensor_type
    sizes = [dimension.dim_value for dimension in tensor.shape.dim]
    return tensor.elem_type, sizes[1] if len(sizes) == 2 else 0
