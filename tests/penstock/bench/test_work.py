"""Requests are made of metadata or of files, all rows different, and answers are expected as the metadata says."""

from __future__ import annotations

import json

import numpy as np
import pytest

from penstock._requests import Model
from penstock.answers import ModelConfig, ModelMetadata, TensorMetadata
from penstock.bench import rows as tables
from penstock.bench import work
from penstock.bench.target import BenchFailed
from penstock.proto import inference_pb2 as pb

MATRIX = TensorMetadata("features", "FP32", (-1, 3))
ENTITY = TensorMetadata("customer", "BYTES", (-1, 1))
SCORE = TensorMetadata("score", "FP32", (-1, 2))


def model(*inputs, outputs=(SCORE,), entity="", vector="", columns=()):
    parameters = {"penstock.entity": entity, "penstock.vector": vector, "penstock.columns": json.dumps(columns)}
    config = ModelConfig("m", "", "", 0, (), (), parameters)
    return Model(ModelMetadata("m", ("1",), "", inputs, outputs), config)


def made(asked, rows=1, columns=None, ids=None, seed=7):
    return work.make(asked, "", rows, columns, ids, seed)


def tensors(body):
    request = pb.ModelInferRequest.FromString(body)
    return {
        t.name: (t.datatype, list(t.shape), raw)
        for t, raw in zip(request.inputs, request.raw_input_contents, strict=True)
    }


@pytest.mark.parametrize("rows", [1, 7, 64, 5000])
def test_a_made_up_pool_has_at_least_4096_rows_that_all_differ(rows):
    pool = made(model(MATRIX), rows)
    sent = np.concatenate([np.frombuffer(tensors(body)["features"][2], "<f4").reshape(rows, 3) for body in pool.bodies])
    assert len(np.unique(sent, axis=0)) == pool.distinct == len(sent) >= 4096
    assert len(set(pool.bodies)) == len(pool.bodies) >= 256


def test_a_seed_makes_one_pool():
    first, again, other = (made(model(MATRIX), seed=seed).bodies for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize("datatype", ["BOOL", "INT8", "UINT64", "FP16", "FP64", "BF16", "BYTES"])
def test_every_datatype_can_be_made_up(datatype):
    pool = made(model(TensorMetadata("x", datatype, (-1, 2, 2))), rows=3)
    assert tensors(pool.bodies[0])["x"][:2] == (datatype, [3, 2, 2])


def test_a_model_that_looks_features_up_gets_its_matrix_or_ids():
    both = model(MATRIX, ENTITY, entity="customer", vector="features")
    assert set(tensors(made(both).bodies[0])) == {"features"}
    pool = made(both, rows=2, ids=["a", "bb", "c"])
    assert [tensors(body)["customer"][2] for body in pool.bodies] == [
        b"\1\0\0\0a\2\0\0\0bb",
        b"\1\0\0\0c\1\0\0\0a",
    ]
    assert pool.distinct == 3
    with pytest.raises(BenchFailed, match="give some with --entities FILE"):
        made(model(ENTITY, entity="customer"))
    with pytest.raises(BenchFailed, match="takes no entity ids"):
        made(model(MATRIX), ids=["a"])


def test_sizes_that_only_the_user_knows_are_asked_for():
    with pytest.raises(BenchFailed, match=r"'text' of model 'm' has the shape \[-1, -1\]: give rows .* --input FILE"):
        made(model(TensorMetadata("text", "INT64", (-1, -1))))
    with pytest.raises(BenchFailed, match=r"which does not take --rows 4"):
        made(model(TensorMetadata("image", "FP32", (1, 3, 8))), rows=4)


# ---- Files -----------------------------------------------------------------------------------------------------------

VALUES = np.arange(12, dtype=np.float32).reshape(4, 3)


def write(path, kind):
    file = path / f"rows.{kind}"
    if kind == "npz":
        np.savez(file, features=VALUES)
    elif kind == "json":
        data = [{"features": row.tolist()} for row in VALUES[:2]]
        data += [{"features": {"content": row.tolist(), "shape": [3]}} for row in VALUES[2:]]
        file.write_text(json.dumps({"data": data}))
    elif kind == "csv":
        lines = [",".join(map(str, row)) for row in VALUES]
        file.write_text(
            "\n".join(["c,a,b,unused", *(f"{x.split(',', 1)[1].split(',')[1]},{x.rsplit(',', 1)[0]},q" for x in lines)])
        )
    else:
        pa = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pa.table({name: VALUES[:, i] for i, name in enumerate("abc")}), file)
    return file


@pytest.mark.parametrize("kind", ["npz", "json", "csv", "parquet"])
def test_rows_of_every_kind_of_file_arrive_as_they_are(tmp_path, kind):
    asked = model(MATRIX, vector="features", columns=list("abc"))
    pool = made(asked, rows=3, columns=tables.read(write(tmp_path, kind)))
    sent = [np.frombuffer(tensors(body)["features"][2], "<f4").reshape(3, 3) for body in pool.bodies]
    assert np.array_equal(np.concatenate(sent), VALUES[[0, 1, 2, 3, 0, 1]])
    assert pool.distinct == 4


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.txt", "", "is none of .npz, .json, .csv, .parquet"),
        ("a.csv", "", "at least one row"),
        ("a.csv", "x,y\n1,2\n", "the file lacks a, b, c; it has x, y"),
        ("a.json", "{}", "cannot be read"),
        ("a.json", "[1", "cannot be read"),
        ("a.npz", "no zip", "cannot be read"),
        ("a.csv", "features\n1\n2\n", "rows of .3. are asked for"),
    ],
)
def test_a_file_that_does_not_do_is_explained(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(BenchFailed, match=words):
        made(model(MATRIX, vector="features", columns=list("abc")), columns=tables.read(tmp_path / name))


def test_texts_and_numbers_of_a_csv_keep_their_kind(tmp_path):
    (tmp_path / "a.csv").write_text("n,x,t\n1,2.5,a\n2,,b\n")
    columns = tables.read(tmp_path / "a.csv")
    assert [columns[name].dtype.kind for name in "nxt"] == ["i", "f", "O"]
    assert np.isnan(columns["x"][1])


def test_ids_come_one_from_each_line(tmp_path):
    (tmp_path / "ids").write_text("a\n\n b \n")
    assert tables.read_ids(tmp_path / "ids") == ["a", "b"]
    (tmp_path / "none").write_text("\n")
    with pytest.raises(BenchFailed, match="holds no ids"):
        tables.read_ids(tmp_path / "none")


# ---- What is expected ------------------------------------------------------------------------------------------------


def answer(shape, datatype="FP32", name="score"):
    made = pb.ModelInferResponse(model_name="m")
    made.outputs.add(name=name, datatype=datatype, shape=shape)
    return made.SerializeToString()


@pytest.mark.parametrize(
    ("told", "came", "wanted"),
    [
        ((-1, 2), [3, 2], (-2, 2)),
        ((-1, -1), [3, 9], (-2, -1)),
        ((7,), [7], (7,)),
        ((), [], ()),
    ],
)
def test_the_first_dimension_follows_the_rows_and_unknown_ones_may_be_anything(told, came, wanted):
    pool = made(model(MATRIX, outputs=(TensorMetadata("score", "FP32", told),)), rows=3)
    assert work.expected(pool, answer(came)) == [(b"score", b"FP32", 4, wanted)]


@pytest.mark.parametrize("came", [[3, 3], [3], [2, 2]])
def test_a_first_answer_that_contradicts_the_metadata_is_refused(came):
    with pytest.raises(BenchFailed, match=r"output 'score' should have the shape \[-1, 2\]"):
        work.expected(made(model(MATRIX), rows=3), answer(came))


def test_outputs_the_metadata_do_not_tell_are_held_to_the_first_answer():
    pool = made(model(MATRIX, outputs=()), rows=3)
    assert work.expected(pool, answer([3, 5], "BYTES")) == [(b"score", b"BYTES", 0, (-2, 5))]
    with pytest.raises(BenchFailed, match="no ModelInferResponse"):
        work.expected(pool, b"\xff\xff")
