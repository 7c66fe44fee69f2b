"""The face of batches: what a lane forms and a worker answers."""

from libc.stdint cimport int64_t, uint8_t

from penstock.kernels.cache cimport Cache
from penstock.kernels.calls cimport Call
from penstock.kernels.ledger cimport Ledger
from penstock.kernels.wire_answers cimport OutputBlock
from penstock.kernels.wire_blocks cimport Blocks
from penstock.kernels.wire_plan cimport Plan


cdef class Batch:
    cdef readonly Plan plan
    cdef readonly Ledger ledger
    cdef list spare                  # memory of finished batches, for the next ones of the lane
    cdef Cache cache                 # where answers are kept, or None
    cdef public bint degraded        # something was left out, so its answers are not kept
    cdef Call* calls                 # owned until answered; in arrival order
    cdef readonly int64_t rows
    cdef readonly int64_t taken_ns
    cdef int64_t began_ns            # the same by the clock, for learning; 0: nothing is to be learnt
    cdef int64_t due_ns              # when the ledger takes it to end; 0: the ledger knows of no run
    cdef readonly dict inputs
    cdef readonly object matrix
    cdef readonly object source
    cdef readonly list entities
    cdef object memory
    cdef int64_t recall_ns           # what looking for its answers elsewhere took; part of its look-up
    cdef readonly list copies        # (key, reply) of its answers, once they are written; None: nobody wants them
    cdef int check_cache(self) except -1
    cdef void end_unrun(self, Call* calls) noexcept nogil
    cdef Call* take_recalled(self, list replies, const int64_t[::1] made_ns) noexcept
    cdef int refill(self) except -1
    cdef void copy_answers(self) noexcept
    cdef void give_back(self)
    cdef void leave(self) noexcept nogil
    cdef int check_open(self) except -1
    cdef void write_answers(self, Blocks blocks, int64_t lookup_ns, int64_t compute_ns) noexcept nogil
    cdef int answer(self, Blocks blocks, int64_t lookup_ns, int64_t compute_ns) except -1


cdef Batch new_batch(Plan plan, Ledger ledger, Cache cache, list spare, Call* calls, int64_t rows, int64_t taken_ns)
cdef void fill_calls(Plan plan, Call* call, uint8_t** buffers, uint8_t* source) noexcept nogil
cdef void answer_calls(Plan plan, Ledger ledger, const OutputBlock* blocks, Call* calls, int64_t rows, int64_t taken_ns,
                       int64_t began_ns, int64_t lookup_ns, int64_t compute_ns) noexcept nogil
cdef void keep_answers(Cache cache, const Call* calls, int64_t now) noexcept nogil
