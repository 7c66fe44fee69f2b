"""What the benchmarks serve and ask: seeded models of 30 features in a registry of their own, and a pool of requests.

`plain` is a logistic regression by vector, `joined` the same joined with features in a Redis of our own, and `trees`,
which takes half a minute to fit and convert, 200 trees of depth 6. The pool is 1,024 rows that all differ, for repeated
rows flatter trees (the branch predictor learns them) and repeated entities flatter look-ups (a batch asks once each).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from penstock.benchmarks.generators import LoadFailed
from penstock.client import Client
from penstock.proto import inference_pb2 as pb

METHOD = "/inference.GRPCInferenceService/ModelInfer"
FEATURES, POOL, SEED = 30, 1024, 7
COLUMNS = [f"f{i}" for i in range(FEATURES)]
ENTITIES = [f"customer-{i}" for i in range(POOL)]

Rows = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Seeded:
    """The models published, each with the estimator it was made of, and the pool of rows."""

    sources: Mapping[str, Any]
    rows: Rows


def publish(folder: Path, *, trees: bool = False) -> Seeded:
    """Publish the models into a registry in `folder`, and the features into the store beside it."""
    import pandas as pd
    from sklearn.datasets import make_classification
    from sklearn.ensemble import GradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression

    from penstock.converters import convert
    from penstock.registry import Registry

    x, y = make_classification(4000, FEATURES, n_informative=12, random_state=SEED)
    sample = pd.DataFrame(x.astype(np.float32), columns=COLUMNS)
    model = LogisticRegression(max_iter=1000).fit(sample, y)
    registry, view = Registry(folder / "registry"), fill_store(folder, sample)
    convert(model, "plain", sample, labels=y, registry=registry)
    convert(model, "joined", sample, labels=y, registry=registry, views=(view,), entity="customer")
    sources: dict[str, Any] = {"plain": model, "joined": model}
    if trees:
        boosting = GradientBoostingClassifier(n_estimators=200, max_depth=6, random_state=SEED).fit(sample, y)
        convert(boosting, "trees", sample, labels=y, registry=registry)
        sources["trees"] = boosting
    return Seeded(sources, sample.to_numpy(np.float32)[:POOL])


def fill_store(folder: Path, sample: Any) -> Any:
    """Put the pool's rows into a Redis of our own; gives their view."""
    from penstock.features.opening import open_store
    from penstock.features.schema import Column, FeatureView

    view = FeatureView(
        name="numbers", entity="customer", columns=tuple(Column(name=name, dtype="float32") for name in COLUMNS)
    )
    store = open_store(store_url(folder))
    store.apply(view)
    values = {name: sample[name].to_numpy(np.float32)[:POOL] for name in COLUMNS}
    store.put(view, [entity.encode() for entity in ENTITIES], values)
    store.close()
    return view


def store_url(folder: Path) -> str:
    """Where the benchmark's features are kept: a Redis that lives while anybody uses it."""
    return f"embedded://{folder / 'store'}"


def vector_bodies(model: str, tensor: str, rows: Rows) -> list[bytes]:
    """One request for each row, as a matrix of one row."""
    return [request(model, tensor, "FP32", [1, FEATURES], row.tobytes()) for row in rows]


def entity_bodies(model: str, tensor: str) -> list[bytes]:
    """One request for each entity."""
    raws = (entity.encode() for entity in ENTITIES)
    return [request(model, tensor, "BYTES", [1, 1], len(raw).to_bytes(4, "little") + raw) for raw in raws]


def request(model: str, tensor: str, datatype: str, shape: list[int], raw: bytes) -> bytes:
    message = pb.ModelInferRequest(model_name=model, raw_input_contents=[raw])
    message.inputs.add(name=tensor, datatype=datatype, shape=shape)
    return message.SerializeToString()


def check_values(client: Client, seeded: Seeded) -> None:
    """Raise LoadFailed unless every model gives its source's probabilities for the pool, by vector and by entity."""
    import pandas as pd

    for name, source in seeded.sources.items():
        expected = source.predict_proba(pd.DataFrame(seeded.rows, columns=COLUMNS))
        answers = [client.predict(name, seeded.rows)]
        if name == "joined":
            answers.append(client.predict(name, entity_ids=ENTITIES))
        for answer in answers:
            got = next(array for array in answer.values() if array.shape == expected.shape and array.dtype.kind == "f")
            if not np.allclose(got, expected, rtol=0, atol=1e-5):
                raise LoadFailed(f"{client.address}: answers of {name!r} are not the probabilities its source gives")
