"""What every command prints with: tables that fit a terminal, text that is printed as it is."""

from __future__ import annotations

import pytest

from penstock.commands._console import console, flowing, print_table


@pytest.fixture
def printed(monkeypatch):
    """Prints a table on a terminal of 80 columns; gives its lines."""
    monkeypatch.setenv("COLUMNS", "80")

    def printed(*table, **options):
        with console.capture() as capture:
            print_table(*table, **options)
        return capture.get().splitlines()

    return printed


def test_a_table_that_fits_has_a_frame(printed):
    assert printed("", ("a", "b"), [(1, 2)])[0].startswith("┏")


def test_a_table_whose_cells_would_fold_goes_without_its_frame(printed):
    """Six columns of ten characters and one of five: 65, 87 with a frame, and 79 with two blanks after each."""
    headers = [f"header-{i:03}" for i in range(6)]
    header, row = printed("", (*headers, "short"), [("0123456789",) * 6 + ("x",)])
    assert header.split() == [*headers, "short"]
    assert row.split() == ["0123456789"] * 6 + ["x"]


def test_help_text_flows_but_keeps_its_paragraphs():
    def command():
        """One line.

        The second paragraph
        goes on.
        """

    assert flowing(command.__doc__) == "One line.\n\nThe second paragraph goes on."
    assert flowing(None) == ""
