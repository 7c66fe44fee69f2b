"""The same row at the same time: what the online store gives at t is what the join gives a label of t."""

from __future__ import annotations

import random
import tempfile
import time
from contextlib import closing

import numpy as np
import pyarrow as pa
import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.features import Column, FeatureView, Lookup, open_store
from penstock.features.memory import MemoryStore
from penstock.features.offline import OfflineStore, join

DAY = 86_400_000
IDS = ("a", "b")


def view(ttl_s=2, **fields):
    columns = [Column(name="x", dtype="int64")]
    given = {"name": "v", "entity": "id", "columns": columns, "ttl_s": ttl_s, "on_missing": "nan"}
    return FeatureView(**given | fields)


def offline(one, rows, labels):
    """x of labels (id, t), by a history of rows (id, x, event time, when it was written) in the order of writing."""
    ids, values, events, written = zip(*rows, strict=True)
    table = {"id": ids, "x": values, "event_time": np.array(events, np.int64), "known": np.array(written, np.int64)}
    with tempfile.TemporaryDirectory() as root:
        OfflineStore(root).write(one, table, created="known")
        frame = {"id": [i for i, _ in labels], "at": pa.array([t for _, t in labels], pa.int64())}
        return join(frame, one, root, time="at")["x"].to_numpy().tolist()


def online(one, rows, labels):
    """The same by a store that rows are written to and labels asked of as time goes by."""
    now = 0
    store = MemoryStore(clock=lambda: now)
    found = [np.nan] * len(labels)
    actions = [(written, 0, n) for n, (_, _, _, written) in enumerate(rows)]
    actions += [(asked, 1, n) for n, (_, asked) in enumerate(labels)]
    for now, asks, n in sorted(actions):  # noqa: B007 -- it is the clock
        if asks:
            found[n] = store.fetch([Lookup(one, [labels[n][0].encode()])], 1)[0].values[0, 0].item()
        else:
            identifier, value, event, _ = rows[n]
            store.prepare(one, [identifier.encode()], {"x": np.array([value])}, np.array([event]))()
    return found


@st.composite
def histories(draw):
    """Rows and labels of few entities and times, most of them a ttl apart to the millisecond, and all known by then."""
    ttl_s = draw(st.integers(1, 3))
    apart = [k * 1000 * ttl_s + e for k in range(3) for e in (-1, 0, 1)]
    times = st.one_of(st.sampled_from([DAY + t for t in apart]), st.integers(DAY - 5, DAY + 5000))
    ages = st.one_of(st.sampled_from([t for t in apart if t >= 0]), st.integers(0, 5000))
    writes = draw(st.lists(st.tuples(st.sampled_from(IDS), times, ages), min_size=1, max_size=8))
    writes.sort(key=lambda write: write[1])
    rows = [(identifier, n, written - age, written) for n, (identifier, written, age) in enumerate(writes)]
    return view(ttl_s), rows, draw(st.lists(st.tuples(st.sampled_from(IDS), times), min_size=1, max_size=12))


def agree(history):
    np.testing.assert_array_equal(online(*history), offline(*history))


@settings(max_examples=25)
@given(histories())
def test_the_store_and_the_join_give_the_same_row_at_any_time(history):
    """Late, repeated and corrected events, some of them over when they are written, and the edges of their time."""
    agree(history)


@pytest.mark.slow
@pytest.mark.timeout(600)
@settings(max_examples=2000)
@given(histories())
def test_they_do_so_again_and_again(history):
    agree(history)


END = """
local before, left, after = redis.call('TIME'), redis.call('PTTL', KEYS[1]), redis.call('TIME')
return {before[1] .. string.format('%06d', before[2]), left, after[1] .. string.format('%06d', after[2])}"""


def end_of(client, key):
    """When a key ends, ms since 1970, to the ms; -1 where there is none. (PEXPIRETIME is not in Redis 6.2.)"""
    while True:
        before, left, after = client.eval(END, 1, key)
        if int(before) // 1000 == int(after) // 1000:
            return int(before) // 1000 + left if left >= 0 else -1


@pytest.mark.every_server
@pytest.mark.parametrize("overwrite", [False, True])
def test_redis_lets_rows_go_at_the_time_at_which_the_join_does(redis_url, overwrite):
    """Of every row Redis says when it ends: at and after that millisecond the join must see it, or not."""
    chance, minute = random.Random(3), 60_000
    with closing(open_store(redis_url)) as store, redis.Redis.from_url(redis_url) as client:
        for ttl_s in (3 * 3600, 10 * 3600):
            one = view(ttl_s, name=f"v{ttl_s}")
            before = time.time_ns() // 1_000_000
            writes = [(str(i // 3), i, before - chance.randrange(12 * 60) * minute - minute // 2) for i in range(180)]
            if overwrite:  # for one event each, since then the last one written stays and not the newest
                writes = writes[::3]
            ids, values, events = zip(*writes, strict=True)
            store.put(one, ids, {"x": list(values)}, list(events), overwrite=overwrite)
            after = time.time_ns() // 1_000_000
            labels, expected = [], []
            for i in dict.fromkeys(ids):
                row, end = store.get(one, [i]), end_of(client, one.key(i.encode()))
                for asked in {after, max(end, after), max(end, after) + 1, before + 3600_000}:
                    labels.append((i, asked))
                    expected.append(float(row["x"][0]) if end >= asked else np.nan)
            known = [(*write, before) for write in writes]
            np.testing.assert_array_equal(offline(one, known, labels), expected)
            assert 20 < np.isnan(expected).sum() < len(expected) - 20
