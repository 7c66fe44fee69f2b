"""Small operations on an ONNX graph: rename its ends, change their types, decide by a threshold, pin its versions.

skl2onnx rewrites input names (every character but letters, digits and _ becomes _), types outputs as it computes them
and knows no threshold. A version's contract is the caller's names, FP32 and INT64, and the labels that the source
model gives; these functions make the graph keep it. They change the model in place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE)
PLAIN_OPSET = 8  # for graphs that import only ai.onnx.ml: IR version 3, which they may have, goes with no later one


def rename(model: onnx.ModelProto, old: str, new: str) -> None:
    """Give the value `old` the name `new` wherever the main graph mentions it."""
    graph = model.graph
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]
    values: list[onnx.ValueInfoProto] = [*graph.input, *graph.output, *graph.value_info]
    for value in values:
        if value.name == old:
            value.name = new


def free_name(model: onnx.ModelProto, wish: str) -> str:
    """`wish`, or `wish` with a number behind it, that no value of the graph has."""
    graph = model.graph
    taken = {name for node in graph.node for name in (*node.input, *node.output)}
    taken |= {value.name for value in (*graph.input, *graph.output)} | {tensor.name for tensor in graph.initializer}
    return next(name for i in range(len(taken) + 1) if (name := f"{wish}_{i}" if i else wish) not in taken)


def unwrap_maps(model: onnx.ModelProto) -> bool:
    """Give what a ZipMap makes maps of, one a row from class to probability, as the tensor it was: FP32 [n, classes].

    Converters end classifiers so unless they are told not to, and CatBoost always does. The output keeps its name; its
    columns are the classes in the order of the model. Returns whether there was any.
    """
    graph = model.graph
    makers = {name: node for node in graph.node if node.op_type == "ZipMap" for name in node.output}
    maps = [(value, makers[value.name]) for value in graph.output if value.name in makers]
    for value, node in maps:
        classes = sum(len(labels.ints) + len(labels.strings) for labels in node.attribute)
        value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.FLOAT, [None, classes]))
        node.op_type, node.domain = "Identity", ""  # renaming would miss what inner graphs read
        del node.attribute[:]
    if maps and not any(entry.domain in {"", "ai.onnx"} for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid("", PLAIN_OPSET))
    return bool(maps)


def name_inputs(model: onnx.ModelProto, names: Sequence[str]) -> None:
    """Call the graph's inputs `names`, in order. Two steps, so that swapped names do not meet."""
    olds = [value.name for value in model.graph.input]
    for old in olds:
        rename(model, old, free_name(model, f"__input_{olds.index(old)}"))
    for value, new in zip(list(model.graph.input), names, strict=True):
        if free_name(model, new) != new:
            rename(model, new, free_name(model, f"{new}__inner"))
        rename(model, value.name, new)


def retype_input(model: onnx.ModelProto, value: onnx.ValueInfoProto, element: int) -> None:
    """Take the input `value` as `element` (FLOAT, INT64) and cast it to the type that the graph computes in."""
    inner_type = value.type.tensor_type.elem_type
    if inner_type == element:
        return
    outer, inner = value.name, free_name(model, f"{value.name}__cast")
    rename(model, outer, inner)
    value.name = outer
    value.type.tensor_type.elem_type = element
    model.graph.node.insert(0, helper.make_node("Cast", [outer], [inner], to=inner_type))


def join_inputs(
    model: onnx.ModelProto, matrix: str, columns: Sequence[str], vocabularies: Mapping[str, Sequence[str]]
) -> None:
    """Take one input, `matrix` FP32 [n, k], in place of those named `columns`, each FP32 or text [n, 1].

    Of a text the matrix has the place of its word in `vocabularies`; any other number, and NaN, is the empty text.
    """
    graph = model.graph
    taken = {value.name: value for value in graph.input}
    nodes, parts = [], []
    for name in columns:
        part = free_name(model, f"{name}__column")
        if name in taken:  # the others are read by nobody
            rename(model, name, part)
            graph.input.remove(taken[name])
        if name in taken and name in vocabularies:
            words = [word.encode() for word in vocabularies[name]]
            places = [float(place) for place in range(len(words))]
            number = free_name(model, f"{name}__number")
            nodes.append(
                helper.make_node(
                    "LabelEncoder",
                    [number],
                    [part],
                    domain="ai.onnx.ml",
                    keys_floats=places,
                    values_strings=words,
                    default_string="",
                )
            )
            part = number
        parts.append(part)
    if free_name(model, matrix) != matrix:
        rename(model, matrix, free_name(model, f"{matrix}__inner"))
    sizes = free_name(model, f"{matrix}__sizes")
    graph.initializer.append(numpy_helper.from_array(np.ones(len(columns), np.int64), sizes))
    for node in reversed([helper.make_node("Split", [matrix, sizes], parts, axis=1), *nodes]):
        graph.node.insert(0, node)
    graph.input.append(helper.make_tensor_value_info(matrix, TensorProto.FLOAT, [None, len(columns)]))
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 2))  # LabelEncoder of floats; `pin` takes the newest


def single_output(model: onnx.ModelProto, value: onnx.ValueInfoProto) -> None:
    """Give a float output as FP32, whatever the node that makes it really answers in."""
    if value.type.tensor_type.elem_type not in FLOATS:
        return
    outer, inner = value.name, free_name(model, f"{value.name}__cast")
    rename(model, outer, inner)
    value.name = outer
    value.type.tensor_type.elem_type = TensorProto.FLOAT
    model.graph.node.append(helper.make_node("Cast", [inner], [outer], to=TensorProto.FLOAT))


def keep_column(model: onnx.ModelProto, output: str, column: int) -> None:
    """Reduce an output [n, m] to its column `column`, [n, 1]; -1 is the last one."""
    value = next(value for value in model.graph.output if value.name == output)
    inner, index = free_name(model, f"{output}__all"), free_name(model, f"{output}__column")
    rename(model, output, inner)
    value.name = output
    value.type.tensor_type.shape.dim[1].dim_value = 1
    model.graph.initializer.append(numpy_helper.from_array(np.asarray([column], np.int64), index))
    model.graph.node.append(helper.make_node("Gather", [inner, index], [output], axis=1))


def drop_unused_inputs(model: onnx.ModelProto) -> None:
    """Remove inputs that no node reads; a caller would have to send them for nothing."""
    used = {name for node in model.graph.node for name in node.input}
    for value in [value for value in model.graph.input if value.name not in used]:
        model.graph.input.remove(value)


def decide_by_threshold(
    model: onnx.ModelProto,
    label: str,
    probabilities: str,
    classes: NDArray[np.generic],
    positive: int,
    threshold: float,
) -> None:
    """Make `label` the class at `positive` where its probability reaches `threshold`, else the other one.

    Args:
        model: a graph with outputs `label` [n] and `probabilities` FP32 [n, 2].
        label: name of the output that is decided anew.
        probabilities: name of the output it is decided by.
        classes: the two labels, int64 or text.
        positive: index of the positive class.
        threshold: compared in float32.
    """
    before = free_name(model, f"{label}__undecided")
    outputs = [value for value in model.graph.output if value.name == label]
    rename(model, label, before)
    outputs[0].name = label
    column, reached, index = (free_name(model, f"{label}__{part}") for part in ("column", "reached", "index"))
    constants: dict[str, NDArray[Any]] = {
        "positive": np.asarray(positive, np.int64),
        "negative": np.asarray(1 - positive, np.int64),
        "threshold": np.asarray(threshold, np.float32),
    }
    names = {key: free_name(model, f"{label}__{key}") for key in (*constants, "classes")}
    table: NDArray[Any] = classes.astype(object) if classes.dtype.kind in "UO" else classes
    model.graph.initializer.extend(numpy_helper.from_array(array, names[key]) for key, array in constants.items())
    model.graph.initializer.append(numpy_helper.from_array(table, names["classes"]))
    model.graph.node.extend(
        [
            helper.make_node("Gather", [probabilities, names["positive"]], [column], axis=1),
            helper.make_node("GreaterOrEqual", [column, names["threshold"]], [reached]),
            helper.make_node("Where", [reached, names["positive"], names["negative"]], [index]),
            helper.make_node("Gather", [names["classes"], index], [label], axis=0),
        ]
    )


def pin(model: onnx.ModelProto, opset: dict[str, int], ir_version: int) -> None:
    """One opset a domain (skl2onnx may list one twice), none newer than `opset`, and the IR version.

    Raises:
        ValueError: the graph needs a newer opset than the pinned one.
    """
    found: dict[str, int] = {}
    for entry in model.opset_import:
        found[entry.domain] = max(entry.version, found.get(entry.domain, 0))
    found[""] = max(found.get("", 0), 13)  # what this module adds is written for 13 and later
    for domain, version in found.items():
        if version > opset.get(domain, version):
            raise ValueError(f"the graph needs opset {version} of {domain or 'ai.onnx'}, newer than {opset[domain]}")
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in sorted(found.items()))
    model.ir_version = ir_version
