"""Results as one HTML file with SVG in it: for each kind of request, requests a second and p99 by callers.

Both axes are logarithmic, so that a factor is the same distance everywhere. It needs neither a library nor a network.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import NamedTuple

from penstock.benchmarks.cells import Kind
from penstock.benchmarks.results import Cell, Results
from penstock.benchmarks.table import name_of

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 560, 300, 64, 16, 12, 34
COLOURS = ("#1b6ca8", "#74a9cf", "#c8553d", "#2a9d5c", "#8e5ea2", "#d99a00", "#4c4c4c", "#b3589a")
STYLE = (
    "body{font:14px sans-serif;margin:2em}text{font-size:12px}h1{font-size:1.3em}h2{font-size:1.1em}"
    "figure{display:inline-block;margin:0 2em 1em 0}figcaption{font-size:12px}li{display:inline;margin-right:1.4em}"
)


class Curve(NamedTuple):
    """Points (callers, value), all above zero."""

    colour: str
    points: Sequence[tuple[float, float]]


def page(results: Results) -> str:
    """The whole HTML file."""
    colours = {side: COLOURS[i % len(COLOURS)] for i, side in enumerate(results.titles)}
    heading = f"Penstock's benchmarks, {results.made[:10]}"
    legend = "".join(
        f"<li style='color:{colours[side]}'>&#9632; {html.escape(title)}</li>" for side, title in results.titles.items()
    )
    parts = [f"<h1>{heading}</h1><p>{html.escape(results.machine)}</p><ul>{legend}</ul>"]
    for kind in results.kinds:
        parts.append(f"<h2>{html.escape(name_of(kind))}</h2>")
        for field, caption in (("rate", "requests a second by callers"), ("p99_us", "p99 in µs by callers")):
            drawn = chart([Curve(colours[side], points(results, kind, side, field)) for side in results.sides(kind)])
            parts.append(f"<figure>{drawn}<figcaption>{caption}</figcaption></figure>")
    head = f"<meta charset='utf-8'><title>{heading}</title><style>{STYLE}</style>"
    return f"<!doctype html><html><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def points(results: Results, kind: Kind, side: str, field: str) -> list[tuple[float, float]]:
    """A figure of one side over callers."""
    runs = [(count, results.median(Cell(kind, count), side)) for count in results.callers]
    return [(count, getattr(run, field)) for count, run in runs if run is not None and getattr(run, field) > 0]


def chart(curves: Sequence[Curve]) -> str:
    """An SVG of the curves, y over whole decades."""
    every = [point for curve in curves for point in curve.points]
    if not every:
        return "<p>Nothing was measured.</p>"
    callers = sorted({x for x, _ in every})
    low = math.floor(math.log10(min(y for _, y in every)))
    high = max(math.ceil(math.log10(max(y for _, y in every))), low + 1)
    widest = max(math.log(callers[-1] / callers[0]), 1e-9)

    def across(x: float) -> float:
        return LEFT + 10 + math.log(x / callers[0]) / widest * (WIDTH - LEFT - RIGHT - 20)

    def up(y: float) -> float:
        return HEIGHT - BOTTOM - (math.log10(y) - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    drawn = [_rule(up(10.0**decade), f"{10.0**decade:,.0f}") for decade in range(low, high + 1)]
    drawn += [f"<text x='{across(x):.1f}' y='{HEIGHT - 12}' text-anchor='middle'>{x:g}</text>" for x in callers]
    for colour, known in curves:
        line = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in known)
        drawn.append(f"<polyline points='{line}' fill='none' stroke='{colour}' stroke-width='1.8'/>")
        drawn += [f"<circle cx='{across(x):.1f}' cy='{up(y):.1f}' r='2.5' fill='{colour}'/>" for x, y in known]
    return f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' width='{WIDTH}' role='img'>{''.join(drawn)}</svg>"


def _rule(y: float, text: str) -> str:
    line = f"<line x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{y:.1f}' y2='{y:.1f}' stroke='#ddd'/>"
    return f"{line}<text x='{LEFT - 8}' y='{y + 4:.1f}' text-anchor='end'>{text}</text>"
