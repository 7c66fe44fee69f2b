"""Feature views of a version: which of the model's columns come from the store, and which the caller must send."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from penstock.converters.errors import ConvertError
from penstock.converters.inputs import Inputs
from penstock.features.entities import united_keys
from penstock.features.schema import Column, FeatureView
from penstock.kernels.ids import MAX_PARTS
from penstock.registry import FeatureSet


@dataclass(frozen=True)
class Joined:
    """What goes into the manifest, and the columns that no view has.

    Attributes:
        entity_keys: of the parts of an entity id, in order, where the views are of several entities; else empty.
    """

    feature_sets: tuple[FeatureSet, ...] = ()
    entity: str = ""
    entity_keys: tuple[str, ...] = ()
    sent: tuple[str, ...] = ()


def join_views(inputs: Inputs, views: Sequence[FeatureView], entity: str) -> Joined:
    """Check that the views fit the model, and describe them.

    Args:
        inputs: the model's form of inputs: a matrix, or `joined`.
        views: the feature views, none for a model that takes everything from the caller.
        entity: name of the entity id input where the views are of one entity; that of its keys by default.

    Raises:
        ConvertError: a column in two views, a name taken twice or not free, keys that make no id, or nothing to join.
    """
    if not views:
        if entity:
            raise ConvertError(
                f"entity {entity!r} was named but no feature view: give the views that hold its features"
            )
        return Joined()
    _require_one_home(inputs.columns, views)
    _require_numbers(inputs.columns, views)
    held = {name for view in views for name in view.feature_names}
    keys = _keys(views)
    several = any(view.entity_keys != keys for view in views)
    if several and entity:  # the name tells clients the order, also those that know an earlier version
        raise ConvertError(
            f"views of several entities are looked up by ids that are called by their keys, {'|'.join(keys)!r}: "
            f"leave out the name {entity!r}"
        )
    chosen = entity or "|".join(keys)
    _require_a_name_of_its_own(chosen, inputs.columns)
    _require_use(inputs.columns, views)
    sent = tuple(name for name in inputs.columns if name not in held)
    return Joined(tuple(_feature_set(view) for view in views), chosen, keys if several else (), sent)


def _require_a_name_of_its_own(entity: str, columns: Sequence[str]) -> None:
    if entity in columns:
        raise ConvertError(
            f"the entity id input {entity!r} has the name of a feature column: choose another by --entity"
        )


def _require_use(columns: Sequence[str], views: Sequence[FeatureView]) -> None:
    useless = [view.name for view in views if set(columns).isdisjoint(view.feature_names)]
    if useless:
        raise ConvertError(
            f"no column of the model is in view {', '.join(useless)}: leave it out, or compare the names"
        )


def _keys(views: Sequence[FeatureView]) -> tuple[str, ...]:
    """What the parts of the entity id are."""
    keys = united_keys(view.entity_keys for view in views)
    if len(keys) > MAX_PARTS:
        raise ConvertError(f"the views have {len(keys)} keys in all; an entity id has at most {MAX_PARTS} parts")
    if len(keys) > 1 and (barred := [key for key in keys if "|" in key]):
        raise ConvertError(f"the entity key {barred[0]!r} has a '|', which stands between keys where there are several")
    return keys


def joined_inputs(inputs: Inputs, views: Sequence[FeatureView]) -> Inputs:
    """A matrix in front of a model that takes its columns singly: what its texts are is said by the views' categories.

    Raises:
        ConvertError: a text column is no category of a view.
    """
    texts = [name for name, datatype in zip(inputs.columns, inputs.datatypes, strict=True) if datatype == "BYTES"]
    categories = {name: _category(name, views) for name in texts}
    datatypes = tuple("BYTES" if name in categories else "FP32" for name in inputs.columns)
    return replace(inputs, kind="joined", datatypes=datatypes, categories=categories)


def _category(name: str, views: Sequence[FeatureView]) -> Column:
    found = [(view, column) for view in views for column in view.columns if column.name == name]
    for view, column in found:
        if column.dtype != "category":
            raise ConvertError(
                f"column {name!r} is text in the sample and a {column.dtype} in view {view.name!r}: a model is given "
                "the words of categories only; declare it as dtype category with a vocabulary"
            )
    if not found:
        raise ConvertError(
            f"text column {name!r} is in no feature view: beside looked-up features callers send numbers only; give "
            "a view that has it as a category, or publish the model without views and send every column"
        )
    return found[0][1]


def _require_one_home(columns: Sequence[str], views: Sequence[FeatureView]) -> None:
    for name in columns:
        homes = [view.name for view in views if name in view.feature_names]
        if len(homes) > 1:
            raise ConvertError(f"column {name!r} is in views {' and '.join(homes)}: it must come from one")


def _require_numbers(columns: Sequence[str], views: Sequence[FeatureView]) -> None:
    """Refuse what has the name of a column in a view, and does not read as one number there."""
    for view in views:
        for column in view.columns:
            if column.name in columns and column.name not in column.feature_names:
                names = column.feature_names
                how = f"it reads as {names[0]} to {names[-1]}" if names else "a model that reads numbers cannot take it"
                raise ConvertError(f"column {column.name!r} of view {view.name!r} is a {column.dtype}: {how}")


def _feature_set(view: FeatureView) -> FeatureSet:
    """The view as the manifest keeps it; equal views have equal ids."""
    schema: dict[str, Any] = view.model_dump(mode="json")
    identity = uuid5(NAMESPACE_URL, f"penstock:view:{json.dumps(schema, sort_keys=True)}")
    return FeatureSet(id=identity, name=view.name, schema=schema, created_at=datetime.now(UTC))
