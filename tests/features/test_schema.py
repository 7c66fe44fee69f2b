import json
import zlib

import numpy as np
import pytest

from penstock.features import Column, FeatureView, InvalidView, read_views
from penstock.features import schema as schema_module

YAML = """
views:
  - name: customer_activity
    entity: customer_id
    columns:
      - {name: transaction_count_7d, dtype: int64, default: 0}
      - {name: avg_transaction_amount, dtype: float64}
  - {name: device, entity: device_id, layout: hash, ttl_s: 60, columns: [{name: age, dtype: int32}]}
"""


def view(**changes):
    given = {"name": "v", "entity": "e", "columns": [Column(name="a", dtype="float32"), Column(name="b", dtype="bool")]}
    return FeatureView(**(given | changes))


def test_a_yaml_file_gives_its_views_in_order(tmp_path):
    (tmp_path / "f.yaml").write_text(YAML)
    first, second = read_views(tmp_path / "f.yaml")
    assert first.column_names == ("transaction_count_7d", "avg_transaction_amount")
    assert first.ttl_s == 86400
    assert (second.layout, second.ttl_s) == ("hash", 60)
    np.testing.assert_array_equal(first.defaults, np.array([0, np.nan], np.float32))


def test_the_example_in_the_module_s_documentation_is_valid(tmp_path):
    lines = schema_module.__doc__.split("In YAML:\n")[1].split("`schema_id`")[0]
    (tmp_path / "f.yaml").write_text(lines)
    assert read_views(tmp_path / "f.yaml")[0].name == "customer_activity"


def test_a_view_survives_json():
    assert FeatureView.parse(view().model_dump_json()) == view()
    assert json.loads(view().model_dump_json())["format"] == 2


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("name: [", "not YAML"),
        ("name: a:b\nentity: e\ncolumns: [{name: x, dtype: bool}]", "a:b"),
        ("name: v\nentity: e\ncolumns: []", "columns"),
        ("name: v\nentity: e\ncolumns: [{name: x, dtype: text}]", "column 'x': dtype is"),
        ("name: v\nentity: e\ncolumns: [{name: x, dtype: bool}, {name: x, dtype: bool}]", "'x' is declared twice"),
        ("name: v\nentity: e\ncolumns: [{name: x, dtype: bool, defualt: 1}]", "defualt"),
        ("name: v\nentity: e\nttl_s: 0\ncolumns: [{name: x, dtype: bool}]", "ttl_s"),
        ("name: v\nentity: e\ncolumns: [{name: x, dtype: float32, default: .nan}]", "default"),
        ("[]", "no view"),
        ("!!python/object/apply:os.system [id]", "not YAML"),
    ],
)
def test_a_bad_file_is_refused_in_one_line_that_names_the_place(tmp_path, text, complaint):
    (tmp_path / "f.yaml").write_text(text)
    with pytest.raises(InvalidView) as caught:
        read_views(tmp_path / "f.yaml")
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InvalidView, match=r"nothing\.yaml"):
        read_views(tmp_path / "nothing.yaml")


def test_a_huge_definition_is_refused_unread():
    with pytest.raises(InvalidView, match="bytes"):
        FeatureView.parse(b" " * (schema_module.MAX_DEFINITION + 1))


def test_the_schema_id_is_the_crc_of_name_keys_and_columns():
    assert view().schema_id == zlib.crc32(b'["v",["e"],[["a","float32"],["b","bool"]]]')
    assert view(entity=["e", "f"]).schema_id == zlib.crc32(b'["v",["e","f"],[["a","float32"],["b","bool"]]]')


def test_views_of_format_1_keep_the_ids_of_their_rows():
    assert view(format=1).schema_id == zlib.crc32(b'["v",[["a","float32"],["b","bool"]]]')
    with pytest.raises(InvalidView, match="format 2"):
        FeatureView.parse({"format": 1, "name": "v", "entity": ["a", "b"], "columns": [{"name": "x", "dtype": "bool"}]})


TYPED = [
    Column(name="n", dtype="int64", default=3),
    Column(name="word", dtype="category", vocabulary=["a", "b"], default="b"),
    Column(name="taste", dtype="vector", size=3, default=[1, 2, 3]),
    Column(name="city", dtype="string", max_bytes=20, default="Bern"),
    Column(name="flat", dtype="vector", size=2, default=0.5),
]


def test_a_matrix_has_a_column_for_each_number_of_a_row():
    typed = view(columns=TYPED)
    assert typed.feature_names == ("n", "word", "taste_0", "taste_1", "taste_2", "flat_0", "flat_1")
    assert typed.width == typed.row_layout.width == 7
    np.testing.assert_array_equal(typed.defaults, np.array([3, 1, 1, 2, 3, 0.5, 0.5], np.float32))
    assert typed.max_row_size == typed.row_layout.row_size + 20
    assert FeatureView.parse(typed.model_dump_json()) == typed


def test_the_schema_id_covers_words_and_sizes_and_no_lengths_of_text():
    def changed(index, **fields):
        columns = [c.model_copy(update=fields) if i == index else c for i, c in enumerate(TYPED)]
        return view(columns=columns).schema_id == view(columns=TYPED).schema_id

    assert changed(3, max_bytes=30, default="", description="where")
    assert not changed(1, vocabulary=("b", "a"))
    assert not changed(2, size=4, default=None)


@pytest.mark.parametrize(
    ("column", "complaint"),
    [
        ({"dtype": "category"}, "a category column needs vocabulary"),
        ({"dtype": "category", "vocabulary": ["a", "b", "a"]}, "'a' is in its vocabulary twice"),
        ({"dtype": "category", "vocabulary": ["a"], "default": "b"}, "its default is a word of its vocabulary"),
        ({"dtype": "category", "vocabulary": [1]}, "vocabulary: 1 is no text: put it in quotes"),
        ({"dtype": "int64", "size": 3}, "size is for vector columns"),
        ({"dtype": "int64", "default": "three"}, "its default is a whole number that int64 holds, not 'three'"),
        (
            {"dtype": "vector", "size": 2, "default": [1]},
            "float32 holds, or as many as its size, not (1.0,)",
        ),
        ({"dtype": "string", "max_bytes": 2, "default": "abc"}, "a text of at most max_bytes"),
        ({"dtype": "vector", "size": 4097}, "size"),
    ],
)
def test_a_column_that_is_half_declared_is_refused(column, complaint):
    with pytest.raises(InvalidView) as caught:
        FeatureView.parse({"name": "v", "entity": "e", "columns": [{"name": "x"} | column]})
    assert complaint in str(caught.value)
    assert "more)" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"entity": []}, "1 to 8 keys"),
        ({"entity": ["a", "a"]}, "names of their own"),
        ({"entity": ["a|b", "c"]}, "no '|'"),
        ({"entity": " a"}, "spaces"),
        ({"entity": "x"}, "'x' is a key of the entity and a column"),
        ({"on_stale": "nan"}, "needs max_age_s"),
        ({"layout": "hash", "max_age_s": 60}, "needs time_field: the field that has the event time"),
        ({"time_field": "at"}, "time_field is for the hash layout"),
        ({"layout": "hash", "time_field": "x"}, "'x' is a column"),
        ({"layout": "hash", "time_field": " at"}, "spaces"),
        ({"on_missing": "compute"}, "belong together"),
        ({"compute": "function"}, "belong together"),
        ({"layout": "hash", "columns": [TYPED[3]]}, "no string columns"),
        ({"columns": [{"name": "taste", "dtype": "vector", "size": 2}, {"name": "taste_1", "dtype": "bool"}]}, "twice"),
        ({"columns": [{"name": str(i), "dtype": "vector", "size": 4000} for i in range(2)]}, "8000 numbers"),
        ({"columns": [{"name": str(i), "dtype": "string", "max_bytes": 16000} for i in range(4)]}, "64033 bytes"),
    ],
)
def test_what_excludes_each_other_is_refused(fields, complaint):
    base = {"name": "v", "entity": "e", "columns": [{"name": "x", "dtype": "bool"}]}
    with pytest.raises(InvalidView) as caught:
        FeatureView.parse(base | fields)
    assert complaint in str(caught.value)


def test_an_entity_of_one_key_in_a_list_is_one_of_one_key():
    assert view(entity=["e"]) == view()
    assert view(entity=["e", "f"]).entity_name == "e|f"


def test_the_schema_id_changes_with_columns_and_not_with_policies():
    other = view(columns=[Column(name="a", dtype="float64"), Column(name="b", dtype="bool")])
    assert view(ttl_s=5, on_missing="nan", on_outage="nan").schema_id == view().schema_id
    assert other.schema_id != view().schema_id
    assert view(name="w").schema_id != view().schema_id


def test_keys_hold_the_entity_in_braces_or_are_the_article_s():
    assert view().key(b"17") == b"fs:{17}:v"
    assert view(layout="hash").key(b"17") == b"features:17"


def test_no_two_pairs_of_entity_and_view_share_a_key():
    tricky = [b"", b"a", b"a}:v", b"a}:w", b"}:v", b"{a", b"a}", b"a}:v}:w"]
    keys = [view(name=name).key(entity) for name in ("v", "w", "v.w") for entity in tricky]
    assert len(set(keys)) == len(keys)
