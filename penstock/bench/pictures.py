"""The plots of a run as a picture (PNG), for where an HTML page does not fit; drawn by matplotlib, which is optional.

The same two charts as in `plots.py`, from the same points.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from penstock.bench import plots
from penstock.bench.report import name_of
from penstock.bench.spans import Level

WIDTH_IN, CHART_IN, DPI = 9.0, 3.2, 120


def drawable() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def write(path: Path, heading: str, levels: Sequence[Level]) -> None:
    """Percentiles of every level, and below, for each level, latency over time."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = 1 + len(levels)
    figure = Figure(figsize=(WIDTH_IN, CHART_IN * count), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    figure.suptitle(heading, fontsize=10)
    first, *others = figure.subplots(count, 1, squeeze=False)[:, 0]
    _draw(first, plots.percentile_curves(levels), "percentiles")
    first.set_xticks(*zip(*plots.PERCENTILE_TICKS, strict=True))
    for axes, level in zip(others, levels, strict=True):
        _draw(axes, plots.time_curves(level), f"{name_of(level)}: latency over time")
        axes.set_xlabel("s", loc="right")
    canvas.print_png(str(path), metadata={"Software": "penstock bench"}, pil_kwargs={"dpi": (DPI, DPI)})


def _draw(axes: Any, curves: Sequence[plots.Curve], title: str) -> None:
    """Curves over a logarithmic scale of µs."""
    for i, curve in enumerate(curves):
        x, y = zip(*curve.points, strict=True) if curve.points else ((), ())
        axes.plot(x, y, color=plots.COLOURS[i % len(plots.COLOURS)], linewidth=1.2, label=curve.name)
    axes.set_title(title, fontsize=9, loc="left")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda us, _: plots.duration(us))
    axes.grid(visible=True, color="#ddd")
    axes.set_axisbelow(True)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
