"""What a version is loaded from: its files, each read once, and rows to measure it with, drawn once.

Reading a profile of 30 columns takes about a millisecond, drawing a pool of rows some. Nothing of it is kept once the
version serves.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from penstock.features.functions import Compiled, load_functions
from penstock.features.transforms import TransformError, Transforms
from penstock.kernels.wire import NUMPY, Plan
from penstock.monitoring import Reference
from penstock.registry import Version
from penstock.registry.manifest import Manifest
from penstock.server.golden import Golden, read
from penstock.server.samples import NothingToDraw, Samples
from penstock.server.watch import Watch


@dataclass(frozen=True)
class Contents:
    """The files of a version.

    Attributes:
        manifest: what it is.
        onnx: the graph.
        reference: its drift profile, or None.
        golden: rows with the outputs they gave where it was published, or None.
        transforms: what is done to the matrix before the graph, or None.
    """

    manifest: Manifest
    onnx: bytes
    reference: Reference | None
    golden: Golden | None
    transforms: Compiled | None

    @classmethod
    def of(cls, version: Version, functions: Mapping[str, str]) -> Contents:
        """Read the files of a verified version; `functions` are those that the operator registered.

        Raises:
            PenstockError: one cannot be read, and why.
        """
        manifest, files = version.manifest, version.files
        profile, golden, transforms = (files.get(name) for name in ("profile.json", "golden.npz", "transforms.json"))
        return cls(
            manifest,
            files[manifest.artifact_path],
            None if profile is None else Reference.from_json(profile),
            None if golden is None else read(golden),
            None if transforms is None else _compiled(transforms, manifest, functions),
        )

    def watch(self, window_s: float) -> Watch | None:
        """Counters of its own for drift against the profile, where there is one; `window_s` is a window's length."""
        return None if self.reference is None else Watch(self.reference, self.manifest.score, window_s, time.time())

    def pool(self, plan: Plan, most: int) -> Callable[[], Samples]:
        """What gives rows for requests of up to `most`, drawn when they are first asked for; raises NothingToDraw."""
        profile = None if self.reference is None else self.reference.features
        golden = {} if self.golden is None else self.golden.inputs
        return cache(lambda: Samples(plan, profile, golden, most))


def _compiled(text: bytes, manifest: Manifest, functions: Mapping[str, str]) -> Compiled:
    """What the version's rows go through; functions are those that the operator named, never what a version says."""
    transforms = Transforms.from_json(text)
    registered = {name: functions[name] for name in transforms.functions if name in functions}
    compiled = transforms.compile(manifest.signature.columns, load_functions(registered))
    widths = [spec.shape[-1:] for spec in manifest.signature.inputs]
    if widths not in ([(-1,)], [(compiled.n_outputs,)]):
        raise TransformError(
            f"the transforms of {manifest.model_name} version {manifest.version} give {compiled.n_outputs} columns, "
            "which is not what its graph reads; publish it again with the transforms that the model was trained on"
        )
    return compiled


def any_of(pool: Callable[[], Samples], plan: Plan) -> Samples:
    """Rows of a pool, like those the version was trained on, or ones where nothing is known of them."""
    try:
        return pool()
    except NothingToDraw:
        return Samples(plan, None, made_up(plan), 1)


def made_up(plan: Plan) -> dict[str, Any]:
    """One row of ones for every input, since zeros are what graphs most often divide by; texts are empty."""
    feeds: dict[str, Any] = {}
    for entry in plan.inputs:
        if entry.kind == "entity":
            continue
        shape = tuple(max(size, 1) for size in entry.shape)
        shape = (1, *shape) if plan.batched else shape
        made = np.full(shape, "", object) if entry.datatype == "BYTES" else np.ones(shape, NUMPY[entry.datatype])
        feeds[entry.name] = made
    return feeds
