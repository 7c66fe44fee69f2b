"""`penstock models`: what is published, who moved which alias when, and the way back.

Every command takes `--registry DIR` (or PENSTOCK_REGISTRY; ./penstock-models otherwise) and `--json`. A version is
meant by its number or by an alias; left out it is the champion.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.errors import PenstockError

if TYPE_CHECKING:
    from rich.table import Table

    from penstock.registry import Manifest, Move, Registry, Signature, TensorSpec

DEFAULT_REGISTRY = Path("penstock-models")
_SHOWN_COLUMNS = 8
_LONGEST_TEXT = 400

app = typer.Typer(no_args_is_help=True, help="Publish, list and move model versions.", rich_markup_mode="rich")

RegistryOption = Annotated[
    Path,
    typer.Option("--registry", envvar="PENSTOCK_REGISTRY", metavar="DIR", help="Folder of published models."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name of the model.")]
AliasOption = Annotated[str, typer.Option("--alias", metavar="ALIAS", help="Alias to move.")]
WhoOption = Annotated[str, typer.Option("--who", metavar="WHO", help="Recorded as mover; the current user otherwise.")]
WhyOption = Annotated[str, typer.Option("--why", metavar="TEXT", help="Recorded as the reason.")]


@app.command("list", epilog="Example: penstock models list --registry ./penstock-models")
def list_models(registry: RegistryOption = DEFAULT_REGISTRY, as_json: JsonOption = False) -> None:
    """List the published models with their versions and aliases."""
    from penstock.commands._console import print_json, print_table

    rows = [_summary(_open(registry), name) for name in _open(registry).models()]
    if as_json:
        print_json(rows)
    elif not rows:
        _say(f"No models in {_plain(registry)} yet. Publish one: penstock models publish FILE.onnx --name NAME")
    else:
        headers = ("Model", "Versions", "Champion", "Other aliases", "Framework", "Published (UTC)")
        print_table("", headers, [_summary_row(row) for row in rows], numeric=("Versions", "Champion"))


@app.command(epilog="Example: penstock models show fraud 3")
def show(
    context: typer.Context,
    name: NameArgument,
    reference: Annotated[
        str, typer.Argument(metavar="VERSION", help="Number or alias; the champion if left out.")
    ] = "",
    registry: RegistryOption = DEFAULT_REGISTRY,
    server: Annotated[
        str,
        typer.Option("--server", envvar="PENSTOCK_SERVER", metavar="HOST:PORT", help="Ask it how the version runs."),
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Show one version: what it takes and gives, how good it is, what it is made of. Its files are verified.

    With --server also how it runs there: the measured curve, the cap on runs, what runs cost and how calls are taken.
    """
    from penstock.commands._console import errors, print_json
    from penstock.commands._tuning import print_tuning, tuning_at

    store = _open(registry)
    version = store.load(name, store.resolve(name, reference))
    aliases = [alias for alias, number in store.aliases(name).items() if number == version.manifest.version]
    tuning = None
    try:
        tuning = tuning_at(server, name, version.manifest.version, version.digest) if server else None
    except PenstockError as error:
        source = context.get_parameter_source("server")
        if source is None or source.name != "ENVIRONMENT":
            raise
        errors.print(f"PENSTOCK_SERVER: {error}", markup=False, highlight=False, soft_wrap=True)  # nobody asked for it
    if as_json:
        shown = version.manifest.model_dump(mode="json", by_alias=True)
        shown |= {"digest": version.digest, "aliases": aliases}
        print_json(shown | ({"serving": tuning.as_json()} if tuning else {}))
        return
    _print_version(version.manifest, version.digest, aliases)
    if tuning:
        print_tuning(tuning)


@app.command(epilog="Example: penstock models promote fraud 3 --why 'better recall on January'")
def promote(
    name: NameArgument,
    reference: Annotated[str, typer.Argument(metavar="VERSION", help="Number or alias of the version to point at.")],
    alias: AliasOption = "champion",
    who: WhoOption = "",
    why: WhyOption = "",
    registry: RegistryOption = DEFAULT_REGISTRY,
    as_json: JsonOption = False,
) -> None:
    """Point an alias (the champion, if not said otherwise) at a version, after verifying it."""
    store = _open(registry)
    _report(name, store.promote(name, store.resolve(name, reference), alias=alias, who=who, why=why), as_json)


@app.command(epilog="Example: penstock models rollback fraud --why 'alarm on amounts'")
def rollback(
    name: NameArgument,
    alias: AliasOption = "champion",
    who: WhoOption = "",
    why: WhyOption = "",
    registry: RegistryOption = DEFAULT_REGISTRY,
    as_json: JsonOption = False,
) -> None:
    """Return an alias to where it was before its last promotion. Once more goes back one more."""
    _report(name, _open(registry).rollback(name, alias=alias, who=who, why=why), as_json)


@app.command(epilog="Example: penstock models history fraud --limit 5")
def history(
    name: NameArgument,
    limit: Annotated[int, typer.Option("--limit", min=0, help="Only the newest so many moves; 0 for all.")] = 20,
    registry: RegistryOption = DEFAULT_REGISTRY,
    as_json: JsonOption = False,
) -> None:
    """Show every move of a model's aliases, newest first."""
    from penstock.commands._console import print_json, print_table

    moves = _open(registry).history(name)[::-1]
    shown = moves[:limit] if limit else moves
    if as_json:
        print_json([move.model_dump(mode="json") for move in shown])
        return
    rows = [(_when(m.at), m.who, m.alias, m.old or "", m.new, m.why) for m in shown]
    print_table("", ("When (UTC)", "Who", "Alias", "From", "To", "Why"), rows, numeric=("From", "To"))
    if len(shown) < len(moves):
        _say(f"{len(moves) - len(shown)} older moves; --limit 0 shows all.")


@app.command(epilog="Example: penstock models verify fraud")
def verify(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the model; all models if left out.")] = "",
    reference: Annotated[str, typer.Argument(metavar="VERSION", help="Number or alias; all if left out.")] = "",
    registry: RegistryOption = DEFAULT_REGISTRY,
    as_json: JsonOption = False,
) -> None:
    """Check every byte of published versions against what was published."""
    from rich.progress import track

    from penstock.commands._console import errors, print_json

    store = _open(registry)
    wanted = _wanted(store, name, reference)
    progress = track(wanted, "Verifying", console=errors, transient=True, disable=as_json or not errors.is_terminal)
    results = [_verdict(store, model, version) for model, version in progress]
    bad = [result for result in results if result["problem"]]
    if as_json:
        print_json(results)
    for result in [] if as_json else results:
        mark = "[red]refused[/]" if result["problem"] else "[green]ok[/]"
        _say(f"{mark}  {result['model']} version {result['version']}")
    if bad:
        raise PenstockError(
            f"{len(bad)} of {len(results)} refused. " + "; ".join(str(result["problem"]) for result in bad)
        )
    if not as_json:
        _say(f"{len(results)} as published." if results else f"No models in {_plain(registry)} yet.")


@app.command(epilog="Example: penstock models publish fraud.onnx --name fraud")
def publish(
    file: Annotated[Path, typer.Argument(metavar="FILE.onnx", help="ONNX file to publish.")],
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="Name of the model.")],
    registry: RegistryOption = DEFAULT_REGISTRY,
    as_json: JsonOption = False,
) -> None:
    """Publish an ONNX file as the next version of a model."""
    from penstock.commands._console import print_json

    if not file.is_file():
        raise PenstockError(f"{file} is not a file; give the path of an ONNX file")
    from penstock.converters.onnx import publish_onnx

    store = _open(registry)
    manifest = publish_onnx(file, name, store)
    if as_json:
        print_json(manifest.model_dump(mode="json", by_alias=True))
        return
    champion = store.aliases(name)["champion"]
    _say(f"Published [bold]{name} version {manifest.version}[/] in {_plain(registry)}.")
    if champion == manifest.version:
        _say("It is the champion, the version served if none is asked for.")
    else:
        _say(f"Champion is still version {champion}. To change that: penstock models promote {name} {manifest.version}")


# --- what the commands share


def _open(root: Path) -> Registry:
    from penstock.registry import Registry

    return Registry(root)


def _report(name: str, move: Move, as_json: bool) -> None:
    from penstock.commands._console import print_json

    if as_json:
        print_json(move.model_dump(mode="json"))
    elif move.old == move.new:
        _say(f"{name}: {move.alias} points at version {move.new} already.")
    else:
        was = "new" if move.old is None else f"was {move.old}"
        _say(f"{name}: {move.alias} now points at [bold]version {move.new}[/] ({was}).")


def _say(line: str) -> None:
    """Print one line with markup, left whole so that a command in it can be copied."""
    from penstock.commands._console import console

    console.print(line, highlight=False, soft_wrap=True)


def _plain(value: object) -> str:
    """Text that others wrote, safe to print: no markup, nothing that moves the cursor."""
    from rich.markup import escape

    from penstock.commands._console import printable

    return escape(printable(value))


def _summary(store: Registry, name: str) -> dict[str, Any]:
    """What `list` tells of a model; a champion that cannot be read does not hide the others."""
    versions = store.versions(name)
    row: dict[str, Any] = {"model": name, "versions": versions, "aliases": {}, "framework": None, "published": None}
    try:
        row["aliases"] = store.aliases(name)
        manifest = store.manifest(name, row["aliases"]["champion"])
        row |= {"framework": manifest.framework, "published": manifest.created_at, "problem": None}
    except PenstockError as error:
        row["problem"] = str(error)
    return row


def _summary_row(row: dict[str, Any]) -> tuple[object, ...]:
    from rich.text import Text

    others = ", ".join(f"{alias} {version}" for alias, version in row["aliases"].items() if alias != "champion")
    refused = Text("refused: see models verify", style="red")
    published = _when(row["published"]) if row["published"] else refused
    champion = row["aliases"].get("champion", "?")
    return row["model"], len(row["versions"]), champion, others, row["framework"] or "?", published


def _wanted(store: Registry, name: str, reference: str) -> list[tuple[str, int]]:
    if reference:
        return [(name, store.resolve(name, reference))]
    names = [name] if name else store.models()
    return [(model, version) for model in names for version in store.versions(model)]


def _verdict(store: Registry, name: str, version: int) -> dict[str, Any]:
    try:
        store.verify(name, version)
    except PenstockError as error:
        return {"model": name, "version": version, "problem": str(error)}
    return {"model": name, "version": version, "problem": None}


# --- one version, for people


def _print_version(manifest: Manifest, digest: str, aliases: list[str]) -> None:
    from penstock.commands._console import console

    marks = "".join(f"  [reverse] {alias} [/]" for alias in aliases)
    _say(f"[bold]{manifest.model_name} version {manifest.version}[/]{marks}\n")
    console.print(_pairs(_facts(manifest, digest)))
    _section("Signature", _tensors(manifest.signature))
    for feature_set in manifest.feature_sets:
        schema = [(key, _brief(value)) for key, value in feature_set.schema_.items() if key not in ("format", "name")]
        _section(f"Feature set {feature_set.name}", _pairs(schema))
    if scores := _scores(manifest):
        _section("Metrics", _pairs([(name, f"{value:.6g}") for name, value in scores.items()]))
    if manifest.lineage:
        _section("Lineage", _pairs(sorted(manifest.lineage.items())))
    _section("Files, verified", _files(manifest))


def _section(title: str, table: Table) -> None:
    from penstock.commands._console import console

    _say(f"\n[bold]{_plain(title)}[/]")
    console.print(table)


def _facts(manifest: Manifest, digest: str) -> list[tuple[str, str]]:
    by = f" by {manifest.created_by}" if manifest.created_by else ""
    opset = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in sorted(manifest.opset.items()))
    facts = [
        ("Published", f"{_when(manifest.created_at)} UTC{by}"),
        ("Trained", f"{_when(manifest.trained_at)} UTC"),
        ("Framework", manifest.framework),
        ("ONNX", f"opset {opset}; IR {manifest.ir_version}" if opset else f"IR {manifest.ir_version}"),
        ("Columns", _columns(manifest.signature)),
        ("Entity", manifest.signature.entity),
        ("Entity keys", ", ".join(manifest.signature.entity_keys)),
        ("Score", _score(manifest)),
        ("Threshold", "" if manifest.threshold is None else f"{manifest.threshold:.6g}"),
        ("Id", str(manifest.id)),
        ("Digest", digest),
    ]
    return [(what, text) for what, text in facts if text]


def _score(manifest: Manifest) -> str:
    if manifest.score is None:
        return ""
    column = "" if manifest.score.column is None else f", column {manifest.score.column}"
    return f"{manifest.score.output}{column}, watched for drift"


def _columns(signature: Signature) -> str:
    names, count = signature.columns, len(signature.columns)
    if count <= _SHOWN_COLUMNS:
        return ", ".join(names)
    return f"{', '.join(names[:_SHOWN_COLUMNS])} and {count - _SHOWN_COLUMNS} more (--json shows all)"


def _tensors(signature: Signature) -> Table:
    table = _table("", "Name", "Type", "Shape")
    for direction, tensors in (("input", signature.inputs), ("output", signature.outputs)):
        for tensor in tensors:
            table.add_row(direction, _plain(tensor.name), tensor.datatype, _shape(tensor, signature.batched))
    return table


def _shape(tensor: TensorSpec, batched: bool) -> str:
    sizes = ["any" if size < 0 else str(size) for size in tensor.shape]
    if batched and sizes:
        sizes[0] = "rows"
    return " x ".join(sizes) or "scalar"


def _scores(manifest: Manifest) -> dict[str, float]:
    own = {"accuracy": manifest.accuracy, "f1_score": manifest.f1_score}
    given = {name: value for name, value in own.items() if value is not None}
    more = {name: value for name, value in manifest.metrics.items() if name != "f1" or "f1_score" not in given}
    return given | more


def _files(manifest: Manifest) -> Table:
    table = _table("Name", "Bytes", "SHA-256 begins")
    table.columns[1].justify = "right"
    for name, entry in sorted(manifest.files.items()):
        table.add_row(name, f"{entry.size:,}", entry.sha256[:16])
    return table


def _table(*headers: str) -> Table:
    from rich.table import Table

    return Table(*headers, box=None, padding=(0, 2, 0, 0), header_style="dim", show_edge=False)


def _pairs(rows: list[tuple[str, str]]) -> Table:
    table = _table("", "")
    table.show_header = False
    table.columns[0].style = "dim"
    table.columns[1].overflow = "fold"
    for what, text in rows:
        table.add_row(_plain(what), _plain(text))
    return table


def _brief(value: object) -> str:
    """A schema's value on a line or two; columns as their names and types."""
    if isinstance(value, list) and value and all(isinstance(item, dict) and "name" in item for item in value):
        text = ", ".join(" ".join(str(item[key]) for key in ("name", "dtype") if key in item) for item in value)
    else:
        text = str(value)
    return text if len(text) <= _LONGEST_TEXT else text[:_LONGEST_TEXT] + "… (--json shows all)"


def _when(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M}"
