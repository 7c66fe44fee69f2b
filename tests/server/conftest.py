"""Servers in this process and their callers: raw stubs, which never try again, beside the client."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import grpc
import numpy as np
import pytest
import redis

from penstock.client import Client
from penstock.kernels.lanes import Lane
from penstock.proto import inference_pb2 as pb
from penstock.proto import inference_pb2_grpc
from penstock.registry import Registry
from penstock.server.config import Config
from penstock.server.session import Session
from penstock.server.testing import running

TYPES = {"f": "FP32", "i": "INT64"}


def _load(path: Path):
    spec = importlib.util.spec_from_file_location(f"server_tests_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def graphs():
    return _load(Path(__file__).with_name("graphs.py"))


@pytest.fixture(scope="session")
def http2_client():
    """The client that writes frames by hand."""
    return _load(Path(__file__).parents[1] / "http2_client.py")


@pytest.fixture
def proxy(redis_url):
    """A Redis that can misbehave."""
    proxy = _load(Path(__file__).parents[1] / "features" / "proxy.py").Proxy(redis_url.removeprefix("unix://"))
    yield proxy
    proxy.close()


class OwnRedis:
    """A Redis on a unix socket that a test may kill, stop and start again; keeps nothing on disk."""

    def __init__(self, executable: str) -> None:
        self._executable = executable
        self._folder = tempfile.mkdtemp(prefix="penstock-test-")  # short, for socket paths are
        self.url = f"unix://{self._folder}/redis.sock"
        self.client = redis.Redis.from_url(self.url)
        self.start()

    def start(self, *options: str) -> None:
        words = ["--port", "0", "--unixsocket", "redis.sock", "--dir", self._folder, "--save", "", *options]
        self._process = subprocess.Popen([self._executable, *words], stdout=subprocess.DEVNULL)
        until = time.monotonic() + 20
        while True:
            try:
                self.client.ping()
                return
            except redis.ConnectionError:
                assert time.monotonic() < until, "redis-server does not answer"
                time.sleep(0.01)

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(20)

    def close(self) -> None:
        self.kill()
        self.client.close()
        shutil.rmtree(self._folder)


@pytest.fixture
def own_redis(redis_executable):
    found = OwnRedis(redis_executable)
    yield found
    found.close()


@pytest.fixture
def registry(tmp_path) -> Registry:
    registry = Registry(tmp_path / "registry")
    registry.root.mkdir()
    return registry


@pytest.fixture
def serving(registry):
    """Starts the application over `registry` with the settings given; its addresses."""
    with contextlib.ExitStack() as stack:

        def start(**settings):
            values = {"registry": registry.root, "grpc": "127.0.0.1:0", "metrics": "off", **settings}
            return stack.enter_context(running(Config(**values)))

        yield start


class Caller:
    """A stub without retries, the client, and small shortcuts."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.insecure_channel(address, options=[("grpc.max_receive_message_length", -1)])
        self.stub = inference_pb2_grpc.GRPCInferenceServiceStub(self.channel)
        self.client = Client(address)

    def close(self) -> None:
        self.client.close()
        self.channel.close()

    def request(self, model, values, name="x", **fields):
        """A request of one input."""
        array = np.asarray(values)
        array = array.astype(np.float32) if array.dtype.kind == "f" else array.astype(np.int64)
        request = pb.ModelInferRequest(model_name=model, **fields)
        request.inputs.add(name=name, datatype=TYPES[array.dtype.kind], shape=array.shape)
        request.raw_input_contents.append(array.tobytes())
        return request

    def send(self, model, values, *, timeout=20, **fields):
        """Begin a call of one input; a grpc future."""
        return self.stub.ModelInfer.future(self.request(model, values, **fields), timeout=timeout)

    def answer(self, call, dtype=np.float32):
        """The first output of a call that went well."""
        response = call.result()
        return np.frombuffer(response.raw_output_contents[0], dtype).reshape(response.outputs[0].shape)

    def counts(self, model):
        """The one served version's statistics."""
        (found,) = self.client.statistics(model)
        return found


@pytest.fixture
def calling():
    """Makes a `Caller` of an address."""
    with contextlib.ExitStack() as stack:

        def make(address) -> Caller:
            caller = Caller(getattr(address, "grpc", address))
            stack.callback(caller.close)
            return caller

        yield make


class Gate:
    """Stands in front of every model: while it is shut, runs wait at it. Keeps what was run."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self._entered = threading.Semaphore(0)
        self.lanes: list[Lane] = []
        self.rows: list[int] = []
        self._open.set()

    def session(self, *args, **kwargs):
        """In place of `Session`."""
        inner, gate = Session(*args, **kwargs), self

        class Gated:
            def run(self, feeds):
                if not gate._open.is_set():
                    gate._entered.release()
                    assert gate._open.wait(30)
                gate.rows.append(len(next(iter(feeds.values()))))
                return inner.run(feeds)

        return Gated()

    def lane(self, *args, **kwargs):
        """In place of `Lane`."""
        self.lanes.append(Lane(*args, **kwargs))
        return self.lanes[-1]

    def queued(self, rows: int) -> None:
        """Wait until exactly so many rows are queued."""
        until = time.monotonic() + 20
        while (found := sum(lane.queued_rows for lane in self.lanes)) != rows:
            assert time.monotonic() < until, f"{found} rows are queued, not {rows}"
            time.sleep(0.002)

    def shut(self) -> None:
        self._open.clear()
        self.rows.clear()

    def entered(self) -> None:
        """Wait until a run stands at the gate."""
        assert self._entered.acquire(timeout=30)

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def gate(monkeypatch):
    gate = Gate()
    monkeypatch.setattr("penstock.server.version.Session", gate.session)
    monkeypatch.setattr("penstock.server.version.Lane", gate.lane)
    monkeypatch.setattr("penstock.server.version.use_engine", lambda *args: "a gate stands before its runs")
    yield gate
    gate.open()


@pytest.fixture(scope="session")
def eventually():
    """Waits until something holds, for what the other side does in its own time."""

    def wait(holds, within_s=20.0):
        until = time.monotonic() + within_s
        while not (found := holds()):
            assert time.monotonic() < until, "it did not come to hold in time"
            time.sleep(0.005)
        return found

    return wait
