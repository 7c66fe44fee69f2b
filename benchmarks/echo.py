"""The least a gRPC server in Python can do: grpc.aio gives back the bytes it got, nothing is parsed.

What this costs is what the transport costs; `overhead.py` holds Penstock against it. Started as
`python -m penstock.benchmarks.echo READY_FILE`, it writes {"grpc": "127.0.0.1:PORT"} to the file once it listens.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import Any

import grpc
import grpc.aio


async def echo(request: bytes, context: Any) -> bytes:  # noqa: ARG001 - the shape that grpc.aio calls
    return request


class Everything(grpc.GenericRpcHandler):
    """Answers every method by `echo`, with identity serializers."""

    def __init__(self) -> None:
        self._handler: Any = grpc.unary_unary_rpc_method_handler(echo)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:  # noqa: ARG002
        return self._handler


async def serve(ready: Path) -> None:
    """Listen on a free port until SIGTERM."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Everything(),))
    port = server.add_insecure_port("127.0.0.1:0")
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    await server.start()
    await asyncio.to_thread(write_ready, ready, {"grpc": f"127.0.0.1:{port}"})
    await stopped.wait()
    await server.stop(grace=None)


def write_ready(path: Path, addresses: dict[str, str]) -> None:
    """Appear whole or not at all, since somebody is looking."""
    draft = path.with_name(path.name + ".new")
    draft.write_text(json.dumps(addresses))
    draft.rename(path)


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
