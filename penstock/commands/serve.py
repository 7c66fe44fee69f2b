"""`penstock serve`: answer gRPC calls for the models of a registry."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.commands.features import FORMS, default_folder

if TYPE_CHECKING:
    from penstock.server.app import Addresses


def serve(
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="YAML file of settings.")] = None,
    registry: Annotated[
        Path | None, typer.Option(metavar="DIR", envvar="PENSTOCK_REGISTRY", help="Folder of published models.")
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(metavar="URL", envvar="PENSTOCK_FEATURES", help=f"Feature store: {FORMS}."),
    ] = None,
    grpc: Annotated[str | None, typer.Option(metavar="HOST:PORT|unix:/PATH", help="Where to serve gRPC.")] = None,
    http: Annotated[str, typer.Option(metavar="HOST:PORT|off", help="REST gateway; not built yet, so off.")] = "off",
    metrics: Annotated[str | None, typer.Option(metavar="HOST:PORT|off", help="Where Prometheus scrapes.")] = None,
    transport: Annotated[str | None, typer.Option(metavar="auto|native|grpcio", help="What serves gRPC.")] = None,
    io_threads: Annotated[int | None, typer.Option(help="Threads of the native transport; 0 chooses.")] = None,
    tls_certificate: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The server's certificate chain, PEM; with --tls-key.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="FILE", help="Its key, PEM, without a password.")] = None,
    tls_client_ca: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Callers must show a certificate signed by it, PEM.")
    ] = None,
    max_batch_rows: Annotated[int | None, typer.Option(help="Rows run at once.")] = None,
    batch_cap: Annotated[
        str | None, typer.Option(metavar="auto|off|ROWS", help="Rows of a run at most; measured where it is auto.")
    ] = None,
    max_queue_delay_us: Annotated[int | None, typer.Option(help="How long a batch may wait for company.")] = None,
    workers: Annotated[int | None, typer.Option(help="Threads for each version; 0 chooses.")] = None,
    inline: Annotated[
        str | None, typer.Option(metavar="auto|on|off", help="Whether I/O threads run models themselves.")
    ] = None,
    drain_delay: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Between NOT_SERVING and closing the listener.")
    ] = None,
    drift_window: Annotated[float | None, typer.Option(metavar="SECONDS", help="Length of a drift window.")] = None,
    allow_remote: Annotated[
        bool | None, typer.Option("--allow-remote", help="Allow addresses that other machines can reach.")
    ] = None,
    ready_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the addresses there, as JSON, once calls are answered.")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log loading, swapping and draining.")] = False,
) -> None:
    """Answer gRPC calls for the models of a registry, until SIGTERM or Ctrl-C.

    Defaults: gRPC on 127.0.0.1:8001, metrics on 127.0.0.1:8002, models from ./penstock-models, features from the
    embedded Redis in ./penstock-features if that folder exists. Every setting can also stand in --config FILE; what is
    given here wins.

    Example: penstock serve --registry ./penstock-models --features redis://localhost:6379
    """
    from penstock import __version__
    from penstock.errors import PenstockError
    from penstock.server.app import run
    from penstock.server.config import Config

    if http != "off":
        raise PenstockError("--http: the REST gateway is not built yet; leave it off")
    if ready_file is not None and not ready_file.absolute().parent.is_dir():
        raise PenstockError(f"--ready-file: there is no folder {ready_file.absolute().parent}")
    logging.getLogger("penstock").setLevel(logging.INFO if verbose else logging.WARNING)
    settings = Config.read(
        config,
        registry=registry,
        features=features,
        grpc=grpc,
        metrics=metrics,
        transport=transport,
        io_threads=io_threads,
        tls_certificate=tls_certificate,
        tls_key=tls_key,
        tls_client_ca=tls_client_ca,
        max_batch_rows=max_batch_rows,
        batch_cap=batch_cap,
        max_queue_delay_us=max_queue_delay_us,
        workers=workers,
        inline=inline,
        drain_delay_s=drain_delay,
        drift_window_s=drift_window,
        allow_remote=allow_remote,
    )
    if not settings.features and default_folder().is_dir():
        settings = settings.model_copy(update={"features": f"embedded://{default_folder()}"})
    run(settings, version=__version__, ready_file=ready_file, on_ready=_announce)


def _announce(addresses: Addresses) -> None:
    """Tell a person where to go."""
    from penstock.commands._console import errors

    models = ", ".join(f"{name} v{version}" for name, version in sorted(addresses.models.items()))
    errors.print(f"[bold]penstock[/] serves gRPC on {addresses.grpc}", highlight=False)
    errors.print(f"  models   {models or 'none yet; publish one and it will be taken up'}", highlight=False)
    if addresses.metrics:
        errors.print(f"  metrics  http://{addresses.metrics}/metrics", highlight=False)
    errors.print("  Ctrl-C or SIGTERM drains and ends", highlight=False)
