"""Definitions of views in YAML: a file holds one view, a list of views, or a mapping with the list under `views`."""

from __future__ import annotations

from pathlib import Path

from penstock.features.errors import InvalidView
from penstock.features.schema import FeatureView


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
