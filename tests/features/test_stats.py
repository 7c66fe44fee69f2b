"""Statistics of a store: exact where it is small, estimated where it is not, bounded either way."""

import numpy as np
import pytest

from penstock.features import Column, FeatureView
from penstock.features.stats import survey


def now_ms():
    return np.datetime64("now", "ms").astype(np.int64)


def view(name, **fields):
    columns = [Column(name="a", dtype="float32"), Column(name="b", dtype="int32")]
    return FeatureView(**{"name": name, "entity": "id", "columns": columns} | fields)


def fill(store, one, count, **columns):
    ids = [f"{one.name}-{i}" for i in range(count)]
    values = {"a": np.ones(count), "b": np.arange(count)} | columns
    store.put(one, ids, values, now_ms() - 1000 * np.arange(count))


def test_a_small_store_is_counted_exactly(store):
    many, few, none = view("many"), view("few"), view("none")
    fill(store, many, 40, a=[np.nan] * 10 + [1.0] * 30)
    fill(store, few, 3)
    told = {one.view: one for one in survey(store, [many, few, none])}
    assert [(one.rows, one.is_exact, one.sampled) for one in told.values()] == [
        (40, True, 40),
        (3, True, 3),
        (0, True, 0),
    ]
    assert told["many"].nulls == {"a": 0.25, "b": 0}
    assert told["many"].row_bytes == pytest.approx(len("fs:{many-10}:many") + 24 + 1 + 8, abs=1)
    assert told["many"].ages_s["p50"] == pytest.approx(19.5, abs=5)
    assert told["many"].ages_s["max"] == pytest.approx(39, abs=5)
    assert told["none"].ages_s == {}


def test_no_more_is_looked_at_than_asked_and_the_rest_is_estimated(store):
    one = view("one")
    fill(store, one, 5000)
    seen = []
    [told] = survey(
        store, [one], max_keys=1000, max_rows=50, progress=lambda keys, fraction: seen.append((keys, fraction))
    )
    assert not told.is_exact
    assert told.sampled == 50
    assert told.rows == pytest.approx(5000, rel=0.01)  # a single view: every key is one of its
    assert seen[-1][0] < 1200
    assert seen[-1][1] == 1


def test_rows_that_cannot_be_read_and_former_ones_are_counted_apart(store):
    first = view("v")
    store.apply(first)
    fill(store, first, 4)
    store.apply(view("v", columns=[*first.columns, Column(name="c", dtype="bool")]))
    store.put(view("v", columns=[Column(name="x", dtype="float32")]), ["other"], {"x": [1.0]})
    [told] = survey(store, store.views())
    assert told.status == {"ok": 4, "other schema": 1}
    assert told.former == 4
    assert told.nulls == {"a": 0, "b": 0, "c": 1}


def test_views_that_share_hashes_are_told_apart_by_their_fields(store):
    one = view("one", layout="hash")
    other = view("other", layout="hash", columns=[Column(name="z", dtype="float32")])
    store.put(one, ["1", "2"], {"a": [1.0, 2.0], "b": [1, 2]})
    store.put(other, ["2"], {"z": [1.0]})
    told = {stats.view: stats for stats in survey(store, [one, other])}
    assert (told["one"].rows, told["other"].rows) == (2, 1)


def test_unknown_words_are_told_apart_from_nulls_whatever_schema_they_were_written_under(store):
    def words(*vocabulary):
        columns = [Column(name="a", dtype="float32"), Column(name="kind", dtype="category", vocabulary=vocabulary)]
        return FeatureView(name="v", entity="id", columns=columns)

    store.apply(words("x", "y"))
    store.put("v", ["1", "2", "3", "4"], {"a": [1.0] * 4, "kind": ["x", "z", None, "y"]})
    [told] = survey(store, store.views())
    assert (told.unknown, told.nulls) == ({"kind": 0.25}, {"a": 0, "kind": 0.25})
    store.apply(words("x"), replace=True)
    [told] = survey(store, store.views())
    assert (told.unknown, told.former) == ({"kind": 0.5}, 4)
    assert survey(store, [words("x").model_copy(update={"name": "none"})])[0].unknown == {"kind": 0}
