"""`penstock features stream`: consume a Redis stream into the feature store until told to stop."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.commands.features import FORMS, Json, Url, existing, opened
from penstock.errors import PenstockError

if TYPE_CHECKING:
    from penstock.features import FeatureView
    from penstock.features.offline import History
    from penstock.features.streams import Consumer

REPORT_S = 10.0


def stream(
    view: Annotated[str, typer.Argument(metavar="VIEW", help="Name of an applied view.")],
    name: Annotated[str, typer.Option("--stream", metavar="NAME", help="Key of the stream.")],
    features: Url = None,
    source: Annotated[
        str | None,
        typer.Option("--from", metavar="URL", help="Redis that has the stream; the feature store's if left out."),
    ] = None,
    group: Annotated[str, typer.Option(help="Consumer group; made if it is not there.")] = "penstock",
    consumer: Annotated[str, typer.Option(help="Name in the group; host and process if left out.")] = "",
    time_field: Annotated[
        str | None, typer.Option("--time", metavar="FIELD", help="Field of the event time; else the entry's id.")
    ] = None,
    start: Annotated[str, typer.Option(help="Where a new group begins: 0, the oldest entry, or $, the next.")] = "0",
    batch: Annotated[int, typer.Option(min=1, max=100_000, help="Entries taken at a time.")] = 1000,
    claim_after_s: Annotated[
        float, typer.Option(min=0.1, help="After so long what another consumer left pending is taken over.")
    ] = 60.0,
    dead: Annotated[str, typer.Option(metavar="NAME", help="Dead-letter stream; STREAM:dead if left out.")] = "",
    dead_entries: Annotated[int, typer.Option(min=1, help="How many it keeps, about.")] = 10_000,
    once: Annotated[bool, typer.Option("--once", help="Stop when nothing is left.")] = False,
    offline: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep the rows in this history of the features, too.")
    ] = None,
    publish_s: Annotated[
        float, typer.Option(min=0, help="After so many seconds, or 100,000 rows, they appear in it.")
    ] = 30.0,
    metrics: Annotated[str, typer.Option(metavar="HOST:PORT", help="Prometheus metrics, or off.")] = "off",
    allow_remote: Annotated[
        bool, typer.Option("--allow-remote", help="Metrics may be where other machines can reach them.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write the entries of a Redis stream into the store as they come, unless a newer event is stored.

    Fields are named as the view's columns and its entity; for a view with aggregates entries are events. What is
    neither goes to the dead-letter stream, with the reason. Ctrl-C or SIGTERM ends it; what it has not acknowledged by
    then is delivered again.

    Example: penstock features stream customer_activity --stream activity --time at
    """
    from penstock.commands._console import console, print_json
    from penstock.features.aggregating import writer_for
    from penstock.features.redis import RedisStore
    from penstock.features.streams import Consumer, Settings

    if start not in {"0", "$"}:
        raise PenstockError(f"--start is 0 or $, not {start!r}")
    settings = Settings(
        stream=name,
        group=group,
        consumer=consumer or f"{socket.gethostname()}-{os.getpid()}",
        time_field=time_field,
        start=start,
        batch=batch,
        claim_after_s=claim_after_s,
        dead=dead or f"{name}:dead",
        dead_entries=dead_entries,
    )
    with existing(features) as store, opened(source) if source else nullcontext(store) as streams:
        if not isinstance(streams, RedisStore):
            raise PenstockError(f"a stream is in a Redis; --from says which ({FORMS})")
        found = store.view(view)
        with kept_in(offline, found, publish_s) as history:
            reader = Consumer(streams, writer_for(store, found, time_field, history), settings, history)
            with scraped(reader, view, metrics, allow_remote=allow_remote), until_told() as stop:
                reader.run(stop, once=once, told=reporting(reader))
        with suppress(PenstockError):
            reader.leave()
    if as_json:
        print_json(asdict(reader.counts))
    else:
        console.print(in_words(reader), highlight=False)


def kept_in(offline: Path | None, view: FeatureView, publish_s: float) -> AbstractContextManager[History | None]:
    """Where rows are kept as history, if anywhere."""
    if offline is None:
        return nullcontext()
    from penstock.features.offline import History, OfflineStore

    return History(OfflineStore(offline), view, publish_s)


def scraped(reader: Consumer, view: str, metrics: str, *, allow_remote: bool) -> AbstractContextManager[object]:
    """Metrics while the block runs, where they are wanted."""
    if metrics == "off":
        return nullcontext()
    from penstock.commands._stream_metrics import metered
    from penstock.server.address import Address

    try:
        address = Address.parse(metrics)
    except PenstockError as error:
        raise PenstockError(f"--metrics: {error}") from error
    if address.path:
        raise PenstockError(f"--metrics: {metrics!r} is not HOST:PORT")
    if not (address.local or allow_remote):
        raise PenstockError(
            f"--metrics: {address.host!r} can be reached from other machines and nothing there asks who calls; "
            "say --allow-remote if that is meant"
        )
    return metered(reader, view, address)


@contextmanager
def until_told() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set, instead of what they do otherwise."""
    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def reporting(reader: Consumer) -> Callable[[], None]:
    """Says on stderr how it goes, every ten seconds."""
    from penstock.commands._console import errors

    last = time.monotonic()

    def told() -> None:
        nonlocal last
        if time.monotonic() - last < REPORT_S:
            return
        last = time.monotonic()
        with suppress(PenstockError):
            lag = reader.lag()
            left = "" if lag.entries is None else f"{lag.entries:,} entries, "
            errors.print(f"{in_words(reader)}; behind by {left}{lag.behind_ms / 1000:.1f} s", highlight=False)

    return told


def in_words(reader: Consumer) -> str:
    """What became of the entries, in one line."""
    counts = reader.counts
    parts = [f"read {counts.read:,} entries, wrote {counts.written:,} rows"]
    told = {"older": counts.older, "past their ttl": counts.over, "counted before": counts.repeated}
    told |= {"to the dead-letter stream": counts.rejected, "trimmed unread": counts.trimmed}
    told |= {"kept as history": counts.recorded}
    told |= {f"unknown words in {column}": words for column, words in counts.unknown.items()}
    return ", ".join([*parts, *(f"{number:,} {what}" for what, number in told.items() if number)])
