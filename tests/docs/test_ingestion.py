"""The page on ingestion: its commands, options, counts and declarations are those there are."""

from __future__ import annotations

import re
import typing
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path

import typer
import yaml
from typer.testing import CliRunner

from penstock.cli import app
from penstock.features import FeatureView
from penstock.features.aggregates import Function
from penstock.features.streams import Counts

PAGE = (Path(__file__).parents[2] / "docs" / "ingestion.md").read_text("utf-8")


def test_the_declaration_of_aggregates_is_taken():
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    view = FeatureView.parse(yaml.safe_load(block))
    assert view.aggregates is not None
    assert {column.function for column in view.aggregates.columns.values()} == {"count", "sum", "mean", "distinct"}


def test_every_option_it_names_exists():
    commands = typer.main.get_command(app).commands["features"].commands
    named = [commands[name] for name in ("apply", "dead-letters", "ingest", "stream")]
    known = {option for command in named for p in command.params for option in p.opts} | {"--slow"}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", PAGE)) <= known


def test_every_count_and_function_is_told():
    for name in (field.name for field in fields(Counts)):
        assert f"`{name}`" in PAGE
    table = PAGE.split("## Aggregates")[1]
    assert set(typing.get_args(Function)) <= set(re.findall(r"`(\w+)`", table))


def test_every_metric_of_a_consumer_is_told_and_no_other():
    source = (Path(__file__).parents[2] / "penstock" / "commands" / "_stream_metrics.py").read_text("utf-8")
    told = set(re.findall(r"`(penstock_stream_[a-z_]+)`", PAGE))
    assert {name.removesuffix("_total") for name in told} == set(re.findall(r'"(penstock_stream_[a-z_]+)"', source))


def test_its_commands_run(redis_url, tmp_path, monkeypatch):
    """An entry as it is shown becomes a row as it is shown."""
    import redis

    monkeypatch.setenv("PENSTOCK_FEATURES", redis_url)
    (tmp_path / "view.yaml").write_text(
        "{name: customer_activity, entity: customer_id, columns: [{name: transaction_count_7d, dtype: int64}]}"
    )
    shown = re.search(r"redis-cli (XADD .*)", PAGE)[1].replace("$(date -Is)", datetime.now(UTC).isoformat())
    words = re.sub(r"['\"]", "", shown).split()
    command = re.search(r"penstock (features stream customer_activity .*)", PAGE)[1].split()
    with redis.Redis.from_url(redis_url) as client:
        client.execute_command(*words)
    for arguments in (["features", "apply", str(tmp_path / "view.yaml")], [*command, "--once"]):
        found = CliRunner().invoke(app, arguments)
        assert found.exit_code == 0, found.output
    assert "wrote 1 rows" in found.stdout
    shown = CliRunner().invoke(app, ["features", "get", "customer_activity", "17", "--json"])
    assert '"transaction_count_7d": 42' in shown.stdout
