"""What is said to Redis to write rows: the newest event wins, in one round trip, decided where the row is kept.

A script compares the event time of the stored row, at its fixed place in the header, with that of the new one, and
leaves a newer row alone. Of equal times the row written last stays, so a corrected file may be ingested again. Rows
that this view cannot read (another schema id) count as none. Hashes keep their event time in the field `_ts:<view>`, as
decimal ms; the rule is the same.

- Writing is idempotent: written twice, in any order, with others in between, the newest event stays. So a link may send
  again what it has no answer to.
- The first call of each request brings the script itself (EVAL) and the others name it by its SHA-1 (EVALSHA): a server
  that was restarted or replaced a moment ago lacks nothing, and nobody keeps account of what was loaded.
- A call has 64 keys, fewer where rows are large, so Redis is held for some 0.2 ms at most before it answers a reader.
  `keys_a_call=1` is for clusters, where the keys of one call must share a slot.

Cost of a row of 150 bytes, in Redis: SET 0.9 µs, this with 64 keys a call 2.1 µs, with one key 3.6 µs. (Of 2.1, the
SETs are 1.0 and the arguments 0.5; a GETRANGE of each header instead of one MGET makes it 2.5.)
Times are compared as float64: exactly up to 2**53 ms, the year 287396.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from penstock.features.columns import Table, to_text
from penstock.features.commands import pack, set_hashes, set_rows, time_field
from penstock.features.schema import FeatureView
from penstock.features.slots import sha1_of

CALLS = 32  # in one request
MOST_CALLS = (
    256  # where each has few rows: on a cluster a request is a round trip, and one of thousands waits for itself
)
KEYS_A_CALL = 64
CALL_SIZE = 1 << 16  # bytes of rows in one call, about

# KEYS: rows. ARGV: ttl in s, the readable schema ids (4 bytes each), then a row for each key. Returns how many it set.
NEWEST_ROWS = b"""
local call, time_of, readable, seen, written = redis.call, struct.unpack, {}, {}, 0
for at = 1, #ARGV[2], 4 do readable[ARGV[2]:sub(at, at + 3)] = true end
local stored = call('MGET', unpack(KEYS))
for i, key in ipairs(KEYS) do
  local row, old = ARGV[i + 2], seen[key] or stored[i]
  if not old or #old < 16 or not readable[old:sub(5, 8)] or time_of('<i8', old, 9) <= time_of('<i8', row, 9) then
    call('SET', key, row, 'EX', ARGV[1])
    seen[key] = row
    written = written + 1
  end
end
return written"""

# KEYS: one hash. ARGV: ttl in s, field of the event time, event time, how many words are names and values in turn,
# these words, names of fields to delete. Returns 1 if it was written. HSET in slices, for Lua's stack holds 8,000
# words.
NEWEST_HASH = b"""
local call, key, last = redis.call, KEYS[1], 4 + ARGV[4]
local old = redis.pcall('HGET', key, ARGV[2])
if type(old) == 'table' then
  if not old.err:find('WRONGTYPE', 1, true) then return old end
  call('DEL', key)
end
if type(old) == 'string' and (tonumber(old) or -math.huge) > tonumber(ARGV[3]) then return 0 end
call('HSET', key, ARGV[2], ARGV[3])
for at = 5, last, 1000 do call('HSET', key, unpack(ARGV, at, math.min(at + 999, last))) end
for at = last + 1, #ARGV, 1000 do call('HDEL', key, unpack(ARGV, at, math.min(at + 999, #ARGV))) end
call('EXPIRE', key, ARGV[1])
return 1"""


@dataclass(frozen=True, slots=True)
class Request:
    """Commands for one write, and what comes back.

    Attributes:
        commands: each as RESP.
        rows: how many are written, where that is known before; else each reply is a number of rows.
    """

    commands: Sequence[bytes]
    rows: int | None = None


def write_requests(
    view: FeatureView, table: Table, *, overwrite: bool, keys_a_call: int = KEYS_A_CALL
) -> Iterator[Request]:
    """The requests that write `table`; with `overwrite` whatever is stored, by plain commands."""
    if overwrite:
        yield from _overwriting(view, table)
    elif view.layout == "row":
        calls, at_once = _row_calls(view, table, keys_a_call)
        yield from _calls(NEWEST_ROWS, calls, at_once)
    else:
        yield from _calls(NEWEST_HASH, list(_hash_calls(view, table)), CALLS)


def _overwriting(view: FeatureView, table: Table) -> Iterator[Request]:
    one_each = view.layout == "row"
    commands = set_rows(view, table) if one_each else set_hashes(view, table)
    size = CALLS * KEYS_A_CALL
    for start in range(0, len(commands), size):
        part = commands[start : start + size]
        last = start + size >= len(commands)
        yield Request(part, len(part) if one_each else len(table.entities) * last)


def _row_calls(view: FeatureView, table: Table, keys_a_call: int) -> tuple[list[list[bytes]], int]:
    """The calls, and how many of them make a request."""
    keys = view.keys(table.entities)
    rows = view.row_layout.pack(keys, table.values, table.event_times, table.nulls)
    options = [b"%d" % view.ttl_s, b"".join(readable_schemas(view))]
    fitting = max(1, min(KEYS_A_CALL, CALL_SIZE // max(1, len(rows[0])))) if rows else 1
    size = min(keys_a_call, fitting)
    calls = [
        [b"%d" % len(keys[at : at + size]), *keys[at : at + size], *options, *rows[at : at + size]]
        for at in range(0, len(keys), size)
    ]
    return calls, min(CALLS * fitting // size, MOST_CALLS)


def _hash_calls(view: FeatureView, table: Table) -> Iterator[list[bytes]]:
    texts = [to_text(values) for values in table.values]
    times, ttl, field = table.event_times.tolist(), b"%d" % view.ttl_s, time_field(view)
    for i, key in enumerate(view.keys(table.entities)):
        words: list[bytes] = []
        gone: list[bytes] = []
        for name, text, nulls in zip(view.fields, texts, table.nulls, strict=True):
            if nulls is not None and nulls[i]:
                gone.append(name)
            else:
                words += (name, text[i])
        yield [b"1", key, ttl, field, b"%d" % times[i], b"%d" % len(words), *words, *gone]


def _calls(script: bytes, calls: Sequence[list[bytes]], at_once: int) -> Iterator[Request]:
    """Calls of a script, each given from its number of keys on, so many in a request."""
    for start in range(0, len(calls), at_once):
        part = calls[start : start + at_once]
        named = [pack(b"EVALSHA", sha1_of(script), *words) for words in part[1:]]
        yield Request([pack(b"EVAL", script, *part[0]), *named])


def readable_schemas(view: FeatureView) -> tuple[bytes, ...]:
    """The schema ids of rows that this view can read, as they stand in headers: u32, little-endian."""
    return tuple(struct.pack("<I", schema_id) for schema_id in view.readable)
