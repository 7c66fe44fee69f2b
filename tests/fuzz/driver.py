"""libFuzzer over a Python function: what every target here is made with. Runs only in the process scripts/fuzz starts.

Coverage comes from the kernels, compiled with clang's `-fsanitize=fuzzer-no-link`; Python itself is not measured. A
target takes bytes and raises where a promise was broken: the input is then kept, as after a report of a sanitizer.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import random
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

TARGET = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_char), ctypes.c_size_t)
MUTATOR = ctypes.CFUNCTYPE(
    ctypes.c_size_t, ctypes.POINTER(ctypes.c_char), ctypes.c_size_t, ctypes.c_size_t, ctypes.c_uint
)
FINISH = ctypes.CFUNCTYPE(ctypes.c_int)
Mutate = Callable[[random.Random, bytes], bytes]

_library = ctypes.CDLL(None)  # what is loaded already
_held = ctypes.PyDLL(None)  # calls that keep the interpreter's lock: short, or about this thread
_held.fuzz_watched.restype = ctypes.c_int64
_held.fuzz_heap.restype = ctypes.c_size_t


def heap() -> int:
    """Bytes on the heap of this process, Python's objects among them."""
    return _held.fuzz_heap()


def most_memory(call: Callable[[], object]) -> int:
    """Bytes held at once, at most, by what `call` does in this thread."""
    _held.fuzz_watch()
    try:
        call()
    finally:
        most = _held.fuzz_watched()
    return most


@contextmanager
def fenced(body: bytes) -> Iterator[None]:
    """Makes the NUL behind `body` unreadable for compiled code, so that a read one past the end is a finding."""
    end = ctypes.c_void_p(id(body) + bytes.__basicsize__ - 1 + len(body))
    _held.fuzz_fence(end)
    try:
        yield
    finally:
        _held.fuzz_unfence(end)


def fuzz(
    target: Callable[[bytes], None],
    *,
    seeds: Iterable[bytes],
    mutate: Mutate | None = None,
    finish: Callable[[], None] | None = None,
) -> None:
    """Give `target` inputs until libFuzzer's options (this program's arguments) say it is enough. Does not come back.

    Args:
        target: takes one input; whatever it raises is a finding.
        seeds: the inputs to begin with; written into $PENSTOCK_FUZZ_CORPUS where it is set.
        mutate: makes a new input of an old one; a quarter of the inputs are libFuzzer's own changes.
        finish: called at the end of a run without findings; whatever it raises is a finding too.
    """

    def one(data, size: int) -> int:
        try:
            target(data[:size])
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os.abort()  # libFuzzer writes the input down
        return 0

    def change(data, size: int, room: int, seed: int) -> int:
        made = mutate(random.Random(seed), data[:size])[:room]
        ctypes.memmove(data, made, len(made))
        return len(made)

    def last() -> int:
        try:
            if finish is not None:
                finish()
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            return 1
        return 0

    if folder := os.environ.get("PENSTOCK_FUZZ_CORPUS"):
        for index, seed in enumerate(seeds):
            (Path(folder) / f"seed-{index:03}").write_bytes(seed)
    os.environ.pop("LD_PRELOAD", None)  # a program started from here is not fuzzed
    faulthandler.disable()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)  # libFuzzer's own handlers end the run
    words = [word.encode() for word in sys.argv]
    argv = (ctypes.c_char_p * (len(words) + 1))(*words, None)
    _library.fuzz_run(len(words), argv, TARGET(one), MUTATOR(change) if mutate else MUTATOR(), FINISH(last))
