"""Virtual environments for other people's software, under build/peers: made once, made anew when requirements change.

Peers want other versions of what we use, so each has an environment of its own. Installing needs PyPI and takes about
half a minute; afterwards it costs nothing.
"""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from penstock.errors import PenstockError

HOME = Path(__file__).resolve().parents[1] / "build" / "peers"


class NotInstalled(PenstockError):  # noqa: N818 - the house's errors say what happened
    """A peer could not be installed."""


def environment(
    name: str, requirements: Sequence[str], say: Callable[[str], None] = lambda _: None, home: Path = HOME
) -> Path:
    """The Python of the environment `name` with these requirements; raises NotInstalled with pip's own words."""
    folder, stamp = home / name, f"{' '.join(requirements)} for Python {sys.version}\n"
    python, stamped = folder / "bin" / "python", folder / "stamp"
    home.mkdir(parents=True, exist_ok=True)
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if stamped.exists() and stamped.read_text() == stamp:
            return python
        say(f"installing {', '.join(requirements)} into build/peers/{name}")
        shutil.rmtree(folder, ignore_errors=True)
        _run([sys.executable, "-m", "venv", str(folder)], f"an environment for {name}")
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--retries", "1", "install", "--quiet"]
        _run([*pip, *requirements], ", ".join(requirements))
        stamped.write_text(stamp)
    return python


def _run(command: Sequence[str], what: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if "ERROR" in line] or [done.stderr.strip()[-500:]]
        raise NotInstalled(f"{what} could not be installed; is PyPI reachable? {said[-1]}")
