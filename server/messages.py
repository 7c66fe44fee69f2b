"""The border with protobuf: served versions as the protocol's messages."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from penstock.kernels.wire import PlanInput, PlanOutput
from penstock.monitoring import FeatureDrift
from penstock.proto import inference_pb2 as pb
from penstock.proto import penstock_pb2 as penstock_pb
from penstock.server.config import Config
from penstock.server.plans import keys_of
from penstock.server.shared import Counts
from penstock.server.version import Served
from penstock.server.watch import Drift

PLATFORM = "onnxruntime_onnx"
BACKEND = "onnxruntime"
FAILURES = ("failed", "refused", "too_late", "invalid", "expired")


def metadata(served: Served, versions: list[str]) -> pb.ModelMetadataResponse:
    """ModelMetadata: tensors with -1 for the batch dimension."""
    plan = served.plan
    batch = [-1] if plan.batched else []
    answer = pb.ModelMetadataResponse(name=served.name, versions=versions, platform=PLATFORM)
    for tensor in plan.inputs:
        answer.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=[*batch, *tensor.shape])
    for output in plan.outputs:
        answer.outputs.add(name=output.name, datatype=output.datatype, shape=[*batch, *output.shape])
    return answer


def model_config(served: Served, config: Config) -> pb.ModelConfigResponse:
    """ModelConfig: tensors without the batch dimension, and what clients of Penstock need to know as parameters."""
    plan, joins = served.plan, bool(_entity(served))
    answer = pb.ModelConfig(
        name=served.name,
        platform=PLATFORM,
        backend=BACKEND,
        max_batch_size=config.max_batch_rows if plan.batched else 0,
        input=[_config_input(tensor, optional=tensor.kind == "matrix" and joins) for tensor in plan.inputs],
        output=[_config_output(tensor) for tensor in plan.outputs],
    )
    if plan.batched:
        answer.dynamic_batching.max_queue_delay_microseconds = config.max_queue_delay_us
    answer.response_cache.enable = served.lane.cache is not None
    for key, value in parameters(served).items():
        answer.parameters[key].string_value = value
    return pb.ModelConfigResponse(config=answer)


def parameters(served: Served) -> dict[str, str]:
    """What ModelConfig tells Penstock's own clients."""
    told = {"penstock.digest": f"sha256:{served.digest}"}
    if served.plan.columns:
        told["penstock.columns"] = json.dumps(served.plan.columns)
        told["penstock.vector"] = served.plan.inputs[served.plan.matrix_slot].name
    if _entity(served):
        told["penstock.entity"] = _entity(served)
        told["penstock.entity_keys"] = json.dumps(keys_of(served.manifest))
    return told | tuning(served)


def tuning(served: Served) -> dict[str, str]:
    """What was measured and learnt of a version, for `penstock models show`; times in nanoseconds."""
    curve, seen = served.curve, served.lane.snapshot()
    return {
        "penstock.way": served.way,
        "penstock.model": served.model,
        "penstock.cap": str(served.cap),
        "penstock.curve": json.dumps(
            {"rows": curve.rows, "ns": curve.ns, "whole": curve.whole, "reason": curve.reason}
        ),
        "penstock.deadlines": json.dumps({"too_late": seen["too_late"], "late_rows": seen["late_rows"]}),
        "penstock.cost": json.dumps({step: seen[f"{step}_cost"] for step in ("lookup", "run")}),
    }


def _entity(served: Served) -> str:
    return served.manifest.signature.entity


def _data_type(datatype: str) -> Any:
    return pb.DataType.Value(f"TYPE_{'STRING' if datatype == 'BYTES' else datatype}")


def _config_input(tensor: PlanInput, *, optional: bool) -> pb.ModelInput:
    return pb.ModelInput(name=tensor.name, data_type=_data_type(tensor.datatype), dims=tensor.shape, optional=optional)


def _config_output(tensor: PlanOutput) -> pb.ModelOutput:
    return pb.ModelOutput(name=tensor.name, data_type=_data_type(tensor.datatype), dims=tensor.shape)


def statistics(served: Served, config: Config) -> pb.ModelStatistics:
    """ModelStatistics as Triton counts: each call is told the whole duration of its batch."""
    seen = served.lane.snapshot()
    shared = seen["shared"]
    answer = pb.ModelStatistics(
        name=served.name,
        version=str(served.version),
        last_inference=seen["last_ms"],
        inference_count=seen["rows"],
        execution_count=seen["batches"],
    )
    stats = answer.inference_stats
    _duration(stats.success, seen["succeeded"], seen["total"]["ns"])
    _duration(stats.fail, sum(seen[end] for end in FAILURES), seen["failed_ns"])
    _duration(stats.queue, seen["queue"]["count"], seen["queue"]["ns"])
    _duration(stats.compute_input, shared["calls"], shared["lookup_ns"])
    _duration(stats.compute_infer, shared["calls"], shared["compute_ns"])
    _duration(stats.compute_output, shared["calls"], shared["encode_ns"])
    _cache(stats, served)
    for rows, (count, ns) in seen["sizes"].items():
        if rows > (served.cap or config.max_batch_rows):  # calls larger than a batch, of many sizes
            continue
        entry = answer.batch_stats.add(batch_size=rows)
        _duration(entry.compute_infer, count, ns)
    return answer


def _cache(stats: pb.InferStatistics, served: Served) -> None:
    """Hits of either tier. What the shared one is asked for was a miss of the version's own before."""
    if served.lane.cache is None:
        return
    shared = Counts() if served.pipeline.shared is None else replace(served.pipeline.shared.counts)
    own = served.lane.cache.snapshot()  # after the others, so that there are no more hits than misses
    _duration(stats.cache_hit, own["hits"] + shared.hits, own["hit_ns"] + shared.hit_ns)
    _duration(stats.cache_miss, own["misses"] - shared.hits, own["miss_ns"] + shared.miss_ns)


def _duration(target: pb.StatisticDuration, count: int, ns: int) -> None:
    target.count, target.ns = count, ns


def model_drift(served: Served, drift: Drift) -> penstock_pb.ModelDrift:
    """One version's window against its reference."""
    window = drift.window
    answer = penstock_pb.ModelDrift(
        model_name=served.name,
        version=str(served.version),
        window_start_ms=int(window.start * 1000),
        window_end_ms=int(window.end * 1000),
        rows=window.rows,
        complete=window.complete,
        features=[_feature_drift(entry) for entry in drift.features],
    )
    if drift.score is not None:
        answer.score.CopyFrom(_feature_drift(drift.score))
    return answer


def _feature_drift(entry: FeatureDrift) -> penstock_pb.FeatureDrift:
    return penstock_pb.FeatureDrift(
        name=entry.name,
        rows=entry.rows,
        ks=entry.ks,
        ks_pvalue=entry.ks_pvalue,
        kl=entry.kl,
        psi=entry.psi,
        missing_reference=entry.missing_reference,
        missing_current=entry.missing_current,
    )
