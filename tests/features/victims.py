"""Processes to be killed: `victims.py ingest URL TABLE` and `victims.py stream URL`; `Victim` is one of them.

Each prints a line whenever something was acknowledged, so that whoever kills it knows what must not be lost: `ingest`
the number of rows, `stream` nothing but a dot (what it has acknowledged stands in the group).
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from penstock.features import RowsLost, open_store
from penstock.features.aggregating import writer_for
from penstock.features.ingest import ingest
from penstock.features.streams import Consumer, Settings

LOST = 3  # exit status


class Victim:
    """An ingester; `acknowledged` is the last number it told."""

    def __init__(self, *words):
        self.acknowledged = 0
        self.process = subprocess.Popen([sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True)

    def run_until(self, lines, delay_s):
        """Let it live until it has told so many lines, and a little longer; True if it is still running."""
        for _ in range(lines):
            self._hear(self.process.stdout.readline())
        time.sleep(delay_s)
        return self.process.poll() is None

    def end(self, *, kill=False):
        """Its exit status, after all it had to say."""
        if kill:
            self.process.send_signal(signal.SIGKILL)
        for line in self.process.stdout:
            self._hear(line)
        self.process.stdout.close()
        return self.process.wait(60)

    def _hear(self, line):
        if line.endswith("\n") and line.strip().isdigit():
            self.acknowledged = int(line)


def main(what, url, *rest):
    store = open_store(url)
    view = store.view("activity")
    if what == "ingest":
        print("begun", flush=True)
        try:
            ingest(
                store, view, Path(rest[0]), 250, lambda rows, _: print(rows, flush=True), time_column="at", resume=True
            )
        except RowsLost:
            sys.exit(LOST)
    else:
        settings = Settings("events", "g", "consumer", "dead", time_field="at", batch=50)
        Consumer(store, writer_for(store, view, "at"), settings).run(
            threading.Event(), once=rest == ("once",), told=lambda: print(".", flush=True)
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
