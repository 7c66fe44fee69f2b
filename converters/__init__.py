"""Source models to ONNX: convert, hold the result against its source, publish it.

    from penstock.converters import convert
    converted = convert(pipeline, "churn", sample, labels=y, registry="registry")
    print(converted.manifest.version, converted.passed.sample.text())

Names load when asked for, because scikit-learn and skl2onnx take a second: `import penstock.converters` is free.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from penstock.converters.errors import BadSample, ConvertError, GateFailed, UnsupportedModel, UntrustedModel
    from penstock.converters.onnx import publish_onnx, signature_of
    from penstock.converters.parity import Parity, Tolerance
    from penstock.converters.publish import Converted, convert
    from penstock.converters.sklearn import to_onnx
    from penstock.converters.sources import load_model, load_table

_HOMES = {
    "BadSample": "errors",
    "ConvertError": "errors",
    "Converted": "publish",
    "GateFailed": "errors",
    "Parity": "parity",
    "Tolerance": "parity",
    "UnsupportedModel": "errors",
    "UntrustedModel": "errors",
    "convert": "publish",
    "load_model": "sources",
    "load_table": "sources",
    "publish_onnx": "onnx",
    "signature_of": "onnx",
    "to_onnx": "sklearn",
}

__all__ = [
    "BadSample",
    "ConvertError",
    "Converted",
    "GateFailed",
    "Parity",
    "Tolerance",
    "UnsupportedModel",
    "UntrustedModel",
    "convert",
    "load_model",
    "load_table",
    "publish_onnx",
    "signature_of",
    "to_onnx",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
