"""The page of transforms: its example runs, and its table has every operation there is."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from penstock.cli import app
from penstock.features.steps import TransformSpec
from penstock.kernels.transforms import murmur3_32
from penstock.registry import Registry
from penstock.server.config import Config

PAGE = (Path(__file__).parents[2] / "docs" / "transforms.md").read_text("utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def frame(tmp_path, monkeypatch):
    """200 rows of what the page calls amount, limit, country and hour; in an empty folder."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(1)
    columns = {"amount": rng.lognormal(size=200), "limit": rng.choice([0, 100, 200], 200)}
    columns |= {"country": rng.integers(0, 3, 200), "hour": rng.uniform(0, 24, 200)}
    return pd.DataFrame(columns).astype(np.float32)


def named(name):
    return next(text for _, text in BLOCKS if text.startswith(f"# {name}\n"))


def test_the_first_example_fits_runs_and_publishes(tmp_path, frame):
    told = {"frame": frame, "labels": (frame["amount"] > 1).to_numpy()}
    exec(BLOCKS[0][1], told)
    assert Registry(tmp_path / "penstock-models").manifest("risk", 1).signature.columns == tuple(frame)


def test_the_commands_fit_train_and_publish(tmp_path, frame):
    labels = (frame["amount"] > 1).astype(int)
    frame.assign(fraud=labels, customer_id=[f"c{i}" for i in range(200)]).to_parquet("training.parquet")
    (tmp_path / "steps.yaml").write_text(named("steps.yaml"))
    [commands] = [text for kind, text in BLOCKS if kind == "bash"]
    for line in commands.splitlines():
        if line.startswith("python"):
            exec(compile(named("train.py"), "train.py", "exec"), {})
        else:
            done = CliRunner().invoke(app, line.split()[1:])
            assert done.exit_code == 0, done.output
    version = Registry(tmp_path / "penstock-models").manifest("risk", 1)
    assert version.signature.columns == ("amount", "country", "hour")


def test_texts_are_hashed_as_the_page_says():
    told = re.search(r"`penstock\.kernels\.transforms\.(murmur3_32\(.*?24)`", PAGE)[1]
    number = eval(told, {"murmur3_32": murmur3_32, "text": "é"})
    assert np.float32(number) == number


def test_every_operation_is_in_the_table():
    listed = re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)
    steps = get_args(get_args(TransformSpec)[0])
    assert sorted(listed) == sorted(["op", *(step.model_fields["op"].default for step in steps)])


def test_the_settings_in_it_are_taken():
    assert Config(**yaml.safe_load(named("serve.yaml"))).functions == {"distance": "ours.features:distance"}


def test_the_format_that_it_tells_is_the_one_that_is_written():
    from penstock.features.transforms import Transforms

    assert f'"format": {json.loads(Transforms().to_json())["format"]}' in PAGE
