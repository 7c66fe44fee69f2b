"""What stands for a missing value: a default of the kind that a column takes, and one that its dtype can hold.

Models read every number as float32, so that bounds a float64's default, too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Default = float | str | tuple[float, ...]

EXPECTED = {
    "float32": "a number that float32 holds",
    "float64": "a number that float32 holds, for models read it so",
    "int64": "a whole number that int64 holds",
    "int32": "a whole number that int32 holds",
    "bool": "true or false",
    "category": "a word of its vocabulary",
    "string": "a text of at most max_bytes",
    "vector": "a number that float32 holds, or as many as its size",
}
BITS = {"int64": 64, "int32": 32}
FLOAT32_MAX = float(np.finfo(np.float32).max)


def is_of_kind(default: Default, dtype: str, words: Sequence[str], max_bytes: int | None, size: int | None) -> bool:
    """Whether a column of that dtype takes such a default: a word, a text, one number, or `size` of them."""
    if dtype == "category":
        return default in words
    if dtype == "string":
        return isinstance(default, str) and len(default.encode()) <= (max_bytes or 0)
    if dtype == "vector" and isinstance(default, tuple):
        return len(default) == size
    return isinstance(default, float)


def is_held(default: Default, dtype: str) -> bool:
    """Whether the dtype can hold the default, if it is of numbers."""
    if dtype == "bool":
        return default in (0, 1)
    if dtype in BITS:
        limit = 2.0 ** (BITS[dtype] - 1)
        return isinstance(default, float) and default.is_integer() and -limit <= default < limit
    numbers = default if isinstance(default, tuple) else (default,)
    return all(abs(number) <= FLOAT32_MAX for number in numbers if isinstance(number, float))
