"""What every command prints with: one console for people, one function for machines, errors to stderr.

Tables are made for 80 columns: one that would fold its cells is printed without its frame, which saves a third of the
width. Progress bars are for terminals; a log or a pipe gets none.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table
from rich.text import Text

console = Console()
errors = Console(stderr=True)


def print_json(value: Any) -> None:
    """Write `value` to stdout as indented JSON, ready for jq."""
    sys.stdout.buffer.write(orjson.dumps(value, default=str, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY))
    sys.stdout.buffer.write(b"\n")
    sys.stdout.buffer.flush()


def print_table(
    title: str, headers: Sequence[str], rows: Iterable[Sequence[Any]], *, numeric: Sequence[str] = ()
) -> None:
    """Print rows under `headers`; the columns named in `numeric` are aligned right.

    Texts are printed as they are, whoever wrote them: brackets are no markup here. A `Text` brings its own style.
    """
    table = Table(title=_text(title) if title else None, title_justify="left", header_style="bold")
    for header in headers:
        table.add_column(_text(header), justify="right" if header in numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(_text, row))
    if console.measure(table, options=console.options.update(max_width=_UNBOUNDED)).maximum > console.width:
        table.box, table.padding, table.show_edge = None, (0, 2, 0, 0), False
    console.print(table)


_UNBOUNDED = 10_000


def printable(value: object) -> str:
    """A value's text without what moves the cursor."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(value))


def _text(value: object) -> Text:
    return value if isinstance(value, Text) else Text(printable(value))


def flowing(text: str | None) -> str:
    """A docstring with its paragraphs on one line each, so that help is wrapped to the terminal, not to the source."""
    return re.sub(r"(?<!\n)\n(?!\n)", " ", inspect.cleandoc(text or ""))
