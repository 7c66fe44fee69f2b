"""Features of entities: views that declare them, stores that keep them, transforms as data, ingestion.

What is public is named here; `penstock.features.transforms` and `penstock.features.ingest` are imported by those who
need them. Nothing here imports Redis or pyarrow before a store is opened or a file is read.
"""

from penstock.features.definitions import read_views
from penstock.features.entities import entity_key
from penstock.features.errors import (
    FeatureError,
    InvalidData,
    InvalidView,
    RowsLost,
    SchemaChanged,
    StoreMisconfigured,
    StoreUnavailable,
    UnknownView,
)
from penstock.features.opening import open_store
from penstock.features.plan import Plan
from penstock.features.reading import Features
from penstock.features.schema import Column, FeatureView
from penstock.features.store import FeatureStore, FetchedRows, Lookup

__all__ = [
    "Column",
    "FeatureError",
    "FeatureStore",
    "FeatureView",
    "Features",
    "FetchedRows",
    "InvalidData",
    "InvalidView",
    "Lookup",
    "Plan",
    "RowsLost",
    "SchemaChanged",
    "StoreMisconfigured",
    "StoreUnavailable",
    "UnknownView",
    "entity_key",
    "open_store",
    "read_views",
]
