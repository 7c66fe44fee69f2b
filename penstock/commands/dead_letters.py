"""`penstock features dead-letters`: look at the entries of a stream that could not be written."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.commands.features import FORMS, Json, Url, existing, opened

if TYPE_CHECKING:
    from penstock.features.dead_letters import DeadLetter

SHOWN_FIELDS = 3


def dead_letters(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Stream of dead letters, such as activity:dead.")],
    features: Url = None,
    source: Annotated[
        str | None,
        typer.Option("--from", metavar="URL", help="Redis that has the stream; the feature store's if left out."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="So many at most, the last ones.")] = 20,
    as_json: Json = False,
) -> None:
    """List entries that could not be written, the last first: why, where they first came, and their fields.

    Once the reason is mended they are consumed as any stream is: penstock features stream VIEW --stream NAME --once.

    Example: penstock features dead-letters activity:dead
    """
    from penstock.commands._console import console, print_json
    from penstock.errors import PenstockError
    from penstock.features.dead_letters import dead_letters as last
    from penstock.features.redis import RedisStore

    with opened(source) if source else existing(features) as store:
        if not isinstance(store, RedisStore):
            raise PenstockError(f"a stream is in a Redis; --from says which ({FORMS})")
        found = last(store, name, limit)
    if as_json:
        print_json([_record(letter) for letter in found])
    elif not found:
        console.print(f"No dead letters on {name}.", highlight=False, markup=False)
    else:
        _print(name, found)


def _record(letter: DeadLetter) -> dict[str, Any]:
    at = _time(letter.id)
    return letter._asdict() | {"time": at.isoformat() if at else None}


def _time(identifier: str) -> datetime | None:
    """When an entry was put there; None where its id, which anybody may choose, is no such time."""
    try:
        return datetime.fromtimestamp(int(identifier.partition("-")[0]) / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def _print(name: str, found: list[DeadLetter]) -> None:
    from penstock.commands._console import print_table

    rows = []
    for letter in found:
        at = _time(letter.id)
        put_there = f"{at:%Y-%m-%d %H:%M:%S}" if at else letter.id
        rows.append((put_there, letter.first_id, letter.reason, _fields(letter.fields)))
    print_table(name, ("Put there (UTC)", "Entry", "Reason", "Fields"), rows)


def _fields(fields: dict[str, str]) -> str:
    some = [f"{name}={value[:40]}" for name, value in list(fields.items())[:SHOWN_FIELDS]]
    return " ".join([*some, *["..."] * (len(fields) > SHOWN_FIELDS)])
