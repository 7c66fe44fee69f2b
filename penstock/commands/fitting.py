"""`penstock features fit`: a recipe and a table to fitted transforms, as `penstock convert --transforms` takes them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.commands.convert import read_functions
from penstock.commands.features import Json

if TYPE_CHECKING:
    from penstock.training.files import Fitted

_SHOWN = 20


def fit(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="YAML or JSON: a list of steps.")],
    table: Annotated[
        Path,
        typer.Argument(
            metavar="TABLE",
            help="Training rows: .parquet, .csv, .arrow or .feather; or a folder or 'pattern*' of .parquet.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where to write the fitted transforms.")] = Path(
        "transforms.json"
    ),
    columns: Annotated[
        str, typer.Option(metavar="NAME,...", help="Those that callers will send or a view has; all if left out.")
    ] = "",
    time: Annotated[
        str, typer.Option(metavar="COLUMN", help="Time of each row, for steps that count from now; else the present.")
    ] = "",
    function: Annotated[
        list[str] | None,
        typer.Option("--function", metavar="NAME=MODULE:FUNCTION", help="Run this Python function in the steps."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Fit the steps of a recipe to a table, and write them as data for penstock convert --transforms.

    The columns that are fitted on are those that callers send, in this order; leave labels and ids out. The file is
    replaced if it is there.

    Example: penstock features fit steps.yaml training.parquet --columns amount,limit,hour --out transforms.json
    """
    from penstock.commands._console import print_json
    from penstock.training.files import fit_table, read_recipe, write_transforms

    steps = read_recipe(recipe)
    names = columns.split(",") if columns else []
    fitted = fit_table(steps, table, columns=names, time=time, functions=read_functions(function or []))
    write_transforms(fitted.transforms, out)
    outputs = fitted.transforms.output_columns(fitted.transforms.columns)
    if as_json:
        told = {"file": str(out), "rows": fitted.rows, "steps": len(fitted.transforms.steps)}
        print_json(told | {"columns": fitted.transforms.columns, "outputs": outputs})
    else:
        _tell(fitted, outputs, out)


def _tell(fitted: Fitted, outputs: tuple[str, ...], out: Path) -> None:
    from penstock.commands._console import console

    steps, columns = fitted.transforms.steps, fitted.transforms.columns
    more = f", ... ({len(outputs) - _SHOWN} more)" if len(outputs) > _SHOWN else ""
    lines = [f"fitted {len(steps)} steps to {fitted.rows:,} rows: {len(columns)} columns become {len(outputs)}"]
    lines += [f"  {', '.join(outputs[:_SHOWN])}{more}", f"wrote {out}; next: penstock convert MODEL --transforms {out}"]
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
