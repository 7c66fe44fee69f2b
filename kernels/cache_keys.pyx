"""What makes two requests the same: a key as bytes, its hash, and whether a request is the one of a key.

A key is everything that can change the answer: which outputs are wanted, and of every input in the order sent its place
in the plan, datatype, form, shape and values. Keys leave the process (`server/shared.py`), so whoever changes what they
look like, or the numbers of datatypes and slots in them, raises `FORMAT` in `server/sealed.py`.
"""

from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcmp

from penstock.kernels._hashing cimport absorb, finish
from penstock.kernels._protobuf cimport Slice, Writer, put
from penstock.kernels._wire cimport MAX_DIMS, InputRef, Request

cdef enum:
    HEAD_SIZE = 16
    FORM_WORDS = 2 + MAX_DIMS


cdef inline void put_head(const Request* request, uint64_t* words) noexcept nogil:
    """Outputs wanted, as bits, for their order changes nothing; and how many inputs follow."""
    words[0] = request.wanted
    words[1] = <uint64_t>request.n_inputs


cdef inline size_t put_form(const InputRef* ref, uint64_t* words) noexcept nogil:
    """Everything about an input but its values; the bytes written. It says how many bytes of values follow."""
    cdef int i
    words[0] = (<uint64_t>ref.slot | <uint64_t>ref.code << 16 | <uint64_t>ref.is_raw << 24
                | <uint64_t>ref.n_dims << 32)
    words[1] = values_of(ref).size
    for i in range(ref.n_dims):
        words[2 + i] = <uint64_t>ref.dims[i]
    return 16 + 8 * <size_t>ref.n_dims


cdef inline const Slice* values_of(const InputRef* ref) noexcept nogil:
    return &ref.data if ref.is_raw else &ref.contents


cdef size_t key_size(const Request* request) noexcept nogil:
    cdef size_t size = HEAD_SIZE
    cdef int i
    for i in range(request.n_inputs):
        size += 16 + 8 * <size_t>request.inputs[i].n_dims + values_of(&request.inputs[i]).size
    return size


cdef uint64_t hash_key(const Secrets* secrets, const Request* request) noexcept nogil:
    """Never 0."""
    cdef uint64_t[FORM_WORDS] words
    cdef uint64_t state
    cdef const Slice* values
    cdef size_t size
    cdef int i
    put_head(request, words)
    state = absorb(secrets, 0, <const uint8_t*>words, HEAD_SIZE)
    for i in range(request.n_inputs):
        size = put_form(&request.inputs[i], words)
        state = absorb(secrets, state, <const uint8_t*>words, size)
        values = values_of(&request.inputs[i])
        state = absorb(secrets, state, values.data, values.size)
    state = finish(secrets, state)
    return state if state else 1


cdef void write_key(const Request* request, uint8_t* out) noexcept nogil:
    cdef uint64_t[FORM_WORDS] words
    cdef Writer writer
    cdef const Slice* values
    cdef size_t size
    cdef int i
    writer.at = out
    writer.size = 0
    put_head(request, words)
    put(&writer, words, HEAD_SIZE)
    for i in range(request.n_inputs):
        size = put_form(&request.inputs[i], words)
        put(&writer, words, size)
        values = values_of(&request.inputs[i])
        put(&writer, values.data, values.size)


cdef bint same_key(const Request* request, const uint8_t* key, size_t size) noexcept nogil:
    """Whether `key` is what `write_key` would write. A form equal to the key's says that as many values follow there,
    and `size` bounds what a key of as many inputs may be."""
    cdef uint64_t[FORM_WORDS] words
    cdef const Slice* values
    cdef size_t form
    cdef int i
    if size != key_size(request):
        return False
    put_head(request, words)
    if memcmp(words, key, HEAD_SIZE) != 0:
        return False
    key += HEAD_SIZE
    for i in range(request.n_inputs):
        form = put_form(&request.inputs[i], words)
        if memcmp(words, key, form) != 0:
            return False
        key += form
        values = values_of(&request.inputs[i])
        if values.size and memcmp(values.data, key, values.size) != 0:
            return False
        key += values.size
    return True
