"""The server, Redis or both are killed (SIGKILL) at points drawn from a seed, under traffic, while rows are ingested.

The server computes rows that are missing and writes them back, in both layouts. An ingester writes rows of the same
entities meanwhile: newer ones, a minute ahead of the clock, and older ones, of an hour ago. Redis keeps an append-only
file with `appendfsync always`. Then

- an answer, whenever it was given, has its own entities' values, whole, and nothing older than what the ingester had
  been told is written before the question was sent;
- no row that the ingester was told is written is lost at last, nor replaced by an older one, computed or not; every row
  is whole, and will expire;
- a server that was started again answers the first call, and one whose Redis was started again answers soon.
"""

from __future__ import annotations

import importlib.util
import os
import random
import sys
import threading
import time
from collections import Counter
from contextlib import closing, contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
import yaml

from penstock.features import Column, FeatureView, Lookup, StoreUnavailable, open_store
from penstock.proto import inference_pb2 as pb
from penstock.proto import inference_pb2_grpc

pytest.importorskip("penstock.kernels.http2", reason="this build has no native transport")

OK, ABSENT = 0, 1
QUICK = (4, 44)  # seeds of the default run
SEEDS = [pytest.param(seed, marks=[pytest.mark.slow] if seed not in QUICK else []) for seed in range(50)]
SPAN = 40  # entities that are ingested at a time; the span moves on with each write
AHEAD_MS, BEHIND_MS = 60_000, -3_600_000
SOON_S = 5.0
TOUCH = 20  # what is asked for on both sides of the span

FUNCTIONS = """
import random
import time

def check(entity, n):
    return (31 * entity + 17 * n) % 9973

def compute(letter, entities):
    time.sleep(0.01 * random.random())
    ids = [int(entity) for entity in entities]
    return {letter + "id": ids, letter + "n": [0] * len(ids), letter + "check": [check(one, 0) for one in ids]}

def rows(entities):
    return compute("r", entities)

def hashes(entities):
    return compute("h", entities)
"""


def _load(path):
    name = f"kill_tests_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


servers = _load(Path(__file__).parents[1] / "features" / "servers.py")


def view_of(name, letter, layout):
    columns = [Column(name=letter + "id", dtype="int64"), Column(name=letter + "n", dtype="int32")]
    columns.append(Column(name=letter + "check", dtype="float64"))
    return FeatureView(name=name, entity="id", columns=columns, layout=layout, on_missing="compute", compute=name)


VIEWS = [view_of("rows", "r", "row"), view_of("hashes", "h", "hash")]


def check(entity, n):
    return (31 * entity + 17 * n) % 9973


class World:
    """What was written, what of it was acknowledged, and what callers were told.

    Attributes:
        events: by number, what was ingested or is on its way: view, entity, event time. Computed rows have number 0.
        acknowledged: of each view and entity the newest event: time and number.
        front: the first entity that is ingested now.
        wrong: what should not have been, in words.
    """

    def __init__(self):
        self.events, self.acknowledged, self.front = {}, {}, 0
        self.answered, self.computed, self.wrong, self.fates = 0, 0, [], Counter()
        self.ended = threading.Event()

    def judge(self, entity, values, floors):
        """One row of an answer: three values of each view."""
        for view, (own, n, told) in zip(VIEWS, values.reshape(2, 3).tolist(), strict=True):
            floor = floors.get((view.name, entity))
            self._judge(view.name, entity, own, n, told, floor)

    def _judge(self, view, entity, own, n, told, floor):
        row = f"{view} of {entity}: {own}, {n}, {told}; acknowledged {floor}"
        if (own, told) != (entity, check(entity, n)):
            self.wrong.append(f"another's, or not whole: {row}")
        elif n == 0:
            self.computed += 1
            if floor and floor[0] > time.time_ns() // 1_000_000:
                self.wrong.append(f"computed, where a newer one is stored: {row}")
        elif self.events.get(n, ())[:2] != (view, entity):
            self.wrong.append(f"never written: {row}")
        elif floor and (self.events[n][2], n) < floor:
            self.wrong.append(f"older: {row}")


def ingest(world, url, chance):
    """Until the end: one batch after the other, each again until it is acknowledged."""
    with closing(open_store(url)) as store:
        while not world.ended.wait(0.002):
            view = chance.choice(VIEWS)
            entities = chance.sample(range(world.front, world.front + SPAN), 5)
            now = time.time_ns() // 1_000_000
            times = [now + (AHEAD_MS if chance.random() < 0.7 else BEHIND_MS) for _ in entities]
            numbers = [len(world.events) + 1 + i for i in range(len(entities))]
            world.events |= {n: (view.name, entity, at) for n, entity, at in zip(numbers, entities, times, strict=True)}
            checks = [check(entity, n) for entity, n in zip(entities, numbers, strict=True)]
            columns = dict(zip(view.column_names, (entities, numbers, checks), strict=True))
            persistently(lambda: store.put(view, entities, columns, np.array(times)))  # noqa: B023 -- called at once
            for entity, at, n in zip(entities, times, numbers, strict=True):
                key = view.name, entity
                world.acknowledged[key] = max(world.acknowledged.get(key, (at, n)), (at, n))
            world.front += 1


def persistently(write):
    until = time.monotonic() + 30
    while True:
        try:
            return write()
        except StoreUnavailable:
            assert time.monotonic() < until
            time.sleep(0.005)


def ask(stub, world, entities):
    """The values of entities, judged; raises grpc's errors."""
    floors = {key: world.acknowledged[key] for key in product(entities) if key in world.acknowledged}
    request = pb.ModelInferRequest(model_name="copy")
    ids = [b"%d" % entity for entity in entities]
    request.inputs.add(name="id", datatype="BYTES", shape=[len(ids)]).contents.bytes_contents.extend(ids)
    request.outputs.add(name="y")
    response = stub.ModelInfer(request, timeout=SOON_S)
    values = np.frombuffer(response.raw_output_contents[0], "f4").reshape(len(entities), 6)
    for entity, row in zip(entities, values, strict=True):
        world.judge(entity, row, floors)


def product(entities):
    return [(view.name, entity) for view in VIEWS for entity in entities]


def call(world, service, chance):
    """Until the end: ask for a few entities of the span and about it."""
    while not world.ended.is_set():
        address = service.address
        with grpc.insecure_channel(address) as channel:
            stub = inference_pb2_grpc.GRPCInferenceServiceStub(channel)
            while service.address == address and not world.ended.is_set():
                front = world.front
                about = range(max(front - TOUCH, 0), front + SPAN + TOUCH)
                if trouble := trouble_of(stub, world, chance.sample(about, chance.randint(1, 3))):
                    world.fates[trouble] += 1
                    world.ended.wait(0.01)
                else:
                    world.answered += 1


class Service:
    """A server over a Redis, both to be killed; `address` is the server's last."""

    def __init__(self, redis, start_server):
        self.redis, self._start_server = redis, start_server
        self.start("server")

    def kill(self, *parts):
        for part in parts:
            if part == "redis":
                self.redis.kill()
            else:
                assert "Traceback" not in self.server.log()
                self.close()

    def start(self, *parts):
        for part in parts:
            if part == "redis":
                self.redis.start()
            else:
                self.server = self._start_server()
                self.address = self.server.grpc

    def close(self):
        """End the server alone."""
        if self.server:
            self.server, server = None, self.server
            server.kill()


@pytest.fixture(params=SEEDS)
def chance(request):
    return random.Random(request.param)


@pytest.fixture
def redis(request):
    with closing(servers.KeptRedis(servers.in_turn(request.node.callspec.params["chance"]))) as redis:
        yield redis


@pytest.fixture
def service(redis, registry, graphs, server_process, tmp_path, monkeypatch):
    columns = [name for view in VIEWS for name in view.column_names]
    graphs.publish(registry, "copy", graphs.copy(6), columns=columns, views=VIEWS)
    (tmp_path / "computed_here.py").write_text(FUNCTIONS)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    settings = {
        "features": redis.url,
        "functions": {name: f"computed_here:{name}" for name in ("rows", "hashes")},
        "feature_timeout_ms": 500,
        "transport": "native",
        "warmup_ms": 0,
    }
    config = tmp_path / "serve.yaml"
    config.write_text(yaml.safe_dump(settings))
    with closing(Service(redis, lambda: server_process(registry.root, "--config", str(config)))) as service:
        yield service


@contextmanager
def traffic(world, service, chance):
    """An ingester and three callers."""
    url = service.redis.url
    threads = [threading.Thread(target=ingest, args=(world, url, random.Random(chance.random())))]
    threads += [threading.Thread(target=call, args=(world, service, random.Random(chance.random()))) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        world.ended.set()
        for thread in threads:
            thread.join(60)


def test_whoever_is_killed_no_row_is_lost_none_regresses_and_every_answer_is_right(chance, service, eventually):
    world = World()
    with traffic(world, service, chance):
        for _ in range(chance.randint(1, 3)):
            enough = world.answered + chance.randint(20, 200)
            eventually(lambda enough=enough: world.answered >= enough or world.wrong)
            time.sleep(0.02 * chance.random())
            whom = chance.choice([["server"], ["redis"], ["server", "redis"], ["redis", "server"]])
            service.kill(*whom)
            time.sleep(0.1 * chance.random())
            back = chance.sample(whom, len(whom))
            service.start(*back)
            assert_answers(world, service, at_once=back[-1] == "server")
            assert not world.wrong
        enough = world.answered + 50
        eventually(lambda: world.answered >= enough or world.wrong)
    assert not world.wrong
    assert all(fate.startswith("UNAVAILABLE") for fate in world.fates), world.fates
    assert world.computed > 20
    assert "Traceback" not in service.server.log()
    service.server.stop()
    service.kill("redis")
    service.start("redis")
    assert_stored(world, service.redis)


def assert_answers(world, service, *, at_once):
    """It computes what nobody has asked for, and gives what is stored."""
    entities = [world.front + 1_000_000, max(world.front - TOUCH, 0)]
    with grpc.insecure_channel(service.address) as channel:
        stub = inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        until = time.monotonic() + (0 if at_once else SOON_S)
        while trouble := trouble_of(stub, world, entities):
            assert time.monotonic() < until, trouble
            time.sleep(0.02)


def trouble_of(stub, world, entities):
    """Why there is no answer; nothing if there is one."""
    try:
        ask(stub, world, entities)
    except grpc.RpcError as error:
        return f"{error.code().name}: {error.details()}"
    return ""


def assert_stored(world, redis):
    """What is kept is whole, will expire, and is not older than what was acknowledged."""
    entities = range(world.front + SPAN + TOUCH)
    with closing(open_store(redis.url)) as store, redis.client() as client:
        for view, rows in zip(VIEWS, store.fetch([Lookup(v, ids_of(entities)) for v in VIEWS], 10), strict=True):
            assert set(rows.status.tolist()) <= {OK, ABSENT}
            keys = view.keys(ids_of(entities))
            times = rows.event_times.tolist()
            if view.layout == "hash":
                times = [int(client.hget(key, f"_ts:{view.name}") or 0) for key in keys]
            for entity, key, values, status, at in zip(entities, keys, rows.values, rows.status, times, strict=True):
                floor = world.acknowledged.get((view.name, entity), (0, 0))
                if status == ABSENT:
                    assert floor == (0, 0), f"lost: {view.name} of {entity}, {floor}"
                    continue
                own, n, told = values.tolist()
                assert (own, told) == (entity, check(entity, n))
                assert n == 0 or world.events[n] == (view.name, entity, at)
                assert (at, n) >= floor, f"older: {view.name} of {entity}, {(at, n)}, {floor}"
                assert client.ttl(key) > 80_000


def ids_of(entities):
    return [b"%d" % entity for entity in entities]
