"""One cell of the table: what is asked, what counts as an answer, and how long a window is."""

from __future__ import annotations

import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import grpc
import numpy as np
import pytest

pytest.importorskip("penstock.kernels.load")

from penstock.benchmarks import suite
from penstock.benchmarks.cells import Kind, Question, ask, drive, uninterrupted
from penstock.benchmarks.generators import LoadFailed
from penstock.benchmarks.peers import NotInstalled, environment
from penstock.benchmarks.rivals import RIVALS, Rival
from penstock.benchmarks.seeded import Seeded
from penstock.proto import inference_pb2 as pb
from penstock.registry import Signature, TensorSpec

WIDTH = 3


class Halves:
    """A source whose probabilities are a half, whatever it is asked."""

    def predict_proba(self, rows):
        return np.full((len(rows), 2), 0.5)


@pytest.fixture
def model(tmp_path):
    rows = np.arange(256 * WIDTH, dtype=np.float32).reshape(256, WIDTH)
    inputs = (TensorSpec(name="x", datatype="FP32", shape=(-1, WIDTH)),)
    outputs = (TensorSpec(name="p", datatype="FP32", shape=(-1, 2)),)
    return Seeded("halves", Halves(), rows, Signature(inputs=inputs, outputs=outputs, batched=True), tmp_path)


def answered(body, value=0.5):
    """The answer of a server of that model."""
    rows = pb.ModelInferRequest.FromString(body).inputs[0].shape[0]
    answer = pb.ModelInferResponse(raw_output_contents=[np.full((rows, 2), value, np.float32).tobytes()])
    answer.outputs.add(name="p", datatype="FP32", shape=[rows, 2])
    return answer.SerializeToString()


@pytest.fixture
def served():
    """Starts servers that answer every method by `handler(body)`; gives their addresses."""
    with ExitStack() as stack:

        def start(handler):
            class Handlers(grpc.GenericRpcHandler):
                def service(self, details):
                    return grpc.unary_unary_rpc_method_handler(lambda body, context: handler(body))

            server = grpc.server(ThreadPoolExecutor(4))
            server.add_generic_rpc_handlers((Handlers(),))
            port = server.add_insecure_port("127.0.0.1:0")
            server.start()
            stack.callback(lambda: server.stop(None).wait())
            return f"127.0.0.1:{port}"

        yield start


@pytest.mark.parametrize("rows", [1, 64])
def test_what_is_measured_is_answered_as_the_source_does(served, model, rows):
    address = served(answered)
    question = ask(address, Kind("halves", "vector", rows), model)
    assert len(question.bodies) == 256 // rows
    run = drive(address, question, 4, 0.1, [time.monotonic])
    assert run.rate > 0
    assert 0 < run.p50_us <= run.p99_us
    assert run.cpu_us == pytest.approx(1e6 / run.rate, rel=0.5)  # of a clock that is always running


@pytest.mark.parametrize(
    ("handler", "said"),
    [
        (lambda body: answered(body, 0.4), "are not the probabilities its source gives"),
        (lambda body: b"\xff", "are no answers of the protocol"),
        (lambda body: b"", "are not the probabilities its source gives"),
        (lambda body: 1 / 0, "is answered by"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_server_that_answers_anything_else_is_not_measured(served, model, handler, said):
    with pytest.raises(LoadFailed, match=said):
        ask(served(handler), Kind("halves", "vector", 1), model)


def test_an_echo_must_give_back_what_it_got(served, model):
    kind = Kind("halves", "vector", 1)
    assert ask(served(lambda body: body), kind, model, echo=True).outputs == ()
    with pytest.raises(LoadFailed, match="does not give back"):
        ask(served(lambda body: b"x"), kind, model, echo=True)


def test_a_wrong_answer_ends_the_run(served, model):
    address = served(answered)
    question = ask(address, Kind("halves", "vector", 1), model)
    other = Question(question.kind, question.bodies, [(b"q", b"FP32", 4, (-2, 2))])
    with pytest.raises(LoadFailed, match="were not answered as they should be: wrong answer"):
        drive(address, other, 2, 0.1, [lambda: 0.0])


def test_a_slow_server_gets_a_longer_window(served, model):
    def slow(body):
        time.sleep(0.05)  # what is tested is time itself
        return body

    address = served(slow)
    question = ask(address, Kind("halves", "vector", 64), model, echo=True)
    run = drive(address, question, 8, 0.05, [lambda: 0.0])
    assert run.p50_us > 50_000
    assert run.rate == pytest.approx(80, rel=0.5)  # four threads


def test_nobody_to_ask_is_told(model):
    question = Question(Kind("halves", "vector", 1), [b"x"], ())
    with pytest.raises(LoadFailed, match="refused"):
        drive("127.0.0.1:1", question, 1, 0.1, [lambda: 0.0])


@pytest.fixture
def handled():
    """Sets how SIGINT is handled."""
    before = signal.getsignal(signal.SIGINT)
    yield lambda handler: signal.signal(signal.SIGINT, handler)
    signal.signal(signal.SIGINT, before)


def test_an_interruption_waits_for_the_end_of_a_run():
    done = []

    def interrupted():
        with uninterrupted():
            os.kill(os.getpid(), signal.SIGINT)
            done.append(True)

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert done
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_is_ignored_interrupts_nothing(handled):
    handled(signal.SIG_IGN)
    with uninterrupted() as came:
        os.kill(os.getpid(), signal.SIGINT)
    assert came == []
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN


# ---- Rivals that cannot be had ---------------------------------------------------------------------------------------


def missing(*_):
    raise NotInstalled("no such wheel")


@pytest.mark.parametrize("key", ["triton", "native"])
def test_a_rival_that_cannot_be_had_is_left_out_and_penstock_never(key, model, tmp_path, monkeypatch):
    monkeypatch.setitem(RIVALS, key, Rival("one", missing, ("halves",)))
    left_out, said, plan = {}, [], suite.Plan(models=("halves",))
    words = (ExitStack(), key, tmp_path, {"halves": model}, plan, left_out, said.append)
    if key == "native":
        with pytest.raises(NotInstalled):
            suite._entered(*words)
        return
    assert suite._entered(*words) is None
    assert left_out == {"triton": "no such wheel"}
    assert said[-1] == "one is left out: no such wheel"


def test_an_environment_that_cannot_be_made_says_what_is_missing(tmp_path):
    with pytest.raises(NotInstalled, match=r"no-such could not be installed; is PyPI reachable\? ERROR: No matching"):
        environment("one", ["--no-index", "no-such"], home=tmp_path)
    assert not (tmp_path / "one" / "stamp").exists()


def test_an_environment_is_made_once(tmp_path):
    python = tmp_path / "one" / "bin" / "python"
    python.parent.mkdir(parents=True)
    (tmp_path / "one" / "stamp").write_text(f"this==1 for Python {sys.version}\n")
    assert environment("one", ["this==1"], home=tmp_path) == python
