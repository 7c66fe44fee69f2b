"""A batch with more rows than a run is to have, run in parts.

Parts see a slice of every input, and their outputs are written into one array each, so whoever asked sees one run. Only
for graphs whose first dimension is the batch everywhere; rows of different callers share runs of those anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Feeds = Mapping[str, Any]
Outputs = dict[str, Any]


def in_parts(run: Callable[[Feeds], Outputs], feeds: Feeds, most: int) -> Outputs:
    """The outputs of `run` for all rows of `feeds`, at most `most` rows at a time.

    Args:
        run: a graph, from inputs [rows, ...] to outputs [rows, ...], both by name.
        feeds: all inputs, of equally many rows.
        most: at least 1.

    Raises:
        ValueError: an output has other rows than the part that was run, or rows of other shapes than another part.
    """
    rows = len(next(iter(feeds.values()))) if feeds else 0
    if rows <= most:
        return run(feeds)
    outputs: Outputs = {}
    for first in range(0, rows, most):
        part = slice(first, min(first + most, rows))
        for name, values in run({name: values[part] for name, values in feeds.items()}).items():
            if len(values) != part.stop - part.start:
                raise ValueError(f"output {name!r} has {len(values)} rows for {part.stop - part.start} rows of input")
            if name not in outputs:
                outputs[name] = np.empty((rows, *values.shape[1:]), values.dtype)
            if (values.shape[1:], values.dtype) != (outputs[name].shape[1:], outputs[name].dtype):
                raise ValueError(f"output {name!r} is of another shape in one part than in another")
            outputs[name][part] = values
    return outputs
