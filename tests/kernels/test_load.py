"""The load generator's kernel: every call is sent, judged and counted, whatever the server does."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.bench.histogram import BUCKETS, EDGES, Histogram
from penstock.bench.spans import OUTCOMES
from penstock.proto import inference_pb2 as pb

load = pytest.importorskip("penstock.kernels.load")

PATH = b"/inference.GRPCInferenceService/ModelInfer"
HEADERS = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", PATH), (b":authority", b"test")]
HEADERS += [(b"te", b"trailers"), (b"content-type", b"application/grpc")]
OUTPUTS = [(b"label", b"INT64", 8, (-2,)), (b"probabilities", b"FP32", 4, (-2, 2))]


class OneMethod:
    """A grpcio server that answers every method by `handler(body, context)` in so many threads."""

    def __init__(self, handler, threads=4, options=(), credentials=None):
        class Handlers(grpc.GenericRpcHandler):
            def service(self, details):
                return grpc.unary_unary_rpc_method_handler(handler)

        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1), *options]
        self.server = grpc.server(ThreadPoolExecutor(threads), options=options)
        self.server.add_generic_rpc_handlers((Handlers(),))
        add = self.server.add_secure_port if credentials else self.server.add_insecure_port
        self.port = add("127.0.0.1:0", *([credentials] if credentials else []))
        self.server.start()

    def stop(self):
        self.server.stop(None).wait()


@pytest.fixture
def serve():
    servers = []

    def start(handler, **settings):
        servers.append(OneMethod(handler, **settings))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def echo(body, context):
    return body


def a_load(server, bodies=(b"x",), **settings):
    settings = {"host": b"127.0.0.1", "port": server.port, "headers": HEADERS, "connections": 1} | settings
    return load.Load(bodies=list(bodies), rows=settings.pop("rows", [1] * len(bodies)), **settings)


@contextmanager
def running(made, threads=1):
    lives = [threading.Thread(target=made.run, args=(i,)) for i in range(threads)]
    for life in lives:
        life.start()
    try:
        yield lives
    finally:
        made.stop()
        for life in lives:
            life.join(20)
            assert not life.is_alive()


def until(condition, within_s=20):
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.002)


def outcomes(made):
    return {name: count for name, count in zip(OUTCOMES, made.counts()["outcomes"], strict=True) if count}


def finished(made, threads=1):
    """Run a load with a limit to its end, and say what became of its calls."""
    with running(made, threads) as lives:
        made.start()
        for life in lives:
            life.join(30)
    return outcomes(made)


# ---- What is sent ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("connections", "threads", "callers"), [(1, 1, 1), (3, 1, 8), (4, 2, 7), (5, 3, 2)])
def test_a_closed_loop_sends_exactly_the_requests_it_may(serve, connections, threads, callers):
    made = a_load(
        serve(echo), [b"", b"ab", b"c" * 70_000], connections=connections, threads=threads, callers=callers, limit=200
    )
    assert finished(made, threads) == {"OK": 200}
    assert made.counts()["sent"] == 200
    assert made.counts()["rows"] == 200
    assert 0 < made.seconds() < 30


def test_bodies_are_sent_in_turn_and_rows_are_counted(serve):
    seen = []
    server = serve(lambda body, _: seen.append(body) or body, threads=1)
    made = a_load(server, [b"a", b"b", b"c"], rows=[1, 10, 100], callers=1, limit=7)
    assert finished(made) == {"OK": 7}
    assert seen == [b"a", b"b", b"c", b"a", b"b", b"c", b"a"]
    assert made.counts()["rows"] == 223
    assert made.sample() == b"a"


@pytest.mark.parametrize("size", [0, 1, 16_384, 3_000_000])
def test_messages_of_any_size_go_and_come_whole(serve, size):
    body = bytes(range(256)) * (size // 256) + b"!" * (size % 256)
    made = a_load(serve(echo), [body], callers=3, limit=9)
    assert finished(made) == {"OK": 9}
    assert made.sample() == body


def test_an_open_loop_sends_what_is_due_and_no_more(serve):
    schedule = np.arange(100, dtype=np.int64) * 1_000_000
    made = a_load(serve(echo), schedule=schedule, period_ns=10**12, connections=2)
    with running(made):
        made.start()
        until(lambda: outcomes(made) == {"OK": 100})
    lags, latencies = np.zeros(BUCKETS, np.uint64), np.zeros(BUCKETS, np.uint64)
    made.read_lags(lags)
    made.read_latencies(latencies)
    assert lags.sum() == latencies.sum() == made.counts()["sent"] == 100


def test_what_is_due_within_the_quantum_goes_out_together_and_nothing_is_left_behind(serve):
    schedule = np.arange(300, dtype=np.int64) * 100_000
    made = a_load(serve(echo), schedule=schedule, period_ns=10**12, connections=3, quantum_ns=2_000_000)
    with running(made):
        made.start()
        until(lambda: outcomes(made) == {"OK": 300})
    lags = np.zeros(BUCKETS, np.uint64)
    made.read_lags(lags)
    assert lags.sum() == 300
    assert Histogram(lags).percentile(50) < 200e6


def test_the_schedule_is_served_by_every_thread(serve):
    schedule = np.arange(200, dtype=np.int64) * 500_000
    made = a_load(serve(echo), schedule=schedule, period_ns=10**12, connections=5, threads=3)
    with running(made, threads=3):
        made.start()
        until(lambda: outcomes(made) == {"OK": 200})
    assert made.counts()["sent"] == 200


def test_an_open_loop_counts_what_it_cannot_send(serve):
    go = threading.Event()
    server = serve(lambda body, _: go.wait(20) and body)
    schedule = np.arange(50, dtype=np.int64)
    made = a_load(server, schedule=schedule, period_ns=10**12, most_in_flight=9)
    with running(made):
        made.start()
        until(lambda: outcomes(made) == {"not sent": 40})
        go.set()
        until(lambda: outcomes(made) == {"OK": 10, "not sent": 40})


def test_finishing_waits_for_what_is_in_flight_and_sends_no_more(serve):
    asked, go = threading.Event(), threading.Event()
    server = serve(lambda body, _: asked.set() or (go.wait(20) and body))
    made = a_load(server, callers=1)
    with running(made) as lives:
        made.start()
        assert asked.wait(20)
        made.finish()
        go.set()
        lives[0].join(20)
        assert not lives[0].is_alive()
    assert outcomes(made) == {"OK": 1}


@pytest.mark.parametrize(
    ("name", "ca", "good"),
    [
        *((name, "ca", True) for name in ("localhost", "127.0.0.1", "::1")),
        ("another.host", "ca", False),
        ("127.0.0.2", "ca", False),
        ("localhost", "another_ca", False),
    ],
)
def test_a_server_is_trusted_only_by_its_name_and_its_ca(certificates, name, ca, good):
    tls = pytest.importorskip("penstock.kernels.tls")
    key, certificate = ((certificates / f"server.{end}").read_bytes() for end in ("key", "pem"))
    server = OneMethod(echo, credentials=grpc.ssl_server_credentials([(key, certificate)]))
    try:
        trust = tls.TlsTrust(name, str(certificates / f"{ca}.pem"))
        body = bytes(range(256)) * 2000
        made = a_load(server, [body, b"x"], callers=3, connections=2, limit=40 if good else 0, tls=trust)
        if good:
            assert finished(made) == {"OK": 40}
            assert made.sample() in {body, b"x"}
        else:
            with running(made):
                until(made.words)
            assert made.words()[19] == b"the TLS handshake failed"
            assert made.counts()["sent"] == 0
    finally:
        server.stop()


# ---- What becomes of calls -------------------------------------------------------------------------------------------


def test_statuses_are_counted_and_the_first_words_kept(serve):
    def refuse(body, context):
        context.abort(grpc.StatusCode[body.decode()], "said 50 % of it")

    made = a_load(serve(refuse), [b"UNAVAILABLE", b"INVALID_ARGUMENT"], callers=1, limit=6)
    assert finished(made) == {"INVALID_ARGUMENT": 3, "UNAVAILABLE": 3}
    assert made.words()[14] == b"said 50 %25 of it"


def answer(rows=1, labels="INT64", columns=2, raw=None, outputs=("label", "probabilities")):
    made = pb.ModelInferResponse(model_name="m", model_version="1")
    made.outputs.add(name=outputs[0], datatype=labels, shape=[rows])
    if len(outputs) > 1:
        made.outputs.add(name=outputs[1], datatype="FP32", shape=[rows, columns])
    made.raw_output_contents.append(bytes(8 * rows))
    if len(outputs) > 1:
        made.raw_output_contents.append(bytes(4 * rows * columns if raw is None else raw))
    return made.SerializeToString()


@pytest.mark.parametrize(
    ("said", "wrong", "words"),
    [
        (answer(), False, b""),
        (answer(rows=2), True, b"another shape"),
        (answer(columns=3), True, b"another shape"),
        (answer(labels="INT32"), True, b"another datatype"),
        (answer(raw=7), True, b"whose bytes are not as many"),
        (answer(outputs=("label", "score")), True, b"other outputs"),
        (answer(outputs=("label",)), True, b"other outputs"),
        (b"\xff", True, b"not a ModelInferResponse"),
    ],
)
def test_an_answer_of_another_shape_is_an_error(serve, said, wrong, words):
    made = a_load(serve(lambda body, _: said), callers=1, limit=3, outputs=OUTPUTS)
    assert finished(made) == ({"wrong answer": 3} if wrong else {"OK": 3})
    assert words in made.words().get(20, b"")


def test_calls_that_take_too_long_are_given_up_and_the_caller_goes_on(serve):
    first = threading.Event()

    def stall(body, context):
        if not first.is_set():
            first.set()
            threading.Event().wait(1.0)
        return body

    made = a_load(serve(stall), callers=1, limit=4, timeout_s=0.1)
    assert finished(made) == {"OK": 3, "timed out": 1}


def test_a_server_that_goes_away_costs_its_calls_and_the_next_one_gets_the_load(serve):
    asked = threading.Event()
    gone = serve(lambda body, _: asked.set() or threading.Event().wait(0.2) or body)
    made = a_load(gone, callers=2, connections=2)
    with running(made):
        made.start()
        assert asked.wait(20)
        gone.stop()
        until(lambda: outcomes(made).get("no connection", 0) + outcomes(made).get("reset", 0) >= 2)
        again = grpc.server(ThreadPoolExecutor(2))
        back = type(
            "Back", (grpc.GenericRpcHandler,), {"service": lambda *_: grpc.unary_unary_rpc_method_handler(echo)}
        )
        again.add_generic_rpc_handlers((back(),))
        assert again.add_insecure_port(f"127.0.0.1:{gone.port}") == gone.port
        again.start()
        before = outcomes(made).get("OK", 0)
        until(lambda: outcomes(made).get("OK", 0) > before + 10)
    again.stop(None).wait()


def test_a_connection_told_to_leave_is_replaced_and_costs_hardly_a_call(serve):
    server = serve(echo, options=[("grpc.max_connection_age_ms", 150)])
    made = a_load(server, callers=4, connections=2)
    with running(made):
        made.start()
        until(lambda: made.counts()["connected"] >= 8)
    found = outcomes(made)
    assert found.pop("OK") > 100 * found.pop("reset", 0)  # grpcio resets what crosses its second GOAWAY
    assert not found


def test_a_port_that_refuses_is_told_in_the_systems_words():
    made = load.Load(host=b"127.0.0.1", port=1, headers=HEADERS, bodies=[b""], rows=[1], connections=1, callers=1)
    with running(made):
        until(made.words)
    assert made.words()[19] == b"Connection refused"


@pytest.mark.parametrize(
    "wrong",
    [
        {"port": 70_000},
        {"connections": 0},
        {"threads": 0},
        {"threads": 2},
        {"callers": 0},
        {"bodies": []},
        {"rows": []},
        {"timeout_s": 0.0},
        {"timeout_s": float("nan")},
        {"host": b"h" * 256},
        {"headers": HEADERS * 2},
        {"schedule": np.zeros(1, np.int64)},
        {"callers": 0, "schedule": np.zeros(0, np.int64), "period_ns": 1},
        {"callers": 0, "schedule": np.zeros(1, np.int64), "period_ns": 0},
        {"outputs": [(b"o", b"FP32", 4, (1,) * 9)]},
        {"outputs": [(b"o", b"FP32", 4, ())] * 65},
    ],
)
def test_a_load_that_makes_no_sense_is_refused(wrong):
    right = {"host": b"127.0.0.1", "port": 1, "headers": HEADERS, "bodies": [b""], "rows": [1]}
    with pytest.raises(ValueError):
        load.Load(**(right | {"connections": 1, "callers": 1} | wrong))


def test_a_thread_lives_once(serve):
    made = a_load(serve(echo), callers=1, limit=1)
    assert finished(made) == {"OK": 1}
    with pytest.raises(ValueError, match="run already"):
        made.run(0)
    with pytest.raises(ValueError, match="no thread 1"):
        made.run(1)


# ---- Small decisions -------------------------------------------------------------------------------------------------


@given(st.integers(-5, 2**41) | st.integers(0, 40).map(lambda bit: 2**bit) | st.integers(1, 40).map(lambda b: 2**b - 1))
def test_durations_fall_into_the_buckets_that_python_reads(ns):
    bucket = load.decide_bucket(ns)
    assert Histogram.of([ns]).counts[bucket] == 1
    assert EDGES[bucket] <= max(min(ns, int(EDGES[-1]) - 1), 0) < EDGES[bucket + 1]


@given(
    st.integers(1, 5),
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 40), st.sampled_from(["FP32", "INT64"])), max_size=4),
    st.integers(1, 5),
)
def test_answers_are_judged_as_protobuf_reads_them(rows, tensors, sent):
    """Against what the message says by protobuf's own library."""
    made, expected = pb.ModelInferResponse(id="x"), []
    widths = {"FP32": 4, "INT64": 8}
    for i, (columns, size, datatype) in enumerate(tensors):
        made.outputs.add(name=f"o{i}", datatype=datatype, shape=[rows, columns]).parameters["p"].int64_param = 1
        made.raw_output_contents.append(bytes(size))
        expected.append((f"o{i}".encode(), datatype.encode(), widths[datatype], (-2, columns)))
    fits = all(size == rows * columns * widths[name] for columns, size, name in tensors)
    verdict = load.decide_fit(made.SerializeToString(), sent, expected)
    if rows != sent and tensors:
        assert verdict == 4
    else:
        assert verdict == (0 if fits else 5)


@given(st.binary(max_size=60) | st.integers(0, 200).map(lambda n: answer()[:n]), st.integers(0, 3))
def test_no_bytes_of_an_answer_are_read_that_are_not_there(data, rows):
    verdict = load.decide_fit(data, rows, OUTPUTS)
    assert 0 <= verdict <= 5
    if verdict == 0:
        assert [output.name for output in pb.ModelInferResponse.FromString(data).outputs] == ["label", "probabilities"]


@pytest.mark.parametrize("at", range(len(answer())))
def test_any_changed_byte_is_judged_and_a_changed_shape_never_fits(at):
    for change in (1, 0x80, 0xFF):
        changed = bytearray(answer())
        changed[at] ^= change
        if load.decide_fit(bytes(changed), 1, OUTPUTS) == 0:
            read = pb.ModelInferResponse()
            try:
                read.ParseFromString(bytes(changed))
            except Exception:
                continue  # such as a text that is no UTF-8, which is not looked at
            assert [list(output.shape) for output in read.outputs] == [[1], [1, 2]]
