"""The rows of many calls in one piece of memory, to be run at once, and the replies cut out of what came of it.

Copying a call's values in and writing its reply costs about 0.3 microseconds; both are done without the GIL where there
is enough of it. Every call of a batch is answered exactly once, whatever becomes of the batch.
"""

import numpy as np

from cpython.buffer cimport PyBuffer_FillInfo
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int32_t, int64_t, uint8_t
from libc.stdlib cimport free, malloc

from penstock.kernels._datatypes cimport DT_BYTES, item_size
from penstock.kernels._system cimport aligned_new, monotonic_ns
from penstock.kernels._wire cimport Request
from penstock.kernels.cache cimport Cache, Reply, give_reply, key_bytes, reply_bytes, split_reply
from penstock.kernels.calls cimport (
    RELEASE_GIL_BYTES, STATUS_INTERNAL, STATUS_OK, STATUS_RESOURCE_EXHAUSTED, Call, deliver, fail_all, set_answer,
)
from penstock.kernels.ledger cimport Ledger
from penstock.kernels.wire_answers cimport OutputBlock, Timing, write_response
from penstock.kernels.wire_blocks cimport Blocks
from penstock.kernels.wire_plan cimport KIND_ENTITY, Plan, Slot
from penstock.kernels.wire_values cimport fill_numbers, read_texts

from penstock.kernels.wire_plan import NUMPY as _NUMPY

cdef int64_t MAX_SPARE_BYTES = 1 << 24     # memory of larger batches is not kept


cdef class Memory:
    """Aligned memory that numpy arrays can lie in."""

    cdef void* data
    cdef readonly size_t size

    def __cinit__(self, size_t size):
        self.size = size
        self.data = aligned_new(size)
        if self.data == NULL:
            raise MemoryError(f"no memory for a batch buffer of {size} bytes")

    def __dealloc__(self):
        free(self.data)

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.data, <Py_ssize_t>self.size, 0, flags)

    def __releasebuffer__(self, Py_buffer* buffer):
        pass


cdef class Batch:
    """The rows of many calls, to be run at once and answered.

    Attributes:
        rows: how many.
        inputs: each tensor input of the plan to its ndarray [rows, ...] (or a list of bytes for BYTES). Memory is the
            batch's: valid until it is answered.
        matrix: float32 [rows, n_columns] of a version with a matrix, else None.
        source: uint8 [rows, n_columns], 1 where the caller sent the value and 0 where nobody did; None without matrix.
        entities: the entity id of each row as bytes, None where the caller sent none; None where nothing is looked up.
        taken_ns: when it was taken, CLOCK_MONOTONIC.
        degraded: set by the worker where something was left out of the answers, which are then not kept anywhere.
        copies: (key, reply) of each call that was run since `recall` and answered with OK; shared with the batches this
            one is split into; None before.

    `complete`, `fail` or `split` is called once, and ends it.
    """

    def __init__(self):
        raise TypeError("batches come from Lane.take")

    def __dealloc__(self):
        if self.calls != NULL:      # a worker that lost its batch must not leave callers waiting
            fail_all(self.calls, STATUS_INTERNAL, b"the batch was abandoned", 23)
            if self.ledger is not None:
                self.leave()
                self.ledger.note_ended(self.calls, self.taken_ns, monotonic_ns())
            deliver(self.calls)

    cdef int check_open(self) except -1:
        if self.calls == NULL:
            raise ValueError("the batch was answered already")
        return 0

    def spans(self):
        """(first row, rows) of every call, in order."""
        cdef Call* call = self.calls
        spans = []
        while call != NULL:
            spans.append((call.first_row, call.request.rows))
            call = call.next
        return spans

    def open_rows(self):
        """Rows of the calls that were not refused, as an index array; None where that is all of them."""
        cdef Call* call = self.calls
        while call != NULL and call.status == STATUS_OK:   # the usual batch: nothing is made for it
            call = call.next
        if call == NULL:
            return None
        rows = [np.zeros(0, np.int64)]
        call = self.calls
        while call != NULL:
            if call.status == STATUS_OK:
                rows.append(np.arange(call.first_row, call.first_row + call.request.rows))
            call = call.next
        return np.concatenate(rows)

    def wants(self, int output):
        """Whether any caller wants output number `output` of the plan."""
        cdef Call* call = self.calls
        if not 0 <= output < len(self.plan.outputs):
            raise ValueError(f"the plan has no output number {output}")
        while call != NULL:
            if call.request.wanted >> output & 1:
                return True
            call = call.next
        return False

    @property
    def deadline_ns(self):
        """The earliest deadline of its calls, CLOCK_MONOTONIC; 0 where none has one."""
        cdef Call* call = self.calls
        cdef int64_t earliest = 0
        while call != NULL:
            if call.deadline_ns and (earliest == 0 or call.deadline_ns < earliest):
                earliest = call.deadline_ns
            call = call.next
        return earliest

    @property
    def latest_deadline_ns(self):
        """The latest deadline of its calls, CLOCK_MONOTONIC; 0 where one of them has none."""
        cdef Call* call = self.calls
        cdef int64_t latest = 0
        while call != NULL:
            if call.deadline_ns == 0:
                return 0
            if call.deadline_ns > latest:
                latest = call.deadline_ns
            call = call.next
        return latest

    def shape_of(self, str name not None):
        """The shape of a tensor input in this batch; what BYTES inputs, which come as lists, are to be folded into."""
        for index, entry in enumerate(self.plan.inputs):
            if entry.name == name:
                if -1 in entry.shape:
                    return sent_shape(self, <int>index)
                return (self.rows, *entry.shape) if self.plan.batched else entry.shape
        raise ValueError(f"no input {name!r}")

    def unique_entities(self):
        """The ids that must be looked up, each once.

        Returns:
            (ids, row_of): ids is a list of bytes; row_of is int32 [rows], which id a row belongs to, or -1 for a row
            whose caller sent every value.
        """
        cdef const uint8_t[:, ::1] source = self.source
        cdef int32_t[::1] row_of
        cdef int64_t row, column
        cdef dict places = {}
        cdef object entity
        rows = np.empty(self.rows, np.int32)
        row_of = rows
        for row in range(self.rows):
            entity = self.entities[row]
            row_of[row] = -1
            if entity is None:
                continue
            for column in range(source.shape[1]):
                if source[row, column] == 0:
                    row_of[row] = places.setdefault(entity, len(places))
                    break
        return list(places), rows

    def complete(self, outputs, int64_t lookup_ns=0, int64_t compute_ns=0):
        """Answer every call from the outputs of the run.

        Args:
            outputs: name to ndarray [rows, ...] of every output that is wanted.
            lookup_ns, compute_ns: how long the batch's look-up and run took.

        Raises:
            ValueError: an output is missing or not what the plan promises: nothing was answered. Or all was answered
                before.
        """
        cdef Blocks blocks = Blocks()
        self.check_open()
        for index, entry in enumerate(self.plan.outputs):
            if self.wants(index):
                if entry.name not in outputs:
                    raise ValueError(f"the model gave no output {entry.name!r}")
                blocks.set(self.plan, index, outputs[entry.name], self.rows)
        self.answer(blocks, lookup_ns, compute_ns)

    cdef int answer(self, Blocks blocks, int64_t lookup_ns, int64_t compute_ns) except -1:
        cdef Call* calls
        lookup_ns += self.recall_ns
        if output_bytes(self.plan, blocks, self.rows) > RELEASE_GIL_BYTES:
            with nogil:
                self.write_answers(blocks, lookup_ns, compute_ns)
        else:
            self.write_answers(blocks, lookup_ns, compute_ns)
        if self.copies is not None and not self.degraded:
            self.copy_answers()
        calls = self.calls
        self.calls = NULL
        deliver(calls)
        self.give_back()
        return 0

    cdef void write_answers(self, Blocks blocks, int64_t lookup_ns, int64_t compute_ns) noexcept nogil:
        """Write the reply of every call that has no status yet, count the batch and keep what the cache wants of it."""
        answer_calls(self.plan, self.ledger, blocks.blocks, self.calls, self.rows, self.taken_ns, self.began_ns,
                     lookup_ns, compute_ns)
        self.leave()
        if self.cache is not None and not self.degraded:
            keep_answers(self.cache, self.calls, self.taken_ns)

    def refuse(self, int64_t row, int status, str message not None):
        """Give the call that row belongs to a status instead of an answer; the others of the batch go on."""
        cdef Call* call = self.calls
        check_status(status)
        text = message.encode()
        while call != NULL:
            if call.first_row <= row < call.first_row + call.request.rows:
                set_answer(call, status, PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text))
            call = call.next

    def fail(self, int status, str message not None):
        """Give every call of the batch a status instead of an answer."""
        cdef Call* calls = self.calls
        check_status(status)
        self.check_open()
        text = message.encode()
        fail_all(calls, status, PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text))
        self.leave()
        self.calls = NULL
        self.end_unrun(calls)
        self.give_back()

    # Answers that were given before, by this server or another: `server/shared.py` -----------------------------------

    cdef int check_cache(self) except -1:
        if self.cache is None:
            raise ValueError("the batch is of a version that keeps no answers")
        return 0

    def keys(self):
        """What makes each call's request the one it is, in order, as bytes; None where its answer is its own."""
        cdef Call* call = self.calls
        keys = []
        self.check_cache()
        while call != NULL:
            keys.append(key_bytes(&call.request) if self.cache.takes(&call.request) else None)
            call = call.next
        return keys

    def recall(self, list replies not None, made_ns not None, int64_t took_ns=0):
        """Answer the calls that `replies` has one for, and have the answers of the others copied, see `copies`.

        Args:
            replies: for every call, in order, what was kept of a reply to the same request, or None.
            made_ns: int64, for every call: since when its reply held, CLOCK_MONOTONIC; the version's own cache keeps it
                from then on.
            took_ns: how long finding them took: a part of the batch's look-up.

        Returns:
            Whether any call is left. If not the batch has ended, else its rows are those of the others.
        """
        cdef const int64_t[::1] made = made_ns
        cdef Call* recalled = self.calls
        cdef Py_ssize_t calls = 0
        self.check_open()
        self.check_cache()
        while recalled != NULL:
            recalled = recalled.next
            calls += 1
        if len(replies) != calls or made.shape[0] != calls:
            raise ValueError("a batch is told of every call what was found, no less and no more")
        for reply in replies:
            if reply is not None and type(reply) is not bytes:
                raise TypeError(f"a reply is bytes or None, not {type(reply).__name__}")
        self.recall_ns = took_ns
        self.copies = []
        recalled = self.take_recalled(replies, made)
        if recalled == NULL:
            return True
        self.end_unrun(recalled)
        if self.calls != NULL:
            self.refill()
            return self.calls != NULL
        self.leave()
        self.give_back()
        return False

    cdef Call* take_recalled(self, list replies, const int64_t[::1] made_ns) noexcept:
        """Give calls their replies and take them out of the batch; where there is no memory for one it is to be run."""
        cdef Call* recalled = NULL
        cdef Call** end = &recalled
        cdef Call** link = &self.calls
        cdef Call* call
        cdef Reply reply
        cdef Py_ssize_t index = 0
        while link[0] != NULL:
            call = link[0]
            found = replies[index]
            if found is not None:
                reply.head.data = <const uint8_t*>PyBytes_AS_STRING(found)
                reply.head.size = PyBytes_GET_SIZE(found)
                reply.rest.size = 0
                call.answer = give_reply(reply.head.data, reply.head.size, &call.request.id, &call.answer_size)
            if found is None or call.answer == NULL:
                link = &call.next
            else:
                if call.token:
                    self.cache.keep(&call.request, call.token, &reply, made_ns[index])
                link[0] = call.next
                call.next = NULL
                end[0] = call
                end = &call.next
            index += 1
        return recalled

    cdef int refill(self) except -1:
        """Copy the rows of the calls that are left once more, as if no others had been taken."""
        cdef Call* call = self.calls
        self.rows = 0
        while call != NULL:
            call.first_row = self.rows
            self.rows += call.request.rows
            call = call.next
        self.leave()
        self.due_ns = self.ledger.note_taken(self.rows, monotonic_ns())
        self.give_back()
        try:
            fill_batch(self)
        except MemoryError:
            self.fail(STATUS_RESOURCE_EXHAUSTED, f"no memory for a batch of {self.rows} rows")
        return 0

    cdef void copy_answers(self) noexcept:
        """Copy what may be kept elsewhere of the answers that are written."""
        cdef Call* call = self.calls
        cdef Reply reply
        try:
            while call != NULL:
                if call.status == STATUS_OK and self.cache.takes(&call.request) and split_reply(
                        self.plan, &call.request, call.answer, call.answer_size, &reply):
                    self.copies.append((key_bytes(&call.request), reply_bytes(&reply)))
                call = call.next
        except MemoryError:
            self.copies.clear()

    cdef void end_unrun(self, Call* calls) noexcept nogil:
        """Deliver calls that got what they get without a run."""
        self.ledger.note_ended(calls, self.taken_ns, monotonic_ns())
        deliver(calls)

    cdef void leave(self) noexcept nogil:
        """Tell the ledger that the run is over."""
        if self.due_ns:
            self.ledger.note_left(self.due_ns)
        self.due_ns = 0

    cdef void give_back(self):
        """Let the next batch use this one's memory."""
        cdef Memory memory = self.memory
        if memory is not None and len(self.spare) < 8 and memory.size <= <size_t>MAX_SPARE_BYTES:
            self.spare.append(memory)
        self.memory = None

    def split(self):
        """One batch for each call, over the same memory; this one is empty afterwards.

        For running the members of a failed batch singly. The memory is not reused while any of them lives.
        """
        cdef Call* call
        cdef Batch part
        parts = []
        self.check_open()
        self.leave()
        while self.calls != NULL:       # each call has an owner at any moment, so that no error on the way loses one
            part = Batch.__new__(Batch)
            part.plan, part.ledger, part.cache, part.spare = self.plan, self.ledger, self.cache, self.spare
            part.copies, part.recall_ns = self.copies, self.recall_ns
            call = part.calls = self.calls
            self.calls = call.next
            call.next = NULL
            part.rows = call.request.rows
            part.taken_ns = self.taken_ns      # and no began_ns: members of a failed batch teach nothing about runs
            rows = slice(call.first_row, call.first_row + call.request.rows) if self.plan.batched else slice(None)
            part.inputs = {name: values[rows] for name, values in self.inputs.items()}
            part.matrix = None if self.matrix is None else self.matrix[rows]
            part.source = None if self.source is None else self.source[rows]
            part.entities = None if self.entities is None else self.entities[rows]
            call.first_row = 0
            parts.append(part)
        return parts


cdef Batch new_batch(Plan plan, Ledger ledger, Cache cache, list spare, Call* calls, int64_t rows, int64_t taken_ns):
    """Copy the rows of the calls into one batch; None, its calls refused, where there is no memory for it."""
    cdef Batch batch = Batch.__new__(Batch)
    batch.plan, batch.ledger, batch.cache, batch.spare = plan, ledger, cache, spare
    batch.calls = calls
    batch.rows = rows
    batch.taken_ns = taken_ns
    batch.began_ns = monotonic_ns()
    batch.due_ns = ledger.note_taken(rows, batch.began_ns)
    try:
        fill_batch(batch)
    except MemoryError:
        batch.fail(STATUS_RESOURCE_EXHAUSTED, f"no memory for a batch of {rows} rows")
        return None
    return batch


cdef void keep_answers(Cache cache, const Call* call, int64_t now) noexcept nogil:
    """Have the cache keep what it wants of the answers of a batch, taken at `now`: as old as what they are made of."""
    cdef Reply reply
    while call != NULL:
        if call.token and call.status == STATUS_OK and split_reply(
                cache.plan, &call.request, call.answer, call.answer_size, &reply):
            cache.keep(&call.request, call.token, &reply, now)
        call = call.next


cdef int check_status(int status) except -1:
    if not 0 < status <= 16:
        raise ValueError(f"{status} is not the gRPC status code of a failure")
    return 0


cdef int64_t output_bytes(Plan plan, Blocks blocks, int64_t rows) noexcept nogil:
    """Bytes of all outputs of a batch."""
    cdef int64_t total = 0
    cdef int index
    for index in range(plan.n_outputs):
        if blocks.blocks[index].offsets != NULL:
            total += blocks.blocks[index].offsets[rows * blocks.blocks[index].item_bytes]
        else:
            total += rows * blocks.blocks[index].item_bytes
    return total


cdef void answer_calls(Plan plan, Ledger ledger, const OutputBlock* blocks, Call* calls, int64_t rows, int64_t taken_ns,
                       int64_t began_ns, int64_t lookup_ns, int64_t compute_ns) noexcept nogil:
    """Write the reply of every call that has no status yet, and count the batch; delivering is left to the caller.

    `began_ns` is when work on the batch began; 0: nothing is to be learnt from it.
    """
    cdef Call* call = calls
    cdef Timing timing
    cdef int64_t started = monotonic_ns()
    cdef int64_t ended
    timing.batch_rows = rows
    timing.lookup_us = lookup_ns // 1000
    timing.compute_us = compute_ns // 1000
    while call != NULL:
        if call.status == STATUS_OK:
            timing.queue_us = (taken_ns - call.arrived_ns) // 1000
            write_answer(plan, blocks, call, &timing if call.request.timing else NULL)
        call = call.next
    ended = monotonic_ns()
    ledger.note_answers(calls, rows, taken_ns, lookup_ns, compute_ns, started, ended)
    ledger.note_run(rows, lookup_ns, ended - began_ns - lookup_ns if began_ns else -1,
                    late_rows(calls, started - compute_ns))


cdef int64_t late_rows(const Call* call, int64_t began) noexcept nogil:
    """Rows of calls whose deadline had passed when the run began."""
    cdef int64_t rows = 0
    while call != NULL:
        if call.deadline_ns and call.deadline_ns < began:
            rows += call.request.rows
        call = call.next
    return rows


cdef void write_answer(Plan plan, const OutputBlock* blocks, Call* call, const Timing* timing) noexcept nogil:
    """Write the reply of one call."""
    call.answer_size = write_response(plan, &call.request, blocks, call.first_row, timing, NULL)
    call.answer = <uint8_t*>malloc(call.answer_size)
    if call.answer == NULL:
        set_answer(call, STATUS_RESOURCE_EXHAUSTED, b"no memory for the answer", 24)
    else:
        write_response(plan, &call.request, blocks, call.first_row, timing, call.answer)


cdef int fill_batch(Batch batch) except -1:
    """Make the arrays of a batch and copy every call's values into them."""
    cdef Plan plan = batch.plan
    cdef uint8_t* buffers[1024]
    cdef uint8_t* source = NULL
    cdef Memory memory
    cdef Slot* slot
    cdef int64_t total = 0
    layout = []
    for index, entry in enumerate(plan.inputs):
        slot = &plan.slots[<int>index]
        if slot.kind == KIND_ENTITY or slot.code == DT_BYTES:
            continue
        shape = (batch.rows, *entry.shape) if plan.batched else entry.shape
        if slot.item_elements < 0:
            shape = sent_shape(batch, <int>index)
        items = 1
        for size in shape:
            items *= size
        layout.append((entry, shape, items, total))
        total += (items * item_size(slot.code) + 63) & ~63
    memory = batch.spare.pop() if batch.spare else None
    if memory is None or <int64_t>memory.size < total + batch.rows * plan.n_columns:
        memory = Memory(max(total + batch.rows * plan.n_columns, usual_size(plan, batch.ledger.max_batch_rows)))
    batch.memory = memory
    batch.inputs = {}
    for position, (entry, shape, items, offset) in enumerate(layout):
        buffers[<int>position] = <uint8_t*>memory.data + <int64_t>offset
        array = np.frombuffer(memory, _NUMPY[entry.datatype], items, offset).reshape(shape)
        batch.inputs[entry.name] = array
        if entry.kind == "matrix":
            batch.matrix = array
    if plan.n_columns:
        source = <uint8_t*>memory.data + total
        cells = np.frombuffer(memory, "u1", batch.rows * plan.n_columns, total)
        batch.source = cells.reshape(batch.rows, plan.n_columns)
    if total > RELEASE_GIL_BYTES:
        with nogil:
            fill_calls(plan, batch.calls, buffers, source)
    else:
        fill_calls(plan, batch.calls, buffers, source)
    if plan.n_texts:
        fill_texts(batch)
    return 0


cdef void fill_calls(Plan plan, Call* call, uint8_t** buffers, uint8_t* source) noexcept nogil:
    while call != NULL:
        fill_numbers(plan, &call.request, call.first_row, buffers, source)
        call = call.next


cdef int64_t usual_size(Plan plan, int64_t rows):
    """Bytes of a full batch where every shape is fixed and small, so that its memory can be used again and again."""
    cdef int64_t total = 0
    if not plan.fixed_shapes:
        return 0
    for index in range(len(plan.inputs)):
        total += (rows * plan.slots[<int>index].item_elements * item_size(plan.slots[<int>index].code) + 63) & ~63
    total += rows * plan.n_columns
    return total if total <= MAX_SPARE_BYTES else 0


cdef tuple sent_shape(Batch batch, int slot):
    """The shape of a tensor with free dimensions: that of the first call, with the batch's rows."""
    cdef Request* request = &batch.calls.request
    for index in range(request.n_inputs):
        if request.inputs[<int>index].slot == slot:
            dims = [request.inputs[<int>index].dims[i] for i in range(request.inputs[<int>index].n_dims)]
            return (batch.rows, *dims[1:]) if batch.plan.batched else tuple(dims)
    return (0,)


cdef int fill_texts(Batch batch) except -1:
    """Collect BYTES inputs and entity ids, which become Python objects."""
    cdef Plan plan = batch.plan
    cdef Call* call
    cdef Request* request
    if plan.entity_slot >= 0:
        batch.entities = [None] * batch.rows
    for entry in plan.inputs:
        if entry.datatype == "BYTES" and entry.kind == "tensor":
            batch.inputs[entry.name] = []
    call = batch.calls
    while call != NULL:
        request = &call.request
        for index in range(request.n_inputs):
            slot = request.inputs[<int>index].slot
            if slot == plan.entity_slot:
                batch.entities[call.first_row:call.first_row + request.rows] = read_texts(&request.inputs[<int>index])
            elif plan.slots[<int>slot].code == DT_BYTES:
                batch.inputs[plan.inputs[slot].name] += read_texts(&request.inputs[<int>index])
        call = call.next
    return 0
