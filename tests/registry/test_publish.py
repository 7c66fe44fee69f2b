"""Publishing: whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest

from penstock.registry import InvalidDraft, InvalidName, Registry, StorageError, files
from penstock.registry import publish as publishing


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


class Operations:
    """Stands in for `files._call`: keeps a log, and can fail or shorten the n-th operation."""

    def __init__(self, monkeypatch):
        self.log: list[tuple] = []
        self.fail_at, self.errno = 0, 0
        self.fail_after = False
        monkeypatch.setattr(files, "_call", self)

    def __call__(self, operation, *args, **kwargs):
        self.log.append((operation, args, kwargs))
        failing = len(self.log) == self.fail_at
        if failing and not self.fail_after:
            raise OSError(self.errno, os.strerror(self.errno))
        result = operation(*args, **kwargs)
        if failing:
            raise OSError(self.errno, os.strerror(self.errno))
        return result

    def arm(self, n: int, code: int, *, after: bool = False):
        self.log.clear()
        self.fail_at, self.errno, self.fail_after = n, code, after


def test_versions_count_up_and_the_first_is_champion(registry, publish):
    assert [publish().version, publish().version, publish("churn").version] == [1, 2, 1]
    assert registry.models() == ["churn", "fraud"]
    assert registry.versions("fraud") == [1, 2]
    assert registry.aliases("fraud") == {"champion": 1}


def test_the_manifest_lists_every_file_with_its_digest(publish, samples):
    manifest = publish(content=b"abc")
    assert manifest.files["model.onnx"].sha256 == sha256(b"abc").hexdigest()
    assert set(manifest.files) == set(samples.FILES)


def test_published_files_are_read_only(publish, version_folder):
    publish()
    assert all(not stat.S_IMODE(p.stat().st_mode) & 0o222 for p in version_folder().iterdir())


def test_missing_folders_are_created_down_to_the_registry(tmp_path, samples):
    registry = Registry(tmp_path / "a" / "b" / "store")
    assert registry.publish(samples.draft(), samples.FILES).version == 1


@pytest.mark.parametrize("name", ["", ".", "..", ".x", "../x", "a/b", "a b", "a\n", "ä", "-a", "x" * 129, "a\0"])
def test_names_outside_the_allow_list_are_refused(publish, registry, samples, name):
    with pytest.raises(InvalidName, match="cannot be a model name"):
        publish(name)
    with pytest.raises(InvalidName, match="cannot be a file name"):
        registry.publish(samples.draft(), {**samples.FILES, name: b""})
    assert not registry.root.exists()


def test_the_manifest_cannot_be_handed_over_as_a_file(registry, samples):
    with pytest.raises(InvalidName, match="written by the registry"):
        registry.publish(samples.draft(), {**samples.FILES, "manifest.json": b""})


def test_a_draft_without_its_artifact_is_refused(registry, samples):
    with pytest.raises(InvalidDraft, match=r"'model.onnx' is the version's artifact"):
        registry.publish(samples.draft(), {"other.onnx": b""})


def test_a_manifest_over_the_limit_is_refused_and_leaves_nothing(registry, publish, monkeypatch):
    monkeypatch.setattr(publishing, "MAX_MANIFEST_BYTES", 500)
    with pytest.raises(InvalidDraft, match="more than 500"):
        publish()
    assert tree(registry.root) == {}


def test_a_number_taken_meanwhile_is_not_replaced_but_the_next_one_used(registry, publish, monkeypatch):
    original = files.rename_new

    def another_is_faster(*arguments):
        monkeypatch.setattr(files, "rename_new", original)
        publish(content=b"theirs")
        original(*arguments)

    monkeypatch.setattr(files, "rename_new", another_is_faster)
    assert publish(content=b"ours").version == 2
    assert registry.load("fraud", 1).files["model.onnx"] == b"theirs"
    assert registry.load("fraud", 2).files["model.onnx"] == b"ours"


@pytest.mark.parametrize("supported", [True, False], ids=["renameat2", "fallback"])
def test_publishers_at_the_same_time_all_succeed_with_versions_of_their_own(registry, publish, monkeypatch, supported):
    if not supported:
        monkeypatch.setattr(files, "_renameat2", None)
    with ThreadPoolExecutor(8) as pool:
        manifests = list(pool.map(lambda i: publish(content=b"%d" % i), range(40)))
    assert sorted(m.version for m in manifests) == registry.versions("fraud") == list(range(1, 41))
    for i, manifest in enumerate(manifests):
        assert registry.load("fraud", manifest.version).files["model.onnx"] == b"%d" % i
    assert names(registry.root / ".staging") == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("supported", [True, False], ids=["renameat2", "fallback"])
@pytest.mark.parametrize("after", [False, True], ids=["undone", "done"])
def test_an_error_of_any_operation_fails_cleanly(registry, publish, monkeypatch, code, supported, after):
    """`done`: the operation took effect although it reports an error, as over NFS."""
    if not supported:
        monkeypatch.setattr(files, "_renameat2", None)
    publish(content=b"old")
    old, operations, failures = tree(registry.root), Operations(monkeypatch), 0
    for n in range(1, 200):
        operations.arm(n, code, after=after)
        message = ""
        try:
            manifest = publish(content=b"new")
        except StorageError as error:
            message = str(error)
        reached = len(operations.log) >= n
        operations.arm(0, 0)
        assert names(registry.root / ".staging") == []
        if message:
            failures += 1
            assert os.strerror(code) in message
            assert "nothing was changed" in message
            assert tree(registry.root) == old
            continue
        assert registry.load("fraud", manifest.version).files["model.onnx"] == b"new"
        if not reached:
            break
        for path in (registry.root / "models/fraud/versions").glob("[2-9]*"):
            files.shutil.rmtree(path)
    assert failures > 15


def test_interrupted_publishing_leaves_no_staging(registry, publish, monkeypatch):
    publish()
    monkeypatch.setattr(files, "rename_new", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        publish()
    assert names(registry.root / ".staging") == []
    assert registry.versions("fraud") == [1]


def test_everything_is_flushed_before_the_version_appears_and_its_name_after(publish, monkeypatch):
    publish()
    operations = Operations(monkeypatch)
    publish()
    names = [operation.__name__ for operation, *_ in operations.log]
    rename = names.index("_rename_noreplace")
    writes = [args[0] for op, args, _ in operations.log[:rename] if op is os.write]
    flushed = [args[0] for op, args, _ in operations.log[:rename] if op is os.fsync]
    assert len(writes) == 3  # model.onnx, profile.json, manifest.json
    for descriptor in writes:
        assert descriptor in flushed
    assert names[rename - 1] == "fsync"  # the staged folder with its names
    assert names[rename + 1] == "fsync"  # versions/
    assert operations.log[rename + 1][1][0] == operations.log[rename][1][2]


def test_short_writes_are_completed(registry, publish, monkeypatch):
    def call(operation, *args, **kwargs):
        if operation is os.write:
            return os.write(args[0], args[1][:7])
        return operation(*args, **kwargs)

    monkeypatch.setattr(files, "_call", call)
    publish(content=b"x" * 1000)
    assert registry.load("fraud", 1).files["model.onnx"] == b"x" * 1000


def test_what_crashed_publishers_left_is_removed_once_old(registry, publish):
    publish()
    old, fresh = registry.root / ".staging" / "old", registry.root / ".staging" / "fresh"
    for folder in (old, fresh):
        folder.mkdir()
        (folder / "model.onnx").write_bytes(b"left")
    long_ago = time.time() - publishing.STALE_STAGING_S - 60
    os.utime(old, (long_ago, long_ago))
    publish()
    assert names(registry.root / ".staging") == ["fresh"]


def test_a_linked_model_folder_is_not_written_through(registry, publish, tmp_path):
    publish()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (registry.root / "models" / "churn").symlink_to(elsewhere)
    with pytest.raises(StorageError, match="churn is a link"):
        publish("churn")
    assert names(elsewhere) == []


def test_a_half_written_number_is_not_given_again(registry, publish, version_folder):
    publish()
    version_folder(version=2).mkdir()
    assert publish().version == 3
    assert registry.versions("fraud") == [1, 3]
