"""One suite, every transport: each test here runs over each of them, and none asks which it is.

`server` is one in-process server for the whole run, `serving` starts others with settings of the test's own, `process`
starts `penstock serve`. Where a transport does more than gRPC's own C core does, that is in test_stricter.py.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from pathlib import Path

import grpc
import numpy as np
import pytest
import yaml
from onnx import TensorProto, helper

from penstock.proto import inference_pb2 as pb
from penstock.registry import Registry
from penstock.server.config import Config
from penstock.server.testing import running

TRANSPORTS = ["grpcio", "native"]


def load(path: Path):
    """A helper file as a module; `tests` is no package."""
    name = f"conformance_{path.parent.name}_{path.stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


TESTS = Path(__file__).parents[1]
_server_tests = load(TESTS / "server" / "conftest.py")
graphs, calling, gate, eventually = (getattr(_server_tests, n) for n in ("graphs", "calling", "gate", "eventually"))


@pytest.fixture(scope="session")
def http2():
    """tests/http2_client.py, the client that writes frames by hand."""
    return load(TESTS / "http2_client.py")


@pytest.fixture(scope="session", params=TRANSPORTS)
def transport(request):
    """The name of the transport, each in turn."""
    if request.param == "native":
        pytest.importorskip("penstock.kernels.http2", reason="this build has no native transport")
    return request.param


WEIGHTS = np.random.default_rng(5).normal(size=(8, 1)).astype(np.float32)


def logistic(graphs):
    """p = sigmoid(x @ WEIGHTS), FP32 [n, 8]."""
    nodes = [("MatMul", ["x", "w"], ["z"], {}), ("Sigmoid", ["z"], ["p"], {})]
    constant = helper.make_tensor("w", TensorProto.FLOAT, WEIGHTS.shape, WEIGHTS.ravel())
    return graphs.graph(nodes, [("x", "FP32", ["n", 8])], [("p", "FP32", ["n", 1])], [constant])


@pytest.fixture(scope="session")
def expected():
    """What `logistic` answers, by numpy."""
    return lambda x: 1 / (1 + np.exp(-(x @ WEIGHTS)))


@pytest.fixture(scope="session")
def models(tmp_path_factory, graphs) -> Path:
    """A registry of small models: logistic [n,8], double [n,2], echo [n,k], copy [n,64], reciprocal INT64 [n,1]."""
    registry = Registry(tmp_path_factory.mktemp("conformance") / "registry")
    registry.root.mkdir()
    graphs.publish(registry, "logistic", logistic(graphs))
    graphs.publish(registry, "double", graphs.double())
    graphs.publish(registry, "echo", graphs.same("FP32", "n", "k"))
    graphs.publish(registry, "copy", graphs.copy(64))
    graphs.publish(registry, "reciprocal", graphs.reciprocal())
    return registry.root


@pytest.fixture(scope="session")
def server(transport, models):
    """A server that all tests without wishes share: its addresses."""
    with running(Config(registry=models, grpc="127.0.0.1:0", metrics="off", transport=transport)) as addresses:
        yield addresses


@pytest.fixture
def serving(transport, models):
    """Starts the application with the settings given; its addresses."""
    with contextlib.ExitStack() as stack:

        def start(**settings):
            values = {"registry": models, "grpc": "127.0.0.1:0", "metrics": "off", "transport": transport, **settings}
            return stack.enter_context(running(Config(**values)))

        yield start


@pytest.fixture
def process(transport, models, penstock_server, tmp_path):
    """Starts `penstock serve` with the settings given, as a ServerProcess."""
    made = iter(range(1000))

    def start(*arguments, registry=models, metrics=False, **settings):
        config = tmp_path / f"penstock-{next(made)}.yaml"
        config.write_text(yaml.safe_dump({name: str(v) if isinstance(v, Path) else v for name, v in settings.items()}))
        given = ["--config", str(config), "--transport", transport, *arguments]
        return penstock_server(registry, *given, metrics=metrics)

    return start


@pytest.fixture
def caller(server, calling):
    """A stub without retries, and shortcuts, at the shared server."""
    return calling(server)


@pytest.fixture
def peer(server, http2):
    """A hand-written connection to the shared server."""
    with http2.connect(server.grpc) as peer:
        yield peer.started()


@pytest.fixture(scope="session")
def body_of():
    """Serialised ModelInfer requests of one input `x`."""

    def make(model, values, **fields):
        array = np.asarray(values)
        array = array.astype("<f4") if array.dtype.kind == "f" else array.astype("<i8")
        request = pb.ModelInferRequest(model_name=model, **fields)
        request.inputs.add(name="x", datatype="FP32" if array.dtype.kind == "f" else "INT64", shape=array.shape)
        request.raw_input_contents.append(array.tobytes())
        return request.SerializeToString()

    return make


@pytest.fixture(scope="session")
def values_of():
    """The first output of a serialised ModelInfer answer."""

    def read(message, dtype=np.float32):
        answer = pb.ModelInferResponse.FromString(message)
        return np.frombuffer(answer.raw_output_contents[0], dtype).reshape(answer.outputs[0].shape)

    return read


@pytest.fixture
def channel():
    """Opens grpc channels that are closed at the end of the test."""
    with contextlib.ExitStack() as stack:

        def make(address, *options, **more):
            unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
            made = grpc.insecure_channel(address, options=[*unlimited, *options], **more)
            return stack.enter_context(made)

        yield make


INFER = "/inference.GRPCInferenceService/ModelInfer"
LIVE = "/inference.GRPCInferenceService/ServerLive"


@pytest.fixture(scope="session")
def infer() -> str:
    """The path of ModelInfer, the call that has a lane of its own."""
    return INFER


@pytest.fixture(scope="session")
def live() -> str:
    """The path of ServerLive, one of all other calls."""
    return LIVE


@pytest.fixture
def refused():
    """The status code and message with which a call fails."""

    def of(call):
        with pytest.raises(grpc.RpcError) as caught:
            call()
        return caught.value.code().name, caught.value.details()

    return of
