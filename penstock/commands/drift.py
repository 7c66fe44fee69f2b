"""`penstock drift`: how far what is served has moved from what the models were trained on."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.errors import PenstockError, Unavailable

if TYPE_CHECKING:
    from penstock.answers import FeatureDrift, ModelDrift

app = typer.Typer(no_args_is_help=True, help="Compare what is served with what the models were trained on.")


@app.command(epilog="Example: penstock drift status fraud --server 127.0.0.1:8001")
def status(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model; all of them if left out.")] = "",
    version: Annotated[
        str, typer.Option(metavar="VERSION", help="A version or alias; all served ones otherwise.")
    ] = "",
    server: Annotated[
        str, typer.Option(metavar="HOST:PORT", envvar="PENSTOCK_SERVER", help="Where the server listens.")
    ] = "127.0.0.1:8001",
    current: Annotated[
        bool, typer.Option("--current", help="The window still being counted, even if one is complete.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
) -> None:
    """Print KS, KL and PSI of every feature and of the score, worst first."""
    from penstock.client import Client
    from penstock.commands._console import console, print_json

    try:
        with Client(server) as client:
            found = client.drift(model, version=version, current=current)
    except Unavailable as error:
        raise PenstockError(
            f"no server answers at {server}: start one (penstock serve), or say where it is with --server HOST:PORT "
            f"({error.details})"
        ) from error
    if as_json:
        print_json([as_dict(entry) for entry in found])
        return
    if not found:
        console.print("No served version carries a reference profile; `penstock convert` publishes one.")
    for entry in found:
        show(entry)


def show(drift: ModelDrift) -> None:
    """Print one version's window as a table, the features that moved most on top."""
    from penstock.commands._console import console, print_table

    start, end = (datetime.fromtimestamp(ms / 1000, UTC) for ms in (drift.window_start_ms, drift.window_end_ms))
    kind = "window" if drift.complete else "window still open"
    when = f"{kind} {start:%H:%M:%S} to {end:%H:%M:%S} UTC"
    if not drift.rows:
        console.print(f"{drift.model_name} v{drift.version}: no rows, {when}", markup=False, highlight=False)
        return
    title = f"{drift.model_name} v{drift.version}: {drift.rows:,} rows, {when}"
    features = sorted(drift.features, key=lambda f: -f.psi if math.isfinite(f.psi) else 1.0)
    rows = [_row(feature) for feature in features]
    if drift.score is not None:
        name = drift.score.name if drift.score.name == "score" else f"score: {drift.score.name}"
        rows.append(_row(drift.score, name))
    headers = ("Feature", "KS", "p-value", "KL", "PSI", "Missing")
    print_table(title, headers, rows, numeric=headers[1:])
    console.print("PSI under 0.1 is commonly read as stable, over 0.25 as moved; few rows alone raise it.", style="dim")


def _row(feature: FeatureDrift, name: str = "") -> tuple[str, ...]:
    numbers = (f"{feature.ks:.4f}", f"{feature.ks_pvalue:.2g}", f"{feature.kl:.4f}", f"{feature.psi:.4f}")
    now, before = f"{feature.missing_current:.1%}", f"{feature.missing_reference:.1%}"
    return (name or feature.name, *numbers, now if now == before else f"{now}, was {before}")


def as_dict(drift: ModelDrift) -> dict[str, Any]:
    """The same as plain data."""
    from dataclasses import asdict

    return asdict(drift)
