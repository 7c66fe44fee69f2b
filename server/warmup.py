"""Measuring a version before it takes calls: the whole of a worker's batch, through a lane and counters of its own.

What is timed is what a worker does from taking a batch to the last written answer: copying rows, transforms, the run,
counting drift (into a window that is thrown away) and answers. Left out are parsing, which transports do, and looking
features up: rows carry every value. It runs in the thread that loads the version, never in one that serves. What is
timed is that thread's CPU, which a busy machine does not change much; wall time where runs have threads of their own.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from time import monotonic_ns, thread_time_ns

from penstock.errors import PenstockError
from penstock.kernels.calls import INTERNAL, EventSink, Refused
from penstock.kernels.lanes import Lane
from penstock.server.curve import Curve, measure, sizes_to
from penstock.server.pipeline import Pipeline
from penstock.server.samples import Samples


class RunFailed(PenstockError):  # noqa: N818
    """A made-up batch was refused or did not run."""


class Trial:
    """Runs batches of made-up rows.

    Args:
        pipeline: a version's, with counters of its own: what is run here is counted there.
        samples: rows to run.
        alone: whether the calling thread does all of a run.
    """

    def __init__(self, pipeline: Pipeline, samples: Samples, *, alone: bool) -> None:
        self._clock = thread_time_ns if alone else monotonic_ns
        self._pipeline = pipeline
        self._samples = samples
        self._sink = EventSink()
        self._lane = Lane(pipeline.plan, max_batch_rows=samples.rows, max_queue_bytes=1 << 40)

    def run(self, rows: int) -> int:
        """Nanoseconds from taking a batch of `rows` to its last answer.

        Raises:
            RunFailed: the version does not run these rows, and why.
        """
        answer, batch = Answer(), None
        try:
            self._lane.submit(self._samples.request(rows), self._sink, answer)
            started = self._clock()
            batch = self._lane.take(block=False)
            assert batch is not None
            self._pipeline.run(batch)
            return self._clock() - started
        except Refused as error:
            raise RunFailed(error.message) from error
        except Exception as error:  # ONNX Runtime has a class of exception for every cause
            raise RunFailed(" ".join(str(error).split())[:300]) from error
        finally:
            if batch is not None:
                with suppress(ValueError):  # it was answered
                    batch.fail(INTERNAL, "the trial is over")
            self._sink.drain()


class Answer:
    """A future that nobody waits for."""

    def done(self) -> bool:
        return True

    def set_result(self, result: bytes, /) -> None: ...

    def set_exception(self, exception: Exception, /) -> None: ...


def curve_of(pipeline: Pipeline, samples: Samples, most: int, budget_ns: int, *, alone: bool = True) -> Curve:
    """The measured curve of a version up to `most` rows; without points, and with the reason, where there is none.

    Args:
        pipeline: the version's, with counters of its own.
        samples: rows to run; sizes beyond them are not measured.
        most: rows of the largest batch.
        budget_ns: of all runs together; see `measure`.
        alone: whether the calling thread does all of a run.
    """
    sizes = [size for size in sizes_to(most) if size <= samples.rows]
    try:
        curve = measure(Trial(pipeline, samples, alone=alone).run, sizes, budget_ns)
    except RunFailed as error:
        return Curve(reason=f"rows made up for measuring did not run: {error}")
    return replace(curve, whole=curve.whole and sizes[-1] == most)
