"""What `penstock features check` prints: a line for each feature, the worst values, and what follows from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from penstock.commands._console import console, print_table

if TYPE_CHECKING:
    from penstock.features.offline.check import Report


def as_dict(report: Report, threshold: float) -> dict[str, Any]:
    """The report as plain data, with what it is judged by."""
    features = [asdict(feature) | {"share": feature.share} for feature in report.features]
    verdict = {"share": report.share, "threshold": threshold, "passed": report.share <= threshold}
    return {"rows": report.rows, "unsettled": report.unsettled, "features": features} | verdict


def show(report: Report, threshold: float) -> None:
    """Print the report, the features that disagree most on top."""
    headers = ("Feature", "Compared", "Missing", "Extra", "Mismatched", "SMAPE")
    features = sorted(report.features, key=lambda feature: -feature.share)
    rows = [
        (
            f"{f.view}.{f.feature}",
            f"{f.compared:,}",
            f"{f.missing:,}",
            f"{f.extra:,}",
            f"{f.mismatched:,}",
            f"{f.smape:.2%}",
        )
        for f in features
    ]
    print_table(
        f"{report.rows:,} served rows against the history of their features", headers, rows, numeric=headers[1:]
    )
    examples = list(_examples(report))
    if examples:
        print_table("Worst values", ("Feature", "Entity", "Looked up (UTC)", "Served", "Offline"), examples)
    if report.unsettled:
        console.print(f"{report.unsettled:,} rows left out: looked up while their history changed.", highlight=False)
    word = "agree" if report.share <= threshold else "DISAGREE"
    shares = f"{report.share:.3%} of the worst feature's values differ, {threshold:.3%} may"
    console.print(f"Online and offline {word}: {shares}.", highlight=False)


def _examples(report: Report) -> Iterator[tuple[str, ...]]:
    for feature in sorted(report.features, key=lambda feature: -feature.share):
        for example in feature.worst:
            at = datetime.fromtimestamp(example.time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
            sides = ("none" if value is None else f"{value:.9g}" for value in (example.served, example.offline))
            yield (f"{feature.view}.{feature.feature}", example.entity, at, *sides)
