"""One loaded ONNX graph. The only room beside the converters that knows ONNX Runtime.

Loaded from bytes that were verified, never from a path; one thread a run by default, since many small runs at once beat
one run on many threads. A run costs about 5 microseconds of Python beside the model.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort

from penstock.errors import PenstockError

_BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16


class ModelRefused(PenstockError):  # noqa: N818
    """ONNX Runtime does not take the graph."""


class Session:
    """A graph ready to run. Safe to use from many threads.

    Args:
        onnx: the model's bytes.
        outputs: names of the outputs to fetch, in order.
        bfloat16: names of inputs and outputs of that type; numpy has none, so they travel as uint16 bit patterns.
        threads: ONNX Runtime threads of one run.
    """

    def __init__(
        self, onnx: bytes, outputs: Sequence[str], *, bfloat16: frozenset[str] = frozenset(), threads: int = 1
    ) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = ort.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime has a class of exception for every cause
            raise ModelRefused(f"ONNX Runtime {ort.__version__} refuses the graph: {_line(error)}") from error
        if bfloat16 and any(end.type == "tensor(string)" for end in self._session.get_inputs()):
            raise ModelRefused(
                "a graph with both bfloat16 and string inputs: ONNX Runtime cannot be given them at once"
            )
        self._outputs = list(outputs)
        self._bfloat16 = bfloat16

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Outputs by name for inputs by name: ndarrays, objects of str for BYTES, uint16 for BF16."""
        values = self._run_values(feeds) if self._bfloat16 else self._session.run(self._outputs, feeds)
        return dict(zip(self._outputs, values, strict=True))

    def _run_values(self, feeds: Mapping[str, Any]) -> list[Any]:
        """The slower way by OrtValues, for graphs with bfloat16."""
        values = {name: self._value(name, array) for name, array in feeds.items()}
        results = self._session.run_with_ort_values(self._outputs, values)
        return [_bits(r) if n in self._bfloat16 else r.numpy() for n, r in zip(self._outputs, results, strict=True)]

    def _value(self, name: str, array: Any) -> ort.OrtValue:
        if name in self._bfloat16:
            return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(np.ascontiguousarray(array), _BFLOAT16)
        return ort.OrtValue.ortvalue_from_numpy(array)


def _bits(value: ort.OrtValue) -> Any:
    """The bit patterns of a bfloat16 result, copied as uint16 of the same shape.

    `OrtValue.numpy` refuses the type, since numpy has none like it; its memory is that of the CPU provider and plain.
    """
    if value.element_type() != _BFLOAT16 or value.device_name() != "cpu":
        raise TypeError(f"expected bfloat16 in CPU memory, got {value.data_type()} on {value.device_name()}")
    shape, size = value.shape(), value.tensor_size_in_bytes()
    if size == 0:
        return np.zeros(shape, np.uint16)
    return np.frombuffer(ctypes.string_at(value.data_ptr(), size), np.uint16).reshape(shape)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
