"""Drafts and registries that the registry's tests share."""

from __future__ import annotations

from datetime import UTC, datetime

from penstock.registry import Draft, Signature, TensorSpec

FILES = {"model.onnx": b"onnx bytes", "profile.json": b'{"format": 1}'}


def draft(name: str = "fraud", **fields: object) -> Draft:
    values: dict[str, object] = {
        "model_name": name,
        "trained_at": datetime(2025, 1, 15, 9, 30, tzinfo=UTC),
        "framework": "scikit-learn 1.7.2",
        "opset": {"": 17, "ai.onnx.ml": 3},
        "ir_version": 10,
        "signature": Signature(
            inputs=(TensorSpec(name="X", datatype="FP32", shape=(-1, 3)),),
            outputs=(
                TensorSpec(name="label", datatype="INT64", shape=(-1,)),
                TensorSpec(name="probabilities", datatype="FP32", shape=(-1, 2)),
            ),
            batched=True,
            columns=("transaction_count_7d", "avg_transaction_amount", "days_since_registration"),
        ),
        "created_by": "ada",
    }
    return Draft.model_validate(values | fields)
