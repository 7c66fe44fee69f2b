"""A server inside this process, for tests of your own: the real application on a free port, in a thread.

    with running(Config(registry=folder, grpc="127.0.0.1:0", metrics="off")) as addresses:
        with Client(addresses.grpc) as client:
            ...

What differs from `penstock serve`: no signals, and no ready file. It starts in about 50 milliseconds and drains at the
end of the block as on SIGTERM.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from typing import Any

from penstock.server.app import Addresses, Ending, serve
from penstock.server.config import Config


@contextmanager
def running(config: Config, *, version: str = "testing") -> Iterator[Addresses]:
    """Serve as `config` says for as long as the block lasts; gives where the server listens.

    Args:
        config: all settings; give ports as 0.
        version: told by ServerMetadata.

    Raises:
        BadConfig: it cannot start.
        Exception: whatever else ended the server, at the end of the block.
    """
    started: Future[tuple[Addresses, Callable[[], object]]] = Future()

    async def main() -> None:
        ending, loop = Ending(), asyncio.get_running_loop()

        def ready(addresses: Addresses) -> None:
            started.set_result((addresses, lambda: loop.call_soon_threadsafe(ending.ask)))

        await serve(config, version=version, ending=ending, on_ready=ready)

    with ThreadPoolExecutor(1, "penstock server") as threads:
        ended = threads.submit(asyncio.run, main())
        first: list[Future[Any]] = [started, ended]
        wait(first, return_when=FIRST_COMPLETED)
        if ended.done():
            ended.result()
        addresses, end = started.result()
        try:
            yield addresses
        finally:
            with suppress(RuntimeError):  # it ended by itself, and will say why
                end()
        ended.result()
