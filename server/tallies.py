"""What look-ups gave, counted by view and by feature since the version was loaded.

Compiled code adds to these arrays (`kernels/joins.pyx`), once a batch; a scrape reads them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from penstock.kernels.joins import N_SOURCES, N_STATUSES

AGES_S = (1, 10, 60, 300, 1800, 3600, 6 * 3600, 86400, 7 * 86400, 30 * 86400)
"""Upper bounds of the histogram of ages."""
AGES_MS = np.array(AGES_S, np.int64) * 1000


class Tally:
    """Counts of one view.

    Attributes:
        view: its name.
        features: those of it that the model reads.
        values: int64 [features, N_SOURCES], values by where they came from.
        rows: int64 [N_STATUSES], entities looked up, by what came of them.
        ages: int64 [bounds + 2], rows by their age when they were read, the last being the sum of ages in milliseconds.
    """

    def __init__(self, view: str, features: Sequence[str]) -> None:
        self.view = view
        self.features = tuple(features)
        self.values = np.zeros((len(self.features), N_SOURCES), np.int64)
        self.rows = np.zeros(N_STATUSES, np.int64)
        self.ages = np.zeros(len(AGES_S) + 2, np.int64)
