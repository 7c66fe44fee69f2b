"""The border between I/O threads without the GIL and Python, for every RPC that Python answers.

An `Exchange` is one such RPC. What happens to it reaches Python as events in one queue with an eventfd; what Python
does with it reaches the I/O thread it belongs to as commands in that thread's mailbox, which has an eventfd, too.
Both sides hold references; whichever lets go last frees it.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t

cdef enum EventKind:
    BEGAN = 0                # the headers are in
    MESSAGE = 1              # one message from the client
    ENDED = 2                # the client sends no more
    WRITTEN = 3              # a message of ours has left the queue
    CLOSED = 4               # the stream is gone, whatever the reason; the last event of an exchange
    DRAINED = 5              # of no exchange: the last connection is closed

cdef enum CommandKind:
    SEND = 0
    FINISH = 1
    CONSUMED = 2             # Python has taken `size` bytes of messages

cdef struct Budget:          # bytes of requests and answers over the whole process
    int64_t used
    int64_t limit

cdef struct Command:
    Command* next
    int kind
    Exchange* exchange       # a reference
    int status               # of FINISH
    int encoding             # of SEND: that of the whole answer
    bint compressed          # of SEND
    size_t size              # bytes of the message, or of the status message
    size_t trailing          # bytes of trailing metadata behind it, as `fields` in exchanges.pyx
    uint8_t* data

cdef struct Mailbox:         # of one I/O thread
    void* lock
    int fd
    Command* head
    Command* tail
    bint closed              # nobody reads it any more

cdef struct Event:
    Event* next
    int kind
    Exchange* exchange       # a reference; NULL for DRAINED
    bint compressed
    size_t size
    uint8_t* data            # owned

cdef struct EventQueue:
    void* lock
    int fd
    Event* head
    Event* tail

cdef struct Exchange:
    int64_t references
    void* stream             # the I/O thread's; NULL once it is closed. Touched by that thread only.
    void* object             # Python's side, from BEGAN to CLOSED. Touched with the GIL only.
    Mailbox* mailbox
    EventQueue* events
    Budget* budget
    int64_t charged          # bytes of the budget, given back when Python has heard CLOSED
    int closed               # raised once the stream is gone: Python need not hear of what it does not know yet
    bint streaming
    int encoding
    int accepts              # bit 1 << Encoding for each the client takes
    int64_t deadline_ns      # CLOCK_MONOTONIC; 0: none
    char[64] peer
    size_t path_size
    size_t fields_size
    uint8_t* text            # the path, then the metadata as fields


cdef bint charge(Budget* budget, int64_t size) noexcept nogil
cdef void give_back(Budget* budget, int64_t size) noexcept nogil
cdef Exchange* new_exchange(const uint8_t* path, size_t path_size, const uint8_t* fields,
                            size_t fields_size) noexcept nogil
cdef void release_exchange(Exchange* exchange) noexcept nogil
cdef bint post_event(EventQueue* queue, int kind, Exchange* exchange, uint8_t* data, size_t size,
                     bint compressed) noexcept nogil
cdef Command* take_commands(Mailbox* mailbox) noexcept nogil
cdef void free_command(Command* command) noexcept nogil
cdef bint next_field(const uint8_t** at, const uint8_t* end, const uint8_t** name, size_t* name_size,
                     const uint8_t** value, size_t* value_size) noexcept nogil
cdef list drain_events(EventQueue* queue, object owner)
cdef void discard_events(EventQueue* queue)
