"""What a published version says about itself: `manifest.json`, as frozen values.

The fields of the article's MODEL_VERSION (id, model_name, version, accuracy, f1_score, trained_at, artifact_path) and
FEATURE_SET (id, name, schema, created_at) stand beside the signature, the ONNX versions, lineage and a digest of every
file. A publisher supplies a `Draft`; the registry adds version, time and digests and stores the `Manifest`.

Rules: JSON with sorted keys, UTF-8, one newline at the end, at most `MAX_MANIFEST_BYTES`. A field missing from a stored
manifest takes its default, an unknown one is ignored; a change that older readers must not ignore raises `format`.
Numbers are finite, times are UTC.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self
from uuid import UUID, uuid4

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

MAX_MANIFEST_BYTES = 4 << 20
MAX_FILE_BYTES = 4 << 30  # twice what protobuf allows an ONNX file

DATATYPES = frozenset(
    [
        "BOOL",
        "UINT8",
        "UINT16",
        "UINT32",
        "UINT64",
        "INT8",
        "INT16",
        "INT32",
        "INT64",
        "FP16",
        "BF16",
        "FP32",
        "FP64",
        "BYTES",
    ]
)


def _utc(time: datetime) -> datetime:
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def _known(datatype: str) -> str:
    if datatype not in DATATYPES:
        raise ValueError(f"{datatype!r} is not a datatype of the Open Inference Protocol")
    return datatype


UtcTime = Annotated[datetime, AfterValidator(_utc)]
"""A point in time; one given without a zone is taken as UTC."""


class Value(BaseModel):
    """A frozen value of finite numbers; what stored files may hold beyond its fields is ignored."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False, populate_by_name=True)

    def encode(self) -> bytes:
        """The value as it is stored: JSON with sorted keys, UTF-8, one newline at the end."""
        return encode_json(self.model_dump(mode="json", by_alias=True), indent=2)


class TensorSpec(Value):
    """One input or output: its name, Open Inference Protocol datatype, and shape with -1 for any size."""

    name: str = Field(min_length=1)
    datatype: Annotated[str, AfterValidator(_known)]
    shape: tuple[Annotated[int, Field(ge=-1, lt=1 << 31)], ...]


class Signature(Value):
    """What the graph takes and gives. Shapes include the batch dimension when `batched`.

    `columns` names the features, in order, when the graph reads one FP32 [n, k] matrix. `entity` names the input that
    carries the entity id when feature sets are joined; it is empty otherwise. `entity_keys` names the parts of that id,
    in order, where the feature sets are of several entities; where they are of one it is empty, for they say it.
    """

    inputs: tuple[TensorSpec, ...] = Field(min_length=1)
    outputs: tuple[TensorSpec, ...] = Field(min_length=1)
    batched: bool
    columns: tuple[str, ...] = ()
    entity: str = ""
    entity_keys: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _keys_are_of_an_entity(self) -> Self:
        if self.entity_keys and (not self.entity or len(set(self.entity_keys)) < max(len(self.entity_keys), 2)):
            raise ValueError("entity_keys are two names or more, each once, of the parts of an entity id")
        return self


class FeatureSet(Value):
    """The features a version was trained on; `schema` is the JSON of their feature view."""

    id: UUID = Field(default_factory=uuid4)
    name: str
    schema_: dict[str, Any] = Field(alias="schema")
    created_at: UtcTime


class Score(Value):
    """The output value that is watched for drift; `column` where the output has more than one."""

    output: str
    column: int | None = Field(default=None, ge=0)


class FileEntry(Value):
    """One file of a version: its size in bytes and the SHA-256 of its content in hexadecimal."""

    size: int = Field(ge=0, le=MAX_FILE_BYTES)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class _Described(Value):
    """What a draft and a manifest both say."""

    id: UUID = Field(default_factory=uuid4)
    model_name: str
    accuracy: float | None = None
    f1_score: float | None = None
    trained_at: UtcTime
    artifact_path: str = "model.onnx"
    created_by: str = ""
    framework: str
    opset: dict[str, int] = Field(default_factory=dict)
    ir_version: int
    signature: Signature
    feature_sets: tuple[FeatureSet, ...] = ()
    score: Score | None = None
    metrics: dict[str, float] = Field(default_factory=dict)
    threshold: float | None = None
    utility: tuple[tuple[float, ...], ...] | None = None
    lineage: dict[str, str] = Field(default_factory=dict)


class Draft(_Described):
    """What a publisher supplies. A field it does not know is refused, so that no misspelt metric is lost."""

    model_config = ConfigDict(extra="forbid")


class Manifest(_Described):
    """What is stored: the draft, and what the registry adds to it.

    Format 2 has `entity_keys`: who knows format 1 only would look every view up by the whole id.
    """

    format: Literal[1, 2] = 1
    version: int = Field(ge=1)
    created_at: UtcTime
    files: dict[str, FileEntry]

    @model_validator(mode="after")
    def _artifact_is_listed(self) -> Self:
        if self.artifact_path not in self.files:
            raise ValueError(f"artifact_path {self.artifact_path!r} is not among the files")
        return self


def encode_json(value: Any, *, indent: int | None = None) -> bytes:
    """JSON bytes with sorted keys and one newline at the end; text that UTF-8 cannot carry becomes '?'."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, indent=indent)
    return (text + "\n").encode("utf-8", "replace")
