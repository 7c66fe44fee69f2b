"""The outputs of a batch as arrays, checked against the plan and made ready to be cut into answers."""

import numpy as np

from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memset

from penstock.kernels._wire cimport MAX_DIMS, slice_of
from penstock.kernels.wire_answers cimport OutputBlock
from penstock.kernels.wire_plan cimport Plan

from penstock.kernels.wire_plan import NUMPY


cdef tuple pack_texts(array):
    """Length-prefixed values of a text array in one bytes object, and where each begins (the end last)."""
    values = [v if isinstance(v, bytes) else str(v).encode() for v in array.ravel().tolist()]
    offsets = np.zeros(len(values) + 1, np.int64)
    np.cumsum([4 + len(v) for v in values], out=offsets[1:])
    return b"".join([part for v in values for part in (len(v).to_bytes(4, "little"), v)]), offsets


cdef class Blocks:
    """The outputs of one batch, ready to be cut into answers: holds the arrays that `OutputBlock`s point into."""

    def __cinit__(self):
        memset(self.blocks, 0, sizeof(self.blocks))
        self.keep = []

    cdef int set(self, Plan plan, int index, array, int64_t rows) except -1:
        """Output `index` of the plan is `array` ([rows, ...] where the version is batched)."""
        cdef OutputBlock* block = &self.blocks[index]
        cdef const uint8_t[::1] data
        cdef const int64_t[::1] places
        entry = plan.outputs[index]
        array = np.asarray(array, order="C")
        shape = array.shape[1:] if plan.batched else array.shape
        if plan.batched and (array.ndim == 0 or array.shape[0] != rows):
            raise ValueError(f"output {entry.name!r} has shape {list(array.shape)} for a batch of {rows} rows")
        if len(shape) > MAX_DIMS:
            raise ValueError(f"output {entry.name!r} has more than {MAX_DIMS} dimensions")
        block.head = slice_of(plan.output_heads[index])
        block.n_dims = len(shape)
        items = 1
        for i, size in enumerate(shape):
            block.dims[<int>i] = size
            items *= size
        if entry.datatype == "BYTES":
            packed, offsets = pack_texts(array)
            self.keep += [packed, offsets]
            places = offsets
            block.offsets = &places[0]
            block.item_bytes = items
            block.data = <const uint8_t*>PyBytes_AS_STRING(packed)
            return 0
        if array.dtype != np.dtype(NUMPY[entry.datatype]):
            raise ValueError(f"output {entry.name!r} is {array.dtype}, the version promises {entry.datatype}")
        block.item_bytes = items * array.itemsize
        if array.size:
            data = array.reshape(-1).view("u1")
            block.data = &data[0]
        self.keep.append(array)
        return 0
