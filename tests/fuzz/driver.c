/* libFuzzer for a Python process: loaded before everything else (LD_PRELOAD), driven from Python by ctypes (driver.py).
 *
 * Why not an executable of libFuzzer's: this way any interpreter will do, with or without a shared libpython, and what is
 * needed is clang alone. The library must come before libclang_rt.asan, whose own coverage hooks are empty.
 *
 * Beside libFuzzer's loop it gives what only C can: the last byte of a `bytes` object (a NUL that would hide reads one
 * past the end) is fenced off, and the most memory held during one call is known.
 */
#include <sanitizer/allocator_interface.h>
#include <sanitizer/asan_interface.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef int (*target_t)(const uint8_t *data, size_t size);
typedef size_t (*mutator_t)(uint8_t *data, size_t size, size_t max_size, unsigned seed);
typedef int (*finish_t)(void);

int LLVMFuzzerRunDriver(int *argc, char ***argv, target_t target);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);

static mutator_t custom_mutator;
static finish_t custom_finish;
static int64_t held, most;
static __thread int watching;

/* libFuzzer calls this for each new input where it exists: three in four inputs are changed by knowledge of their form. */
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed) {
    if (custom_mutator == NULL || seed % 4 == 0) return LLVMFuzzerMutate(data, size, max_size);
    return custom_mutator(data, size, max_size, seed);
}

static void on_malloc(const volatile void *at, size_t size) {
    if (!watching) return;
    held += (int64_t)size;
    if (held > most) most = held;
}

static void on_free(const volatile void *at) {
    if (watching && at != NULL) held -= (int64_t)__sanitizer_get_allocated_size(at);
}

/* Bytes are watched in the calling thread from here ... */
void fuzz_watch(void) { held = most = 0; watching = 1; }

/* ... to here: the most that was held at once beyond what there was at the beginning. */
int64_t fuzz_watched(void) { watching = 0; return most; }

/* Make the byte at `end`, the last of its allocation, unreadable; and readable again. */
void fuzz_fence(const char *end) { __asan_poison_memory_region(end, 1); }
void fuzz_unfence(const char *end) { __asan_unpoison_memory_region(end, 1); }

/* Bytes on the heap of the process. */
size_t fuzz_heap(void) { return __sanitizer_get_current_allocated_bytes(); }

/* The loop ends by exit(): the last word is the target's, and nothing of Python's is torn down under its threads. */
static void on_end(int status, void *unused) {
    if (status == 0 && custom_finish != NULL) status = custom_finish();
    _exit(status);
}

/* Run; comes back never. */
void fuzz_run(int argc, char **argv, target_t target, mutator_t mutator, finish_t finish) {
    custom_mutator = mutator;
    custom_finish = finish;
    __sanitizer_install_malloc_and_free_hooks(on_malloc, on_free);
    on_exit(on_end, NULL);
    exit(LLVMFuzzerRunDriver(&argc, &argv, target));
}
