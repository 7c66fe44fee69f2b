"""What may be cimported of calls: into a lane or to Python, what comes back from there, and letting go of both."""

from libc.stdint cimport uint8_t

from penstock.kernels._http2 cimport Loop, Stream
from penstock.kernels.exchanges cimport Command
from penstock.kernels.calls cimport Call

cdef bint into_lane(Stream* stream) noexcept nogil
cdef void run_touched(Loop* loop) noexcept nogil
cdef Call* deliver_one(Loop* loop, Call* call) noexcept nogil
cdef void begin_exchange(Stream* stream) noexcept nogil
cdef void hand_over_message(Stream* stream, int kind) noexcept nogil
cdef Command* carry_out(Command* command) noexcept nogil
cdef void leave_call(Stream* stream) noexcept nogil
