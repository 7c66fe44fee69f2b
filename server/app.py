"""The composition root: puts registry, store, models, service, transport and metrics together, and takes them down.

Going down on SIGTERM or Ctrl-C: NOT_SERVING is told and watchers end; after `drain_delay_s` the listener closes; what
is in flight or queued is finished for at most `drain_grace_s`; then the process exits with 0. A second signal ends at
once.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

from penstock.features.errors import FeatureError
from penstock.features.functions import load_functions
from penstock.features.opening import open_store
from penstock.registry import Registry
from penstock.server import metrics
from penstock.server.config import Config
from penstock.server.errors import BadConfig, TransportFailed
from penstock.server.health import Health
from penstock.server.infer import Inference
from penstock.server.lifecycle import Models
from penstock.server.lookups import Lookups
from penstock.server.service import Service
from penstock.server.transports import Transport
from penstock.server.transports.aio import AioTransport, check_version

SIGNALS = signal.SIGTERM, signal.SIGINT

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
    on_ready: Callable[[Addresses], None] = lambda _: None,
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
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        asyncio.run(_run(config, version, ready_file, on_ready))
    finally:
        if ready_file is not None:  # it promises a server that answers
            ready_file.unlink(missing_ok=True)
        for number, handler in before.items():
            if handler is not None:  # None: not set from Python, and nothing that could be put back
                signal.signal(number, handler)


async def _run(config: Config, version: str, ready_file: Path | None, on_ready: Callable[[Addresses], None]) -> None:
    ending = Ending()
    loop = asyncio.get_running_loop()

    def ask(*_: object) -> None:
        # not loop.add_signal_handler: that writes to a socket which a busy loop's threads may have filled, and is lost
        if not loop.is_closed():
            loop.call_soon_threadsafe(ending.ask)

    for number in SIGNALS:
        signal.signal(number, ask)

    def ready(addresses: Addresses) -> None:
        if ready_file is not None:
            _write_ready(ready_file, addresses)
        on_ready(addresses)

    await serve(config, version=version, ending=ending, on_ready=ready)


class Ending:
    """Asked once, the server drains and ends; asked again, it ends at once. Lives in one event loop."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.hurry = asyncio.Event()

    def ask(self) -> None:
        """Ask, once more."""
        (self.hurry if self.asked.is_set() else self.asked).set()

    async def unless_hurried(self, work: Awaitable[object]) -> bool:
        """Wait until the work is done; False where hurry came first, and the work goes on by itself."""
        task, hurry = asyncio.ensure_future(work), asyncio.ensure_future(self.hurry.wait())
        await asyncio.wait((task, hurry), return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        if task.done():
            task.result()
        return task.done()


async def serve(
    config: Config,
    *,
    version: str,
    ending: Ending,
    on_ready: Callable[[Addresses], None] = lambda _: None,
) -> None:
    """The same inside a running event loop, until `ending` is asked for; see `run`."""
    if not config.registry.is_dir():
        raise BadConfig(
            f"registry: {config.registry} is not a folder; publish a model there first (penstock convert --help)"
        )
    load_functions(config.functions)  # what cannot be imported is told now, not when a version asks for it
    if config.sample_served is not None:
        config.sample_served.prepare()
    grpc_address = config.address("grpc")
    metrics_address = config.address("metrics")
    assert grpc_address is not None
    lookups = _open_lookups(config)
    health = Health()
    models = Models(Registry(config.registry), config, lookups, health.set_models)
    inference = Inference(asyncio.get_running_loop(), models, config)
    service = Service(models, health, config, version, inference)
    transport = scraped = None
    try:
        transport = _make_transport(config, models, service, inference)
        grpc_address.claim()
        await asyncio.to_thread(models.refresh)
        await asyncio.to_thread(_greet, lookups)
        scraped = metrics.serve(models, transport, lookups, metrics_address) if metrics_address else None
        bound = await transport.start(grpc_address)
        models.start_polling()
        scraped_at = replace(metrics_address, port=scraped[0].server_port) if metrics_address and scraped else ""
        on_ready(Addresses(str(bound), str(scraped_at), dict(models.defaults)))
        if await _first(ending.asked, transport.failed) is transport.failed:
            raise TransportFailed("the gRPC server ended by itself; start it again (the native transport does not)")
        _log.info("draining")
        health.drain()
        await ending.unless_hurried(asyncio.sleep(config.drain_delay_s))
    finally:
        health.drain()
        service.close()
        await _finish(transport, models, ending, config.drain_grace_s)
        inference.close()
        if scraped is not None:
            await asyncio.to_thread(scraped[0].shutdown)
            scraped[0].server_close()
        if lookups is not None:
            await asyncio.to_thread(lookups.store.close)


def _make_transport(config: Config, models: Models, service: Service, inference: Inference) -> Transport:
    """The one place where a transport is chosen.

    Raises:
        BadConfig: the one asked for is not here, or the files of TLS cannot be used.
    """
    if config.transport != "grpcio":
        try:
            from penstock.server.transports.native import NativeTransport
        except ImportError as error:
            if config.transport == "native":
                raise BadConfig(
                    "transport: the native transport was not built; penstock doctor says why, and --transport grpcio "
                    "works without it"
                ) from error
            _log.info("the native transport was not built; penstock doctor says why. Serving on grpcio")
        else:
            return NativeTransport(models, inference, service, config)
    check_version()
    return AioTransport(inference, service, config)


async def _first(*events: asyncio.Event) -> asyncio.Event:
    """The event that is set first."""
    waiting = {asyncio.ensure_future(event.wait()): event for event in events}
    done, others = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    for task in others:
        task.cancel()
    return next(event for task, event in waiting.items() if task in done)


def _open_lookups(config: Config) -> Lookups | None:
    """What features are looked up through, if the operator named a store."""
    if not config.features:
        return None
    return Lookups(
        open_store(config.features),
        functions=config.functions,
        near=config.near_cache,
        store_s=config.feature_timeout_ms / 1000,
        threads=config.compute_threads,
        unknown_s=config.compute_unknown_s,
    )


def _greet(lookups: Lookups | None) -> None:
    """Connect to the store, so that the first caller does not pay for it; without one, serving begins all the same."""
    try:
        if lookups is not None:
            lookups.store.ping()
    except FeatureError as error:
        _log.warning("%s; until it answers, each view's on_outage says what is done", error)


async def _finish(transport: Transport | None, models: Models, ending: Ending, grace_s: float) -> None:
    """Let what is in flight and queued end by itself for so long, or until somebody is in a hurry."""
    if transport is not None and not await ending.unless_hurried(transport.stop(grace_s)):
        await transport.stop(0)
    if not await asyncio.to_thread(models.close, 0.0 if ending.hurry.is_set() else grace_s):
        _log.warning("some calls were cut off")


def _write_ready(path: Path, addresses: Addresses) -> None:
    """Write the addresses whole or not at all."""
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    staged.write_text(json.dumps({"grpc": addresses.grpc, "metrics": addresses.metrics, "pid": os.getpid()}) + "\n")
    staged.replace(path)
