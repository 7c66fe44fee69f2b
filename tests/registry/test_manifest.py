"""Manifests: the article's entities, defaults for what is missing, and one canonical form."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
from pydantic import ValidationError

from penstock.registry import FeatureSet, FileEntry, Manifest, Score, TensorSpec


def manifest(samples, **fields) -> Manifest:
    entry = FileEntry(size=1, sha256="0" * 64)
    values = {f: getattr(samples.draft(), f) for f in type(samples.draft()).model_fields}
    return Manifest(
        **{**values, "version": 1, "created_at": datetime.now(UTC), "files": {"model.onnx": entry}, **fields}
    )


def test_a_manifest_survives_storage(samples):
    whole = manifest(
        samples,
        accuracy=0.99,
        f1_score=0.8,
        feature_sets=(FeatureSet(name="card", schema={"columns": [1]}, created_at=datetime.now(UTC)),),
        score=Score(output="probabilities", column=1),
        metrics={"auc": 0.97},
        threshold=0.3,
        utility=((0.0, -1.0), (-50.0, 0.0)),
        lineage={"data": "größe.parquet"},
    )
    assert Manifest.model_validate_json(whole.encode()) == whole


def test_stored_form_has_sorted_keys_utf8_and_a_newline(samples):
    raw = manifest(samples, lineage={"z": "ä", "a": ""}).encode()
    assert raw.endswith(b"}\n")
    assert "ä".encode() in raw
    assert raw == (json.dumps(json.loads(raw), sort_keys=True, indent=2, ensure_ascii=False) + "\n").encode()


def test_the_articles_fields_are_stored_under_their_names(samples):
    feature_set = FeatureSet(name="card", schema={}, created_at=datetime.now(UTC))
    stored = json.loads(manifest(samples, feature_sets=(feature_set,)).encode())
    article = {"id", "model_name", "version", "accuracy", "f1_score", "trained_at", "artifact_path"}
    assert article <= stored.keys()
    assert set(stored["feature_sets"][0]) == {"id", "name", "schema", "created_at"}


def test_missing_fields_take_their_defaults_and_unknown_ones_are_ignored(samples):
    stored = json.loads(manifest(samples).encode())
    for field in ("feature_sets", "metrics", "lineage", "score", "threshold", "utility", "accuracy", "opset", "format"):
        del stored[field]
    read = Manifest.model_validate_json(json.dumps(stored | {"later": 1}))
    assert (read.feature_sets, read.metrics, read.score, read.format) == ((), {}, None, 1)


def test_a_manifest_of_before_reads_as_one_entity_and_keys_of_several_make_another_format(samples):
    stored = json.loads(manifest(samples).encode())
    del stored["signature"]["entity_keys"]
    assert Manifest.model_validate_json(json.dumps(stored)).signature.entity_keys == ()
    stored["signature"] |= {"entity": "a|b", "entity_keys": ["a", "b"]}
    assert Manifest.model_validate_json(json.dumps(stored | {"format": 2})).signature.entity_keys == ("a", "b")
    for other in (0, 3):
        with pytest.raises(ValidationError, match="format"):
            Manifest.model_validate_json(json.dumps(stored | {"format": other}))


@pytest.mark.parametrize(("entity", "keys"), [("", ["a", "b"]), ("id", ["a"]), ("id", ["a", "a"])])
def test_keys_that_make_no_id_are_refused(samples, entity, keys):
    stored = json.loads(manifest(samples).encode())
    stored["signature"] |= {"entity": entity, "entity_keys": keys}
    with pytest.raises(ValidationError, match="entity_keys are two names or more"):
        Manifest.model_validate_json(json.dumps(stored))


def test_a_draft_refuses_a_misspelt_field(samples):
    with pytest.raises(ValidationError, match="acuracy"):
        samples.draft(acuracy=0.9)


def test_values_are_frozen(samples):
    with pytest.raises(ValidationError):
        manifest(samples).version = 2


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_json_cannot_carry_are_refused(samples, number):
    with pytest.raises(ValidationError):
        samples.draft(metrics={"auc": number})


def test_times_are_utc_also_when_given_without_a_zone(samples):
    naive, zoned = datetime(2025, 1, 1), datetime(2025, 1, 1, 2, tzinfo=timezone(timedelta(hours=2)))  # noqa: DTZ001
    assert samples.draft(trained_at=naive).trained_at == samples.draft(trained_at=zoned).trained_at
    assert samples.draft(trained_at=zoned).trained_at.tzinfo is UTC


@pytest.mark.parametrize("shape", [(-2,), (1 << 40,)])
def test_impossible_shapes_are_refused(shape):
    with pytest.raises(ValidationError):
        TensorSpec(name="X", datatype="FP32", shape=shape)


def test_datatypes_are_those_of_the_protocol():
    with pytest.raises(ValidationError):
        TensorSpec(name="X", datatype="float32", shape=())
