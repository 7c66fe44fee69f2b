"""The transports benchmark: its generators ask what they say, its echo echoes, and it judges by its lines."""

from __future__ import annotations

import shutil
import socket
import struct
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from penstock.benchmarks import generators
from penstock.benchmarks.generators import H2load, LoadFailed, PoolLoad
from penstock.benchmarks.lines import Line, Outcome
from penstock.benchmarks.processes import NotBuilt, compiled
from penstock.benchmarks.seeded import METHOD
from penstock.benchmarks.sides import Run, Side, requests_for
from penstock.benchmarks.transports import Scenario, echo_server, markdown_of, missed

PRINTED = """
finished in 1.58s, 500000.00 req/s, 123.80MB/s
requests: 1000000 total, 1000000 started, 1000000 done, 1000000 succeeded, 0 failed, 0 errored, 0 timeout
status codes: 1000000 2xx, 0 3xx, 0 4xx, 0 5xx
"""
BODIES = [b"", b"x", b"y" * 300, b"z" * 70_000]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("programs")
    try:
        compiled("nghttp2_echo", path)
    except NotBuilt as error:
        pytest.skip(str(error))
    return path


@pytest.fixture
def echo(folder):
    (folder / "echo.json").unlink(missing_ok=True)
    with echo_server(folder) as server:
        yield server


@pytest.fixture(params=["h2load", "4 connections", "pool"])
def generator(request):
    if request.param == "pool":
        pytest.importorskip("penstock.kernels.load")
        return PoolLoad(4)
    if not shutil.which("h2load"):
        pytest.skip("h2load is not installed (nghttp2-client)")
    return H2load(4) if request.param == "h2load" else H2load(1, connections=4, log=False)


# ---- The programs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 16_384, 1_000_000, 4_000_000])
def test_the_echo_gives_back_what_it_got(echo, size):
    body = bytes(range(256)) * (size // 256) + b"!" * (size % 256)
    with grpc.insecure_channel(echo.address, options=[("grpc.max_receive_message_length", -1)]) as channel:
        assert channel.unary_unary(METHOD)(body, timeout=20) == body


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def test_a_caller_who_reads_late_gets_all_of_it_and_delays_nobody(echo):
    """Twelve answers of 1 MiB: more than the socket buffers hold, so the echo must keep the rest and wait."""
    wide = struct.pack(">HI", 4, 2**31 - 1)
    asked = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, wide)
    asked += frame(4, 1, 0) + frame(8, 0, 0, struct.pack(">I", 2**30))  # and the echo's own settings are taken
    for stream in range(1, 25, 2):
        pieces = [frame(0, i == 63, stream, bytes([stream]) * 16384) for i in range(64)]
        asked += frame(1, 4, stream, b"\x83\x86\x84\x41\x01x") + b"".join(pieces)  # POST http / x
    with socket.socket() as late, ThreadPoolExecutor(1) as pool, grpc.insecure_channel(echo.address) as channel:
        late.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        late.settimeout(20)
        host, port = echo.address.split(":")
        late.connect((host, int(port)))
        sent = pool.submit(late.sendall, asked)
        for _ in range(20):
            assert channel.unary_unary(METHOD)(b"small", timeout=20) == b"small"
        with late.makefile("rb") as connection:
            answered = read_data(connection, streams=12)
        sent.result(20)
    assert answered == dict.fromkeys(range(1, 25, 2), 2**20)


def read_data(connection, streams):
    """Bytes of DATA for each stream, until so many have ended."""
    sizes = {}
    while streams:
        head = connection.read(9)
        size, (kind, flags), stream = int.from_bytes(head[:3], "big"), head[3:5], int.from_bytes(head[5:], "big")
        payload = connection.read(size)
        if kind == 0:
            assert payload == bytes([stream]) * size
            sizes[stream] = sizes.get(stream, 0) + size
        streams -= kind == 1 and flags & 1
    return sizes


def test_calls_that_are_cancelled_leave_the_others_be(echo):
    options = [("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(echo.address, options=options) as channel:
        calls = [channel.unary_unary(METHOD).future(b"x" * 1_000_000, timeout=20) for _ in range(30)]
        for call in calls[::2]:
            call.cancel()
        assert [len(call.result()) for call in calls[1::2]] == [1_000_000] * 15


def test_a_message_over_the_echos_bound_fails_alone(echo):
    with grpc.insecure_channel(echo.address) as channel:
        with pytest.raises(grpc.RpcError):
            channel.unary_unary(METHOD)(b"x" * 5_000_000, timeout=20)
        assert channel.unary_unary(METHOD)(b"small", timeout=20) == b"small"


def test_every_request_of_a_run_is_answered(echo, generator):
    load = generator(echo.address, METHOD, BODIES, callers=16, requests=2000)
    assert load.requests == 2000
    assert 0 < load.seconds < 60


def test_a_log_tells_the_median_latency(echo, generator):
    load = generator(echo.address, METHOD, BODIES, callers=8, requests=800)
    told = not isinstance(generator, H2load) or generator.log
    assert (0 < load.p50_us < 1e6 * load.seconds) if told else load.p50_us == 0


def test_the_pool_is_asked_in_turn_and_every_status_is_looked_at():
    pytest.importorskip("penstock.kernels.load")
    seen = []

    def answer(body, context):
        seen.append(body)
        if body == b"c" and len(seen) > 6:
            context.abort(grpc.StatusCode.UNAVAILABLE, "out of luck")
        return body

    with OneMethod(answer) as address:
        PoolLoad(1)(address, METHOD, [b"a", b"b", b"c"], callers=1, requests=6)
        assert seen == [b"a", b"b", b"c"] * 2
        with pytest.raises(LoadFailed, match=r"only \d of 6 requests were answered OK: UNAVAILABLE: out of luck"):
            PoolLoad(1)(address, METHOD, [b"a", b"b", b"c"], callers=1, requests=6)


def test_a_generator_without_a_server_fails():
    pytest.importorskip("penstock.kernels.load")
    with pytest.raises(LoadFailed, match="refused"):
        PoolLoad(1)("127.0.0.1:1", METHOD, [b"x"], callers=1, requests=1)


def test_what_cannot_be_compiled_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(
        NotBuilt, match=r"nghttp2_echo\.c needs a C compiler \(apt-get install gcc\): 'no-such-compiler' not found"
    ):
        compiled("nghttp2_echo", tmp_path)
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\necho 'fatal error: nghttp2/nghttp2.h: No such file or directory' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    with pytest.raises(NotBuilt, match=r"apt-get install libnghttp2-dev\): fatal error: nghttp2/nghttp2\.h"):
        compiled("nghttp2_echo", tmp_path)


class OneMethod:
    """A grpcio server that answers every method by `handler(body, context)`."""

    def __init__(self, handler):
        class Handlers(grpc.GenericRpcHandler):
            def service(self, details):
                return grpc.unary_unary_rpc_method_handler(handler)

        self.server = grpc.server(ThreadPoolExecutor(1))
        self.server.add_generic_rpc_handlers((Handlers(),))
        self.port = self.server.add_insecure_port("127.0.0.1:0")

    def __enter__(self):
        self.server.start()
        return f"127.0.0.1:{self.port}"

    def __exit__(self, *_):
        self.server.stop(None).wait()


# ---- What h2load says ------------------------------------------------------------------------------------------------


def test_the_length_of_an_h2load_run_comes_from_its_rate():
    assert generators._finished(PRINTED, 1_000_000) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("said", "instead"),
    [
        ("1000000 succeeded, 0 failed", "999999 succeeded, 1 failed"),
        ("1000000 2xx, 0 3xx", "999999 2xx, 1 3xx"),
        ("finished in 1.58s, 500000.00 req/s, 123.80MB/s", ""),
    ],
)
def test_an_h2load_run_with_anything_but_http_200_fails(said, instead):
    assert said in PRINTED
    with pytest.raises(LoadFailed, match="not every request was answered: requests: 1000000 total"):
        generators._finished(PRINTED.replace(said, instead), 1_000_000)


def test_logs_of_several_h2loads_become_one_load(tmp_path):
    (tmp_path / "a").write_text("1000000\t200\t100\n1000100\t200\t300\n")
    (tmp_path / "b").write_text("1000050\t200\t200\n3000000\t200\t50\n3000050\t200\t999950\n")
    load = generators._merge([tmp_path / "a", tmp_path / "b"])
    assert (load.requests, load.seconds, load.p50_us) == (5, 3.0, 200)
    assert (load.p90_us, load.p99_us) == (999950, 999950)


# ---- Judgement -------------------------------------------------------------------------------------------------------


def rounds(*pairs):
    return [{"native": Run(a, 4, 20), "grpcio": Run(b, 200, 600)} for a, b in pairs]


def test_ratios_are_taken_within_a_round_and_their_median_is_judged():
    line = Line("native", "rate", against="grpcio", at_least=15)
    outcome = Outcome("one", rounds((160, 10), (1000, 100), (340, 20)), (line,))
    verdict = outcome.verdicts[0]
    assert (verdict.value, verdict.least, verdict.most, verdict.held) == (16, 10, 17, True)
    assert "native / grpcio, requests/s: 16 (10 to 17), at least 15: held" in str(verdict)


@pytest.mark.parametrize(
    ("line", "held"),
    [
        (Line("native", "cpu_us", at_most=4), True),
        (Line("native", "cpu_us", at_most=3.9), False),
        (Line("native", "p50_us", against="grpcio", at_most=1 / 3), True),
        (Line("grpcio", "p50_us", against="native", at_most=1 / 3), False),
        (Line("native", "rate", against="grpcio", at_least=2), True),
        (Line("native", "rate", against="grpcio", at_least=2.1), False),
        (Line("native", "rate", against="grpcio", at_least=1.9, at_most=2.1), True),
        (Line("native", "rate", against="grpcio", at_least=1.5, at_most=1.9), False),
    ],
)
def test_a_line_holds_on_its_limit_and_not_beyond(line, held):
    outcome = Outcome("one", rounds((20, 10)), (line,))
    assert outcome.verdicts[0].held is held
    assert missed([outcome]) == ([] if held else [f"one: {outcome.verdicts[0]}"])
    assert ("**missed**" in markdown_of([outcome], pin=False)) is not held
    assert outcome.as_json()["lines"][0]["held"] is held


def test_sides_are_driven_in_turn_for_the_seconds_asked(echo, generator):
    sides = (Side("a", echo, BODIES[:2]), Side("b", echo, BODIES[:2]))
    scenario = Scenario("echoes", sides, generator, 16, (Line("a", "rate", against="b", at_least=0.01),))
    outcome = scenario.outcome(1, 0.3, "")
    assert [*outcome.rounds[0]] == ["a", "b"]
    assert outcome.verdicts[0].held
    assert all(run.rate > 0 and run.cpu_us > 0 for run in outcome.sides.values())


def test_a_run_is_as_long_as_asked(echo, generator):
    side = Side("a", echo, [b"x"])
    count = requests_for(0.3, side, generator, 16, "")
    load = generator(echo.address, METHOD, side.bodies, callers=16, requests=count)
    assert 0.03 < load.seconds < 3
