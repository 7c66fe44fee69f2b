"""A server under attack, a well-behaved caller beside it, and what is asked of both.

The server is `penstock serve --transport native`, its limits made small so that tests are quick; most floods share one,
as attackers share a server. `flood` runs an attack again and again for about a second and asks that

- the well-behaved caller, a process of its own, gets every answer right;
- its p99 is at most 3 times that without the attack. Two cores are shared by server, caller and attacker, so the time
  without it is taken while this process spins as busily as an attacker does, and one below FLOOR_S counts as that. What
  else runs on the machine can only make a p99 worse, so of up to ROUNDS pairs one that holds is enough. Where others
  took more than OTHERS of a core meanwhile, the kernel decides who waits, and BUSY_S more are allowed: that a flood
  stalls the server is still found then, that it slows it is not;
- resident memory comes back to GROWTH bytes over what it was after a warming round of the same attack, file descriptors
  come back to the number there was, and the server is still the same process.

What the attacker itself is told is asserted by each attack. All figures are shown at the end of a run.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import resource
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import hpack
import numpy as np
import pytest
import yaml

from penstock.proto import inference_pb2 as pb
from penstock.registry import Registry

pytest.importorskip("penstock.kernels.http2", reason="this build has no native transport")

TESTS = Path(__file__).parents[1]
INFER = "/inference.GRPCInferenceService/ModelInfer"
LIVE = "/inference.GRPCInferenceService/ServerLive"
FLOOR_S = 0.003
"""Two programs that share a core take turns of about this length."""
BUSY_S = 0.1
OTHERS = 0.25
ROUNDS = 4
GROWTH = 16 << 20  # of memory that the allocator keeps after more calls at once than the warm-up had
ROWS = pytest.StashKey[list[str]]()

SETTINGS = {
    "max_message_bytes": 8 << 20,
    "max_in_flight_bytes": 64 << 20,
    "max_header_bytes": 8192,
    "max_streams": 128,
    "max_connections": 200,
    "handshake_timeout_s": 1.0,
    "header_timeout_s": 1.0,
    "body_timeout_s": 1.0,
    "keepalive_s": 2.0,
    "keepalive_timeout_s": 1.0,
    "max_resets_per_s": 100,
}


def load(path: Path):
    name = f"adversity_{path.parent.name}_{path.stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


h2 = load(TESTS / "http2_client.py")
graphs = load(TESTS / "server" / "graphs.py")
eventually = load(TESTS / "server" / "conftest.py").eventually


@pytest.fixture(scope="session")
def http2():
    """tests/http2_client.py, the client that writes frames by hand."""
    return h2


@pytest.fixture(scope="session", name="graphs")
def small_graphs():
    """tests/server/graphs.py, which makes and publishes graphs."""
    return graphs


@pytest.fixture(scope="session")
def infer() -> str:
    return INFER


@pytest.fixture(scope="session")
def live() -> str:
    return LIVE


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Path:
    """A registry of double, FP32 [n, 2], and wide, FP32 [n, 16384]: 64 KiB a row."""
    registry = Registry(tmp_path_factory.mktemp("adversity") / "registry")
    registry.root.mkdir()
    graphs.publish(registry, "double", graphs.double())
    graphs.publish(registry, "wide", graphs.double(16384))
    return registry.root


def body(values, model="double") -> bytes:
    """A serialised ModelInfer request of rows."""
    array = np.asarray(values, "<f4")
    request = pb.ModelInferRequest(model_name=model)
    request.inputs.add(name="x", datatype="FP32", shape=array.shape)
    request.raw_input_contents.append(array.tobytes())
    return request.SerializeToString()


@pytest.fixture(scope="session")
def body_of():
    return body


# ----------------------------------------------------------------------------------------------------------------------
# The server
# ----------------------------------------------------------------------------------------------------------------------


def cpu_s(pid: int) -> float:
    """CPU seconds that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def busy_s() -> float:
    """CPU seconds that all programs of the machine have taken, and those that its host has taken from it."""
    user, nice, system, _, _, _, _, steal = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9])
    return (user + nice + system + steal) / os.sysconf("SC_CLK_TCK")


@dataclass
class Target:
    """A server process seen from outside."""

    server: object
    address: str

    @property
    def pid(self) -> int:
        return self.server.process.pid

    @property
    def alive(self) -> bool:
        return self.server.process.poll() is None

    def memory(self) -> int:
        """Resident bytes."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def cpu_s(self) -> float:
        """Of user and system time so far."""
        return cpu_s(self.pid)

    def serves(self) -> None:
        """A new connection gets its answers."""
        with h2.connect(self.address) as peer:
            answer = peer.call(INFER, body([[1.0, 2.0]]))
            assert answer.code == 0, (answer.code, answer.message)
            assert answer.messages[0].endswith(np.asarray([2.0, 4.0], "<f4").tobytes())
            assert peer.call(LIVE, b"").messages == [b"\x08\x01"]

    def settles(self, memory: int, descriptors: int, growth: int = GROWTH, within_s: float = 10) -> None:
        """Wait until memory and descriptors are back."""
        until = time.monotonic() + within_s
        while self.memory() > memory + growth or self.descriptors() > descriptors:
            found = self.memory() - memory, self.descriptors(), descriptors
            assert time.monotonic() < until, f"memory stays {found[0]} bytes up, descriptors {found[1]} of {found[2]}"
            time.sleep(0.02)


@pytest.fixture(scope="session")
def _starting(models, server_process, tmp_path_factory):
    def start(**settings) -> tuple[object, Target]:
        config = tmp_path_factory.mktemp("config") / "penstock.yaml"
        config.write_text(yaml.safe_dump({name: str(v) if isinstance(v, Path) else v for name, v in settings.items()}))
        server = server_process(models, "--config", str(config), "--transport", "native")
        return server, Target(server, server.grpc)

    return start


@pytest.fixture
def starting(_starting):
    """Starts servers of the test's own; each must end with 0 on SIGTERM."""
    with contextlib.ExitStack() as stack:

        def start(**settings) -> Target:
            server, target = _starting(**settings)
            stack.enter_context(server)
            return target

        yield start


@pytest.fixture(scope="session")
def _shared(_starting):
    server, target = _starting(**SETTINGS)
    with server:
        yield target


@pytest.fixture
def target(_shared) -> Target:
    """The server that most floods share. It must outlive each."""
    yield _shared
    assert _shared.alive, _shared.server.log()
    _shared.serves()


# ----------------------------------------------------------------------------------------------------------------------
# The caller
# ----------------------------------------------------------------------------------------------------------------------


def p99(times) -> float:
    return float(np.quantile(times, 0.99))


class Healthy:
    """healthy.py at an address."""

    def __init__(self, address: str, *ca: str) -> None:
        files = [Path(__file__).with_name("healthy.py"), TESTS / "http2_client.py"]
        hexes = [body([[1.0, 2.0]]).hex(), np.asarray([2.0, 4.0], "<f4").tobytes().hex()]
        words = [sys.executable, *map(str, files), address, "0.0005", *hexes, *ca]
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors)

    def _told(self) -> str:
        self._errors.seek(0)
        return f"a well-behaved caller was let down:\n{self._errors.read().decode()}"

    def cpu_s(self) -> float:
        return cpu_s(self._process.pid)

    def mark(self) -> dict[str, list[float]]:
        """The seconds of each call since the last mark."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self._process.stdin.fileno(), b".")
        line = self._process.stdout.readline()
        assert line, self._told()
        return json.loads(line)

    def during(self, work: Callable[[], object], seconds: float) -> dict[str, list[float]]:
        """Its calls while `work` is done again and again."""
        self.mark()
        until = time.monotonic() + seconds
        while True:
            work()
            if time.monotonic() >= until:
                return self.mark()

    def close(self) -> None:
        """It must end by itself, having found nothing wrong."""
        with self._process as process, self._errors:
            process.stdin.close()
            try:
                assert process.wait(20) == 0, self._told()
            finally:
                process.kill()


@pytest.fixture
def caller():
    """Starts well-behaved callers; each must have had right answers only."""
    with contextlib.ExitStack() as stack:

        def start(address, *ca) -> Healthy:
            healthy = Healthy(address, *ca)
            stack.callback(healthy.close)
            return healthy

        yield start


# ----------------------------------------------------------------------------------------------------------------------
# The flood
# ----------------------------------------------------------------------------------------------------------------------


def spin(seconds: float = 0.05) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


@pytest.fixture
def flood(target, caller, request):
    """Runs an attack as the head of this file says."""

    def run(
        attack: Callable[[], object], *, at: Target = target, warm: int = 1, growth: int = GROWTH, ca: str = ""
    ) -> None:
        for _ in range(warm):
            attack()
        healthy = caller(at.address, *filter(None, [ca]))
        healthy.mark()
        before, descriptors = at.memory(), at.descriptors()
        for _ in range(ROUNDS):
            calm, used = healthy.during(spin, 0.45), at.cpu_s()
            begun, others = time.monotonic(), busy_s() - at.cpu_s() - healthy.cpu_s() - time.process_time()
            hurt = healthy.during(attack, 0.8)
            others = busy_s() - at.cpu_s() - healthy.cpu_s() - time.process_time() - others
            others /= time.monotonic() - begun
            bound = 3 * max(FLOOR_S, p99(calm["infer"])) + (BUSY_S if others > OTHERS else 0)
            if p99(hurt["infer"]) <= bound:
                break
        used, peak = at.cpu_s() - used, at.memory()
        at.settles(before, descriptors, growth)
        sizes = " -> ".join(f"{size / 2**20:.1f}" for size in (before, peak, at.memory()))
        note(
            request,
            f"p99 {p99(calm['infer']) * 1e3:6.2f} -> {p99(hurt['infer']) * 1e3:6.2f} ms of {len(hurt['infer']):4} "
            f"calls ({others:.1f} cores busy elsewhere), slow lane {max(hurt['live']) * 1e3:6.1f} ms at most; "
            f"server {used:4.2f} s of CPU; memory {sizes} MiB",
        )
        assert p99(hurt["infer"]) <= bound, f"p99 {p99(hurt['infer']):.4f} s during the attack, not {bound:.4f} s"

    return run


def note(request, text: str) -> None:
    request.config.stash.setdefault(ROWS, []).append(f"{request.node.name:45} {text}")


@pytest.fixture
def noting(request):
    """Shows a line of figures at the end of the run."""
    return lambda text: note(request, text)


def pytest_terminal_summary(terminalreporter, config) -> None:
    if rows := config.stash.get(ROWS, []):
        terminalreporter.section("adversity")
        for row in rows:
            terminalreporter.write_line(row)


# ----------------------------------------------------------------------------------------------------------------------
# The attacker's tools
# ----------------------------------------------------------------------------------------------------------------------


class Reader:
    """Reads frames as they are, in no state; (type, flags, stream, payload) each."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._data = bytearray()
        self.frames: list[tuple[int, int, int, bytes]] = []

    def until(self, holds: Callable[[], bool], within_s: float = 10) -> bool:
        """Read until something holds (True) or the server closed the connection (False)."""
        until = time.monotonic() + within_s
        while not holds():
            left = until - time.monotonic()
            assert left > 0, f"nothing for {within_s} s; the last frames are {self.frames[-5:]}"
            self._link.settimeout(left)
            try:
                found = self._link.recv(1 << 20)
            except ConnectionError:
                found = b""
            except TimeoutError:
                continue
            if not found:
                return holds()
            self._data += found
            self._take()
        return True

    def _take(self) -> None:
        at = 0
        while len(self._data) >= at + 9 and len(self._data) >= at + 9 + (
            size := int.from_bytes(self._data[at : at + 3])
        ):
            kind, flags, stream = struct.unpack_from(">BBI", self._data, at + 3)
            self.frames.append((kind, flags, stream, bytes(self._data[at + 9 : at + 9 + size])))
            at += 9 + size
        del self._data[:at]

    def of(self, kind: int) -> list[tuple[int, int, int, bytes]]:
        return [frame for frame in self.frames if frame[0] == kind]

    def goaway(self, within_s: float = 10) -> int:
        """The error code of the GOAWAY that comes."""
        assert self.until(lambda: bool(self.of(h2.GOAWAY)), within_s), "closed without a word"
        return struct.unpack_from(">I", self.of(h2.GOAWAY)[-1][3], 4)[0]

    def closed(self, within_s: float = 10) -> None:
        """The server closes the connection in time."""
        assert not self.until(lambda: False, within_s)


def blast(link: socket.socket, data: bytes) -> None:
    """Send everything, or what the server takes until it closes."""
    link.settimeout(30)
    with contextlib.suppress(ConnectionError):
        link.sendall(data)


@pytest.fixture(scope="session")
def reading():
    return Reader


@pytest.fixture(scope="session")
def blasting():
    return blast


@pytest.fixture
def calmed(http2, target):
    """Opens a connection, sends frames as one piece, and must be told ENHANCE_YOUR_CALM within 10 s and shut out."""

    def attack(frames: bytes, at: Target = target) -> Reader:
        with http2.link(at.address) as link:
            blast(link, http2.PREFACE + http2.frame(http2.SETTINGS, 0, 0) + frames)
            reader = Reader(link)
            assert reader.goaway() == http2.ENHANCE_YOUR_CALM
            reader.closed()
            return reader

    return attack


def pairs(path: str) -> list[tuple[str, str]]:
    return [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
    ]


@pytest.fixture(scope="session")
def blocks():
    """Header blocks of calls of a path: the first, which fills the table, and all others, which only point into it."""

    def make(path: str) -> tuple[bytes, bytes]:
        encoder = hpack.Encoder()
        return encoder.encode(pairs(path), huffman=False), encoder.encode(pairs(path), huffman=False)

    return make


@pytest.fixture(scope="session")
def small_limits():
    """The settings of the shared server, for servers of the test's own."""
    return SETTINGS


@pytest.fixture
def many_descriptors():
    """Raises this process's own limit for as long as a test takes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 8192 if hard == resource.RLIM_INFINITY else min(hard, 8192)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
