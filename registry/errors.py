"""What can go wrong with published versions, divided by who must act.

RegistryError
├── InvalidName      the caller: a name outside the allow-list
├── InvalidDraft     the publisher: what was handed over does not hold together
├── UnknownModel     the caller
├── UnknownVersion   the caller
├── UnknownAlias     the caller
├── NothingEarlier   the operator: a rollback with nowhere to go
├── CorruptVersion   the operator: files are not what was published; the version is refused
├── CorruptAliases   the operator: aliases.json or history.jsonl is not what was written
├── StorageError     the operator: the disk or its permissions
└── RegistryBusy     try again: another process holds the model's lock
"""

# ruff: noqa: N818  # named for what is wrong; that they are errors is in the root's name
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from penstock.errors import PenstockError


class RegistryError(PenstockError):
    """The registry cannot do what was asked."""


class InvalidName(RegistryError):
    """A model, alias or file name outside the allow-list."""


class InvalidDraft(RegistryError):
    """What a publisher handed over does not hold together."""


class UnknownModel(RegistryError):
    """No version of that model was published here."""


class UnknownVersion(RegistryError):
    """The model has no such version."""


class UnknownAlias(RegistryError):
    """The model has no such alias."""


class NothingEarlier(RegistryError):
    """The alias has no earlier version to go back to."""


class CorruptVersion(RegistryError):
    """A version's files are not what was published: half-written, changed, linked or unlisted."""


class CorruptAliases(RegistryError):
    """aliases.json or history.jsonl is not what the registry wrote."""


class StorageError(RegistryError):
    """The operating system refused: full, failing, read-only or not permitted."""


class RegistryBusy(RegistryError):
    """Another process is moving an alias of the same model."""


@contextmanager
def reported(action: str, root: Path, consequence: str) -> Iterator[None]:
    """Turn an `OSError` inside the block into one `StorageError` line that says what `action` came to."""
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise StorageError(f"cannot {action} in {root}: {error.strerror or error}{where}; {consequence}") from error
