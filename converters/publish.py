"""From a fitted model and a sample of data to a published version: `convert`.

The order is: load, decide the inputs, apply the transforms, convert and pass the gate, measure, publish. Nothing is
written before the gate has passed, and publishing itself is all or nothing (`penstock.registry`). A version gets

- `model.onnx`, the bytes that passed the gate;
- `golden.npz`, up to 64 sample rows as a caller sends them (before transforms), with the answers and the clock;
- `profile.json`, the drift reference of every float feature (before transforms) and of the score;
- `transforms.json`, where given.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from penstock.converters import measures, onnx, sources
from penstock.converters.errors import BadSample, ConvertError
from penstock.converters.gate import Passed, Progress, through_gate
from penstock.converters.inputs import MATRIX_INPUT, Inputs, as_frame, inputs_of
from penstock.converters.parity import Tolerance, graph_answers_raw
from penstock.converters.sklearn import label_classes, split_rule
from penstock.converters.views import Joined, join_views, joined_inputs
from penstock.features.functions import Function
from penstock.features.schema import FeatureView
from penstock.features.transforms import TransformError, Transforms, clock
from penstock.registry import Draft, Manifest, Registry

LIBRARIES = ("scikit-learn", "skl2onnx", "onnx", "onnxruntime", "numpy")


@dataclass(frozen=True)
class Converted:
    """A published version, and what the gate found on the way."""

    manifest: Manifest
    passed: Passed
    sent: tuple[str, ...]

    @property
    def notes(self) -> list[str]:
        """What a reader should know besides the numbers."""
        reports = [self.passed.sample, *([self.passed.edges] if self.passed.edges else [])]
        found = [note for report in reports for note in report.notes]
        found += [
            f"{len(report.ties)} of {report.rows} {report.what} are ties: labels differ where the source is undecided"
            for report in reports
            if report.ties
        ]
        if self.passed.arithmetic == "float64":
            found.append("float32 arithmetic did not pass the gate, so the graph computes in float64")
        if keys := self.manifest.signature.entity_keys:
            found.append(f"an entity id has {len(keys)} parts, in this order: {', '.join(keys)}")
        if self.sent:
            found.append(f"in no feature view, so callers must send: {', '.join(self.sent)}")
        return found


@dataclass(frozen=True)
class Prepared:
    """Transforms, with what is needed to run them."""

    transforms: Transforms
    functions: Mapping[str, Function]
    now: NDArray[np.float64]


@dataclass(frozen=True)
class Sample:
    """The sample in the three forms that are needed: as brought, as callers send it, and as the graph gets it.

    Attributes:
        frame: as brought.
        sent: the form in which callers send rows.
        inputs: the form in which the graph takes them: `sent`, unless transforms stand between.
        served: what the model gets.
        prepared: the transforms.
    """

    frame: pd.DataFrame
    sent: Inputs
    inputs: Inputs
    served: pd.DataFrame
    prepared: Prepared | None = None

    @cached_property
    def matrix(self) -> NDArray[np.float32]:
        """What callers send, float32 [n, k]: the features that drift is counted on."""
        return self.sent.matrix(self.frame)


def _sample(
    estimator: Any, frame: pd.DataFrame, prepared: Prepared | None, views: Sequence[FeatureView] = ()
) -> Sample:
    """The forms of a sample; transforms need the matrix form, and a model of the columns that they give."""
    if prepared is None:
        inputs = inputs_of(estimator, frame)
        if views and not inputs.is_matrix:
            inputs = joined_inputs(inputs, views)
        return Sample(frame, inputs, inputs, inputs.served(frame))
    transforms = prepared.transforms
    columns = transforms.columns or _copied(estimator, frame, transforms)
    lacking = [name for name in columns if name not in frame.columns]
    if lacking:
        raise BadSample(f"the sample lacks columns of the transforms: {', '.join(lacking)}")
    rows = transforms.model_copy(update={"columns": columns}).run(frame, prepared.functions, prepared.now)
    single = all(frame[name].dtype == np.float32 for name in columns)
    names = list(transforms.output_columns(columns))
    made = pd.DataFrame(rows if single else rows.astype(np.float64), columns=names, index=frame.index)
    inputs = _matrix_inputs(estimator, made)
    if inputs.columns != tuple(names):
        raise ConvertError(
            f"the transforms give the columns {', '.join(names[:20])}, and the model was fitted on "
            f"{', '.join(inputs.columns[:20])}: end the transforms with a select step of the model's columns"
        )
    sent = replace(inputs, columns=columns, datatypes=("FP32",) * len(columns))
    return Sample(frame, sent, inputs, made, prepared)


def _copied(estimator: Any, frame: pd.DataFrame, transforms: Transforms) -> tuple[str, ...]:
    """The columns of transforms that do not say which: the model's own where they keep these, else the sample's."""
    own = tuple(map(str, getattr(estimator, "feature_names_in_", ())))
    try:
        keep = bool(own) and transforms.output_columns(own) == own
    except TransformError:
        keep = False
    return _matrix_inputs(estimator, frame).columns if keep else tuple(map(str, frame.columns))


def _matrix_inputs(estimator: Any, frame: pd.DataFrame) -> Inputs:
    inputs = inputs_of(estimator, frame)
    if inputs.kind != "matrix":
        raise ConvertError(
            "transforms need a model that reads one matrix of numbers; this one takes its columns singly"
        )
    return inputs


def convert(
    source: Any,
    name: str,
    sample: Any,
    *,
    registry: Registry | Path | str,
    labels: Any = None,
    transforms: Transforms | None = None,
    functions: Mapping[str, Function] | None = None,
    now: ArrayLike | None = None,
    views: Sequence[FeatureView] = (),
    entity: str = "",
    tolerance: Tolerance | None = None,
    fuzz: bool = True,
    trust: bool = False,
    allow_types: Sequence[str] = (),
    trained_at: datetime | None = None,
    created_by: str = "",
    lineage: dict[str, str] | None = None,
    progress: Progress | None = None,
) -> Converted:
    """Convert a fitted scikit-learn model, hold it against its source, and publish it.

    Args:
        source: the estimator, or the path of a `.skops`, `.joblib` or `.pkl` file.
        name: of the model in the registry.
        sample: rows like those it will be asked: pandas frame, Arrow table, [n, k] array, or the path of a Parquet or
            CSV file. Before transforms. All of it is compared, counted for drift and measured.
        registry: where to publish.
        labels: the true labels or values [n], or the name of the sample's column that has them; for the metrics.
        transforms: run before the model; the source then gets the transformed matrix.
        functions: those that the transforms call, by name.
        now: where they count from the clock: milliseconds since 1970, one or [n]; the present if left out.
        views: feature views that hold the model's columns.
        entity: name of the entity id input, where the views are of one entity; its keys, joined by '|', by default.
        tolerance: how far answers may part (`parity.py`).
        fuzz: also compare rows made to sit on tree thresholds (`fuzz.py`).
        trust: let a pickle run its code.
        allow_types: types that a skops file may hold.
        trained_at: when; the file's time, or now.
        created_by: who.
        lineage: more entries for the manifest.
        progress: called as (stage, rows done, rows in all).

    Raises:
        GateFailed: ONNX and source answer differently; nothing was published.
        UntrustedModel, BadSample, UnsupportedModel, ConvertError: see `errors.py`.
        TransformError: the transforms do not run over the sample.
        RegistryError: it could not be published.
    """
    origin = _origin(source, sample)
    estimator = sources.load_model(source, trust=trust, allow_types=allow_types) if _is_path(source) else source
    frame = sources.load_table(sample) if _is_path(sample) else as_frame(sample)
    frame, truth = _split_labels(frame, labels)
    prepared = None if transforms is None else Prepared(transforms, functions or {}, clock(now))
    rows = _sample(estimator, frame, prepared, views)
    joined = join_views(rows.sent, views, entity)
    passed = through_gate(estimator, rows.inputs, rows.served, tolerance=tolerance, fuzz=fuzz, progress=progress)
    passed.sample.notes += rows.sent.notes(frame)
    outputs = graph_answers_raw(passed.model, rows.inputs, rows.served)
    draft, files = _version(estimator, rows, passed, outputs, joined, truth)
    update = {
        "model_name": name,
        "trained_at": trained_at or origin.time,
        "created_by": created_by,
        "lineage": draft.lineage | origin.lineage | (lineage or {}),
    }
    store = registry if isinstance(registry, Registry) else Registry(registry)
    manifest = store.publish(Draft.model_validate(draft.model_dump() | update), files)
    return Converted(manifest, passed, joined.sent)


@dataclass(frozen=True)
class Origin:
    """Where model and sample came from."""

    time: datetime
    lineage: dict[str, str]


def _is_path(value: Any) -> bool:
    return isinstance(value, str | Path)


def _origin(source: Any, sample: Any) -> Origin:
    found: dict[str, str] = {}
    time = datetime.now(UTC)
    if _is_path(source) and Path(source).is_file():
        time = datetime.fromtimestamp(Path(source).stat().st_mtime, UTC)
        found |= {"source_file": Path(source).name, "source_sha256": sources.file_digest(source)}
    if _is_path(sample) and Path(sample).is_file():
        found |= {"sample_file": Path(sample).name, "sample_sha256": sources.file_digest(sample)}
    return Origin(time, found)


def _split_labels(frame: pd.DataFrame, labels: Any) -> tuple[pd.DataFrame, NDArray[Any] | None]:
    if not isinstance(labels, str):
        return frame, None if labels is None else np.asarray(labels)
    if labels not in frame.columns:
        raise ConvertError(
            f"the sample has no label column {labels!r}; it has {', '.join(map(str, frame.columns[:20]))}"
        )
    if frame[labels].isna().any():
        raise ConvertError(f"label column {labels!r} has missing values: leave those rows out")
    return frame.drop(columns=labels), frame[labels].to_numpy()


def _version(
    estimator: Any,
    rows: Sample,
    passed: Passed,
    outputs: dict[str, NDArray[Any]],
    joined: Joined,
    truth: NDArray[Any] | None,
) -> tuple[Draft, dict[str, bytes]]:
    """The manifest's draft and the files, but for what only the caller of `convert` knows."""
    inner, rule = split_rule(estimator)
    classes = label_classes(inner) if "label" in outputs else None
    found = {} if truth is None else measures.metrics_of(outputs, truth, classes)
    score, values = measures.score_of(outputs, 1 if rule is None else rule.positive)
    model = onnx.parse(passed.model, "the converted model")
    columns = rows.sent.columns if rows.sent.is_matrix else ()
    draft = Draft(
        model_name="",
        accuracy=found.get("accuracy"),
        f1_score=found.get("f1"),
        trained_at=datetime.now(UTC),
        framework=f"scikit-learn {installed('scikit-learn')}",
        opset=onnx.opset_of(model),
        ir_version=model.ir_version,
        signature=onnx.signature_of(
            passed.model, columns=columns, entity=joined.entity, entity_keys=joined.entity_keys
        ),
        feature_sets=joined.feature_sets,
        score=score,
        metrics=found,
        threshold=None if rule is None else rule.threshold,
        lineage=_lineage(estimator, rows, passed),
    )
    names = {spec.name for spec in draft.signature.inputs}
    files = {
        "model.onnx": passed.model,
        "golden.npz": _golden(rows, outputs, names),
        "profile.json": measures.reference_of(rows.matrix, rows.sent.numbers, values).to_json(),
    }
    if rows.prepared is not None:
        files["transforms.json"] = rows.prepared.transforms.to_json().encode()
    return draft, files


def _golden(rows: Sample, outputs: dict[str, NDArray[Any]], names: set[str]) -> bytes:
    kept = measures.golden_rows(len(rows.frame))
    sent = {MATRIX_INPUT: rows.matrix} if rows.sent.is_matrix else rows.sent.feed(rows.frame)
    now = None if rows.prepared is None else rows.prepared.now
    return measures.golden(
        {name: array[kept] for name, array in sent.items() if name in names},
        {name: array[kept] for name, array in outputs.items()},
        now if now is None or len(now) == 1 else now[kept],
    )


def _lineage(estimator: Any, rows: Sample, passed: Passed) -> dict[str, str]:
    return {
        **{library: installed(library) for library in LIBRARIES},
        "python": platform.python_version(),
        "estimator": type(estimator).__name__,
        "arithmetic": passed.arithmetic,
        "rows": str(len(rows.frame)),
        "parity_rows": str(passed.sample.rows + (passed.edges.rows if passed.edges else 0)),
        "parity_worst": f"{passed.sample.worst:.3g}",
        "sample_matrix_sha256": hashlib.sha256(rows.matrix.tobytes()).hexdigest(),
    }
