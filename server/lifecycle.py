"""Which versions are served: loading, swapping and draining them as the registry's aliases move.

Served are, for each model, the versions its aliases point at. A version is loaded, verified and warmed before any call
reaches it; then the routes are swapped in one step and what is no longer wanted finishes its queue. A version that does
not load never takes one that does out of service: calls go on to the previous one and the reason is told.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Event, Lock, Thread

from penstock.errors import PenstockError
from penstock.registry import Registry, RegistryError
from penstock.registry.names import CHAMPION
from penstock.server.config import Config
from penstock.server.errors import UnknownModel
from penstock.server.lookups import Lookups
from penstock.server.version import Served

_log = logging.getLogger("penstock.server")

LONGEST_WAIT = 32
"""Looks between two attempts to load a version that does not; they double up to this."""
Routes = dict[tuple[bytes, bytes], Served]


@dataclass(frozen=True)
class State:
    """A version as the repository index tells it."""

    state: str  # READY, LOADING, UNLOADING or UNAVAILABLE
    reason: str = ""


class Models:
    """The served versions of one registry.

    Args:
        registry: where versions are published.
        config: limits and threads of each version.
        lookups: what features are looked up through, or None.
        on_change: called with the names of the models that answer, after every change.
    """

    def __init__(
        self,
        registry: Registry,
        config: Config,
        lookups: Lookups | None,
        on_change: Callable[[set[str]], None] = lambda _: None,
    ) -> None:
        self._registry = registry
        self._config = config
        self._lookups = lookups
        self._on_change = on_change
        self._refreshing = Lock()
        self._stop = Event()
        self._poller: Thread | None = None
        self._looks = 0
        self._retries: dict[tuple[str, int], tuple[int, int]] = {}  # of what did not load: next look, looks waited
        self._aliases: dict[str, dict[str, int]] = {}
        self._leaving: list[Served] = []
        self._draining: list[Served] = []
        self._unreadable: dict[str, str] = {}
        self.served: dict[tuple[str, int], Served] = {}
        self.states: dict[tuple[str, int], State] = {}
        self.routes: Routes = {}
        self._followers: list[Callable[[Routes], None]] = []
        self.defaults: dict[str, int] = {}
        self.unrouted = 0  # calls for what is not served

    def route(self, key: tuple[bytes, bytes]) -> Served:
        """What serves (model name, version or alias or nothing).

        Raises:
            UnknownModel: nothing is served under that name.
        """
        served = self.routes.get(key)
        if served is None:
            self.unrouted += 1
            raise self._unknown(key[0].decode("utf-8", "replace"), key[1].decode("utf-8", "replace"))
        return served

    def find(self, name: str, version: str = "") -> Served:
        """The served version behind a name and a version, an alias or nothing."""
        return self.route((name.encode(), version.encode()))

    def of(self, name: str) -> list[Served]:
        """Every served version of a model, or of all models where the name is empty; by name and version."""
        return [served for key, served in sorted(self.served.items()) if not name or key[0] == name]

    def _unknown(self, name: str, version: str) -> UnknownModel:
        known = [str(number) for model, number in sorted(self.served) if model == name]
        shown = name[:128]
        if not known:
            return UnknownModel(f"Request for unknown model: '{shown}' is not found")
        return UnknownModel(
            f"Request for unknown model: '{shown}' version {version[:64]} is not found; served are versions "
            f"{', '.join(known)}, and a version is served once an alias points at it"
        )

    def follow(self, follower: Callable[[Routes], None]) -> None:
        """Have the routes told now and after every change, before anything they no longer lead to is let go of."""
        with self._refreshing:
            self._followers.append(follower)
            follower(self.routes)

    def refresh(self) -> None:
        """Look at the registry and make what is served what its aliases say."""
        with self._refreshing:
            self._looks += 1
            try:
                names = set(self._registry.models())
                self._unreadable.pop("", None)
            except RegistryError as error:
                self._tell_unreadable("", f"the registry cannot be read, serving goes on as it is: {error}")
                return
            routes: Routes = {}
            defaults: dict[str, int] = {}
            for name in sorted(names | {model for model, _ in self.served}):
                self._refresh_model(name, routes, defaults)
            self.routes, self.defaults = routes, defaults
            for follower in self._followers:
                follower(routes)
            self._retire()
            self._on_change(set(defaults))

    def _refresh_model(self, name: str, routes: Routes, defaults: dict[str, int]) -> None:
        """Add the routes of one model, loading what is new."""
        try:
            aliases, versions = self._registry.aliases(name), self._registry.versions(name)
            self._forget(name, {*versions, *aliases.values()})
            self._retry_moved(name, aliases)
            self._unreadable.pop(name, None)
        except RegistryError as error:
            self._tell_unreadable(name, f"model {name}: {error}; what is loaded goes on")
            routes |= {key: served for key, served in self.routes.items() if served.name == name}
            defaults |= {model: version for model, version in self.defaults.items() if model == name}
            return
        for alias, number in aliases.items():
            served = self._loaded(name, number)
            if served is None and alias == CHAMPION:
                served = self._fallback(name, [v for v in versions if v != number])
            if served is None:
                continue
            routes[name.encode(), alias.encode()] = served
            routes[name.encode(), str(served.version).encode()] = served
            if alias == CHAMPION:
                routes[name.encode(), b""] = served
                defaults[name] = served.version

    def _retry_moved(self, name: str, aliases: dict[str, int]) -> None:
        """Somebody moved an alias of the model: what did not load is tried again at once."""
        if self._aliases.get(name) != aliases:
            self._aliases[name] = aliases
            self._retries = {key: retry for key, retry in self._retries.items() if key[0] != name}

    def _tell_unreadable(self, what: str, line: str) -> None:
        """Log what is wrong with a model's files, or with the registry (""), once and not at every look."""
        if self._unreadable.get(what) != line:
            _log.warning("%s", line)
        self._unreadable[what] = line

    def _forget(self, name: str, known: set[int]) -> None:
        """Let go of what was told about versions that are in the registry no more."""
        gone = [
            key
            for key, state in self.states.items()
            if key[0] == name and key[1] not in known and state.state == "UNAVAILABLE"
        ]
        self.states = {key: state for key, state in self.states.items() if key not in gone}

    def _fallback(self, name: str, versions: list[int]) -> Served | None:
        """Another version to answer for a champion that does not load: the one that answers now, else the newest."""
        current = self.defaults.get(name)
        for number in sorted(versions, key=lambda v: (v == current, v), reverse=True):
            served = self._loaded(name, number)
            if served is not None:
                return served
        return None

    def _loaded(self, name: str, number: int) -> Served | None:
        """A version, loaded now if it was not; None where it cannot be, and the state says why."""
        key = (name, number)
        if key in self.served:
            return self.served[key]
        if self._looks < self._retries.get(key, (0, 0))[0]:
            return None
        served = self._revived(key)
        if served is None:
            try:
                served = Served(self._registry.load(name, number), self._config, self._lookups)
            except PenstockError as error:
                self._failed(key, str(error))
                return None
            except Exception as error:  # noqa: BLE001  # one version must not stop the others
                self._failed(key, f"loading failed ({type(error).__name__}); the server's log has the detail", error)
                return None
        self.served = {**self.served, key: served}  # a new one, for others are reading the old one
        self.states = {**self.states, key: State("READY")}
        self._retries.pop(key, None)
        _log.info("serving %s version %d, sha256:%s", name, number, served.digest[:16])
        return served

    def _revived(self, key: tuple[str, int]) -> Served | None:
        """The version itself, where it was about to be let go of and is not drained yet."""
        found = next((served for served in self._leaving if (served.name, served.version) == key), None)
        if found is not None:
            self._leaving.remove(found)
        return found

    def _failed(self, key: tuple[str, int], reason: str, fault: Exception | None = None) -> None:
        """Keep why a version is not served; log it once, and a fault of ours with all there is to it."""
        wait = min(2 * self._retries.get(key, (0, 0))[1] or 1, LONGEST_WAIT)
        self._retries[key] = (self._looks + wait, wait)
        state = State("UNAVAILABLE", reason)
        if self.states.get(key) != state:
            _log.error("%s version %d is not served: %s", *key, reason, exc_info=fault)
        self.states = {**self.states, key: state}

    def _retire(self) -> None:
        """Let go of the versions no route leads to.

        They are drained one look later: a transport may have read the old routes just before they were swapped, and its
        call is to be answered, not refused.
        """
        for served in self._leaving:
            _log.info("draining %s version %d", served.name, served.version)
            served.drain()
            self._draining.append(served)
        wanted = {id(served) for served in self.routes.values()}
        self._leaving = [served for served in self.served.values() if id(served) not in wanted]
        gone = {(served.name, served.version) for served in self._leaving}
        self.served = {key: served for key, served in self.served.items() if key not in gone}
        self.states = {**self.states, **dict.fromkeys(gone, State("UNLOADING"))}
        for served in [served for served in self._draining if served.join(0)]:
            self._draining.remove(served)
            if (served.name, served.version) not in self.served:
                self.states = {key: s for key, s in self.states.items() if key != (served.name, served.version)}

    def start_polling(self) -> None:
        """Look at the registry every `poll_s` seconds from now on, in a thread of its own."""
        self._poller = Thread(target=self._poll, name="registry", daemon=True)
        self._poller.start()

    def _poll(self) -> None:
        while not self._stop.wait(self._config.poll_s):
            try:
                self.refresh()
            except Exception:  # noqa: BLE001
                _log.exception("looking at the registry failed; serving goes on as it is")

    def close(self, timeout_s: float) -> bool:
        """Stop polling, finish every queue; False where calls were still running after `timeout_s`."""
        until = time.monotonic() + timeout_s
        self._stop.set()
        if self._poller is not None:
            self._poller.join(timeout_s)  # it may be in the middle of loading a large version
        every = [*self.served.values(), *self._leaving, *self._draining]
        for served in every:
            served.drain()
        return all(served.join(max(0.0, until - time.monotonic())) for served in every)
