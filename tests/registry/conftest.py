from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from penstock.registry import Registry


def _sibling(name: str):
    spec = importlib.util.spec_from_file_location(f"registry_tests_{name}", Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def samples():
    return _sibling("samples")


@pytest.fixture
def registry(tmp_path) -> Registry:
    return Registry(tmp_path / "store")


@pytest.fixture
def publish(registry, samples):
    """Publish a version of a model with an artifact of its own; returns the manifest."""

    def publish(name: str = "fraud", content: bytes = b"onnx bytes", **fields):
        return registry.publish(samples.draft(name, **fields), {**samples.FILES, "model.onnx": content})

    return publish


@pytest.fixture
def version_folder(registry):
    return lambda name="fraud", version=1: registry.root / "models" / name / "versions" / str(version)
