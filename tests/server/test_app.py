"""The whole process: starting, refusing to start, and ending without losing a call."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from penstock.server import app
from penstock.server.config import Config
from penstock.server.errors import BadConfig

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
def double(registry, graphs):
    graphs.publish(registry, "double", graphs.double())
    return registry.root


def queue(caller, server, rows, eventually):
    """Calls that wait in the queue of a server with a long `max_queue_delay_us`."""
    calls = [caller.send("double", [[row, row + 0.5]]) for row in range(rows)]
    eventually(lambda: scraped(server, 'penstock_queue_rows{model="double"') == rows)
    return calls


def scraped(server, start):
    from urllib.request import urlopen

    with urlopen(f"http://{server.metrics}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return next(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(start))


def test_a_second_signal_ends_at_once(double, penstock_server, calling, eventually):
    server = penstock_server(double, "--max-queue-delay-us", "10000000", "--drain-delay", "60", metrics=True)
    caller = calling(server)
    watching = health_pb2_grpc.HealthStub(caller.channel).Watch(health_pb2.HealthCheckRequest())
    assert next(watching).status == SERVING
    (call,) = queue(caller, server, 1, eventually)
    server.terminate()
    assert next(watching).status == NOT_SERVING
    started = time.monotonic()
    server.terminate()
    server.stop(within_s=10)
    assert time.monotonic() - started < 5
    assert call.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}


def test_a_second_signal_cuts_a_drain_short(double, penstock_server, calling, eventually):
    server = penstock_server(double, "--max-queue-delay-us", "10000000", metrics=True)
    caller = calling(server)
    queue(caller, server, 1, eventually)
    started = time.monotonic()
    server.terminate()
    eventually(lambda: closed(server.grpc))
    server.terminate()
    server.stop(within_s=10)
    assert time.monotonic() - started < 5


def closed(address):
    host, port = address.split(":")
    try:
        socket.create_connection((host, int(port)), 1).close()
    except OSError:
        return True
    return False


def test_ctrl_c_drains_as_well(double, penstock_server, calling):
    server = penstock_server(double)
    assert calling(server).client.ready()
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(20) == 0


def test_the_ready_file_is_whole_and_names_the_process(double, penstock_server):
    import json

    server = penstock_server(double, metrics=True)
    told = json.loads(next(server._folder.glob("ready.json")).read_text())
    assert told == {"grpc": server.grpc, "metrics": server.metrics, "pid": server.process.pid}


def starting(*arguments):
    command = [sys.executable, "-m", "penstock.cli", "serve", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def taken():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def refused_starts(double, tmp_path, taken):
    """Command lines that cannot work, and what must be told of them."""
    unknown = tmp_path / "unknown.yaml"
    unknown.write_text("grcp: 127.0.0.1:0\n")
    quiet = ["--metrics", "off", "--grpc", "127.0.0.1:0"]
    return {
        "registry": (["--registry", tmp_path / "none", *quiet], "is not a folder"),
        "port": (["--registry", double, "--grpc", taken, "--metrics", "off"], f"{taken} cannot be listened on"),
        "metrics port": (["--registry", double, "--grpc", "127.0.0.1:0", "--metrics", taken], "cannot be listened on"),
        "remote": (["--registry", double, "--grpc", "0.0.0.0:0", "--metrics", "off"], "--allow-remote"),
        "unknown key": (["--config", unknown, *quiet], "grcp"),
        "store": (["--registry", double, "--features", "mongodb://x", *quiet], "redis://"),
    }


def test_what_cannot_start_says_why_in_one_line_and_exits_with_1(refused_starts):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(3) as threads:
        ended = list(threads.map(lambda case: starting(*case[0]), refused_starts.values()))
    for (name, (_, told)), run in zip(refused_starts.items(), ended, strict=True):
        assert run.returncode == 1, (name, run.stderr)
        assert run.stderr.startswith("penstock: "), (name, run.stderr)
        assert run.stderr.count("\n") == 1, (name, run.stderr)
        assert told in run.stderr, (name, run.stderr)
        assert run.stdout == ""


def test_settings_come_from_a_file_and_the_command_line_wins(double, tmp_path, penstock_server, calling):
    settings = tmp_path / "penstock.yaml"
    settings.write_text(f"registry: {tmp_path}/elsewhere\nmax_batch_rows: 7\nmax_queue_delay_us: 3\nworkers: 2\n")
    server = penstock_server(double, "--config", str(settings), "--max-queue-delay-us", "4")
    caller = calling(server)
    assert caller.client.config("double").max_batch_size == 7
    from penstock.proto import inference_pb2 as pb

    config = caller.stub.ModelConfig(pb.ModelConfigRequest(name="double"), timeout=20).config
    assert config.dynamic_batching.max_queue_delay_microseconds == 4


def test_a_signal_while_threads_still_end_is_nothing_new(tmp_path, monkeypatch):
    ready = tmp_path / "ready.json"

    async def serve(*_, **__):
        """Ends, and leaves a thread behind for which `asyncio.run` waits."""
        ended = threading.Event()

        def late():
            assert ended.wait(20)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)  # so that it is handled while the loop still waits

        ready.write_text("{}")
        asyncio.get_running_loop().run_in_executor(None, late)
        asyncio.current_task().add_done_callback(lambda _: ended.set())

    monkeypatch.setattr(app, "serve", serve)
    app.run(Config(registry=tmp_path), version="0", ready_file=ready)
    assert not ready.exists()


def test_signals_mean_what_they_did_before_once_it_has_ended(tmp_path):
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    with pytest.raises(BadConfig, match="is not a folder"):
        app.run(Config(registry=tmp_path / "none"), version="0")
    assert {number: signal.getsignal(number) for number in before} == before
