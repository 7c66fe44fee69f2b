"""What `kernels.hashes` must equal, by regular expression and dict."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penstock.kernels.reference.rows import ROW_ABSENT, ROW_CORRUPT, ROW_OK

NUMBER = re.compile(rb"[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|inf|infinity|nan)", re.IGNORECASE)

WHOLE = re.compile(rb"[+-]?[0-9]{1,19}")


def parse_number(text: bytes | None) -> float:
    """The number written in `text`, NaN where there is none."""
    if text is None or len(text) > 512 or not NUMBER.fullmatch(text):
        return float("nan")
    return float(text)


def parse_integer(text: bytes | None) -> np.float32 | float:
    """The same for a column of int64: plain integers are rounded once."""
    if text is not None and WHOLE.fullmatch(text) and -(2**63) <= int(text) < 2**63:
        return np.int64(int(text)).astype(np.float32)
    return parse_number(text)


def parse_hashes(
    replies: Sequence[Sequence[bytes | None]],
    whole: NDArray[np.uint8],
    out: NDArray[np.float32],
    status: NDArray[np.uint8],
) -> None:
    """One HMGET reply for each row of `out`."""
    n, k = out.shape
    if len(replies) != n or status.shape != (n,) or whole.shape != (k,) or k == 0:
        raise ValueError("replies, whole, out and status do not fit")
    for i, reply in enumerate(replies):
        if not isinstance(reply, list | tuple):
            out[i], status[i] = np.nan, ROW_CORRUPT
            continue
        if len(reply) != k:
            raise ValueError(f"a reply has {len(reply)} fields; {k} were asked for")
        with np.errstate(over="ignore"):
            parsed = [(parse_integer if w else parse_number)(field) for w, field in zip(whole, reply, strict=True)]
            out[i] = [np.float64(number).astype(np.float32) for number in parsed]
        status[i] = ROW_ABSENT if all(field is None for field in reply) else ROW_OK


def pick(replies: Sequence[Any], fields: tuple[bytes, ...]) -> list[Any]:
    """HMGET's replies from HGETALL's."""
    found = []
    for reply in replies:
        if type(reply) is list and len(reply) % 2:
            raise ValueError("no pairs")
        pairs = dict(zip(reply[::2], reply[1::2], strict=True)) if type(reply) is list else {}
        found.append([pairs.get(field) for field in fields] if type(reply) is list else reply)
    return found
