"""What is said to Redis and what comes back, as pure functions over bytes: both layouts, reading and writing.

Row layout: `fs:{<entity>}:<view>` is one string, read by MGET over all views and entities of a batch.
Hash layout: `features:<entity>` is a hash of decimal strings, read by one HMGET or HGETALL an entity in the same write
(`features/hashes.py` says which).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import hiredis
from hiredis import pack_command

from penstock.features.columns import Table, now_ms, to_text
from penstock.features.evolution import unpack
from penstock.features.hashes import decode_hashes
from penstock.features.schema import FeatureView
from penstock.features.store import FetchedRows, Lookup
from penstock.kernels.hashes import pick
from penstock.kernels.joins import ROW_LOST

Keys = Sequence[Sequence[bytes]]
Learn = Callable[[tuple[bytes, ...], Sequence[Any]], None]
WIDER = 8
"""Times the wanted values that a reply to a read of hashes may have: fields and values, of whole hashes."""


def pack(*words: bytes | str) -> bytes:
    """One command as RESP; about 0.1 µs a word."""
    packed: bytes = pack_command(words)  # type: ignore[arg-type]  # hiredis' stub says a tuple of one
    return packed


def hmgets(keys: Sequence[bytes], fields: Sequence[bytes]) -> list[bytes]:
    """One HMGET a key, 0.3 µs each: the fields are the same for all and packed once."""
    start = b"*%d\r\n$5\r\nHMGET\r\n" % (len(fields) + 2)
    end = b"".join([b"$%d\r\n%b\r\n" % (len(field), field) for field in fields])
    return [b"%b$%d\r\n%b\r\n%b" % (start, len(key), key, end) for key in keys]


def hash_reads(keys: Sequence[bytes], fields: Sequence[bytes], whole: int) -> list[bytes]:
    """One command a key: the first `whole` of them read the whole hash, the others some fields."""
    return [*(pack(b"HGETALL", key) for key in keys[:whole]), *hmgets(keys[whole:], fields)]


def encode_fetch(lookups: Sequence[Lookup], keys: Keys, whole: Sequence[int]) -> tuple[bytes, int, int]:
    """The request for all lookups, its number of replies, and of values in them.

    `keys[i]` belong to `lookups[i]`, and of its hashes the first `whole[i]` are read whole.
    """
    rows: list[bytes] = [b"MGET"]
    hashes: list[bytes] = []
    values = 0
    for lookup, own, whole_ones in zip(lookups, keys, whole, strict=True):
        if lookup.view.layout == "row":
            rows += own
        else:
            fields = lookup.view.read_fields
            hashes += hash_reads(own, fields, whole_ones)
            values += WIDER * len(own) * len(fields)
    values += len(rows) - 1
    if len(rows) > 1:
        hashes.insert(0, pack(*rows))
    return b"".join(hashes), len(hashes), values


def encode_singly(lookups: Sequence[Lookup], keys: Keys, whole: Sequence[int]) -> tuple[list[bytes], list[bytes], int]:
    """The same as one command for each key, where keys are kept by several servers.

    The commands, rows before hashes, the key of each, and the number of values in all replies.
    """
    order = sorted(range(len(lookups)), key=lambda i: lookups[i].view.layout != "row")
    commands: list[bytes] = []
    flat: list[bytes] = []
    values = 0
    for i in order:
        view, own = lookups[i].view, keys[i]
        is_row = view.layout == "row"
        commands += [pack(b"GET", key) for key in own] if is_row else hash_reads(own, view.read_fields, whole[i])
        flat += own
        values += len(own) * (1 if is_row else WIDER * len(view.read_fields))
    return commands, flat, values


def together(lookups: Sequence[Lookup], replies: Sequence[Any], whole: Sequence[int]) -> list[Any]:
    """The replies to `encode_singly` as `decode_fetch` takes them; what is no reply counts as absent."""
    rows = sum(len(lookup.entities) for lookup in lookups if lookup.view.layout == "row")
    widths = [
        0 if place < whole_ones else len(one.view.read_fields)
        for one, whole_ones in zip(lookups, whole, strict=True)
        if one.view.layout != "row"
        for place in range(len(one.entities))
    ]
    hashes = [
        reply if type(reply) in (list, hiredis.ReplyError) else [None] * width
        for reply, width in zip(replies[rows:], widths, strict=True)
    ]
    return [[row if type(row) is bytes else None for row in replies[:rows]], *hashes] if rows else hashes


def mark_lost(
    lookups: Sequence[Lookup], answers: Sequence[FetchedRows], troubles: Sequence[str | None]
) -> list[FetchedRows]:
    """The answers, with those rows lost to whose command (in the order of `encode_singly`) nobody replied."""
    if not any(troubles):
        return list(answers)
    marked = list(answers)
    start = 0
    for i in sorted(range(len(lookups)), key=lambda i: lookups[i].view.layout != "row"):
        own = troubles[start : start + len(lookups[i].entities)]
        start += len(own)
        for row, trouble in enumerate(own):
            if trouble is not None:
                marked[i].status[row] = ROW_LOST
        marked[i] = replace(marked[i], trouble=next((trouble for trouble in own if trouble), ""))
    return marked


def decode_fetch(
    lookups: Sequence[Lookup], keys: Keys, replies: Sequence[Any], whole: Sequence[int], learn: Learn
) -> list[FetchedRows]:
    """The replies to `encode_fetch`; ValueError if they do not have the shape of the request.

    `learn` is told the fields of a view and what was read whole.
    """
    wanted = sum([len(own) for lookup, own in zip(lookups, keys, strict=True) if lookup.view.layout == "row"])
    rows = replies[0] if wanted else []
    if type(rows) is not list or len(rows) != wanted:
        raise ValueError("a reply that does not have the shape of the request")
    row, reply = 0, 1 if wanted else 0
    answers = []
    for lookup, own, whole_ones in zip(lookups, keys, whole, strict=True):
        answer = FetchedRows.empty(lookup)
        if lookup.view.layout == "row":
            own_rows = rows[row : row + len(own)] if len(own) != wanted else rows
            unpack(lookup.view, own, own_rows, answer.values, answer.event_times, answer.status)
            row += len(own)
        else:
            fields, own_hashes = lookup.view.read_fields, replies[reply : reply + len(own)]
            if whole_ones:
                learn(fields, own_hashes[:whole_ones])
                own_hashes = [*pick(own_hashes[:whole_ones], fields), *own_hashes[whole_ones:]]
            found = as_hashes(own_hashes, len(fields))
            decode_hashes(lookup.view, found, answer.values, answer.event_times, answer.status)
            reply += len(own)
        answers.append(answer)
    return answers


def as_hashes(replies: Sequence[Any], width: int) -> list[list[bytes | None]]:
    """HMGET replies; a key that holds something else (WRONGTYPE) is an absent entity."""
    absent: list[bytes | None] = [None] * width
    for reply in replies:
        if type(reply) is not list and not is_wrong_type(reply):
            raise ValueError("a reply that does not have the shape of the request")
    hashes = [reply if type(reply) is list else absent for reply in replies]
    if any(len(reply) != width for reply in hashes):
        raise ValueError("a reply that does not have the shape of the request")
    return hashes


def is_wrong_type(reply: Any) -> bool:
    """Whether the reply says that the key holds another kind of value."""
    return type(reply) is hiredis.ReplyError and str(reply).startswith("WRONGTYPE")


def set_rows(view: FeatureView, table: Table) -> tuple[list[bytes], list[bool]]:
    """One SET that ends with the row's time an entity, or DEL where that is over by our clock; and which those are."""
    keys, now = view.keys(table.entities), now_ms()
    rows = view.row_layout.pack(keys, table.values, table.event_times, table.nulls)
    ends = [time_ms + view.lives_ms for time_ms in table.event_times.tolist()]
    commands = [
        pack(b"SET", key, row, b"PXAT", b"%d" % end) if end >= now else pack(b"DEL", key)
        for key, row, end in zip(keys, rows, ends, strict=True)
    ]
    return commands, [end < now for end in ends]


def set_hashes(view: FeatureView, table: Table) -> list[bytes]:
    """HSET of what there is, HDEL of what is null, EXPIRE of the whole hash (which other views may share)."""
    texts = [to_text(values) for values in table.values]
    times, ttl, stamp = table.event_times.tolist(), b"%d" % view.ttl_s, view.stamp
    commands: list[bytes] = []
    for i, key in enumerate(view.keys(table.entities)):
        pairs: list[bytes] = [stamp, b"%d" % times[i]]
        gone: list[bytes] = []
        for field, text, nulls in zip(view.fields, texts, table.nulls, strict=True):
            if nulls is not None and nulls[i]:
                gone.append(field)
            else:
                pairs += (field, text[i])
        if gone:
            commands.append(pack(b"HDEL", key, *gone))
        commands += (pack(b"HSET", key, *pairs), pack(b"EXPIRE", key, ttl))
    return commands
