"""The sample of served vectors: what workers looked up, written beside them, never in their way."""

from __future__ import annotations

import os
from contextlib import closing
from urllib.request import urlopen

import grpc
import numpy as np
import pytest

from penstock.errors import NotFound, PenstockError
from penstock.features import Column, FeatureView, InvalidData, open_store
from penstock.features.offline import served
from penstock.kernels.joins import SOURCE_DEFAULT, SOURCE_MISSING, SOURCE_REQUEST, SOURCE_STORE
from penstock.server import sampling
from penstock.server.config import Config
from penstock.server.errors import BadConfig
from penstock.server.pipeline import Pipeline
from penstock.server.testing import running

NAMES = ("sent", "amount", "age")
COLUMNS = [
    Column(name="age", dtype="float32"),
    Column(name="unread", dtype="int32"),
    Column(name="amount", dtype="float64", default=5.0),
]
VIEW = FeatureView(name="activity", entity="customer", columns=COLUMNS)


@pytest.fixture
def publish(registry, graphs):
    graphs.publish(registry, "copy", graphs.copy(3), columns=NAMES, views=[VIEW])
    return registry


@pytest.fixture
def serve(publish, redis_url, tmp_path, calling):
    """Serves for a while with a sample of the settings given; afterwards what was sampled can be read."""

    def serve(work, **settings):
        with closing(open_store(redis_url)) as store:
            columns = {"age": np.array([30, np.nan], np.float32), "unread": np.zeros(2, np.int32), "amount": np.ones(2)}
            store.put(VIEW, [b"ada", b"bob"], columns)
        sample = {"path": tmp_path / "sample" / "here", "rate": 1.0} | settings
        config = Config(
            registry=publish.root, grpc="127.0.0.1:0", metrics="127.0.0.1:0", features=redis_url, sample_served=sample
        )
        with running(config) as addresses:
            return work(calling(addresses), addresses)

    return serve


def sampled(tmp_path):
    return list(served.read(tmp_path / "sample" / "here"))


def ask(caller, ids, **more):
    return caller.client.predict("copy", entity_ids=ids, overrides={"sent": np.zeros(len(ids))} | more)["y"]


def test_every_row_looked_up_is_kept_with_its_sources_and_time(serve, tmp_path):
    before = sampling.now_ms()
    seen = serve(lambda caller, _: ask(caller, ["ada", "bob", "nobody"]))
    ((origin, rows),) = sampled(tmp_path)
    assert (origin.model, origin.version, origin.columns) == ("copy", 1, ("amount", "age"))
    assert origin.views == (VIEW,)
    assert rows.entities == [b"ada", b"bob", b"nobody"]
    np.testing.assert_array_equal(rows.values, seen[:, 1:])
    store, default, missing = SOURCE_STORE, SOURCE_DEFAULT, SOURCE_MISSING
    assert rows.sources.tolist() == [[store, store], [store, missing], [default, missing]]
    assert before <= rows.times.min() <= rows.times.max() <= sampling.now_ms()


def test_what_the_caller_sent_is_told_and_rows_without_an_entity_are_left_out(serve, tmp_path):
    def work(caller, _):
        ask(caller, ["ada"], amount=[7.0])
        caller.client.predict("copy", [[1, 2, 3]])

    serve(work)
    ((_, rows),) = sampled(tmp_path)
    assert rows.sources.tolist() == [[SOURCE_REQUEST, SOURCE_STORE]]


def test_what_was_refused_was_not_served_and_is_no_part_of_the_sample(registry, graphs, redis_url, tmp_path, calling):
    """Neither the entity without a row, nor its neighbours in the same request; others of the batch are."""
    graphs.publish(
        registry, "copy", graphs.copy(3), columns=NAMES, views=[VIEW.model_copy(update={"on_missing": "error"})]
    )
    with closing(open_store(redis_url)) as store:
        columns = {"age": np.ones(2, np.float32), "unread": np.zeros(2, np.int32), "amount": np.ones(2)}
        store.put(VIEW, [b"ada", b"bob"], columns)
    sample = {"path": tmp_path / "sample" / "here", "rate": 1.0}
    config = Config(registry=registry.root, grpc="127.0.0.1:0", metrics="off", features=redis_url, sample_served=sample)
    with running(config) as addresses:
        caller = calling(addresses)
        ask(caller, ["ada"])
        for ids in (["nobody"], ["bob", "nobody", "bob"]):
            with pytest.raises(NotFound):
                ask(caller, ids)
        ask(caller, ["bob"])
    assert [entity for _, rows in sampled(tmp_path) for entity in rows.entities] == [b"ada", b"bob"]


def test_of_one_batch_only_the_calls_that_were_answered_are_sampled(publish, tmp_path):
    sampler = sampling.Sampler(
        sampling.SampleSettings(path=tmp_path, rate=1.0), publish.load("copy", 1).manifest, "d", [VIEW]
    )

    class Batch:
        rows, entities = 4, [b"a", b"b", b"c", b"d"]
        matrix, source = np.zeros((4, 3), np.float32), np.full((4, 3), SOURCE_STORE, np.uint8)
        open_rows = staticmethod(lambda: np.array([0, 3]))

    sampler.offer(Batch, 5)
    sampler.close()
    assert [rows.entities for _, rows in served.read(tmp_path)] == [[b"a", b"d"]]


def test_a_batch_that_failed_and_was_run_again_is_sampled_once(publish, redis_url, tmp_path, calling, monkeypatch):
    failures = ["once"]

    def compute(self, feeds, now=None):
        if failures:
            raise ValueError(failures.pop())
        return whole(self, feeds, now)

    whole = Pipeline.compute
    sample = {"path": tmp_path / "sample" / "here", "rate": 1.0}
    config = Config(
        registry=publish.root, grpc="127.0.0.1:0", metrics="off", features=redis_url, sample_served=sample, warmup_ms=0
    )
    with running(config) as addresses:
        caller = calling(addresses)
        monkeypatch.setattr(Pipeline, "compute", compute)
        with pytest.raises(PenstockError):
            ask(caller, ["ada"])
        ask(caller, ["bob"])
    assert [rows.entities for _, rows in sampled(tmp_path)] == [[b"bob"]]


def test_about_one_row_in_so_many_is_taken(serve, tmp_path):
    def work(caller, _):
        for _ in range(100):
            ask(caller, [str(number) for number in range(100)])

    serve(work, rate=0.05)
    times = [entity for _, rows in sampled(tmp_path) for entity in rows.entities]
    assert 390 <= len(times) <= 610  # 500 and five standard deviations
    assert len(set(times)) > 90  # whatever its place in the batch


def test_without_the_setting_nothing_is_written_and_no_thread_is_there(publish, redis_url, tmp_path, calling):
    with running(Config(registry=publish.root, grpc="127.0.0.1:0", metrics="off", features=redis_url)) as addresses:
        ask(calling(addresses), ["ada"])
    with pytest.raises(InvalidData, match="holds no sample of served vectors: serve with the setting sample_served"):
        sampled(tmp_path)


def test_rows_are_counted_and_a_disk_that_refuses_drops_them_and_nothing_else(
    serve, tmp_path, monkeypatch, caplog, eventually
):
    monkeypatch.setattr(sampling, "FLUSH_ROWS", 1)

    def full(*_):
        raise OSError(28, "No space left on device")

    def counts(addresses):
        with urlopen(f"http://{addresses.metrics}/metrics") as page:
            lines = [
                line for line in page.read().decode().splitlines() if line.startswith("penstock_sampled_rows_total")
            ]
        return {line.split('result="')[1].split('"')[0]: float(line.split()[-1]) for line in lines}

    def work(caller, addresses):
        assert ask(caller, ["ada"]).shape == (1, 3)
        assert counts(addresses) == {"taken": 1, "dropped": 0}
        eventually(lambda: sampled(tmp_path) if list(tmp_path.glob("sample/here/served-*")) else None)
        monkeypatch.setattr(served, "write", full)
        for _ in range(3):
            assert ask(caller, ["ada"]).shape == (1, 3)
        eventually(lambda: counts(addresses) == {"taken": 1, "dropped": 3})

    serve(work)
    assert caplog.text.count("the sample of served vectors cannot be written: [Errno 28] No space left") == 1


def test_rows_that_nobody_writes_in_time_are_dropped_and_counted(publish, tmp_path, monkeypatch):
    monkeypatch.setattr(sampling, "MOST_HELD", 10)
    settings = sampling.SampleSettings(path=tmp_path, rate=1.0)
    sampler = sampling.Sampler(settings, publish.load("copy", 1).manifest, "d", [VIEW])

    class Batch:
        rows, entities = 6, [b"e"] * 6
        matrix, source = np.zeros((6, 3), np.float32), np.full((6, 3), SOURCE_STORE, np.uint8)
        open_rows = staticmethod(lambda: None)

    for _ in range(3):
        sampler.offer(Batch, 5)
    sampler.close()
    assert (sampler.taken, sampler.dropped) == (6, 12)
    assert [len(rows.entities) for _, rows in served.read(tmp_path)] == [6]


def test_old_files_make_room(serve, tmp_path, monkeypatch):
    monkeypatch.setattr(sampling, "FLUSH_ROWS", 1)
    monkeypatch.setattr(sampling, "MOST_HELD", 1 << 20)
    folder = tmp_path / "sample" / "here"
    folder.mkdir(parents=True)
    for number in range(400):  # a mebibyte and more, in blocks
        (folder / f"served-{number:020d}-x.parquet").write_bytes(b"old")
    serve(lambda caller, _: ask(caller, ["ada"]), max_bytes=1 << 20)
    left = sorted(folder.iterdir())
    assert sum(-(-file.stat().st_size // 4096) * 4096 for file in left) <= 1 << 20
    assert "served-00000000000000000000-x.parquet" not in [file.name for file in left]
    assert len(left) == 256


def test_what_a_killed_server_left_unfinished_is_taken_away(tmp_path):
    """An hour later: until then it may be somebody's who is at work."""
    for name in (".served-1-x.parquet", ".served-2-x.parquet", "served-3-x.parquet"):
        (tmp_path / name).write_bytes(b"half")
    at = (tmp_path / ".served-1-x.parquet").stat().st_mtime - served.LEFT_S - 60
    for name in (".served-1-x.parquet", "served-3-x.parquet"):
        os.utime(tmp_path / name, (at, at))
    served.prune(tmp_path, 1 << 20)
    assert sorted(file.name for file in tmp_path.iterdir()) == [".served-2-x.parquet", "served-3-x.parquet"]


def test_a_store_that_is_away_is_no_part_of_the_sample(registry, graphs, tmp_path, calling):
    graphs.publish(
        registry, "copy", graphs.copy(3), columns=NAMES, views=[VIEW.model_copy(update={"on_outage": "default"})]
    )
    config = Config(
        registry=registry.root,
        grpc="127.0.0.1:0",
        metrics="off",
        features=f"unix://{tmp_path}/nobody.sock",
        sample_served={"path": tmp_path / "sample" / "here", "rate": 1},
    )
    with running(config) as addresses:
        assert ask(calling(addresses), ["ada"])[0, 1] == 5
    with pytest.raises(InvalidData, match="no sample"):
        sampled(tmp_path)


@pytest.mark.parametrize("transport", ["native", "grpcio"])
def test_both_transports_are_sampled(publish, redis_url, tmp_path, calling, transport):
    if transport == "native":
        pytest.importorskip("penstock.kernels.http2")
    config = Config(
        registry=publish.root,
        grpc="127.0.0.1:0",
        metrics="off",
        transport=transport,
        features=redis_url,
        sample_served={"path": tmp_path / "sample" / "here", "rate": 1},
    )
    with running(config) as addresses:
        caller = calling(addresses)
        ask(caller, ["ada"])
        with pytest.raises(grpc.RpcError):
            caller.send("copy", [[1.0]]).result()
    assert [rows.entities for _, rows in sampled(tmp_path)] == [[b"ada"]]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, "'sample_served.path': Field required"),
        ({"path": "x", "rate": 0}, "'sample_served.rate'"),
        ({"path": "x", "rat": 1}, "'sample_served.rat'"),
    ],
)
def test_settings_that_cannot_be_are_named(settings, told):
    with pytest.raises(BadConfig) as caught:
        Config.read(None, sample_served=settings)
    assert told in str(caught.value)


def test_a_folder_that_cannot_be_made_stops_the_start(publish, tmp_path):
    (tmp_path / "file").write_text("")
    config = Config(
        registry=publish.root, grpc="127.0.0.1:0", metrics="off", sample_served={"path": tmp_path / "file" / "x"}
    )
    with pytest.raises(BadConfig, match=r"sample_served: .*file/x cannot be made: Not a directory"), running(config):
        pass


def test_a_file_that_is_no_sample_is_named(tmp_path):
    folder = tmp_path / "sample" / "here"
    folder.mkdir(parents=True)
    (folder / "served-1-x.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InvalidData, match=r"served-1-x.parquet: no sample of served vectors: "):
        sampled(tmp_path)
