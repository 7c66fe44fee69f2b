"""Redis Cluster: every key is asked of the master that has its slot, and all masters at the same time.

- One look-up is one write to each master that has some of its keys, all of them on their way together: one round trip.
  Keys are asked one by one (GET), since MGET takes keys of one slot only.
- Who has which slot is asked of any node (CLUSTER SLOTS): in line when nothing is known, else beside the requests in a
  thread, after a redirection or a failure and at most once a second. Redirections are followed at once, at most `HOPS`.
- Each master is told the text of a script before it is called by its name. Who lacks it all the same, since the call
  that brought it was redirected, is sent the text like one to whom a call was redirected.
- A master that does not answer loses its own keys only: their replies are `Lost`. Each has its breaker and its links.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from penstock.features.commands import pack
from penstock.features.connecting import Connector
from penstock.features.errors import FeatureError, StoreMisconfigured, StoreUnavailable
from penstock.features.nodes import Ask, Flight, Name, Node
from penstock.features.slots import (
    SLOTS,
    Address,
    in_full,
    key_of,
    lacks_script,
    masters,
    redirection,
    sha1_of,
    slot_of,
    split,
)

HOPS = 4
REFRESH_S = 1.0
ASK_S = 0.25  # for one node to tell the slots
MAX_NODES = 1000
MAX_TOLD = 1 << 22  # bytes of a CLUSTER SLOTS reply
ASKING = pack(b"ASKING")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Lost:
    """In place of a reply: why there is none."""

    error: StoreUnavailable


class Step(NamedTuple):
    """What is to do: a command, by its place, goes to an address (None: nobody has its slot), after ASKING or not."""

    command: int
    address: Address | None
    asking: bool = False


class Cluster:
    """The masters of one cluster. Safe to use from many threads.

    Args:
        seeds: connectors to some of its nodes.
    """

    def __init__(self, seeds: Sequence[Connector]) -> None:
        self._connector = seeds[0]
        self._seeds = [seed.address for seed in seeds]
        self.name = Name(seeds[0].name.what, ",".join(seed.name.where for seed in seeds))
        self._nodes: dict[Address, Node] = {}
        self._owners: list[Address | None] = [None] * SLOTS
        self._known = False
        self._lock = threading.Lock()
        self._refreshing = threading.Lock()
        self._next_refresh = 0.0

    def ask_keys(
        self, commands: Sequence[bytes], keys: Sequence[bytes], ask: Ask, again: Callable[[int], bytes] | None = None
    ) -> list[Any]:
        """The reply to each command, or `Lost`; `keys[i]` is where command i belongs, and `ask` says all else.

        `again(i)` is what to send of it elsewhere; None: the same.

        Raises:
            StoreUnavailable: it is not known who has the keys.
            StoreMisconfigured: a master refuses us.
        """
        if not self._known:
            self._learn(ask.deadline)
        words = list(commands)
        replies: list[Any] = [None] * len(words)
        todo = [Step(i, self._owners[slot_of(key)]) for i, key in enumerate(keys)]
        for _ in range(HOPS):
            todo = self._hop(todo, words, replies, ask)
            if not todo:
                return replies
            if again is not None:
                for step in todo:
                    words[step.command] = again(step.command)
        for step in todo:
            replies[step.command] = Lost(self.name.unavailable("its slots are being moved"))
        return replies

    def ask(self, ask: Ask) -> list[Any]:
        """The replies to commands for any keys; raises where one of them has none."""
        commands = in_full(split(ask.request))
        keys = [key_of(words) or b"" for words in commands]
        if not self._known:
            self._learn(ask.deadline)
        sent = [pack(*words) for words in self._by_name(commands, keys)]
        replies = self.ask_keys(sent, keys, ask, lambda i: pack(*commands[i]))
        for reply in replies:
            if type(reply) is Lost:
                raise reply.error
        return replies

    def masters(self, deadline: float) -> list[Node]:
        """Every master that has slots, by address."""
        if not self._known:
            self._learn(deadline)
        return [self._node(address) for address in sorted({one for one in self._owners if one is not None})]

    def known(self) -> list[Node]:
        """Every node that was asked something lately."""
        with self._lock:
            return list(self._nodes.values())

    def close(self) -> None:
        """Close every connection."""
        with self._lock:
            for node in self._nodes.values():
                node.close()

    def _hop(self, todo: Sequence[Step], commands: Sequence[bytes], replies: list[Any], ask: Ask) -> list[Step]:
        """Ask for what is to do, all masters at once; what is still to do, elsewhere."""
        groups: dict[tuple[Address | None, bool], list[int]] = {}
        for step in todo:
            groups.setdefault((step.address, step.asking), []).append(step.command)
        flights = [(self._begin(*to, [commands[i] for i in group], ask), to, group) for to, group in groups.items()]
        redirected: list[Step] = []
        refusal: StoreMisconfigured | None = None
        for flight, (address, asking), group in flights:
            try:
                got = flight.finish() if flight is not None else self._nobody()
            except StoreUnavailable as error:
                self._refresh_soon()
                got = [Lost(error)] * len(group) * (1 + asking)
            except StoreMisconfigured as error:
                refusal = error
                continue
            for i, reply in zip(group, got[1::2] if asking else got, strict=True):
                replies[i] = reply
                if (next_step := self._next(Step(i, address, asking), reply)) is not None:
                    redirected.append(next_step)
        if refusal is not None:  # after every flight has landed
            raise refusal
        return redirected

    def _begin(self, address: Address | None, asking: bool, commands: Sequence[bytes], ask: Ask) -> Flight | None:
        if address is None:
            return None
        words = [part for command in commands for part in (ASKING, command)] if asking else commands

        def tolerate(reply: Any) -> bool:
            return ask.tolerate(reply) or lacks_script(reply) or redirection(reply, address) is not None

        return self._node(address).begin(ask._replace(request=b"".join(words), n_replies=len(words), tolerate=tolerate))

    def _nobody(self) -> list[Any]:
        raise self.name.unavailable("nobody has some of its slots")

    def _next(self, step: Step, reply: Any) -> Step | None:
        """Where a command is to go after this step, if the reply says so."""
        if step.address is None:
            return None
        if lacks_script(reply):
            return step
        found = redirection(reply, step.address)
        if found is None:
            return None
        if not found.once:
            self._owners[found.slot] = found.address
            self._refresh_soon()
        return Step(step.command, found.address, found.once)

    def _by_name(self, commands: Sequence[list[bytes]], keys: Sequence[bytes]) -> list[list[bytes]]:
        """The same, where each master is told the text of a script once and then only its name."""
        told: set[tuple[Address | None, bytes]] = set()
        sent = []
        for words, key in zip(commands, keys, strict=True):
            if words[0] != b"EVAL":
                sent.append(words)
                continue
            place = self._owners[slot_of(key)], sha1_of(words[1])
            sent.append([b"EVALSHA", place[1], *words[2:]] if place in told else words)
            told.add(place)
        return sent

    # Who has what ---------------------------------------------------------------------------------------------------

    def _node(self, address: Address) -> Node:
        node = self._nodes.get(address)
        if node is None:
            with self._lock:
                if len(self._nodes) >= MAX_NODES:
                    raise self.name.unavailable(f"it names more than {MAX_NODES} nodes")
                connector = self._connector.at(address)
                node = self._nodes.setdefault(address, Node(connector.name, connector.connect))
        return node

    def _learn(self, deadline: float) -> None:
        """Ask who has the slots, now; raises what the last node said if none tells."""
        if not self._refreshing.acquire(timeout=max(deadline - time.monotonic(), 0.0)):
            raise self.name.unavailable(TimeoutError())
        try:
            if not self._known:
                self._refresh(deadline)
        finally:
            self._refreshing.release()

    def _refresh_soon(self) -> None:
        """Ask again, in a thread, unless that is being done or was a moment ago."""
        now = time.monotonic()
        with self._lock:
            if now < self._next_refresh:
                return
            self._next_refresh = now + REFRESH_S * (0.75 + random.random() / 2)  # noqa: S311 -- to spread load
        threading.Thread(target=self._refresh_beside, name="penstock-slots", daemon=True).start()

    def _refresh_beside(self) -> None:
        if self._refreshing.acquire(blocking=False):
            try:
                self._refresh(time.monotonic() + REFRESH_S)
            except FeatureError as error:
                log.debug("%s", error)  # those who ask for keys say what is wrong
            finally:
                self._refreshing.release()

    def _refresh(self, deadline: float) -> None:
        failure: FeatureError = self.name.unavailable(TimeoutError())
        known = [*dict.fromkeys([*random.sample(list(self._nodes), len(self._nodes)), *self._seeds])]
        for address in known:
            limit = min(deadline, time.monotonic() + ASK_S)
            try:
                reply = self._node(address).ask(Ask(pack(b"CLUSTER", b"SLOTS"), 1, limit, MAX_TOLD))[0]
            except FeatureError as error:
                failure = error
                continue
            if found := masters(reply, address):
                self._adopt(found)
                return
            failure = self.name.unavailable("it has no slots")
        raise failure

    def _adopt(self, found: Sequence[tuple[int, int, Address]]) -> None:
        owners: list[Address | None] = [None] * SLOTS
        for first, last, address in found:
            owners[first : last + 1] = [address] * (last + 1 - first)
        self._owners, self._known = owners, True
        used = {address for _, _, address in found}
        with self._lock:
            for address in set(self._nodes) - used:
                self._nodes.pop(address).close()
