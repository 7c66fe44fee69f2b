"""The CSV is perf_analyzer's: its columns, its order, its units."""

from __future__ import annotations

import csv

import pytest

from penstock.bench import perf_csv

PHASES = {"queue": 11.7, "compute_input": 2.2, "compute_infer": 30.9, "compute_output": 3.1, "success": 50.0}
# What model_analyzer, which reads perf_analyzer's CSV, looks up in each row, and in which unit.
READ = ["Inferences/Second", "Avg latency", "p90 latency", "p95 latency", "p99 latency", "request/response"]
READ += ["response wait", "Server Queue", "Server Compute Infer", "Server Compute Input", "Server Compute Output"]


def written(path, levels):
    perf_csv.write(path, levels)
    with path.open() as file:
        return list(csv.DictReader(file, delimiter=","))


def test_columns_are_those_of_perf_analyzer(tmp_path, level):
    perf_csv.write(tmp_path / "a.csv", [level(server_us=PHASES)])
    assert (tmp_path / "a.csv").read_text().splitlines()[0] == (
        "Concurrency,Inferences/Second,Client Send,Network+Server Send/Recv,Server Queue,Server Compute Input,"
        "Server Compute Infer,Server Compute Output,Client Recv,p50 latency,p90 latency,p95 latency,p99 latency,"
        "Avg latency,request/response,response wait"
    )


def test_a_reader_of_perf_analyzers_csv_finds_all_it_looks_for(tmp_path, level):
    (row,) = written(tmp_path / "a.csv", [level([100] * 95 + [200] * 5, rows=4, server_us=PHASES)])
    found = {name: float(row[name]) for name in READ}
    assert found["Inferences/Second"] == 400
    assert found["Avg latency"] == 105
    assert found["p99 latency"] == pytest.approx(200, abs=1)
    assert found["Server Queue"] == 11
    phases = sum(float(row[name]) for name in row if name.startswith("Server "))
    assert float(row["Network+Server Send/Recv"]) == pytest.approx(105 - phases, abs=4)


def test_rows_ascend_by_throughput_and_rates_have_their_own_column(tmp_path, level):
    levels = [level([100] * n, callers=0, rate=rate) for n, rate in ((500, 1000), (90, 100.5))]
    rows = written(tmp_path / "a.csv", levels)
    assert [row["Request Rate"] for row in rows] == ["100.5", "1000"]
    assert "Server Queue" not in rows[0]


def test_cache_columns_appear_where_the_server_has_hits(tmp_path, level):
    (row,) = written(tmp_path / "a.csv", [level(server_us=PHASES | {"cache_hit": 4.0, "cache_miss": 6.0})])
    assert (row["Server Cache Hit"], row["Server Cache Miss"]) == ("4", "6")


def test_a_level_without_answers_has_zeros(tmp_path, level):
    (row,) = written(tmp_path / "a.csv", [level([])])
    assert {row[name] for name in ("Inferences/Second", "p50 latency", "Avg latency")} == {"0"}
