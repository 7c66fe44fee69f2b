"""`penstock serve`: what is refused before anything is started. `tests/server/test_app.py` has the rest."""

from __future__ import annotations

import pytest
import typer
from typer.testing import CliRunner

from penstock.commands.serve import serve
from penstock.errors import PenstockError

app = typer.Typer()
app.command()(serve)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--ready-file", "/none/ready.json"], "--ready-file: there is no folder /none"),
        (["--http", "127.0.0.1:8080"], "--http: the REST gateway is not built yet"),
    ],
)
def test_what_cannot_work_is_told_in_one_line(words, told):
    error = CliRunner().invoke(app, words).exception
    assert isinstance(error, PenstockError)
    assert told in str(error)
