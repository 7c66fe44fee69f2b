"""What is not exactly as published is refused, with a line that names the file; other versions go on."""

from __future__ import annotations

import json
import os
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.registry import CorruptVersion, Registry, RegistryError, UnknownModel, UnknownVersion, verify


@pytest.fixture
def folder(publish, version_folder):
    """The folder of a version published after a good one, writable for tampering."""
    publish(content=b"good")
    publish(content=b"onnx bytes")
    return version_folder(version=2)


def rewrite(path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def rewrite_manifest(folder, **changes) -> None:
    stored = json.loads((folder / "manifest.json").read_bytes())
    rewrite(folder / "manifest.json", json.dumps(stored | changes).encode())


def changed_byte(folder):
    rewrite(folder / "model.onnx", b"onnx bytEs")


def longer(folder):
    rewrite(folder / "model.onnx", b"onnx bytes and more")


def shorter(folder):
    rewrite(folder / "model.onnx", b"onnx")


def missing(folder):
    (folder / "model.onnx").unlink()


def unlisted(folder):
    (folder / "weights.bin").write_bytes(b"")


def hidden_unlisted(folder):
    (folder / ".weights").write_bytes(b"")


def unlisted_folder(folder):
    (folder / "sub").mkdir()


def symlink(folder):
    (folder / "model.onnx").rename(folder.parent / "aside")
    (folder / "model.onnx").symlink_to(folder.parent / "aside")


def hard_link(folder):
    os.link(folder / "model.onnx", folder.parent / "aside")


def pipe(folder):
    (folder / "model.onnx").unlink()
    os.mkfifo(folder / "model.onnx")


def folder_for_file(folder):
    (folder / "model.onnx").unlink()
    (folder / "model.onnx").mkdir()


def no_manifest(folder):
    (folder / "manifest.json").unlink()


def empty_manifest(folder):
    rewrite(folder / "manifest.json", b"")


def torn_manifest(folder):
    rewrite(folder / "manifest.json", (folder / "manifest.json").read_bytes()[:-20])


def linked_manifest(folder):
    (folder / "manifest.json").rename(folder.parent / "aside")
    (folder / "manifest.json").symlink_to(folder.parent / "aside")


def huge_manifest(folder):
    rewrite(folder / "manifest.json", b" " * (verify.MAX_MANIFEST_BYTES + 1))


def deep_manifest(folder):
    rewrite(folder / "manifest.json", b'{"lineage":' + b"[" * 100_000)


def newer_format(folder):
    rewrite_manifest(folder, format=3)


def other_model(folder):
    rewrite_manifest(folder, model_name="churn")


def other_version(folder):
    rewrite_manifest(folder, version=1)


def listed_outside(folder):
    stored = json.loads((folder / "manifest.json").read_bytes())["files"]
    rewrite_manifest(folder, files=stored | {"../../1/versions": {"size": 0, "sha256": "0" * 64}})


def negative_size(folder):
    rewrite_manifest(folder, files={"model.onnx": {"size": -1, "sha256": "0" * 64}})


def unlisted_artifact(folder):
    rewrite_manifest(folder, artifact_path="../model.onnx")


def linked_folder(folder):
    folder.rename(folder.parent / "aside")
    folder.symlink_to("aside")


TAMPERING = {
    changed_byte: "model.onnx was changed",
    longer: "model.onnx has 19 bytes where 10 were published",
    shorter: "model.onnx has 4 bytes where 10 were published",
    missing: "model.onnx is missing",
    unlisted: "'weights.bin' is in the folder but not listed",
    hidden_unlisted: "'.weights' is in the folder but not listed",
    unlisted_folder: "'sub' is in the folder but not listed",
    symlink: "model.onnx is a symbolic link",
    hard_link: "model.onnx is a hard link",
    pipe: "model.onnx is not a regular file",
    folder_for_file: "model.onnx is not a regular file",
    no_manifest: "half-written",
    empty_manifest: "manifest.json does not parse",
    torn_manifest: "manifest.json does not parse",
    linked_manifest: "manifest.json is a symbolic link",
    huge_manifest: "more than the 4,194,304 allowed",
    deep_manifest: "manifest.json does not parse",
    newer_format: "upgrade Penstock",
    other_model: "it says 'churn' version 2",
    other_version: "it says 'fraud' version 1",
    listed_outside: "cannot be a file name",
    negative_size: "greater than or equal to 0",
    unlisted_artifact: "not among the files",
    linked_folder: "2 is a link",
}


@pytest.mark.parametrize("tamper", TAMPERING, ids=lambda t: t.__name__)
def test_a_version_not_as_published_is_refused_and_the_good_one_goes_on(registry, folder, tamper):
    tamper(folder)
    for read in (registry.load, registry.verify):
        with pytest.raises(CorruptVersion, match="fraud version 2 is refused") as refused:
            read("fraud", 2)
        assert TAMPERING[tamper] in str(refused.value)
        assert str(folder) in str(refused.value)
        assert "\n" not in str(refused.value)
    assert registry.load("fraud", 1).files["model.onnx"] == b"good"
    assert registry.resolve("fraud") == 1


def test_a_loaded_version_holds_what_was_published_and_the_digest_of_its_manifest(registry, publish, samples):
    manifest = publish(content=b"abc")
    version = registry.load("fraud", 1)
    raw = (registry.root / "models/fraud/versions/1/manifest.json").read_bytes()
    assert version.files == {**samples.FILES, "model.onnx": b"abc"}
    assert version.manifest == manifest == registry.manifest("fraud", 1) == registry.verify("fraud", 1)
    assert version.digest == sha256(raw).hexdigest()


def test_a_half_written_version_is_not_listed(registry, folder):
    no_manifest(folder)
    assert registry.versions("fraud") == [1]


def test_models_and_versions_that_are_not_there_are_named_with_those_that_are(registry, publish):
    publish()
    publish()
    with pytest.raises(UnknownModel, match=r"no model called 'churn' in .*; models there: fraud"):
        registry.versions("churn")
    with pytest.raises(UnknownModel):
        registry.load("churn", 1)
    with pytest.raises(UnknownVersion, match="'fraud' has no version 7; versions there: 1, 2"):
        registry.load("fraud", 7)


def test_a_registry_that_does_not_exist_has_no_models(tmp_path):
    registry = Registry(tmp_path / "nowhere")
    assert registry.models() == []
    with pytest.raises(UnknownModel, match="none yet"):
        registry.versions("fraud")
    assert not registry.root.exists()


def test_folders_that_are_no_models_are_passed_over(registry, publish, tmp_path):
    publish()
    models = registry.root / "models"
    (models / ".git").mkdir()
    (models / "empty").mkdir()
    (models / "notes.txt").write_text("")
    (models / "linked").symlink_to(models / "fraud")
    (models / "fraud" / "versions" / "07").mkdir()
    (models / "fraud" / "versions" / "next").mkdir()
    assert registry.models() == ["fraud"]
    assert registry.versions("fraud") == [1]


def test_a_linked_model_folder_is_refused(registry, publish):
    publish()
    (registry.root / "models" / "linked").symlink_to("fraud")
    with pytest.raises(UnknownModel, match=r"'linked' in .* is refused: linked is a link"):
        registry.versions("linked")
    with pytest.raises(CorruptVersion, match="linked is a link"):
        registry.load("linked", 1)


def test_a_registry_reached_through_a_link_is_read(registry, publish, tmp_path):
    """Mounted volumes come as links; the operator chose the path, so what is below it counts."""
    publish()
    (tmp_path / "mounted").symlink_to(registry.root)
    assert Registry(tmp_path / "mounted").load("fraud", 1).manifest.version == 1


def test_a_huge_sparse_file_is_refused_without_reading_it(registry, folder):
    (folder / "model.onnx").unlink()
    with (folder / "model.onnx").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(CorruptVersion, match="1,099,511,627,776 bytes where 10 were published"):
        registry.load("fraud", 2)


def test_a_file_that_may_not_be_read_is_reported_in_one_line(registry, folder, monkeypatch):
    def denied(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied", "model.onnx")

    monkeypatch.setattr(verify.files, "read", denied)
    with pytest.raises(RegistryError, match=r"cannot load 'fraud' version 2 .*Permission denied \(model.onnx\)"):
        registry.load("fraud", 2)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_change_to_a_manifest_loads_as_published_or_is_refused(tmp_path_factory, data, samples):
    """A manifest of any bytes gives a version or CorruptVersion, never another exception."""
    registry = Registry(tmp_path_factory.mktemp("store"))
    registry.publish(samples.draft(), samples.FILES)
    path = registry.root / "models/fraud/versions/1/manifest.json"
    raw = bytearray(path.read_bytes())
    start = data.draw(st.integers(0, len(raw)))
    end = min(len(raw), start + data.draw(st.integers(0, 20)))
    raw[start:end] = data.draw(
        st.binary(max_size=20) | st.sampled_from([b"null", b"-1", b"1e400", b'"\\ud800"', b"[]"])
    )
    rewrite(path, bytes(raw))
    try:
        loaded = registry.load("fraud", 1).files
    except CorruptVersion:
        return
    assert loaded == samples.FILES
