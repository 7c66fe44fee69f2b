"""What the benchmarks serve and ask: seeded models in a registry of their own, and a pool of requests for each.

`plain` is a logistic regression of 30 features by vector, `joined` the same joined with features in a Redis of our own,
`trees` 200 boosted trees of depth 6 (half a minute to fit and convert), and `mlp` a network of two layers of 256 on 128
features (ten seconds). A pool is 4,096 rows that all differ, for repeated rows flatter trees (the branch predictor
learns them) and repeated entities flatter look-ups (a batch asks once each).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from penstock.benchmarks.generators import LoadFailed
from penstock.client import Client
from penstock.proto import inference_pb2 as pb
from penstock.registry import Registry, Signature

METHOD = "/inference.GRPCInferenceService/ModelInfer"
FEATURES, WIDE, POOL, SEED = 30, 128, 4096, 7
COLUMNS = [f"f{i}" for i in range(FEATURES)]
ENTITIES = [f"customer-{i}" for i in range(POOL)]
FITTED = 4000
TOLERANCE = 1e-5
"""Of probabilities: ONNX Runtime sums in float32, scikit-learn in float64."""

Rows = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Seeded:
    """A published model.

    Attributes:
        name: as it is asked for.
        source: the estimator it was made of.
        rows: the pool, [POOL, features].
        signature: of its graph.
        onnx: its file.
    """

    name: str
    source: Any
    rows: Rows
    signature: Signature
    onnx: Path

    @property
    def tensor(self) -> str:
        """The name of the input."""
        return self.signature.inputs[0].name

    @property
    def entity(self) -> str:
        """The name of the input that takes entity ids; empty where there is none."""
        return self.signature.entity

    def bodies(self, each: int = 1) -> list[bytes]:
        """The pool as requests of `each` rows."""
        return vector_bodies(self.name, self.tensor, self.rows, each)

    def entity_bodies(self, each: int = 1) -> list[bytes]:
        """The pool as requests of `each` entity ids."""
        return entity_bodies(self.name, self.entity, each)

    def expected(self, count: int) -> Rows:
        """The source's probabilities for the first rows of the pool."""
        import pandas as pd

        rows = pd.DataFrame(self.rows[:count], columns=[f"f{i}" for i in range(self.rows.shape[1])])
        probabilities: Rows = self.source.predict_proba(rows)
        return probabilities


def publish(folder: Path, names: Iterable[str] = ("plain", "joined")) -> dict[str, Seeded]:
    """Publish models into a registry in `folder`, and the features of `joined` into the store beside it."""
    import pandas as pd
    from sklearn.datasets import make_classification

    from penstock.converters import convert

    registry, found = Registry(folder / "registry"), {}
    for name in names:
        width = WIDE if name == "mlp" else FEATURES
        x, y = make_classification(FITTED + POOL, width, n_informative=12, random_state=SEED)
        table = pd.DataFrame(x.astype(np.float32), columns=[f"f{i}" for i in range(width)])
        sample, labels = table[:FITTED], y[:FITTED]
        pool = np.ascontiguousarray(table[FITTED:].to_numpy(np.float32))
        source = _fitted(name, sample, labels)
        joins: dict[str, Any] = {"views": (fill_store(folder, pool),), "entity": "customer"} if name == "joined" else {}
        convert(source, name, sample, labels=labels, registry=registry, **joins)
        onnx = registry.root / "models" / name / "versions" / "1" / "model.onnx"
        found[name] = Seeded(name, source, pool, registry.manifest(name, 1).signature, onnx)
    return found


def _fitted(name: str, sample: Any, labels: Any) -> Any:
    """The estimator of that name."""
    from sklearn.ensemble import GradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier

    if name == "trees":
        return GradientBoostingClassifier(n_estimators=200, max_depth=6, random_state=SEED).fit(sample, labels)
    if name == "mlp":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it has not converged: what it costs does not depend on that
            return MLPClassifier((256, 256), max_iter=5, random_state=SEED).fit(sample, labels)
    return LogisticRegression(max_iter=1000).fit(sample, labels)


def fill_store(folder: Path, pool: Rows) -> Any:
    """Put the pool's rows into a Redis of our own; gives their view."""
    from penstock.features.opening import open_store
    from penstock.features.schema import Column, FeatureView

    view = FeatureView(
        name="numbers", entity="customer", columns=tuple(Column(name=name, dtype="float32") for name in COLUMNS)
    )
    store = open_store(store_url(folder))
    store.apply(view)
    values = {name: np.ascontiguousarray(pool[:, i]) for i, name in enumerate(COLUMNS)}
    store.put(view, [entity.encode() for entity in ENTITIES], values)
    store.close()
    return view


def store_url(folder: Path) -> str:
    """Where the benchmark's features are kept: a Redis that lives while anybody uses it."""
    return f"embedded://{folder / 'store'}"


def vector_bodies(model: str, tensor: str, rows: Rows, each: int = 1) -> list[bytes]:
    """Requests of `each` rows, as a matrix."""
    starts = range(0, len(rows) - each + 1, each)
    shape = [each, rows.shape[1]]
    return [request(model, tensor, "FP32", shape, rows[start : start + each].tobytes()) for start in starts]


def entity_bodies(model: str, tensor: str, each: int = 1) -> list[bytes]:
    """Requests of `each` entities."""
    raws = [len(entity).to_bytes(4, "little") + entity.encode() for entity in ENTITIES]
    groups = (b"".join(raws[start : start + each]) for start in range(0, len(raws) - each + 1, each))
    return [request(model, tensor, "BYTES", [each, 1], raw) for raw in groups]


def request(model: str, tensor: str, datatype: str, shape: list[int], raw: bytes) -> bytes:
    message = pb.ModelInferRequest(model_name=model, raw_input_contents=[raw])
    message.inputs.add(name=tensor, datatype=datatype, shape=shape)
    return message.SerializeToString()


def check_values(client: Client, models: Mapping[str, Seeded], count: int = 1024) -> None:
    """Raise LoadFailed unless a Penstock gives each source's probabilities, by vector and by entity."""
    for name, model in models.items():
        answers = [client.predict(name, model.rows[:count])]
        if model.entity:
            answers.append(client.predict(name, entity_ids=ENTITIES[:count]))
        for answer in answers:
            check_probabilities(answer.values(), model.expected(count), f"{client.address}: answers of {name!r}")


def check_probabilities(outputs: Iterable[np.ndarray[Any, Any]], expected: Rows, who: str) -> None:
    """Raise LoadFailed unless one of the outputs holds the expected probabilities."""
    fitting = [array for array in outputs if array.shape == expected.shape and array.dtype.kind == "f"]
    if not fitting or not np.allclose(fitting[0], expected, rtol=0, atol=TOLERANCE):
        raise LoadFailed(f"{who} are not the probabilities its source gives")
