"""The codec of ModelInferRequest and ModelInferResponse."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, final

import numpy as np
from numpy.typing import NDArray

DATATYPES: tuple[str, ...]
"""Datatypes of the Open Inference Protocol; a datatype's place is its code."""
NUMPY: dict[str, str]
"""Numpy's form of each fixed-size datatype; BF16 travels as its bit pattern."""
STRICTER: tuple[str, ...]
"""What protobuf would accept and this codec refuses."""

FAULTS: tuple[str, ...]
"""Why a request is refused."""

class WireError(ValueError):
    """A body is not a well-formed or not a fitting request; the text says what was expected and what came.

    Attributes:
        fault: which of FAULTS it is.
    """

    fault: str
    def __init__(self, message: str, fault: str = "MALFORMED") -> None: ...

class PlanInput(NamedTuple):
    """An input of a version; `shape` is that of one row, `kind` is tensor, matrix or entity."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    kind: str
    optional: bool

class PlanOutput(NamedTuple):
    """An output of a version; `on_request` outputs are sent only to callers who name them."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    on_request: bool

@final
class Plan:
    """What one served version takes and gives, compiled: the table every request is held against.

    Args:
        model_name: as it stands in every answer.
        model_version: as it stands in every answer.
        inputs: PlanInput(name, datatype, shape of one row (-1: any size), kind, optional) in the graph's order.
        outputs: PlanOutput(name, datatype, shape of one row, on_request). At most 64.
        columns: names of the matrix's columns; each is also taken as an input of its own.
        batched: whether the first dimension of every tensor is the batch; shapes above leave it out.
        parameters: text parameters put into every answer.

    Raises:
        ValueError: for a datatype, kind or count that cannot be served.
    """

    def __new__(
        cls,
        model_name: str,
        model_version: str,
        inputs: Iterable[PlanInput | tuple[str, str, Sequence[int], str, bool]],
        outputs: Iterable[PlanOutput | tuple[str, str, Sequence[int], bool]],
        columns: Sequence[str] = (),
        batched: bool = True,
        parameters: Mapping[str, str] | None = None,
    ) -> Plan: ...
    @property
    def inputs(self) -> tuple[PlanInput, ...]: ...
    @property
    def outputs(self) -> tuple[PlanOutput, ...]: ...
    @property
    def columns(self) -> tuple[str, ...]: ...
    @property
    def n_columns(self) -> int: ...
    @property
    def matrix_slot(self) -> int: ...
    @property
    def entity_slot(self) -> int: ...
    @property
    def n_buffers(self) -> int: ...
    @property
    def n_texts(self) -> int: ...
    @property
    def batched(self) -> bool: ...
    @property
    def fixed_shapes(self) -> bool: ...

def peek(body: bytes) -> tuple[bytes, bytes]:
    """Model name and version of a request, without looking into its inputs.

    Steps over every top-level field, since the last of several names counts: a few nanoseconds each.

    Raises:
        WireError: the bytes are not a sequence of protobuf fields.
    """

def parse(body: bytes) -> dict[str, Any]:
    """A request as plain Python values, without a plan: the codec's own view, for tests and tools.

    Raises:
        WireError: not a well-formed request.
    """

def decode(plan: Plan, body: bytes) -> tuple[dict[str, Any], NDArray[np.uint8] | None, int]:
    """One request held against a plan and decoded into arrays of its own: (arrays, source, rows).

    Raises:
        WireError: malformed, or it does not fit the plan.
    """

def encode(
    plan: Plan,
    body: bytes,
    outputs: Mapping[str, NDArray[Any]],
    row: int = 0,
    timing: tuple[int, int, int, int] | None = None,
) -> bytes:
    """The answer to one request whose rows begin at `row` of a batch's outputs.

    Raises:
        WireError: the request does not fit the plan.
        ValueError: an output's shape or dtype is not what the plan promises.
    """

def encode_field(number: int, value: str | bytes) -> bytes:
    """A length-delimited field of protobuf: text or bytes."""

def encode_varint(value: int) -> bytes:
    """A non-negative number as protobuf writes it."""
