"""A small server that speaks the protocol.

Model `echo` gives back its inputs; `fraud` sums a matrix and knows entities.
"""
# ruff: noqa: N802 - RPCs have the names of the protocol

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest

from penstock._codec import DATATYPES
from penstock.client import OPTIONS
from penstock.proto import inference_pb2 as pb
from penstock.proto import inference_pb2_grpc, penstock_pb2, penstock_pb2_grpc

COLUMNS = ["amount", "count", "age"]
KEYS = ["customer", "merchant"]


def tensors(prefix):
    make = pb.ModelMetadataResponse.TensorMetadata
    return [make(name=f"{prefix}_{name}", datatype=name, shape=[-1, -1]) for name in DATATYPES]


def metadata(name):
    make = pb.ModelMetadataResponse.TensorMetadata
    if name == "echo":
        return pb.ModelMetadataResponse(name=name, versions=["1"], inputs=tensors("in"), outputs=tensors("out"))
    inputs = [
        make(name="features", datatype="FP32", shape=[-1, 3]),
        make(name="customer", datatype="BYTES", shape=[-1, 1]),
    ]
    outputs = [make(name="total", datatype="FP32", shape=[-1])]
    return pb.ModelMetadataResponse(name=name, versions=["3"], inputs=inputs, outputs=outputs)


def config(name):
    config = pb.ModelConfig(name=name, platform="onnxruntime_onnx", max_batch_size=64)
    config.input.add(name="features", data_type=pb.TYPE_FP32, dims=[3])
    config.output.add(name="label", data_type=pb.TYPE_STRING, dims=[1])
    if name == "fraud":
        config.parameters["penstock.entity"].string_value = "customer"
        config.parameters["penstock.entity_keys"].string_value = json.dumps(KEYS)
        config.parameters["penstock.vector"].string_value = "features"
        config.parameters["penstock.columns"].string_value = json.dumps(COLUMNS)
    return pb.ModelConfigResponse(config=config)


class Server(inference_pb2_grpc.GRPCInferenceServiceServicer, penstock_pb2_grpc.PenstockServicer):
    """Keeps what it was asked.

    `failures` are statuses with which to refuse the next inferences, `answer` is given instead of the right one, and
    inferences wait for `go`.
    """

    def __init__(self):
        self.requests = []
        self.metadata_calls = 0
        self.failures = []
        self.answer = None
        self.go = threading.Event()
        self.go.set()

    def known(self, name, context):
        if name not in ("echo", "fraud"):
            context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{name}' is not found")

    def ServerLive(self, request, context):
        return pb.ServerLiveResponse(live=True)

    def ServerReady(self, request, context):
        return pb.ServerReadyResponse(ready=True)

    def ModelReady(self, request, context):
        self.known(request.name, context)
        return pb.ModelReadyResponse(ready=request.name == "echo")

    def ServerMetadata(self, request, context):
        return pb.ServerMetadataResponse(name="echo server", version="7", extensions=["statistics"])

    def ModelMetadata(self, request, context):
        self.metadata_calls += 1
        self.known(request.name, context)
        return metadata(request.name)

    def ModelConfig(self, request, context):
        self.known(request.name, context)
        return config(request.name)

    def ModelStatistics(self, request, context):
        answer = pb.ModelStatisticsResponse()
        stats = answer.model_stats.add(name="echo", version="1", last_inference=5, inference_count=6, execution_count=2)
        stats.inference_stats.queue.count, stats.inference_stats.queue.ns = 6, 900
        stats.batch_stats.add(batch_size=3).compute_infer.count = 2
        return answer

    def RepositoryIndex(self, request, context):
        answer = pb.RepositoryIndexResponse()
        answer.models.add(name="echo", version="1", state="READY")
        return answer

    def DriftStatus(self, request, context):
        answer = penstock_pb2.DriftStatusResponse()
        model = answer.models.add(model_name=request.model_name, version="3", window_start_ms=1, window_end_ms=2)
        model.rows, model.complete = 100, not request.current
        model.features.add(name="amount", ks=0.5, ks_pvalue=0.01, kl=0.2, psi=0.3, missing_current=0.1, rows=90)
        return answer

    def ModelInfer(self, request, context):
        self.requests.append(request)
        if self.failures:
            context.abort(self.failures.pop(0), "refused")
        self.go.wait()
        if self.answer is not None:
            return self.answer
        self.known(request.model_name, context)
        return echo(request) if request.model_name == "echo" else total(request)


def echo(request):
    answer = pb.ModelInferResponse(model_name="echo", model_version="1", id=request.id)
    answer.parameters["rows"].int64_param = 2
    answer.parameters["digest"].string_param = "abc"
    for tensor in request.inputs:
        answer.outputs.add(name=tensor.name.replace("in_", "out_"), datatype=tensor.datatype, shape=tensor.shape)
    answer.raw_output_contents.extend(request.raw_input_contents)
    return answer


def total(request):
    """By row, the sum of all numbers sent; entity ids add the same to every row."""
    rows = request.inputs[0].shape[0]
    sums = np.zeros(rows, np.float32)
    for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
        if tensor.datatype == "BYTES":
            sums += len(raw)
        else:
            sums += np.frombuffer(raw, np.float32).reshape(rows, -1).sum(axis=1)
    answer = pb.ModelInferResponse(model_name="fraud", model_version="3")
    answer.outputs.add(name="total", datatype="FP32", shape=[rows])
    answer.raw_output_contents.append(sums.tobytes())
    return answer


@pytest.fixture
def server():
    server, servicer = grpc.server(ThreadPoolExecutor(4), options=OPTIONS), Server()
    inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    penstock_pb2_grpc.add_PenstockServicer_to_server(servicer, server)
    servicer.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield servicer
    server.stop(None).wait()
