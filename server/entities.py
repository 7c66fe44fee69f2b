"""Which ids a batch looks each view of a version up by.

A row's entity id has one part for each key of the version (`plans.keys_of`), and a view is looked up by the parts that
are its own, each of its entities once. A version of one entity takes ids as they come; one whose id has several parts
refuses those that have not as many, lest they pass for entities that nobody knows.

Cost: what `Batch.unique_entities` costs, and for ids of several parts that of `kernels/ids.pyx`, 0.1 µs for each id and
entity.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from penstock.features.schema import FeatureView
from penstock.features.store import Lookup
from penstock.kernels.batches import Batch
from penstock.kernels.ids import Splitter
from penstock.server.errors import InvalidRequest

SHOWN = 100  # characters of an id in a message

Shorts = NDArray[np.int32]
Asked = tuple[Lookup, Shorts]
"""A look-up of one view's entities, and for each of n rows which of them it has.

The latter is negative for a row that has none, or of which nothing is to be looked up.
"""


class Entities:
    """The ids of one version.

    Args:
        keys: of the id's parts, in order; every key of every view is among them.
        views: what is looked up.
    """

    def __init__(self, keys: Sequence[str], views: Sequence[FeatureView]) -> None:
        takes = [tuple(keys.index(key) for key in view.entity_keys) for view in views]
        distinct = list(dict.fromkeys(takes))
        self._keys, self._views = tuple(keys), tuple(views)
        self._take_of = [distinct.index(take) for take in takes]
        self._splitter = Splitter(len(keys), distinct) if len(keys) > 1 else None

    def asked(self, batch: Batch) -> list[Asked]:
        """What each view is asked for; empty where nothing is. Calls with an id of other parts are refused."""
        ids, row_of = batch.unique_entities()
        if not ids:
            return []
        if self._splitter is None:
            return [(Lookup(view, ids), row_of) for view in self._views]
        out = np.empty((len(self._splitter.takes), len(row_of)), np.int32)
        taken, unfit = self._splitter.split(ids, row_of, out)
        if unfit:
            self._refuse(batch, ids, np.flatnonzero(np.isin(row_of, unfit)), row_of)
        if len(unfit) == len(ids):
            return []
        return [(Lookup(view, taken[k]), out[k]) for view, k in zip(self._views, self._take_of, strict=True)]

    def _refuse(self, batch: Batch, ids: Sequence[bytes], rows: NDArray[np.intp], row_of: Shorts) -> None:
        for row in rows.tolist():
            message = (
                f"entity id {readable(ids[row_of[row]])} does not have {len(self._keys)} parts joined by '|', "
                f"none of them empty: {'|'.join(self._keys)} (inside a part a '|' or '\\' stands behind a '\\')"
            )
            batch.refuse(row, InvalidRequest.status, message)


def readable(entity: bytes) -> str:
    """An id as messages have it."""
    return repr(entity[: 4 * SHOWN].decode("utf-8", "backslashreplace")[:SHOWN])
