"""The command line: one group for each room, one clear line on stderr for every error a user can mend.

Exit status: 0 done, 1 an error that is explained, 2 wrong usage, 130 interrupted. Heavy libraries are imported by the
commands that need them, so that `penstock --help` answers at once.
"""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer

from penstock import __version__
from penstock.commands import (
    bench,
    convert,
    dead_letters,
    deleting,
    doctor,
    drift,
    features,
    fitting,
    history,
    models,
    serve,
    streaming,
)
from penstock.commands._console import flowing
from penstock.errors import PenstockError

app = typer.Typer(
    name="penstock",
    no_args_is_help=True,
    help="Inference server for internal services: gRPC, features from Redis, batching, ONNX, drift.",
    epilog="Start here: penstock demo",
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(models.app, name="models")
features.app.command("stream", help=flowing(streaming.stream.__doc__))(streaming.stream)
features.app.command("compact", help=flowing(history.compact.__doc__))(history.compact)
features.app.command("delete", help=flowing(deleting.delete.__doc__))(deleting.delete)
features.app.command("fit", help=flowing(fitting.fit.__doc__))(fitting.fit)
features.app.command("dead-letters", help=flowing(dead_letters.dead_letters.__doc__))(dead_letters.dead_letters)
features.app.command("join", help=flowing(history.join.__doc__))(history.join)
features.app.command("restore", help=flowing(history.restore.__doc__))(history.restore)
app.add_typer(features.app, name="features")
app.add_typer(drift.app, name="drift")
app.command("convert")(convert.convert)
app.command("serve", help=flowing(serve.serve.__doc__))(serve.serve)
app.command("bench", help=flowing(bench.bench.__doc__))(bench.bench)
app.command("doctor")(doctor.doctor)


@app.command(epilog="Example: penstock demo --customers 5000 --calls 5000")
def demo(
    customers: Annotated[int, typer.Option(min=500, help="Customers to make up.")] = 20_000,
    calls: Annotated[int, typer.Option(min=500, help="Calls to send.")] = 20_000,
    seed: Annotated[int, typer.Option(help="Seed of everything that is random.")] = 7,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """The whole story on embedded defaults: features, training, conversion, serving, drift."""
    from penstock.examples.fraud.demo import run

    run(customers=customers, calls=calls, seed=seed, as_json=as_json)


_INTERRUPTED = 130
_EXTRAS = dict.fromkeys(("sklearn", "skl2onnx", "onnx", "skops", "joblib", "pandas"), "convert") | {"pyarrow": "tables"}
"""Libraries that only some commands need, and the extra that brings them."""


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"penstock {__version__}")
        raise typer.Exit


@app.callback()
def root(
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Set up logging for every command."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)


def main() -> None:
    """Run the command line; never a traceback for what a user can mend."""
    try:
        app()
    except PenstockError as error:
        typer.echo(f"penstock: {error}", err=True)
        sys.exit(1)
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        typer.echo(f"penstock: this needs {error.name}: pip install 'penstock[{extra}]'", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        sys.exit(_INTERRUPTED)
    except SystemExit as end:
        if end.code == _INTERRUPTED:  # typer makes it of Ctrl-C, and says nothing
            typer.echo("interrupted", err=True)
        raise
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)


if __name__ == "__main__":
    main()
