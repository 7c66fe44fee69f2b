"""`penstock convert`: a fitted scikit-learn model to a published version, through the parity gate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.errors import PenstockError

if TYPE_CHECKING:
    from penstock.converters import Converted, Parity
    from penstock.features import FeatureView
    from penstock.features.functions import Function
    from penstock.features.transforms import Transforms

DEFAULT_REGISTRY = Path("penstock-models")


def convert(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Fitted model: .skops, or .joblib/.pkl with --trust.")],
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="Name of the model in the registry.")],
    sample: Annotated[Path, typer.Option(metavar="FILE", help="Rows to compare on: .parquet or .csv.")],
    label: Annotated[str | None, typer.Option(metavar="COLUMN", help="The sample's column of true labels.")] = None,
    trust: Annotated[bool, typer.Option("--trust", help="Run the code in a pickle: only for files you made.")] = False,
    allow_type: Annotated[
        list[str] | None, typer.Option("--allow-type", metavar="TYPE", help="Allow a type in a .skops file.")
    ] = None,
    transforms: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Fitted transforms, .json (penstock features fit).")
    ] = None,
    function: Annotated[
        list[str] | None,
        typer.Option("--function", metavar="NAME=MODULE:FUNCTION", help="Run this Python function in transforms."),
    ] = None,
    view: Annotated[
        list[Path] | None, typer.Option("--view", metavar="FILE", help="YAML of feature views the columns come from.")
    ] = None,
    entity: Annotated[
        str, typer.Option(metavar="NAME", help="Name of the entity id input; the views' keys if left out.")
    ] = "",
    registry: Annotated[
        Path, typer.Option(metavar="DIR", envvar="PENSTOCK_REGISTRY", help="Where to publish.")
    ] = DEFAULT_REGISTRY,
    tolerance: Annotated[float, typer.Option(min=0.0, metavar="X", help="How far probabilities may lie apart.")] = 1e-5,
    fuzz: Annotated[
        bool, typer.Option("--fuzz/--no-fuzz", help="Also compare at the edges of tree thresholds.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Convert a scikit-learn model to ONNX, compare both on every sample row, and publish it if they agree.

    Example: penstock convert churn.skops --name churn --sample holdout.parquet --label churned
    """
    from penstock.commands._console import print_json

    _look_for(model=model, sample=sample)
    from penstock.converters import Tolerance
    from penstock.converters import convert as run

    fitted, functions = _read_transforms(transforms), read_functions(function or [])
    views = _read_views(view or [])
    with _bars(f"converting {model.name}") as progress:
        converted = run(
            model,
            name,
            sample,
            registry=registry,
            labels=label,
            transforms=fitted,
            functions=functions,
            views=views,
            entity=entity,
            tolerance=Tolerance(probability=tolerance),
            fuzz=fuzz,
            trust=trust,
            allow_types=allow_type or [],
            progress=progress,
        )
    if as_json:
        print_json(summary(converted))
    else:
        _show(converted, registry)


def summary(converted: Converted) -> dict[str, Any]:
    """What was published, as plain data."""
    manifest, passed = converted.manifest, converted.passed
    return {
        "name": manifest.model_name,
        "version": manifest.version,
        "id": str(manifest.id),
        "arithmetic": passed.arithmetic,
        "parity": _parity(passed.sample),
        "edges": None if passed.edges is None else _parity(passed.edges),
        "metrics": manifest.metrics,
        "threshold": manifest.threshold,
        "inputs": [spec.model_dump() for spec in manifest.signature.inputs],
        "outputs": [spec.model_dump() for spec in manifest.signature.outputs],
        "columns": manifest.signature.columns,
        "entity": manifest.signature.entity,
        "entity_keys": manifest.signature.entity_keys,
        "notes": converted.notes,
    }


def _parity(report: Parity) -> dict[str, Any]:
    limits = report.tolerance
    return {
        "rows": report.rows,
        "worst_difference": report.worst,
        "ties": len(report.ties),
        "tolerance": {
            "probability": limits.probability,
            "value_rtol": limits.value_rtol,
            "value_atol": limits.value_atol,
        },
    }


def _show(converted: Converted, registry: Path) -> None:
    from penstock.commands._console import console, print_table

    manifest, passed = converted.manifest, converted.passed
    limits = passed.sample.tolerance
    regression = any(spec.name == "value" for spec in manifest.signature.outputs)
    allowed = f"{limits.value_atol:g} + {limits.value_rtol:g} |value|" if regression else f"{limits.probability:g}"
    ties = len(passed.sample.ties)
    labels = "values only" if regression else f"labels equal but for {ties} ties" if ties else "labels equal"
    rows = [
        (
            "rows compared",
            f"{passed.sample.rows:,}" + (f" + {passed.edges.rows:,} at thresholds" if passed.edges else ""),
        ),
        ("worst difference", f"{passed.sample.worst:.3g} (allowed {allowed}; {labels})"),
        ("arithmetic", passed.arithmetic),
        *((metric, f"{value:.6g}") for metric, value in manifest.metrics.items()),
        *((("decision threshold", f"{manifest.threshold:.6g}"),) if manifest.threshold is not None else ()),
        ("inputs", _tensors(manifest.signature.inputs)),
        ("outputs", _tensors(manifest.signature.outputs)),
    ]
    headers = ("published", f"{manifest.model_name} version {manifest.version}")
    print_table("", headers, rows)
    for note in converted.notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    console.print(f"next: penstock serve --registry {registry}", markup=False, soft_wrap=True)


def _tensors(specs: Any) -> str:
    shown = [f"{spec.name} {spec.datatype}{list(spec.shape)}" for spec in specs[:6]]
    return ", ".join(shown) + (f", ... ({len(specs) - 6} more)" if len(specs) > 6 else "")


def _look_for(**files: Path) -> None:
    """Whether the files are there, before the seconds that the libraries take to import."""
    for what, path in files.items():
        if not path.is_file():
            raise PenstockError(f"there is no {what} file {path}")


def _read_transforms(path: Path | None) -> Transforms | None:
    from penstock.features.transforms import TransformError, Transforms

    if path is None:
        return None
    try:
        return Transforms.from_json(path.read_bytes())
    except OSError as error:
        raise PenstockError(f"cannot read {path}: {error.strerror}") from error
    except TransformError as error:
        raise TransformError(f"{path}: {error}") from error


def read_functions(given: list[str]) -> dict[str, Function]:
    """The functions named by `--function NAME=package.module:function`."""
    from penstock.features.functions import load_functions

    named = {}
    for one in given:
        name, equals, place = one.partition("=")
        if not equals:
            raise PenstockError(f"--function: {one!r} is not NAME=package.module:function")
        named[name] = place
    return load_functions(named)


def _read_views(paths: list[Path]) -> list[FeatureView]:
    from penstock.features import read_views

    return [view for path in paths for view in read_views(path)]


@contextmanager
def _bars(title: str) -> Iterator[Callable[[str, int, int], None]]:
    """One bar on stderr for each stage, moved by calling it with the stage, the rows just done and the total."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    from penstock.commands._console import errors

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
        tasks: dict[str, TaskID] = {"": bar.add_task(title, total=None)}

        def move(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total)
            bar.update(tasks[stage], advance=done)

        yield move
