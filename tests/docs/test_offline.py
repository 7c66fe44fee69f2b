"""The page on offline features: its Python runs, its settings are taken, and the check prints what it shows."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from typer.testing import CliRunner

from penstock.cli import features as group
from penstock.features import open_store
from penstock.features.offline import served
from penstock.kernels.joins import SOURCE_STORE
from penstock.server.config import Config

app = group.app
PAGE = (Path(__file__).parents[2] / "docs" / "offline.md").read_text("utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture
def page(tmp_path, monkeypatch):
    """What its Python leaves behind, run in an empty folder."""
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in blocks("yaml"):
        (tmp_path / re.match(r"# ([\w.]+)\n", block)[1]).write_text(block)
    for block in blocks("python"):
        exec(compile(block, "offline.md", "exec"), names)
    return names


def test_the_python_of_the_page_runs_and_its_assertions_hold(page):
    assert page["training"].num_rows == 4


def test_the_settings_of_the_page_are_taken(tmp_path):
    (tmp_path / "serve.yaml").write_text(blocks("yaml")[-1])
    settings = Config.read(tmp_path / "serve.yaml").sample_served
    assert (settings.rate, settings.max_bytes) == (0.01, 64 << 20)


def test_the_commands_of_the_page_join_and_restore(page, tmp_path, monkeypatch):
    """The same training set from files, and a look-up that finds what the join finds now."""
    commands = {words[2]: words[2:] for block in blocks("bash") if (words := block.split())[1] == "features"}
    labels = pa.table(page["labels"])
    parquet.write_table(labels, tmp_path / "labels.parquet")
    done = CliRunner().invoke(app, commands["join"])
    assert done.exit_code == 0, done.output
    written = parquet.read_table(tmp_path / "training.parquet")
    joined = page["join"](page["labels"], page["view"], page["store"], time="at")
    assert str(written.to_pydict()) == str(joined.to_pydict())  # NaN is NaN
    monkeypatch.setenv("PENSTOCK_FEATURES", "memory://offline-page")
    with open_store("memory://offline-page") as store:
        store.apply(page["view"])
        done = CliRunner().invoke(app, commands["restore"])
        assert done.exit_code == 0, done.output


def test_the_history_of_the_page_is_compacted_by_its_command(page):
    page["store"].write(page["view"], page["history"], time="computed_at", created="known_at")
    before = page["join"](page["labels"], page["view"], page["store"], time="at")
    [command] = [block.split()[2:] for block in blocks("bash") if "compact" in block]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "files became" in done.output
    after = page["join"](page["labels"], page["view"], page["store"], time="at")
    assert str(after.to_pydict()) == str(before.to_pydict())


def test_the_check_prints_what_the_page_shows(page, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    noon = int(np.datetime64("2026-03-09T12:00", "ms").astype(np.int64))
    view = page["view"]
    origin = served.Origin(model="fraud", version=1, digest="d", columns=view.feature_names, views=(view,))
    values = np.array([[5, 21], [1, 5]], np.float32)
    sources = np.full((2, 2), SOURCE_STORE, np.uint8)
    page["store"].write(view, _more(), time="computed_at", created="computed_at")
    (tmp_path / "penstock-served").mkdir()
    rows = served.ServedRows(np.array([noon] * 2), [b"ada", b"bob"], values, sources)
    served.write(tmp_path / "penstock-served", origin, [rows])
    command = next(block for block in blocks("bash") if "check" in block).split()
    done = CliRunner().invoke(app, command[2:])
    assert done.exit_code == 1, done.output
    came = [" ".join(line.split()) for line in done.stdout.splitlines()]
    for line in blocks("text")[-1].splitlines():
        assert " ".join(line.split()) in came, done.stdout


def _more():
    """Bob's average, which the page leaves open."""
    return {"customer_id": ["bob"], "transactions_7d": [1], "avg_amount": [5.0], "computed_at": ["2026-03-09T00:00"]}


def options(command):
    shown = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"}).output
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", shown)) - {"--help"}


def test_every_option_of_the_check_is_told():
    told = set(re.findall(r"^\| `(--[a-z]+)`", PAGE, re.MULTILINE))
    assert told == options("check") - {"--sample", "--offline"}


def test_every_option_of_the_join_is_told():
    told = set(re.findall(r"^\| `[^`]*` \| `(--[a-z-]+)", PAGE, re.MULTILINE))
    assert told | {"--view", "--out", "--json", "--offline", "--features"} == options("join")
