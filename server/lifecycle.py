"""Which versions are served: loading, swapping and draining them as the registry's aliases move.

Served are, for each model, the versions its aliases point at. A version is loaded, verified and warmed before any call
reaches it; then the routes are swapped in one step and what is no longer wanted finishes its queue. A version that does
not load never takes one that does out of service: calls go on to the previous one and the reason is told.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from threading import Event, Lock, Thread

from penstock.errors import PenstockError
from penstock.features.store import FeatureStore
from penstock.kernels.lanes import Lane
from penstock.registry import Registry, RegistryError
from penstock.server.config import Config
from penstock.server.errors import UnknownModel
from penstock.server.version import Served

_log = logging.getLogger("penstock.server")

CHAMPION = "champion"
Routes = dict[tuple[bytes, bytes], Lane]


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
        store: the feature store, or None.
        on_change: called with the names of the models that answer, after every change.
    """

    def __init__(
        self,
        registry: Registry,
        config: Config,
        store: FeatureStore | None,
        on_change: Callable[[set[str]], None] = lambda names: None,
    ) -> None:
        self._registry = registry
        self._config = config
        self._store = store
        self._on_change = on_change
        self._refreshing = Lock()
        self._stop = Event()
        self._poller: Thread | None = None
        self._draining: list[Served] = []
        self.served: dict[tuple[str, int], Served] = {}
        self.states: dict[tuple[str, int], State] = {}
        self.routes: Routes = {}
        self.defaults: dict[str, int] = {}

    def lane(self, key: tuple[bytes, bytes]) -> Lane:
        """The lane of (model name, version or alias or nothing).

        Raises:
            UnknownModel: nothing is served under that name.
        """
        lane = self.routes.get(key)
        if lane is None:
            raise self._unknown(key[0].decode("utf-8", "replace"), key[1].decode("utf-8", "replace"))
        return lane

    def find(self, name: str, version: str = "") -> Served:
        """The served version behind a name and a version, an alias or nothing."""
        lane = self.lane((name.encode(), version.encode()))
        return next(served for served in self.served.values() if served.lane is lane)

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

    def refresh(self) -> None:
        """Look at the registry and make what is served what its aliases say."""
        with self._refreshing:
            try:
                names = set(self._registry.models())
            except RegistryError as error:
                _log.warning("the registry cannot be read, serving goes on as it is: %s", error)
                return
            routes: Routes = {}
            defaults: dict[str, int] = {}
            for name in sorted(names | {model for model, _ in self.served}):
                self._refresh_model(name, routes, defaults)
            self.routes, self.defaults = routes, defaults
            self._retire()
            self._on_change(set(defaults))

    def _refresh_model(self, name: str, routes: Routes, defaults: dict[str, int]) -> None:
        """Add the routes of one model, loading what is new."""
        try:
            aliases, versions = self._registry.aliases(name), self._registry.versions(name)
        except RegistryError as error:
            _log.warning("model %s: %s; what is loaded goes on", name, error)
            aliases, versions = {}, []
            if name in self.defaults:
                aliases = {CHAMPION: self.defaults[name]}
        for alias, number in aliases.items():
            served = self._loaded(name, number)
            if served is None and alias == CHAMPION:
                served = self._fallback(name, [v for v in versions if v != number])
            if served is None:
                continue
            routes[name.encode(), alias.encode()] = served.lane
            routes[name.encode(), str(served.version).encode()] = served.lane
            if alias == CHAMPION:
                routes[name.encode(), b""] = served.lane
                defaults[name] = served.version

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
        if key not in self.states:
            _log.info("loading %s version %d", name, number)
        try:
            served = Served(self._registry.load(name, number), self._config, self._store)
        except PenstockError as error:
            if self.states.get(key) != State("UNAVAILABLE", str(error)):
                _log.error("%s version %d is not served: %s", name, number, error)
            self.states[key] = State("UNAVAILABLE", str(error))
            return None
        self.served[key] = served
        self.states[key] = State("READY")
        _log.info("serving %s version %d, sha256:%s", name, number, served.digest[:16])
        return served

    def _retire(self) -> None:
        """Drain the versions no route leads to, and let go of those that have finished."""
        wanted = {id(lane) for lane in self.routes.values()}
        for key, served in list(self.served.items()):
            if id(served.lane) not in wanted:
                _log.info("draining %s version %d", *key)
                self.served = {k: v for k, v in self.served.items() if k != key}
                self.states[key] = State("UNLOADING")
                served.drain()
                self._draining.append(served)
        for served in list(self._draining):
            if served.join(0):
                self._draining.remove(served)
                self.states.pop((served.name, served.version), None)

    def start_polling(self) -> None:
        """Look at the registry every `poll_s` seconds from now on, in a thread of its own."""
        self._poller = Thread(target=self._poll, name="registry", daemon=True)
        self._poller.start()

    def _poll(self) -> None:
        while not self._stop.wait(self._config.poll_s):
            try:
                self.refresh()
            except Exception:
                _log.exception("looking at the registry failed; serving goes on as it is")

    def close(self, timeout_s: float) -> bool:
        """Stop polling, finish every queue; False where calls were still running after `timeout_s`."""
        self._stop.set()
        if self._poller is not None:
            self._poller.join()
        every = [*self.served.values(), *self._draining]
        for served in every:
            served.drain()
        return all([served.join(timeout_s) for served in every])
