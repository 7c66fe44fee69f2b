"""From a manifest to the compiled plan of what a version takes and gives."""

from __future__ import annotations

from penstock.errors import PenstockError
from penstock.features.entities import united_keys
from penstock.features.schema import KEPT, FeatureView
from penstock.kernels.wire import Plan, PlanInput, PlanOutput
from penstock.registry.manifest import Manifest, TensorSpec

FEATURES = "penstock.features"
"""Output on request: the joined vector, FP32 [n, k]."""
FEATURE_STATUS = "penstock.feature_status"
"""Output on request: where each value came from, BYTES [n, k]: a word of `join.SOURCES`."""


def views_of(manifest: Manifest) -> tuple[FeatureView, ...]:
    """The feature views a version joins."""
    return tuple(FeatureView.model_validate(entry.schema_, context=KEPT) for entry in manifest.feature_sets)


def keys_of(manifest: Manifest) -> tuple[str, ...]:
    """What the parts of the entity ids of a version are, in order.

    Raises:
        PenstockError: a view is of a key that is none of these.
    """
    views = views_of(manifest)
    keys = manifest.signature.entity_keys or united_keys(view.entity_keys for view in views)
    for view in views:
        if not set(view.entity_keys) <= set(keys):
            raise PenstockError(
                f"{manifest.model_name} version {manifest.version} cannot be served: view {view.name!r} is of "
                f"{view.entity_name}, and its entity ids of {'|'.join(keys)}; publish it again with keys of every view"
            )
    return keys


def plan_of(manifest: Manifest, digest: str) -> Plan:
    """The plan of a version; `digest` is told in every answer.

    Raises:
        PenstockError: the signature cannot be served.
    """
    signature = manifest.signature
    if signature.entity and not signature.columns:
        raise PenstockError(
            f"{manifest.model_name} version {manifest.version} cannot be served: features are joined into one matrix, "
            "and its graph takes its inputs singly; penstock convert --view makes a graph that takes the matrix, with "
            "the words of categories in it"
        )
    row = slice(1 if signature.batched else 0, None)
    inputs = [_input(spec, signature.columns, row) for spec in signature.inputs]
    outputs = [PlanOutput(spec.name, spec.datatype, spec.shape[row], on_request=False) for spec in signature.outputs]
    if signature.entity:
        inputs.insert(0, PlanInput(signature.entity, "BYTES", (1,), "entity", optional=True))
        width = (len(signature.columns),)
        outputs.append(PlanOutput(FEATURES, "FP32", width, on_request=True))
        outputs.append(PlanOutput(FEATURE_STATUS, "BYTES", width, on_request=True))
    try:
        return Plan(
            manifest.model_name,
            str(manifest.version),
            inputs,
            outputs,
            columns=signature.columns,
            batched=signature.batched,
            parameters={"digest": f"sha256:{digest[:16]}"},
        )
    except ValueError as error:
        raise PenstockError(f"{manifest.model_name} version {manifest.version} cannot be served: {error}") from error


def _input(spec: TensorSpec, columns: tuple[str, ...], row: slice) -> PlanInput:
    if columns:  # one matrix; also taken column by column, hence optional
        return PlanInput(spec.name, "FP32", (len(columns),), "matrix", optional=True)
    return PlanInput(spec.name, spec.datatype, spec.shape[row], "tensor", optional=False)
