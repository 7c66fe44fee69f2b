"""What the suite makes of its figures: ratios within rounds, tables, plots, files, what changed between runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from penstock.benchmarks import charts, compare, table
from penstock.benchmarks.cells import Kind
from penstock.benchmarks.results import Cell, NoResults, Results
from penstock.benchmarks.sides import Run

ONE, MANY = Cell(Kind("plain", "vector", 1), 1), Cell(Kind("plain", "vector", 1), 256)
IDS = Cell(Kind("joined", "id", 64), 256)
TITLES = {"native": "Penstock, native", "aio": "an echo", "triton": "Triton"}


def runs(*rates, p99=900.0):
    return [Run(rate, 2000 / rate, 1e5 / rate, 0.0, p99) for rate in rates]


@pytest.fixture
def results():
    cells = {
        ONE: {"native": runs(100, 110, 90), "aio": runs(50, 11, 45)},
        MANY: {"native": runs(1000, 1010, 990), "aio": runs(300, 310, 320)},
        IDS: {"native": runs(500, 510, 505)},
    }
    return Results(
        "2026-01-02T03:04:05+00:00",
        "a machine",
        {"penstock": "1"},
        0.8,
        TITLES,
        cells,
        {"native": 2**20},
        {"triton": "no such wheel"},
    )


def scaled(results, factor, *sides):
    """The same with the rates of these sides, or of all, times a factor."""
    found = {
        cell: {
            side: [replace(run, rate=run.rate * factor if side in (sides or TITLES) else run.rate) for run in known]
            for side, known in sides_.items()
        }
        for cell, sides_ in results.runs.items()
    }
    return replace(results, runs=found)


# ---- Results ---------------------------------------------------------------------------------------------------------


def test_ratios_are_taken_within_a_round_and_their_median_is_given(results):
    assert results.ahead(ONE, "aio") == 2.0  # of 2, 10 and 2
    assert results.ahead(IDS, "aio") is None
    assert results.median(ONE, "native").rate == 100
    assert results.median(ONE, "triton") is None
    assert results.sides(ONE.kind) == ["native", "aio"]
    assert (results.callers, results.rounds) == ([1, 256], 3)


def test_a_file_gives_back_what_was_written(results, tmp_path):
    path = tmp_path / "results.json"
    path.write_bytes(results.encode())
    assert Results.read(path) == results


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"{}", b'{"format": 1}', b'{"format": 1, "runs": {"a": {}}}', b'{"format": 1, "runs": 7}'],
)
def test_a_file_of_something_else_is_refused_in_words(content, tmp_path):
    path = tmp_path / "results.json"
    path.write_bytes(content)
    with pytest.raises(NoResults, match="holds no results"):
        Results.read(path)


def test_a_file_of_another_format_is_refused(tmp_path):
    path = tmp_path / "results.json"
    path.write_bytes(b'{"format": 2}')
    with pytest.raises(NoResults, match="its format is another one"):
        Results.read(path)


# ---- The table -------------------------------------------------------------------------------------------------------


def test_the_summary_has_a_row_for_each_side_and_says_what_is_left_out(results):
    lines = table.summary(results).splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("| logistic regression"))
    assert lines[first].startswith("| logistic regression, 1 row by vector | Penstock, native | 100 | 1,000 |")
    assert lines[first + 1].startswith("|  | an echo | 45 | 310 |")
    assert lines[first + 1].endswith("| 2 x / 3.3 x |")
    assert lines[first + 2].startswith("| logistic regression, 64 rows by id | Penstock, native | – | 505 |")  # noqa: RUF001
    assert "Left out: Triton: no such wheel" in lines
    assert "| Penstock, native | 1 |" in lines


def test_every_row_of_a_table_has_as_many_cells_as_its_header(results):
    for text in (table.summary(results), table.everything(results)):
        for block in text.split("\n\n"):
            rows = [line.count("|") for line in block.splitlines() if line.startswith("|")]
            assert len(set(rows)) <= 1


def test_everything_has_a_row_for_each_cell_of_each_side(results):
    assert table.everything(results).count("\n| logistic regression") == 5


def test_only_what_stands_between_the_markers_is_replaced():
    readme = f"above\n{table.BEGIN}\nold\n{table.END}\nbelow\n"
    once = table.replaced(readme, "new\n")
    assert once == f"above\n{table.BEGIN}\nnew\n{table.END}\nbelow\n"
    assert table.replaced(once, "new") == once


@pytest.mark.parametrize("readme", ["", table.BEGIN, table.END, f"{table.END}\n{table.BEGIN}"])
def test_a_readme_without_both_markers_is_left_alone(readme):
    with pytest.raises(NoResults, match="no lines"):
        table.replaced(readme, "new")


def test_our_readme_has_the_markers():
    readme = Path(__file__).parents[2] / "README.md"
    assert "\nnew\n" in table.replaced(readme.read_text(), "new")


# ---- Plots -----------------------------------------------------------------------------------------------------------


def test_the_page_has_two_charts_for_each_kind_of_request(results):
    page = charts.page(results)
    assert page.count("<svg") == 4
    assert page.count("<polyline") == 2 * 3
    assert "nan" not in page
    assert "http" not in page


def test_what_was_measured_at_one_number_of_callers_is_a_point(results):
    assert charts.points(results, IDS.kind, "native", "rate") == [(256, 505)]
    assert charts.chart([charts.Curve("red", [(256, 505.0)])]).count("<circle") == 1
    assert "Nothing was measured" in charts.chart([charts.Curve("red", [])])


# ---- What changed ----------------------------------------------------------------------------------------------------


def real(before, now):
    return [(str(c.cell), c.side, c.figure.field, c.is_regression) for c in compare.changes(before, now) if c.is_real]


def test_nothing_changed_between_a_run_and_itself(results):
    lines, worse = compare.report(results, results)
    assert not worse
    assert "12 figures, 0 changed, 0 of them for the worse" in lines


def test_a_slower_machine_is_no_regression(results):
    assert real(results, scaled(results, 0.6)) == []


def test_a_slower_penstock_is_a_regression(results):
    found = real(results, scaled(results, 0.7, "native"))
    assert ("plain/vector/1/256", "native", "rate", True) in found
    lines, worse = compare.report(results, scaled(results, 0.7, "native"))
    assert worse
    assert any(line.startswith("plain/vector/1/256, native: req/s 0.70 times as before (0.") for line in lines)


def test_a_faster_penstock_is_a_change_but_no_regression(results):
    assert ("plain/vector/1/256", "native", "rate", False) in real(results, scaled(results, 1.5, "native"))
    assert not compare.report(results, scaled(results, 1.5, "native"))[1]


def test_less_than_five_percent_is_a_tie_however_steady(results):
    assert real(results, scaled(results, 0.96, "native")) == []


def test_a_change_within_the_spread_of_rounds_is_none(results):
    wide = replace(results, runs={ONE: {"native": runs(100, 140, 60)}})
    assert real(wide, scaled(wide, 0.8)) == []
    steady = replace(results, runs={ONE: {"native": runs(100, 101, 99)}})
    assert real(steady, scaled(steady, 0.8)) == [("plain/vector/1/1", "native", "rate", True)]


def test_runs_without_a_cell_in_common_cannot_be_compared(results):
    with pytest.raises(NoResults, match="no cell of Penstock's in common"):
        compare.changes(replace(results, runs={}), results)
