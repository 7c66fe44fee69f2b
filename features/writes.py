"""What is said to Redis to write rows: the newest event wins, in one round trip, decided where the row is kept.

A script compares the event time of the stored row, at its fixed place in the header, with that of the new one, and
leaves a newer row alone. Of equal times the row written last stays, so a corrected file may be ingested again. Rows
that this view cannot read (another schema id) count as none. Hashes keep their event time in the field `_ts:<view>` (or
the view's `time_field`), as decimal ms; the rule is the same.

A row ends `ttl_s` after its event, whenever it was written: that is the moment at which the offline join stops to see
it, too. One that is over when it is encoded is not kept, nor what it replaces. A hash, which several views may share,
ends `ttl_s` after it was written.

- Writing is idempotent: written twice, in any order, with others in between, the newest event stays. So a link may send
  again what it has no answer to.
- The first call of each request brings the script itself (EVAL) and the others name it by its SHA-1 (EVALSHA): a server
  that was restarted or replaced a moment ago lacks nothing, and nobody keeps account of what was loaded.
- A call has 64 keys, fewer where rows are large, so Redis is held for some 0.2 ms at most before it answers a reader.
  `keys_a_call=1` is for clusters, where the keys of one call must share a slot.

Cost of a row of 150 bytes, in Redis: SET 0.9 µs, this with 64 keys a call 2.5 µs, with one key 4.1 µs. (Of 2.5, the
SETs are 1.0, the arguments 0.5, and an end for each row 0.4; a GETRANGE of each header instead of one MGET adds 0.4.)
Times are compared as float64: exactly up to 2**53 ms, the year 287396.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from penstock.features.columns import Table, now_ms, to_text
from penstock.features.commands import pack, set_hashes, set_rows
from penstock.features.schema import FeatureView
from penstock.features.slots import sha1_of
from penstock.features.store import Written

CALLS = 32  # in one request
MOST_CALLS = (
    256  # where each has few rows: on a cluster a request is a round trip, and one of thousands waits for itself
)
KEYS_A_CALL = 64
CALL_SIZE = 1 << 16  # bytes of rows in one call, about

# KEYS: rows. ARGV: ttl in ms, the event time before which a row is over, the readable schema ids (4 bytes each), then a
# row for each key. Returns how many it set, and how many it did not, for they are over.
NEWEST_ROWS = b"""
local call, time_of, readable, seen, kept, over = redis.call, struct.unpack, {}, {}, 0, 0
for at = 1, #ARGV[3], 4 do readable[ARGV[3]:sub(at, at + 3)] = true end
local stored, ttl, oldest = call('MGET', unpack(KEYS)), tonumber(ARGV[1]), tonumber(ARGV[2])
for i, key in ipairs(KEYS) do
  local row, old, time = ARGV[i + 3], seen[key], time_of('<i8', ARGV[i + 3], 9)
  if old == nil then old = stored[i] end
  if not old or #old < 16 or not readable[old:sub(5, 8)] or time_of('<i8', old, 9) <= time then
    if time >= oldest then
      call('SET', key, row, 'PXAT', math.min(time + ttl, 2 ^ 53))
      seen[key], kept = row, kept + 1
    else
      if old then call('DEL', key) end
      seen[key], over = false, over + 1
    end
  end
end
return {kept, over}"""

# KEYS: one hash. ARGV: ttl in s, field of the event time, event time, how many words are names and values in turn,
# these words, names of fields to delete. Returns as above, where a hash is never over. HSET in slices, for Lua's stack
# holds 8,000 words.
NEWEST_HASH = b"""
local call, key, last = redis.call, KEYS[1], 4 + ARGV[4]
local old = redis.pcall('HGET', key, ARGV[2])
if type(old) == 'table' then
  if not old.err:find('WRONGTYPE', 1, true) then return old end
  call('DEL', key)
end
if type(old) == 'string' and (tonumber(old) or -math.huge) > tonumber(ARGV[3]) then return {0, 0} end
call('HSET', key, ARGV[2], ARGV[3])
for at = 5, last, 1000 do call('HSET', key, unpack(ARGV, at, math.min(at + 999, last))) end
for at = last + 1, #ARGV, 1000 do call('HDEL', key, unpack(ARGV, at, math.min(at + 999, #ARGV))) end
call('EXPIRE', key, ARGV[1])
return {1, 0}"""


@dataclass(frozen=True, slots=True)
class Request:
    """Commands for one write, and what comes back.

    Attributes:
        commands: each as RESP.
        written: what becomes of the rows, where that is known before; else each reply says it, as a pair of numbers.
    """

    commands: Sequence[bytes]
    written: Written | None = None


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
    if view.layout == "row":
        commands, over = set_rows(view, table)
    else:
        commands, over = set_hashes(view, table), []
    size = CALLS * KEYS_A_CALL
    for start in range(0, len(commands), size):
        part, gone = commands[start : start + size], sum(over[start : start + size])
        last = start + size >= len(commands)
        yield Request(part, Written(len(part) - gone, gone) if over else Written(len(table.entities) * last))


def _row_calls(view: FeatureView, table: Table, keys_a_call: int) -> tuple[list[list[bytes]], int]:
    """The calls, and how many of them make a request."""
    keys = view.keys(table.entities)
    rows = view.row_layout.pack(keys, table.values, table.event_times, table.nulls)
    options = [b"%d" % view.lives_ms, b"%d" % (now_ms() - view.lives_ms), b"".join(readable_schemas(view))]
    fitting = max(1, min(KEYS_A_CALL, CALL_SIZE // max(1, len(rows[0])))) if rows else 1
    size = min(keys_a_call, fitting)
    calls = [
        [b"%d" % len(keys[at : at + size]), *keys[at : at + size], *options, *rows[at : at + size]]
        for at in range(0, len(keys), size)
    ]
    return calls, min(CALLS * fitting // size, MOST_CALLS)


def _hash_calls(view: FeatureView, table: Table) -> Iterator[list[bytes]]:
    texts = [to_text(values) for values in table.values]
    times, ttl, field = table.event_times.tolist(), b"%d" % view.ttl_s, view.stamp
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
