"""The guide of docs/features.md, done as it says (see conftest.py), and what else the page claims."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from penstock import Client
from penstock.features import open_store

PAGE = Path(__file__).parents[2] / "docs" / "features.md"


def test_the_guide_works_from_its_first_command_to_its_last(reader):
    reader.follow(PAGE)
    assert reader.server is not None


def test_what_was_trained_is_what_is_served_before_and_after_the_change(reader):
    with open_store(f"embedded://{reader.folder / 'penstock-features'}") as store:
        found = store.get("customer", ["c0042", "nobody", "a stranger"])
        [former] = found.view.former
        assert [column.name for column in former.columns] == ["visits_30d", "spent_30d", "plan", "taste", "city"]
        names = list(found.view.feature_names)
        matrix = np.delete(found.matrix(), names.index("returns_30d"), axis=1)
    with Client(f"127.0.0.1:{reader.ports[0]}") as client:
        served = client.predict("churn", entity_ids=["c0042", "nobody", "a stranger"], outputs=["penstock.features"])
        np.testing.assert_array_equal(served["penstock.features"], matrix)


@pytest.mark.parametrize("claim", ["last 16 former schemas", "At most 60,000 bytes\nand 4,096 numbers a row"])
def test_limits_are_told_as_they_are(claim):
    from penstock.features.schema import MAX_COLUMNS, MAX_FORMER, MAX_ROW

    assert (MAX_FORMER, MAX_ROW, MAX_COLUMNS) == (16, 60_000, 4096)
    assert claim in PAGE.read_text("utf-8")
