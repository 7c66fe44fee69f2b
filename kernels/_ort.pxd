"""ONNX Runtime's C API as far as it is used, found at run time: no header and no library is needed to build.

`OrtGetApiBase()->GetApi(17)` is a table of function pointers that only ever grows, so a slot once given stays (API 17
is that of 1.17). Here stand the slots and signatures of ONNX Runtime's C API reference, each as one function. Handles
are opaque. Whatever returns `ort_status` gives NULL for success; any other is to be released by `ort_release_status`.
"""

from libc.stdint cimport int64_t

cdef extern from *:
    """
    #include <dlfcn.h>
    #include <stddef.h>
    #include <stdint.h>

    typedef void *ort_status;
    typedef struct { const void *(*api)(uint32_t); const char *(*version)(void); } ort_base;
    typedef void (*ort_function)(void);

    static const ort_function *ort_api;          /* the table, once the library is open */
    static const char *ort_version = "";

    #define ORT(slot, ...) ((ort_status (*)(__VA_ARGS__))ort_api[slot])
    #define ORT_GIVES(type, slot, ...) ((type (*)(__VA_ARGS__))ort_api[slot])

    /* Why the library cannot be used; NULL if it can. It stays open as long as the process lives. */
    static const char *ort_open(const char *path) {
        void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
        const ort_base *(*base)(void);
        if (!library) return dlerror();
        *(void **)&base = dlsym(library, "OrtGetApiBase");
        if (!base) return "it is no ONNX Runtime";
        ort_version = base()->version();
        ort_api = base()->api(17);
        return ort_api ? NULL : "it is older than 1.17";
    }
    static ort_status ort_refuse(const char *why) { return ORT(0, int, const char *)(1, why); }
    static const char *ort_message(ort_status s) { return ORT_GIVES(const char *, 2, const void *)(s); }
    static ort_status ort_new_env(void **env) { return ORT(3, int, const char *, void **)(4, "penstock", env); }
    static ort_status ort_mute(void *env) { return ORT(6, const void *)(env); }
    static ort_status ort_new_session(void *env, const void *onnx, size_t size, const void *options, void **session) {
        return ORT(8, const void *, const void *, size_t, const void *, void **)(env, onnx, size, options, session);
    }
    static ort_status ort_run(void *session, const char *const *names, void *const *values, size_t n,
                              const char *const *wanted, size_t n_wanted, void **results) {
        return ORT(9, void *, const void *, const char *const *, void *const *, size_t, const char *const *,
                   size_t, void **)(session, NULL, names, values, n, wanted, n_wanted, results);
    }
    static ort_status ort_new_options(void **options) { return ORT(10, void **)(options); }
    static ort_status ort_severity(void *options, int level) { return ORT(22, void *, int)(options, level); }
    static ort_status ort_intra_threads(void *options, int n) { return ORT(24, void *, int)(options, n); }
    static ort_status ort_inter_threads(void *options, int n) { return ORT(25, void *, int)(options, n); }
    static ort_status ort_setting(void *options, const char *key, const char *value) {
        return ORT(130, void *, const char *, const char *)(options, key, value);
    }
    /* Of a session's inputs (0) or outputs (1): how many, and each one's name and type. */
    static ort_status ort_count(const void *session, int side, size_t *n) {
        return ORT(30 + side, const void *, size_t *)(session, n);
    }
    static ort_status ort_type(const void *session, int side, size_t i, void **info) {
        return ORT(33 + side, const void *, size_t, void **)(session, i, info);
    }
    static ort_status ort_name(const void *session, int side, size_t i, void *allocator, char **name) {
        return ORT(36 + side, const void *, size_t, void *, char **)(session, i, allocator, name);
    }
    static ort_status ort_new_texts(void *allocator, const int64_t *dims, size_t n, void **value) {
        return ORT(48, void *, const int64_t *, size_t, int, void **)(allocator, dims, n, 8, value);
    }
    /* A tensor over memory that the caller keeps; ONNX Runtime only reads what is fed. */
    static ort_status ort_new_tensor(const void *place, const void *data, size_t size, const int64_t *dims, size_t n,
                                     int type, void **value) {
        return ORT(49, const void *, void *, size_t, const int64_t *, size_t, int, void **)(
            place, (void *)data, size, dims, n, type, value);
    }
    static ort_status ort_data(void *value, void **data) { return ORT(51, void *, void **)(value, data); }
    static ort_status ort_texts_size(const void *value, size_t *n) { return ORT(53, const void *, size_t *)(value, n); }
    static ort_status ort_texts(const void *value, void *out, size_t size, size_t *offsets, size_t n) {
        return ORT(54, const void *, void *, size_t, size_t *, size_t)(value, out, size, offsets, n);
    }
    /* What a type says of tensors, borrowed from it; NULL where it is no tensor's. */
    static ort_status ort_tensor_type(const void *type, const void **info) {
        return ORT(55, const void *, const void **)(type, info);
    }
    static ort_status ort_element(const void *info, int *type) { return ORT(60, const void *, int *)(info, type); }
    static ort_status ort_n_dims(const void *info, size_t *n) { return ORT(61, const void *, size_t *)(info, n); }
    static ort_status ort_dims(const void *info, int64_t *dims, size_t n) {
        return ORT(62, const void *, int64_t *, size_t)(info, dims, n);
    }
    static ort_status ort_elements(const void *info, size_t *n) { return ORT(64, const void *, size_t *)(info, n); }
    static ort_status ort_shape(const void *value, void **info) { return ORT(65, const void *, void **)(value, info); }
    static ort_status ort_cpu(void **place) { return ORT(69, int, int, void **)(1, 0, place); }
    static ort_status ort_free(void *allocator, void *memory) { return ORT(76, void *, void *)(allocator, memory); }
    static ort_status ort_allocator(void **allocator) { return ORT(78, void **)(allocator); }
    static void ort_release_status(ort_status s) { ORT_GIVES(void, 93, void *)(s); }
    static void ort_release_session(void *session) { ORT_GIVES(void, 95, void *)(session); }
    static void ort_release_value(void *value) { ORT_GIVES(void, 96, void *)(value); }
    static void ort_release_type(void *type) { ORT_GIVES(void, 98, void *)(type); }
    static void ort_release_shape(void *info) { ORT_GIVES(void, 99, void *)(info); }
    static void ort_release_options(void *options) { ORT_GIVES(void, 100, void *)(options); }
    /* Where the bytes of one text are to be written; unlike in the older functions it may hold zeros. */
    static ort_status ort_text_room(void *value, size_t i, size_t size, char **room) {
        return ORT(252, void *, size_t, size_t, char **)(value, i, size, room);
    }
    """
    ctypedef void* ort_status
    const char* ort_version
    const char* ort_open(const char* path) nogil
    ort_status ort_refuse(const char* why) nogil
    const char* ort_message(ort_status s) nogil
    ort_status ort_new_env(void** env) nogil
    ort_status ort_mute(void* env) nogil
    ort_status ort_new_session(void* env, const void* onnx, size_t size, const void* options, void** session) nogil
    ort_status ort_run(void* session, const char* const* names, void* const* values, size_t n,
                       const char* const* wanted, size_t n_wanted, void** results) nogil
    ort_status ort_new_options(void** options) nogil
    ort_status ort_severity(void* options, int level) nogil
    ort_status ort_intra_threads(void* options, int n) nogil
    ort_status ort_inter_threads(void* options, int n) nogil
    ort_status ort_setting(void* options, const char* key, const char* value) nogil
    ort_status ort_count(const void* session, int side, size_t* n) nogil
    ort_status ort_type(const void* session, int side, size_t i, void** info) nogil
    ort_status ort_name(const void* session, int side, size_t i, void* allocator, char** name) nogil
    ort_status ort_new_texts(void* allocator, const int64_t* dims, size_t n, void** value) nogil
    ort_status ort_new_tensor(const void* place, const void* data, size_t size, const int64_t* dims, size_t n, int type,
                              void** value) nogil
    ort_status ort_data(void* value, void** data) nogil
    ort_status ort_texts_size(const void* value, size_t* n) nogil
    ort_status ort_texts(const void* value, void* out, size_t size, size_t* offsets, size_t n) nogil
    ort_status ort_tensor_type(const void* type, const void** info) nogil
    ort_status ort_element(const void* info, int* type) nogil
    ort_status ort_n_dims(const void* info, size_t* n) nogil
    ort_status ort_dims(const void* info, int64_t* dims, size_t n) nogil
    ort_status ort_elements(const void* info, size_t* n) nogil
    ort_status ort_shape(const void* value, void** info) nogil
    ort_status ort_cpu(void** place) nogil
    ort_status ort_free(void* allocator, void* memory) nogil
    ort_status ort_allocator(void** allocator) nogil
    void ort_release_status(ort_status s) nogil
    void ort_release_session(void* session) nogil
    void ort_release_value(void* value) nogil
    void ort_release_type(void* type) nogil
    void ort_release_shape(void* info) nogil
    void ort_release_options(void* options) nogil
    ort_status ort_text_room(void* value, size_t i, size_t size, char** room) nogil
