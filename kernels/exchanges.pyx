"""Exchanges: RPCs of the native transport that Python answers, see exchanges.pxd.

Costs about a microsecond for each event and each command; only the slow lane goes this way.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from penstock.kernels._grpc cimport ENCODING_IDENTITY
from penstock.kernels._system cimport (
    atomic_add, event_clear, event_raise, flag_raised, let_go, lock_acquire, lock_release, retain,
)

_ENCODINGS = ("identity", "gzip", "deflate", "unknown")

# What `events` tells, as the numbers of EventKind.
BEGAN_EVENT, MESSAGE_EVENT, ENDED_EVENT, WRITTEN_EVENT, CLOSED_EVENT, DRAINED_EVENT = range(6)


# ---------------------------------------------------------------------------------------------------------------------
# The budget of bytes
# ---------------------------------------------------------------------------------------------------------------------

cdef bint charge(Budget* budget, int64_t size) noexcept nogil:
    """Take `size` bytes off the budget; False, and nothing is taken, where they are not left."""
    if atomic_add(&budget.used, size) <= budget.limit:
        return True
    atomic_add(&budget.used, -size)
    return False


cdef void give_back(Budget* budget, int64_t size) noexcept nogil:
    atomic_add(&budget.used, -size)


# ---------------------------------------------------------------------------------------------------------------------
# Exchanges, events and commands
# ---------------------------------------------------------------------------------------------------------------------

cdef Exchange* new_exchange(const uint8_t* path, size_t path_size, const uint8_t* fields,
                            size_t fields_size) noexcept nogil:
    """An exchange with one reference; NULL where there is no memory. The rest is for the caller to fill in."""
    cdef Exchange* exchange = <Exchange*>malloc(sizeof(Exchange))
    if exchange == NULL:
        return NULL
    memset(exchange, 0, sizeof(Exchange))
    exchange.text = <uint8_t*>malloc(path_size + fields_size + 1)
    if exchange.text == NULL:
        free(exchange)
        return NULL
    if path_size:
        memcpy(exchange.text, path, path_size)
    if fields_size:
        memcpy(exchange.text + path_size, fields, fields_size)
    exchange.path_size = path_size
    exchange.fields_size = fields_size
    exchange.references = 1
    return exchange


cdef void release_exchange(Exchange* exchange) noexcept nogil:
    if let_go(&exchange.references):
        give_back(exchange.budget, exchange.charged)
        free(exchange.text)
        free(exchange)


cdef bint post_event(EventQueue* queue, int kind, Exchange* exchange, uint8_t* data, size_t size,
                     bint compressed) noexcept nogil:
    """Tell Python. `data` is owned by the event; False, and it is not, where there is no memory."""
    cdef Event* event = <Event*>malloc(sizeof(Event))
    cdef bint was_empty
    if event == NULL:
        return False
    if exchange != NULL:
        retain(&exchange.references)
    event.next = NULL
    event.kind = kind
    event.exchange = exchange
    event.compressed = compressed
    event.size = size
    event.data = data
    lock_acquire(queue.lock)
    was_empty = queue.head == NULL
    if was_empty:
        queue.head = event
    else:
        queue.tail.next = event
    queue.tail = event
    if was_empty:
        event_raise(queue.fd)
    lock_release(queue.lock)
    return True


cdef Command* take_commands(Mailbox* mailbox) noexcept nogil:
    """Everything in a mailbox whose lock is held, oldest first."""
    cdef Command* taken = mailbox.head
    mailbox.head = mailbox.tail = NULL
    return taken


cdef void free_command(Command* command) noexcept nogil:
    release_exchange(command.exchange)
    free(command.data)
    free(command)


cdef bint post_command(Command* command) noexcept nogil:
    """Put a command into its mailbox; False, and it is not taken, where nobody reads that any more."""
    cdef Mailbox* mailbox = command.exchange.mailbox
    cdef bint was_empty, closed
    lock_acquire(mailbox.lock)
    closed = mailbox.closed
    if not closed:
        was_empty = mailbox.head == NULL
        if was_empty:
            mailbox.head = command
        else:
            mailbox.tail.next = command
        mailbox.tail = command
        if was_empty:
            event_raise(mailbox.fd)
    lock_release(mailbox.lock)
    return not closed


# Metadata crosses the border as fields: for each the sizes of name and value as two uint32 of this machine, then both.

cdef bint next_field(const uint8_t** at, const uint8_t* end, const uint8_t** name, size_t* name_size,
                     const uint8_t** value, size_t* value_size) noexcept nogil:
    """The next field; False at the end, and where what is left is too short for what it says."""
    cdef uint32_t[2] sizes
    if <size_t>(end - at[0]) < sizeof(sizes):
        return False
    memcpy(sizes, at[0], sizeof(sizes))
    at[0] += sizeof(sizes)
    if <size_t>(end - at[0]) < <size_t>sizes[0] + sizes[1]:
        return False
    name[0], name_size[0] = at[0], sizes[0]
    value[0], value_size[0] = at[0] + sizes[0], sizes[1]
    at[0] += <size_t>sizes[0] + sizes[1]
    return True


cdef tuple read_fields(const uint8_t* data, size_t size):
    """(name, value) pairs; bytes as they came."""
    cdef const uint8_t* at = data
    cdef const uint8_t* name
    cdef const uint8_t* value
    cdef size_t name_size, value_size
    fields = []
    while next_field(&at, data + size, &name, &name_size, &value, &value_size):
        fields.append((name[:name_size], value[:value_size]))
    return tuple(fields)


cdef bytes write_fields(pairs):
    """The reverse."""
    cdef uint32_t[2] sizes
    parts = []
    for name, value in pairs:
        sizes[0], sizes[1] = <uint32_t>len(name), <uint32_t>len(value)
        parts += [(<char*>sizes)[:sizeof(sizes)], name, value]
    return b"".join(parts)


# ---------------------------------------------------------------------------------------------------------------------
# Python's side
# ---------------------------------------------------------------------------------------------------------------------

@cython.no_gc_clear              # the owner must outlive the exchange, which is given back in __dealloc__
cdef class Rpc:
    """One RPC that Python answers.

    Attributes:
        path: full method path.
        streaming: whether it was begun by its headers alone, and messages follow; else its one message is there.
        encoding: what compressed messages of the client are compressed with: identity, gzip or deflate.
    """

    cdef Exchange* exchange
    cdef object owner            # keeps the mailbox alive
    cdef readonly str path
    cdef readonly bint streaming
    cdef readonly str encoding
    cdef public object task      # the transport's: what answers it
    cdef public object conversation

    def __init__(self):
        raise TypeError("exchanges come from a transport")

    def __dealloc__(self):
        if self.exchange != NULL:
            release_exchange(self.exchange)

    @property
    def metadata(self):
        """What the client sent beyond what gRPC itself uses, as (name, value) pairs of bytes."""
        return read_fields(self.exchange.text + self.exchange.path_size, self.exchange.fields_size)

    @property
    def peer(self):
        """The caller's address, as gRPC writes it."""
        return self.exchange.peer.decode("ascii", "replace")

    @property
    def deadline_ns(self):
        """CLOCK_MONOTONIC; 0 where the client set none."""
        return self.exchange.deadline_ns

    def accepts(self, str encoding not None):
        """Whether the client takes answers compressed so."""
        return bool(self.exchange.accepts & 1 << _ENCODINGS.index(encoding))

    def send(self, bytes message not None, str encoding=""):
        """Send one message, compressed with `encoding` already where that is given. WRITTEN tells that it left."""
        cdef int number = _ENCODINGS.index(encoding or "identity")
        self.post(SEND, 0, message, b"", number, bool(encoding))

    def finish(self, int status=0, str message="", trailing=()):
        """End the RPC with a status and trailing metadata, (name, value) pairs of bytes. Nothing can be sent after."""
        self.post(FINISH, status, message.encode(), write_fields(trailing), ENCODING_IDENTITY, False)

    def consumed(self, Py_ssize_t size):
        """Tell that a message of `size` bytes was read, so that the client may send as many more."""
        if size < 0:
            raise ValueError("a message has no negative size")
        self.post(CONSUMED, <int>0, b"", b"", ENCODING_IDENTITY, False, size)

    cdef int post(self, int kind, int status, bytes message, bytes trailing, int encoding, bint compressed,
                  Py_ssize_t size=0) except -1:
        cdef Command* command = <Command*>malloc(sizeof(Command))
        if command == NULL:
            raise MemoryError("no memory for an answer")
        memset(command, 0, sizeof(Command))
        command.size = <size_t>(size if size else PyBytes_GET_SIZE(message))
        command.trailing = <size_t>PyBytes_GET_SIZE(trailing)
        if kind != CONSUMED:
            command.data = <uint8_t*>malloc(command.size + command.trailing + 1)
            if command.data == NULL:
                free(command)
                raise MemoryError("no memory for an answer")
            memcpy(command.data, PyBytes_AS_STRING(message), command.size)
            memcpy(command.data + command.size, PyBytes_AS_STRING(trailing), command.trailing)
        command.kind, command.status = kind, status
        command.encoding, command.compressed = encoding, compressed
        command.exchange = self.exchange
        retain(&self.exchange.references)
        if not post_command(command):
            free_command(command)
        return 0


cdef Rpc rpc_of(Exchange* exchange, owner):
    """Python's side of an exchange, made at its first event and kept until its last."""
    cdef Rpc rpc
    if exchange.object == NULL:
        rpc = Rpc.__new__(Rpc)
        retain(&exchange.references)
        rpc.exchange = exchange
        rpc.owner = owner
        rpc.path = exchange.text[:exchange.path_size].decode("utf-8", "replace")
        rpc.streaming = exchange.streaming
        rpc.encoding = _ENCODINGS[exchange.encoding]
        exchange.object = <void*>rpc
        Py_INCREF(rpc)           # the exchange's, given back after CLOSED
    return <Rpc>exchange.object


cdef void forget_rpc(Exchange* exchange):
    """The stream is gone: what was charged is given back now, however long Python keeps its side."""
    give_back(exchange.budget, exchange.charged)
    exchange.charged = 0
    if exchange.object != NULL:
        rpc = <object>exchange.object
        exchange.object = NULL
        Py_DECREF(rpc)


cdef list drain_events(EventQueue* queue, object owner):
    """Every event so far as (kind, Rpc or None, compressed, message)."""
    cdef Event* event
    cdef Event* following
    told = []
    event_clear(queue.fd)
    lock_acquire(queue.lock)
    event = queue.head
    queue.head = queue.tail = NULL
    lock_release(queue.lock)
    while event != NULL:
        following = event.next
        if event.exchange == NULL:
            told.append((event.kind, None, False, b""))
        elif event.exchange.object == NULL and flag_raised(&event.exchange.closed):
            release_exchange(event.exchange)     # begun and given up before Python looked
        else:
            rpc = rpc_of(event.exchange, owner)
            message = PyBytes_FromStringAndSize(<const char*>event.data, <Py_ssize_t>event.size)
            told.append((event.kind, rpc, bool(event.compressed), message))
            if event.kind == CLOSED:
                forget_rpc(event.exchange)
            release_exchange(event.exchange)
        free(event.data)
        free(event)
        event = following
    return told


cdef void discard_events(EventQueue* queue):
    """Forget every event, of a transport whose threads have ended."""
    cdef Event* event = queue.head
    cdef Event* following
    queue.head = queue.tail = NULL
    while event != NULL:
        following = event.next
        if event.exchange != NULL:
            if event.kind == CLOSED:
                forget_rpc(event.exchange)
            release_exchange(event.exchange)
        free(event.data)
        free(event)
        event = following
