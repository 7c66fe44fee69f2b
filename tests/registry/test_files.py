"""File operations: never through a link, never replacing, never a file whose size is not known."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from penstock.registry import files


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def folder(tmp_path):
    with files.opened(tmp_path) as descriptor:
        yield descriptor


def test_a_new_file_never_replaces_one_or_follows_a_link(folder, tmp_path):
    (tmp_path / "there").write_bytes(b"old")
    (tmp_path / "link").symlink_to("target")
    for name in ("there", "link"):
        with pytest.raises(FileExistsError):
            files.write_new(folder, name, b"new")
    assert (tmp_path / "there").read_bytes() == b"old"
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("supported", [True, False], ids=["renameat2", "fallback"])
@pytest.mark.parametrize("there", ["empty folder", "full folder", "file", "dangling link"])
def test_rename_never_replaces_anything(folder, tmp_path, monkeypatch, supported, there):
    if not supported:
        monkeypatch.setattr(files, "_renameat2", None)
    (tmp_path / "staged").mkdir()
    taken = tmp_path / "1"
    if "folder" in there:
        taken.mkdir()
    if there == "full folder":
        (taken / "x").write_bytes(b"")
    if there == "file":
        taken.write_bytes(b"")
    if there == "dangling link":
        taken.symlink_to("nowhere")
    before = os.lstat(taken).st_ino
    with pytest.raises(FileExistsError):
        files.rename_new(folder, "staged", folder, "1")
    assert os.lstat(taken).st_ino == before
    assert (tmp_path / "staged").is_dir()
    files.rename_new(folder, "staged", folder, "2")
    assert not (tmp_path / "staged").exists()


def test_the_fallback_gives_its_claim_back_when_the_rename_fails(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_renameat2", None)
    with pytest.raises(FileNotFoundError):
        files.rename_new(folder, "not there", folder, "1")
    assert names(tmp_path) == []


def test_no_component_below_the_start_is_followed(tmp_path):
    (tmp_path / "real" / "inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(files.Refused, match="link is a link"), files.opened(tmp_path, "link", "inner"):
        pass


def test_descriptors_are_given_back(tmp_path, folder):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "link").symlink_to("b")
    before = names(Path("/proc/self/fd"))
    with files.opened(tmp_path, "a", "b"), files.ensured(tmp_path, "a", "c"), files.opened(folder):
        pass
    for name in ("link", "missing"):
        with pytest.raises((files.Refused, FileNotFoundError)), files.opened(tmp_path, "a", name):
            pass
    assert len(names(Path("/proc/self/fd"))) == len(before)


def test_a_file_that_grows_while_it_is_read_is_refused(folder, tmp_path, monkeypatch):
    (tmp_path / "f").write_bytes(b"1234")

    def call(operation, *args, **kwargs):
        if operation is os.read:
            with (tmp_path / "f").open("ab") as file:
                file.write(b"5")
        return operation(*args, **kwargs)

    monkeypatch.setattr(files, "_call", call)
    with pytest.raises(files.Refused, match="changed while it was read"):
        files.read(folder, "f", 100)


def test_reads_larger_than_one_system_call_are_whole(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_LARGEST_READ", 7)
    (tmp_path / "f").write_bytes(bytes(range(100)))
    assert files.read(folder, "f", 100) == bytes(range(100))


def test_appending_cuts_off_a_torn_line_and_keeps_whole_ones(folder, tmp_path):
    for there, kept in [(b"", b""), (b"a\n", b"a\n"), (b"a\nb", b"a\n"), (b"b", b""), (b"a\n\0\0", b"a\n")]:
        (tmp_path / "log").write_bytes(there)
        files.append_line(folder, "log", b"new\n")
        assert (tmp_path / "log").read_bytes() == kept + b"new\n"
