"""Feature views: what is known about one kind of entity, declared once for training and serving.

A view is data, and `penstock features apply` stores it beside the rows. In YAML:

    name: customer_activity
    entity: customer_id
    ttl_s: 86400              # seconds a row lives after it was written
    on_missing: default       # default | nan | error: an entity without a row
    on_outage: error          # error | default | nan: the store is down
    layout: row               # row: packed, fast | hash: features:<entity> hashes of decimal strings
    columns:
      - {name: transaction_count_7d, dtype: int64, default: 0}
      - {name: avg_transaction_amount, dtype: float64}
      - {name: days_since_registration, dtype: int32, default: 0}

A file holds one view, a list of views, or a mapping with the list under `views`.

`schema_id` names the columns: CRC-32 of the view's name and its columns' names and dtypes. Every packed row carries it,
so a row written under other columns is never read as these. Defaults and policies may change without touching it.

Keys hold the entity in braces, so that all views of an entity share a Redis Cluster slot; a view's name has no colon or
brace, so no two (entity, view) pairs share a key, whatever bytes the entity has.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from penstock.features.aggregates import Aggregates, check_columns
from penstock.features.errors import InvalidView
from penstock.kernels.rows import RowLayout

MAX_COLUMNS = 4096
MAX_DEFINITION = 1 << 20  # bytes of one view's JSON
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")

DType = Literal["float32", "float64", "int64", "int32", "bool"]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Column(BaseModel):
    """One feature: its name, how it is stored, and the value used where a row has none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, max_length=200)
    dtype: DType
    default: Finite | None = None

    @field_validator("name")
    @classmethod
    def _printable(cls, name: str) -> str:
        if not name.isprintable() or name != name.strip():
            msg = f"a column's name is printable and has no spaces around it, not {name!r}"
            raise ValueError(msg)
        return name


class FeatureView(BaseModel):
    """A named set of features of one entity; immutable, and cheap to ask for what the hot path needs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    name: str
    entity: str = Field(min_length=1, max_length=200)
    columns: tuple[Column, ...] = Field(min_length=1, max_length=MAX_COLUMNS)
    ttl_s: int = Field(default=86400, ge=1, le=10 * 365 * 86400)
    on_missing: Literal["default", "nan", "error"] = "default"
    on_outage: Literal["error", "default", "nan"] = "error"
    layout: Literal["row", "hash"] = "row"
    aggregates: Aggregates | None = None

    @model_validator(mode="after")
    def _aggregated(self) -> Self:
        if self.aggregates is not None:
            check_columns(self.aggregates, {column.name: column.dtype for column in self.columns}, self.layout)
        return self

    @field_validator("name")
    @classmethod
    def _plain(cls, name: str) -> str:
        if not NAME.fullmatch(name):
            msg = f"a view's name has letters, digits, '_', '.' and '-', at most 100, not {name!r}"
            raise ValueError(msg)
        return name

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = self.column_names
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            msg = f"column {twice!r} is declared twice"
            raise ValueError(msg)
        return self

    @cached_property
    def column_names(self) -> tuple[str, ...]:
        """Names in the order of the packed row and of every matrix."""
        return tuple(column.name for column in self.columns)

    @cached_property
    def dtypes(self) -> tuple[DType, ...]:
        """How each column is stored."""
        return tuple(column.dtype for column in self.columns)

    @cached_property
    def defaults(self) -> NDArray[np.float32]:
        """float32 [k]: each column's default, NaN where none is declared."""
        values = [np.nan if column.default is None else column.default for column in self.columns]
        return np.array(values, np.float32)

    @cached_property
    def schema_id(self) -> int:
        """u32: CRC-32 of the canonical JSON of the name and the columns' names and dtypes."""
        identity = [self.name, [[column.name, column.dtype] for column in self.columns]]
        return zlib.crc32(json.dumps(identity, separators=(",", ":")).encode())

    @cached_property
    def row_layout(self) -> RowLayout:
        """The compiled packer and unpacker of this view's rows."""
        return RowLayout(self.schema_id, self.dtypes)

    @cached_property
    def fields(self) -> tuple[bytes, ...]:
        """The columns' names as Redis hash fields."""
        return tuple(name.encode() for name in self.column_names)

    def key(self, entity: bytes) -> bytes:
        """The Redis key of one entity's values."""
        return self.keys((entity,))[0]

    def keys(self, entities: Sequence[bytes]) -> list[bytes]:
        """The Redis keys of many entities, about 70 ns each."""
        if self.layout == "hash":
            return [b"features:" + entity for entity in entities]
        tail = b"}:" + self.name.encode()
        return [b"fs:{" + entity + tail for entity in entities]

    def same_rows(self, other: FeatureView) -> bool:
        """Whether rows written under `other` can be read under this view."""
        return (self.schema_id, self.layout, self.entity) == (other.schema_id, other.layout, other.entity)

    @classmethod
    def parse(cls, definition: Any, *, source: str = "view") -> Self:
        """A view from plain data or its JSON bytes; `InvalidView` in one line that says where it came from."""
        try:
            if isinstance(definition, bytes | str):
                if len(definition) > MAX_DEFINITION:
                    raise InvalidView(f"{source}: a definition of {len(definition)} bytes, at most {MAX_DEFINITION}")
                return cls.model_validate_json(definition)
            return cls.model_validate(definition)
        except ValidationError as error:
            raise InvalidView(f"{source}: {_first(error)}") from error


def _first(error: ValidationError) -> str:
    """The first complaint of pydantic, in one line."""
    first = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{where + ': ' if where else ''}{first['msg'].removeprefix('Value error, ')}{more}"


def _complaint(error: Exception) -> str:
    """What is wrong with a YAML file and where, in one line."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None or problem is None:
        return " ".join(str(error).split())
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}"


def read_views(path: Path) -> list[FeatureView]:
    """The views of a YAML (or JSON) file, in order; raises `InvalidView`."""
    import yaml

    try:
        data = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise InvalidView(f"{path}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidView(f"{path}: not YAML: {_complaint(error)}") from error
    if isinstance(data, dict) and set(data) == {"views"}:
        data = data["views"]
    definitions = data if isinstance(data, list) else [data]
    if not all(isinstance(item, dict) for item in definitions):
        raise InvalidView(f"{path}: no view: expected name, entity and columns")
    views = [FeatureView.parse(item, source=f"{path}, view {i + 1}") for i, item in enumerate(definitions)]
    if not views or len({view.name for view in views}) < len(views):
        raise InvalidView(f"{path}: expected one or more views with distinct names")
    return views
