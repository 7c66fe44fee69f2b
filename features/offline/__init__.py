"""The offline side of features: their history in Parquet, joined to labels as of each label's time.

    from penstock.features.offline import OfflineStore, join

    OfflineStore("penstock-offline").write(view, table, time="computed_at")
    training = join(labels, [view], "penstock-offline", time="transaction_at")

Files are written with pyarrow (`penstock[tables]`); the join is DuckDB's ASOF join (`penstock[offline]`). Nothing here
imports either before it is used.
"""

from penstock.features.offline.history import History
from penstock.features.offline.joining import join
from penstock.features.offline.recording import recording
from penstock.features.offline.store import OfflineStore
from penstock.features.offline.windows import Events

__all__ = ["Events", "History", "OfflineStore", "join", "recording"]
