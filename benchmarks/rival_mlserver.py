"""MLServer with a runtime that runs an ONNX file by ONNX Runtime; started in an environment of its own.

    python rival_mlserver.py PORT NAME=FILE.onnx ...

serves the models over gRPC on that port of loopback. As fast as MLServer is: no worker processes (they cost it more
than they bring), no metrics, one thread for a run. Its HTTP server cannot be left out, and gets a free port.
"""

# mypy: ignore-errors
from __future__ import annotations

import asyncio
import logging
import sys

import onnxruntime
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import NumpyCodec
from mlserver.settings import ModelParameters
from mlserver.types import InferenceRequest, InferenceResponse


class OnnxModel(MLModel):
    """One session, run for each request as it comes."""

    async def load(self) -> bool:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            self.settings.parameters.uri, options, providers=["CPUExecutionProvider"]
        )
        self._input = self._session.get_inputs()[0].name
        self._outputs = [output.name for output in self._session.get_outputs()]
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        rows = NumpyCodec.decode_input(payload.inputs[0])
        outputs = self._session.run(self._outputs, {self._input: rows})
        encoded = [NumpyCodec.encode_output(name, out) for name, out in zip(self._outputs, outputs, strict=True)]
        return InferenceResponse(model_name=self.name, outputs=encoded)


async def serve(port: int, models: dict[str, str]) -> None:
    """Serve until a signal ends it."""
    server = MLServer(
        Settings(
            host="127.0.0.1",
            grpc_port=port,
            http_port=0,
            metrics_endpoint=None,
            parallel_workers=0,
            debug=False,
            logging_settings={"version": 1, "disable_existing_loggers": True},
        )
    )
    settings = [
        ModelSettings(name=name, implementation=OnnxModel, parameters=ModelParameters(uri=uri))
        for name, uri in models.items()
    ]
    await server.start(settings)


if __name__ == "__main__":
    logging.getLogger().setLevel(logging.WARNING)
    asyncio.run(serve(int(sys.argv[1]), dict(word.split("=", 1) for word in sys.argv[2:])))
