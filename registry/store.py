"""The registry as its users see it: one folder of published models, any number of readers and publishers.

    <root>/models/<name>/versions/<n>/   manifest.json and the files it lists; never changed once there
    <root>/models/<name>/aliases.json    where champion and other aliases point
    <root>/models/<name>/history.jsonl   every move of an alias
    <root>/.staging/                     what is being written; no reader looks here

This module decides what a reference means and which error a caller sees; verify.py reads, publish.py writes, aliases.py
moves. An object holds no state but the path, so it may be shared by threads and made anew at will.
"""

from __future__ import annotations

import getpass
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from penstock.registry import aliases as moves
from penstock.registry import publish, verify
from penstock.registry.aliases import Aliases, Move
from penstock.registry.errors import RegistryError, reported
from penstock.registry.manifest import Draft, Manifest
from penstock.registry.names import CHAMPION, check_alias, check_model, is_version
from penstock.registry.verify import Version

_log = logging.getLogger(__name__)
_UNCHANGED = "nothing was changed; mend that and try again"
_CHECK = "check the disk and the folder's permissions"


class Registry:
    """Published models in the folder `root`, which is created by the first publish.

    Every method raises errors of `penstock.registry.errors`: InvalidName for a name outside the allow-list,
    UnknownModel and UnknownVersion for what is not there, StorageError where the operating system refuses.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    def __repr__(self) -> str:
        return f"Registry({str(self.root)!r})"

    # reading

    def models(self) -> list[str]:
        """Names of the models with at least one version, sorted."""
        with reported("list models", self.root, _CHECK):
            return verify.model_names(self.root)

    def versions(self, name: str) -> list[int]:
        """Version numbers of a model, ascending. Half-written ones are no versions."""
        with reported(f"list versions of {name!r}", self.root, _CHECK):
            return verify.version_numbers(self.root, check_model(name))

    def manifest(self, name: str, version: int) -> Manifest:
        """What a version says about itself; its other files are not looked at."""
        with reported(f"read {name!r} version {version}", self.root, _CHECK):
            return verify.read_manifest(self.root, check_model(name), version)

    def load(self, name: str, version: int) -> Version:
        """A version with all its files in memory, every byte verified; CorruptVersion if it is not as published."""
        with reported(f"load {name!r} version {version}", self.root, _CHECK):
            return verify.load_version(self.root, check_model(name), version)

    def verify(self, name: str, version: int) -> Manifest:
        """Verify a version as `load` does, without keeping it; CorruptVersion if it is not as published."""
        with reported(f"verify {name!r} version {version}", self.root, _CHECK):
            return verify.verify_version(self.root, check_model(name), version)

    def resolve(self, name: str, reference: str = "") -> int:
        """The version meant by a number, an alias, or "" for the champion."""
        known = self.versions(name)
        if is_version(reference):
            if int(reference) not in known:
                raise verify.unknown_version(self.root, name, int(reference))
            return int(reference)
        return moves.pointer(self._aliases(name, known[0]), reference or CHAMPION).version

    # publishing

    def publish(self, draft: Draft, files: Mapping[str, bytes]) -> Manifest:
        """Store `files` (name to content) as the model's next version and return its manifest.

        The version is there whole, on disk, when this returns; if it raises, the registry is as before. The first
        version of a model becomes its champion.
        """
        with reported(f"publish {draft.model_name!r}", self.root, _UNCHANGED):
            manifest = publish.publish_version(self.root, draft, files)
        try:
            self._record_first_champion(manifest)
        except (RegistryError, OSError) as error:  # the version stands, and is champion as the first one anyway
            _log.warning("%s: the first champion could not be recorded: %s", manifest.model_name, error)
        return manifest

    # aliases

    def aliases(self, name: str) -> dict[str, int]:
        """Every alias of a model with the version it points at; `champion` is always among them."""
        state = self._aliases(name, self.versions(name)[0])
        return {alias: to.version for alias, to in sorted(state.aliases.items())}

    def promote(self, name: str, version: int, alias: str = CHAMPION, who: str = "", why: str = "") -> Move:
        """Point `alias` at `version`, verified first. `who` is the current user where left out.

        An alias that points there already is left alone, and the returned move, with `old` equal to `new`, unrecorded.
        """
        check_alias(alias)
        first = self.versions(name)[0]
        self.verify(name, version)

        def decide(stored: Aliases) -> Aliases:
            state = moves.with_champion(stored, first)
            if alias in state.aliases and state.aliases[alias].version == version:
                return stored
            return moves.promoted(state, alias, version, moves.now(), who or current_user(), why)

        with reported(f"promote {name!r}", self.root, "see where the alias points before trying again"):
            move = moves.change(self.root, name, decide)
        if move is None:
            return Move(at=moves.now(), who=who or current_user(), alias=alias, old=version, new=version, why=why)
        return move

    def rollback(self, name: str, alias: str = CHAMPION, who: str = "", why: str = "") -> Move:
        """Return `alias` to where it was before its last promotion; once more goes back one more.

        Raises NothingEarlier if it was never moved or is back at its beginning, CorruptVersion or UnknownVersion if
        the earlier version can no longer be served.
        """
        check_alias(alias)
        first = self.versions(name)[0]

        def decide(stored: Aliases) -> Aliases:
            state = moves.with_champion(stored, first)
            new = moves.rolled_back(state, alias, moves.now(), who or current_user(), why or "rollback")
            self.verify(name, new.aliases[alias].version)
            return new

        with reported(f"roll back {name!r}", self.root, "see where the alias points before trying again"):
            move = moves.change(self.root, name, decide)
        assert move is not None  # going back always changes the state
        return move

    def history(self, name: str) -> list[Move]:
        """Every recorded move of the model's aliases, oldest first."""
        self.versions(name)
        with reported(f"read the history of {name!r}", self.root, _CHECK):
            return moves.read_history(self.root, name)

    def _aliases(self, name: str, first: int) -> Aliases:
        with reported(f"read aliases of {name!r}", self.root, _CHECK):
            return moves.with_champion(moves.read_aliases(self.root, name), first)

    def _record_first_champion(self, manifest: Manifest) -> None:
        name, version = manifest.model_name, manifest.version
        if self.versions(name)[0] != version:
            return

        def decide(state: Aliases) -> Aliases:
            if CHAMPION in state.aliases:
                return state
            who = manifest.created_by or current_user()
            return moves.promoted(state, CHAMPION, version, moves.now(), who, "first version")

        moves.change(self.root, name, decide)


def current_user() -> str:
    """The name of whoever runs this process, as far as the system knows it."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container with a user id that has no name
        return f"uid {os.getuid()}"
