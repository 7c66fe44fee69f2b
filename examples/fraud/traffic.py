"""Traffic: one gRPC call for each transaction, many in flight, and the drift of exactly these calls.

A call sends the customer's id and what only the caller knows (amount, hour); the server looks the rest up. The client
is one asyncio program, as a service would be; on a small machine it limits the calls a second, not the server.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from penstock.answers import ModelDrift, ModelStatistics
from penstock.client import AsyncClient
from penstock.errors import RpcError
from penstock.examples.fraud.data import SENT
from penstock.examples.fraud.training import MODEL

IN_FLIGHT = 64
WATCH_S = 0.2
Numbers = NDArray[np.float64]
Call = tuple[int, str, dict[str, float]]


@dataclass(frozen=True)
class Answers:
    """What came back, in the order of the transactions.

    Attributes:
        probabilities: [n, 2], of honest and of fraud.
        latency_ms: [n], each call as its caller saw it.
        seconds: for all of them together.
    """

    probabilities: Numbers
    latency_ms: Numbers
    seconds: float

    @property
    def per_second(self) -> float:
        """Calls a second."""
        return len(self.latency_ms) / self.seconds

    def percentile_ms(self, q: float) -> float:
        """The latency that `q` percent of the calls stayed under."""
        return float(np.percentile(self.latency_ms, q))


async def send(
    client: AsyncClient, transactions: pd.DataFrame, *, in_flight: int = IN_FLIGHT, on_answer: Callable[[], None]
) -> Answers:
    """Score every transaction, keeping `in_flight` calls under way; the first failed call ends it all."""
    answers = Answers(np.empty((len(transactions), 2)), np.empty(len(transactions)), 0.0)
    calls = _calls(transactions)
    started = time.perf_counter()
    try:
        async with asyncio.TaskGroup() as callers:
            for _ in range(in_flight):
                callers.create_task(_caller(client, calls, answers, on_answer))
    except* RpcError as failed:
        raise failed.exceptions[0] from None
    return Answers(answers.probabilities, answers.latency_ms, time.perf_counter() - started)


def _calls(transactions: pd.DataFrame) -> Iterator[Call]:
    sent = transactions[list(SENT)].to_dict("records")
    yield from zip(range(len(transactions)), transactions["customer_id"], sent, strict=True)


async def _caller(client: AsyncClient, calls: Iterator[Call], answers: Answers, on_answer: Callable[[], None]) -> None:
    """One caller: takes the next call that nobody has made yet, until none is left."""
    for index, customer, sent in calls:
        before = time.perf_counter()
        answer = await client.predict(MODEL, entity_ids=[customer], overrides=sent, outputs=["probabilities"])
        answers.latency_ms[index] = (time.perf_counter() - before) * 1000
        answers.probabilities[index] = answer["probabilities"][0]
        on_answer()


async def drift_of(client: AsyncClient, traffic: Callable[[], Awaitable[Answers]]) -> tuple[Answers, ModelDrift]:
    """Run `traffic`, and return the fullest drift window that holds nothing else.

    The server counts in windows of fixed length by the wall clock and cannot know where one kind of traffic ends. So
    this begins in a window that is still empty, keeps the complete windows it sees, and ends when the open window is
    empty again. No window then mixes two kinds of traffic, however fast or slow the machine is.
    """
    begin = await _empty_window(client)
    seen: list[ModelDrift] = []
    watching = asyncio.create_task(_watch(client, seen))
    try:
        answers = await traffic()
        await _empty_window(client)
    finally:
        watching.cancel()
    seen.append((await client.drift(MODEL))[0])
    ours = [window for window in seen if window.complete and window.window_start_ms >= begin]
    return answers, max(ours, key=lambda window: window.rows)


async def _watch(client: AsyncClient, seen: list[ModelDrift]) -> None:
    """Look at the last complete window again and again; a server that fails is the caller's to report."""
    with suppress(RpcError):
        while True:
            seen += await client.drift(MODEL)
            await asyncio.sleep(WATCH_S)


async def _empty_window(client: AsyncClient) -> int:
    """Wait until the open window has no rows; when it began, in ms."""
    while (window := (await client.drift(MODEL, current=True))[0]).rows:  # noqa: ASYNC110
        await asyncio.sleep(WATCH_S)
    return window.window_start_ms


@dataclass(frozen=True)
class Look:
    """One call seen closely: the model's vector, and where each value came from."""

    customer: str
    columns: tuple[str, ...]
    values: tuple[float, ...]
    sources: tuple[str, ...]
    fraud: float


async def look_closely(client: AsyncClient, transactions: pd.DataFrame) -> list[Look]:
    """The first transaction of a customer who has features, and the first of one who has none."""
    new = transactions["customer_id"].str.startswith("new")
    columns = (await client.config(MODEL)).columns
    return [await _look(client, columns, transactions[chosen].iloc[0]) for chosen in (~new, new) if chosen.any()]


async def _look(client: AsyncClient, columns: tuple[str, ...], row: pd.Series[Any]) -> Look:
    wanted = ("probabilities", "penstock.features", "penstock.feature_status")
    sent = {name: [row[name]] for name in SENT}
    customer = str(row["customer_id"])
    answer = await client.predict(MODEL, entity_ids=[customer], overrides=sent, outputs=wanted)
    probabilities, values, sources = (answer[name][0] for name in wanted)
    words = tuple(source.decode() if isinstance(source, bytes) else str(source) for source in sources)
    return Look(customer, columns, tuple(map(float, values)), words, float(probabilities[1]))


async def mean_batch(client: AsyncClient) -> float:
    """Rows the server ran at once, on average, since it started."""
    found: ModelStatistics = (await client.statistics(MODEL))[0]
    return found.inference_count / found.execution_count
