"""Cells of the table: one kind of request to one server by so many callers, in a closed loop, for about a second.

Driven by the generator of `penstock bench` (1 to 2 µs of CPU a request), on as many connections as callers, four at
most. A window opens once each caller was answered on the average, and closes after its time, or later, once each was
answered four times: slow servers get as long as they need, up to MOST_S. Every answer must have status OK and the
outputs, datatypes and shapes of the server's first, whose values were checked; anything else ends the run.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc
import numpy as np
from google.protobuf.message import DecodeError

from penstock._codec import DTYPES
from penstock.bench.drive import outcomes_of, words_of
from penstock.bench.levels import Meter
from penstock.bench.work import Expected, Work, expected
from penstock.benchmarks.generators import LoadFailed, pool
from penstock.benchmarks.seeded import METHOD, Seeded, check_probabilities
from penstock.benchmarks.sides import Run
from penstock.proto import inference_pb2 as pb

if TYPE_CHECKING:
    from penstock.bench.drive import Life
    from penstock.bench.spans import Reading
    from penstock.kernels.load import Load

CONNECTIONS, EACH, MOST_S, DRAIN_S, STEP_S = 4, 4, 5.0, 10.0, 0.01
CHECKED = 64  # rows, by value


class Kind(NamedTuple):
    """A kind of request: to which model, by "vector" or by entity "id", of how many rows."""

    model: str
    by: str
    rows: int

    def __str__(self) -> str:
        return f"{self.model}/{self.by}/{self.rows}"


@dataclass(frozen=True)
class Question:
    """Requests of one kind, as one server answers them.

    Attributes:
        kind: what they ask.
        bodies: the pool, sent in turn.
        outputs: what every answer must look like; empty for an echo.
    """

    kind: Kind
    bodies: Sequence[bytes]
    outputs: Sequence[Expected]


def ask(address: str, kind: Kind, model: Seeded, *, echo: bool = False) -> Question:
    """The question, once the first answers were held against the model's source; raises LoadFailed."""
    bodies = model.entity_bodies(kind.rows) if kind.by == "id" else model.bodies(kind.rows)
    with grpc.insecure_channel(address) as channel:
        call: Any = channel.unary_unary(METHOD)
        try:
            answers = [call(body, timeout=20) for body in bodies[: -(-CHECKED // kind.rows)]]
        except grpc.RpcError as error:
            raise LoadFailed(f"{address}: {kind} is answered by {error}") from None
    if echo:
        if answers != bodies[: len(answers)]:
            raise LoadFailed(f"{address} does not give back what it got")
        return Question(kind, bodies, ())
    checked, who = len(answers) * kind.rows, f"{address}: answers to {kind}"
    try:
        outputs = _floats([pb.ModelInferResponse.FromString(answer) for answer in answers])
    except (DecodeError, ValueError, IndexError) as error:
        raise LoadFailed(f"{who} are no answers of the protocol: {error}") from None
    check_probabilities(outputs, model.expected(checked), who)
    work = Work(kind.model, kind.rows, bodies, checked, ())
    return Question(kind, bodies, expected(work, answers[0]))


def _floats(answers: Sequence[pb.ModelInferResponse]) -> list[np.ndarray[Any, Any]]:
    """Each float output, over all answers."""
    outputs = [i for i, output in enumerate(answers[0].outputs) if output.datatype == "FP32"]
    parts = [
        [np.frombuffer(one.raw_output_contents[i], DTYPES["FP32"]).reshape(one.outputs[i].shape) for one in answers]
        for i in outputs
    ]
    return [np.concatenate(part) for part in parts]


def drive(address: str, question: Question, callers: int, seconds: float, clocks: Sequence[Callable[[], float]]) -> Run:
    """One run; `clocks` tell the CPU seconds of the server, and of Redis if there is another.

    Raises:
        LoadFailed: an answer is not as it should be, or does not come.
    """
    driven = pool(
        address,
        question.bodies,
        connections=min(callers, CONNECTIONS),
        callers=callers,
        rows=question.kind.rows,
        outputs=question.outputs,
    )
    with uninterrupted(), driven as (load, life):
        return _measured(load, life, callers, seconds, clocks)


@contextmanager
def uninterrupted() -> Iterator[list[int]]:
    """SIGINT and SIGTERM wait for the end of the block, so that no thread of the generator is left behind.

    The signals that came are in the list, for blocks that end sooner because of them. What is ignored stays so, such as
    SIGINT in what a shell runs in the background: it would end the block and nothing behind it.
    """
    came: list[int] = []
    minded = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, lambda n, _: came.append(n)) for number in minded}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


def _measured(load: Load, life: Life, callers: int, seconds: float, clocks: Sequence[Callable[[], float]]) -> Run:
    meter = Meter(load, ())
    load.start()
    _answered(load, callers, seconds / 5)
    first, spent = meter.read(), [clock() for clock in clocks]
    _answered(load, EACH * callers, seconds)
    last, spent = meter.read(), [clock() - before for clock, before in zip(clocks, spent, strict=True)]
    load.finish()
    life.join(DRAIN_S)
    return _run_of(last, first, spent)


def _run_of(last: Reading, first: Reading, spent: Sequence[float]) -> Run:
    span = last.since(first, first.at_ns)
    if not span.answered:
        raise LoadFailed(f"nothing was answered for {span.seconds:.0f} s")
    p50, p99 = (value / 1e3 for value in span.latencies.percentiles((50, 99)))
    cpu, redis = (s / span.answered * 1e6 for s in (*spent, 0.0)[:2])
    return Run(span.rate, cpu, p50, redis, p99)


def _answered(load: Load, count: int, seconds: float) -> None:
    """Wait for so long, and then for so many answers, but not for ever; raises LoadFailed at a wrong one."""
    start, before = time.monotonic(), outcomes_of(load)[0]
    while True:
        time.sleep(STEP_S)
        outcomes, passed = outcomes_of(load), time.monotonic() - start
        if any(outcomes[1:]):
            said = "; ".join(f"{name}: {text}" for name, text in words_of(load).items())
            raise LoadFailed(f"{sum(outcomes[1:])} calls were not answered as they should be: {said}")
        if passed >= seconds and (outcomes[0] - before >= count or passed >= MOST_S):
            return
