"""Stop a process before or after its n-th file operation, for every n, and say what a reader sees then.

Run as a program, because it forks: `crash_driver.py FOLDER ACTION MODE [fallback]`, ACTION being publish-first,
publish-next or promote, and MODE before, after or torn (half of a write is done). Prints one JSON line per n: the exit
status of the child (9 where it was stopped), the state as a reader finds it then, and the state once the action was
done again. Ends with the first n that the action does not reach. Any exception of a reader ends it with a traceback.
"""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path

from penstock.registry import Registry, files

SAMPLES = importlib.util.spec_from_file_location("samples", Path(__file__).with_name("samples.py"))
samples = importlib.util.module_from_spec(SAMPLES)
SAMPLES.loader.exec_module(samples)


def state(registry: Registry) -> dict:
    """All that a reader can ask."""
    found = {}
    for name in registry.models():
        loaded = {v: registry.load(name, v).files["model.onnx"].decode() for v in registry.versions(name)}
        history = [(move.number, move.old, move.new) for move in registry.history(name)]
        found[name] = {
            "versions": loaded,
            "aliases": registry.aliases(name),
            "serving": registry.resolve(name),
            "history": history,
        }
    return found


def act(registry: Registry, action: str) -> None:
    if action == "promote":
        registry.promote("fraud", 2, who="eve")
    else:
        registry.publish(samples.draft(), {**samples.FILES, "model.onnx": b"new"})


def stop_at(n: int, mode: str) -> None:
    count = 0

    def call(operation, *args, **kwargs):
        nonlocal count
        count += 1
        if count != n:
            return operation(*args, **kwargs)
        try:
            if mode == "torn" and operation is os.write:
                operation(args[0], args[1][: len(args[1]) // 2])
            elif mode == "after":
                operation(*args, **kwargs)
        finally:
            os._exit(9)

    files._call = call


def without_renameat2(*_args):
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


def prepare(root: Path, action: str) -> Registry:
    registry = Registry(root)
    if action != "publish-first":
        registry.publish(samples.draft(), {**samples.FILES, "model.onnx": b"old"})
    if action == "promote":
        registry.publish(samples.draft(), {**samples.FILES, "model.onnx": b"new"})
    return registry


def attempt(registry: Registry, action: str, n: int, mode: str) -> int:
    child = os.fork()
    if child == 0:
        stop_at(n, mode)
        act(registry, action)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(folder: str, action: str, mode: str, fallback: str = "") -> None:
    if fallback:
        files._rename_noreplace = without_renameat2
    for n in range(1, 1000):
        root = Path(folder) / f"{action}-{mode}-{n}"
        registry = prepare(root, action)
        status = attempt(registry, action, n, mode)
        line = {"n": n, "status": status, "crashed": state(registry)}
        act(registry, action)  # life goes on
        line["after"] = state(registry)
        print(json.dumps(line))
        shutil.rmtree(root)
        if status == 0:
            return


if __name__ == "__main__":
    main(*sys.argv[1:])
