"""The report says what one must know to read its figures."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import orjson
import pytest

from penstock.bench import options, pictures, plots, report
from penstock.bench.target import BenchFailed, Target
from penstock.bench.work import Work

TARGET = Target("localhost:8001", "127.0.0.1", 8001, local=True)
WORK = Work("fraud", 1, [b""] * 300, 5000, ())


def remarks(*levels, work=WORK):
    return "\n".join(report.remarks(work, levels))


def test_the_table_has_a_row_for_each_level_and_no_empty_columns(level):
    headers, rows = report.table(WORK, [level(callers=1), level([50] * 2000, callers=32)])
    assert headers == ["Callers", "Req/s", "p50", "p90", "p99", "p99.9", "p99.99", "max"]
    assert rows[1][:3] == ["32", "2,000", "50.0"]


def test_rows_cpu_and_errors_have_columns_where_there_are_any(level):
    work = Work("fraud", 64, [b""], 5000, ())
    headers, rows = report.table(work, [level(rows=64, cpu_s=0.5, errors={"UNAVAILABLE": 3})])
    shown = dict(zip(headers, rows[0], strict=True))
    assert (shown["Rows/s"], shown["CPU µs"], shown["Errors"]) == ("6,400", f"{0.5 / 103 * 1e6:.1f}", "3")


def test_errors_are_named_with_the_servers_words(level):
    said = remarks(level(errors={"UNAVAILABLE": 1234}, words={"UNAVAILABLE": "queue full"}))
    assert "8 callers: 1,234 UNAVAILABLE (queue full)" in said


def test_an_open_loop_says_whether_it_kept_its_schedule_and_the_server_kept_up(level):
    good = remarks(level([100] * 1000, callers=0, rate=1000, lags_us=[10] * 1000))
    assert "100.00% of requests were sent within 1 ms of when they were due" in good
    assert "were answered" not in good.split("\n", 1)[1]
    bad = remarks(level([100] * 500, callers=0, rate=1000, lags_us=[10] * 500 + [5000] * 500))
    assert "1,000 requests a second were due, and 500 were answered" in bad
    assert "only 50.00% of requests were sent within 1 ms" in bad


def test_instability_few_rows_and_an_early_end_are_told(level):
    few = Work("fraud", 1, [b""] * 3, 3, ())
    said = remarks(level(stable=False, ended="interrupted", unanswered=4), work=few)
    for words in ("not stable", "Only 3 different rows", "ended early: interrupted", "4 calls had no answer"):
        assert words in said


def test_json_holds_every_percentile_and_no_nan(level, span):
    slices = [span([100] * 5, start_s=0.1 * i, seconds=0.1) for i in range(3)] + [span([], start_s=0.3)]
    levels = [level([100] * 1000, slices=slices), level([], callers=16)]
    read = orjson.loads(orjson.dumps(report.as_json(TARGET, WORK, levels, 7)))
    first, empty = read["levels"]
    assert first["latency_us"]["p99.99"] == pytest.approx(100, rel=0.005)
    assert first["over_time"][1] == {"at_s": 0.1, "seconds": 0.1, "requests": 5} | {
        key: pytest.approx(100, rel=0.005) for key in ("p50", "p99", "max")
    }
    assert first["over_time"][3]["p50"] is empty["latency_us"]["p50"] is None


def test_plots_are_svg_that_a_parser_reads_with_every_level_named(level, span):
    slices = [span([100, 9000], start_s=0.1 * i, seconds=0.1) for i in range(10)]
    levels = [level([50 + i for i in range(5000)], slices=slices), level([80] * 50, callers=32, slices=slices)]
    made = plots.page("a <heading>", levels, ["a & remark"])
    assert "a &lt;heading&gt;" in made
    charts = [ET.fromstring(f"<svg{part.split('</svg>')[0]}</svg>") for part in made.split("<svg")[1:]]
    assert len(charts) == 3
    texts = [text.text for text in charts[0].iter("text")]
    assert {"8 callers", "32 callers", "p99.9", "100 µs"} <= set(texts)
    for chart in charts:
        for line in chart.iter("polyline"):
            points = [tuple(map(float, point.split(","))) for point in line.get("points").split()]
            assert points == sorted(points)
            assert all(0 <= x <= plots.WIDTH and 0 <= y <= plots.HEIGHT for x, y in points)


def test_a_run_without_answers_still_makes_a_page(level):
    assert "No request was answered" in plots.page("x", [level([])], [])


def test_the_same_plots_are_drawn_as_a_picture(level, span, tmp_path):
    pytest.importorskip("matplotlib")
    slices = [span([100, 9000], start_s=0.1 * i, seconds=0.1) for i in range(10)]
    levels = [level([50 + i for i in range(5000)], slices=slices), level([], callers=32)]
    pictures.write(tmp_path / "a.png", "a <heading>", levels)
    data = (tmp_path / "a.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert int.from_bytes(data[16:20], "big") > 600  # pixels across


def test_a_picture_without_matplotlib_is_refused_before_anything_is_measured(monkeypatch, tmp_path):
    monkeypatch.setattr(pictures, "drawable", lambda: False)
    with pytest.raises(BenchFailed, match=r"pip install 'penstock\[plots\]'"):
        options.check_files(None, tmp_path / "a.png")
