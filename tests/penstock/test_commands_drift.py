"""`penstock drift status`, as people see it."""

from __future__ import annotations

import pytest

from penstock.answers import FeatureDrift, ModelDrift
from penstock.commands import drift
from penstock.commands._console import console
from penstock.errors import PenstockError


def feature(name, psi, now=0.0, before=0.0):
    return FeatureDrift(name, 100, 0.1, 0.5, 0.2, psi, before, now)


def shown(features, score):
    with console.capture() as capture:
        drift.show(ModelDrift("fraud", "1", 0, 60_000, 100, True, tuple(features), score))
    return [line.replace("│", " ").split() for line in capture.get().splitlines()]


def test_what_moved_most_comes_first_and_the_score_last():
    lines = shown([feature("calm", 0.01), feature("moved", 2.0)], feature("score", 3.0))
    assert [line[0] for line in lines if "0.1000" in line] == ["moved", "calm", "score"]


def test_a_share_of_missing_values_that_changed_says_from_what():
    lines = shown([feature("a", 1.0, now=0.25, before=0.01), feature("b", 0.5, now=0.1, before=0.1)], None)
    assert ["25.0%,", "was", "1.0%"] in [line[-3:] for line in lines]
    assert ["0.5000", "10.0%"] in [line[-2:] for line in lines]


def test_a_table_of_long_names_fits_eighty_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    name = "days_since_last_transaction"
    assert [name] == [line[0] for line in shown([feature(name, 1.0)], None) if name in line][:1]


def test_brackets_in_names_are_no_markup():
    lines = shown([feature("amount_[eur]", 1.0), feature("a[/b]", 0.5)], None)
    assert [line[0] for line in lines if "0.1000" in line] == ["amount_[eur]", "a[/b]"]


def test_a_server_that_is_not_there_is_told_with_how_to_start_or_name_one():
    with pytest.raises(
        PenstockError, match=r"no server answers at 127\.0\.0\.1:1: .*penstock serve.*--server HOST:PORT"
    ):
        drift.status("fraud", version="", server="127.0.0.1:1", current=False, as_json=True)


def test_a_window_without_rows_is_one_line_and_no_table_of_nan():
    with console.capture() as capture:
        drift.show(ModelDrift("fraud", "1", 0, 60_000, 0, False, (feature("a", float("nan")),), None))
    assert capture.get() == "fraud v1: no rows, window still open 00:00:00 to 00:01:00 UTC\n"
