"""Every command of `penstock features` that asks a store, in the order in which people come to them."""

from __future__ import annotations

import json

import redis
from typer.testing import CliRunner

from penstock.cli import app

VIEWS = """
- name: visits
  entity: id
  columns: [{name: n, dtype: int64}]
- name: spending
  entity: id
  columns: [{name: sum_7d, dtype: float64}]
  aggregates: {columns: {sum_7d: {function: sum, of: amount, window: 7d}}}
"""


def walk(url: str, client: redis.Redis, folder) -> None:
    """Apply, list, show, ingest, get, stats, stream and delete on an empty store; `client` reaches any of its keys."""

    def run(*words):
        result = CliRunner().invoke(app, ["features", *words, "--features", url])
        assert result.exit_code == 0, result.output or result.exception
        return json.loads(result.stdout) if "--json" in words else result.stdout

    (folder / "views.yaml").write_text(VIEWS)
    (folder / "rows.csv").write_text("id,n\n" + "".join(f"{i},{i}\n" for i in range(200)))
    assert run("apply", str(folder / "views.yaml")).endswith("applied\n")
    assert "nothing to do" in run("apply", str(folder / "views.yaml"))
    assert [view["name"] for view in run("list", "--json")] == ["spending", "visits"]
    assert run("show", "visits", "--json")["columns"][0]["name"] == "n"

    report = run("ingest", "visits", str(folder / "rows.csv"), "--json")
    assert (report["rows"], report["older"]) == (200, 0)
    assert [one["values"]["n"] for one in run("get", "visits", *map(str, range(20)), "--json")] == list(range(20))
    (stats,) = run("stats", "visits", "--json")
    assert (stats["rows"], stats["is_exact"], stats["nulls"]) == (200, True, {"n": 0})

    for i in range(100):
        client.xadd("visits-now", {"id": i % 10, "n": 1000 + i})
        client.xadd("purchases", {"id": i % 10, "amount": i})
    client.xadd("purchases", {"id": 3, "amount": "much"})
    consumed = run("stream", "visits", "--stream", "visits-now", "--once", "--json")
    assert (consumed["read"], consumed["written"], consumed["rejected"]) == (100, 100, 0)
    consumed = run("stream", "spending", "--stream", "purchases", "--once", "--json")
    assert (consumed["read"], consumed["written"], consumed["rejected"]) == (101, 100, 1)
    assert client.xlen("purchases:dead") == 1
    told = run("get", "spending", *map(str, range(10)), "--json")
    assert [one["values"]["sum_7d"] for one in told] == [sum(range(i, 100, 10)) for i in range(10)]

    (letter,) = run("dead-letters", "purchases:dead", "--json")
    assert letter["fields"] == {"id": "3", "amount": "much"}
    assert run("delete", "spending", "1", "2", "--json")["rows"] == 2
    told = run("delete", "spending", "--all", "--json")
    assert (told["rows"], told["definition"]) == (8, True)
    assert run("delete", "visits", "--all", "--json")["rows"] == 200
    assert run("list", "--json") == []
    assert not [key for key in client.scan_iter("fs:*") if not key.startswith(b"fs:views")]
