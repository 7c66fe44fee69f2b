"""Redis Cluster's grammar as pure functions: which slot a key is in, who has which slots, redirections, and scripts.

After https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/: a slot is CRC16 (XMODEM) modulo 16,384
of the key, or of what stands in its first pair of braces, if anything does. What comes from servers is checked.
"""

from __future__ import annotations

import hashlib
import re
from binascii import crc_hqx
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import hiredis

SLOTS = 16384
REDIRECTION = re.compile(r"(MOVED|ASK) (\d{1,5}) (\S*):(\d{1,5})")
FIRST_KEY = {b"EVAL": 3, b"EVALSHA": 3, b"XGROUP": 2, b"XINFO": 2}  # of other commands the word behind the name

Address = tuple[str, int]


def slot_of(key: bytes) -> int:
    """The slot of a key, in about 0.4 µs."""
    start = key.find(b"{") + 1
    if start and (end := key.find(b"}", start)) > start:
        key = key[start:end]
    return crc_hqx(key, 0) % SLOTS


@dataclass(frozen=True, slots=True)
class Redirection:
    """Ask `address` instead: for this once and with ASKING first, or from now on for the whole slot."""

    once: bool
    slot: int
    address: Address


def redirection(reply: Any, asked: Address) -> Redirection | None:
    """What a reply says about who has the slot; None if it is none of that kind. `asked` is who said so."""
    if type(reply) is not hiredis.ReplyError:
        return None
    found = REDIRECTION.fullmatch(str(reply))
    if found is None or not 0 < int(found[4]) < 1 << 16 or int(found[2]) >= SLOTS:
        return None
    return Redirection(found[1] == "ASK", int(found[2]), (found[3] or asked[0], int(found[4])))


def masters(reply: Any, asked: Address) -> list[tuple[int, int, Address]]:
    """(first slot, last slot, master) of a CLUSTER SLOTS reply; what is not well-formed is left out.

    A master without a host is at the host that was asked.
    """
    found = []
    for entry in reply if isinstance(reply, list) else ():
        match entry:
            case [int(first), int(last), [bytes() | None as host, int(port), *_], *_] if (
                0 <= first <= last < SLOTS and 0 < port < 1 << 16 and host != b"?"
            ):
                found.append((first, last, (host.decode("utf-8", "replace") if host else asked[0], port)))
    return found


def split(request: bytes) -> list[list[bytes]]:
    """The commands in a request of our own, as words."""
    reader = hiredis.Reader()
    reader.feed(request)
    commands = []
    while command := reader.gets():
        commands.append(command)
    return commands


def key_of(words: Sequence[bytes]) -> bytes | None:
    """The key by which a command is routed, None where any server will do."""
    reading = words[0] in (b"XREADGROUP", b"XREAD")
    place = list(words).index(b"STREAMS") + 1 if reading else FIRST_KEY.get(words[0], 1)
    return words[place] if len(words) > place else None


@lru_cache(maxsize=16)
def sha1_of(script: bytes) -> bytes:
    """The name of a script."""
    return hashlib.sha1(script, usedforsecurity=False).hexdigest().encode()


def in_full(commands: Sequence[list[bytes]]) -> list[list[bytes]]:
    """The same, where every call of a script that one of them brings (EVAL) brings its text, too."""
    texts = {sha1_of(words[1]): words[1] for words in commands if words[0] == b"EVAL"}
    return [
        [b"EVAL", texts[words[1]], *words[2:]] if words[0] == b"EVALSHA" and words[1] in texts else words
        for words in commands
    ]


def lacks_script(reply: Any) -> bool:
    """Whether a server says that it was never told the text of a script."""
    return type(reply) is hiredis.ReplyError and str(reply).startswith("NOSCRIPT")
