"""Feature views: what is known about one kind of entity, declared once for training and serving.

A view is data, and `penstock features apply` stores it beside the rows. In YAML:

    name: customer_activity
    entity: customer_id       # or a list of keys: [customer_id, merchant_id]
    owner: payments
    description: What a customer did lately.
    ttl_s: 86400              # seconds a row lives after its event (a hash: after it was written)
    max_age_s: 7200           # seconds since its event time after which a row is stale ...
    on_stale: use             # ... use | default | nan | error
    on_missing: default       # default | nan | error | compute: an entity without a row
    on_outage: error          # error | default | nan: the store is down
    layout: row               # row: packed, fast | hash: features:<entity> hashes of decimal strings
    time_field: ""            # of a hash: the field that has its event time, in ms since 1970
    columns:
      - {name: transaction_count_7d, dtype: int64, default: 0}
      - {name: avg_transaction_amount, dtype: float64, description: "in euros, 30 days"}
      - {name: segment, dtype: category, vocabulary: [new, usual, vip], default: new}
      - {name: taste, dtype: vector, size: 16, default: 0}
      - {name: city, dtype: string, max_bytes: 64}

`schema_id` names the columns: CRC-32 of the view's name, its keys and what its columns are. Every packed row carries
it, so a row written under other columns is never read as these. Defaults and policies may change without touching it.
What a store keeps of a view also has its `former` schemas, by which rows written under them are read
(features/evolution.py).

In a model's matrix a number is one column, a vector of n is n columns `name_0` to `name_{n-1}`, a category is the index
of its word (for one that the vocabulary does not have the default, or -1), and a string is none. `feature_names` are
those columns.

Keys hold the entity in braces, so that all views of an entity share a Redis Cluster slot; a view's name has no colon or
brace, so no two (entity, view) pairs share a key, whatever bytes the entity has.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from penstock.features.aggregates import Aggregate, Aggregates, check_columns
from penstock.features.complaints import Grammar, complaint
from penstock.features.defaults import EXPECTED, Default, is_held, is_of_kind
from penstock.features.errors import InvalidView
from penstock.kernels.rows import RowLayout

MAX_COLUMNS = 4096  # of a view, and of the numbers a row gives to a matrix
MAX_KEYS = 8
MAX_FORMER = 16
MAX_ROW = 60_000  # bytes of a packed row with its longest strings
MAX_DEFINITION = 1 << 20  # bytes of one view's JSON
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
PLAIN = ("float32", "float64", "int64", "int32", "bool")  # dtypes that need nothing else said
WIDTHS = {"float32": 4, "float64": 8, "int64": 8, "int32": 4, "bool": 1, "category": 4, "string": 2, "vector": 4}

DType = Literal["float32", "float64", "int64", "int32", "bool", "category", "string", "vector"]
KEPT = {"kept": True}
"""Context of a definition that a store or a version has kept: it was checked by the rules of its day."""


def _number(value: object) -> object:
    """A number that was written as one: `yes` and "60" are none, though pydantic would make one of them."""
    if isinstance(value, bool | str | bytes):
        shown = str(value).lower() if isinstance(value, bool) else repr(value)
        raise ValueError(f"it is a number, not {shown[:60]}")  # noqa: TRY004 -- pydantic wants it so
    return value


Finite = Annotated[float, Field(allow_inf_nan=False)]
Whole = Annotated[int, BeforeValidator(_number)]
Real = Annotated[float, BeforeValidator(_number)]
Word = Annotated[str, Field(min_length=1, max_length=200)]
Note = Annotated[str, Field(max_length=2000)]


def _printable(name: str, what: str) -> str:
    if not name.isprintable() or name != name.strip():
        msg = f"{what} is printable and has no spaces around it, not {name!r}"
        raise ValueError(msg)
    return name


class Value(BaseModel):
    """A frozen value. Equal are those with equal fields, whatever was computed from them and kept."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def _fields(self) -> tuple[Any, ...]:
        return tuple(self.__dict__[name] for name in type(self).model_fields)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self._fields() == other._fields()

    def __hash__(self) -> int:
        return hash(self._fields())

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:  # noqa: ARG002
        """The value with other fields, checked like any; pydantic's own keeps what was computed from the old ones."""
        return type(self)(**dict(zip(type(self).model_fields, self._fields(), strict=True)) | dict(update or {}))


class Column(Value):
    """One feature: its name, how it is stored, and the value used where a row has none.

    Attributes:
        default: a number; for a category a word of its vocabulary, for a vector a number or `size` of them, for a
            string a text.
        vocabulary: the words of a category; their order gives the numbers that models see.
        max_bytes: of a string in UTF-8.
        size: how many float32 a vector has.
    """

    name: str = Field(min_length=1, max_length=200)
    dtype: DType
    default: Finite | str | tuple[Finite, ...] | None = None
    vocabulary: tuple[Word, ...] = Field(default=(), max_length=10_000)
    max_bytes: Whole | None = Field(default=None, ge=1, le=16_384)
    size: Whole | None = Field(default=None, ge=1, le=MAX_COLUMNS)
    description: Note = ""

    @field_validator("name")
    @classmethod
    def _name(cls, name: str) -> str:
        return _printable(name, "a column's name")

    @field_validator("default", mode="before")
    @classmethod
    def _unlike_a_bool(cls, default: object, info: ValidationInfo) -> object:
        dtype = info.data.get("dtype", "bool")
        if isinstance(default, bool) and dtype != "bool":
            raise ValueError(f"its default is {EXPECTED[dtype]}, not {str(default).lower()}")
        return default

    @model_validator(mode="after")
    def _whole(self, info: ValidationInfo) -> Self:
        """Each dtype has what it needs, and nothing of the others'."""
        needs = {"category": "vocabulary", "string": "max_bytes", "vector": "size"}
        for dtype, field in needs.items():
            given = bool(getattr(self, field))
            if given != (self.dtype == dtype):
                msg = f"{field} is for {dtype} columns" if given else f"a {dtype} column needs {field}"
                raise ValueError(f"column {self.name!r}: {msg}")
        if len(set(self.vocabulary)) < len(self.vocabulary):
            twice = next(word for word in self.vocabulary if self.vocabulary.count(word) > 1)
            raise ValueError(f"column {self.name!r}: {twice!r} is in its vocabulary twice")
        if self.default is not None and not self._takes(self.default, kept=info.context == KEPT):
            shown = repr(self.default).removesuffix(".0")[:60]
            raise ValueError(f"column {self.name!r}: its default is {EXPECTED[self.dtype]}, not {shown}")
        return self

    def _takes(self, default: Default, *, kept: bool) -> bool:
        is_right = is_of_kind(default, self.dtype, self.vocabulary, self.max_bytes, self.size)
        return is_right and (kept or is_held(default, self.dtype))

    @property
    def width(self) -> int:
        """How many numbers it gives to a matrix."""
        return {"vector": self.size or 0, "string": 0}.get(self.dtype, 1)

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of those numbers."""
        if self.dtype == "vector":
            return tuple(f"{self.name}_{i}" for i in range(self.width))
        return (self.name,) * self.width

    @property
    def stored(self) -> str:
        """How it is stored, as `RowLayout` names it; of a category the words that it does not have are -1."""
        sizes = {"category": f"[{len(self.vocabulary)}]", "vector": f"[{self.size}]"}
        return self.dtype + sizes.get(self.dtype, "")

    @cached_property
    def defaults(self) -> NDArray[np.float32]:
        """float32 [width]: the default as a matrix has it, NaN where none is declared."""
        if self.dtype == "string" or self.default is None:
            return np.full(self.width, np.nan, np.float32)
        value = self.vocabulary.index(self.default) if isinstance(self.default, str) else self.default
        return np.broadcast_to(np.array(value, np.float32), self.width)

    def identity(self) -> list[Any]:
        """What of it decides how a row's bytes are read."""
        extra = {"category": list(self.vocabulary), "vector": self.size}
        return [self.name, self.dtype, *([extra[self.dtype]] if self.dtype in extra else [])]


class Former(Value):
    """Columns that a view once had, and the schema id of the rows that were written then."""

    schema_id: int = Field(ge=0, lt=1 << 32)
    columns: tuple[Column, ...] = Field(min_length=1, max_length=MAX_COLUMNS)

    @cached_property
    def row_layout(self) -> RowLayout:
        """The unpacker of rows that were written under it."""
        return RowLayout(self.schema_id, tuple(column.stored for column in self.columns))


class FeatureView(Value):
    """A named set of features of one entity; immutable, and cheap to ask for what the hot path needs.

    Format 1 had numbers only and one key; its schema ids leave the key out.
    """

    format: Literal[1, 2] = 2
    name: str
    entity: str | tuple[str, ...]
    columns: tuple[Column, ...] = Field(max_length=MAX_COLUMNS)
    ttl_s: Whole = Field(default=86400, ge=1, le=10 * 365 * 86400)
    max_age_s: Real | None = Field(default=None, gt=0, le=10 * 365 * 86400)
    on_stale: Literal["use", "default", "nan", "error"] = "use"
    on_missing: Literal["default", "nan", "error", "compute"] = "default"
    compute: str = Field(default="", max_length=200)
    on_outage: Literal["error", "default", "nan"] = "error"
    layout: Literal["row", "hash"] = "row"
    time_field: str = Field(default="", max_length=200)
    owner: str = Field(default="", max_length=200)
    description: Note = ""
    former: tuple[Former, ...] = Field(default=(), max_length=MAX_FORMER)
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

    @field_validator("entity")
    @classmethod
    def _keys(cls, entity: str | tuple[str, ...]) -> str | tuple[str, ...]:
        keys = (entity,) if isinstance(entity, str) else entity
        if not 1 <= len(keys) <= MAX_KEYS or len(set(keys)) < len(keys):
            raise ValueError(f"an entity has 1 to {MAX_KEYS} keys with names of their own")
        for key in keys:
            if not 1 <= len(_printable(key, "a key's name")) <= 200 or (len(keys) > 1 and "|" in key):
                raise ValueError(f"a key's name has 1 to 200 characters, and no '|' beside others, not {key!r}")
        return keys[0] if len(keys) == 1 else keys

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if not self.columns:
            raise ValueError("a view has one column or more: columns is empty")
        names = [*self.column_names, *(name for c in self.columns if c.dtype == "vector" for name in c.feature_names)]
        if len(set(names)) < len(names):
            seen: set[str] = set()
            twice = next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]
            raise ValueError(f"column {twice!r} is declared twice")
        if self.format > 1 and (both := set(names).intersection(self.entity_keys)):
            raise ValueError(f"{min(both)!r} is a key of the entity and a column")
        return self

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        """What is said in one place and excludes something in another."""
        kinds = {column.dtype for column in self.columns} - set(PLAIN)
        if kinds and self.layout == "hash":
            raise ValueError(f"the hash layout holds numbers only, and no {min(kinds)} columns: take the row layout")
        if self.format == 1 and (kinds or len(self.entity_keys) > 1):
            raise ValueError("format 1 has numbers only and an entity of one key: this is format 2")
        if (self.on_missing == "compute") != bool(self.compute):
            raise ValueError("on_missing: compute and compute: FUNCTION belong together")
        if self.max_row_size > MAX_ROW or self.width > MAX_COLUMNS:
            most = f"{MAX_ROW} and {MAX_COLUMNS}"
            raise ValueError(f"a row of {self.max_row_size} bytes and {self.width} numbers; it has at most {most}")
        return self

    @model_validator(mode="after")
    def _timed(self) -> Self:
        """Freshness is told by event times, which a hash has where the view says in which field."""
        if self.max_age_s is None and self.on_stale != "use":
            raise ValueError(f"on_stale: {self.on_stale} needs max_age_s")
        if self.time_field and self.layout == "row":
            raise ValueError("time_field is for the hash layout: packed rows carry their event times")
        if _printable(self.time_field, "time_field") in self.column_names:
            raise ValueError(f"time_field: {self.time_field!r} is a column; the event time has a field of its own")
        if self.max_age_s is not None and self.layout == "hash" and not self.time_field:
            raise ValueError(
                "max_age_s in the hash layout needs time_field: the field that has the event time, in ms since 1970 "
                f"(_ts:{self.name}, where Penstock writes the hashes); or take the row layout"
            )
        return self

    # Names and shapes ---------------------------------------------------------------------------------------------

    @cached_property
    def entity_keys(self) -> tuple[str, ...]:
        """Names of the entity's keys, one or more."""
        return (self.entity,) if isinstance(self.entity, str) else self.entity

    @cached_property
    def entity_name(self) -> str:
        """The keys' names as one: how a request's entity id input is called."""
        return "|".join(self.entity_keys)

    @cached_property
    def column_names(self) -> tuple[str, ...]:
        """Names of the columns, in the order of the packed row."""
        return tuple(column.name for column in self.columns)

    @cached_property
    def dtypes(self) -> tuple[DType, ...]:
        """What each column is."""
        return tuple(column.dtype for column in self.columns)

    @cached_property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the numbers a row gives to a matrix, in the order of `FetchedRows.values`; see the module's head."""
        return tuple(name for column in self.columns for name in column.feature_names)

    @cached_property
    def width(self) -> int:
        """How many numbers a row gives to a matrix."""
        return sum(column.width for column in self.columns)

    @cached_property
    def defaults(self) -> NDArray[np.float32]:
        """float32 [width]: each number's default, NaN where none is declared."""
        return np.concatenate([column.defaults for column in self.columns])

    @cached_property
    def max_row_size(self) -> int:
        """Bytes of a packed row with its longest strings."""
        values = sum(WIDTHS[c.dtype] * (c.size or 1) + (c.max_bytes or 0) for c in self.columns)
        return 24 + (len(self.columns) + 7) // 8 + values

    @cached_property
    def schema_id(self) -> int:
        """u32: CRC-32 of the canonical JSON of the name, the keys and what the columns are."""
        columns = [column.identity() for column in self.columns]
        identity = [self.name, columns] if self.format == 1 else [self.name, list(self.entity_keys), columns]
        return zlib.crc32(json.dumps(identity, separators=(",", ":")).encode())

    @cached_property
    def row_layout(self) -> RowLayout:
        """The compiled packer and unpacker of its rows; words that a category does not have take its default."""
        specs = [c.stored + "?" * (c.dtype == "category" and c.default is not None) for c in self.columns]
        return RowLayout(self.schema_id, specs)

    @cached_property
    def read_as(self) -> tuple[str | int, ...]:
        """Tells apart views that make other numbers of the same stored row, or of one that is not there.

        The schema id does not: it leaves defaults and policies out, and models may keep a view with other ones.
        """
        return self.name, self.schema_id, ",".join(self.row_layout.dtypes), self.compute, self.time_field

    @cached_property
    def lives_ms(self) -> int:
        """How long after its event a packed row is one, in ms: to the last of them, and no longer."""
        return 1000 * (self.ttl_s if self.aggregates is None else self.aggregates.keep_s)

    @cached_property
    def readable(self) -> tuple[int, ...]:
        """The schema ids of rows that it can read: its own, and the former ones."""
        return (self.schema_id, *(former.schema_id for former in self.former))

    @cached_property
    def translations(self) -> dict[int, Any]:
        """How rows of former schemas are read, by schema id; filled in by features/evolution.py."""
        return {}

    @cached_property
    def fields(self) -> tuple[bytes, ...]:
        """The columns' names as Redis hash fields."""
        return tuple(name.encode() for name in self.column_names)

    @cached_property
    def whole(self) -> NDArray[np.uint8]:
        """uint8 [columns]: 1 for those of int64, whose text is read as an integer."""
        return np.array([dtype == "int64" for dtype in self.dtypes], np.uint8)

    @cached_property
    def stamp(self) -> bytes:
        """The field of a hash that holds the view's event time, ms since 1970 in decimal."""
        return (self.time_field or f"_ts:{self.name}").encode()

    @cached_property
    def read_fields(self) -> tuple[bytes, ...]:
        """What is read of a hash: `fields` and, where the view says which it is, that of the event time behind them."""
        return (*self.fields, self.stamp) if self.time_field else self.fields

    def definition(self) -> bytes:
        """The view as it is stored: JSON without what is left at its default."""
        plain = self.model_dump(mode="json", exclude_defaults=True) | {"format": self.format}
        return json.dumps(plain, separators=(",", ":"), ensure_ascii=False).encode()

    # Keys ---------------------------------------------------------------------------------------------------------

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
        """Whether rows are written alike under both."""
        return (self.schema_id, self.layout, self.entity) == (other.schema_id, other.layout, other.entity)

    @classmethod
    def parse(cls, definition: Any, *, source: str = "view", context: Mapping[str, bool] | None = None) -> Self:
        """A view from plain data or its JSON bytes; `InvalidView` in one line that says where it came from."""
        given = None
        try:
            if isinstance(definition, bytes | str):
                if len(definition) > MAX_DEFINITION:
                    raise InvalidView(f"{source}: a definition of {len(definition)} bytes, at most {MAX_DEFINITION}")
                return cls.model_validate_json(definition, context=context)
            given = definition
            return cls.model_validate(definition, context=context)
        except ValidationError as error:
            raise InvalidView(f"{source}: {complaint(error, given, GRAMMAR)}") from error


GRAMMAR = Grammar(
    {
        (): FeatureView,
        ("columns",): Column,
        ("former",): Former,
        ("former", "columns"): Column,
        ("aggregates",): Aggregates,
        ("aggregates", "columns"): Aggregate,
    }
)
