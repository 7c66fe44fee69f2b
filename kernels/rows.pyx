"""Packed feature rows: all features of one entity in one view as one string of bytes.

    offset  0  u8   format (1)              offset  8  i64  event time, ms since 1970
            1  u8   flags (0)                      16  u32  CRC-32 of key || row, this field taken as zero
            2  u16  number of columns              20  u32  reserved (0)
            4  u32  schema id                      24  null bitmap (bit i set = column i is null), values, texts

Everything is little-endian and unaligned; a value has its column's own dtype, and its place even if null: a category is
the index of its word (i32, -1 for a word that is not in the vocabulary), a vector its float32 numbers, a string the
length of its text (u16). The texts follow all values, in the order of their columns, so all else has a fixed place.
The sum covers the store's key, so a row that ended up under another entity's key is refused like a damaged one.

What comes from the store is checked before it is used: every read goes through the cursor, and a row that is not right
in every field becomes a status, never an exception. Decoded are the numbers: a vector of n gives n, a string none.
Cost goal: 0.2 µs for a row of 30 float32 columns, half of it the checksum.
"""

import re

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_Check, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.math cimport NAN, isnan
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from penstock.kernels._cursor cimport Cursor, cursor_over, left, read_bytes


cdef enum:
    FORMAT = 1
    MAX_COLUMNS = 0xFFFF
    MAX_ROW_SIZE = 24 + 8192 + 8 * 0xFFFF   # nothing longer can be a row: refused before it is summed
    MAX_LENGTH = 0xFFFF                     # bytes of one string

cdef enum RowStatus:
    OK = 0
    ABSENT = 1
    CORRUPT = 2
    SCHEMA = 3

ROW_OK = OK
ROW_ABSENT = ABSENT
ROW_CORRUPT = CORRUPT
ROW_SCHEMA = SCHEMA

cdef enum Kind:
    FLOAT32 = 0
    FLOAT64 = 1
    INT64 = 2
    INT32 = 3
    BOOL = 4
    CATEGORY = 5
    STRING = 6
    VECTOR = 7

cdef dict KINDS = {
    "float32": FLOAT32, "float64": FLOAT64, "int64": INT64, "int32": INT32, "bool": BOOL,
    "category": CATEGORY, "string": STRING, "vector": VECTOR,
}
cdef int[8] WIDTHS = [4, 8, 8, 4, 1, 4, 2, 4]   # bytes of one value, of a string's length, of one number of a vector

cdef struct Header:          # as stored: the natural alignment of these fields leaves no holes
    uint8_t format
    uint8_t flags
    uint16_t n_columns
    uint32_t schema_id
    int64_t event_time
    uint32_t crc
    uint32_t reserved

cdef struct Field:           # one column
    int kind
    int32_t size             # numbers of a vector, words of a category, else 0
    float unknown            # what a category's index outside its vocabulary is
    Py_ssize_t offset        # of its value in the row
    Py_ssize_t first         # of its numbers among those decoded
    Py_ssize_t count         # of those

cdef struct Run:             # neighbouring numbers of one dtype, decoded in one loop
    int kind                 # never VECTOR, whose numbers are FLOAT32
    int32_t size             # words of a category
    float unknown
    Py_ssize_t first         # number
    Py_ssize_t count         # numbers, or lengths of strings, which give none

cdef struct Packed:          # one row as the store gave it, and the key it was asked by
    const uint8_t* row       # NULL: absent
    size_t size
    const uint8_t* key
    size_t key_size

ctypedef fused Value:
    float
    double
    int64_t
    int32_t
    uint8_t


# CRC-32 -----------------------------------------------------------------------------------------------------------

cdef uint32_t[8][256] TABLES   # slicing by 8: Kounavis and Berry, 2005; polynomial of IEEE 802.3, reflected


cdef void fill_tables() noexcept nogil:
    cdef uint32_t i, crc
    cdef int _bit, k
    for i in range(256):
        crc = i
        for _bit in range(8):
            crc = (crc >> 1) ^ (0xEDB88320u if crc & 1 else 0u)
        TABLES[0][i] = crc
    for k in range(1, 8):
        for i in range(256):
            TABLES[k][i] = (TABLES[k - 1][i] >> 8) ^ TABLES[0][TABLES[k - 1][i] & 0xFF]


cdef inline uint32_t crc_over(uint32_t crc, const uint8_t* data, size_t size) noexcept nogil:
    """The running (inverted) sum `crc` after `size` more bytes."""
    cdef uint64_t word
    while size >= 8:
        memcpy(&word, data, 8)
        word ^= crc
        crc = (
            TABLES[7][word & 0xFF] ^ TABLES[6][(word >> 8) & 0xFF]
            ^ TABLES[5][(word >> 16) & 0xFF] ^ TABLES[4][(word >> 24) & 0xFF]
            ^ TABLES[3][(word >> 32) & 0xFF] ^ TABLES[2][(word >> 40) & 0xFF]
            ^ TABLES[1][(word >> 48) & 0xFF] ^ TABLES[0][word >> 56]
        )
        data += 8
        size -= 8
    while size > 0:
        crc = (crc >> 8) ^ TABLES[0][(crc ^ data[0]) & 0xFF]
        data += 1
        size -= 1
    return crc


cdef inline uint32_t crc_of_row(const Packed* packed) noexcept nogil:
    """The sum over key and row with its own field zeroed; the row has at least a header."""
    cdef Header header
    memcpy(&header, packed.row, sizeof(Header))
    header.crc = 0
    cdef uint32_t crc = crc_over(0xFFFFFFFFu, packed.key, packed.key_size)
    crc = crc_over(crc, <const uint8_t*>&header, sizeof(Header))
    return crc_over(crc, packed.row + sizeof(Header), packed.size - sizeof(Header)) ^ 0xFFFFFFFFu


fill_tables()


def crc32(const uint8_t[::1] data not None, unsigned int value=0):
    cdef size_t size = <size_t>data.shape[0]
    if size == 0:
        return value
    return crc_over(value ^ 0xFFFFFFFFu, &data[0], size) ^ 0xFFFFFFFFu


# Decoding one row -------------------------------------------------------------------------------------------------

cdef inline void fill_nan(float* out, Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t j
    for j in range(count):
        out[j] = NAN


cdef inline void widen(const uint8_t* at, Py_ssize_t count, float* out, Value sample) noexcept nogil:
    """`count` unaligned values of the type of `sample`, as float32."""
    cdef Py_ssize_t j
    cdef Value value
    for j in range(count):
        memcpy(&value, at + j * <Py_ssize_t>sizeof(Value), sizeof(Value))
        if Value is uint8_t:
            out[j] = <float>(value != 0)
        else:
            out[j] = <float>value


cdef inline void take_indices(const uint8_t* at, const Run* run, float* out) noexcept nogil:
    """Indices of words, and what stands for those outside the vocabulary."""
    cdef Py_ssize_t j
    cdef int32_t index
    for j in range(run.count):
        memcpy(&index, at + j * 4, 4)
        out[run.first + j] = <float>index if 0 <= index < run.size else run.unknown


cdef inline uint64_t sum_lengths(const uint8_t* at, Py_ssize_t count) noexcept nogil:
    cdef Py_ssize_t j
    cdef uint16_t length
    cdef uint64_t total = 0
    for j in range(count):
        memcpy(&length, at + j * 2, 2)
        total += length
    return total


cdef inline bint read_run(Cursor* cursor, const Run* run, float* out, uint64_t* text) noexcept nogil:
    """Decode one run, and add what its strings are long to `text`."""
    cdef const uint8_t* at = NULL
    if not read_bytes(cursor, <uint64_t>(run.count * WIDTHS[run.kind]), &at):
        return False
    if run.kind == FLOAT32:
        memcpy(out + run.first, at, <size_t>run.count * 4)
    elif run.kind == FLOAT64:
        widen(at, run.count, out + run.first, <double>0)
    elif run.kind == INT64:
        widen(at, run.count, out + run.first, <int64_t>0)
    elif run.kind == INT32:
        widen(at, run.count, out + run.first, <int32_t>0)
    elif run.kind == BOOL:
        widen(at, run.count, out + run.first, <uint8_t>0)
    elif run.kind == CATEGORY:
        take_indices(at, run, out)
    else:
        text[0] += sum_lengths(at, run.count)
    return True


cdef inline void apply_nulls(
    const uint8_t* bitmap, const Field* fields, Py_ssize_t n_columns, float* out
) noexcept nogil:
    cdef Py_ssize_t byte, j
    for byte in range((n_columns + 7) >> 3):
        if bitmap[byte] != 0:   # most rows have no null at all
            for j in range(byte * 8, min(byte * 8 + 8, n_columns)):
                if bitmap[byte] >> (j & 7) & 1:
                    fill_nan(out + fields[j].first, fields[j].count)


cdef inline bint read_header(const Packed* packed, Cursor* cursor, Header* header) noexcept nogil:
    """Take the header of a row of ours that arrived whole; False for anything else."""
    cdef const uint8_t* at = NULL
    if packed.size > MAX_ROW_SIZE or not read_bytes(cursor, sizeof(Header), &at):
        return False
    memcpy(header, at, sizeof(Header))
    if header.format != FORMAT or header.flags != 0 or header.reserved != 0:
        return False
    return header.crc == crc_of_row(packed)


# Encoding ---------------------------------------------------------------------------------------------------------

cdef inline void set_null(uint8_t* row, Py_ssize_t j) noexcept nogil:
    row[<Py_ssize_t>sizeof(Header) + (j >> 3)] |= <uint8_t>(1 << (j & 7))


cdef void write_column(uint8_t** rows, Py_ssize_t offset, Py_ssize_t j, const Value[:] values) noexcept nogil:
    """Put value i at `offset` of row i; NaN becomes a null and leaves zeros."""
    cdef Py_ssize_t i
    cdef Value value
    for i in range(values.shape[0]):
        value = values[i]
        if Value is float or Value is double:
            if isnan(value):
                set_null(rows[i], j)
                continue
        memcpy(rows[i] + offset, &value, sizeof(Value))


cdef void write_nulls(
    uint8_t** rows, Py_ssize_t offset, size_t width, Py_ssize_t j, const uint8_t[:] mask
) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(mask.shape[0]):
        if mask[i]:
            set_null(rows[i], j)
            memset(rows[i] + offset, 0, width)


cdef void write_vectors(uint8_t** rows, const Field* field, const float[:, :] values) noexcept nogil:
    cdef Py_ssize_t i, k
    for i in range(values.shape[0]):
        for k in range(values.shape[1]):
            memcpy(rows[i] + field.offset + 4 * k, &values[i, k], 4)


cdef int write_texts(list rows, Py_ssize_t* ends, const Field* field, object texts, object mask) except -1:
    """Each row's text behind those that it has already, and its length in its place; a null has none."""
    cdef Py_ssize_t i
    cdef uint16_t length
    cdef uint8_t* row
    for i in range(len(rows)):
        length = 0 if mask is not None and mask[i] else <uint16_t>PyBytes_GET_SIZE(texts[i])
        row = <uint8_t*>PyBytes_AS_STRING(rows[i])
        memcpy(row + field.offset, &length, 2)
        memcpy(row + ends[i], PyBytes_AS_STRING(texts[i]), length)
        ends[i] += length
    return 0


cdef int encode_column(uint8_t** rows, const Field* field, Py_ssize_t j, object column) except -1:
    cdef Py_ssize_t offset = field.offset
    cdef int kind = field.kind
    cdef const float[:, :] vectors
    cdef const float[:] float32s
    cdef const double[:] float64s
    cdef const int64_t[:] int64s
    cdef const int32_t[:] int32s
    cdef const uint8_t[:] bools
    if kind == FLOAT32:
        float32s = column
        with nogil:
            write_column(rows, offset, j, float32s)
    elif kind == FLOAT64:
        float64s = column
        with nogil:
            write_column(rows, offset, j, float64s)
    elif kind == INT64:
        int64s = column
        with nogil:
            write_column(rows, offset, j, int64s)
    elif kind == INT32 or kind == CATEGORY:
        int32s = column
        with nogil:
            write_column(rows, offset, j, int32s)
    elif kind == VECTOR:
        vectors = column
        with nogil:
            write_vectors(rows, field, vectors)
    elif kind == BOOL:
        bools = column.view("uint8")   # a buffer of '?' has no C type of its own
        with nogil:
            write_column(rows, offset, j, bools)
    return 0


cdef inline Packed point_at(bytes key, bytes row) except *:
    """Pointers into objects that the caller keeps alive."""
    cdef Packed packed
    if key is None:
        raise TypeError("a key is None; keys are bytes")
    packed.key = <const uint8_t*>PyBytes_AS_STRING(key)
    packed.key_size = <size_t>PyBytes_GET_SIZE(key)
    packed.row = NULL
    packed.size = 0
    if row is not None:
        packed.row = <const uint8_t*>PyBytes_AS_STRING(row)
        packed.size = <size_t>PyBytes_GET_SIZE(row)
    return packed


cdef void* allocate(Py_ssize_t count, size_t size) except NULL:
    cdef void* memory = malloc(<size_t>(count + 1) * size)   # one more, as malloc(0) may give NULL
    if memory == NULL:
        raise MemoryError
    return memory


cdef object DTYPE = re.compile(r"([a-z0-9]+)(?:\[([0-9]{1,9})\](\?)?)?")


cdef Field parse_field(object dtype) except *:
    """Kind and size of `dtype`; its place is still to be given."""
    cdef Field field
    found = DTYPE.fullmatch(dtype) if isinstance(dtype, str) else None
    if found is None or found[1] not in KINDS:
        raise ValueError(f"dtype {dtype!r} cannot be stored in a row; it is one of {', '.join(KINDS)}")
    field.kind = KINDS[found[1]]
    field.size = int(found[2] or 0)
    field.unknown = NAN if found[3] else -1
    field.offset = field.first = 0
    field.count = field.size if field.kind == VECTOR else field.kind != STRING
    sized = field.kind == VECTOR or field.kind == CATEGORY
    if sized != (found[2] is not None) or (sized and field.size < 1) or (found[3] and field.kind != CATEGORY):
        raise ValueError(f"dtype {dtype!r} cannot be stored in a row; sized are vector[N], category[N], category[N]?")
    return field


@cython.final
cdef class RowLayout:
    cdef readonly unsigned int schema_id
    cdef readonly Py_ssize_t n_columns
    cdef readonly Py_ssize_t width
    cdef readonly Py_ssize_t row_size
    cdef readonly tuple dtypes
    cdef Field* fields
    cdef Run* runs
    cdef Py_ssize_t n_runs

    def __cinit__(self, unsigned int schema_id, dtypes):
        self.schema_id = schema_id
        self.dtypes = tuple(dtypes)
        self.n_columns = len(self.dtypes)
        if not 1 <= self.n_columns <= MAX_COLUMNS:
            raise ValueError(f"a row has 1 to {MAX_COLUMNS} columns, not {self.n_columns}")
        self.fields = <Field*>allocate(self.n_columns, sizeof(Field))
        self.runs = <Run*>allocate(self.n_columns, sizeof(Run))
        self.row_size = <Py_ssize_t>sizeof(Header) + ((self.n_columns + 7) >> 3)
        for j in range(self.n_columns):
            self.fields[j] = parse_field(self.dtypes[j])
            self.place(&self.fields[j])
        if self.row_size > MAX_ROW_SIZE:
            raise ValueError(f"a row has at most {MAX_ROW_SIZE} bytes, not {self.row_size}")

    def __dealloc__(self):
        free(self.fields)
        free(self.runs)

    cdef void place(self, Field* field) noexcept:
        """Put a column behind the others, and its numbers into a run."""
        cdef int kind = FLOAT32 if field.kind == VECTOR else field.kind
        cdef Py_ssize_t values = field.size if field.kind == VECTOR else 1
        cdef Run* last = &self.runs[self.n_runs - 1] if self.n_runs else NULL
        field.offset = self.row_size
        field.first = self.width
        self.row_size += values * WIDTHS[kind]
        self.width += field.count
        if last != NULL and last.kind == kind and kind != CATEGORY:
            last.count += values
            return
        self.runs[self.n_runs] = Run(kind, field.size, field.unknown, field.first, values)
        self.n_runs += 1

    def pack(self, keys, columns, const int64_t[:] event_times not None, nulls):
        cdef Py_ssize_t n = event_times.shape[0]
        cdef Py_ssize_t i
        cdef tuple masks = tuple([None if mask is None else mask.view("uint8") for mask in nulls])
        cdef tuple arrays = tuple(columns)
        cdef tuple held_keys = tuple(keys)
        self.check_columns(arrays, masks, n)
        if len(held_keys) != n:
            raise ValueError(f"{len(held_keys)} keys for {n} event times")
        cdef list rows = [PyBytes_FromStringAndSize(NULL, size) for size in self.sizes(arrays, masks, n)]
        cdef uint8_t** at = <uint8_t**>allocate(n, sizeof(uint8_t*))
        try:
            for i in range(n):
                at[i] = <uint8_t*>PyBytes_AS_STRING(rows[i])
                self.begin(at[i], event_times[i])
            self.encode(at, arrays, masks)
            self.encode_texts(rows, arrays, masks)
            for i in range(n):
                self.seal(held_keys[i], rows[i])
        finally:
            free(at)
        return rows

    cdef int check_columns(self, tuple columns, tuple masks, Py_ssize_t n) except -1:
        if len(columns) != self.n_columns or len(masks) != self.n_columns:
            raise ValueError(f"{len(columns)} columns and {len(masks)} null masks for {self.n_columns} columns")
        for j in range(self.n_columns):
            if self.fields[j].kind == STRING:
                self.check_texts(j, columns[j], n)
            else:
                self.check_array(j, columns[j], n)
            if masks[j] is not None and masks[j].shape != (n,):
                raise ValueError(f"the null mask of column {j} is {masks[j].shape}; it must be uint8 or bool ({n},)")
        return 0

    cdef int check_array(self, Py_ssize_t j, object column, Py_ssize_t n) except -1:
        cdef Field* field = &self.fields[j]
        cdef tuple shape = (n, field.size)[: 2 if field.kind == VECTOR else 1]
        dtype = {VECTOR: "float32", CATEGORY: "int32"}.get(field.kind, self.dtypes[j])
        if column.shape != shape or column.dtype.name != dtype:
            raise ValueError(f"column {j} is {column.dtype.name} {column.shape}; it must be {dtype} {shape}")
        return 0

    cdef int check_texts(self, Py_ssize_t j, object column, Py_ssize_t n) except -1:
        if type(column) is not list or len(column) != n:
            raise ValueError(f"column {j} is not a list of {n} bytes, which a string column must be")
        for text in column:
            if not PyBytes_Check(text) or len(text) > MAX_LENGTH:
                raise ValueError(f"column {j} holds what is not bytes, or more than {MAX_LENGTH} of them")
        return 0

    cdef list sizes(self, tuple columns, tuple masks, Py_ssize_t n):
        """Bytes of each row, its texts included."""
        cdef list sizes = [self.row_size] * n
        for j in range(self.n_columns):
            if self.fields[j].kind != STRING:
                continue
            for i in range(n):
                if masks[j] is None or not masks[j][i]:
                    sizes[i] += len(columns[j][i])
        if n and max(sizes) > MAX_ROW_SIZE:
            raise ValueError(f"a row has at most {MAX_ROW_SIZE} bytes, not {max(sizes)}")
        return sizes

    cdef void begin(self, uint8_t* row, int64_t event_time) noexcept nogil:
        cdef Header header
        memset(row, 0, <size_t>self.row_size)
        memset(&header, 0, sizeof(Header))
        header.format = FORMAT
        header.n_columns = <uint16_t>self.n_columns
        header.schema_id = self.schema_id
        header.event_time = event_time
        memcpy(row, &header, sizeof(Header))

    cdef int encode(self, uint8_t** rows, tuple columns, tuple masks) except -1:
        cdef Py_ssize_t j
        cdef Field* field
        for j in range(self.n_columns):
            field = &self.fields[j]
            if field.kind != STRING:
                encode_column(rows, field, j, columns[j])
            if masks[j] is not None:
                write_nulls(rows, field.offset, <size_t>(WIDTHS[field.kind] * max(field.count, 1)), j, masks[j])
        return 0

    cdef int encode_texts(self, list rows, tuple columns, tuple masks) except -1:
        cdef Py_ssize_t i, j
        cdef Py_ssize_t* ends
        if not any([self.fields[j].kind == STRING for j in range(self.n_columns)]):
            return 0
        ends = <Py_ssize_t*>allocate(len(rows), sizeof(Py_ssize_t))
        try:
            for i in range(len(rows)):
                ends[i] = self.row_size
            for j in range(self.n_columns):
                if self.fields[j].kind == STRING:
                    write_texts(rows, ends, &self.fields[j], columns[j], masks[j])
        finally:
            free(ends)
        return 0

    cdef int seal(self, bytes key, bytes row) except -1:
        cdef Packed packed = point_at(key, row)
        cdef uint32_t crc = crc_of_row(&packed)
        memcpy(<uint8_t*>packed.row + 16, &crc, 4)
        return 0

    def unpack(
        self,
        keys,
        rows,
        float[:, ::1] out not None,
        int64_t[::1] event_times not None,
        uint8_t[::1] status not None,
    ):
        cdef tuple held_keys = tuple(keys)   # held here, so that nobody can free them while the GIL is released
        cdef tuple held_rows = tuple(rows)
        cdef Py_ssize_t n = len(held_rows)
        cdef Py_ssize_t i, others = 0
        if len(held_keys) != n or event_times.shape[0] != n or status.shape[0] != n:
            raise ValueError(f"{n} rows need as many keys, event times and statuses")
        if out.shape[0] != n or out.shape[1] != self.width:
            raise ValueError(f"out is ({out.shape[0]}, {out.shape[1]}); it must be ({n}, {self.width})")
        cdef float* numbers = &out[0, 0] if n and self.width else NULL
        cdef Packed* packed = <Packed*>allocate(n, sizeof(Packed))
        try:
            for i in range(n):
                packed[i] = point_at(held_keys[i], held_rows[i])
            with nogil:
                for i in range(n):
                    status[i] = self.decode(&packed[i], numbers + i * self.width, &event_times[i])
                    others += status[i] == SCHEMA
        finally:
            free(packed)
        return others

    cdef uint8_t decode(self, const Packed* packed, float* out, int64_t* event_time) noexcept nogil:
        """One row into `out`; where its status is not OK, NaN and time 0."""
        cdef Header header
        cdef Cursor cursor = cursor_over(packed.row, packed.size)
        cdef uint8_t status = OK
        if packed.row == NULL:
            status = ABSENT
        elif not read_header(packed, &cursor, &header):
            status = CORRUPT
        elif header.schema_id != self.schema_id:
            status = SCHEMA
        elif header.n_columns != self.n_columns or not self.read_values(&cursor, out):
            status = CORRUPT
        if status != OK:
            fill_nan(out, self.width)
        event_time[0] = header.event_time if status == OK else 0
        return status

    cdef bint read_values(self, Cursor* cursor, float* out) noexcept nogil:
        """Bitmap, values and texts, which must be the rest of the row to the byte."""
        cdef const uint8_t* bitmap = NULL
        cdef uint64_t text = 0
        cdef Py_ssize_t r
        if not read_bytes(cursor, <uint64_t>((self.n_columns + 7) >> 3), &bitmap):
            return False
        for r in range(self.n_runs):
            if not read_run(cursor, &self.runs[r], out, &text):
                return False
        if left(cursor) != text:
            return False
        apply_nulls(bitmap, self.fields, self.n_columns, out)
        return True
