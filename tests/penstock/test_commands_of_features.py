"""What holds for every command of `penstock features`, those to come included."""

from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

from penstock.cli import app
from penstock.errors import PenstockError
from penstock.features import StoreMisconfigured, StoreUnavailable, UnknownView

COMMANDS = typer.main.get_command(app).commands["features"].commands
YAML = "{name: activity, entity: customer, columns: [{name: amount, dtype: float64}]}"
WORDS = {  # how each is called with a view that is not there
    "get": ["get", "nothing", "17"],
    "ingest": ["ingest", "nothing", "rows.csv"],
    "show": ["show", "nothing"],
    "stats": ["stats", "nothing"],
    "stream": ["stream", "nothing", "--stream", "events", "--once"],
    "delete": ["delete", "nothing", "17"],
}
STORELESS = {"check", "compact", "fit", "join"}  # that need no store, or not always


def options(name):
    return {option for parameter in COMMANDS[name].params for option in parameter.opts}


def call(*words):
    result = CliRunner().invoke(app, ["features", *words])
    if result.exception is not None:
        raise result.exception
    return result.stdout


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """With a view and a table."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PENSTOCK_FEATURES", raising=False)
    (tmp_path / "view.yaml").write_text(YAML)
    (tmp_path / "rows.csv").write_text("customer,amount\n17,1\n")
    return tmp_path


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_it_has_json_and_an_example_that_uses_its_own_options(name):
    shown = " ".join(CliRunner().invoke(app, ["features", name, "--help"], env={"COLUMNS": "300"}).stdout.split())
    example = shown.partition(f"Example: penstock features {name}")[2].partition("╭")[0]
    assert example.strip()
    assert "--json" in options(name)
    assert {word for word in example.split() if word.startswith("--")} <= options(name)
    undocumented = [p.name for p in COMMANDS[name].params if not p.help]
    assert undocumented == []


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - STORELESS))
def test_it_takes_the_url_of_a_store_and_names_every_form(name):
    [url] = [parameter for parameter in COMMANDS[name].params if "--features" in parameter.opts]
    for form in ("redis://", "rediss", "redis+cluster://", "redis+sentinel://", "unix://", "embedded://"):
        assert form in url.help


@pytest.mark.parametrize("name", sorted(WORDS))
def test_an_unknown_view_is_named_with_what_to_do(name, folder, redis_url, monkeypatch):
    monkeypatch.setenv("PENSTOCK_FEATURES", redis_url)
    with pytest.raises(UnknownView, match=r"no view 'nothing' in the feature store at .*; apply its YAML file first"):
        call(*WORDS[name])


def test_a_misspelt_view_is_answered_with_the_one_that_was_meant(folder, monkeypatch):
    monkeypatch.setenv("PENSTOCK_FEATURES", f"memory://{folder.name}")
    call("apply", "view.yaml")
    with pytest.raises(UnknownView, match=r"no view 'activty' in .*; did you mean 'activity'\?"):
        call("show", "activty")


@pytest.mark.parametrize("name", [*sorted(WORDS), "list", "apply"])
@pytest.mark.parametrize(
    ("url", "error", "told"),
    [
        ("redis://127.0.0.1:1", StoreUnavailable, "--features URL or PENSTOCK_FEATURES says where the store is"),
        ("reddis://host", StoreMisconfigured, "a feature store's URL begins with redis://"),
        ("localhost:6379", StoreMisconfigured, "this one has no scheme"),
        ("redis+sentinel://127.0.0.1:1", StoreMisconfigured, "ends with the name of Sentinel's service"),
    ],
)
def test_a_wrong_url_is_one_clear_line(name, folder, url, error, told):
    words = WORDS.get(name, [name, "view.yaml"] if name == "apply" else [name])
    with pytest.raises(error) as caught:
        call(*words, "--features", url)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (folder / "penstock-features").exists()


def test_a_folder_without_a_store_is_told_of_before_anything_is_made(folder):
    for words in WORDS.values():
        with pytest.raises(PenstockError, match=r"no feature store in .*penstock features apply FILE.*--features URL"):
            call(*words)
    assert not (folder / "penstock-features").exists()


def test_every_command_that_tells_something_tells_it_in_json(folder, monkeypatch):
    monkeypatch.setenv("PENSTOCK_FEATURES", f"memory://{folder.name}")
    (folder / "steps.yaml").write_text("- {op: standardize, columns: [amount]}")
    lines = [
        "apply view.yaml --dry-run",
        "apply view.yaml",
        "ingest activity rows.csv",
        "get activity 17",
        "list",
        "show activity",
        "stats",
        "stats activity",
        "fit steps.yaml rows.csv --columns amount",
        "delete activity 17 --dry-run",
        "delete activity --all",
    ]
    for line in lines:
        json.loads(call(*line.split(), "--json"))
