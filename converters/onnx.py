"""What an ONNX file says about itself, whether the server can run it, and publishing one as it is.

The signature is read from the graph through onnxruntime, which is what will run it. A version is `batched` when the
first dimension of every input and output is free. Probabilities that a ZipMap made maps of are published as the tensor
they were. Refused, with a hint: data kept in other files (a registry's version must be whole), other outputs that are
no tensors, and an IR or opset newer than the installed onnxruntime takes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper

from penstock.converters.errors import ConvertError, UnsupportedModel
from penstock.converters.graph import unwrap_maps
from penstock.converters.parity import open_graph
from penstock.registry import Draft, Manifest, Registry, Signature, TensorSpec

DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(bfloat16)": "BF16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}


def publish_onnx(
    path: Path | str,
    name: str,
    registry: Registry | Path | str,
    *,
    created_by: str = "",
    files: Mapping[str, bytes] | None = None,
) -> Manifest:
    """Publish an ONNX file under `name`; nothing is compared, since there is no source model.

    Args:
        path: the file.
        name: of the model.
        registry: where to.
        created_by: for the manifest.
        files: more files of the version, such as `transforms.json`.

    Raises:
        UnsupportedModel: the server could not run it; the message says what to change.
        ConvertError: the file cannot be read.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConvertError(f"cannot read {path}: {error.strerror}") from error
    model = read(data, str(path))
    if unwrap_maps(model):
        data = model.SerializeToString()
    check(model, str(path))
    draft = Draft(
        model_name=name,
        trained_at=datetime.fromtimestamp(path.stat().st_mtime, UTC),
        created_by=created_by,
        framework=f"onnx ({model.producer_name} {model.producer_version})".replace(" )", ")").replace(" ()", ""),
        opset=opset_of(model),
        ir_version=model.ir_version,
        signature=signature_of(data),
        lineage={"source": path.name, "onnxruntime": onnxruntime.__version__},
    )
    store = registry if isinstance(registry, Registry) else Registry(registry)
    return store.publish(draft, {"model.onnx": data, **(files or {})})


def parse(data: bytes, where: str) -> onnx.ModelProto:
    """The model in `data`, checked for what would stop a server; raises `UnsupportedModel` (see `read` and `check`)."""
    model = read(data, where)
    check(model, where)
    return model


def read(data: bytes, where: str) -> onnx.ModelProto:
    """The model in `data`; raises `UnsupportedModel` where that is no ONNX."""
    try:
        model = onnx.load_model_from_string(data)
    except DecodeError as error:
        raise UnsupportedModel(f"{where} is no ONNX model: {error}") from error
    if not model.graph.output:
        raise UnsupportedModel(f"{where} is no ONNX model: it has no outputs")
    return model


def check(model: onnx.ModelProto, where: str) -> None:
    """Raise `UnsupportedModel` where a server could not run it: data in other files, outputs no tensors, too new."""
    if any(tensor.data_location == TensorProto.EXTERNAL for tensor in _tensors(model.graph)):
        raise UnsupportedModel(
            f"{where} keeps weights in other files: save it as one file (onnx.save, save_as_external_data=False)"
        )
    if model.ir_version > newest_ir():
        raise UnsupportedModel(
            f"{where} has IR version {model.ir_version}, and onnxruntime {onnxruntime.__version__} takes {newest_ir()} "
            "at most: set model.ir_version lower before saving, or export for an older opset"
        )
    for value in model.graph.output:
        if not value.type.HasField("tensor_type"):
            raise UnsupportedModel(
                f"output {value.name!r} of {where} is no tensor but a sequence or map: convert again without it"
            )


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every stored tensor: initializers, attributes and those of inner graphs."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _tensors(inner)


def opset_of(model: onnx.ModelProto) -> dict[str, int]:
    """Opset versions by domain; the default domain is called ai.onnx here, as its name is empty."""
    return {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}


def signature_of(data: bytes, **more: Any) -> Signature:
    """The signature of a model as onnxruntime sees it.

    Args:
        data: the serialized model.
        more: fields of `Signature` that a graph does not know: `columns`, `entity`, `entity_keys`.

    Raises:
        UnsupportedModel: onnxruntime refuses the model, or a tensor has a type that has no place in the protocol.
    """
    session = open_graph(data)
    inputs, outputs = ([_spec(one) for one in ends] for ends in (session.get_inputs(), session.get_outputs()))
    batched = all(spec.shape and spec.shape[0] == -1 for spec in (*inputs, *outputs))
    return Signature(inputs=tuple(inputs), outputs=tuple(outputs), batched=batched, **more)


def _spec(end: onnxruntime.NodeArg) -> TensorSpec:
    if end.type not in DATATYPES:
        raise UnsupportedModel(f"{end.name!r} has type {end.type}, which cannot be sent: use plain tensors")
    shape = tuple(size if isinstance(size, int) and size >= 0 else -1 for size in end.shape)
    return TensorSpec(name=end.name, datatype=DATATYPES[end.type], shape=shape)


@cache
def newest_ir() -> int:
    """The newest IR version that the installed onnxruntime takes, found by trying (there is no call that tells)."""
    newest = 0
    for version in range(8, 64):
        if not _runs(version, 15):
            break
        newest = version
    return newest


def _runs(ir_version: int, opset: int, ml: int = 1) -> bool:
    """Whether onnxruntime loads a graph that says it has these versions."""
    end = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "probe", end[:1], end[1:])
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", ml)]
    model = helper.make_model(graph, opset_imports=imports)
    model.ir_version = ir_version
    with contextlib.suppress(UnsupportedModel):
        open_graph(model.SerializeToString())
        return True
    return False
