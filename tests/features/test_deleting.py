"""Rows and views that are taken away, and what is never taken away with them."""

import pytest

from penstock.features import Column, FeatureView, InvalidView, UnknownView, open_store
from penstock.features.deleting import delete_rows, delete_view
from penstock.features.ingest import Columns, Job, job_name

NAMES = ("v", "v.other", "other")
IDS = ["1", "2", "a}:v", "x|y", "é"]


def view(name="v", columns=("a", "b"), **fields):
    return FeatureView(name=name, entity="e", columns=[Column(name=c, dtype="float32") for c in columns], **fields)


def put(store, *views, ids=IDS):
    store.apply(list(views))
    for one in views:
        store.put(one, ids, {name: range(len(ids)) for name in one.column_names})


def there(store, one, ids=IDS):
    return [i for i, status in zip(ids, store.get(one, ids).status, strict=True) if status == "ok"]


@pytest.mark.parametrize("layout", ["row", "hash"])
def test_the_rows_of_entities_go_and_those_of_others_stay(store, layout):
    one, other = view(layout=layout), view("other", ("c",), layout=layout)
    put(store, one, other)
    assert delete_rows(store, one, [b"1", b"nobody", b"1"], dry_run=True) == 1
    assert store.delete("v", ["1", "nobody", "a}:v", "1"]) == 2
    assert there(store, one) == ["2", "x|y", "é"]
    assert there(store, other) == IDS
    assert store.delete("v", ["1"]) == 0
    assert store.view("v") == one


@pytest.mark.parametrize("layout", ["row", "hash"])
def test_a_view_goes_with_every_row_and_nothing_else_does(store, layout):
    views = [view(name, (f"c{i}",), layout=layout) for i, name in enumerate(NAMES)]
    many = [str(i) for i in range(3000)]
    put(store, *views, ids=many)
    seen = []
    assert delete_view(store, "v", dry_run=True) == 3000
    assert there(store, views[0], many) == many
    assert delete_view(store, "v", progress=lambda keys, fraction: seen.append((keys, fraction))) == 3000
    assert seen[-1][1] == 1
    assert there(store, views[0], many) == []
    assert [there(store, other, many) == many for other in views[1:]] == [True, True]
    assert [one.name for one in store.views()] == ["other", "v.other"]
    with pytest.raises(UnknownView, match="'v'"):
        delete_view(store, "v")


def test_of_a_hash_only_the_view_s_own_fields_go(store):
    """Hashes are shared, with other views and with whoever else writes them."""
    one, other = view(layout="hash", columns=("a", "shared")), view("w", layout="hash", columns=("shared", "b"))
    put(store, one, other)
    assert store.delete("v", ["1"]) == 1
    assert store.stored(one, [b"1"]) == [[None, b"0"]]
    assert there(store, other) == IDS
    assert delete_view(store, "v", dry_run=True) == 4
    assert delete_view(store, "v") == 4
    assert there(store, other) == IDS
    assert delete_view(store, "w") == 5
    assert store.scan(0, 100) == (0, [])


def test_of_a_hash_nothing_goes_while_it_cannot_be_told_what_others_read(store):
    one, other = view(layout="hash"), view("w", layout="hash", columns=("a",))
    put(store, one, other)
    [newer] = store.definitions(["w"]).values()
    assert store.swap({"w": newer}, {"w": newer.replace(b'"format":2', b'"format":3')})
    for dry_run in (True, False):
        with pytest.raises(InvalidView, match="definition of view 'w'"):
            delete_view(store, "v", dry_run=dry_run)
    with pytest.raises(InvalidView, match="definition of view 'w'"):
        store.delete("v", ["1"])
    assert there(store, one) == IDS
    assert delete_view(store, "w") == 0


def test_what_stands_under_a_hash_s_key_and_is_none_is_left_alone(redis_url):
    import redis

    with open_store(redis_url) as store, redis.Redis.from_url(redis_url) as client:
        put(store, view(layout="hash"), ids=["1"])
        client.set("features:2", "somebody's")
        client.hset("features:3", "theirs", "1")
        assert delete_view(store, "v") == 1
        assert sorted(client.keys("*")) == [b"features:2", b"features:3"]


@pytest.mark.parametrize("layout", ["row", "hash"])
def test_what_is_deleted_waits_for_replicas_as_what_is_written_does(redis_url, layout, monkeypatch):
    """Else a failover brings back who was to be forgotten."""
    with open_store(redis_url) as plain, open_store(f"{redis_url}?replicas=1") as store:
        put(plain, view(layout=layout))
        servers, waited = store._servers, []
        ask = servers.ask

        def alone(asked):
            waited.append(asked.replicas)
            return ask(asked._replace(replicas=0))

        monkeypatch.setattr(servers, "ask", alone)
        assert store.delete("v", ["1"]) == 1
        assert waited[-1] == 1
        waited.clear()
        assert delete_view(store, "v") == 4
        assert waited.count(1) >= 3  # rows, what is due, the definition


def test_with_the_rows_of_aggregates_goes_what_is_remembered_of_their_events(redis_url):
    import redis

    columns = [Column(name="n", dtype="int64")]
    aggregates = {"columns": {"n": {"function": "count", "window": "1h"}}}
    with open_store(redis_url) as store, redis.Redis.from_url(redis_url) as client:
        one = FeatureView(name="v", entity="e", columns=columns, aggregates=aggregates)
        store.apply(one)
        for entity in ("1", "2"):
            store.put(one, [entity], {"n": [1]})
            client.set(f"fs:{{{entity}}}:v:state", "state")
        client.zadd("fs:due:v", {"1": 5, "2": 5})
        assert store.delete("v", ["1"]) == 1
        assert sorted(client.keys("fs:{*")) == [b"fs:{2}:v", b"fs:{2}:v:state"]
        assert delete_view(store, "v") == 1
        assert client.keys("*") == []


@pytest.mark.parametrize("layout", ["row", "hash"])
def test_a_file_whose_rows_are_gone_with_the_view_is_not_resumed_after_them(store, tmp_path, layout):
    (tmp_path / "rows.csv").write_text("e,a,b\n1,1,1\n")
    put(store, view(layout=layout), view("w"))
    jobs = [job_name(one, tmp_path / "rows.csv", Columns()) for one in (view(layout=layout), view("w"))]
    for job in jobs:
        Job(store, job, resume=False)
    delete_view(store, "v")
    assert [store.marked(job) is None for job in jobs] == [True, False]


def test_with_hashes_go_the_rows_of_the_layout_that_the_view_had_before(store):
    put(store, view())
    store.apply(view(layout="hash"), replace=True)
    store.put("v", ["1"], {"a": [1], "b": [1]})
    assert delete_view(store, "v", dry_run=True) == len(IDS) + 1
    assert delete_view(store, "v") == len(IDS) + 1
    assert store.scan(0, 100) == (0, [])


def test_a_definition_that_cannot_be_read_can_be_deleted(store):
    put(store, view())
    assert store.swap({"v": view().definition()}, {"v": b'{"format": 99}'})
    assert delete_view(store, "v") == len(IDS)
    assert store.definitions() == {}


def test_a_definition_is_taken_away_only_if_it_is_the_one_expected(store):
    put(store, view(), view("w"))
    assert not store.swap({"v": b"{}"}, {"v": None})
    assert store.swap({"v": view().definition(), "w": view("w").definition()}, {"v": None})
    assert list(store.definitions()) == ["w"]
