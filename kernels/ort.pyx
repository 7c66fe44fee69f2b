"""One loaded ONNX graph, run by ONNX Runtime's C API without the GIL.

The library is the one in the `onnxruntime` package, opened at run time without importing that package. Rules: a graph
comes as bytes, never as a path; there is one environment for the process, made with the first session and never freed;
what ONNX Runtime gives (statuses, values, descriptions) is given back on every path; nothing is reported to anybody.

Beside the model a run costs about 1 microsecond by `run_rows`, which reads and gives memory in place, and 3 by `run`,
which copies results to arrays of their own.
"""

cimport cython
from cpython.buffer cimport (
    PyBUF_ND, PyBUF_SIMPLE, PyBUF_WRITABLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from penstock.kernels._ort cimport (
    ort_allocator, ort_count, ort_cpu, ort_data, ort_dims, ort_element, ort_elements, ort_free, ort_inter_threads,
    ort_intra_threads, ort_message, ort_mute, ort_n_dims, ort_name, ort_new_env, ort_new_options, ort_new_session,
    ort_new_tensor, ort_new_texts, ort_open, ort_refuse, ort_release_options, ort_release_session, ort_release_shape,
    ort_release_status, ort_release_type, ort_release_value, ort_run, ort_setting, ort_severity, ort_shape, ort_status,
    ort_tensor_type, ort_text_room, ort_texts, ort_texts_size, ort_type, ort_version,
)

from importlib.util import find_spec
from pathlib import Path

import numpy as np

cdef extern from *:
    """
    #include <malloc.h>
    #ifdef __GLIBC__
    static void trim(void) { malloc_trim(0); } /* or a forest's graph, freed, stays with the process: 800 MB of 1 GB */
    #else
    static void trim(void) {}
    #endif
    """
    void trim() nogil

cdef enum:
    TEXTS = 8                    # the element type of strings
    SILENT = 4                   # below which ONNX Runtime writes to stderr, and waits for whoever reads that
    MAX_ENDS = 1024              # inputs, and outputs, of a graph

# numpy's names of ONNX Runtime's element types; numpy has no bfloat16, so that travels as its bits.
_DTYPES = {
    1: np.dtype("f4"), 2: np.dtype("u1"), 3: np.dtype("i1"), 4: np.dtype("u2"), 5: np.dtype("i2"), 6: np.dtype("i4"),
    7: np.dtype("i8"), TEXTS: np.dtype("O"), 9: np.dtype("?"), 10: np.dtype("f2"), 11: np.dtype("f8"),
    12: np.dtype("u4"), 13: np.dtype("u8"), 16: np.dtype("u2"),
}

cdef void* environment = NULL
cdef void* allocator = NULL
cdef void* cpu = NULL


class OrtError(Exception):
    """What ONNX Runtime says of a graph or a run, or why there is no ONNX Runtime."""


def library():
    """The shared library of the installed onnxruntime package.

    Raises:
        OrtError: there is none.
    """
    spec = find_spec("onnxruntime")
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    found = [path for folder in folders for path in Path(folder, "capi").glob("libonnxruntime.so*")]
    if not found:
        raise OrtError("there is no libonnxruntime.so in a package onnxruntime: pip install onnxruntime")
    return max(found)


def version():
    """The version of ONNX Runtime.

    Raises:
        OrtError: it cannot be loaded.
    """
    open_library()
    return ort_version.decode()


cdef int open_library() except -1:
    """Open the library and make the one environment, if that was not done yet. The GIL is held throughout."""
    global environment
    cdef const char* why
    if environment != NULL:
        return 0
    path = library()
    encoded = str(path).encode()
    why = ort_open(PyBytes_AS_STRING(encoded))
    if why != NULL:
        raise OrtError(f"{path} cannot be used: {why.decode('utf-8', 'replace')}")
    check(ort_allocator(&allocator))
    check(ort_cpu(&cpu))
    check(ort_new_env(&environment))
    check(ort_mute(environment))
    return 0


cdef int check(ort_status status) except -1:
    """Raise what a status says, and release it."""
    if status == NULL:
        return 0
    text = ort_message(status).decode("utf-8", "replace")
    ort_release_status(status)
    raise OrtError(text)


cdef bint succeeded(ort_status status) noexcept nogil:
    """Whether a status is none; one that says what went wrong is released unread."""
    if status != NULL:
        ort_release_status(status)
    return status == NULL


@cython.final
cdef class Session:
    """A graph ready to run. Safe to use from many threads.

    Args:
        onnx: the model's bytes.
        outputs: names of those to compute, in order; None for all of them.
        threads: ONNX Runtime threads of one run.
    """

    def __cinit__(self, bytes onnx not None, outputs=None, *, int threads=1):
        open_library()
        self.load(onnx, threads)
        given, produced = self.ends(0), self.ends(1)
        names = [name for name, _ in produced]
        asked = names if outputs is None else list(outputs)
        for name in asked:
            if name not in names:
                raise OrtError(f"the graph has no output {name!r}; it has {', '.join(names)}")
        self.choose(given, [produced[names.index(name)] for name in asked])

    def __dealloc__(self):
        if self.session != NULL:
            ort_release_session(self.session)
        free(self.types)
        free(self.names)

    def release(self):
        """Give back the graph, and what memory is free to the operating system; names and types stay."""
        with nogil:
            if self.session != NULL:
                ort_release_session(self.session)
            self.session = NULL
            trim()

    cdef int load(self, bytes onnx, int threads) except -1:
        cdef const char* data = PyBytes_AS_STRING(onnx)
        cdef size_t size = <size_t>PyBytes_GET_SIZE(onnx)
        cdef void* options = NULL
        cdef ort_status status
        check(ort_new_options(&options))
        try:
            check(ort_intra_threads(options, threads))
            check(ort_inter_threads(options, 1))
            check(ort_severity(options, SILENT))
            check(ort_setting(options, "session.intra_op.allow_spinning", "0"))
            with nogil:
                status = ort_new_session(environment, data, size, options, &self.session)
            check(status)
        finally:
            ort_release_options(options)
        return 0

    cdef list ends(self, int side):
        """(name, element type) of every input (0) or output (1); the type is 0 where it is no tensor."""
        cdef size_t n, i
        cdef char* name
        cdef void* info
        cdef const void* tensor
        cdef int element
        found = []
        check(ort_count(self.session, side, &n))
        for i in range(n):
            check(ort_name(self.session, side, i, allocator, &name))
            try:
                text = name.decode()
            finally:
                succeeded(ort_free(allocator, name))
            check(ort_type(self.session, side, i, &info))
            try:
                tensor, element = NULL, 0
                check(ort_tensor_type(info, &tensor))
                if tensor != NULL:
                    check(ort_element(tensor, &element))
            finally:
                ort_release_type(info)
            found.append((text, element))
        return found

    cdef int choose(self, list given, list asked) except -1:
        """Keep the names and types of the inputs and of the outputs that are computed."""
        cdef int i
        if len(given) > MAX_ENDS or not 1 <= len(asked) <= MAX_ENDS:
            raise OrtError(f"a graph of {len(given)} inputs and {len(asked)} outputs; 1 to {MAX_ENDS} are served")
        self.n_inputs, self.n_outputs = <int>len(given), <int>len(asked)
        self.inputs, self.outputs = tuple(name for name, _ in given), tuple(name for name, _ in asked)
        self.types = <int*>calloc(<size_t>(self.n_inputs + self.n_outputs), sizeof(int))
        self.names = <const char**>calloc(<size_t>(self.n_inputs + self.n_outputs), sizeof(char*))
        if self.types == NULL or self.names == NULL:
            raise MemoryError
        self.keep = []
        for i in range(self.n_inputs):
            self.set_end(i, given[i], "input")
        for i in range(self.n_outputs):
            self.set_end(self.n_inputs + i, asked[i], "output")
        return 0

    cdef int set_end(self, int i, end, what) except -1:
        name, element = end
        if element not in _DTYPES:
            raise OrtError(f"{what} {name!r} is no tensor of numbers or texts that can be served")
        encoded = name.encode()
        self.keep.append(encoded)
        self.names[i] = PyBytes_AS_STRING(encoded)
        self.types[i] = element
        return 0

    def dtype(self, str name not None):
        """The numpy type of an input or output; uint16 for bfloat16, object for texts."""
        names = self.inputs + self.outputs
        if name not in names:
            raise KeyError(name)
        return _DTYPES[self.types[<int>names.index(name)]]

    def run(self, feeds):
        """Outputs by name for inputs by name, without the GIL while the graph runs."""
        cdef void* given[MAX_ENDS]
        cdef void* got[MAX_ENDS]
        cdef ort_status status
        cdef int i
        if feeds.keys() != set(self.inputs):
            raise OrtError(f"the graph reads {', '.join(self.inputs) or 'nothing'}; given were {', '.join(feeds)}")
        if self.session == NULL:
            raise OrtError("the graph was given back")
        memset(given, 0, self.n_inputs * sizeof(void*))
        memset(got, 0, self.n_outputs * sizeof(void*))
        held = []
        try:
            for i in range(self.n_inputs):
                given[i] = self.feed(i, feeds[self.inputs[i]], held)
            with nogil:
                status = ort_run(self.session, self.names, given, <size_t>self.n_inputs, self.names + self.n_inputs,
                                 <size_t>self.n_outputs, got)
            check(status)
            return {self.outputs[i]: self.fetch(i, got[i]) for i in range(self.n_outputs)}
        finally:
            release_values(given, self.n_inputs)
            release_values(got, self.n_outputs)

    cdef void* feed(self, int i, array, list held) except NULL:
        """A value over the memory of an array, which `held` keeps."""
        cdef Py_buffer view
        cdef int64_t[MAX_RANK] dims
        cdef void* value = NULL
        cdef void* data
        cdef ort_status status
        cdef int d
        if self.types[i] == TEXTS:
            return self.feed_texts(np.asarray(array, object, order="C"))
        array = np.asarray(array, order="C")
        wanted = _DTYPES[self.types[i]]
        if array.dtype != wanted or array.ndim > MAX_RANK:
            raise OrtError(f"input {self.inputs[i]!r} is {array.dtype} {list(array.shape)}; the graph reads {wanted}")
        held.append(array)
        PyObject_GetBuffer(array, &view, PyBUF_ND)
        for d in range(view.ndim):
            dims[d] = view.shape[d]
        # ONNX Runtime takes no NULL, not even for no bytes.
        data = view.buf if view.len else <void*>dims
        status = ort_new_tensor(cpu, data, <size_t>view.len, dims, <size_t>view.ndim, self.types[i], &value)
        PyBuffer_Release(&view)
        check(status)
        return value

    cdef void* feed_texts(self, array) except NULL:
        """A value of its own memory with an array of str or bytes."""
        cdef int64_t[MAX_RANK] dims
        cdef void* value = NULL
        cdef char* room
        cdef size_t i = 0
        if array.ndim > MAX_RANK:
            raise OrtError(f"an input of texts has {array.ndim} dimensions; at most {MAX_RANK} are served")
        for d in range(array.ndim):
            dims[<int>d] = array.shape[d]
        encoded = [text if isinstance(text, bytes) else str(text).encode() for text in array.reshape(-1)]
        check(ort_new_texts(allocator, dims, <size_t>array.ndim, &value))
        try:
            for text in encoded:
                check(ort_text_room(value, i, <size_t>PyBytes_GET_SIZE(text), &room))
                memcpy(room, PyBytes_AS_STRING(text), <size_t>PyBytes_GET_SIZE(text))
                i += 1
        except OrtError:
            ort_release_value(value)
            raise
        return value

    cdef object fetch(self, int i, void* value):
        """An array of its own memory with what a run gave."""
        cdef Tensor tensor
        cdef Py_buffer view
        cdef size_t elements
        check(describe(value, &tensor, &elements))
        shape = tuple([tensor.dims[d] for d in range(tensor.n_dims)])
        if self.types[self.n_inputs + i] == TEXTS:
            return texts_of(value, elements).reshape(shape)
        check(ort_data(value, &tensor.data))
        array = np.empty(shape, _DTYPES[self.types[self.n_inputs + i]])
        PyObject_GetBuffer(array, &view, PyBUF_SIMPLE | PyBUF_WRITABLE)
        if view.len:
            memcpy(view.buf, tensor.data, <size_t>view.len)
        PyBuffer_Release(&view)
        return array

    cdef bint run_rows(self, const Tensor* feeds, Tensor* results) noexcept nogil:
        """Run on inputs in the order of the graph, numbers only. False: it failed, and there is nothing to release.

        `results`, one for each output, are the caller's until it gives them to `release`; their memory is ONNX
        Runtime's, or that of an input.
        """
        cdef void* values[MAX_RANK]
        cdef void** given = values
        cdef bint done
        if self.session == NULL:
            return False
        if self.n_inputs > MAX_RANK:
            given = <void**>malloc(<size_t>self.n_inputs * sizeof(void*))
            if given == NULL:
                return False
        memset(given, 0, <size_t>self.n_inputs * sizeof(void*))
        memset(results, 0, <size_t>self.n_outputs * sizeof(Tensor))
        done = self.run_values(feeds, given, results)
        release_values(given, self.n_inputs)
        if given != values:
            free(given)
        if not done:
            release(results, self.n_outputs)
        return done

    cdef bint run_values(self, const Tensor* feeds, void** values, Tensor* results) noexcept nogil:
        cdef void* got[MAX_ENDS]
        cdef size_t elements
        cdef bint done
        cdef int i
        for i in range(self.n_inputs):
            if not succeeded(ort_new_tensor(cpu, feeds[i].data, feeds[i].size, feeds[i].dims, <size_t>feeds[i].n_dims,
                                            self.types[i], &values[i])):
                return False
        memset(got, 0, <size_t>self.n_outputs * sizeof(void*))
        done = succeeded(ort_run(self.session, self.names, values, <size_t>self.n_inputs, self.names + self.n_inputs,
                                 <size_t>self.n_outputs, got))
        for i in range(self.n_outputs):
            results[i].value = got[i]
            if done:
                done = (succeeded(describe(got[i], &results[i], &elements))
                        and succeeded(ort_data(got[i], &results[i].data)))
        return done


cdef ort_status describe(void* value, Tensor* tensor, size_t* elements) noexcept nogil:
    """Find a value's shape; its data is left to others."""
    cdef void* info = NULL
    cdef size_t n = 0
    cdef ort_status status = ort_shape(value, &info)
    if status != NULL:
        return status
    status = ort_n_dims(info, &n)
    if status == NULL and n > MAX_RANK:
        status = ort_refuse(b"an output has more dimensions than are served")
    if status == NULL:
        tensor.n_dims = <int>n
        status = ort_dims(info, tensor.dims, n)
    if status == NULL:
        status = ort_elements(info, elements)
    ort_release_shape(info)
    return status


cdef object texts_of(void* value, size_t elements):
    """The texts of a value as a flat array of str."""
    cdef size_t size, i
    cdef size_t* offsets = NULL
    array = np.empty(elements, object)
    if elements == 0:
        return array
    check(ort_texts_size(value, &size))
    packed = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>size)
    offsets = <size_t*>malloc((elements + 1) * sizeof(size_t))
    if offsets == NULL:
        raise MemoryError
    try:
        check(ort_texts(value, PyBytes_AS_STRING(packed), size, offsets, elements))
        offsets[elements] = size
        for i in range(elements):
            array[i] = packed[offsets[i]:offsets[i + 1]].decode()
    finally:
        free(offsets)
    return array


cdef void release_values(void** values, int n) noexcept nogil:
    cdef int i
    for i in range(n):
        if values[i] != NULL:
            ort_release_value(values[i])


cdef void release(Tensor* results, int n) noexcept nogil:
    """Give back what a run gave."""
    cdef int i
    for i in range(n):
        if results[i].value != NULL:
            ort_release_value(results[i].value)
            results[i].value = NULL
