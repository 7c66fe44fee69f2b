"""What one version does with a batch, from rows to replies, without the GIL: transform, run, watch, answer.

An engine does to the bit what `server/pipeline.py` does, for versions whose rows are numbers of known shapes and which
look nothing up. Rules: a batch is answered whole, or left as it was for a worker to run again and to find words for
what failed; nothing is counted of a batch that is left. Memory for rows is kept and used again, one piece for each
thread that runs at once. Beside the model a run costs about 1.5 microseconds and 0.5 a call.
"""

import numpy as np

cimport cython
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy

from penstock.kernels._costs cimport KEEP, Cost, cost_learn, cost_seed, cost_solve, keep_of, predict_ns
from penstock.kernels._datatypes cimport DT_FP16, DT_FP32, Datatype, as_float, item_size
from penstock.kernels._protobuf cimport Slice
from penstock.kernels._system cimport (
    aligned_new, epoch_ms, lock_acquire, lock_free, lock_new, lock_release, monotonic_ns,
)
from penstock.kernels.batches cimport answer_calls, fill_calls
from penstock.kernels.calls cimport Call
from penstock.kernels.forest cimport Forest
from penstock.kernels.ledger cimport Ledger
from penstock.kernels.ort cimport MAX_RANK, Session, Tensor, release
from penstock.kernels.transforms cimport Program
from penstock.kernels.windows cimport Windows
from penstock.kernels.wire_answers cimport OutputBlock
from penstock.kernels.wire_plan cimport Plan, Slot

from penstock.kernels.wire_plan import DATATYPES as _DATATYPES, NUMPY as _NUMPY

cdef enum:
    MAX_FEEDS = 16
    MAX_OUTPUTS = 64
    MAX_TURNS = 16
    LARGEST_SPARE = 1 << 22      # bytes; memory of larger batches is not kept


cdef class Engine:
    """What runs a batch."""

    cdef int64_t predict(self, int64_t rows) noexcept nogil:
        """How many nanoseconds a run of so many rows will take; 0 where nobody knows."""
        return 0

    cdef bint fits(self, int64_t rows, int64_t budget_ns) noexcept nogil:
        """Whether a run of so many rows is known to take no longer."""
        return 0 < self.predict(rows) <= budget_ns

    cdef bint run(self, Call* calls, int64_t rows, int64_t taken_ns) noexcept nogil:
        """Answer the calls of a batch; delivering them is left to the caller. False: they are as they were."""
        return False

    def predicted_ns(self, int64_t rows):
        """How many nanoseconds a run of so many rows will take; 0 where nobody knows."""
        return self.predict(rows)


# ---------------------------------------------------------------------------------------------------------------------
# The engine of a graph
# ---------------------------------------------------------------------------------------------------------------------

cdef struct Scratch:             # memory for the rows of one batch, right behind this head
    Scratch* next
    size_t size
    uint8_t[48] unused           # rows begin at a multiple of 64

cdef struct Column:              # one watched input of a version without a matrix
    int feed
    Datatype code


@cython.final
cdef class GraphEngine(Engine):
    """Runs an ONNX graph behind transforms.

    Args:
        plan, ledger: of the lane.
        session: the graph.
        transforms: run over the matrix first, or None.
        forest: runs the whole graph instead of the session, where the batch's size says so; or None.
        forest_scores: names of the outputs that are its scores; others are its labels.
        forest_turns: ascending sizes of batch from which the forest serves, then the session, then the forest again …
        features: counts the matrix, or the inputs in `watched`, before transforms; or None.
        scores: counts column `score_column` of output `score` (None: the largest of a row); or None.

    Raises:
        ValueError: the version is not for an engine; the text says why, after "the version" or so.
    """

    cdef Plan plan
    cdef Ledger ledger
    cdef Session session
    cdef Program transforms
    cdef int64_t width               # columns of the graph's matrix, behind the transforms
    cdef Forest forest
    cdef bint[MAX_OUTPUTS] is_score  # of the forest; else its label
    cdef int64_t[MAX_TURNS] turns
    cdef int n_turns
    cdef bint labelled               # an output is the forest's label
    cdef Windows features
    cdef Windows scores
    cdef int n_feeds
    cdef Tensor[MAX_FEEDS] feeds     # each input of the graph, without its rows
    cdef int64_t[MAX_FEEDS] row_bytes
    cdef int[MAX_FEEDS] buffers      # which buffer of the plan feeds it
    cdef OutputBlock[MAX_OUTPUTS] blocks
    cdef int64_t[MAX_OUTPUTS] item_bytes
    cdef int n_columns               # watched
    cdef Column[MAX_FEEDS] columns
    cdef int score
    cdef int64_t score_column        # -1: the largest
    cdef Datatype score_code
    cdef Scratch* spare
    cdef size_t row_size             # bytes of one row in all parts of a scratch
    cdef Cost cost
    cdef void* lock                  # of the spare memory and the cost

    def __cinit__(self, Plan plan not None, Ledger ledger not None, Session session not None, *,
                  Program transforms=None, Forest forest=None, forest_scores=(), forest_turns=(),
                  Windows features=None, watched=(), Windows scores=None, str score="", score_column=None):
        self.plan, self.ledger, self.session, self.transforms = plan, ledger, session, transforms
        self.features, self.scores = features, scores
        self.check_plan()
        self.set_feeds()
        self.set_outputs()
        self.set_transforms()
        if forest is not None:
            self.set_forest(forest, set(forest_scores), list(forest_turns))
        if features is not None:
            self.set_columns(list(watched))
        if scores is not None:
            self.set_score(score, score_column)
        self.row_size += <size_t>(plan.n_columns + 4 * self.n_columns + 4)
        self.lock = lock_new()
        if self.lock == NULL:
            raise MemoryError("no memory for an engine")

    def __dealloc__(self):
        cdef Scratch* scratch
        while self.spare != NULL:
            scratch = self.spare
            self.spare = scratch.next
            free(scratch)
        lock_free(self.lock)

    cdef int check_plan(self) except -1:
        cdef Plan plan = self.plan
        if plan.entity_slot >= 0:
            raise ValueError("features are looked up")
        if plan.n_texts:
            raise ValueError("it takes texts")
        if any([entry.datatype == "BYTES" for entry in plan.outputs]):
            raise ValueError("it gives texts")
        if not plan.batched:
            raise ValueError("it takes no batches")
        if not plan.fixed_shapes:
            raise ValueError("its inputs have free sizes")
        if len(plan.inputs) > MAX_FEEDS or len(plan.outputs) > MAX_OUTPUTS:
            raise ValueError(f"it has more than {MAX_FEEDS} inputs or {MAX_OUTPUTS} outputs")
        if sorted([entry.name for entry in plan.inputs]) != sorted(self.session.inputs):
            raise ValueError("its graph has other inputs than it promises")
        if tuple([entry.name for entry in plan.outputs]) != self.session.outputs:
            raise ValueError("its graph has other outputs than it promises")
        for entry in (*plan.inputs, *plan.outputs):
            if self.session.dtype(entry.name) != np.dtype(_NUMPY[entry.datatype]):
                raise ValueError(f"its graph has {entry.name} of another type than it promises")
        return 0

    cdef int set_feeds(self) except -1:
        cdef Slot* slot
        cdef Tensor* feed
        cdef int i, k, d
        self.n_feeds = <int>len(self.plan.inputs)
        for i in range(self.n_feeds):
            slot = &self.plan.slots[i]
            if slot.n_dims + 1 > MAX_RANK:
                raise ValueError(f"an input has more than {MAX_RANK} dimensions")
            k = <int>self.session.inputs.index(self.plan.inputs[i].name)
            feed = &self.feeds[k]
            feed.n_dims = slot.n_dims + 1
            for d in range(slot.n_dims):
                feed.dims[d + 1] = slot.dims[d]
            self.row_bytes[k] = slot.item_elements * item_size(slot.code)
            self.buffers[k] = slot.buffer
            self.row_size += <size_t>self.row_bytes[k]
        return 0

    cdef int set_outputs(self) except -1:
        cdef int i
        for i in range(<int>len(self.plan.outputs)):
            head = self.plan.output_heads[i]
            self.blocks[i].head = slice_of(head)
            self.item_bytes[i] = np.dtype(_NUMPY[self.plan.outputs[i].datatype]).itemsize
        return 0

    cdef int set_transforms(self) except -1:
        if self.transforms is None:
            return 0
        if self.n_feeds != 1 or self.plan.matrix_slot != 0:
            raise ValueError("its transforms run over no matrix")
        if self.transforms.n_inputs != self.plan.n_columns:
            raise ValueError("its transforms have another width than its matrix")
        self.width = self.transforms.n_outputs
        self.row_size += <size_t>(4 * self.width)
        return 0

    cdef int set_forest(self, Forest forest, set scores, list turns) except -1:
        cdef Slot* slot = &self.plan.slots[0]
        cdef int i
        cdef int64_t width = slot.item_elements if self.transforms is None else self.width
        if self.n_feeds != 1 or slot.code != DT_FP32 or slot.n_dims != 1 or width != forest.n_features:
            raise ValueError("its forest reads no input as it is")
        if not 1 <= len(turns) <= MAX_TURNS:
            raise ValueError("its forest and ONNX Runtime take turns too often")
        for i in range(<int>len(self.plan.outputs)):
            entry = self.plan.outputs[i]
            self.is_score[i] = entry.name in scores
            self.labelled = self.labelled or not self.is_score[i]
            if entry.datatype != ("FP32" if self.is_score[i] else "INT64"):
                raise ValueError("its forest gives outputs of other types")
        for i in range(<int>len(turns)):
            self.turns[i] = turns[i]
        self.n_turns = <int>len(turns)
        self.forest = forest
        self.row_size += <size_t>(4 * forest.n_outputs + 8)
        return 0

    cdef int set_columns(self, list watched) except -1:
        """What the drift counters see: the matrix, or inputs of one value a row."""
        cdef Slot* slot
        names = [entry.name for entry in self.plan.inputs]
        if self.plan.matrix_slot >= 0:
            if self.features.columns != self.plan.n_columns:
                raise ValueError("its profile has other columns than its matrix")
            return 0
        if not watched:
            self.features = None
            return 0
        if self.features.columns != len(watched) or len(watched) > MAX_FEEDS or not set(watched) <= set(names):
            raise ValueError("its profile has other columns than it has inputs")
        for name in watched:
            slot = &self.plan.slots[<int>names.index(name)]
            if slot.item_elements != 1 or slot.code == DT_FP16:
                raise ValueError(f"{name}, which is watched, is FP16 or not one value a row")
            self.columns[self.n_columns].feed = <int>self.session.inputs.index(name)
            self.columns[self.n_columns].code = slot.code
            self.n_columns += 1
        return 0

    cdef int set_score(self, str score, column) except -1:
        names = [entry.name for entry in self.plan.outputs]
        if score not in names or self.scores.columns != 1 or (column is not None and column < 0):
            raise ValueError("its score is no column of an output")
        self.score = <int>names.index(score)
        self.score_code = <Datatype><int>_DATATYPES.index(self.plan.outputs[self.score].datatype)
        self.score_column = -1 if column is None else column
        if self.score_code == DT_FP16:
            raise ValueError("its score is FP16")
        return 0

    # What a run does ------------------------------------------------------------------------------------------------

    cdef int64_t predict(self, int64_t rows) noexcept nogil:
        cdef int64_t ns
        lock_acquire(self.lock)
        ns = predict_ns(&self.cost, rows)
        lock_release(self.lock)
        return ns

    cdef bint fits(self, int64_t rows, int64_t budget_ns) noexcept nogil:
        """As above. Where it does not fit, a little of what runs taught is forgotten in favour of what was measured:
        else a time in which everything was slow would never end, for want of runs that teach better."""
        cdef int64_t ns
        lock_acquire(self.lock)
        ns = predict_ns(&self.cost, rows)
        if ns > budget_ns and self.cost.prior.one > 0:
            keep_of(&self.cost.own, KEEP)
            cost_solve(&self.cost)
        lock_release(self.lock)
        return 0 < ns <= budget_ns

    cdef bint run(self, Call* calls, int64_t rows, int64_t taken_ns) noexcept nogil:
        cdef Scratch* scratch = self.borrow(rows)
        cdef bint done
        if scratch == NULL:
            return False
        done = self.answer(scratch, calls, rows, taken_ns)
        self.give_back(scratch, rows if done else 0, monotonic_ns() - taken_ns)
        return done

    cdef Scratch* borrow(self, int64_t rows) noexcept nogil:
        """Memory for a batch, or NULL."""
        cdef size_t size = sizeof(Scratch) + <size_t>rows * self.row_size + 64 * (MAX_FEEDS + 6)
        cdef Scratch* scratch
        lock_acquire(self.lock)
        scratch = self.spare
        if scratch != NULL:
            self.spare = scratch.next
        lock_release(self.lock)
        if scratch == NULL or scratch.size < size:
            free(scratch)
            size += size // 4        # so that batches which grow row by row do not allocate each time
            scratch = <Scratch*>aligned_new(size)
            if scratch != NULL:
                scratch.size = size
        return scratch

    cdef void give_back(self, Scratch* scratch, int64_t rows, int64_t ns) noexcept nogil:
        """Keep memory for the next batch, and learn what one of so many rows took; 0 rows teach nothing."""
        lock_acquire(self.lock)
        if rows:
            cost_learn(&self.cost, rows, ns)
        if scratch.size <= LARGEST_SPARE:
            scratch.next = self.spare
            self.spare = scratch
            scratch = NULL
        lock_release(self.lock)
        free(scratch)

    cdef bint answer(self, Scratch* scratch, Call* calls, int64_t rows, int64_t taken_ns) noexcept nogil:
        cdef Tensor[MAX_FEEDS] feeds
        cdef Tensor[MAX_OUTPUTS] results
        cdef OutputBlock[MAX_OUTPUTS] blocks
        cdef uint8_t* buffers[MAX_FEEDS]
        cdef uint8_t* rest = self.lay_out(scratch, feeds, rows)
        cdef const float* matrix = NULL
        cdef int64_t started, took
        cdef bint done
        cdef int i
        for i in range(self.n_feeds):
            buffers[self.buffers[i]] = <uint8_t*>feeds[i].data
        fill_calls(self.plan, calls, buffers, rest)
        rest += round_up(rows * self.plan.n_columns)
        started = monotonic_ns()
        if self.plan.matrix_slot >= 0:
            matrix = <const float*>buffers[self.plan.slots[self.plan.matrix_slot].buffer]
        if not self.compute(feeds, rows, &rest, results):
            return False
        took = monotonic_ns() - started
        done = self.fit(results, rows, blocks)
        if done:
            self.watch(feeds, matrix, &blocks[self.score], rows, <float*>rest)
            answer_calls(self.plan, self.ledger, blocks, calls, rows, taken_ns, taken_ns, 0, took)
        release(results, self.plan.n_outputs)
        return done

    cdef uint8_t* lay_out(self, Scratch* scratch, Tensor* feeds, int64_t rows) noexcept nogil:
        """Give each feed its place for so many rows; where the memory goes on behind them."""
        cdef uint8_t* at = <uint8_t*>scratch + sizeof(Scratch)
        cdef int i
        for i in range(self.n_feeds):
            feeds[i] = self.feeds[i]
            feeds[i].dims[0] = rows
            feeds[i].data = at
            feeds[i].size = <size_t>(rows * self.row_bytes[i])
            at += round_up(rows * self.row_bytes[i])
        return at

    cdef bint compute(self, Tensor* feeds, int64_t rows, uint8_t** rest, Tensor* results) noexcept nogil:
        """Outputs of the graph, behind the transforms. False: it failed, and there is nothing to release.

        `rest` is where the scratch goes on, before and afterwards.
        """
        cdef Tensor sent = feeds[0]
        cdef bint done = True
        cdef double now = 0
        if self.transforms is not None:
            if self.transforms.timed:
                now = <double>epoch_ms()
            self.transforms.run_rows(<const float*>sent.data, <float*>rest[0], <Py_ssize_t>rows, now)
            feeds[0].data = rest[0]
            feeds[0].dims[1] = self.width
            feeds[0].size = <size_t>(rows * self.width * 4)
            rest[0] += round_up(rows * self.width * 4)
        if self.forest is not None and self.is_forests(rows):
            self.walk(<const float*>feeds[0].data, rows, rest, results)
        else:
            done = self.session.run_rows(feeds, results)
        feeds[0] = sent
        return done

    cdef bint is_forests(self, int64_t rows) noexcept nogil:
        """Whether the forest runs batches of this size."""
        cdef int i = 0
        while i < self.n_turns and self.turns[i] <= rows:
            i += 1
        return i & 1 == 1

    cdef void walk(self, const float* matrix, int64_t rows, uint8_t** rest, Tensor* results) noexcept nogil:
        """Run the forest; the results lie in the scratch, and nothing of them is to be released."""
        cdef float* scores = <float*>rest[0]
        cdef int64_t* labels = <int64_t*>(rest[0] + round_up(rows * self.forest.n_outputs * 4))
        cdef int i
        rest[0] = <uint8_t*>labels + round_up(rows * 8)
        self.forest.run_rows(matrix, rows, self.forest.n_features, scores, labels if self.labelled else NULL)
        for i in range(self.plan.n_outputs):
            results[i].value = NULL
            results[i].data = scores if self.is_score[i] else <void*>labels
            results[i].dims[0] = rows
            results[i].dims[1] = self.forest.n_outputs
            results[i].n_dims = 2 if self.is_score[i] else 1

    cdef bint fit(self, const Tensor* results, int64_t rows, OutputBlock* blocks) noexcept nogil:
        """Make blocks to cut replies from; False where an output has not a row for each of the batch."""
        cdef int64_t elements
        cdef int i, d
        for i in range(self.plan.n_outputs):
            if results[i].n_dims < 1 or results[i].dims[0] != rows:
                return False
            blocks[i].head = self.blocks[i].head
            blocks[i].data = <const uint8_t*>results[i].data
            blocks[i].offsets = NULL
            blocks[i].n_dims = results[i].n_dims - 1
            elements = 1
            for d in range(blocks[i].n_dims):
                blocks[i].dims[d] = results[i].dims[d + 1]
                elements *= results[i].dims[d + 1]
            blocks[i].item_bytes = elements * self.item_bytes[i]
        if self.scores is not None:
            elements = blocks[self.score].item_bytes // self.item_bytes[self.score]
            return elements > 0 and self.score_column < elements
        return True

    cdef void watch(self, const Tensor* feeds, const float* matrix, const OutputBlock* block, int64_t rows,
                    float* room) noexcept nogil:
        """Count a batch for drift, as `server/watch.py` does."""
        cdef double now
        if self.features is None and self.scores is None:
            return
        now = <double>epoch_ms() / 1000
        if self.features is not None:
            if matrix == NULL:
                self.collect(feeds, rows, room)
                matrix = room
            self.features.count(matrix, <Py_ssize_t>rows, now)
        if self.scores is not None:
            self.score_rows(block, rows, room)
            self.scores.count(room, <Py_ssize_t>rows, now)

    cdef void collect(self, const Tensor* feeds, int64_t rows, float* out) noexcept nogil:
        """The watched inputs side by side, rounded once to float32."""
        cdef int64_t row
        cdef int j
        for j in range(self.n_columns):
            for row in range(rows):
                out[row * self.n_columns + j] = number(
                    <const uint8_t*>feeds[self.columns[j].feed].data, self.columns[j].code, row)

    cdef void score_rows(self, const OutputBlock* block, int64_t rows, float* out) noexcept nogil:
        """The watched value of every row: one column, or the largest, which is NaN where any is."""
        cdef int64_t width = block.item_bytes // self.item_bytes[self.score]
        cdef int64_t row, j
        cdef float value
        for row in range(rows):
            if self.score_column >= 0:
                out[row] = number(block.data, self.score_code, row * width + self.score_column)
                continue
            out[row] = number(block.data, self.score_code, row * width)
            for j in range(1, width):
                value = number(block.data, self.score_code, row * width + j)
                if value > out[row] or value != value:
                    out[row] = value

    def seed(self, int64_t rows, int64_t ns):
        """A point of a curve measured beforehand: what a run of so many rows takes."""
        lock_acquire(self.lock)
        cost_seed(&self.cost, rows, ns)
        lock_release(self.lock)


cdef inline int64_t round_up(int64_t size) noexcept nogil:
    return (size + 63) & ~63


cdef inline float number(const uint8_t* data, Datatype code, int64_t index) noexcept nogil:
    """One value of an array, as a float32."""
    cdef uint64_t bits = 0
    if code == DT_FP32:
        return (<const float*>data)[index]
    memcpy(&bits, data + index * item_size(code), <size_t>item_size(code))
    return as_float(code, bits)


cdef Slice slice_of(bytes text):
    return Slice(<const uint8_t*><const char*>text, <size_t>len(text))
