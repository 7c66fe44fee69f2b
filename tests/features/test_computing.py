"""Compute on miss: once whoever asks, in time or not at all, written back, and what is unknown remembered."""

import threading
import time

import numpy as np
import pytest

from penstock.features import Column, FeatureView, Lookup, StoreMisconfigured, StoreUnavailable
from penstock.features.columns import check_table
from penstock.features.computing import MAX_WAITING, Computing
from penstock.features.memory import MemoryStore
from penstock.features.schemas import KnownSchemas

OK, ABSENT, CORRUPT, SCHEMA, LOST, COMPUTED = 0, 1, 2, 3, 5, 7
VIEW = FeatureView(
    name="v",
    entity="e",
    on_missing="compute",
    compute="twice",
    columns=[
        Column(name="a", dtype="float64"),
        Column(name="n", dtype="int64"),
        Column(name="word", dtype="category", vocabulary=["even", "odd"]),
    ],
)
PLAIN = FeatureView(name="p", entity="e", columns=[Column(name="a", dtype="float32")])


class Function:
    """Twice the number of an entity; entities that begin with "no" it does not know. Waits while it is shut."""

    def __init__(self):
        self.calls = []
        self.fails = False
        self.running = self.most = 0
        self._lock = threading.Lock()
        self._open = threading.Event()
        self._open.set()
        self.shut, self.open = self._open.clear, self._open.set

    def __call__(self, entities):
        with self._lock:
            self.calls.append([*entities])
            self.running += 1
            self.most = max(self.most, self.running)
        assert self._open.wait(20)
        with self._lock:
            self.running -= 1
        if self.fails:
            raise ValueError("no\nluck")
        known = [not entity.startswith(b"no") for entity in entities]
        numbers = [float(entity) if ok else np.nan for entity, ok in zip(entities, known, strict=True)]
        return {
            "a": np.array(numbers) * 2 + 0.1,
            "n": np.ma.MaskedArray(np.nan_to_num(numbers).astype(np.int64), [not ok for ok in known]),
            "word": [
                ("even", "odd")[int(number) % 2] if ok else None for number, ok in zip(numbers, known, strict=True)
            ],
        }


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def function():
    function = Function()
    yield function
    function.open()


@pytest.fixture
def store():
    return MemoryStore()


@pytest.fixture
def computing(store, function):
    return Computing(store, {"twice": function}, store_s=1.0, threads=2, clock=Clock())


def fetch(reader, *entities, timeout_s=10.0, view=VIEW):
    return reader.fetch([Lookup(view, list(entities))], timeout_s)[0]


def eventually(holds):
    until = time.monotonic() + 10
    while not (found := holds()):
        assert time.monotonic() < until
        time.sleep(0.002)
    return found


def test_what_the_store_lacks_is_computed_and_written_back(computing, store, function):
    store.put(VIEW, [b"1"], {"a": [5.0], "n": [5], "word": ["even"]})
    rows = fetch(computing, b"1", b"2", b"3")
    assert rows.status.tolist() == [OK, COMPUTED, COMPUTED]
    np.testing.assert_array_equal(rows.values, np.array([[5, 5, 0], [4.1, 2, 0], [6.1, 3, 1]], np.float32))
    assert abs(rows.event_times[1] - time.time() * 1000) < 10_000
    assert function.calls == [[b"2", b"3"]]
    again = eventually(lambda: (got := fetch(store, b"1", b"2", b"3")).status.tolist() == [OK] * 3 and got)
    np.testing.assert_array_equal(again.values, rows.values)  # what is written reads as what was computed
    assert again.event_times.tolist() == rows.event_times.tolist()
    assert computing.counts.computed == 2


OTHER = FeatureView(name="v", entity="e", columns=[Column(name="x", dtype="float32")])


def unreadable(store):
    """Rows that the view cannot read: of a schema that nobody knows, damaged, and no row at all."""
    store.put(OTHER, [b"1", b"2", b"no3"], {"x": [1.0, 2.0, 3.0]})
    until, _ = store._rows[VIEW.key(b"2")]
    sound = VIEW.row_layout.pack([b"k"], *_packable())[0]
    store._rows[VIEW.key(b"2")] = until, sound[:-1] + bytes([sound[-1] ^ 1])
    store._rows[VIEW.key(b"4")] = until, b"what somebody else keeps here"


def _packable():
    table = check_table(VIEW, [b"k"], {"a": np.ones(1), "n": np.ones(1), "word": np.array(["odd"], object)}, None)
    return table.values, table.event_times - 60_000, table.nulls


def test_what_cannot_be_read_is_computed_and_gives_way(computing, store, function):
    unreadable(store)
    asked = (b"1", b"2", b"no3", b"4")
    assert fetch(store, *asked).status.tolist() == [SCHEMA, CORRUPT, SCHEMA, CORRUPT]
    rows = fetch(computing, *asked)
    assert rows.status.tolist() == [COMPUTED, COMPUTED, ABSENT, COMPUTED]
    assert rows.values[:, 0].tolist()[:2] == [np.float32(2.1), np.float32(4.1)]
    eventually(lambda: fetch(store, *asked).status.tolist() == [OK, OK, SCHEMA, OK])


def test_rows_of_a_schema_that_the_store_knows_are_read_and_not_computed(store, function):
    """Else a version would take the rows of the view's next one for missing, and write its own over them."""
    newer = VIEW.model_copy(update={"columns": (*VIEW.columns, Column(name="new", dtype="bool"))})
    store.apply(VIEW)
    store.apply(newer)
    store.put(newer, [b"1"], {"a": [77.0], "n": [77], "word": ["odd"], "new": [True]})
    computing = Computing(store, {"twice": function}, reader=KnownSchemas(store), store_s=1.0)
    rows = fetch(computing, b"1", b"2")
    assert rows.status.tolist() == [OK, COMPUTED]
    assert rows.values[0, 0] == 77
    assert function.calls == [[b"2"]]


def test_rows_that_may_not_be_kept_are_told_of_once_until_they_are_kept_again(store, function, caplog):
    def refuses(*_, **__):
        raise StoreMisconfigured("no permissions to run the 'eval' command")

    computing = Computing(store, {"twice": function}, store_s=1.0, threads=1)

    def warnings(count, *entities):
        fetch(computing, *entities)
        eventually(lambda: not computing._flights)
        return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"][count - 1 :]

    prepare, store.prepare = store.prepare, refuses
    [told] = warnings(1, b"1")
    assert told == (
        "computed features of view 'v' are not kept, and computed again each time: "
        "no permissions to run the 'eval' command"
    )
    assert warnings(2, b"1") == []
    assert (computing.counts.unwritten, computing.counts.calls) == (2, 2)
    store.prepare = prepare
    assert warnings(2, b"1") == []
    store.prepare = refuses
    assert len(warnings(2, b"5")) == 1


def test_a_view_that_does_not_say_so_is_left_alone(computing, function):
    assert fetch(computing, b"1", view=PLAIN).status.tolist() == [ABSENT]
    assert function.calls == []


def test_each_entity_is_computed_once_however_many_ask_at_the_same_time(computing, function):
    function.shut()
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(fetch(computing, b"7", b"8"))) for _ in range(16)]
    for thread in threads:
        thread.start()
    eventually(lambda: computing.counts.shared == 30)
    function.open()
    for thread in threads:
        thread.join(10)
    assert len(answers) == 16
    assert all((rows.values[:, 1] == [7, 8]).all() for rows in answers)
    assert function.calls == [[b"7", b"8"]]


def test_no_more_calls_run_at_once_than_there_are_threads(computing, function):
    function.shut()
    threads = [threading.Thread(target=fetch, args=(computing, b"%d" % i)) for i in range(9)]
    for thread in threads:
        thread.start()
    eventually(lambda: len(computing._flights) == 9 and len(function.calls) == 2)
    function.open()
    for thread in threads:
        thread.join(10)
    assert function.most == 2
    assert len(function.calls) == 9


def test_what_the_function_does_not_know_is_remembered_for_a_while(computing, function):
    for _ in range(3):
        assert fetch(computing, b"no1", b"no2").status.tolist() == [ABSENT, ABSENT]
        eventually(lambda: not computing._flights)
    assert len(function.calls) == 1
    computing._clock.now = 1.0
    assert fetch(computing, b"no1").status.tolist() == [ABSENT]
    assert function.calls == [[b"no1", b"no2"], [b"no1"]]


def test_who_cannot_wait_gets_nothing_and_what_comes_late_is_kept(computing, store, function):
    function.shut()
    started = time.monotonic()
    rows = fetch(computing, b"4", timeout_s=0.05)
    assert time.monotonic() - started < 0.5
    assert rows.status.tolist() == [LOST]
    assert "did not end in time" in rows.trouble
    assert np.isnan(rows.values).all()
    function.open()
    eventually(lambda: fetch(store, b"4").status.tolist() == [OK])
    assert fetch(computing, b"4").status.tolist() == [OK]
    assert len(function.calls) == 1


def test_a_failure_is_told_in_one_line_and_the_next_call_tries_again(computing, function):
    function.fails = True
    rows = fetch(computing, b"4", b"5")
    assert rows.status.tolist() == [LOST, LOST]
    assert rows.trouble == "function 'twice' of view 'v' failed: ValueError: no luck"
    function.fails = False
    eventually(lambda: not computing._flights)
    assert fetch(computing, b"4").status.tolist() == [COMPUTED]


@pytest.mark.parametrize(
    "wrong", [{}, {"a": [1.0]}, {"a": [1.0], "n": [0.5], "word": ["odd"]}, {"a": 1, "n": 2, "word": 3}]
)
def test_what_does_not_fit_the_view_is_a_failure_of_the_function(store, wrong):
    computing = Computing(store, {"twice": lambda _: wrong}, store_s=1.0)
    rows = fetch(computing, b"4")
    assert rows.status.tolist() == [LOST]
    assert "'twice' of view 'v' failed: InvalidData: " in rows.trouble


class Wordless(Exception):  # noqa: N818 -- somebody else's
    """An error that cannot even be told."""

    def __str__(self):
        raise RuntimeError


def test_an_error_that_cannot_be_told_is_a_failure_like_any_other(store):
    def fails(_):
        raise Wordless

    computing = Computing(store, {"twice": fails}, store_s=1.0, threads=1)
    for _ in range(2):
        rows = fetch(computing, b"7")
        assert rows.status.tolist() == [LOST]
        assert "Wordless" in rows.trouble


def test_a_store_that_breaks_while_rows_are_kept_does_not_end_the_computing(store, function):
    def breaks(*_, **__):
        raise RuntimeError("not its day")

    store.prepare = breaks
    computing = Computing(store, {"twice": function}, store_s=1.0, threads=1)
    for count in (1, 2):
        assert fetch(computing, b"7").status.tolist() == [COMPUTED]
        eventually(lambda count=count: computing.counts.unwritten == count and not computing._flights)
    assert function.calls == [[b"7"]] * 2


def test_a_newer_event_that_was_stored_meanwhile_stays(computing, store, function):
    function.shut()
    asking = threading.Thread(target=fetch, args=(computing, b"9"))
    asking.start()
    eventually(lambda: function.calls)
    later = np.array([time.time_ns() // 1_000_000 + 1000])
    store.put(VIEW, [b"9"], {"a": [77.0], "n": [77], "word": ["odd"]}, later)
    function.open()
    asking.join(10)
    eventually(lambda: not computing._flights)
    assert fetch(store, b"9").values[0, 0] == 77


def test_beyond_a_bound_nothing_more_waits(computing, function):
    function.shut()
    for i in range(MAX_WAITING + 2):
        fetch(computing, b"%d" % i, timeout_s=0.0)
        if i < 2:
            eventually(lambda i=i: len(function.calls) == i + 1)
    rows = fetch(computing, b"1000")
    assert rows.status.tolist() == [LOST]
    assert rows.trouble == "too many computations of features wait already"
    assert computing.counts.refused == 1
    function.open()
    eventually(lambda: not computing._flights)


def test_without_the_store_nothing_is_computed(function):
    class Away(MemoryStore):
        def fetch(self, lookups, timeout_s):
            raise StoreUnavailable("away")

    with pytest.raises(StoreUnavailable):
        fetch(Computing(Away(), {"twice": function}, store_s=1.0), b"1")
    assert function.calls == []


def test_an_entity_id_that_no_store_takes_is_not_computed(computing, function):
    assert fetch(computing, b"", b"x" * 1025).status.tolist() == [ABSENT, ABSENT]
    assert function.calls == []
