"""Inference requests, built from numpy arrays and what is known of a model.

The pure half of the client: no connection, no clock. A request of one row costs about 3 µs with protobuf's own library,
so nothing is kept from call to call but what the server said about the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import index

import numpy as np
import numpy.typing as npt

from penstock._codec import datatype_of, encode, encode_bytes
from penstock.answers import ModelConfig, ModelMetadata, Parameter, parameter_to_proto
from penstock.errors import InvalidRequest
from penstock.proto import inference_pb2 as pb

Inputs = npt.ArrayLike | Mapping[str, npt.ArrayLike]
EntityId = str | bytes | int | tuple[str | bytes | int, ...]
"""An entity's id; where it has several keys a tuple with the value of each, or what `entity_key` makes of it."""
EntityIds = Sequence[EntityId] | Mapping[str, Sequence[str | bytes | int]]
"""n ids, or n values for each key by its name."""


@dataclass(slots=True)
class Ask:
    """What a caller asks of a model; the arguments of `predict`."""

    model: str
    inputs: Inputs | None = None
    entity_ids: EntityIds | None = None
    overrides: Mapping[str, npt.ArrayLike] | None = None
    outputs: Iterable[str] | None = None
    version: str = ""
    request_id: str = ""
    parameters: Mapping[str, Parameter] | None = None


@dataclass(slots=True)
class Model:
    """What a client knows of one model version."""

    metadata: ModelMetadata
    config: ModelConfig
    datatypes: dict[str, str] = field(init=False)
    matrix: str = field(init=False)

    def __post_init__(self) -> None:
        self.datatypes = dict.fromkeys(self.config.columns, "FP32")
        self.datatypes |= {tensor.name: tensor.datatype for tensor in self.metadata.inputs}
        names = [tensor.name for tensor in self.metadata.inputs if tensor.name != self.config.entity]
        self.matrix = self.config.vector or (names[0] if len(names) == 1 else "")

    def request(self, ask: Ask) -> bytes:
        """A serialised ModelInferRequest.

        Raises:
            InvalidRequest: the model has no such inputs, or values do not fit their datatype.
        """
        request = pb.ModelInferRequest(model_name=ask.model, model_version=ask.version, id=ask.request_id)
        if ask.inputs is not None:
            named = ask.inputs if isinstance(ask.inputs, Mapping) else {self._the_input(ask.model): ask.inputs}
            for name, values in named.items():
                array = np.asarray(values)
                datatype = self.datatypes.get(name) or datatype_of(array)
                _add(request, name, datatype, array.shape, encode(array, datatype, name))
        if ask.entity_ids is not None:
            ids = self._ids(ask.model, ask.entity_ids)
            _add(request, self.config.entity, "BYTES", (len(ids), 1), encode_bytes(ids))
        for name, values in (ask.overrides or {}).items():
            column = np.asarray(values).reshape(-1, 1)
            _add(request, name, "FP32", column.shape, encode(column, "FP32", name))
        for name in ask.outputs or ():
            request.outputs.add(name=name)
        for name, value in (ask.parameters or {}).items():
            request.parameters[name].CopyFrom(parameter_to_proto(value))
        return request.SerializeToString()

    def _the_input(self, model: str) -> str:
        if self.matrix:
            return self.matrix
        names = ", ".join(tensor.name for tensor in self.metadata.inputs)
        raise InvalidRequest("INVALID_ARGUMENT", f"model '{model}' takes several inputs: send a mapping with {names}")

    def _ids(self, model: str, ids: EntityIds) -> list[str | bytes]:
        if not self.config.entity:
            raise InvalidRequest("INVALID_ARGUMENT", f"model '{model}' looks up no features: it takes no entity ids")
        if isinstance(ids, str | bytes):
            raise InvalidRequest("INVALID_ARGUMENT", "entity_ids is a sequence: put a single id in a list")
        rows = self._by_key(model, ids) if isinstance(ids, Mapping) else ids
        try:
            return [_entity_id(item) for item in rows]
        except TypeError as error:  # a float is never rounded to somebody else's id
            raise InvalidRequest("INVALID_ARGUMENT", f"entity ids are str, bytes or int: {error}") from None

    def _by_key(self, model: str, values: Mapping[str, Sequence[str | bytes | int]]) -> list[EntityId]:
        """The ids made of each key's values, in the order in which the model takes them."""
        keys = self.config.entity_keys
        told, wrong = f"entity_ids of model '{model}'", ""
        if set(values) != set(keys):
            wanted = ", ".join(keys) or "not told by this server: send tuples"
            wrong = f"{told} has the keys {', '.join(values)}; they are {wanted}"
        elif text := [key for key in keys if isinstance(values[key], str | bytes)]:
            wrong = f"{told}: {text[0]} is a sequence: put a single value in a list"
        elif len({len(values[key]) for key in keys}) > 1:
            counts = ", ".join(f"{len(values[key])} of {key}" for key in keys)
            wrong = f"{told} has as many values of each key, not {counts}"
        if wrong:
            raise InvalidRequest("INVALID_ARGUMENT", wrong)
        columns = [values[key] for key in keys]
        return list(columns[0]) if len(columns) == 1 else list(zip(*columns, strict=True))


def _entity_id(one: EntityId) -> str | bytes:
    """The id as it is sent."""
    if isinstance(one, str | bytes):
        return one
    if not isinstance(one, tuple):
        return str(index(one))
    from penstock.features.entities import entity_key  # few callers need it, and the room takes a while to import
    from penstock.features.errors import InvalidData

    try:
        return entity_key(one)
    except InvalidData as error:
        raise InvalidRequest("INVALID_ARGUMENT", str(error)) from None


def _add(request: pb.ModelInferRequest, name: str, datatype: str, shape: Sequence[int], raw: bytes) -> None:
    request.inputs.add(name=name, datatype=datatype, shape=shape)
    request.raw_input_contents.append(raw)
