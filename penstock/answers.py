"""What a server tells its clients, as frozen values, each made from its message by `from_proto`.

This is the border between protobuf and the rest of the client: beyond it there are only these values and numpy arrays.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from penstock._codec import Array, decode
from penstock.errors import ProtocolError
from penstock.proto import inference_pb2 as pb
from penstock.proto import penstock_pb2 as admin

Parameter = bool | int | float | str


@dataclass(frozen=True, slots=True)
class ServerMetadata:
    """Name and version of the server software, and the protocol extensions it speaks."""

    name: str
    version: str
    extensions: tuple[str, ...]

    @classmethod
    def from_proto(cls, message: pb.ServerMetadataResponse) -> ServerMetadata:
        return cls(message.name, message.version, tuple(message.extensions))


@dataclass(frozen=True, slots=True)
class TensorMetadata:
    """One input or output: its OIP datatype and its shape, -1 for any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    @classmethod
    def from_proto(cls, message: pb.ModelMetadataResponse.TensorMetadata) -> TensorMetadata:
        return cls(message.name, message.datatype, tuple(message.shape))

    @classmethod
    def from_config(cls, message: pb.ModelInput | pb.ModelOutput) -> TensorMetadata:
        datatype = pb.DataType.Name(message.data_type).removeprefix("TYPE_").replace("STRING", "BYTES")
        return cls(message.name, datatype, tuple(message.dims))


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """Versions that are served and the tensors of a model; shapes include the batch dimension."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]

    @classmethod
    def from_proto(cls, message: pb.ModelMetadataResponse) -> ModelMetadata:
        inputs = tuple(map(TensorMetadata.from_proto, message.inputs))
        outputs = tuple(map(TensorMetadata.from_proto, message.outputs))
        return cls(message.name, tuple(message.versions), message.platform, inputs, outputs)


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """How a model is served; shapes are without the batch dimension if `max_batch_size` is above 0."""

    name: str
    platform: str
    backend: str
    max_batch_size: int
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]
    parameters: Mapping[str, str]

    @classmethod
    def from_proto(cls, message: pb.ModelConfigResponse) -> ModelConfig:
        config = message.config
        inputs = tuple(map(TensorMetadata.from_config, config.input))
        outputs = tuple(map(TensorMetadata.from_config, config.output))
        parameters = {key: value.string_value for key, value in config.parameters.items()}
        sizes = (config.max_batch_size, inputs, outputs)
        return cls(config.name, config.platform, config.backend, *sizes, parameters)

    @property
    def entity(self) -> str:
        """Name of the input that takes entity ids; empty if features are not looked up."""
        return self.parameters.get("penstock.entity", "")

    @property
    def entity_keys(self) -> tuple[str, ...]:
        """Names of the parts of an entity id, in order; empty if features are not looked up, or it is not told."""
        return self._names("penstock.entity_keys")

    @property
    def vector(self) -> str:
        """Name of the input that takes all columns as one matrix; empty if there is none."""
        return self.parameters.get("penstock.vector", "")

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns of the matrix, which may also be sent one by one."""
        return self._names("penstock.columns")

    def _names(self, parameter: str) -> tuple[str, ...]:
        try:
            return tuple(map(str, json.loads(self.parameters.get(parameter, "[]"))))
        except (ValueError, TypeError):
            raise ProtocolError(f"configuration of model '{self.name}': {parameter} is not a JSON list") from None


@dataclass(frozen=True, slots=True)
class Duration:
    """How often something happened and how long it took altogether, in nanoseconds."""

    count: int
    ns: int


@dataclass(frozen=True, slots=True)
class ModelStatistics:
    """What one version did since it was loaded.

    `phases` has success, fail, queue, compute_input, compute_infer, compute_output, cache_hit and cache_miss, counted
    in requests; `batches` is how many batches were run of each size in rows.
    """

    name: str
    version: str
    last_inference_ms: int
    inference_count: int
    execution_count: int
    phases: Mapping[str, Duration]
    batches: Mapping[int, int]

    @classmethod
    def from_proto(cls, message: pb.ModelStatistics) -> ModelStatistics:
        stats = message.inference_stats
        durations = {f.name: getattr(stats, f.name) for f in stats.DESCRIPTOR.fields}
        phases = {name: Duration(value.count, value.ns) for name, value in durations.items()}
        batches = {batch.batch_size: batch.compute_infer.count for batch in message.batch_stats}
        counts = (message.last_inference, message.inference_count, message.execution_count)
        return cls(message.name, message.version, *counts, phases, batches)


@dataclass(frozen=True, slots=True)
class ModelState:
    """One version in the registry: READY if it takes requests, else why not."""

    name: str
    version: str
    state: str
    reason: str

    @classmethod
    def from_proto(cls, message: pb.RepositoryIndexResponse.ModelIndex) -> ModelState:
        return cls(message.name, message.version, message.state, message.reason)


@dataclass(frozen=True, slots=True)
class FeatureDrift:
    """One column's distribution in a window against the reference; shares of missing values are 0 … 1."""

    name: str
    rows: int
    ks: float
    ks_pvalue: float
    kl: float
    psi: float
    missing_reference: float
    missing_current: float

    @classmethod
    def from_proto(cls, message: admin.FeatureDrift) -> FeatureDrift:
        distances = (message.ks, message.ks_pvalue, message.kl, message.psi)
        return cls(message.name, message.rows, *distances, message.missing_reference, message.missing_current)


@dataclass(frozen=True, slots=True)
class ModelDrift:
    """One version's window; times are in ms since the epoch, `score` is None if no output is watched."""

    model_name: str
    version: str
    window_start_ms: int
    window_end_ms: int
    rows: int
    complete: bool
    features: tuple[FeatureDrift, ...]
    score: FeatureDrift | None

    @classmethod
    def from_proto(cls, message: admin.ModelDrift) -> ModelDrift:
        window = (message.window_start_ms, message.window_end_ms, message.rows, message.complete)
        features = tuple(map(FeatureDrift.from_proto, message.features))
        score = FeatureDrift.from_proto(message.score) if message.HasField("score") else None
        return cls(message.model_name, message.version, *window, features, score)


@dataclass(frozen=True, slots=True, eq=False)
class Prediction(Mapping[str, Array]):
    """Outputs by name, and who answered. Arrays share the answer's memory and are read-only: copy one to change it."""

    model_name: str
    model_version: str
    id: str
    outputs: Mapping[str, Array]
    parameters: Mapping[str, Parameter] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Array:
        return self.outputs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.outputs)

    def __len__(self) -> int:
        return len(self.outputs)

    @classmethod
    def from_proto(cls, message: pb.ModelInferResponse) -> Prediction:
        """Decode an answer; raises ProtocolError if tensors and raw contents do not fit each other."""
        raws = message.raw_output_contents
        if len(raws) != len(message.outputs):
            raise ProtocolError(f"{len(message.outputs)} outputs came with {len(raws)} raw contents")
        pairs = zip(message.outputs, raws, strict=True)
        outputs = {o.name: decode(raw, o.datatype, tuple(o.shape), o.name) for o, raw in pairs}
        parameters = parameters_from_proto(message.parameters) if message.parameters else {}
        return cls(message.model_name, message.model_version, message.id, outputs, parameters)


def parameters_from_proto(parameters: Mapping[str, pb.InferParameter]) -> dict[str, Parameter]:
    """Parameters as plain values; those without a value are left out."""
    chosen = ((key, value, value.WhichOneof("parameter_choice")) for key, value in parameters.items())
    return {key: getattr(value, choice) for key, value, choice in chosen if choice}


def parameter_to_proto(value: Any) -> pb.InferParameter:
    """The message of one plain value."""
    if isinstance(value, bool):
        return pb.InferParameter(bool_param=value)
    if isinstance(value, int):
        return pb.InferParameter(int64_param=value)
    if isinstance(value, str):
        return pb.InferParameter(string_param=value)
    return pb.InferParameter(double_param=float(value))


def statistics_from_proto(message: pb.ModelStatisticsResponse) -> tuple[ModelStatistics, ...]:
    """Every version's statistics."""
    return tuple(map(ModelStatistics.from_proto, message.model_stats))


def states_from_proto(message: pb.RepositoryIndexResponse) -> tuple[ModelState, ...]:
    """Every version's state."""
    return tuple(map(ModelState.from_proto, message.models))


def drifts_from_proto(message: admin.DriftStatusResponse) -> tuple[ModelDrift, ...]:
    """Every version's drift."""
    return tuple(map(ModelDrift.from_proto, message.models))
