"""What versions look features up through: the store, and before it what learns schemas, computes and keeps near."""

from __future__ import annotations

from typing import cast

from pydantic import BaseModel, ConfigDict, Field

from penstock.features.computing import Computing, Function
from penstock.features.functions import load_functions
from penstock.features.near import NearCache
from penstock.features.schemas import KnownSchemas
from penstock.features.store import FeatureStore, Reader


class NearCacheSettings(BaseModel):
    """Rows of hot entities, kept in this process."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    bytes: int = Field(default=64 << 20, ge=1 << 16, lt=1 << 36, description="of memory")
    max_age_s: float = Field(gt=0, le=3600, description="how far a row may be behind the store")


class Lookups:
    """One server's way to features.

    Args:
        store: where they are kept.
        functions: what may compute rows, `package.module:function` by name, as the operator says.
        near: what is kept in this process; None for nothing.
        store_s: time limit of one look-up in the store.
        threads: how many functions may run at once.
        unknown_s: how long an entity that a function does not know is not asked for again.

    Attributes:
        reader: what to fetch from.
        computing, near: the layers before the store, where there are any.

    Raises:
        TransformError: a function cannot be imported.
    """

    def __init__(
        self,
        store: FeatureStore,
        *,
        functions: dict[str, str],
        near: NearCacheSettings | None,
        store_s: float,
        threads: int,
        unknown_s: float,
    ) -> None:
        self.store = store
        self.reader: Reader = KnownSchemas(store)
        self.computing: Computing | None = None
        self.near: NearCache | None = None
        if functions:
            loaded = cast("dict[str, Function]", load_functions(functions))
            self.computing = Computing(
                store, loaded, reader=self.reader, store_s=store_s, threads=threads, unknown_s=unknown_s
            )
            self.reader = self.computing
        if near is not None:
            self.near = NearCache(self.reader, near.bytes, near.max_age_s)
            self.reader = self.near
