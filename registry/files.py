"""Every file operation of the registry, so that what must hold against crashes and links is held in one place.

Writing: a new file is created exclusively and never through a link, written whole, and flushed to disk; a folder is
flushed after a name in it changed, because flushing the file alone does not persist its name (fsync(2)). A folder
appears under its final name in one step that never replaces another (renameat2 with RENAME_NOREPLACE; elsewhere the
name is claimed with mkdir, which is exclusive, and the folder renamed over that empty claim). After a failed flush
nothing is flushed again: the kernel may have dropped the data, so the caller must write anew.

Reading: folders are opened one below the other and files relative to their folder, no component through a link; only a
regular file with one name is read, of a size known beforehand. A second hard link would let somebody outside the
registry change what was checked.

All calls pass through `_call`, where tests end the process, fail or shorten the n-th one.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # NONBLOCK: opening a pipe must not wait
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_APPEND = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
_LOCK = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_LARGEST_READ = 1 << 30  # Linux stops a single read short of 2 GiB
_RENAME_NOREPLACE = 1
_NOT_SUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM}  # EPERM: seccomp filters that do not know it
_LINK = {errno.ELOOP, errno.EMLINK, errno.ENOTDIR}


class Refused(Exception):  # noqa: N818  a verdict, turned into a RegistryError by who knows the version
    """A file or folder that the registry did not write so; the message names it and says what is wrong."""


def _call(operation: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Make one system call: the one door to the disk."""
    return operation(*args, **kwargs)


# --- folders


@contextmanager
def opened(start: Path | int, *names: str) -> Iterator[int]:
    """Yield a descriptor of the folder reached from `start` through `names`.

    `start` is a path, which may pass through links (the operator chose it), or a descriptor, which stays open.
    Raises FileNotFoundError, and Refused where a component of `names` is a link or not a folder.
    """
    owned = isinstance(start, Path)
    current = os.open(start, _FOLDER) if isinstance(start, Path) else start
    try:
        for name in names:
            below = _open_folder(current, name)
            if owned:
                os.close(current)
            current, owned = below, True
        yield current
    finally:
        if owned:
            os.close(current)


def _open_folder(parent: int, name: str) -> int:
    try:
        return _call(os.open, name, _FOLDER | os.O_NOFOLLOW, dir_fd=parent)
    except OSError as error:
        if error.errno in _LINK:
            raise Refused(f"{name} is a link or not a folder") from error
        raise


def make_root(path: Path) -> None:
    """Create the folder `path` and what is missing above it, each name flushed to disk."""
    if path.is_dir():
        return
    make_root(path.parent)
    with opened(path.parent) as parent:
        make_folder(parent, path.name)


def make_folder(parent: int, name: str) -> None:
    """Create the folder `name` unless it exists, and flush its name to disk in either case.

    One that exists may have been made by a process that has not come to its flush yet.
    """
    with suppress(FileExistsError):
        _call(os.mkdir, name, dir_fd=parent)
    sync(parent)


@contextmanager
def ensured(root: Path, *names: str) -> Iterator[int]:
    """Yield a descriptor of the folder `names` below `root`, creating what is missing."""
    with opened(root) as top:
        current = os.dup(top)
        try:
            for name in names:
                make_folder(current, name)
                below = _open_folder(current, name)
                os.close(current)
                current = below
            yield current
        finally:
            os.close(current)


def listing(folder: int) -> list[str]:
    """The names in a folder, sorted."""
    return sorted(_call(os.listdir, folder))


def holds(folder: int, *names: str) -> bool:
    """Whether the path `names` exists below `folder`."""
    try:
        _call(os.stat, "/".join(names), dir_fd=folder, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def age_s(folder: int, name: str, now: float) -> float:
    """Seconds since the entry `name` was last modified; `now` as time.time() gives it."""
    return now - _call(os.stat, name, dir_fd=folder, follow_symlinks=False).st_mtime


def sync(folder: int) -> None:
    """Flush the names in a folder to disk."""
    _call(os.fsync, folder)


# --- writing


def write_new(folder: int, name: str, content: bytes) -> None:
    """Create the read-only file `name`, which must not exist, and flush its content to disk (not its name: `sync`)."""
    with _named(name):
        descriptor = _call(os.open, name, _CREATE, 0o444, dir_fd=folder)
        try:
            _write_all(descriptor, content)
            _call(os.fsync, descriptor)
        finally:
            os.close(descriptor)


def append_line(folder: int, name: str, line: bytes) -> None:
    """Append `line` to the file `name`, cutting off first what a crash left after its last line end; flush both."""
    with _named(name):
        descriptor = _call(os.open, name, _APPEND, 0o644, dir_fd=folder)
        try:
            _cut_torn_line(descriptor)
            _write_all(descriptor, line)
            _call(os.fsync, descriptor)
        finally:
            os.close(descriptor)
        sync(folder)


def _cut_torn_line(descriptor: int) -> None:
    end = size = os.fstat(descriptor).st_size
    while end and os.pread(descriptor, 1, end - 1) != b"\n":
        end -= 1
    if end < size:
        _call(os.ftruncate, descriptor, end)


def _write_all(descriptor: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[_call(os.write, descriptor, view) :]


def replace(source: int, name: str, target: int, new_name: str) -> None:
    """Rename a file over another in one step, and flush the name to disk."""
    _call(os.replace, name, new_name, src_dir_fd=source, dst_dir_fd=target)
    sync(target)


def remove(folder: int, name: str) -> None:
    """Remove the file `name`."""
    _call(os.unlink, name, dir_fd=folder)


def discard(folder: int, name: str) -> None:
    """Remove the file `name` if that can be done: tidying up after an error must not hide it."""
    with suppress(OSError):
        remove(folder, name)


def remove_tree(folder: int, name: str) -> None:
    """Remove the folder `name` with all it holds, following no link; nothing happens if it is not there."""
    with suppress(FileNotFoundError):
        _call(_rmtree, name, folder)


def _rmtree(name: str, folder: int) -> None:
    shutil.rmtree(name, dir_fd=folder)


def rename_new(source: int, name: str, target: int, new_name: str) -> None:
    """Rename the folder `name` to `new_name`, never replacing anything: FileExistsError if that is taken."""
    try:
        _call(_rename_noreplace, source, name, target, new_name)
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:
            raise
        _claim_and_rename(source, name, target, new_name)


def _rename_noreplace(source: int, name: str, target: int, new_name: str) -> None:
    if _renameat2 is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), new_name)
    if _renameat2(source, name.encode(), target, new_name.encode(), _RENAME_NOREPLACE) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), new_name)


def _claim_and_rename(source: int, name: str, target: int, new_name: str) -> None:
    """Take the name with mkdir, which one process wins, then rename over the empty claim.

    A crash in between leaves an empty folder: no reader takes it for a version, and its number is not used again.
    """
    _call(os.mkdir, new_name, dir_fd=target)
    try:
        _call(os.rename, name, new_name, src_dir_fd=source, dst_dir_fd=target)
    except OSError:
        with suppress(OSError):
            _call(os.rmdir, new_name, dir_fd=target)
        raise


def _find_renameat2() -> Callable[..., int] | None:
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is None:  # C libraries without it, musl among them
        return None
    function.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    function.restype = ctypes.c_int
    return function  # type: ignore[no-any-return]


_renameat2 = _find_renameat2()


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Let errors of calls that know only a descriptor name the file as well."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = name
        raise


# --- reading


def read(folder: int, name: str, limit: int, *, size: int | None = None) -> bytes:
    """The content of the regular file `name`, whose only name this is, of at most `limit` bytes (`size` if given).

    Raises FileNotFoundError, and Refused for a link, anything but a regular file, or another size.
    """
    descriptor = _open_file(folder, name)
    try:
        found = _plain_size(name, os.fstat(descriptor))
        if size is not None and found != size:
            raise Refused(f"{name} has {found:,} bytes where {size:,} were published")
        if found > limit:
            raise Refused(f"{name} has {found:,} bytes, more than the {limit:,} allowed")
        return _read_exactly(descriptor, name, found)
    finally:
        os.close(descriptor)


def _open_file(folder: int, name: str) -> int:
    try:
        return _call(os.open, name, _READ, dir_fd=folder)
    except OSError as error:
        if error.errno in _LINK:
            raise Refused(f"{name} is a symbolic link") from error
        if error.errno == errno.ENXIO:
            raise Refused(f"{name} is not a regular file") from error
        raise


def _plain_size(name: str, status: os.stat_result) -> int:
    if not stat.S_ISREG(status.st_mode):
        raise Refused(f"{name} is not a regular file")
    if status.st_nlink != 1:
        raise Refused(f"{name} is a hard link: the same file has {status.st_nlink} names, so it could change unseen")
    return status.st_size


def _read_exactly(descriptor: int, name: str, size: int) -> bytes:
    chunks: list[bytes] = []
    wanted = size + 1  # one more, to notice a file that grows meanwhile
    while wanted and (chunk := _call(os.read, descriptor, min(wanted, _LARGEST_READ))):
        chunks.append(chunk)
        wanted -= len(chunk)
    if wanted != 1:
        raise Refused(f"{name} changed while it was read")
    return b"".join(chunks)


# --- waiting


@contextmanager
def locked(folder: int, name: str, timeout_s: float) -> Iterator[None]:
    """Hold an advisory lock on the file `name`; TimeoutError if another process keeps it for `timeout_s` seconds.

    It ends with the process, however that ends. Only the order of writers rests on it, never what a reader sees.
    """
    descriptor = _call(os.open, name, _LOCK, 0o644, dir_fd=folder)
    try:
        _acquire(descriptor, time.monotonic() + timeout_s)
        yield
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, end: float) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise TimeoutError from None
            time.sleep(0.01)
        else:
            return
