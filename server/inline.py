"""Whether a version's batches may be run by the thread that read their calls, and if not, why not.

Such a thread holds no GIL, so all that a batch needs must be compiled: `kernels/engines.pyx` has it for versions whose
rows are numbers of known shapes and which look nothing up. What a run costs is measured when a version is loaded, as
the thread will do it, and learnt from then on.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from time import monotonic_ns
from typing import Any

from penstock.kernels.calls import INTERNAL, EventSink
from penstock.kernels.engines import GraphEngine
from penstock.kernels.lanes import INLINE_NS, Lane
from penstock.kernels.transforms import Program
from penstock.server.config import Config
from penstock.server.curve import measure
from penstock.server.pipeline import Pipeline
from penstock.server.samples import Samples
from penstock.server.warmup import Answer, RunFailed

SIZES = (1, 8, 64)
MEASURING_NS = 10_000_000


def use_engine(lane: Lane, pipeline: Pipeline, config: Config, trial: Pipeline, samples: Callable[[], Samples]) -> str:
    """Let the lane's calls be run inline where they can be.

    Args:
        lane: of the version, before any call comes.
        pipeline: what its workers do.
        config: limits and the switch.
        trial: the same with counters that are thrown away, for measuring.
        samples: makes rows to measure with.

    Returns:
        Why they cannot be; empty where they can.
    """
    if why_not := _forbidden(pipeline, config):
        return why_not
    try:
        engine = engine_of(lane, pipeline)
        for rows, ns in _measured(trial, samples()):
            engine.seed(rows, ns)
    except ValueError as error:
        return str(error)
    lane.use(engine, always=config.inline == "on")
    return ""


def _forbidden(pipeline: Pipeline, config: Config) -> str:
    """Why calls are not to be run inline, whatever the engine can do; empty where they may be."""
    if config.inline == "off":
        return "inline is off"
    if pipeline.shared is not None:
        return "its answers are shared through Redis"
    if config.transport == "grpcio" or find_spec("penstock.kernels.http2") is None:
        return "the grpcio transport has no I/O threads of ours"
    if config.max_queue_delay_us:
        return "batches wait for company (max_queue_delay_us)"
    if config.intra_op_threads > 1:
        return "a run has several threads (intra_op_threads)"
    return ""


def engine_of(lane: Lane, pipeline: Pipeline) -> GraphEngine:
    """What does for a lane without the GIL what its pipeline does.

    Raises:
        ValueError: there is no such thing, and why.
    """
    if pipeline.transforms is not None and not isinstance(pipeline.transforms, Program):
        raise ValueError("its transforms call Python functions")
    watch = pipeline.watch.counters() if pipeline.watch is not None else {}
    return GraphEngine(
        lane.plan, lane.ledger, pipeline.session.graph, transforms=pipeline.transforms, **watch, **_forest(pipeline)
    )


def _forest(pipeline: Pipeline) -> dict[str, Any]:
    """What an engine needs of a version's forest."""
    loaded = pipeline.forest
    if loaded is None or loaded.forest is None:
        return {}
    if not loaded.forest.plain:
        raise ValueError("other steps come before or after its trees")
    return {
        "forest": loaded.forest.forest,
        "forest_scores": loaded.forest.scores,
        "forest_turns": loaded.turns,
    }


def _measured(trial: Pipeline, samples: Samples) -> list[tuple[int, int]]:
    """(rows, nanoseconds) of a few sizes; none where the graph does not run the rows."""
    try:
        curve = measure(InlineTrial(trial, samples).run, [size for size in SIZES if size <= samples.rows], MEASURING_NS)
    except RunFailed:
        return []
    return list(zip(curve.rows, curve.ns, strict=True))


class InlineTrial:
    """Runs batches of made-up rows as the thread that reads them would.

    Args:
        pipeline: a version's, with counters of its own.
        samples: rows to run.
    """

    def __init__(self, pipeline: Pipeline, samples: Samples) -> None:
        self._samples = samples
        self._sink = EventSink()
        self._lane = Lane(pipeline.plan, max_batch_rows=samples.rows, max_queue_bytes=1 << 40)
        self._lane.use(engine_of(self._lane, pipeline), always=True)

    def run(self, rows: int) -> int:
        """Nanoseconds from taking a batch of `rows` to its last answer.

        Raises:
            RunFailed: the graph fails on these rows.
        """
        self._lane.submit(self._samples.request(rows), self._sink, Answer(), wake=False)
        started = monotonic_ns()
        self._lane.run_now()
        taken = monotonic_ns() - started
        failed = self._lane.take(block=False)
        if failed is not None:
            failed.fail(INTERNAL, "the trial is over")
        self._sink.drain()
        if failed is not None:
            raise RunFailed("the graph fails on rows made up for measuring")
        return taken


def way_of(lane: Lane, why_not: str) -> str:
    """Which way calls of a version take on the native transport, and why, in one line."""
    if lane.engine is None:
        return f"lane: {why_not}"
    ns = lane.engine.predicted_ns(1)
    cost = f"a run of 1 row takes {ns / 1000:.0f} us"
    if lane.always_inline:
        return f"inline: {cost}, and inline is on" if ns else "inline: inline is on"
    if not ns:
        return "lane: what a run takes is not known, since the graph fails on rows made up for measuring"
    if ns > INLINE_NS:
        return f"lane: {cost}, and an I/O thread has {INLINE_NS // 1000} us"
    return f"inline: {cost}"
