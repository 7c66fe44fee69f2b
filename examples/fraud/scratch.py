"""A scratch folder that is gone at the end, however the end comes."""

from __future__ import annotations

import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TRIES = 50
PAUSE_S = 0.1


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A new folder. SIGTERM ends the block as Ctrl-C does, even where a shell had the latter ignored."""
    folder = Path(tempfile.mkdtemp(prefix="penstock-demo-"))
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, signal.default_int_handler) if main else None
    try:
        yield folder
    finally:
        _remove(folder)
        if main:
            signal.signal(signal.SIGTERM, before)


def _remove(folder: Path) -> None:
    """Remove it all; more than once, for a Redis that is just ending may still write a file."""
    for _ in range(TRIES):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(PAUSE_S)
