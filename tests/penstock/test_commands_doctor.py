"""`penstock doctor`: advice that can be copied."""

from __future__ import annotations

import json
import sys
from importlib.metadata import PackageNotFoundError

import pytest
import typer
from typer.testing import CliRunner

from penstock.commands import doctor
from penstock.commands._console import console

app = typer.Typer()
app.command()(doctor.doctor)


@pytest.fixture
def bare(monkeypatch):
    """An installation without any library."""

    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "version", missing)
    monkeypatch.setattr(console, "_width", 200)


def test_what_is_missing_is_told_with_the_command_that_brings_it(bare):
    with console.capture() as capture, pytest.raises(typer.Exit) as ended:
        doctor.doctor()
    assert ended.value.exit_code == 1
    lines = capture.get().splitlines()
    assert any("scikit-learn" in line and "pip install 'penstock[convert]'" in line for line in lines)
    assert any("onnxruntime" in line and "missing" in line for line in lines)
    assert any("pip install 'onnxruntime>=" in line for line in lines)


def told(states):
    """What `doctor` says, as plain data, and whether it ended well."""
    done = CliRunner().invoke(app, ["--json"])
    return done.exit_code, {row["what"]: row for row in json.loads(done.stdout) if row["state"] in states}


def test_a_library_that_is_too_old_or_broken_is_no_good_one(monkeypatch):
    monkeypatch.setattr(doctor, "version", lambda name: "1.2.3" if name == "grpcio" else "99.0")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # cannot be imported
    code, rows = told(("too old", "broken"))
    assert code == 1
    assert set(rows) == {"grpcio", "onnxruntime"}
    assert rows["grpcio"]["advice"].startswith("pip install 'grpcio>=1.")
    assert "cannot be imported" in rows["onnxruntime"]["advice"]


def test_this_installation_is_whole():
    assert told(("missing", "too old", "broken")) == (0, {})


class Native:
    """Stands in for the compiled transport."""

    @staticmethod
    def versions():
        return {"nghttp2": "1.52.0", "OpenSSL": "3.0.15"}


def native(monkeypatch, module):
    """What is told of the native transport if its import gives or raises this."""

    def load(name):
        if name != doctor.NATIVE:
            return __import__(name)
        if isinstance(module, Exception):
            raise module
        return module

    monkeypatch.setattr(doctor, "import_module", load)
    code, rows = told(("ok", "optional", "broken"))
    return code, rows["native transport"]


def test_a_native_transport_that_was_built_is_told_with_the_libraries_it_runs_on(monkeypatch):
    code, row = native(monkeypatch, Native)
    assert (code, row["state"], row["found"], row["advice"]) == (0, "ok", "nghttp2 1.52.0, OpenSSL 3.0.15", "")


def test_a_native_transport_that_was_not_built_is_no_fault_and_the_packages_are_named(monkeypatch):
    code, row = native(monkeypatch, ModuleNotFoundError("No module named x", name=doctor.NATIVE))
    assert (code, row["state"], row["found"]) == (0, "optional", "not built")
    assert "apt-get install libnghttp2-dev libssl-dev" in row["advice"]
    assert "then reinstall penstock" in row["advice"]


@pytest.mark.parametrize(
    "error",
    [
        ImportError("libnghttp2.so.14: cannot open shared object file"),
        ModuleNotFoundError("No module named 'penstock.kernels.tls'", name="penstock.kernels.tls"),
    ],
)
def test_a_native_transport_that_lacks_something_is_broken(monkeypatch, error):
    code, row = native(monkeypatch, error)
    assert (code, row["state"]) == (1, "broken")
    assert f"({error}); install what is missing" in row["advice"]
