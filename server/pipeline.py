"""What one version does with a batch: join, watch, transform, run. Assembled once, at load.

Python here costs about 50 microseconds a batch, however many rows; whatever touches rows is compiled.
"""

from __future__ import annotations

import logging
import os
import threading
from dataclasses import dataclass, field
from functools import partial
from time import monotonic_ns, thread_time_ns
from typing import Any

import numpy as np

from penstock.features.functions import Compiled
from penstock.features.transforms import clock
from penstock.kernels.batches import Batch
from penstock.kernels.costs import Cost
from penstock.kernels.lanes import Lane
from penstock.kernels.wire import Plan
from penstock.server.errors import InvalidRequest, OurFault, ServerError
from penstock.server.forests import Loaded
from penstock.server.join import SOURCES, Join
from penstock.server.plans import FEATURE_STATUS, FEATURES
from penstock.server.sampling import Sampler, now_ms
from penstock.server.session import Session
from penstock.server.shared import Shared
from penstock.server.splitting import in_parts
from penstock.server.watch import Watch

_log = logging.getLogger("penstock.server")


@dataclass(frozen=True)
class Pipeline:
    """The steps of one version; those it has no need of are None.

    Attributes:
        forest: who runs the graph, where it is an ensemble of trees; None: the session does.
        cap: rows of one run at most, a larger batch being run in parts; 0 for no such bound.
        sample: keeps some of what was looked up, where the operator wants that.
        shared: answers that servers share, which a worker asks for before `run`.
        cost: CPU time of the running thread, since waiting for the interpreter is no work.
    """

    plan: Plan
    session: Session
    join: Join | None = None
    transforms: Compiled | None = None
    watch: Watch | None = None
    forest: Loaded | None = None
    cap: int = 0
    sample: Sampler | None = None
    shared: Shared | None = None
    cost: Cost = field(default_factory=Cost)

    @property
    def waits(self) -> bool:
        """Whether a batch waits for somebody else: for features, or for what servers share."""
        return self.join is not None or self.shared is not None

    def run(self, batch: Batch) -> None:
        """Run one batch and answer its calls.

        Raises:
            Exception: whatever went wrong; nothing was answered.
        """
        started, spent = monotonic_ns(), thread_time_ns()
        rows, asked_ms = batch.rows, now_ms()
        joined = self.join is None or self.join.fill(batch)
        batch.degraded = not joined
        looked_up = monotonic_ns()
        outputs = self.compute(self._feeds(batch))
        computed = monotonic_ns()
        if self.sample is not None and joined:
            self.sample.offer(batch, asked_ms)
        if self.watch is not None and joined:
            self.watch.count(batch, outputs)
        batch.complete(outputs | self._on_request(batch), looked_up - started, computed - looked_up)
        self.cost.learn(rows, thread_time_ns() - spent)

    def compute(self, feeds: dict[str, Any], now: Any = None) -> dict[str, Any]:
        """Outputs of the graph, behind the transforms, for inputs as callers send them; these stay as they are.

        Transforms that count from the clock take it once for all rows, or from `now` (see `features.transforms.clock`).
        """
        feeds = self.transformed(feeds, now)
        run = self.session.run if self.forest is None else self.forest.session.run
        return in_parts(run, feeds, self.cap) if self.cap else run(feeds)

    def transformed(self, feeds: dict[str, Any], now: Any = None) -> dict[str, Any]:
        """Inputs of the graph for inputs as callers send them."""
        if self.transforms is None:
            return feeds
        ((name, matrix),) = feeds.items()  # there is one input, the matrix
        out = np.empty((len(matrix), self.transforms.n_outputs), np.float32)
        self.transforms.run(matrix, out, clock(now) if self.transforms.timed else None)
        return {name: out}

    def _feeds(self, batch: Batch) -> dict[str, Any]:
        """What callers sent, as ONNX Runtime takes it."""
        return self._with_texts(batch) if self.plan.n_texts else batch.inputs

    def _on_request(self, batch: Batch) -> dict[str, Any]:
        """The outputs that callers must ask for, if any of them did."""
        if self.join is None:
            return {}
        extra: dict[str, Any] = {}
        first = len(self.plan.outputs) - 2
        if batch.wants(first):
            extra[FEATURES] = batch.matrix
        if batch.wants(first + 1):
            extra[FEATURE_STATUS] = SOURCES[batch.source]
        return extra

    def _with_texts(self, batch: Batch) -> dict[str, Any]:
        """BYTES inputs as ONNX Runtime takes them: object arrays of str."""
        feeds = dict(batch.inputs)
        for entry in self.plan.inputs:
            if entry.datatype != "BYTES" or entry.kind != "tensor":
                continue
            try:
                values = [text.decode() for text in feeds[entry.name]]
            except UnicodeDecodeError as error:
                raise InvalidRequest(f"input {entry.name!r} has a value that is not UTF-8 text") from error
            feeds[entry.name] = np.array(values, object).reshape(batch.shape_of(entry.name))
        return feeds


def serve(lane: Lane, pipeline: Pipeline, nice: int = 0) -> None:
    """A worker's life: take, run, until the lane is drained. No batch is left without an answer."""
    if nice:
        _yield_more(nice)
    while run_next(lane, pipeline):
        pass


def _yield_more(nice: int) -> None:
    """Have the scheduler prefer other threads to this one, on top of what the server itself yields."""
    thread = threading.get_native_id()  # which Linux takes for a process of its own
    try:
        os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + nice))
    except OSError as error:
        _log.warning("workers do not yield (worker_nice): %s", error)


def run_next(lane: Lane, pipeline: Pipeline, *, block: bool = True) -> bool:
    """Take one batch and run it; False where there was none. Never raises: a lost batch answers its calls INTERNAL."""
    try:
        batch = lane.take(block=block)
        if batch is None:
            return False
        run_safely(batch, pipeline)
    except Exception:  # noqa: BLE001  # whoever runs batches, worker or event loop, must survive anything
        _log.exception("a batch was lost")
    return True


def run_safely(batch: Batch, pipeline: Pipeline) -> None:
    """Answer a batch: what servers share from there, all else by a run."""
    if pipeline.shared is None:
        run_or_split(batch, pipeline)
    else:
        pipeline.shared.run(batch, partial(run_or_split, pipeline=pipeline))


def run_or_split(batch: Batch, pipeline: Pipeline) -> None:
    """Run a batch; where that fails, run its members singly, once, so that one bad row spoils only its own call."""
    try:
        pipeline.run(batch)
    except Exception as error:  # noqa: BLE001  # ONNX Runtime has a class of exception for every cause
        members = batch.split()
        if len(members) == 1:
            refuse(members[0], error)
        else:
            _log.warning("a batch of %d calls failed (%s); its members are run singly", len(members), error)
            run_singly(members, pipeline)


def run_singly(members: list[Batch], pipeline: Pipeline) -> None:
    """Run each, and answer with its error the one that fails."""
    for member in members:
        try:
            pipeline.run(member)
        except Exception as error:  # noqa: BLE001
            refuse(member, error)


def refuse(batch: Batch, error: Exception) -> None:
    """Answer a batch with what its callers may know of an error."""
    told = error if isinstance(error, ServerError) else OurFault.logged("a run failed")
    batch.fail(told.status, told.message)
