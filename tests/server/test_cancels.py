"""A cancelled call never leaks another entity's reply: seeded faults between server and Redis, cancels at random."""

from __future__ import annotations

import asyncio
import random
from contextlib import closing

import grpc
import numpy as np
import pytest

from penstock.features import Column, FeatureView, open_store
from penstock.proto import inference_pb2 as pb
from penstock.proto import inference_pb2_grpc

NAMES = ("itself", "sevenfold", "negative")
ENTITIES = 500
CODES = {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE}
TOGETHER = 24


def features_of(entity):
    """What an entity's row holds: nobody else's."""
    return [entity, 7 * entity + 1, -entity - 1]


class Campaign:
    """Calls of many tasks until so many were cancelled; `answered` and `wrong` tell what came of the others."""

    def __init__(self, address, cancels, seed):
        self.address, self.cancels, self.chance = address, cancels, random.Random(seed)
        self.cancelled = self.answered = self.without = self.failed = 0
        self.wrong, self.strange = [], []

    def told(self):
        counts = ("cancelled", "answered", "without", "failed")
        return ", ".join(f"{name} {getattr(self, name)}" for name in counts)

    async def run(self):
        async with grpc.aio.insecure_channel(self.address) as channel:
            self.stub = inference_pb2_grpc.GRPCInferenceServiceStub(channel)
            await asyncio.gather(*[self._calls() for _ in range(TOGETHER)])

    async def _calls(self):
        while self.cancelled < self.cancels and not self.wrong:
            entities = [self.chance.randrange(ENTITIES) for _ in range(self.chance.choice((1, 1, 1, 3)))]
            request = pb.ModelInferRequest(model_name="copy")
            ids = request.inputs.add(name="id", datatype="INT64", shape=[len(entities)])
            ids.contents.int64_contents.extend(entities)
            request.outputs.add(name="y")
            hasty = self.chance.random() < 0.2
            call = self.stub.ModelInfer(request, timeout=self.chance.uniform(0.002, 0.03) if hasty else 20)
            if self.chance.random() < 0.7:
                await asyncio.sleep(self.chance.expovariate(1000))
                self.cancelled += call.cancel()
            await self._judge(call, entities)

    async def _judge(self, call, entities):
        try:
            response = await call
        except asyncio.CancelledError:
            return
        except grpc.aio.AioRpcError as error:
            self.failed += 1
            self.strange += [] if error.code() in CODES else [error]
            return
        values = np.frombuffer(response.raw_output_contents[0], np.float32).reshape(len(entities), 3)
        if np.isnan(values).all():
            self.without += 1  # the view's `on_outage`
            return
        self.answered += 1
        if values.tolist() != [features_of(entity) for entity in entities]:
            self.wrong.append((entities, values.tolist()))


@pytest.mark.parametrize(
    ("transport", "layout", "cancels"),
    [
        ("native", "hash", 3000),  # hashes have no checksum that would tell a strange row
        pytest.param("native", "hash", 100_000, marks=pytest.mark.slow),
        pytest.param("native", "row", 100_000, marks=pytest.mark.slow),
        pytest.param("grpcio", "hash", 20_000, marks=pytest.mark.slow),
    ],
)
def test_no_caller_ever_gets_another_entity_s_features(
    registry, graphs, serving, proxy, redis_url, transport, layout, cancels
):
    if transport == "native":
        pytest.importorskip("penstock.kernels.http2")
    columns = [Column(name=name, dtype="float32") for name in NAMES]
    view = FeatureView(name="v", entity="id", on_outage="nan", layout=layout, columns=columns)
    graphs.publish(registry, "copy", graphs.copy(3), columns=NAMES, views=[view])
    with closing(open_store(redis_url)) as store:
        rows = np.array([features_of(entity) for entity in range(ENTITIES)], np.float32)
        ids = [b"%d" % entity for entity in range(ENTITIES)]
        store.put(view, ids, {name: rows[:, i] for i, name in enumerate(NAMES)})
    proxy.seed, proxy.mode = cancels, "weather"
    settings = {"warmup_ms": 0, "workers": 4, "feature_timeout_ms": 100, "max_resets_per_s": 1 << 20}
    addresses = serving(features=proxy.url, transport=transport, **settings)
    campaign = Campaign(addresses.grpc, cancels, seed=cancels)
    asyncio.run(campaign.run())
    assert not campaign.wrong
    assert not campaign.strange
    told = f"{campaign.told()}; replies of Redis: {proxy.weather}, on {proxy.accepted} connections"
    assert campaign.cancelled >= cancels, told
    assert campaign.answered > cancels / 20, told
    assert all(proxy.weather[kind] for kind in ("delay", "drip", "cut", "reset", "oblivion")), told
    print(told)
