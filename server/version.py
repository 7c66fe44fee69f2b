"""One served version: its lane, its pipeline and the threads between them."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import replace
from functools import partial
from math import inf
from threading import Thread
from typing import Any

import numpy as np

from penstock.errors import PenstockError
from penstock.features.schemas import KnownSchemas
from penstock.features.store import FeatureStore
from penstock.features.transforms import Transforms
from penstock.kernels.costs import Cost
from penstock.kernels.lanes import Lane
from penstock.kernels.transforms import Program
from penstock.kernels.wire import NUMPY, Plan
from penstock.monitoring import Reference
from penstock.registry import Version
from penstock.registry.manifest import Manifest
from penstock.server import forests
from penstock.server.cache import cache_of, shared_of
from penstock.server.config import Config
from penstock.server.curve import Curve
from penstock.server.golden import check, read
from penstock.server.inline import use_engine, way_of
from penstock.server.join import Join
from penstock.server.pipeline import Pipeline, run_next, serve
from penstock.server.plans import plan_of, views_of
from penstock.server.samples import NothingToDraw, Samples
from penstock.server.sampling import Sampler
from penstock.server.session import Session
from penstock.server.warmup import curve_of
from penstock.server.watch import Watch

_log = logging.getLogger("penstock.server")

LONG_RUN_NS = 500_000
"""From which time of the largest batch on cores are worth a worker each."""


class Served:
    """A version that answers calls, from loading to the last answer.

    Args:
        version: verified files of the version.
        config: limits and threads.
        store: the feature store, or None where the operator gave none.

    Attributes:
        curve: what a batch takes by its rows, measured before the version took calls.
        cap: rows of a run at most, what has more being run in parts; 0 where there is no such bound.

    Raises:
        PenstockError: the version cannot be served, and why.
    """

    def __init__(self, version: Version, config: Config, store: FeatureStore | None) -> None:
        self.manifest: Manifest = version.manifest
        self.digest = version.digest
        self.plan = plan_of(version.manifest, version.digest)
        self.pipeline = _pipeline(version, self.plan, config, store)
        self._warm(version.files.get("golden.npz"))
        self.curve = _measured(version, self.pipeline, config)
        self.cap = _cap(self.curve, self.plan, config)
        cache = cache_of(self.name, self.plan, views_of(self.manifest), config.cache)
        shared = shared_of(self.manifest, self.digest, cache, config.cache, config.features)
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
        trial = _trial(version, self.pipeline, config)
        samples = partial(_any_samples, version, self.plan)
        self._not_inline = use_engine(self.lane, self.pipeline, config, trial, samples)
        self.pipeline = replace(self.pipeline, sample=_sampler(version, self.pipeline, config))
        self._inline = _known_by_rows(self.plan, config) and not self.pipeline.waits
        name = f"{self.manifest.model_name}/{self.manifest.version}"
        self._workers = [
            Thread(
                target=serve,
                args=(self.lane, self.pipeline, config.worker_nice),
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

    def _warm(self, golden: bytes | None) -> None:
        """Run once, so that the first caller does not pay for ONNX Runtime's first allocation.

        On the golden rows, which must come out as they did when the version was published. Without any, on made-up
        values, which a graph may rightly refuse; that is told and does not keep the version from serving.
        """
        if golden is not None:
            check(golden, self.pipeline.compute)
            return
        try:
            self.pipeline.session.run(_made_up(self.plan))
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


def _pipeline(version: Version, plan: Plan, config: Config, store: FeatureStore | None) -> Pipeline:
    manifest, files = version.manifest, version.files
    outputs = [spec.name for spec in manifest.signature.outputs]
    session = Session(files[manifest.artifact_path], outputs, threads=config.intra_op_threads)
    if (reference := _reference(version)) is not None:
        _check_profile(reference, manifest)
    watch = _watch(version, reference, config)
    return Pipeline(
        plan, session, _join(manifest, config, store), _transforms(version), watch, _forest(version, session, config)
    )


def _forest(version: Version, session: Session, config: Config) -> forests.Loaded:
    """Who runs the graph, where it is an ensemble of trees."""
    golden = version.files.get("golden.npz")
    return forests.load(
        version.files[version.manifest.artifact_path],
        session,
        mode=config.forests,
        golden=[] if golden is None else [read(golden)[0]],
        max_rows=config.max_batch_rows,
        threads=config.intra_op_threads,
    )


def _reference(version: Version) -> Reference | None:
    profile = version.files.get("profile.json")
    return None if profile is None else Reference.from_json(profile)


def _watch(version: Version, reference: Reference | None, config: Config) -> Watch | None:
    if reference is None:
        return None
    return Watch(reference, version.manifest.score, config.drift_window_s, time.time())


def _measured(version: Version, pipeline: Pipeline, config: Config) -> Curve:
    """The version's curve, measured with counters that are thrown away; without points where it cannot be."""
    if not pipeline.plan.batched:
        return Curve(reason="the graph takes no batches")
    if not config.warmup_ms:
        return Curve(reason="warmup_ms is 0")
    try:
        samples = _samples(version, pipeline.plan, config.max_batch_rows)
    except NothingToDraw as error:
        return Curve(reason=str(error))
    trial, alone = _trial(version, pipeline, config), config.intra_op_threads == 1
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


def _trial(version: Version, pipeline: Pipeline, config: Config) -> Pipeline:
    """The same pipeline with counters of its own."""
    return replace(pipeline, watch=_watch(version, _reference(version), config), cost=Cost())


def _samples(version: Version, plan: Plan, most: int) -> Samples:
    reference, golden = _reference(version), version.files.get("golden.npz")
    return Samples(
        plan, None if reference is None else reference.features, {} if golden is None else read(golden)[0], most
    )


def _any_samples(version: Version, plan: Plan) -> Samples:
    """Rows like those the version was trained on, or ones where nothing is known of them."""
    try:
        return _samples(version, plan, 1)
    except NothingToDraw:
        return Samples(plan, None, _made_up(plan), 1)


def _cap(curve: Curve, plan: Plan, config: Config) -> int:
    if config.batch_cap == "off" or not plan.batched or (config.batch_cap == "auto" and not curve.rows):
        return 0
    if any(-1 in output.shape for output in plan.outputs):  # parts may come out in other widths than the whole
        return 0
    most = config.max_batch_rows
    return curve.cap(most) if config.batch_cap == "auto" else min(int(config.batch_cap), most)


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


def _join(manifest: Manifest, config: Config, store: FeatureStore | None) -> Join | None:
    if not manifest.signature.entity:
        return None
    if store is None:
        raise PenstockError(
            f"{manifest.model_name} version {manifest.version} joins features and no store is given; "
            "start the server with --features URL"
        )
    return Join(KnownSchemas(store), views_of(manifest), manifest.signature.columns, config.feature_timeout_ms / 1000)


def _sampler(version: Version, pipeline: Pipeline, config: Config) -> Sampler | None:
    if pipeline.join is None or config.sample_served is None:
        return None
    return Sampler(config.sample_served, version.manifest, version.digest, pipeline.join.views)


def _transforms(version: Version) -> Program | None:
    if "transforms.json" not in version.files:
        return None
    transforms = Transforms.model_validate_json(version.files["transforms.json"])
    return transforms.program(version.manifest.signature.columns)


def _made_up(plan: Plan) -> dict[str, Any]:
    """One row of ones for every input, since zeros are what graphs most often divide by; texts are empty."""
    feeds: dict[str, Any] = {}
    for entry in plan.inputs:
        if entry.kind == "entity":
            continue
        shape = tuple(max(size, 1) for size in entry.shape)
        shape = (1, *shape) if plan.batched else shape
        made = np.full(shape, "", object) if entry.datatype == "BYTES" else np.ones(shape, NUMPY[entry.datatype])
        feeds[entry.name] = made
    return feeds
