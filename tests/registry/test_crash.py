"""A crash at any instant leaves the registry at the old or the new state, and the next publisher goes on from there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

DRIVER = Path(__file__).with_name("crash_driver.py")
NOTHING: dict = {}
ONE = {"fraud": {"versions": {"1": "old"}, "aliases": {"champion": 1}, "serving": 1}}
FIRST = {"fraud": {"versions": {"1": "new"}, "aliases": {"champion": 1}, "serving": 1}}
TWO = {"fraud": {"versions": {"1": "old", "2": "new"}, "aliases": {"champion": 1}, "serving": 1}}
MOVED = {"fraud": {"versions": {"1": "old", "2": "new"}, "aliases": {"champion": 2}, "serving": 2}}
STATES = {"publish-first": (NOTHING, FIRST), "publish-next": (ONE, TWO), "promote": (TWO, MOVED)}


def crashes(folder: Path, *arguments: str) -> list[dict]:
    done = subprocess.run([sys.executable, DRIVER, folder, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def without_history(state: dict) -> dict:
    return {name: {k: v for k, v in model.items() if k != "history"} for name, model in state.items()}


@pytest.mark.parametrize("mode", ["before", "after", "torn"])
@pytest.mark.parametrize("action", STATES)
def test_a_crash_at_any_operation_leaves_the_old_or_the_new_state(tmp_path, action, mode):
    old, new = STATES[action]
    found = crashes(tmp_path, action, mode)
    states = [without_history(line["crashed"]) for line in found]
    assert [line["status"] for line in found] == [9] * (len(found) - 1) + [0]
    assert len(found) > 25  # the shim was in force
    turn = states.index(new)
    assert states == [old] * turn + [new] * (len(states) - turn)


@pytest.mark.parametrize("mode", ["before", "after", "torn"])
def test_the_history_tells_a_move_exactly_when_it_took_effect(tmp_path, mode):
    for line in crashes(tmp_path, "promote", mode):
        told = [[1, None, 1], [2, 1, 2]][: line["crashed"]["fraud"]["serving"]]
        assert line["crashed"]["fraud"]["history"] == told
        assert line["after"]["fraud"]["history"] == [[1, None, 1], [2, 1, 2]]


@pytest.mark.parametrize("mode", ["before", "after"])
def test_without_renameat2_a_crash_leaves_the_old_or_the_new_state_too(tmp_path, mode):
    found = crashes(tmp_path, "publish-next", mode, "fallback")
    states = [without_history(line["crashed"]) for line in found]
    assert all(state in (ONE, TWO) for state in states)
    assert states[0] == ONE
    assert states[-1] == TWO


@pytest.mark.parametrize("mode", ["before", "after", "torn"])
def test_publishing_goes_on_after_a_crash(tmp_path, mode):
    for line in crashes(tmp_path, "publish-first", mode):
        there = line["crashed"].get("fraud", {"versions": {}})["versions"]
        assert len(line["after"]["fraud"]["versions"]) == len(there) + 1
        assert line["after"]["fraud"]["serving"] == 1
