"""What is wrong with a declaration, of a view mostly, in one line: where, what stands there, and what should.

pydantic finds what is wrong, but says it to programmers: `columns.0.dtype: Input should be ...`. Here a column is
called by its name, a misspelt field is answered with the one that was meant, and what YAML makes of an unquoted word
(`no` is false, `1` a number) is told as such.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple, get_args

from pydantic import BaseModel, ValidationError

Kinds = Mapping[tuple[str, ...], type[BaseModel]]
"""What is declared where: () is the view itself, ("columns",) one of its columns, and so on."""

LISTS = {"columns": "column", "former": "former schema"}  # fields whose items are declared one by one
SHAPES = {
    "columns": "a list of columns, each {name: ..., dtype: ...}",
    "vocabulary": "a list of words",
    "entity": "a name, or a list of names",
    "default": "a number, a text, or a list of numbers",
    "aggregates": "a mapping with the columns and what each is of",
}
ELSEWHERE = {
    "transforms": "transforms are no part of a view: they are fitted with a model and published in its version "
    "(docs/transforms.md)",
}
OURS = ("format", "former")  # fields that nobody writes by hand
WHOLE, REAL = "{field} is a whole number, not {value}", "{field} is a number, not {value}"
PHRASES = {
    "string_type": "{field}: {unquoted}: put it in quotes",
    "string_too_short": "{field}: a text is empty",
    "string_too_long": "{field} has at most {bound} characters",
    "greater_than_equal": "{field} is at least {bound}, not {value}",
    "greater_than": "{field} is more than {bound}, not {value}",
    "less_than_equal": "{field} is at most {bound}, not {value}",
    **dict.fromkeys(("int_type", "int_parsing", "int_parsing_size", "int_from_float"), WHOLE),
    **dict.fromkeys(("float_type", "float_parsing", "finite_number"), REAL),
}
"""By pydantic's kind of error."""
SHOWN = 60


class Place(NamedTuple):
    """Where in a declaration: in words, which kind of thing is declared there, the field, and the item in its list."""

    words: tuple[str, ...]
    kind: tuple[str, ...]
    field: str = ""
    item: int | None = None


class Grammar(NamedTuple):
    """How a kind of declaration is written.

    Attributes:
        kinds: what is declared where.
        lists: fields whose items are declared one by one, and what one of them is called.
        shapes: what fields are that are no plain values.
        tags: how many parts at the beginning of each place say nothing.
    """

    kinds: Kinds
    lists: Mapping[str, str] = LISTS
    shapes: Mapping[str, str] = SHAPES
    tags: int = 0


class _Found(NamedTuple):
    """One error of pydantic's: where it is, and the fields that are missing anywhere."""

    error: Any
    place: Place
    missing: Sequence[Any]
    grammar: Grammar

    @property
    def kind(self) -> type[BaseModel] | None:
        """What is declared there."""
        return self.grammar.kinds.get(self.place.kind)


def complaint(error: ValidationError, given: Any, grammar: Grammar) -> str:
    """The first thing that is wrong, and how many more are.

    Args:
        error: what pydantic found.
        given: the declaration as plain data, for the names of its columns; None where it could not be read.
        grammar: how it should be written.
    """
    found = sorted(error.errors(include_url=False), key=lambda one: one["type"] != "extra_forbidden")  # it tells more
    missing = [one for one in found if one["type"] == "missing"]
    lines: dict[Place, str] = {}  # one a place: of a union every member complains
    for one in found:
        place = _place(one["loc"][grammar.tags :], given, grammar.lists)
        if one["type"] == "missing":
            place = place._replace(field="")
        lines.setdefault(place, _line(_Found(one, place, missing, grammar)))
    first, more = next(iter(lines.values())), len(lines) - 1
    return f"{first} (and {more} more)" if more else first


def _place(loc: Sequence[str | int], given: Any, lists: Mapping[str, str]) -> Place:
    words: list[str] = []
    kind: list[str] = []
    parts = list(loc)
    while parts:
        name = str(parts.pop(0))
        given = _item(given, name)
        if name in lists and parts:
            item = parts.pop(0)
            given = _item(given, item)
            called = item if isinstance(item, str) else _item(given, "name")
            words.append(f"{lists[name]} {_shown(called) if isinstance(called, str) else int(item) + 1}")
        elif name == "aggregates" and parts:
            words.append(name)
        else:  # what follows is a place in a list, or names the member of a union
            place = parts[0] if parts else None
            return Place(tuple(words), tuple(kind), name, place if isinstance(place, int) else None)
        kind.append(name)
    return Place(tuple(words), tuple(kind))


def _item(given: Any, key: str | int) -> Any:
    try:
        return given[key]
    except (KeyError, IndexError, TypeError):
        return None


def _line(found: _Found) -> str:
    told = TOLD.get(found.error["type"], _in_a_phrase)(found)
    where = ", ".join(found.place.words)
    return told if not where or told.startswith(found.place.words[-1]) else f"{where}: {told}"


def _as_it_was_said(found: _Found) -> str:
    """Our own words, from a validator."""
    told, field = str(found.error["msg"]).removeprefix("Value error, "), found.place.field
    return told if not field or field in told else f"{field}: {told}"


def _missing(found: _Found) -> str:
    place = found.error["loc"][:-1]
    names = [str(other["loc"][-1]) for other in found.missing if other["loc"][:-1] == place]
    return f"{_listed(names)} {'is' if len(names) == 1 else 'are'} missing"


def _unknown(found: _Found) -> str:
    field, kind = found.place.field, found.kind
    if field in ELSEWHERE:
        return ELSEWHERE[field]
    fields = [name for name in kind.model_fields if name not in OURS] if kind is not None else []
    return f"there is no {field!r}: " + (meant(field, fields) or f"it has {_listed(fields)}")


def _another_word(found: _Found) -> str:
    field, value, kind = found.place.field, found.error["input"], found.kind
    words = [str(word) for word in get_args(kind.model_fields[field].annotation)] if kind is not None else []
    asked = meant(value, words) if isinstance(value, str) else ""
    return f"{field} is {_listed(words, 'or')}, not {_shown(value)}" + (f": {asked}" if asked else "")


def _no_item(found: _Found) -> str:
    if found.place.field:
        return _in_a_phrase(found)
    what = f"{found.place.words[-1]} is {{name: ..., dtype: ...}}" if found.place.words else "it is a mapping"
    return f"{what}, not {_shown(found.error['input'])}"


def _in_a_phrase(found: _Found) -> str:
    """What is wrong with a plain value; pydantic's own words where there are no better ones."""
    kind, field, value = str(found.error["type"]), found.place.field, found.error["input"]
    if field in found.grammar.shapes and found.place.item is None and kind.endswith(("_type", "finite_number")):
        return f"{field} is {found.grammar.shapes[field]}, not {_shown(value)}"
    bound = next(iter(found.error.get("ctx", {}).values()), 0)
    phrase = PHRASES.get(kind)
    if phrase is None:
        return f"{field}: {found.error['msg']}" if field else str(found.error["msg"])
    shown = f"{bound:.15g}" if isinstance(bound, float | int) else str(bound)
    return phrase.format(field=field, value=_shown(value), bound=shown, unquoted=_unquoted(value))


TOLD = {
    "value_error": _as_it_was_said,
    "missing": _missing,
    "extra_forbidden": _unknown,
    "literal_error": _another_word,
    "model_type": _no_item,
}


def meant(word: str, words: Sequence[str]) -> str:
    """Which of the words is likely to be meant, as a question; "" where none is."""
    found = get_close_matches(word, words, 1)
    return f"did you mean {found[0]!r}?" if found else ""


def _unquoted(value: Any) -> str:
    """What a value is that should have been text."""
    if isinstance(value, bool):
        return f"{str(value).lower()} is no text (YAML takes yes, no, on and off for true and false)"
    return f"{_shown(value)} is no text"


def _listed(words: Sequence[str], last: str = "and") -> str:
    return f"{', '.join(words[:-1])} {last} {words[-1]}" if len(words) > 1 else "".join(words)


def _shown(value: Any) -> str:
    """A value as it is written, cut where it is long."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = "a mapping" if isinstance(value, dict) else repr(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
