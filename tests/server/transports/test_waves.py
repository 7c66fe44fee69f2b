"""Calls that arrive together are run together, and a lone caller does not wait."""

from __future__ import annotations

import asyncio

from penstock.server.transports.waves import INLINE_NS, LONELY, PATIENCE, PROBE, Patience, Waves

COST_NS = 50_000.0


class Version:
    """Stands for a served version: notes how many calls each run got."""

    def __init__(self, *, inline: bool = False) -> None:
        self.waiting = 0
        self.runs: list[int] = []
        self.budgets: list[float] = []
        self.inline = inline

    @property
    def full(self) -> bool:
        return self.waiting >= 64

    def start(self, budget_ns: float) -> float:
        self.runs.append(self.waiting)
        self.budgets.append(budget_ns)
        self.waiting = 0
        return COST_NS if self.inline else 0.0


class Sink:
    """Stands for the loop's sink: counts the drains."""

    def __init__(self) -> None:
        self.drains = 0

    def drain(self) -> None:
        self.drains += 1


async def passes(count: int) -> None:
    """Let the loop go round."""
    for _ in range(count):
        await asyncio.sleep(0)


def submit(waves: Waves, version: Version) -> None:
    version.waiting += 1
    waves.submitted(version)


async def test_calls_of_neighbouring_passes_make_one_wave():
    waves, version = Waves(asyncio.get_running_loop(), Sink()), Version()
    for _ in range(20):
        submit(waves, version)
        await passes(PATIENCE // 2)
    await passes(PATIENCE * 2)
    assert version.runs == [20]


async def test_callers_without_end_do_not_keep_a_wave_from_starting():
    waves, version = Waves(asyncio.get_running_loop(), Sink()), Version()
    for _ in range(200):
        submit(waves, version)
        await passes(1)
    assert version.runs == [64, 64, 64]
    await passes(PATIENCE * 2)
    assert version.runs == [64, 64, 64, 8]


async def test_a_lone_caller_waits_only_in_every_probe():
    waves, version = Waves(asyncio.get_running_loop(), Sink()), Version()
    for _ in range(LONELY):
        submit(waves, version)
        await passes(PATIENCE + 3)
    waited = 0
    for _ in range(2 * PROBE):
        submit(waves, version)
        await passes(2)
        waited += version.waiting
        await passes(PATIENCE + 3)
    assert waited == 2
    assert version.runs == [1] * (LONELY + 2 * PROBE)


async def test_company_brings_patience_back():
    patience = Patience()
    for _ in range(LONELY):
        patience.next()
        patience.ended(1)
    assert sum(patience.next() > 0 for _ in range(PROBE)) == 1
    patience.ended(2)
    assert patience.next() == PATIENCE


async def test_answers_of_an_inline_run_are_given_at_once():
    sink = Sink()
    waves = Waves(asyncio.get_running_loop(), sink)
    submit(waves, Version(inline=True))
    submit(waves, Version(inline=False))
    await passes(PATIENCE + 3)
    assert sink.drains == 1


async def test_the_versions_of_a_wave_share_one_budget():
    waves = Waves(asyncio.get_running_loop(), Sink())
    versions = [Version(inline=True) for _ in range(3)]
    for version in versions:
        submit(waves, version)
    await passes(PATIENCE + 3)
    budgets = sorted(budget for version in versions for budget in version.budgets)
    assert budgets == [INLINE_NS - 2 * COST_NS, INLINE_NS - COST_NS, INLINE_NS]
