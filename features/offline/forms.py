"""In which forms the files of a view hold its columns, and all of them as one table.

A column may have been another kind of number when older files were written, and an older view may ask for newer files.
Both read by the rule of stored rows (`evolution.kindred`): numbers among numbers and a bool as one, each value in the
dtype in which it was written until it becomes the float32 of a matrix, so that nothing is rounded twice. In SQL a
column therefore stands once for each of its forms, NULL where a file has another. Words and texts have one form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.features.errors import InvalidData
from penstock.features.evolution import kindred
from penstock.features.offline.kinds import kind_of
from penstock.features.offline.store import CREATED, EVENT, WRITTEN
from penstock.features.offline.tables import arrow, identifier, quoted
from penstock.features.schema import PLAIN, Column, FeatureView

SQL = {"float32": "FLOAT", "float64": "DOUBLE", "int64": "BIGINT", "int32": "INTEGER", "bool": "BOOLEAN"}
SQL |= {"category": "VARCHAR", "string": "VARCHAR", "vector": "FLOAT[]"}


@dataclass(frozen=True, eq=False)  # each there once, and a vocabulary is long to compare
class Form:
    """One way in which files have a column: as the view says, or as the dtype of a kindred one."""

    column: Column
    dtype: str


@dataclass(frozen=True)
class Files:
    """Files of a view in groups that are alike in the columns asked for.

    Attributes:
        view: whose they are.
        forms: of these columns, in the view's order; none of a column that no file has.
        groups: the files with the same forms.
    """

    view: FeatureView
    forms: tuple[Form, ...]
    groups: Mapping[frozenset[Form], Sequence[Path]]

    @property
    def names(self) -> str:
        """The forms' columns in `table`, as SQL lists them, each with a comma before it."""
        return "".join(f", c{place}" for place in range(len(self.forms)))

    @property
    def table(self) -> str:
        """All rows in SQL: `id`, both times, `written`, and the forms."""
        return " UNION ALL ".join(self._group(forms, files) for forms, files in self.groups.items())

    def _group(self, forms: frozenset[Form], files: Sequence[Path]) -> str:
        values = "".join(
            f", {identifier(form.column.name) if form in forms else f'NULL::{SQL[form.dtype]}'} AS c{place}"
            for place, form in enumerate(self.forms)
        )
        listed = f"[{', '.join(map(quoted, files))}], union_by_name = true, hive_partitioning = false"
        entity = identifier(self.view.entity_name)
        return f"SELECT {entity} AS id, {EVENT}, {CREATED}, {WRITTEN}{values} FROM read_parquet({listed})"  # noqa: S608


def open_files(view: FeatureView, columns: Sequence[Column], files: Sequence[Path]) -> Files:
    """What the files have of these columns of the view.

    Raises:
        InvalidData: a file cannot be read, is no history, or has a column of another kind than the view says.
    """
    kinds = {column.name: _readable(column) for column in columns}
    groups: dict[frozenset[Form], list[Path]] = {}
    for file in files:
        schema = _schema(view, file)
        places = {name: schema.get_field_index(name) for name in kinds}
        found = {name: schema.field(place).type for name, place in places.items() if place >= 0}
        for name, kind in found.items():
            if kind not in kinds[name]:
                said = next(column.dtype for column in columns if column.name == name)
                raise InvalidData(
                    f"{file}: column {name!r} is {kind}, and view {view.name!r} says {said}, which is of another kind; "
                    "write its history again under a view of another name"
                )
        groups.setdefault(frozenset(kinds[name][kind] for name, kind in found.items()), []).append(file)
    present = frozenset[Form]().union(*groups)
    forms = [form for column in columns for form in kinds[column.name].values() if form in present]
    return Files(view, tuple(forms), groups)


def _readable(column: Column) -> dict[Any, Form]:
    """The forms in which a file may have a column, by their Arrow types."""
    others = [Column.model_validate({"name": column.name, "dtype": dtype}) for dtype in PLAIN]
    return {kind_of(old): Form(column, old.dtype) for old in (column, *others) if kindred(old, column)}


def _schema(view: FeatureView, file: Path) -> Any:
    """The schema of a file that is history of the view."""
    pa = arrow()
    from pyarrow import parquet

    try:
        schema = parquet.read_schema(file)
    except (OSError, pa.ArrowException) as error:
        raise InvalidData(f"{file}: cannot be read: {' '.join(str(error).split())}") from error
    needed = {view.entity_name: pa.large_binary()} | dict.fromkeys((EVENT, CREATED, WRITTEN), pa.int64())
    for name, kind in needed.items():
        place = schema.get_field_index(name)
        if place < 0 or schema.field(place).type != kind:
            has = "no column" if place < 0 else "another kind of column"
            raise InvalidData(f"{file}: {has} {name!r}; it was not written as history of view {view.name!r}")
    return schema
