"""The real server as a child process: `penstock serve`, as anybody would start it.

It is ready when it has written its ready file, which says where it listens. However this program's part ends, the
server is told to drain (SIGTERM) and waited for.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from penstock.errors import PenstockError

START_S = 60.0
STOP_S = 20.0
POLL_S = 0.05
SERVED = "served"
PATIENCE_MS = 2000  # for a look-up; the usual 50 ms are for a Redis that does not share its machine with a demo


class ServerError(PenstockError):
    """The server did not start, or did not end as it should."""


@contextmanager
def serving(registry: Path, features: str, window_s: float, scratch: Path) -> Iterator[str]:
    """The gRPC address of a server over `registry` and the store at URL `features`, for as long as it is needed.

    All that it looks up is sampled into the folder `served` of the scratch folder, which is whole once it has ended.

    Raises:
        ServerError: with the last line it wrote.
    """
    config, ready, log = scratch / "serve.json", scratch / "ready.json", scratch / "server.log"
    settings: dict[str, Any] = {
        "registry": str(registry),
        "features": features,
        "grpc": "127.0.0.1:0",
        "metrics": "off",
    }
    sample = {"path": str(scratch / SERVED), "rate": 1.0}
    settings |= {"drift_window_s": window_s, "feature_timeout_ms": PATIENCE_MS, "sample_served": sample}
    config.write_text(json.dumps(settings))
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "penstock.cli", "serve", "--config", str(config), "--ready-file", str(ready)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        yield _address(process, ready, log)
    except BaseException:
        _stop(process)
        raise
    if status := _stop(process):
        raise ServerError(f"the server ended with status {status}: {_last_line(log)}")


def _address(process: subprocess.Popen[bytes], ready: Path, log: Path) -> str:
    until = time.monotonic() + START_S
    while not ready.exists():
        if process.poll() is not None:
            raise ServerError(f"the server did not start: {_last_line(log)}")
        if time.monotonic() > until:
            raise ServerError(f"the server was not ready after {START_S:.0f} s: {_last_line(log)}")
        time.sleep(POLL_S)
    address: str = json.loads(ready.read_bytes())["grpc"]
    return address


def _stop(process: subprocess.Popen[bytes]) -> int:
    """Ask the server to end, and see that it does; its exit status."""
    process.terminate()
    try:
        return process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _last_line(log: Path) -> str:
    lines = log.read_text("utf-8", "replace").splitlines()
    return lines[-1] if lines else "it wrote nothing"
