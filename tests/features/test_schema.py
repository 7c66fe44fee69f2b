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
    lines = schema_module.__doc__.split("In YAML:\n")[1].split("A file holds")[0]
    (tmp_path / "f.yaml").write_text(lines)
    assert read_views(tmp_path / "f.yaml")[0].name == "customer_activity"


def test_a_view_survives_json():
    assert FeatureView.parse(view().model_dump_json()) == view()
    assert json.loads(view().model_dump_json())["format"] == 1


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("name: [", "not YAML"),
        ("name: a:b\nentity: e\ncolumns: [{name: x, dtype: bool}]", "a:b"),
        ("name: v\nentity: e\ncolumns: []", "columns"),
        ("name: v\nentity: e\ncolumns: [{name: x, dtype: text}]", "columns.0.dtype"),
        ("name: v\nentity: e\ncolumns: [{name: x, dtype: bool}, {name: x, dtype: bool}]", "'x' is declared twice"),
        ("name: v\nentity: e\ncolumns: [{name: x, dtype: bool, defualt: 1}]", "defualt"),
        ("name: v\nentity: e\nttl_s: 0\ncolumns: [{name: x, dtype: bool}]", "ttl_s"),
        ("name: v\nentity: e\ncolumns: [{name: x, dtype: float32, default: .nan}]", "default"),
        ("[]", "one or more views"),
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


def test_the_schema_id_is_the_crc_of_name_and_columns():
    assert view().schema_id == zlib.crc32(b'["v",[["a","float32"],["b","bool"]]]')


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
