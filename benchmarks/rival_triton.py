"""The `model.py` of a model in Triton's Python backend: ONNX Runtime on `model.onnx` beside it.

Triton gathers the requests of a batch; they are joined, run once and taken apart, which is the most one can do here.
"""

# mypy: ignore-errors
from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as triton


class TritonPythonModel:
    """What the backend calls."""

    def initialize(self, args: dict[str, str]) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        path = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name
        self._outputs = [output.name for output in self._session.get_outputs()]

    def execute(self, requests: list[triton.InferenceRequest]) -> list[triton.InferenceResponse]:
        parts = [triton.get_input_tensor_by_name(request, self._input).as_numpy() for request in requests]
        outputs = self._session.run(self._outputs, {self._input: np.concatenate(parts) if len(parts) > 1 else parts[0]})
        responses, start = [], 0
        for part in parts:
            end = start + len(part)
            tensors = [triton.Tensor(name, out[start:end]) for name, out in zip(self._outputs, outputs, strict=True)]
            responses.append(triton.InferenceResponse(output_tensors=tensors))
            start = end
        return responses
