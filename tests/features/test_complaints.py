"""Whoever writes a view wrongly is told what is wrong in one line: where, what stands there, what should."""

import re

import pytest

from penstock.features import Column, FeatureView, InvalidView, read_views
from penstock.features.definitions import read_yaml
from penstock.features.plan import stored_view
from penstock.registry import FeatureSet
from penstock.server.plans import views_of

ONE = "{name: v, entity: e, columns: [{name: x, dtype: bool}]}"
VIEW = {"name": "v", "entity": "e", "columns": [{"name": "x", "dtype": "int64"}]}


def told(definition):
    with pytest.raises(InvalidView) as caught:
        FeatureView.parse(definition, source="f.yaml")
    line = str(caught.value)
    assert line.startswith("f.yaml: ")
    assert "\n" not in line
    assert not re.search(r"Input|Extra|Field required|\.0\b[^0-9]*:", line), "pydantic's words"
    return line.removeprefix("f.yaml: ")


def of_column(**fields):
    return told(VIEW | {"columns": [{"name": "x"} | fields]})


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"ttl": 5}, "there is no 'ttl': did you mean 'ttl_s'?"),
        ({"entities": ["a"]}, "there is no 'entities': did you mean 'entity'?"),
        ({"features": []}, "there is no 'features': it has name, entity, columns, "),
        ({"transforms": []}, "transforms are no part of a view: they are fitted with a model"),
        ({"columns": {"x": "int64"}}, "columns is a list of columns, each {name: ..., dtype: ...}, not a mapping"),
        ({"columns": ["x"]}, "column 1 is {name: ..., dtype: ...}, not 'x'"),
        ({"columns": [{"name": "x", "type": "int64"}]}, "column 'x': there is no 'type': did you mean 'dtype'?"),
        ({"columns": [{}]}, "column 1: name and dtype are missing"),
        ({"columns": [{"name": 5, "dtype": "bool"}]}, "column 1: name: 5 is no text: put it in quotes"),
        ({"entity": 5}, "entity is a name, or a list of names, not 5"),
        ({"name": None}, "name: null is no text: put it in quotes"),
        ({"ttl_s": "1d"}, "ttl_s: it is a number, not '1d'"),
        ({"ttl_s": "60"}, "ttl_s: it is a number, not '60'"),
        ({"ttl_s": True}, "ttl_s: it is a number, not true"),
        ({"ttl_s": 1.5}, "ttl_s is a whole number, not 1.5"),
        ({"ttl_s": 0}, "ttl_s is at least 1, not 0"),
        ({"max_age_s": -1}, "max_age_s is more than 0, not -1"),
        ({"max_age_s": 1e9}, "max_age_s is at most 315360000, not 1000000000.0"),
        ({"owner": "x" * 201}, "owner has at most 200 characters"),
        ({"on_missing": False}, "on_missing is default, nan, error or compute, not false"),
        ({"on_outage": "defualt"}, "not 'defualt': did you mean 'default'?"),
        ({"aggregates": []}, "aggregates is a mapping with the columns and what each is of, not []"),
        (
            {"aggregates": {"columns": {"x": {"function": "count", "windows": "1h"}}}},
            "aggregates, column 'x': there is no 'windows': did you mean 'window'? (and 1 more)",
        ),
        ({"aggregates": {"columns": {"x": {"function": "count", "window": "1x"}}}}, "column 'x': a window is"),
    ],
)
def test_what_is_wrong_with_a_view(fields, line):
    assert line in told(VIEW | fields)


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"dtype": "int"}, "dtype is float32, float64, int64, int32, bool, category, string or vector, not"),
        ({"dtype": "str"}, "not 'str': did you mean 'string'?"),
        ({"dtype": "category", "vocabulary": ["yes", False]}, "vocabulary: false is no text (YAML takes yes, no, on"),
        ({"dtype": "category", "vocabulary": "yes"}, "vocabulary is a list of words, not 'yes'"),
        ({"dtype": "category", "vocabulary": [""]}, "vocabulary: a text is empty"),
        ({"dtype": "vector", "size": "3"}, "size: it is a number, not '3'"),
        ({"dtype": "vector", "size": 5000}, "size is at most 4096, not 5000"),
        ({"dtype": "int64", "default": float("nan")}, "default is a number, a text, or a list of numbers, not nan"),
        ({"dtype": "int64", "default": {}}, "default is a number, a text, or a list of numbers, not a mapping"),
        ({"dtype": "int64", "default": 1.5}, "column 'x': its default is a whole number that int64 holds, not 1.5"),
        ({"dtype": "int64", "default": 2**63}, "its default is a whole number that int64 holds"),
        ({"dtype": "int64", "default": True}, "its default is a whole number that int64 holds, not true"),
        ({"dtype": "int32", "default": 99999999999}, "its default is a whole number that int32 holds, not 99999999999"),
        ({"dtype": "bool", "default": 7}, "its default is true or false, not 7"),
        ({"dtype": "float32", "default": 1e300}, "its default is a number that float32 holds, not 1e+300"),
        ({"dtype": "float64", "default": 1e300}, "its default is a number that float32 holds, for models read it so"),
        ({"dtype": "vector", "size": 2, "default": [1, 1e39]}, "a number that float32 holds, or as many as its size"),
        ({"dtype": "string", "max_bytes": 5, "default": True}, "its default is a text of at most max_bytes, not true"),
        ({"dtype": "category", "vocabulary": ["a"], "default": True}, "a word of its vocabulary, not true"),
    ],
)
def test_what_is_wrong_with_a_column(fields, line):
    assert line in of_column(**fields)


@pytest.mark.parametrize(
    ("dtype", "default"),
    [("int64", -(2**63)), ("int64", 3.0), ("int32", 2**31 - 1), ("bool", True), ("bool", 0), ("float32", 3.4e38)],
)
def test_a_default_that_its_dtype_holds_is_taken(dtype, default):
    assert Column(name="x", dtype=dtype, default=default).default == default


def test_what_was_kept_before_defaults_were_checked_is_still_read():
    """A published version must not fail to load, nor a store's view to be read, for what was once allowed."""
    definition = VIEW | {"columns": [{"name": "x", "dtype": "int64", "default": 1.5}]}
    [view] = views_of(_Manifest(FeatureSet(name="v", schema=definition, created_at="2026-01-01T00:00:00Z")))
    assert view.defaults.tolist() == [1.5]
    text = view.definition()
    assert stored_view("v", text, "here") == view
    with pytest.raises(InvalidView, match="whole number"):
        FeatureView.parse(text)


class _Manifest:
    def __init__(self, *sets):
        self.feature_sets = sets


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("name: v\nttl_s: 60\nentity: e\nttl_s: 90", "not YAML: line 4, column 1: 'ttl_s' is given twice"),
        ("- {name: v, dtype: a, name: w}", "'name' is given twice"),
        ("views: []\nversion: 1", "beside views: there is version; a file holds one view"),
        ("[" * 3000, "not YAML: it is nested too deeply"),
        ("name: v\nsince: 2026-02-30", "not YAML: day is out of range"),
        ("- {name: v, entity: e, columns: []}\n- {name: w}", "view 'v': a view has one column or more"),
        (f"[{ONE}, {{entity: e}}]", "view 2: name and columns are missing"),
        (f"[{ONE}, {ONE}]", "view 'v' is in it twice"),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path, text, line):
    (tmp_path / "f.yaml").write_text(text)
    with pytest.raises(InvalidView) as caught:
        read_views(tmp_path / "f.yaml")
    assert line in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "f.yaml"))


def test_a_key_that_overrides_one_merged_in_is_not_given_twice():
    assert read_yaml("base: &base {a: 1, b: 2}\nother: {<<: *base, a: 3}")["other"] == {"a": 3, "b": 2}
    twice = "all:\n  base: &base {a: 1}\n  more: &more {<<: *base, a: 2}\nother: {<<: *more, b: 3}"
    assert read_yaml(twice) == {"all": {"base": {"a": 1}, "more": {"a": 2}}, "other": {"a": 2, "b": 3}}


def test_a_file_may_be_named_by_a_text(tmp_path):
    (tmp_path / "f.yaml").write_text(ONE)
    assert read_views(str(tmp_path / "f.yaml"))[0].name == "v"
