"""One served version: its lane, its pipeline and the threads between them."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import inf
from threading import Thread

from penstock.errors import PenstockError
from penstock.kernels.costs import Cost
from penstock.kernels.lanes import Lane
from penstock.kernels.transforms import Program
from penstock.kernels.wire import Plan
from penstock.monitoring import Reference
from penstock.registry import Version
from penstock.registry.manifest import Manifest
from penstock.server import forests
from penstock.server.cache import cache_of, shared_of
from penstock.server.config import Config
from penstock.server.contents import Contents, any_of, made_up
from penstock.server.curve import Curve
from penstock.server.golden import Golden
from penstock.server.inline import use_engine, way_of
from penstock.server.join import Join
from penstock.server.lookups import Lookups
from penstock.server.pipeline import Pipeline, run_next, serve
from penstock.server.plans import keys_of, plan_of, views_of
from penstock.server.samples import NothingToDraw, Samples
from penstock.server.sampling import Sampler
from penstock.server.session import Session
from penstock.server.warmup import curve_of

_log = logging.getLogger("penstock.server")

LONG_RUN_NS = 500_000
"""From which time of a batch on cores are worth a worker each, and threads that read calls go before workers."""
LONG_RUN_NICE = 10
"""Of such workers. The scheduler lets who is less nice run at once when it wakes up, most of the time."""


class Served:
    """A version that answers calls, from loading to the last answer.

    Args:
        version: verified files of the version.
        config: limits and threads.
        lookups: what features are looked up through, or None where the operator named no store.

    Attributes:
        curve: what a batch takes by its rows, measured before the version took calls.
        cap: rows of a run at most, what has more being run in parts; 0 where there is no such bound.

    Raises:
        PenstockError: the version cannot be served, and why.
    """

    def __init__(self, version: Version, config: Config, lookups: Lookups | None) -> None:
        contents = Contents.of(version, config.functions)
        self.manifest: Manifest = version.manifest
        self.digest = version.digest
        self.plan = plan_of(version.manifest, version.digest)
        self.pipeline = _pipeline(contents, self.plan, config, lookups)
        self._warm(contents.golden)
        pool = contents.pool(self.plan, config.max_batch_rows)
        self.curve = _measured(_trial(contents, self.pipeline, config), pool, config)
        self.cap = _cap(config.cap_of(self.name), self.curve, self.plan, config.max_batch_rows)
        cache = cache_of(self.name, self.plan, views_of(self.manifest), config.cache)
        shared = shared_of(
            self.manifest,
            self.digest,
            cache,
            config.cache,
            features=config.features,
            functions=_functions(contents, config),
        )
        self.pipeline = replace(self.pipeline, cap=self.cap, shared=shared)
        self._max_batch_rows = self.cap or config.max_batch_rows
        workers = config.workers or _workers(self.pipeline, self.curve)
        self.lane = Lane(
            self.plan,
            max_batch_rows=self._max_batch_rows,
            max_queue_rows=config.max_queue_rows,
            max_queue_bytes=config.max_queue_bytes,
            max_queue_delay_us=config.max_queue_delay_us,
            workers=workers,
            foresee=config.foresee,
            cache=cache,
        )
        for rows, ns in zip(self.curve.rows, self.curve.ns, strict=True):
            self.lane.ledger.seed(rows, ns)
            self.pipeline.cost.seed(rows, ns)
        trial = _trial(contents, self.pipeline, config)
        self._not_inline = use_engine(self.lane, self.pipeline, config, trial, partial(any_of, pool, self.plan))
        self.pipeline = replace(self.pipeline, sample=_sampler(version, self.pipeline, config))
        self._inline = _known_by_rows(self.plan, config) and not self.pipeline.waits
        nice = _nice(self.lane, self.curve, config)
        name = f"{self.manifest.model_name}/{self.manifest.version}"
        self._workers = [
            Thread(
                target=serve,
                args=(self.lane, self.pipeline, nice),
                name=f"worker {name} {i}",
                daemon=True,
            )
            for i in range(workers)
        ]
        for worker in self._workers:
            worker.start()

    @property
    def name(self) -> str:
        """The model's name."""
        return self.manifest.model_name

    @property
    def version(self) -> int:
        """The version's number."""
        return self.manifest.version

    @property
    def way(self) -> str:
        """Which way calls take on the native transport, and why: one line."""
        return way_of(self.lane, self._not_inline)

    @property
    def model(self) -> str:
        """What runs the model, and why: one line."""
        return "onnxruntime" if self.pipeline.forest is None else self.pipeline.forest.told

    def _warm(self, golden: Golden | None) -> None:
        """Run once, so that the first caller does not pay for ONNX Runtime's first allocation.

        On the golden rows, which must come out as they did when the version was published. Without any, on made-up
        values, which a graph may rightly refuse; that is told and does not keep the version from serving.
        """
        if golden is not None:
            golden.check(partial(self.pipeline.compute, now=golden.now))
            return
        try:
            self.pipeline.compute(made_up(self.plan))
        except Exception as error:  # noqa: BLE001  # ONNX Runtime has a class of exception for every cause
            line = " ".join(str(error).split())[:300]
            _log.warning("%s version %d was not warmed up: %s", self.name, self.version, line)

    @property
    def full(self) -> bool:
        """Whether a whole batch is queued already, so that nothing is gained by waiting for more."""
        return self.lane.queued_rows >= self._max_batch_rows

    def start(self, budget_ns: float) -> float:
        """Have run what is queued: here and now where that fits the budget and no store is to be waited for.

        Returns:
            What the calling thread is reckoned to have spent, in nanoseconds of CPU; 0 where a worker does it.
        """
        cost = (self.pipeline.cost.predict(self.lane.queued_rows) if self._inline else 0) or inf
        if cost > budget_ns:
            self.lane.wake()
            return 0.0
        while run_next(self.lane, self.pipeline, block=False):
            pass
        return cost

    def drain(self) -> None:
        """Refuse new calls and finish those that are queued, in the background."""
        self.lane.drain()

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait until every queued call is answered; False where time ran out."""
        until = None if timeout_s is None else time.monotonic() + timeout_s
        for worker in self._workers:
            worker.join(None if until is None else max(0.0, until - time.monotonic()))
        ended = not any(worker.is_alive() for worker in self._workers)
        if ended and self.pipeline.sample is not None:
            self.pipeline.sample.close()
        if ended and self.pipeline.shared is not None:
            self.pipeline.shared.close()
        return ended


def _pipeline(contents: Contents, plan: Plan, config: Config, lookups: Lookups | None) -> Pipeline:
    manifest = contents.manifest
    outputs = [spec.name for spec in manifest.signature.outputs]
    session = Session(contents.onnx, outputs, threads=config.intra_op_threads)
    if contents.reference is not None:
        _check_profile(contents.reference, manifest)
    join, watch = _join(manifest, config, lookups), contents.watch(config.drift_window_s)
    pipeline = Pipeline(plan, session, join, contents.transforms, watch)
    forest = _forest(contents, pipeline, config)
    if forest.alone:
        session.release()
    return replace(pipeline, forest=forest)


def _functions(contents: Contents, config: Config) -> dict[str, str]:
    """The operator's functions, where the version calls any."""
    calls = contents.transforms is not None and not isinstance(contents.transforms, Program)
    computes = any(view.compute for view in views_of(contents.manifest))
    return config.functions if calls or computes else {}


def _forest(contents: Contents, pipeline: Pipeline, config: Config) -> forests.Loaded:
    """Who runs the graph, where it is an ensemble of trees."""
    golden = contents.golden
    return forests.load(
        contents.onnx,
        pipeline.session,
        mode=config.forests,
        golden=[] if golden is None else [pipeline.transformed(golden.inputs, golden.now)],
        max_rows=config.max_batch_rows,
        threads=config.intra_op_threads,
    )


def _measured(trial: Pipeline, pool: Callable[[], Samples], config: Config) -> Curve:
    """The version's curve; without points where it cannot be measured."""
    if not trial.plan.batched:
        return Curve(reason="the graph takes no batches")
    if not config.warmup_ms:
        return Curve(reason="warmup_ms is 0")
    try:
        samples = pool()
    except NothingToDraw as error:
        return Curve(reason=str(error))
    alone = config.intra_op_threads == 1
    return curve_of(trial, samples, config.max_batch_rows, config.warmup_ms * 1_000_000, alone=alone)


def _workers(pipeline: Pipeline, curve: Curve) -> int:
    """How many threads run batches where the operator does not say.

    Two where one may wait for Redis while the other computes, else one; for what takes long without the GIL as many
    as there are cores that the threads of a transport leave.
    """
    cores = len(os.sched_getaffinity(0))
    usual = 2 if pipeline.waits else 1
    if not curve.ns or curve.ns[-1] < LONG_RUN_NS:
        return usual
    return max(usual, min(cores - max(cores // 4, 1), 16))


def _nice(lane: Lane, curve: Curve, config: Config) -> int:
    """How much workers yield: where a run is long, so that cheap calls need not wait for it on few cores."""
    if config.worker_nice != "auto":
        return int(config.worker_nice)
    known = curve.ns[-1] if curve.ns else lane.engine.predicted_ns(1) if lane.engine else 0
    return LONG_RUN_NICE if known >= LONG_RUN_NS else 0


def _trial(contents: Contents, pipeline: Pipeline, config: Config) -> Pipeline:
    """The same pipeline with counters of its own, which are thrown away."""
    return replace(pipeline, watch=contents.watch(config.drift_window_s), cost=Cost())


def _cap(wanted: str, curve: Curve, plan: Plan, most: int) -> int:
    """Rows of a run at most by what the operator wants: auto, off or a number."""
    if wanted == "off" or not plan.batched or (wanted == "auto" and not curve.rows):
        return 0
    if any(-1 in output.shape for output in plan.outputs):  # parts may come out in other widths than the whole
        return 0
    return curve.cap(most) if wanted == "auto" else min(int(wanted), most)


def _check_profile(reference: Reference, manifest: Manifest) -> None:
    """Refuse a profile of other columns now, where counting would fail every call or count under a wrong name."""
    signature, names = manifest.signature, tuple(reference.features.names)
    inputs = {spec.name for spec in signature.inputs if spec.datatype != "BYTES"}
    if names != signature.columns if signature.columns else not inputs.issuperset(names):
        wanted = signature.columns or sorted(inputs)
        raise PenstockError(
            f"profile.json of {manifest.model_name} version {manifest.version} describes {', '.join(names[:12])}; "
            f"the version reads {', '.join(wanted[:12])}: publish it again with a profile of those"
        )


def _known_by_rows(plan: Plan, config: Config) -> bool:
    """Whether a run's rows tell what it costs the thread: not where one may be a megabyte, or other threads help."""
    return plan.fixed_shapes and not plan.n_texts and config.intra_op_threads == 1 and config.max_queue_delay_us == 0


def _join(manifest: Manifest, config: Config, lookups: Lookups | None) -> Join | None:
    if not manifest.signature.entity:
        return None
    if lookups is None:
        raise PenstockError(
            f"{manifest.model_name} version {manifest.version} joins features and no store is given; "
            "start the server with --features URL"
        )
    views = views_of(manifest)
    computing = [view for view in views if view.on_missing == "compute"]
    for view in computing:
        if view.compute not in config.functions:
            raise PenstockError(
                f"{manifest.model_name} version {manifest.version} reads view {view.name!r}, whose missing rows are "
                f"computed by function {view.compute!r}: name it in the server's settings (functions: "
                f"{{{view.compute}: package.module:function}})"
            )
    timeout_ms = max(config.feature_timeout_ms, config.compute_timeout_ms) if computing else config.feature_timeout_ms
    return Join(lookups.reader, views, keys_of(manifest), manifest.signature.columns, timeout_ms / 1000)


def _sampler(version: Version, pipeline: Pipeline, config: Config) -> Sampler | None:
    if pipeline.join is None or config.sample_served is None:
        return None
    return Sampler(config.sample_served, version.manifest, version.digest, pipeline.join.views)
