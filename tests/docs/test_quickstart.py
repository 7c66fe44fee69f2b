"""The quickstart page, done as it says (see conftest.py)."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from penstock import Client

PAGE = Path(__file__).parents[2] / "docs" / "quickstart.md"


def test_the_page_works_from_its_first_command_to_its_last(reader):
    reader.follow(PAGE)
    assert reader.server is not None
    assert "3 rows" in reader.said  # the three calls of client.py, in the drift table


def test_what_the_page_published_answers_by_customer_id(reader):
    with Client(f"127.0.0.1:{reader.ports[0]}") as client:
        answer = client.predict("fraud", entity_ids=["c000042"], overrides={"amount": [30.0], "hour": [14]})
    assert answer["probabilities"].shape == (1, 2)
    assert answer["probabilities"].sum() == pytest.approx(1, abs=1e-5)


def test_ctrl_c_ends_the_server_as_the_page_says(reader):
    reader.server.send_signal(signal.SIGINT)
    assert reader.server.wait(20) == 0


def test_the_page_is_ten_steps():
    steps = re.findall(r"^## (\d+)\. ", PAGE.read_text("utf-8"), re.MULTILINE)
    assert steps == [str(n) for n in range(1, 11)]
