"""The whole story: features, training, conversion, serving, drift, consistency. Run by `penstock demo`.

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
from penstock.examples.fraud.data import WEEKS_AGO, World, make_transactions, make_world
from penstock.examples.fraud.report import TOLERANCE, Parity, Story, Summary
from penstock.examples.fraud.scratch import scratch_folder
from penstock.examples.fraud.serving import SERVED, serving
from penstock.examples.fraud.traffic import Answers, drift_of, look_closely, mean_batch, send
from penstock.features import open_store
from penstock.features.ingest import ingest
from penstock.features.offline import OfflineStore
from penstock.features.offline.check import Report, check

TRAINING_ROWS = 100_000
HOLDOUT_ROWS = 20_000
ALONE_CALLS = 500
HISTORY = "history"  # in the scratch folder
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
        url = fill_stores(story, data.world, scratch, running)
        trained = train_and_publish(story, data, scratch)
        with ExitStack() as served:
            with story.step("Start the server, a process of its own") as say:
                address = served.enter_context(serving(scratch / "models", url, WINDOW_S, scratch))
                say(f"penstock serve on {address}")
            found = asyncio.run(call(story, address, data, trained))
        summary = found(consistency=hold_against_history(story, scratch))
    story.result(summary, took=time.monotonic() - started)


def make_data(story: Story, customers: int, calls: int, seed: int) -> Data:
    """Customers, their features, and transactions."""
    rng = np.random.default_rng(seed)
    with story.step(f"Make up {customers:,} customers and seven weeks of their transactions") as say:
        world = make_world(customers, rng)
        history, holdout = (make_transactions(world, rows, rng) for rows in (TRAINING_ROWS, HOLDOUT_ROWS))
        traffic, later = (make_transactions(world, rows, rng) for rows in (calls, calls // 2))
        say(f"{len(history):,} labelled transactions of three weeks, {history['fraud'].mean():.2%} of them fraud")
    return Data(world, history, holdout, traffic, later.assign(amount=later["amount"] * SHIFT))


def fill_stores(story: Story, world: World, scratch: Path, running: ExitStack) -> str:
    """Keep the features' history in Parquet, and the last of each customer in a Redis of our own; its URL."""
    url, table = f"embedded://{scratch / 'features'}", scratch / "features.parquet"
    with story.step("Keep the history of the features, offline") as say:
        rows = OfflineStore(scratch / HISTORY).write(world.view, world.history, time="computed_at", created="known_at")
        say(f"{rows:,} rows as of {len(WEEKS_AGO)} moments, a week apart")
    with story.step("Start a Redis, declare the features, load the last ones") as say:
        store = running.enter_context(closing(open_store(url)))
        store.apply(world.view)
        world.features.reset_index().assign(computed_at=world.cut_off).to_parquet(table)
        report = ingest(store, world.view, table, time_column="computed_at")
        say(f"{report.rows:,} rows of {len(world.view.columns)} features, {report.rows_per_s:,.0f} rows/s")
    return url


def train_and_publish(story: Story, data: Data, scratch: Path) -> training.Trained:
    """Join each transaction with what was known at its time; train, convert, compare, publish."""
    with story.step("Join labelled transactions with the features known at their time") as say:
        rows, held_out = (training.as_of(data.world, part, scratch / HISTORY) for part in (data.history, data.holdout))
        say(f"{len(rows) + len(held_out):,} rows, none of which knows its own future")
    with story.step("Train a classifier with balanced class weights (scikit-learn)"):
        trained = training.train(data.world, rows, data.history["fraud"].to_numpy())
    with story.step("Convert it to ONNX, compare both on every held-out row, publish") as say:
        labels = data.holdout["fraud"].to_numpy()
        done = training.publish(trained, data.world, held_out, labels, scratch / "models")
        passed = done.passed.sample
        say(f"version {done.manifest.version}; {passed.rows:,} rows, worst difference {passed.worst:.1e}")
    return trained


def hold_against_history(story: Story, scratch: Path) -> Report:
    """What `penstock features check` does, over every row that was served; `DemoError` if a value differs."""
    with story.step("Hold what was served against the history (features check)") as say:
        report = check(scratch / SERVED, OfflineStore(scratch / HISTORY))
        if report.share:
            raise DemoError("online and offline features differ: please report this")
        say(f"{report.rows:,} rows, {report.compared:,} values: none missing, extra or mismatched")
    return report


async def call(story: Story, address: str, data: Data, trained: training.Trained) -> partial[Summary]:
    """Call the server as services would, hold every answer against scikit-learn's; the summary, but for its end."""
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
        return partial(
            Summary, len(data.world.features), answers, alone, await mean_batch(client), parity, outcome, before, after
        )


def compare(answers: Answers, sent: pd.DataFrame, world: World, trained: training.Trained) -> Parity:
    """Hold answers against scikit-learn's on the same features; `DemoError` if one is off."""
    parity = Parity.of(answers, trained.probabilities(world.joined(sent)))
    if not parity.holds:
        raise DemoError(
            f"an answer is {parity.worst:.2g} away from scikit-learn's and {TOLERANCE:g} is allowed: please report this"
        )
    return parity
