"""Pages that are done as they say: files are saved, commands run in order, and what a page shows is what comes.

Blocks are told apart by their language. `python` and `yaml` blocks begin with the name to save them under; `bash`
blocks are run; `text` is output of the command before it, compared with all numbers left out. The one long-running
command is left running, as it would be in a second terminal. Ports are replaced by free ones.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

PORTS = ("8001", "8002")


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [str(s.getsockname()[1]) for s in sockets]
    for each in sockets:
        each.close()
    return ports


def blocks(page):
    return re.findall(r"^```(\w+)\n(.*?)^```", page, re.DOTALL | re.MULTILINE)


def shape(line):
    """A line without its numbers and spacing."""
    return " ".join(re.sub(r"\d[\d.,]*", "#", line).split())


class Reader:
    """Somebody who follows the page in an empty folder."""

    def __init__(self, folder, ports):
        self.folder, self.ports = folder, ports
        self.said, self.server = "", None
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        hidden = {name for name in os.environ if name.startswith("PENSTOCK_")}
        self.environment = {k: v for k, v in os.environ.items() if k not in hidden} | {"PATH": path, "COLUMNS": "80"}

    def follow(self, page):
        """Do all of a page."""
        for language, block in blocks(page.read_text("utf-8")):
            self.do(language, block)

    def do(self, language, block):
        for port, free in zip(PORTS, self.ports, strict=True):
            block = block.replace(f"127.0.0.1:{port}", f"127.0.0.1:{free}")
        {"python": self.save, "yaml": self.save, "bash": self.command, "text": self.compare}[language](block)

    def save(self, block):
        name = re.match(r"# ([\w.]+)\n", block)
        (self.folder / name[1]).write_text(block)

    def command(self, block):
        if block.startswith("penstock serve"):
            return self.serve(block)
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{block}{done.stdout}{done.stderr}"
        self.said = done.stdout
        return None

    def serve(self, block):
        log = self.folder / "server.log"
        with log.open("w") as output:
            self.server = subprocess.Popen(
                ["bash", "-c", f"exec {block}"],
                cwd=self.folder,
                env=self.environment,
                stdout=output,
                stderr=output,
            )
        until = time.monotonic() + 30
        while "Ctrl-C" not in log.read_text():
            assert self.server.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.05)
        self.said = log.read_text()

    def compare(self, block):
        came = [shape(line) for line in self.said.splitlines()]
        for line in block.splitlines():
            assert shape(line) in came, self.said


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    reader = Reader(tmp_path_factory.mktemp("reader"), free_ports(len(PORTS)))
    try:
        yield reader
    finally:
        if reader.server is not None and reader.server.poll() is None:
            reader.server.kill()
            reader.server.wait()
