"""Penstock: gRPC inference with features from Redis, batching, ONNX models and drift.

Public names are loaded on first use, so that a room may import `penstock.errors` without paying for the client.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from penstock.client import AsyncClient, Client
    from penstock.errors import PenstockError

__all__ = ["AsyncClient", "Client", "PenstockError", "__version__"]
__version__ = "0.1.0"

# Since 1.29, ONNX Runtime's Linux wheels report to Microsoft unless this is set before they are loaded. A server for
# internal services talks to nobody it was not told of; whoever wants the reports sets the variable to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_HOMES = {"AsyncClient": "penstock.client", "Client": "penstock.client", "PenstockError": "penstock.errors"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'penstock' has no attribute {name!r}")
