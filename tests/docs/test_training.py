"""The page from history to a check, done as it says (see conftest.py).

Commands and scripts run in this process, all but the server: each would import the same libraries anew.
"""

from __future__ import annotations

import contextlib
import io
import re
import signal
from pathlib import Path

import pytest
from typer.testing import CliRunner

from penstock.cli import app

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "training.md").read_text("utf-8")


def run(folder, line):
    """What a line of a `bash` block prints."""
    words = line.split()
    if words[0] == "penstock":
        done = CliRunner().invoke(app, words[1:])
        assert done.exit_code == 0, f"{line}\n{done.output}"
        return done.stdout
    assert words[0] == "python"
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(compile((folder / words[1]).read_text("utf-8"), words[1], "exec"), {})
    return said.getvalue()


def test_the_page_works_from_its_first_command_to_its_last(reader, monkeypatch):
    monkeypatch.chdir(reader.folder)
    for name in ("PENSTOCK_FEATURES", "PENSTOCK_REGISTRY", "PENSTOCK_SERVER"):
        monkeypatch.delenv(name, raising=False)
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE):
        if "features check" in block:  # "end it with Ctrl-C, or wait"
            reader.server.send_signal(signal.SIGINT)
            assert reader.server.wait(20) == 0
        if language == "bash" and not block.startswith("penstock serve"):
            reader.said = "".join(run(reader.folder, line) for line in block.splitlines())
        else:
            reader.do(language, block)


@pytest.mark.parametrize("page", ["training", "features", "offline", "transforms", "ingestion", "reading", "reference"])
def test_what_a_page_links_to_is_there(page):
    text = (ROOT / "docs" / f"{page}.md").read_text("utf-8")
    for file, anchor in re.findall(r"\]\(([\w./-]*\.md)?(?:#([\w-]+))?\)", text):
        target = (ROOT / "docs" / file) if file else ROOT / "docs" / f"{page}.md"
        titles = re.findall(r"^#+ (.*)$", target.read_text("utf-8"), re.MULTILINE)
        anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
        assert not anchor or anchor in anchors, (file, anchor)
