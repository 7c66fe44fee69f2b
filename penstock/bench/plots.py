"""Plots of a run: one HTML file with SVG in it, which needs neither a library nor a network to be looked at.

One chart has a curve of percentiles for each level, over the share of requests that are slower (logarithmic, so that
p99 to p99.99 have room); below, for each level, latency over time. Latencies are logarithmic.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import NamedTuple

from penstock.bench.report import name_of
from penstock.bench.spans import Level

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 860, 320, 70, 150, 16, 40
COLOURS = ("#1b6ca8", "#c8553d", "#2a9d5c", "#8e5ea2", "#d99a00", "#4c4c4c")
PERCENTS = (0, 50, 75, 90, 95, 99, 99.5, 99.9, 99.95, 99.99, 99.995, 99.999)
TICKS = (0, 50, 90, 99, 99.9, 99.99, 99.999)
STYLE = (
    "body{font:14px sans-serif;margin:2em;max-width:900px}text{font-size:12px}h1{font-size:1.3em}h2{font-size:1.1em}"
)


class Curve(NamedTuple):
    """Points (x, µs) under a name; those without a latency are left out."""

    name: str
    points: Sequence[tuple[float, float]]


def _nines(percent: float) -> float:
    return -math.log10(1 - percent / 100)


PERCENTILE_TICKS = tuple((_nines(percent), f"p{percent:g}") for percent in TICKS)


def page(heading: str, levels: Sequence[Level], remarks: Sequence[str]) -> str:
    """The whole HTML file."""
    parts = [f"<h1>{html.escape(heading)}</h1>", "<h2>Percentiles</h2>", percentile_chart(levels)]
    for level in levels:
        parts += [f"<h2>Latency over time: {html.escape(name_of(level))}</h2>", time_chart(level)]
    parts += [f"<p>{html.escape(remark)}</p>" for remark in remarks]
    head = f"<meta charset='utf-8'><title>{html.escape(heading)}</title><style>{STYLE}</style>"
    return f"<!doctype html><html><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def percentile_chart(levels: Sequence[Level]) -> str:
    """Percentiles of every level."""
    return _chart(percentile_curves(levels), PERCENTILE_TICKS, "percentile")


def percentile_curves(levels: Sequence[Level]) -> list[Curve]:
    """One for each level; x as in PERCENTILE_TICKS."""
    return [Curve(name_of(level), _percentile_points(level)) for level in levels]


def _percentile_points(level: Level) -> list[tuple[float, float]]:
    """As far as there are enough answers to tell: one in a thousand of a hundred is nobody."""
    total = level.latencies.total
    known = [percent for percent in PERCENTS if (1 - percent / 100) * total >= 1]
    values = level.latencies.percentiles(known)
    return [(_nines(percent), value / 1e3) for percent, value in zip(known, values, strict=True)]


def time_chart(level: Level) -> str:
    """Median, p99 and the slowest of each slice of time."""
    end = max((part.start_s + part.seconds for part in level.slices), default=1.0)
    return _chart(time_curves(level), [(end * i / 5, f"{end * i / 5:.3g} s") for i in range(6)], "time")


def time_curves(level: Level) -> list[Curve]:
    """Median, p99 and the slowest; x in s."""
    found = [(part.start_s, part.latencies.percentiles((50, 99, 100))) for part in level.slices if part.answered]
    return [
        Curve(name, [(at, values[i] / 1e3) for at, values in found]) for i, name in enumerate(("p50", "p99", "max"))
    ]


def _chart(curves: Sequence[Curve], ticks: Sequence[tuple[float, str]], what: str) -> str:
    """An SVG: x linear over the ticks, y logarithmic over whole decades."""
    values = [y for curve in curves for _, y in curve.points if y > 0]
    if not values:
        return "<p>No request was answered.</p>"
    low, high = math.floor(math.log10(min(values))), max(math.ceil(math.log10(max(values))), 1)
    high = max(high, low + 1)
    last = max(x for x, _ in ticks) or 1.0

    def across(x: float) -> float:
        return LEFT + min(x / last, 1.0) * (WIDTH - LEFT - RIGHT)

    def up(y: float) -> float:
        share = (math.log10(max(y, 10.0**low)) - low) / (high - low)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    drawn = [_rule(up(10.0**decade), duration(10.0**decade)) for decade in range(low, high + 1)]
    drawn += [f"<text x='{across(x):.1f}' y='{HEIGHT - 18}' text-anchor='middle'>{text}</text>" for x, text in ticks]
    for i, curve in enumerate(curves):
        colour = COLOURS[i % len(COLOURS)]
        points = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in curve.points if y > 0)
        drawn.append(f"<polyline points='{points}' fill='none' stroke='{colour}' stroke-width='1.6'/>")
        at = f"x='{WIDTH - RIGHT + 12}' y='{TOP + 14 + 18 * i}'"
        drawn.append(f"<text {at} fill='{colour}'>{html.escape(curve.name)}</text>")
    label = f"aria-label='latency by {what}'"
    return f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' width='{WIDTH}' role='img' {label}>{''.join(drawn)}</svg>"


def _rule(y: float, text: str) -> str:
    line = f"<line x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{y:.1f}' y2='{y:.1f}' stroke='#ddd'/>"
    return f"{line}<text x='{LEFT - 8}' y='{y + 4:.1f}' text-anchor='end'>{text}</text>"


def duration(us: float) -> str:
    """µs in the unit that suits them."""
    if us >= 1e6:
        return f"{us / 1e6:g} s"
    return f"{us / 1e3:g} ms" if us >= 1e3 else f"{us:g} µs"
