"""Hashes of decimal text: see the head of hashes.pyx, and `reference/hashes.py` for the same in Python."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

def parse_hashes(
    replies: Sequence[Sequence[bytes | None]],
    whole: NDArray[np.uint8],
    out: NDArray[np.float32],
    status: NDArray[np.uint8],
) -> None:
    """Numbers of hashes that others wrote as decimal text, one HMGET reply for each entity.

    A number is what C's strtod reads, in ASCII and without blanks: digits, point, exponent, `inf`, `nan`. Absent fields
    and other text give NaN; text over 512 bytes is no number. All are read as float64 and then rounded to float32, as a
    packed row of float64 is; but for plain integers in columns of int64, which are rounded once, as a packed int64 is.

    Args:
        replies: n lists of k byte strings or None. A reply that is no list (an error of the store) is ROW_CORRUPT.
        whole: (k,) 1 for columns of int64, else 0.
        out: (n, k) C-contiguous, k >= 1.
        status: (n,) ROW_ABSENT where every field is None.

    Raises:
        ValueError: shapes that do not fit, or a reply of other than k fields.
        TypeError: a field that is neither bytes nor None.
    """

def pick(replies: Sequence[Any], fields: tuple[bytes, ...]) -> list[Any]:
    """The values of the wanted fields of whole hashes: what HMGET would have replied, from HGETALL's replies.

    Args:
        replies: n lists of fields and values in turn. Anything else (an error of the store) is given back as it is.
        fields: k names; fastest where hashes hold them in this order.

    Returns:
        n lists of k values, None where the hash has no such field.

    Raises:
        ValueError: a list that is no list of pairs.
        TypeError: fields that are not bytes.
    """
