"""What can go wrong on the way from a source model to a published version, divided by who must act.

    PenstockError
      ConvertError          any of the below
        UntrustedModel      loading would run code nobody vouched for
        BadSample           the sample does not fit the model
        UnsupportedModel    the model, or a part of it, has no ONNX form that we stand behind
        GateFailed          the ONNX model answers differently; `.report` says where

Every message names what was wrong and what to do, in one line; `GateFailed` adds its report.
"""

# ruff: noqa: N818  # named for what is wrong; that they are errors is in the root's name
from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.errors import PenstockError

if TYPE_CHECKING:
    from penstock.converters.parity import Parity


class ConvertError(PenstockError):
    """A source model could not become a published version."""


class UntrustedModel(ConvertError):
    """Loading the file would run code, and nobody said that its author is trusted."""


class BadSample(ConvertError):
    """The sample of data does not fit the model: columns, types or values."""


class UnsupportedModel(ConvertError):
    """The model, or a part of it, cannot be expressed in the ONNX that the server runs."""


class GateFailed(ConvertError):
    """The ONNX model does not answer as the source model does; nothing was published.

    Args:
        report: what was compared and where the answers part; `str(error)` is its text.
    """

    def __init__(self, report: Parity) -> None:
        super().__init__(f"the parity gate refused the model, nothing was published\n{report.text()}")
        self.report = report
