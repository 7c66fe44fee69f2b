"""The consistency check against samples and histories whose every difference is known."""

from __future__ import annotations

import numpy as np
import pytest

from penstock.features import Column, FeatureView, InvalidData
from penstock.features.offline import OfflineStore, served
from penstock.features.offline.check import check
from penstock.kernels.joins import SOURCE_DEFAULT, SOURCE_MISSING, SOURCE_NONE, SOURCE_REQUEST, SOURCE_STORE

NAN = float("nan")
COLUMNS = [Column(name="a", dtype="float64", default=7), Column(name="b", dtype="float32")]
VIEW = FeatureView(name="v", entity="id", columns=COLUMNS, ttl_s=1000)
S, D, M, R = SOURCE_STORE, SOURCE_DEFAULT, SOURCE_MISSING, SOURCE_REQUEST
NOW = 100_000


def origin(**fields):
    given = {"model": "m", "version": 1, "digest": "d", "columns": ("b", "a"), "views": (VIEW,)}
    return served.Origin(**given | fields)


def sample(root, rows, made=None):
    """Rows of (id, (b, a), (source of b, of a))."""
    root.mkdir(exist_ok=True)
    ids, values, sources = zip(*rows, strict=True)
    times = np.full(len(ids), NOW, np.int64)
    part = served.ServedRows(times, ids, np.array(values, np.float32), np.array(sources, np.uint8))
    served.write(root, made or origin(), [part])


def history(root, rows, view=VIEW):
    """Rows of (id, a, b, event time)."""
    ids, a, b, times = zip(*rows, strict=True)
    table = {"id": ids, "a": np.array(a, float), "b": np.array(b, np.float32), "event_time": np.array(times, np.int64)}
    store = OfflineStore(root)
    store.write(view, table, created="event_time")
    return store


@pytest.fixture
def compare(tmp_path):
    def compare(rows, past, **options):
        sample(tmp_path / "sample", rows)
        return check(tmp_path / "sample", history(tmp_path / "history", past), **options)

    return compare


def of(report, name):
    (feature,) = (feature for feature in report.features if feature.feature == name)
    return feature


def counts(feature):
    return feature.compared, feature.missing, feature.extra, feature.mismatched


def test_sides_that_agree_have_nothing_to_report(compare):
    rows = [(b"e", (2.5, 1 / 3), (S, S)), (b"f", (NAN, 7), (M, D)), (b"nobody", (NAN, 7), (M, D))]
    report = compare(rows, [(b"e", 1 / 3, 2.5, 5), (b"f", NAN, NAN, 5)])
    assert (report.rows, report.unsettled, report.share) == (3, 0, 0)
    assert [counts(feature) for feature in report.features] == [(3, 0, 0, 0)] * 2
    assert [feature.worst for feature in report.features] == [(), ()]


def test_each_kind_of_difference_is_counted_and_shown(compare):
    """e differs, f was not found online, g is not in the history, h has other gaps on each side."""
    rows = [
        (b"e", (2.5, 3), (S, S)),
        (b"f", (NAN, 7), (M, D)),
        (b"g", (1, 2), (S, S)),
        (b"h", (NAN, 5), (M, S)),
        (b"i", (1, 1), (S, S)),
    ]
    report = compare(rows, [(b"e", 1, 2.5, 5), (b"f", 1, 2, 5), (b"h", NAN, 6, 5), (b"i", 1, 1, 5)])
    a, b = of(report, "a"), of(report, "b")
    assert counts(a) == (5, 1, 2, 1)
    assert counts(b) == (5, 2, 1, 0)
    assert a.smape == pytest.approx((2 * 2 / 4 + 0) / 2)
    assert (a.share, b.share, report.share) == (0.8, 0.6, 0.8)
    shown = {example.entity: (example.served, example.offline) for example in a.worst}
    assert shown == {"e": (3, 1), "f": (None, 1), "g": (2, None), "h": (5, None)}
    assert {(e.time_ms, e.model, e.version) for e in a.worst} == {(NOW, "m", 1)}


def test_the_worst_come_first_and_only_so_many(compare):
    rows = [(b"%d" % i, (1, 1 + i / 100), (S, S)) for i in range(10)]
    report = compare(rows, [(b"%d" % i, 1, 1, 5) for i in range(10)], worst=3)
    assert counts(of(report, "a")) == (10, 0, 0, 9)
    assert [example.entity for example in of(report, "a").worst] == ["9", "8", "7"]


def test_a_value_within_the_tolerance_agrees(compare):
    report = compare(
        [(b"e", (1, 1.001), (S, S)), (b"f", (np.inf, 5), (S, S))], [(b"e", 1, 1, 5), (b"f", 5, 1, 5)], tolerance=0.01
    )
    assert counts(of(report, "a")) == (2, 0, 0, 0)
    assert counts(of(report, "b")) == (2, 0, 0, 1)
    assert of(report, "b").smape == 1  # infinite and finite are as far apart as can be


def test_values_the_caller_sent_are_not_compared(compare):
    report = compare([(b"e", (1, 99), (S, R))], [(b"e", 1, 1, 5)])
    assert [counts(feature) for feature in report.features] == [(0, 0, 0, 0), (1, 0, 0, 0)]


def test_a_look_up_at_about_the_time_of_a_change_proves_nothing(compare):
    rows = [(b"e", (1, 1), (S, S)), (b"f", (1, 1), (S, S)), (b"g", (1, 1), (S, S))]
    past = [(b"e", 1, 1, 5), (b"e", 2, 2, NOW - 2000), (b"f", 1, 1, 5), (b"f", 2, 2, NOW + 1999), (b"g", 1, 1, 5)]
    report = compare(rows, past, settle_s=2)
    assert report.unsettled == 1
    assert counts(of(report, "a")) == (2, 0, 0, 1)  # e changed just long enough ago


def test_values_are_held_against_what_was_known_then(compare):
    """Neither a later event nor a later correction of an earlier one counts."""
    past = [(b"e", 1, 1, 5), (b"e", 2, 2, NOW + 10_000)]
    assert compare([(b"e", (1, 1), (S, S))], past).share == 0


def test_versions_with_other_columns_and_views_are_told_apart(tmp_path):
    """Two versions of one view that differ in a default, one of which reads only one column."""
    root = tmp_path / "sample"
    sample(root, [(b"e", (1, 1), (S, S))])
    other = VIEW.model_copy(update={"on_missing": "nan"})
    made = origin(version=2, columns=("a",), views=(other,))
    part = served.ServedRows(
        np.array([NOW] * 2), [b"e", b"f"], np.array([[5], [NAN]], np.float32), np.array([[S], [M]], np.uint8)
    )
    served.write(root, made, [part])
    store = history(tmp_path / "history", [(b"e", 1, 1, 5)])
    report = check(root, store)
    assert counts(of(report, "a")) == (3, 0, 0, 1)
    assert counts(of(report, "b")) == (1, 0, 0, 0)
    assert of(report, "a").worst[0].version == 2
    assert check(root, store, model="m").rows == 3
    with pytest.raises(InvalidData, match="holds no served vectors of model 'x'"):
        check(root, store, model="x")


def test_views_of_several_entities_are_held_against_their_own_histories(tmp_path):
    """By their part of the id; a row whose id had other parts was refused, and counts for nothing."""
    shops = FeatureView(name="shops", entity="shop", columns=[Column(name="y", dtype="float32")], ttl_s=1000)
    both = origin(columns=("a", "y"), views=(VIEW, shops), entity_keys=("shop", "id"))
    rows = [(b"s\\|1|e", (1, 10), (S, S)), (b"t|e", (1, 21), (S, S)), (b"e", (7, NAN), (D, M))]
    sample(tmp_path / "sample", rows, both)
    store = history(tmp_path / "history", [(b"e", 1, 1, 5)])
    store.write(shops, {"shop": ["s|1", "t"], "y": [10.0, 20.0], "event_time": [5, 5]}, created="event_time")
    report = check(tmp_path / "sample", store)
    assert (report.rows, report.unsettled) == (3, 0)
    assert counts(of(report, "a")) == (2, 0, 0, 0)
    assert counts(of(report, "y")) == (2, 0, 0, 1)
    assert [(e.entity, e.served, e.offline) for e in of(report, "y").worst] == [("t", 21, 20)]


def test_a_sample_of_refused_rows_alone_has_nothing_to_compare(tmp_path):
    sample(tmp_path / "sample", [(b"e", (1, 1), (S, S))], origin(entity_keys=("id", "other")))
    with pytest.raises(InvalidData, match="nothing to compare in 1 sampled rows"):
        check(tmp_path / "sample", history(tmp_path / "history", [(b"e", 1, 1, 5)]))


def test_columns_nobody_looked_up_are_no_part_of_it(tmp_path):
    sample(tmp_path / "sample", [(b"e", (1, 1), (SOURCE_NONE, S))])
    report = check(tmp_path / "sample", history(tmp_path / "history", [(b"e", 1, 1, 5)]))
    assert counts(of(report, "b")) == (0, 0, 0, 0)


def test_nothing_to_compare_is_no_agreement(compare):
    with pytest.raises(InvalidData, match="nothing to compare in 1 sampled rows"):
        compare([(b"e", (1, 1), (R, R))], [(b"e", 1, 1, 5)])


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(InvalidData, match="nowhere holds no sample of served vectors"):
        check(tmp_path / "nowhere", OfflineStore(tmp_path))
    sample(tmp_path / "sample", [(b"e", (1, 1), (S, S))])
    with pytest.raises(InvalidData, match="there is no history of view 'v'"):
        check(tmp_path / "sample", OfflineStore(tmp_path / "nowhere"))


# Views that cannot be checked ---------------------------------------------------------------------------------------


COMPUTED = VIEW.model_copy(update={"name": "made", "on_missing": "compute", "compute": "f"})
STREAMED = VIEW.model_copy(update={"name": "streamed"})


def sample_of(root, *views):
    """One row for each view, of a model that is called as the view is."""
    for view in views:
        sample(root, [(b"e", (1, 1), (S, S))], origin(model=view.name, views=(view,)))


def test_views_without_history_and_those_that_are_computed_are_left_out_and_named(tmp_path):
    """A computed row is written back, and its second look-up is of the store: no history could have it."""
    store = history(tmp_path / "history", [(b"e", 1, 1, 5)])
    sample_of(tmp_path / "sample", VIEW, COMPUTED, STREAMED)
    history(tmp_path / "history", [(b"other", 1, 1, 5)], COMPUTED)  # by an ingestion of some rows
    report = check(tmp_path / "sample", store)
    assert {feature.view for feature in report.features} == {"v"}
    assert (report.rows, report.share) == (3, 0)
    assert [(view.view, view.reason) for view in report.unchecked] == [
        ("made", "its rows are computed where they are missing, and that is no history"),
        ("streamed", f"there is no history of view 'streamed' in {tmp_path / 'history'}"),
    ]


def test_a_view_that_any_version_computes_is_left_out_of_all(tmp_path):
    """What one version's server wrote back the other's looks up."""
    store = history(tmp_path / "history", [(b"e", 1, 1, 5)])
    sample_of(tmp_path / "sample", VIEW, COMPUTED.model_copy(update={"name": "v"}))
    with pytest.raises(InvalidData, match="nothing to check: v: its rows are computed"):
        check(tmp_path / "sample", store)


def test_versions_from_before_and_after_a_number_became_wider_are_both_checked(tmp_path):
    """The step of the guide: rows recorded under each of the two definitions, and looked up by each of two versions."""
    wider = VIEW.model_copy(update={"columns": [COLUMNS[0], Column(name="b", dtype="float64")]})
    history(tmp_path / "history", [(b"e", 1, 1 / 3, 5)])
    store = history(tmp_path / "history", [(b"f", 1, 2 / 3, 5)], wider)
    for view in (VIEW, wider):
        rows = [(b"e", (1 / 3, 1), (S, S)), (b"f", (2 / 3, 1), (S, S))]
        sample(tmp_path / "sample", rows, origin(model=str(view.columns[1].dtype), views=(view,)))
    report = check(tmp_path / "sample", store)
    assert [counts(feature) for feature in report.features] == [(4, 0, 0, 0)] * 2


def test_views_are_chosen_by_name(tmp_path):
    other = VIEW.model_copy(update={"name": "w"})
    history(tmp_path / "history", [(b"e", 9, 9, 5)], other)
    store = history(tmp_path / "history", [(b"e", 1, 1, 5)])
    sample_of(tmp_path / "sample", VIEW, other, STREAMED)
    report = check(tmp_path / "sample", store, views=["v"])
    assert ({feature.view for feature in report.features}, report.share, report.unchecked) == ({"v"}, 0, ())
    assert check(tmp_path / "sample", store).share == 1
    with pytest.raises(InvalidData, match="no sampled row looked view 'x' up; there is streamed, v, w"):
        check(tmp_path / "sample", store, views=["v", "x"])
    with pytest.raises(InvalidData, match="nothing to check: streamed: there is no history of view 'streamed'"):
        check(tmp_path / "sample", store, views=["streamed"])
