"""The whole story: features, training, conversion, serving, drift. Run by `penstock demo`.

Read this file from top to bottom: it is the list of what is done, in order. Everything lives in a scratch folder and on
free ports, and is gone at the end, also after Ctrl-C: the server is told to drain, and the embedded Redis ends with its
last user.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from penstock.client import AsyncClient
from penstock.errors import PenstockError
from penstock.examples.fraud import decisions, training
from penstock.examples.fraud.data import World, make_transactions, make_world
from penstock.examples.fraud.report import TOLERANCE, Parity, Story, Summary
from penstock.examples.fraud.scratch import scratch_folder
from penstock.examples.fraud.serving import serving
from penstock.examples.fraud.traffic import Answers, drift_of, look_closely, mean_batch, send
from penstock.features import open_store
from penstock.features.ingest import ingest

TRAINING_ROWS = 100_000
HOLDOUT_ROWS = 20_000
ALONE_CALLS = 500
SHIFT = 3.0  # the factor by which amounts grow, as if a partner began to send them in another currency
WINDOW_S = 2.0  # of drift; a minute is usual, and a demo is short


class DemoError(PenstockError):
    """The demo did not find what it promises."""


@dataclass(frozen=True)
class Data:
    """All that is made up: labelled rows to train and to test on, and the traffic of two later days."""

    world: World
    history: pd.DataFrame
    holdout: pd.DataFrame
    traffic: pd.DataFrame
    shifted: pd.DataFrame


def run(*, customers: int = 20_000, calls: int = 20_000, seed: int = 7, as_json: bool = False) -> None:
    """Tell the story on embedded defaults, and print a summary.

    Args:
        customers: how many to make up.
        calls: how many to send before the amounts shift; half as many follow.
        seed: of everything that is random.
        as_json: print the summary as JSON on stdout, and the story on stderr.

    Raises:
        PenstockError: something failed, or an answer was not scikit-learn's; told in one line.
    """
    started = time.monotonic()
    story = Story(as_json=as_json)
    with scratch_folder() as scratch, ExitStack() as running:
        data = make_data(story, customers, calls, seed)
        url = fill_store(story, data.world, scratch, running)
        trained = train_and_publish(story, data, scratch / "models")
        with story.step("Start the server, a process of its own") as say:
            address = running.enter_context(serving(scratch / "models", url, WINDOW_S, scratch))
            say(f"penstock serve on {address}")
        summary = asyncio.run(call(story, address, data, trained))
    story.result(summary, took=time.monotonic() - started)


def make_data(story: Story, customers: int, calls: int, seed: int) -> Data:
    """Customers, their features, and transactions."""
    rng = np.random.default_rng(seed)
    with story.step(f"Make up {customers:,} customers and a month of their transactions") as say:
        world = make_world(customers, rng)
        history, holdout = (make_transactions(world, rows, rng) for rows in (TRAINING_ROWS, HOLDOUT_ROWS))
        traffic, later = (make_transactions(world, rows, rng) for rows in (calls, calls // 2))
        say(f"{len(history):,} labelled transactions after it, {history['fraud'].mean():.2%} of them fraud")
    return Data(world, history, holdout, traffic, later.assign(amount=later["amount"] * SHIFT))


def fill_store(story: Story, world: World, scratch: Path, running: ExitStack) -> str:
    """Start a Redis of our own, declare the view and load the features into it; its URL, for the server too."""
    url, table = f"embedded://{scratch / 'features'}", scratch / "features.parquet"
    with story.step("Start a Redis, declare the features, load them") as say:
        store = running.enter_context(closing(open_store(url)))
        store.apply(world.view)
        world.features.reset_index().to_parquet(table)
        report = ingest(store, world.view, table)
        say(f"{report.rows:,} rows of {len(world.view.columns)} features, {report.rows_per_s:,.0f} rows/s")
    return url


def train_and_publish(story: Story, data: Data, registry: Path) -> training.Trained:
    """Train, convert, compare, publish."""
    with story.step("Train a classifier with balanced class weights (scikit-learn)"):
        trained = training.train(data.world, data.history)
    with story.step("Convert it to ONNX, compare both on every held-out row, publish") as say:
        done = training.publish(trained, data.world, data.holdout, registry)
        passed = done.passed.sample
        say(f"version {done.manifest.version}; {passed.rows:,} rows, worst difference {passed.worst:.1e}")
    return trained


async def call(story: Story, address: str, data: Data, trained: training.Trained) -> Summary:
    """Call the server as services would, and hold every answer against scikit-learn's."""
    async with AsyncClient(address) as client:
        story.closer_look(await look_closely(client, data.traffic), trained.fraud_share)
        first = data.traffic.head(ALONE_CALLS)
        with story.calls("Call by customer id, one call at a time", len(first)) as tick:
            alone = await send(client, first, in_flight=1, on_answer=tick)
        parity = compare(alone, first, data.world, trained)
        with story.calls(f"{len(data.traffic):,} calls, many at once", len(data.traffic)) as tick:
            answers, before = await drift_of(client, partial(send, client, data.traffic, on_answer=tick))
        parity += compare(answers, data.traffic, data.world, trained)
        with story.calls(f"{len(data.shifted):,} calls with amounts times {SHIFT:g}", len(data.shifted)) as tick:
            changed, after = await drift_of(client, partial(send, client, data.shifted, on_answer=tick))
        parity += compare(changed, data.shifted, data.world, trained)
        story.drift(after)
        outcome = decisions.outcome(data.traffic, answers.probabilities[:, 1], trained.fraud_share)
        return Summary(
            len(data.world.features), answers, alone, await mean_batch(client), parity, outcome, before, after
        )


def compare(answers: Answers, sent: pd.DataFrame, world: World, trained: training.Trained) -> Parity:
    """Hold answers against scikit-learn's on the same features; `DemoError` if one is off."""
    parity = Parity.of(answers, trained.probabilities(world.joined(sent)))
    if not parity.holds:
        raise DemoError(
            f"an answer is {parity.worst:.2g} away from scikit-learn's and {TOLERANCE:g} is allowed: please report this"
        )
    return parity
