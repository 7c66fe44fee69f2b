"""`apply`: a plan that says what happens, and all of it or nothing."""

import threading

import pytest

from penstock.features import Column, FeatureView, InvalidView, SchemaChanged, StoreUnavailable
from penstock.features.schema import MAX_DEFINITION

pytestmark = pytest.mark.every_server


def view(name="v", *columns, **fields):
    given = columns or (Column(name="a", dtype="int32"),)
    return FeatureView(**{"name": name, "entity": "e", "columns": given} | fields)


def words(*vocabulary, **fields):
    return Column(name="w", dtype="category", vocabulary=vocabulary, **fields)


def planned(store, old, new):
    store.apply(old)
    [change] = store.plan(new).changes
    return change


@pytest.mark.parametrize(
    ("old", "new", "difference"),
    [
        (view(), view(ttl_s=5), "ttl_s 86400 -> 5"),
        (view(), view(max_age_s=90, on_stale="nan"), "max_age_s none -> 90"),
        (view(), view(owner="me"), "owner none -> me"),
        (view(), view("v", Column(name="a", dtype="int64")), "~ a int32 -> int64"),
        (view(), view("v", Column(name="a", dtype="float64")), "~ a int32 -> float64"),
        (view(), view("v", Column(name="a", dtype="int32", default=3)), "~ a int32 -> int32 default 3"),
        (view(), view("v", Column(name="a", dtype="int32", description="x")), "~ a description"),
        (view(), view("v", *view().columns, words("x")), "+ w category of 1 words"),
        (view("v", words("x")), view("v", words("x", "y")), "~ w category of 1 words -> category of 2 words"),
        (view("v", words("x", "y")), view("v", words("y", "x")), "~ w vocabulary"),
        (view("v", words("x"), *view().columns), view("v", *view().columns, words("x")), "columns in another order"),
    ],
)
def test_what_takes_nothing_from_anybody_is_applied(store, old, new, difference):
    change = planned(store, old, new)
    assert change.kind == "changed"
    assert difference in change.differences
    assert change.breaks == ()
    store.apply(new)
    kept = store.view("v")
    assert kept.model_copy(update={"former": ()}) == new
    assert len(kept.former) == (old.schema_id != new.schema_id)


@pytest.mark.parametrize(
    ("new", "broken", "lost"),
    [
        (view("v", words("x")), "column 'a' is dropped", {"a"}),
        (view("v", Column(name="a", dtype="bool")), "int32 becomes bool, and stored values read as missing", {"a"}),
        (view("v", Column(name="a", dtype="float32")), "int32 becomes float32, which cannot hold every value", set()),
        (view(entity=["e", "f"]), "entity e becomes e|f: no row", {"a"}),
        (view(layout="hash"), "layout row becomes hash: no row", {"a"}),
    ],
)
def test_what_takes_something_is_refused_until_it_is_meant(store, new, broken, lost):
    change = planned(store, view(), new)
    assert any(broken in line for line in change.breaks)
    assert change.lost == lost
    with pytest.raises(SchemaChanged, match="--replace"):
        store.apply(new)
    assert store.view("v") == view()
    store.apply(new, replace=True)
    assert store.view("v").columns == new.columns


def test_words_and_sizes_that_go_are_told(store):
    vector = Column(name="t", dtype="vector", size=2)
    change = planned(
        store, view("v", words(*"abcdefg"), vector), view("v", words("a"), vector.model_copy(update={"size": 3}))
    )
    assert "column 'w': its vocabulary loses 'b', 'c', 'd', 'e', 'f', ..." in change.breaks
    assert "column 't': vector of 2 becomes vector of 3, and stored values read as missing" in change.breaks
    assert change.lost == {"t_0", "t_1"}


def test_of_several_views_all_are_applied_or_none(store):
    store.apply(view("b"))
    with pytest.raises(SchemaChanged, match="view b: column 'a' is dropped"):
        store.apply([view("a"), view("b", words("x")), view("c")])
    assert [one.name for one in store.views()] == ["b"]
    plan = store.apply([view("a"), view("b"), view("c")])
    assert [(change.view.name, change.kind) for change in plan.changes] == [
        ("a", "added"),
        ("b", "unchanged"),
        ("c", "added"),
    ]
    assert [one.name for one in store.views()] == ["a", "b", "c"]


def test_a_plan_made_before_somebody_else_s_change_is_not_carried_out(store):
    plan = store.plan([view("a"), view("b")])
    store.apply(view("b", words("x")))
    assert not store.carry_out(plan)
    assert [one.name for one in store.views()] == ["b"]


def test_apply_plans_again_when_it_was_overtaken(store, monkeypatch):
    """Somebody adds a column between our plan and our change: theirs becomes a former schema, and is not lost."""
    plan, overtaken = store.plan, []

    def slow_plan(views, *, replace=False):
        made = plan(views, replace=replace)
        if not overtaken:
            overtaken.append(made)
            store.carry_out(plan(view("v", Column(name="a", dtype="int32"), words("x"))))
        return made

    monkeypatch.setattr(store, "plan", slow_plan)
    store.apply(view("v", Column(name="a", dtype="int64"), words("x")))
    assert len(store.view("v").former) == 1


def test_definitions_that_never_hold_still_end_in_an_error(store, monkeypatch):
    monkeypatch.setattr(store, "swap", lambda *_: False)
    with pytest.raises(StoreUnavailable, match="changed by somebody"):
        store.apply(view())


def test_many_who_apply_at_once_lose_no_schema(redis_url):
    from penstock.features import open_store

    def run(i):
        with open_store(redis_url) as store:
            store.apply(view("v", Column(name="a", dtype="int32"), Column(name=f"c{i}", dtype="bool")), replace=True)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with open_store(redis_url) as store:
        kept = store.view("v")
    assert {former.columns[1].name for former in kept.former} | {kept.columns[1].name} == {f"c{i}" for i in range(4)}


def test_a_definition_that_cannot_be_read_is_in_the_way_until_it_is_replaced(store):
    store.swap({"v": None}, {"v": b'{"format": 99}'})
    with pytest.raises(InvalidView, match="definition of view 'v'"):
        store.apply(view())
    assert store.views() == []
    plan = store.apply(view(), replace=True)
    assert plan.changes[0].differences == ("what stands there is no view of this version",)
    assert store.view("v") == view()


def test_a_name_given_twice_is_refused(store):
    with pytest.raises(InvalidView, match="'v' is given twice"):
        store.apply([view(), view()])


def test_a_definition_too_large_to_be_read_again_is_refused(store):
    many = [
        Column(name=f"w{i}", dtype="category", vocabulary=[f"{i}-{j}" + "x" * 150 for j in range(900)])
        for i in range(8)
    ]
    with pytest.raises(InvalidView, match="bytes"):
        store.apply(view("v", *many))
    some = many[:3]
    store.apply(view("v", *some))
    for i in range(4):  # each former schema is as large: the oldest make room
        store.apply(view("v", *some, Column(name=f"c{i}", dtype="bool")), replace=True)
    kept = store.view("v")
    assert len(kept.definition()) <= MAX_DEFINITION
    assert kept.former[0].columns[-1].name == "c2"
