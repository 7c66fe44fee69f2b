"""Processes to be killed: `victims.py ingest URL TABLE` and `victims.py stream URL`.

Each prints a line whenever something was acknowledged, so that whoever kills it knows what must not be lost: `ingest`
the number of rows, `stream` nothing but a dot (what it has acknowledged stands in the group).
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from penstock.features import RowsLost, open_store
from penstock.features.aggregating import writer_for
from penstock.features.ingest import ingest
from penstock.features.streams import Consumer, Settings

LOST = 3  # exit status


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
