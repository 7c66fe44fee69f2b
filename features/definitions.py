"""Definitions of views in YAML: a file holds one view, a list of views, or a mapping with the list under `views`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from penstock.features.errors import InvalidView
from penstock.features.schema import FeatureView

FORMS = "a file holds one view, a list of views, or a list under views:"


def read_yaml(text: str) -> Any:
    """Plain data from YAML (or JSON), in which no mapping has a key twice: YAML would take the last one in silence.

    Raises:
        ValueError: what is wrong with it and where, in one line.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """Safe, and strict about keys."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            seen = set()
            for key in [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]:
                if (key.tag, key.value) in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
                seen.add((key.tag, key.value))
            return super().construct_mapping(node, deep=deep)

    try:
        return yaml.load(text, Loader)  # noqa: S506 -- it is a SafeLoader
    except (yaml.YAMLError, ValueError) as error:  # a ValueError is of a date that is none
        raise ValueError(_complaint(error)) from error


def _complaint(error: Exception) -> str:
    """What is wrong with a YAML file and where, in one line."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None or problem is None:
        return " ".join(str(error).split())
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}"


def read_views(path: Path | str) -> list[FeatureView]:
    """The views of a YAML (or JSON) file, in order.

    Raises:
        InvalidView: the file cannot be read, or holds something else, or a name twice; in one line.
    """
    path = Path(path)
    try:
        data = read_yaml(path.read_text("utf-8"))
    except OSError as error:
        raise InvalidView(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InvalidView(f"{path}: not YAML: {error}") from error
    definitions = _definitions(path, data)
    views = [FeatureView.parse(item, source=_source(path, definitions, i)) for i, item in enumerate(definitions)]
    names = [view.name for view in views]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InvalidView(f"{path}: view {twice!r} is in it twice")
    return views


def _definitions(path: Path, data: Any) -> list[Any]:
    if isinstance(data, dict) and "views" in data:
        if others := [str(key) for key in data if key != "views"]:
            raise InvalidView(f"{path}: beside views: there is {', '.join(others)}; {FORMS} and nothing else")
        data = data["views"]
    definitions = data if isinstance(data, list) else [data]
    if not definitions or not all(isinstance(item, dict) for item in definitions):
        raise InvalidView(f"{path}: no view: expected name, entity and columns; {FORMS}")
    return definitions


def _source(path: Path, definitions: Sequence[Any], i: int) -> str:
    """Where a view stands: the file, and which of its views where there are several."""
    if len(definitions) == 1:
        return str(path)
    name = definitions[i].get("name")
    return f"{path}, view {name!r}" if isinstance(name, str) else f"{path}, view {i + 1}"
