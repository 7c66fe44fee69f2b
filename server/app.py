"""The composition root: puts registry, store, models, service, transport and metrics together, and takes them down.

Going down on SIGTERM or Ctrl-C: NOT_SERVING is told and watchers end; after `drain_delay_s` the listener closes; what is
in flight or queued is finished for at most `drain_grace_s`; then the process exits with 0. A second signal ends at once.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from penstock.features.store import FeatureStore, open_store
from penstock.registry import Registry
from penstock.server import metrics
from penstock.server.config import Config
from penstock.server.errors import BadConfig
from penstock.server.health import Health
from penstock.server.lifecycle import Models
from penstock.server.service import Service
from penstock.server.transports.aio import AioTransport

_log = logging.getLogger("penstock.server")


@dataclass(frozen=True)
class Addresses:
    """Where a running server listens; metrics is empty where off."""

    grpc: str
    metrics: str
    models: dict[str, int]


def run(
    config: Config,
    *,
    version: str,
    ready_file: Path | None = None,
    on_ready: Callable[[Addresses], None] = lambda addresses: None,
) -> None:
    """Serve until a signal comes. Returns when everything is finished.

    Args:
        config: all settings.
        version: told by ServerMetadata.
        ready_file: JSON with the addresses is written there once calls are answered.
        on_ready: called with the addresses then.

    Raises:
        BadConfig: an address, the registry or the store cannot be used.
    """
    asyncio.run(_serve(config, version, ready_file, on_ready))


async def _serve(
    config: Config, version: str, ready_file: Path | None, on_ready: Callable[[Addresses], None]
) -> None:
    stopping, hurry = _signals()
    if not config.registry.is_dir():
        raise BadConfig(
            f"registry: {config.registry} is not a folder; publish a model there first (penstock convert --help)"
        )
    grpc_address = config.address("grpc")
    metrics_address = config.address("metrics")
    assert grpc_address is not None
    store: FeatureStore | None = open_store(config.features) if config.features else None
    health = Health()
    models = Models(Registry(config.registry), config, store, health.set_models)
    transport = AioTransport(models, Service(models, health, config, version), health, config)
    scraped = None
    try:
        await asyncio.to_thread(models.refresh)
        scraped = metrics.serve(models, *metrics_address) if metrics_address else None
        port = await transport.start(*grpc_address)
        models.start_polling()
        addresses = Addresses(
            f"{grpc_address[0]}:{port}",
            f"{metrics_address[0]}:{scraped[0].server_port}" if metrics_address and scraped else "",
            dict(models.defaults),
        )
        if ready_file is not None:
            _write_ready(ready_file, addresses)
        on_ready(addresses)
        await stopping.wait()
        _log.info("draining")
        health.drain()
        await _first(hurry, config.drain_delay_s)
    finally:
        health.drain()
        grace = 0.0 if hurry.is_set() else config.drain_grace_s
        await transport.stop(grace)
        if not await asyncio.to_thread(models.close, grace):
            _log.warning("some calls were still running after %.1f s", grace)
        if scraped is not None:
            await asyncio.to_thread(scraped[0].shutdown)
            scraped[0].server_close()
        if store is not None:
            await asyncio.to_thread(store.close)


def _signals() -> tuple[asyncio.Event, asyncio.Event]:
    """Events of the first and of the second SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    stopping, hurry = asyncio.Event(), asyncio.Event()

    def heard() -> None:
        (hurry if stopping.is_set() else stopping).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, heard)
    return stopping, hurry


async def _first(event: asyncio.Event, seconds: float) -> None:
    """Wait for the event, at most so long."""
    if seconds > 0:
        try:
            await asyncio.wait_for(event.wait(), seconds)
        except TimeoutError:
            return


def _write_ready(path: Path, addresses: Addresses) -> None:
    """Write the addresses whole or not at all."""
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    staged.write_text(json.dumps({"grpc": addresses.grpc, "metrics": addresses.metrics, "pid": os.getpid()}) + "\n")
    staged.replace(path)
