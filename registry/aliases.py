"""Aliases: names that point at versions, every move recorded, and the way back.

`aliases.json` holds where each alias points, where it pointed before, and the last move in full; it is replaced in one
step, and that step is the move. Then the move is appended to `history.jsonl`. In this order a crash in between costs
nothing: the last move is read from `aliases.json` as long as the history lacks it, and the next move appends it first.
(History first would record moves that never took effect.) A line torn by a crash is ignored when read and cut off by
the next append.

A model whose champion was never moved has its first version as champion, recorded or not.

Rollback walks back: after promoting 1, 2, 3 a rollback gives 2 and another one 1. A promotion after that starts a new
way forward; what was rolled back from is not returned to.

Deciding is pure (`promoted`, `rolled_back`); `change` carries it out under the model's lock, which only keeps two
movers from overwriting one another: readers never take it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal
from uuid import uuid4

from pydantic import Field, ValidationError

from penstock.registry import files
from penstock.registry.errors import CorruptAliases, NothingEarlier, RegistryBusy, UnknownAlias
from penstock.registry.manifest import UtcTime, Value, encode_json
from penstock.registry.names import CHAMPION
from penstock.registry.publish import STAGING
from penstock.registry.verify import first_problem

ALIASES = "aliases.json"
HISTORY = "history.jsonl"
MAX_ALIASES_BYTES = 1 << 20
MAX_HISTORY_BYTES = 64 << 20
MAX_ALIASES = 100
MAX_STEPS_BACK = 100
LOCK_TIMEOUT_S = 10.0

_log = logging.getLogger(__name__)


class Move(Value):
    """One move of an alias: when, by whom, from which version (None: the alias is new) to which, and why.

    `number` counts the model's moves from 1.
    """

    at: UtcTime
    who: str
    alias: str
    old: int | None
    new: int
    why: str = ""
    number: int = 0


class Pointer(Value):
    """Where an alias points, and the versions a rollback returns to, the nearest last."""

    version: int = Field(ge=1)
    previous: tuple[int, ...] = ()


class Aliases(Value):
    """The content of aliases.json."""

    format: Literal[1] = 1
    aliases: dict[str, Pointer] = Field(default_factory=dict)
    last_move: Move | None = None


# --- decisions


def with_champion(state: Aliases, first: int) -> Aliases:
    """The state with the first version as champion, if none was ever set."""
    if CHAMPION in state.aliases:
        return state
    return state.model_copy(update={"aliases": {**state.aliases, CHAMPION: Pointer(version=first)}})


def promoted(state: Aliases, alias: str, version: int, at: datetime, who: str, why: str) -> Aliases:
    """The state after pointing `alias` at `version`, whatever it pointed at before."""
    before = state.aliases.get(alias)
    if before is None and len(state.aliases) >= MAX_ALIASES:
        raise UnknownAlias(f"the model has {MAX_ALIASES} aliases already, the most there can be; move one of those")
    previous = (*before.previous, before.version)[-MAX_STEPS_BACK:] if before else ()
    return _moved(state, alias, Pointer(version=version, previous=previous), at, who, why)


def rolled_back(state: Aliases, alias: str, at: datetime, who: str, why: str) -> Aliases:
    """The state after returning `alias` to where it was before its last promotion not yet undone."""
    before = pointer(state, alias)
    if not before.previous:
        raise NothingEarlier(
            f"{alias!r} points at version {before.version} and has nothing earlier to go back to; "
            "use promote to point it at another version"
        )
    return _moved(state, alias, Pointer(version=before.previous[-1], previous=before.previous[:-1]), at, who, why)


def pointer(state: Aliases, alias: str) -> Pointer:
    """Where the alias points; `UnknownAlias` names those there are."""
    try:
        return state.aliases[alias]
    except KeyError:
        known = ", ".join(sorted(state.aliases))
        raise UnknownAlias(f"no alias called {alias!r}; aliases there: {known}") from None


def _moved(state: Aliases, alias: str, to: Pointer, at: datetime, who: str, why: str) -> Aliases:
    old = state.aliases[alias].version if alias in state.aliases else None
    number = state.last_move.number + 1 if state.last_move else 1
    move = Move(at=at, who=who, alias=alias, old=old, new=to.version, why=why, number=number)
    return Aliases(aliases={**state.aliases, alias: to}, last_move=move)


# --- carrying them out


def change(root: Path, name: str, decide: Callable[[Aliases], Aliases]) -> Move | None:
    """Replace the model's aliases by what `decide` makes of them, record the move, and return it.

    None if the state stays as it is; nothing is written then. Once aliases.json is replaced the move stands, also if
    the history cannot be written just then: it is appended by the next one.
    """
    with _model_folder(root, name) as model, _lock(model, name):
        state = _read_state(model)
        new = decide(state)
        if new == state:
            return None
        _catch_up(model, state)
        with files.ensured(root, STAGING) as staging:
            _replace(staging, model, new.encode())
        try:
            _catch_up(model, new)
        except OSError as error:
            _log.warning("%s: %s could not be written yet (%s); the next move will do it", name, HISTORY, error)
    return new.last_move


def read_aliases(root: Path, name: str) -> Aliases:
    """The aliases as stored, without the implied champion."""
    with _model_folder(root, name) as model:
        return _read_state(model)


def read_history(root: Path, name: str) -> list[Move]:
    """Every move of the model's aliases, oldest first."""
    with _model_folder(root, name) as model:
        last = _read_state(model).last_move
        moves = _read_moves(model)
    return [*moves, last] if last and _lacks(moves, last) else moves


def now() -> datetime:
    """The time a move is recorded with."""
    return datetime.now(UTC)


@contextmanager
def _model_folder(root: Path, name: str) -> Iterator[int]:
    """Open the model's folder; what is refused inside the block becomes `CorruptAliases`."""
    try:
        with files.opened(root, "models", name) as model:
            yield model
    except files.Refused as refused:
        where = root / "models" / name
        raise CorruptAliases(
            f"aliases of {name!r} are refused: {refused}. Mend or remove that file in {where}"
        ) from None


@contextmanager
def _lock(model: int, name: str) -> Iterator[None]:
    try:
        with files.locked(model, ".lock", LOCK_TIMEOUT_S):
            yield
    except TimeoutError:
        raise RegistryBusy(f"another process has been moving an alias of {name!r} for {LOCK_TIMEOUT_S:g} s") from None


def _read_state(model: int) -> Aliases:
    try:
        return Aliases.model_validate_json(files.read(model, ALIASES, MAX_ALIASES_BYTES))
    except FileNotFoundError:
        return Aliases()
    except ValidationError as error:
        raise files.Refused(f"{ALIASES} does not parse: {first_problem(error)}") from None


def _replace(staging: int, model: int, content: bytes) -> None:
    """Write aliases.json aside and rename it over the old one."""
    temporary = uuid4().hex
    try:
        files.write_new(staging, temporary, content)
        files.replace(staging, temporary, model, ALIASES)
    except BaseException:
        files.discard(staging, temporary)
        raise


def _catch_up(model: int, state: Aliases) -> None:
    """Append the state's last move to the history unless it is there."""
    last = state.last_move
    if last and _lacks(_read_moves(model), last):
        files.append_line(model, HISTORY, encode_json(last.model_dump(mode="json")))


def _lacks(moves: list[Move], last: Move) -> bool:
    return not moves or moves[-1].number < last.number


def _read_moves(model: int) -> list[Move]:
    try:
        content = files.read(model, HISTORY, MAX_HISTORY_BYTES)
    except FileNotFoundError:
        return []
    lines = content.split(b"\n")[:-1]  # what follows the last line end is nothing, or a torn line
    return [_parse_move(line, number) for number, line in enumerate(lines, 1)]


def _parse_move(line: bytes, number: int) -> Move:
    try:
        return Move.model_validate_json(line)
    except ValidationError as error:
        raise files.Refused(f"{HISTORY} line {number} does not parse: {first_problem(error)}") from None
