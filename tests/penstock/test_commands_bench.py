"""`penstock bench` from end to end: real servers, figures that add up, and words for whatever goes wrong."""

from __future__ import annotations

import dataclasses
import json
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest

from penstock.bench import levels, shapes, spans
from penstock.bench.histogram import Histogram
from penstock.bench.target import Target
from penstock.bench.work import Work
from penstock.registry import Registry

pytest.importorskip("penstock.kernels.load")

SHORT = ["--duration", "0.5", "--warmup", "0.1", "--concurrency", "2"]


def penstock(*words, **settings):
    command = [sys.executable, "-m", "penstock.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, **settings)


def bench(server, *words, model="fraud"):
    return penstock("bench", server.address, "--model", model, *words)


# ---- Figures ---------------------------------------------------------------------------------------------------------


def test_levels_of_a_closed_loop_add_up(server):
    done = bench(server, "--concurrency", "1,4", *SHORT[:4], "--rows", "3", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert [level["concurrency"] for level in told["levels"]] == [1, 4]
    for level in told["levels"]:
        assert level["requests"] > 0
        assert level["requests_per_s"] == pytest.approx(level["requests"] / level["seconds"])
        assert level["rows_per_s"] == pytest.approx(3 * level["requests_per_s"])
        assert level["latency_us"]["p50"] <= level["latency_us"]["p99"] <= level["latency_us"]["max"]
        assert not level["errors"]
        assert sum(part["requests"] for part in level["over_time"]) == level["requests"]
        assert level["server_cpu_us_per_request"] > 0  # the server is this process
    assert told["pool"]["rows"] >= 4096
    assert "4 callers: " in done.stderr


def test_an_open_loop_keeps_its_rate(server):
    done = bench(server, "--rate", "200", "--arrivals", "poisson", "--duration", "2", "--warmup", "0.2", "--json")
    assert done.returncode == 0, done.stderr
    (level,) = json.loads(done.stdout)["levels"]
    assert level["rate"] == 200
    assert level["requests_per_s"] == pytest.approx(200, rel=0.3)
    assert 0 < level["sent_within_1ms"] <= 1


@pytest.fixture
def real_server(tmp_path, penstock_server):
    """Starts `penstock serve` with a model that gives back what it gets; rows.npz beside it holds rows for it."""
    identity = runpy.run_path(str(Path(__file__).parents[1] / "peers" / "identity.py"))
    registry = Registry(tmp_path / "registry")
    identity["publish_identity"](registry, "identity", ("FP32",))
    np.savez(tmp_path / "rows.npz", in_FP32=np.random.default_rng(7).normal(size=(512, 3)).astype(np.float32))
    return lambda *words: penstock_server(registry.root, *words)


def test_the_capacity_of_a_real_server_is_found(real_server, tmp_path):
    started = real_server()
    words = ["--capacity", "--p99", "50", "--duration", "0.3", "--warmup", "0.1", "--precision", "50", "--json"]
    done = penstock("bench", started.grpc, "--model", "identity", "--input", str(tmp_path / "rows.npz"), *words)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    found = told["capacity"]
    assert found["complete"]
    assert found["requests_per_s"] > 0
    assert found["missed_at"] is None or found["missed_at"] <= 1.5 * found["requests_per_s"]
    assert found["ended_by"] in {"errors", "server CPU", "shared CPU", "generator", "latency"}
    rates = [level["rate"] for level in told["levels"]]
    assert found["requests_per_s"] in rates
    assert rates == sorted(rates)
    assert all(level["arrivals"] == "poisson" for level in told["levels"])
    assert "% in time" in done.stderr


class Steps:
    """A meter on a clock of its own: each reading is 10 ms on, with so many answers more than the growth before."""

    def __init__(self, growth):
        self.growth, self.more, self.at_ns, self.answered = growth, 100.0, 0, 0

    def read(self, **_):
        self.at_ns += 10_000_000
        self.answered += int(self.more)
        self.more *= self.growth
        outcomes = (self.answered, *[0] * (len(spans.OUTCOMES) - 1))
        sums = (self.answered, self.answered * 1000)
        return spans.Reading(Histogram(), Histogram(), outcomes, *sums, None, at_ns=self.at_ns)


@pytest.mark.parametrize(("growth", "windows"), [(1.0, 3), (1.5, 6)])
def test_without_a_duration_windows_are_measured_until_three_agree_or_there_are_enough(growth, windows):
    timing = shapes.Timing(warmup_s=0.0, window_s=0.05, most_windows=6)
    run = levels._Run(Steps(growth), timing, lambda *_: None, dict)
    run.measure()
    assert len(run.windows) == windows
    assert run.reported().answered == sum(window.answered for window in run.windows)


def test_every_window_begins_and_ends_with_a_reading_of_cpu_time():
    class Costly(Steps):
        def read(self, *, cpu=True):
            return dataclasses.replace(super().read(), cpu_s=self.at_ns / 1e9 if cpu else None)

    timing = shapes.Timing(warmup_s=0.01, window_s=0.05, duration_s=0.5)
    run = levels._Run(Costly(1.0), timing, lambda *_: None, dict)
    run.measure()
    assert all(window.cpu_s for window in run.windows)
    assert any(part.cpu_s is None for part in run.slices)


def test_of_a_run_that_became_stable_only_the_stable_windows_are_reported():
    steps = Steps(1.5)

    def calm(what, rate, mean_us):
        if what == "window 3":
            steps.growth = 1.0

    run = levels._Run(steps, shapes.Timing(warmup_s=0.0, window_s=0.05), calm, dict)
    run.measure()
    assert 5 <= len(run.windows) <= 10
    assert spans.is_stable(run.windows)
    assert run.reported().answered == sum(window.answered for window in run.windows[-3:])


@pytest.mark.parametrize(("after", "told"), [((30, 7000), {"queue": 0.1}), ((30, 4000), {}), ((9, 7000), {})])
def test_phases_of_a_server_whose_counters_go_back_are_not_told(after, told):
    answers = iter([{"queue": (10, 5000)}, {"queue": after}])
    timing = shapes.Timing(warmup_s=0.0, window_s=0.05, most_windows=1)
    run = levels._Run(Steps(1.0), timing, lambda *_: None, lambda: next(answers))
    run.measure()
    assert run.server_us() == told


def test_the_table_and_the_files_are_written(server, tmp_path):
    files = ["--csv", str(tmp_path / "a.csv"), "--plot", str(tmp_path / "a.html")]
    done = bench(server, *SHORT, *files)
    assert done.returncode == 0, done.stderr
    assert f"fraud on {server.address}: closed loop, 1 row a request" in done.stdout
    assert "p99.99" in done.stdout
    assert (tmp_path / "a.csv").read_text().startswith("Concurrency,Inferences/Second,")
    assert "<svg" in (tmp_path / "a.html").read_text()


def test_rows_and_ids_of_files_are_what_is_sent(server, tmp_path):
    (tmp_path / "rows.csv").write_text("age,amount,count\n3,1,2\n")
    done = bench(server, *SHORT, "--input", str(tmp_path / "rows.csv"))
    assert done.returncode == 0, done.stderr
    assert "Only 1 different rows were sent" in done.stdout
    assert {bytes(request.raw_input_contents[0]) for request in server.requests} == {
        b"\0\0\x80\x3f\0\0\0\x40\0\0\x40\x40",
    }
    server.requests.clear()
    (tmp_path / "ids").write_text("one\n")
    assert bench(server, *SHORT, "--entities", str(tmp_path / "ids")).returncode == 0
    assert server.requests[0].inputs[0].name == "customer"


class Stalling:
    """A server that answers at once, but not at all for 100 ms of every 500."""

    def __init__(self):
        self.until = time.monotonic() + 0.5
        self.lock = threading.Lock()

    def __call__(self, body, context):
        with self.lock:
            if time.monotonic() > self.until:
                time.sleep(0.1)
                self.until = time.monotonic() + 0.4
        return body


def driven(address, shape):
    timing = shapes.Timing(warmup_s=0.2, window_s=0.5, duration_s=2.5)
    work = Work("any", 1, [b"x"], 1, ())
    level = levels.measure(levels.Subject(Target.reach(address), work), shape, timing, lambda *_: None)
    assert not level.ended
    assert not level.span.failed
    return level


def test_a_stall_that_a_closed_loop_hides_is_shown_by_an_open_one():
    server = grpc.server(ThreadPoolExecutor(4))
    stalling = grpc.unary_unary_rpc_method_handler(Stalling())
    handlers = type("Handlers", (grpc.GenericRpcHandler,), {"service": lambda *_: stalling})
    server.add_generic_rpc_handlers((handlers(),))
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        closed = driven(address, shapes.Shape(callers=1))
        opened = driven(address, shapes.Shape(rate=200, arrivals="constant"))
    finally:
        server.stop(None).wait()
    for level in (closed, opened):
        assert level.latencies.maximum >= 99e6  # both see that it stalls
    assert closed.latencies.percentile(90) < 25e6  # but a fifth of the time is a few calls of many here
    assert opened.latencies.percentile(90) > 25e6  # and a fifth of the calls there
    assert opened.span.rate == pytest.approx(200, rel=0.2)


def test_answers_that_change_their_shape_are_counted_as_errors(server):
    from penstock.proto import inference_pb2 as pb

    right = pb.ModelInferResponse(model_name="fraud")
    right.outputs.add(name="total", datatype="FP32", shape=[1])
    right.raw_output_contents.append(bytes(4))
    wrong = pb.ModelInferResponse(model_name="fraud")
    wrong.outputs.add(name="total", datatype="FP32", shape=[2])
    wrong.raw_output_contents.append(bytes(8))
    server.answer = right
    seen = server.requests

    class Some(list):
        def append(self, request):
            seen.append(request)
            server.answer = wrong if len(seen) > 1 and len(seen) % 2 else right

    server.requests = Some()
    done = bench(server, *SHORT, "--json")
    assert done.returncode == 0, done.stderr
    (level,) = json.loads(done.stdout)["levels"]
    assert level["errors"]["wrong answer"] > 0
    assert "another shape" in level["error_words"]["wrong answer"]


# ---- What goes wrong -------------------------------------------------------------------------------------------------


def refused(done, words):
    assert done.returncode == 1
    assert done.stderr.startswith("penstock: ")
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_server_that_is_not_there():
    done = penstock("bench", "127.0.0.1:1", "--model", "fraud")
    refused(done, "no server answers on 127.0.0.1:1 (connection refused)")


def test_an_unknown_model_is_told_with_those_there_are(server):
    refused(bench(server, *SHORT, model="nobody"), "'nobody' is not found; this server has echo")


@pytest.fixture
def tls_words(certificates):
    """Options of a server with TLS that asks its clients for a certificate."""
    server = ["--tls-certificate", certificates / "server.pem", "--tls-key", certificates / "server.key"]
    return [*map(str, server), "--tls-client-ca", str(certificates / "ca.pem")]


def test_a_server_with_tls_is_measured_with_a_clients_certificate(real_server, tls_words, certificates, tmp_path):
    started = real_server(*tls_words)
    port = started.grpc.rpartition(":")[2]
    words = ["--model", "identity", "--input", tmp_path / "rows.npz", *SHORT, "--connections", "2"]
    words += ["--ca", certificates / "ca.pem", "--certificate", certificates / "client.pem"]
    words += ["--key", certificates / "client.key"]
    for address in (f"127.0.0.1:{port}", f"localhost:{port}"):
        done = penstock("bench", address, *map(str, words), "--json")
        assert done.returncode == 0, done.stderr
        (level,) = json.loads(done.stdout)["levels"]
        assert level["requests"] > 10
        assert not level["errors"]


def test_what_tls_lacks_is_told(real_server, tls_words, certificates):
    address = real_server(*tls_words).grpc
    ask = ["bench", address, "--model", "identity"]
    refused(penstock(*ask), "wants TLS")
    refused(penstock(*ask, "--tls"), "is not trusted")
    another = ["--ca", str(certificates / "another_ca.pem")]
    refused(penstock(*ask, *another), "is not trusted")
    refused(penstock(*ask, "--ca", str(certificates / "ca.pem")), "give --certificate and --key")
    refused(penstock(*ask, "--certificate", str(certificates / "client.pem")), "belong together")
    refused(penstock(*ask, "--ca", str(certificates / "ca.key")), "no certificates or no key")
    refused(penstock(*ask, "--ca", "/no/such.pem"), "--ca: there is no file /no/such.pem")


def test_a_plaintext_server_asked_for_tls_is_told(server):
    refused(bench(server, "--tls"), "does not take TLS")


def test_a_server_on_a_unix_socket_is_measured_by_several_threads(real_server, tmp_path):
    path = Path(tempfile.mkdtemp(prefix="penstock-")) / "socket"  # short, for socket paths are
    real_server("--grpc", f"unix:{path}")
    words = ["--model", "identity", "--input", str(tmp_path / "rows.npz"), *SHORT[:4], "--json"]
    loops = (["--concurrency", "7"], ["--rate", "300"])
    for loop in loops:
        done = penstock("bench", f"unix:{path}", *words, *loop, "--threads", "2", "--connections", "3")
        assert done.returncode == 0, done.stderr
        (level,) = json.loads(done.stdout)["levels"]
        assert level["requests"] > 10
        assert not level["errors"]
        assert level["server_cores"] > 0  # its process was found by the socket's path
    shutil.rmtree(path.parent)


def test_a_first_call_that_fails_is_told_with_its_status(server):
    server.failures = [grpc.StatusCode.RESOURCE_EXHAUSTED]
    refused(bench(server, *SHORT), "RESOURCE_EXHAUSTED: refused")


def test_calls_that_all_fail_end_it_early(server):
    class Refused(list):
        def append(self, request):
            super().append(request)
            if len(self) > 1:
                server.failures.append(grpc.StatusCode.UNAVAILABLE)

    server.requests = Refused()
    start = time.monotonic()
    refused(bench(server, "--duration", "30", "--concurrency", "2"), "every call fails: UNAVAILABLE: refused")
    assert time.monotonic() - start < 20


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--concurrency", "0"], "--concurrency is a list such as 1,8,32"),
        (["--concurrency", "1.5"], "--concurrency is a list such as 1,8,32"),
        (["--rate", "x"], "--rate is a list such as 1,8,32"),
        (["--rate", "5", "--concurrency", "1"], "either --concurrency, for a closed loop, or --rate"),
        (["--rate", "5", "--arrivals", "bursts"], "--arrivals is constant or poisson, not 'bursts'"),
        (["--plot", "a.pdf"], "must end in .html or .png, not 'a.pdf'"),
        (["--csv", "/no/such/folder/a.csv"], "there is no folder /no/such/folder"),
        (["--capacity", "--rate", "5"], "--capacity finds the rate by itself"),
        (["--input", "a.npz", "--entities", "b"], "either --input or --entities"),
    ],
)
def test_options_that_make_no_sense_are_told_before_anything_is_sent(words, said):
    refused(penstock("bench", "127.0.0.1:1", "--model", "fraud", *words), said)


def test_ctrl_c_prints_what_was_measured_so_far(server):
    command = [sys.executable, "-m", "penstock.cli", "bench", server.address, "--model", "fraud", "--json"]
    words = ["--concurrency", "1,2", "--duration", "600", "--warmup", "0"]
    process = subprocess.Popen([*command, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        until = time.monotonic() + 30
        while len(server.requests) < 50:
            assert time.monotonic() < until
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert "Traceback" not in err
    (level,) = json.loads(out)["levels"]
    assert level["ended"] == "interrupted"
    assert level["requests"] > 0


def test_help_has_examples():
    said = penstock("bench", "--help").stdout
    assert "--arrivals poisson" in " ".join(said.split())


def test_outcomes_are_those_of_the_kernel():
    from penstock.kernels.load import Load

    made = Load(host=b"::1", port=1, headers=[], bodies=[b""], rows=[1], connections=1, callers=1)
    assert len(made.counts()["outcomes"]) == len(spans.OUTCOMES)
