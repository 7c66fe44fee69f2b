"""How long to wait before trying a store again: ever longer, and never all at the same moment."""

from __future__ import annotations

import random
from collections.abc import Iterator

FIRST_S = 0.05
LONGEST_S = 2.0


def delays(first_s: float = FIRST_S, longest_s: float = LONGEST_S) -> Iterator[float]:
    """Seconds to wait after each failure: doubling up to `longest_s`, each by chance down to half of itself. No end."""
    delay = first_s
    while True:
        yield delay * random.uniform(0.5, 1.0)  # noqa: S311 -- nothing secret
        delay = min(2 * delay, longest_s)
