"""The requests of a run: a pool of bodies for one model, and what their answers must look like.

A pool has at least POOL_ROWS different rows and POOL_BODIES different requests, unless a file gives fewer; it is sent
in turn, over and over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from penstock._codec import DTYPES
from penstock._requests import Ask, Model
from penstock.answers import ModelConfig, TensorMetadata
from penstock.bench import rows as tables
from penstock.bench.target import BenchFailed
from penstock.client import Client
from penstock.errors import InvalidRequest, NotFound, Unimplemented
from penstock.proto import inference_pb2 as pb

POOL_ROWS, POOL_BODIES = 4096, 256
ANY_SIZE, ALL_ROWS = -1, -2

Expected = tuple[bytes, bytes, int, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Work:
    """What is sent.

    Attributes:
        model: its name.
        rows: of each request.
        bodies: serialised requests.
        distinct: how many rows the pool has.
        outputs: by the model's metadata.
    """

    model: str
    rows: int
    bodies: Sequence[bytes]
    distinct: int
    outputs: Sequence[TensorMetadata]


def learn(client: Client, name: str, version: str) -> Model:
    """What the server says of a model; servers without configurations have only metadata."""
    try:
        metadata = client.metadata(name, version)
    except NotFound as error:
        raise BenchFailed(f"{error.details}{_others(client)}") from None
    try:
        config = client.config(name, version)
    except Unimplemented:
        config = ModelConfig(name, metadata.platform, "", 0, (), (), {})
    return Model(metadata, config)


def _others(client: Client) -> str:
    """The names of the models there are, where the server tells."""
    try:
        names = sorted({state.name for state in client.models() if state.state == "READY"})
    except Exception:  # noqa: BLE001 - it is only for the message
        return ""
    return f"; this server has {', '.join(names[:20])}" if names else ""


def make(
    model: Model, version: str, rows: int, columns: tables.Columns | None, ids: Sequence[str] | None, seed: int
) -> Work:
    """The pool of requests, of so many rows each, from a file's columns, from entity ids, or made up.

    Raises:
        BenchFailed: the model takes something else.
    """
    bodies = max(-(-POOL_ROWS // rows), POOL_BODIES)
    if ids is not None:
        asked: dict[str, np.ndarray] = {model.config.entity: np.array(list(ids), object)}
    elif columns is not None:
        asked = _chosen(model, columns)
    else:
        asked = _made_up(model, rows, bodies, seed)
    if model.config.entity == "" and ids is not None:
        raise BenchFailed(f"model '{model.metadata.name}' looks up no features: it takes no entity ids")
    total = len(next(iter(asked.values())))
    if ids is not None or columns is not None:
        bodies = -(-total // rows)
    picks = (np.arange(i * rows, (i + 1) * rows) % total for i in range(bodies))
    try:
        made = [_body(model, version, {name: array[pick] for name, array in asked.items()}) for pick in picks]
    except InvalidRequest as error:
        raise BenchFailed(error.details) from None
    return Work(model.metadata.name, rows, made, min(total, bodies * rows), model.metadata.outputs)


def _body(model: Model, version: str, arrays: dict[str, np.ndarray]) -> bytes:
    entity = model.config.entity
    ids = [str(one) for one in arrays[entity].ravel()] if entity and entity in arrays else None
    inputs = {name: array for name, array in arrays.items() if not (entity and name == entity)}
    return model.request(Ask(model.metadata.name, inputs or None, ids, version=version))


def _made_up(model: Model, rows: int, bodies: int, seed: int) -> dict[str, np.ndarray]:
    """Every input of the model; for one that looks features up, the whole matrix instead of entity ids."""
    random = np.random.default_rng(seed)
    wanted = [tensor for tensor in model.metadata.inputs if tensor.name != model.config.entity]
    if model.config.vector:
        wanted = [tensor for tensor in wanted if tensor.name == model.config.vector]
    if not wanted:
        raise BenchFailed(f"model '{model.metadata.name}' takes entity ids only: give some with --entities FILE")
    return {t.name: tables.made_up(t.datatype, (bodies * rows, *_tail(model, t, rows)), random) for t in wanted}


def _tail(model: Model, tensor: TensorMetadata, rows: int) -> tuple[int, ...]:
    """The shape of one row of an input."""
    name = f"input '{tensor.name}' of model '{model.metadata.name}'"
    if not tensor.shape or (tensor.shape[0] not in {ANY_SIZE, rows}):
        raise BenchFailed(f"{name} has the shape {list(tensor.shape)}, which does not take --rows {rows}")
    if ANY_SIZE in tensor.shape[1:]:
        raise BenchFailed(f"{name} has the shape {list(tensor.shape)}: give rows of the right size with --input FILE")
    return tensor.shape[1:]


def _chosen(model: Model, columns: tables.Columns) -> dict[str, np.ndarray]:
    """What the model takes of a file's columns."""
    matrix = model.config.columns if model.config.vector else ()
    found = {t.name: _shaped(model, t, columns[t.name]) for t in model.metadata.inputs if t.name in columns}
    if matrix and model.config.vector not in found and all(name in columns for name in matrix):
        found[model.config.vector] = np.stack([columns[name] for name in matrix], axis=1).astype(np.float32)
    needed = {t.name for t in model.metadata.inputs} - {model.config.entity}
    missing = sorted(needed - set(found))
    if (missing and not model.config.entity) or not found:
        if matrix:
            missing = [name for name in matrix if name not in columns]
        raise BenchFailed(
            f"the file lacks {', '.join(missing[:8]) or 'entity ids'}; it has {', '.join([*columns][:8])}"
        )
    return found


def _shaped(model: Model, tensor: TensorMetadata, array: np.ndarray) -> np.ndarray:
    tail = tensor.shape[1:]
    if tensor.name == model.config.entity or ANY_SIZE in tail:
        return array
    try:
        return array.reshape(len(array), *tail)
    except ValueError:
        raise BenchFailed(
            f"'{tensor.name}' has the shape {list(array.shape)} in the file; rows of {list(tail)} are asked for"
        ) from None


def expected(work: Work, sample: bytes) -> list[Expected]:
    """What every answer must look like, by the first one and the metadata, in the form that `kernels.load` takes.

    Raises:
        BenchFailed: the first answer is none, or contradicts the metadata.
    """
    try:
        answer = pb.ModelInferResponse.FromString(sample)
    except Exception as error:  # noqa: BLE001 - protobuf's own class of error is not public
        raise BenchFailed(f"the first answer is no ModelInferResponse: {error}") from None
    told = {tensor.name: tensor.shape for tensor in work.outputs}
    return [_expected_output(work, output, told.get(output.name)) for output in answer.outputs]


def _expected_output(
    work: Work, output: pb.ModelInferResponse.InferOutputTensor, told: tuple[int, ...] | None
) -> Expected:
    shape = tuple(output.shape)
    if told is not None and not _agree(shape, told, work.rows):
        raise BenchFailed(
            f"output '{output.name}' should have the shape {list(told)} by the model's metadata, for {work.rows} rows; "
            f"it came as {list(shape)}"
        )
    if told is None:
        told = tuple(ANY_SIZE if size == work.rows and not i else size for i, size in enumerate(shape))
    wanted = tuple(
        ALL_ROWS if not i and size == ANY_SIZE and shape[0] == work.rows else size for i, size in enumerate(told)
    )
    dtype = DTYPES.get(output.datatype)
    width = 2 if output.datatype == "BF16" else dtype.itemsize if dtype else 0
    return output.name.encode(), output.datatype.encode(), width, wanted


def _agree(shape: tuple[int, ...], told: tuple[int, ...], rows: int) -> bool:
    fixed = len(shape) == len(told) and all(t in {ANY_SIZE, s} for s, t in zip(shape, told, strict=True))
    return fixed and (not told or told[0] != ANY_SIZE or shape[0] == rows)
