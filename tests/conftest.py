"""What every test may use: a real Redis, the hypothesis profile, and `--slow` for long campaigns."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("penstock", derandomize=True, deadline=None, max_examples=100, database=None)
settings.load_profile("penstock")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow"):
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="a long campaign; run with --slow"))


@pytest.fixture(scope="session")
def redis_server() -> Iterator[str]:
    """unix:// URL of a Redis that runs as long as the session and keeps nothing on disk."""
    import redis

    from penstock.features.embedded import find_executable

    folder = Path(tempfile.mkdtemp(prefix="penstock-test-"))  # short, for socket paths are
    options = [
        "--port",
        "0",
        "--unixsocket",
        "redis.sock",
        "--dir",
        str(folder),
        "--save",
        "",
        "--logfile",
        "redis.log",
    ]
    process = subprocess.Popen([find_executable(), *options])
    client = redis.Redis(unix_socket_path=str(folder / "redis.sock"))
    try:
        until = time.monotonic() + 20
        while True:
            with contextlib.suppress(redis.ConnectionError):
                client.ping()
                break
            assert process.poll() is None, (folder / "redis.log").read_text()
            assert time.monotonic() < until, "redis-server does not answer"
            time.sleep(0.01)
        yield f"unix://{folder}/redis.sock"
    finally:
        client.close()
        process.terminate()
        process.wait(20)
        shutil.rmtree(folder)


@pytest.fixture
def redis_url(redis_server: str) -> str:
    """The same, empty."""
    import redis

    with redis.Redis.from_url(redis_server) as client:
        client.flushall()
    return redis_server
