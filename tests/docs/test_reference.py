"""The reference page names every setting, field and metric, with its default, and nothing that does not exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from penstock.features import Column, FeatureView
from penstock.server.config import Config

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reference.md").read_text("utf-8")


def rows(title, page=PAGE):
    """The cells of the table under a title, by the name in the first cell."""
    section = page.split(f"## {title}\n")[-1].split("\n## ")[0]
    cells = [[cell.strip() for cell in line.strip("|").split(" |")] for line in section.splitlines() if "| `" in line]
    return {cell[0].strip("` "): cell[1:] for cell in cells}


def shown(value):
    if isinstance(value, bool):
        return str(value).lower()
    if value is None or value == ():
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value) or "none"


def test_every_setting_of_a_server_is_listed_with_its_default():
    listed = {name: cells[1] for name, cells in rows("Settings of a server").items()}
    assert listed == {name: shown(field.default) for name, field in Config.model_fields.items()}


def test_the_example_of_settings_is_taken(tmp_path):
    example = re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[1]
    (tmp_path / "serve.yaml").write_text(example)
    settings = Config.read(tmp_path / "serve.yaml")
    assert settings.grpc == yaml.safe_load(example)["grpc"]
    assert settings.address("grpc")


def test_every_field_of_a_view_is_listed_with_its_default():
    of_views, of_columns = PAGE.split("| of a column |")
    for page, kind in ((of_views, FeatureView), (of_columns, Column)):
        listed = {name: cells[0] for name, cells in rows("Feature views", page).items()}
        fields = {name: field for name, field in kind.model_fields.items() if name != "format"}
        assert listed == {n: "needed" if f.is_required() else shown(f.default) for n, f in fields.items()}


def metrics_of_the_server():
    return "".join(path.read_text("utf-8") for path in (ROOT / "server").glob("*metrics.py"))


@pytest.mark.parametrize("told", sorted(set(re.findall(r"penstock_[a-z_]+", PAGE.split("## Metrics")[1]))))
def test_every_metric_told_exists(told):
    source = metrics_of_the_server()
    name = told.removesuffix("_total").removeprefix("penstock_drift_")
    assert name in source


def test_every_metric_is_told():
    source = metrics_of_the_server()
    for name in re.findall(r'"(penstock_[a-z_]+)"', source):
        assert f"`{name}" in PAGE
