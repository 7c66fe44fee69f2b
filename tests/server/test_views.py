"""Typed columns, entities of several keys and views that change, through the server."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest

from penstock.errors import InvalidRequest, PenstockError
from penstock.features import Column, FeatureView, open_store
from penstock.server.plans import plan_of

STATUS = "penstock.feature_status"
TYPED = [
    Column(name="word", dtype="category", vocabulary=["low", "high"]),
    Column(name="city", dtype="string", max_bytes=20),
    Column(name="taste", dtype="vector", size=2, default=[8, 9]),
    Column(name="grade", dtype="category", vocabulary=["a", "b"], default="b"),
]


@pytest.fixture
def served(registry, graphs, serving, calling, redis_url):
    """Publishes `copy` over a view, serves it, and gives the caller and the store."""
    store = open_store(redis_url)

    def start(view, columns):
        graphs.publish(registry, "copy", graphs.copy(len(columns)), columns=columns, views=[view])
        store.apply(view)
        return calling(serving(features=redis_url, feature_timeout_ms=200)), store

    with closing(store):
        yield start


def ask(caller, ids):
    told = caller.client.predict("copy", entity_ids=ids, outputs=["y", STATUS])
    return told["y"], [[text.decode() for text in row] for row in told[STATUS]]


def test_categories_are_indices_and_vectors_are_columns(served):
    caller, store = served(FeatureView(name="v", entity="id", columns=TYPED), ("taste_1", "grade", "word", "taste_0"))
    columns = {"word": ["high", "strange", None], "city": ["Bern", None, "Thun"], "grade": ["a", "strange", None]}
    store.put("v", ["x", "y", "z"], columns | {"taste": [[1, 2], [3, np.nan], [np.nan, np.nan]]})
    values, status = ask(caller, ["x", "y", "z"])
    np.testing.assert_array_equal(values, [[2, 0, 1, 1], [9, 1, -1, 3], [9, 1, np.nan, 8]])
    assert status == [["store"] * 4, ["default", "default", "store", "store"], ["default"] * 2 + ["missing", "default"]]


def test_an_entity_of_several_keys_is_asked_for_by_its_parts(served):
    view = FeatureView(name="v", entity=["customer", "merchant"], columns=[Column(name="n", dtype="int64")])
    caller, store = served(view, ("n",))
    store.put("v", [("c", 1), ("c|1", "x"), ("c", "1|x")], {"n": [1, 2, 3]})
    values, _ = ask(caller, [("c", 1), ("c|1", "x"), ("c", "1|x"), "c|1"])
    assert values.tolist() == [[1], [2], [3], [1]]
    with pytest.raises(InvalidRequest, match="an entity id of 0 bytes"):
        ask(caller, [("c", "")])


def test_rows_that_were_written_under_a_later_schema_are_served_at_once(served):
    """The model goes on as it was trained, while the view gains a column and moves others."""

    def view(*columns):
        return FeatureView(name="v", entity="id", columns=columns)

    first = Column(name="a", dtype="int32")
    word = Column(name="word", dtype="category", vocabulary=["low", "high"])
    caller, store = served(view(first, word), ("a", "word"))
    store.put("v", ["old"], {"a": [1], "word": ["high"]})
    assert ask(caller, ["old"])[0].tolist() == [[1, 1]]
    wider = word.model_copy(update={"vocabulary": ("none", "high", "low")})
    store.apply(view(Column(name="b", dtype="float64"), wider, first.model_copy(update={"dtype": "float64"})))
    store.put("v", ["new"], {"b": [7], "word": ["high"], "a": [2.5]})
    values, status = ask(caller, ["old", "new"])
    assert values.tolist() == [[1, 1], [2.5, 1]]
    assert status == [["store"] * 2] * 2


def test_a_graph_that_takes_its_inputs_singly_is_refused_at_load_if_it_joins(registry, graphs):
    view = FeatureView(name="v", entity="id", columns=TYPED)
    manifest = graphs.publish(registry, "words", graphs.same("BYTES", "n", 1), views=[view])
    with pytest.raises(PenstockError, match="words version 1 cannot be served: features are joined into one matrix"):
        plan_of(manifest, "0" * 64)
