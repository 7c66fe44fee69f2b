"""What `penstock features check` prints: a line for each feature, the worst values, and what follows from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from penstock.commands._console import console, print_table, printable

if TYPE_CHECKING:
    from penstock.features.offline.check import FeatureReport, Report


def as_dict(report: Report, threshold: float) -> dict[str, Any]:
    """The report as plain data, with what it is judged by."""
    features = [asdict(feature) | {"share": feature.share} for feature in report.features]
    unchecked = [asdict(view) for view in report.unchecked]
    verdict = {"share": report.share, "threshold": threshold, "passed": report.share <= threshold}
    return {"rows": report.rows, "unsettled": report.unsettled, "features": features, "unchecked": unchecked} | verdict


def print_report(report: Report, threshold: float) -> None:
    """Print the report, the features that disagree most on top."""
    headers = ("Feature", "Compared", "Missing", "Extra", "Mismatched", "SMAPE")
    features = sorted(report.features, key=lambda feature: -feature.share)
    name = _name if len({feature.view for feature in features}) > 1 else _short_name
    rows = [
        (name(f), f"{f.compared:,}", f"{f.missing:,}", f"{f.extra:,}", f"{f.mismatched:,}", f"{f.smape:.2%}")
        for f in features
    ]
    print_table(
        f"{report.rows:,} served rows against the history of their features", headers, rows, numeric=headers[1:]
    )
    if examples := [line for feature in features for line in _examples(feature, name(feature))]:
        print_table("Worst values", ("Feature", "Entity", "Looked up (UTC)", "Served", "Offline"), examples)
    if report.unsettled:
        console.print(f"{report.unsettled:,} rows left out: looked up while their history changed.", highlight=False)
    for view in report.unchecked:
        console.print(f"Not checked: {printable(view.view)}, {printable(view.reason)}.", highlight=False, markup=False)
    word = "agree" if report.share <= threshold else "DISAGREE"
    shares = f"{100 * report.share:.3g}% of the worst feature's values differ, {100 * threshold:.3g}% may"
    console.print(f"They {word}: {shares}.", highlight=False)


def _name(feature: FeatureReport) -> str:
    return f"{feature.view}.{feature.feature}"


def _short_name(feature: FeatureReport) -> str:
    return feature.feature


def _examples(feature: FeatureReport, name: str) -> Iterator[tuple[str, ...]]:
    for example in feature.worst:
        at = datetime.fromtimestamp(example.time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
        sides = ("none" if value is None else f"{value:.9g}" for value in (example.served, example.offline))
        yield (name, example.entity, at, *sides)
