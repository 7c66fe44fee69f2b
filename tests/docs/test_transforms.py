"""The page of transforms: its example runs, and its table has every operation there is."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import yaml

from penstock.features.steps import TransformSpec
from penstock.registry import Registry
from penstock.server.config import Config

PAGE = (Path(__file__).parents[2] / "docs" / "transforms.md").read_text("utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, re.DOTALL)


def test_the_first_example_fits_runs_and_publishes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(1)
    columns = {"amount": rng.lognormal(size=200), "limit": rng.choice([0, 100, 200], 200)}
    columns |= {"country": rng.integers(0, 3, 200), "hour": rng.uniform(0, 24, 200)}
    frame = pd.DataFrame(columns).astype(np.float32)
    told = {"frame": frame, "labels": (frame["amount"] > 1).to_numpy()}
    exec(BLOCKS[0][1], told)
    assert Registry(tmp_path / "penstock-models").manifest("risk", 1).signature.columns == tuple(frame)


def test_every_operation_is_in_the_table():
    listed = re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)
    steps = get_args(get_args(TransformSpec)[0])
    assert sorted(listed) == sorted(["op", *(step.model_fields["op"].default for step in steps)])


def test_the_settings_in_it_are_taken():
    [text] = [text for kind, text in BLOCKS if kind == "yaml"]
    assert Config(**yaml.safe_load(text)).functions == {"distance": "ours.features:distance"}


def test_the_format_that_it_tells_is_the_one_that_is_written():
    from penstock.features.transforms import Transforms

    assert f'"format": {json.loads(Transforms().to_json())["format"]}' in PAGE
