"""The options of `penstock bench`: what they ask for, and what is wrong with them, before anything is sent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from penstock.bench import pictures
from penstock.bench.shapes import Shape
from penstock.bench.target import BenchFailed

CALLERS = "1,8,32"  # of a closed loop, if not said
ARRIVALS = ("constant", "poisson")


def shapes(
    common: Shape, concurrency: str | None, rate: str | None, arrivals: str | None, *, capacity: bool = False
) -> list[Shape]:
    """The levels that are asked for, or what those of a search have in common; all have what `common` has.

    Raises:
        BenchFailed: the options contradict each other, or one of them is no such thing.
    """
    if concurrency and rate:
        raise BenchFailed("give either --concurrency, for a closed loop, or --rate, for an open one")
    if capacity and (concurrency or rate):
        raise BenchFailed("--capacity finds the rate by itself: leave --concurrency and --rate out")
    if arrivals is not None and arrivals not in ARRIVALS:
        raise BenchFailed(f"--arrivals is constant or poisson, not {arrivals!r}")
    if capacity:
        return [replace(common, arrivals=arrivals or "poisson")]
    if rate:
        rates = numbers("--rate", rate, 0.1, 10_000_000)
        return [replace(common, rate=number, arrivals=arrivals or "constant") for number in rates]
    callers = numbers("--concurrency", concurrency or CALLERS, 1, 1_000_000)
    return [replace(common, callers=int(number)) for number in callers]


def numbers(option: str, text: str, least: float, most: float) -> list[float]:
    """The numbers of a list such as 1,8,32. Raises BenchFailed."""
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    whole = option == "--rate" or all(number.is_integer() for number in found)
    if not found or not whole or not all(least <= number <= most for number in found):
        raise BenchFailed(f"{option} is a list such as 1,8,32, of numbers from {least:g} to {most:,.0f}; not {text!r}")
    return found


def check_files(csv: Path | None, plot: Path | None) -> None:
    """What would fail after the measurement fails before it. Raises BenchFailed."""
    kind = plot.suffix.lower() if plot is not None else ".html"
    if plot is not None and kind not in {".html", ".htm", ".png"}:
        raise BenchFailed(f"--plot: plots are HTML or PNG, so the name must end in .html or .png, not {plot.name!r}")
    if kind == ".png" and not pictures.drawable():
        raise BenchFailed("--plot: PNG needs matplotlib (pip install 'penstock[plots]'); .html needs nothing")
    for option, path in (("--csv", csv), ("--plot", plot)):
        if path is not None and not path.absolute().parent.is_dir():
            raise BenchFailed(f"{option}: there is no folder {path.absolute().parent}")
