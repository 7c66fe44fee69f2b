"""A process to be killed: `recorder.py URL TABLE HISTORY` ingests a table and records it, and tells each batch."""

from __future__ import annotations

import sys
from pathlib import Path

from penstock.features import open_store
from penstock.features.ingest import ingest
from penstock.features.offline import OfflineStore, recording


def main(url, table, history):
    with open_store(url) as store:
        view = store.view("activity")
        with recording(store, OfflineStore(history), view, every_s=0.02) as both:
            ingest(both, view, Path(table), 250, lambda rows, _: print(rows, flush=True), time_column="at", resume=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
