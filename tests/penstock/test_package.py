"""What importing penstock does to a process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(("given", "then"), [(None, "1"), ("0", "0")])
def test_onnx_runtime_reports_to_nobody_unless_the_user_says_so(given, then):
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    if given is not None:
        environment["ORT_DISABLE_TELEMETRY"] = given
    program = "import os, penstock.errors; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == then


def test_a_missing_optional_library_is_told_in_one_line(monkeypatch, capsys):
    from penstock import cli

    def app():
        raise ModuleNotFoundError("No module named 'sklearn.linear_model'", name="sklearn.linear_model")

    monkeypatch.setattr(cli, "app", app)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 1
    assert capsys.readouterr().err == "penstock: this needs sklearn.linear_model: pip install 'penstock[convert]'\n"
