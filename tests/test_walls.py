"""The walls between rooms: who may import whom."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = {
    "errors": 0,
    "kernels": 1,
    "proto": 2,
    "registry": 3,
    "features": 3,
    "monitoring": 3,
    "training": 4,
    "converters": 4,
    "server": 4,
    "penstock": 5,
    "benchmarks": 5,
    "examples": 5,
}
ROOMS = [room for room in FLOORS if (ROOT / room).is_dir()]
ONLY_IN = {
    "grpc": ("server/transports/aio.py", "penstock/client.py", "penstock/_", "benchmarks/", "proto/", "examples/"),
    "grpc_reflection": ("server/streams.py",),
    "grpc_health": ("server/streams.py", "server/health.py"),
    "redis": ("features/connecting.py", "benchmarks/lookups.py"),
    "duckdb": ("features/offline/asof.py",),
    "onnxruntime": ("converters/", "benchmarks/rival_"),
    "onnx": ("server/ensembles.py", "server/grafts.py", "converters/", "benchmarks/"),
}
FILES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py")) if "_pb2" not in path.name] + sorted(
    (ROOT / "kernels").glob("*.p[yx][xd]")
)


def imported(path: Path) -> set[str]:
    """Every module a file imports, anywhere in it."""
    if path.suffix != ".py":
        lines = path.read_text().splitlines()
        words = [line.split() for line in lines if line.startswith(("from ", "import ", "cimport "))]
        return {w[1] for w in words}
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def room_of(module: str) -> str | None:
    """The room of a penstock module; None for what is not ours."""
    parts = module.split(".")
    if parts[0] != "penstock":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in FLOORS else "penstock"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_room_imports_only_from_floors_below_it(path: Path) -> None:
    home = path.relative_to(ROOT).parts[0]
    if path == ROOT / "penstock" / "errors.py":
        home = "errors"
    for module in imported(path):
        room = room_of(module)
        if room is None or room == home or (room == "penstock" and home == "penstock"):
            continue
        if module in {"penstock", "penstock.__version__"}:
            continue
        assert FLOORS[room] < FLOORS[home] or (FLOORS[home] == 5 and FLOORS[room] == 5), f"{path} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_libraries_stay_where_they_belong(path: Path) -> None:
    where = str(path.relative_to(ROOT))
    roots = {module.split(".")[0] for module in imported(path)}
    for library, places in ONLY_IN.items():
        if library in roots:
            assert where.startswith(places), f"{where} imports {library}"
