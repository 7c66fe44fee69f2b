"""Aliases: promotion, the way back, and a history that loses nothing."""

from __future__ import annotations

import errno
import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.registry import (
    CorruptAliases,
    CorruptVersion,
    InvalidName,
    NothingEarlier,
    RegistryBusy,
    StorageError,
    UnknownAlias,
    UnknownModel,
    UnknownVersion,
    aliases,
    files,
)
from penstock.registry.aliases import Aliases, promoted, rolled_back


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def four(registry, publish):
    """A model with four versions; the first is champion."""
    for number in range(1, 5):
        publish(content=b"%d" % number)
    return registry


@pytest.fixture
def model(four):
    return four.root / "models" / "fraud"


def moves(registry) -> list[tuple]:
    return [(move.alias, move.old, move.new) for move in registry.history("fraud")]


def test_promotion_moves_the_champion_and_records_who_and_why(four):
    move = four.promote("fraud", 3, who="grace", why="better recall")
    assert (move.old, move.new, move.who, move.why, move.number) == (1, 3, "grace", "better recall", 2)
    assert four.aliases("fraud") == {"champion": 3}
    assert four.resolve("fraud") == 3
    assert four.history("fraud")[-1] == move
    assert moves(four) == [("champion", None, 1), ("champion", 1, 3)]


def test_the_first_champion_is_recorded_in_the_publishers_name(four):
    first = four.history("fraud")[0]
    assert (first.who, first.why, first.old, first.new) == ("ada", "first version", None, 1)


def test_rollbacks_walk_back_one_promotion_at_a_time(four):
    for version in (2, 3, 4):
        four.promote("fraud", version)
    assert [four.rollback("fraud").new for _ in range(3)] == [3, 2, 1]
    with pytest.raises(NothingEarlier, match="nothing earlier"):
        four.rollback("fraud")
    assert four.aliases("fraud") == {"champion": 1}


def test_what_was_rolled_back_from_is_not_returned_to(four):
    four.promote("fraud", 2)
    four.promote("fraud", 3)
    four.rollback("fraud")
    four.promote("fraud", 4)
    assert [four.rollback("fraud").new for _ in range(2)] == [2, 1]


def test_each_alias_has_a_way_back_of_its_own(four):
    four.promote("fraud", 2, alias="challenger")
    four.promote("fraud", 3)
    four.promote("fraud", 4, alias="challenger")
    four.rollback("fraud", alias="challenger")
    assert four.aliases("fraud") == {"challenger": 2, "champion": 3}
    with pytest.raises(NothingEarlier):
        four.rollback("fraud", alias="challenger")


def test_promoting_to_where_the_alias_points_records_nothing(four):
    before = four.history("fraud")
    move = four.promote("fraud", 1)
    assert (move.old, move.new) == (1, 1)
    assert four.history("fraud") == before


def test_a_corrupt_version_is_not_promoted(four, version_folder):
    (version_folder(version=2) / "extra").write_bytes(b"")
    with pytest.raises(CorruptVersion):
        four.promote("fraud", 2)
    with pytest.raises(UnknownVersion):
        four.promote("fraud", 9)
    assert moves(four) == [("champion", None, 1)]


def test_a_rollback_to_a_corrupt_version_is_refused_and_changes_nothing(four, version_folder):
    four.promote("fraud", 2)
    (version_folder(version=1) / "extra").write_bytes(b"")
    with pytest.raises(CorruptVersion, match="version 1 is refused"):
        four.rollback("fraud")
    assert four.aliases("fraud") == {"champion": 2}


def test_references_are_numbers_aliases_or_the_champion(four):
    four.promote("fraud", 3, alias="shadow")
    assert [four.resolve("fraud", r) for r in ("", "champion", "shadow", "4")] == [1, 1, 3, 4]
    with pytest.raises(UnknownAlias, match="no alias called 'gold'; aliases there: champion, shadow"):
        four.resolve("fraud", "gold")
    with pytest.raises(UnknownVersion):
        four.resolve("fraud", "5")
    with pytest.raises(UnknownAlias):
        four.resolve("fraud", "../1")
    with pytest.raises(UnknownModel):
        four.resolve("churn")


@pytest.mark.parametrize("alias", ["3", "007", "", "..", "a/b", ".x", "٣"])
def test_aliases_outside_the_allow_list_are_refused(four, alias):
    with pytest.raises(InvalidName):
        four.promote("fraud", 2, alias=alias)


def test_without_aliases_file_the_first_version_is_champion(four, model):
    (model / "aliases.json").unlink()
    (model / "history.jsonl").unlink()
    assert four.resolve("fraud") == 1
    assert four.promote("fraud", 2).old == 1
    assert four.rollback("fraud").new == 1


def test_files_are_stored_with_sorted_keys_and_a_newline_at_the_end(four, model):
    four.promote("fraud", 2, why="größer \udcff")
    content = (model / "aliases.json").read_bytes()
    assert content == (json.dumps(json.loads(content), sort_keys=True, indent=2, ensure_ascii=False) + "\n").encode()
    lines = (model / "history.jsonl").read_text("utf-8").splitlines()
    assert "größer ?" in lines[-1]
    assert [list(json.loads(line)) == sorted(json.loads(line)) for line in lines] == [True, True]


def test_a_torn_last_line_is_ignored_and_cut_off_by_the_next_move(four, model):
    four.promote("fraud", 2)
    with (model / "history.jsonl").open("ab") as file:
        file.write(b'{"alias": "cham')
    assert moves(four) == [("champion", None, 1), ("champion", 1, 2)]
    four.promote("fraud", 3)
    assert moves(four) == [("champion", None, 1), ("champion", 1, 2), ("champion", 2, 3)]
    assert b"cham\n" not in (model / "history.jsonl").read_bytes()


def test_a_move_whose_history_line_is_torn_is_still_told_and_then_mended(four, model):
    four.promote("fraud", 2)
    path = model / "history.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    assert moves(four) == [("champion", None, 1), ("champion", 1, 2)]
    four.rollback("fraud")
    assert moves(four) == [("champion", None, 1), ("champion", 1, 2), ("champion", 2, 1)]
    assert path.read_bytes().count(b"\n") == 3


def test_a_damaged_earlier_line_is_named(four, model):
    four.promote("fraud", 2)
    path = model / "history.jsonl"
    path.write_bytes(b"nonsense\n" + path.read_bytes())
    with pytest.raises(CorruptAliases, match=r"history.jsonl line 1 does not parse"):
        four.history("fraud")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": 2}', b'{"aliases": {"champion": {"version": 0}}}'])
def test_a_damaged_aliases_file_is_refused_with_a_way_out(four, model, content):
    (model / "aliases.json").unlink()
    (model / "aliases.json").write_bytes(content)
    with pytest.raises(
        CorruptAliases, match=r"aliases of 'fraud' are refused: aliases.json does not parse.*Mend or remove"
    ):
        four.resolve("fraud")
    assert four.load("fraud", 1)  # versions are readable all the same


def test_linked_aliases_and_history_are_refused(four, model):
    for name in ("aliases.json", "history.jsonl"):
        (model / name).rename(model / "aside")
        (model / name).symlink_to("aside")
        with pytest.raises(CorruptAliases, match=f"{name} is a symbolic link"):
            four.history("fraud")
        (model / name).unlink()
        (model / "aside").rename(model / name)


def test_movers_at_the_same_time_lose_no_move(four):
    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(lambda i: four.promote("fraud", 1 + i % 4, alias=f"a{i % 3}"), range(48)))
    history = four.history("fraud")
    assert [move.number for move in history] == list(range(1, len(history) + 1))
    assert sorted(m.number for m in done if m.old != m.new) == [m.number for m in history[1:]]
    for alias, version in four.aliases("fraud").items():
        assert [m.new for m in history if m.alias == alias][-1] == version


def test_a_lock_held_too_long_is_reported(four, model, monkeypatch):
    monkeypatch.setattr(aliases, "LOCK_TIMEOUT_S", 0.0)
    with files.opened(model) as folder, files.locked(folder, ".lock", 0.0):
        with pytest.raises(RegistryBusy, match="another process"):
            four.promote("fraud", 2)
        assert four.resolve("fraud") == 1  # readers never wait


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_an_error_of_any_operation_leaves_the_old_or_the_new_state(four, model, monkeypatch, code):
    original, failures = files._call, 0
    for n in range(1, 200):
        count = 0

        def call(operation, *args, **kwargs):
            nonlocal count
            count += 1
            if count == n:  # noqa: B023
                raise OSError(code, os.strerror(code))
            return original(operation, *args, **kwargs)

        before = four.aliases("fraud"), four.history("fraud")
        target = before[0]["champion"] % 4 + 1
        monkeypatch.setattr(files, "_call", call)
        message = ""
        try:
            four.promote("fraud", target)
        except StorageError as error:
            message = str(error)
        monkeypatch.setattr(files, "_call", original)
        after = four.aliases("fraud"), four.history("fraud")
        assert names(four.root / ".staging") == []
        if message:
            failures += 1
            assert os.strerror(code) in message
        if not message or after != before:
            assert after[0] == {"champion": target}
            assert len(after[1]) == len(before[1]) + 1
        if count < n:
            break
    assert failures > 15
    four.promote("fraud", before[0]["champion"])
    assert [m.number for m in four.history("fraud")] == list(range(1, len(four.history("fraud")) + 1))


def test_a_move_stands_although_the_history_cannot_be_written(four, model, monkeypatch, caplog):
    def full(*_args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(files, "append_line", full)
        four.promote("fraud", 2)
    assert "history.jsonl could not be written yet" in caplog.text
    assert moves(four) == [("champion", None, 1), ("champion", 1, 2)]
    four.promote("fraud", 3)
    assert (model / "history.jsonl").read_bytes().count(b"\n") == 3


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 5) | st.none(), max_size=30))
def test_rollback_is_the_inverse_of_promotion(steps):
    """Against a plain stack; None is a rollback."""
    state, stack = Aliases(), []
    for step in steps:
        if step is not None:
            state = promoted(state, "champion", step, aliases.now(), "x", "")
            stack.append(step)
        elif len(stack) > 1:
            state = rolled_back(state, "champion", aliases.now(), "x", "")
            stack.pop()
        elif stack:
            with pytest.raises(NothingEarlier):
                rolled_back(state, "champion", aliases.now(), "x", "")
        if stack:
            assert state.aliases["champion"].version == stack[-1]
            assert state.last_move.new == stack[-1]


def test_steps_back_and_aliases_are_bounded():
    state = Aliases()
    for version in range(1, 300):
        state = promoted(state, "champion", version, aliases.now(), "x", "")
    assert len(state.aliases["champion"].previous) == aliases.MAX_STEPS_BACK
    for number in range(aliases.MAX_ALIASES - 1):
        state = promoted(state, f"a{number}", 1, aliases.now(), "x", "")
    with pytest.raises(UnknownAlias, match="the most there can be"):
        promoted(state, "one-more", 1, aliases.now(), "x", "")
