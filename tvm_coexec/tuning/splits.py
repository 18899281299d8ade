"""Measure a layer at some splits, closer and closer to the best: the plan that needs no predictors."""

from __future__ import annotations

import math
import os
import tempfile
import warnings
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tvm_coexec.compiler.target import target_for
from tvm_coexec.layers import AnyLayer
from tvm_coexec.opencl.choice import DeviceChoice
from tvm_coexec.planning.division import Overheads
from tvm_coexec.planning.measured import plan_measured
from tvm_coexec.profile import Profile
from tvm_coexec.profile.records import Point, Sample

from .alone import alone_with_device, alone_with_profile
from .calibration import measure_overheads, time_smallest_layer
from .session import open_session
from .tuner import Tuner, repeats_for

if TYPE_CHECKING:
    from tvm_coexec.runtime.device import Device


def measure_splits(
    layers: Iterable[AnyLayer], device: Device, profile: str | os.PathLike[str] | None = None
) -> tuple[list[Sample], Overheads]:
    """Measure some splits of each layer, closer and closer to the best; returns all samples and the overheads.

    With a profile, what it holds is not measured again, and what is measured goes into it.
    """
    from tqdm import tqdm

    with ExitStack() as stack:
        session = stack.enter_context(open_session(DeviceChoice.again(device.facts())))
        facts = session.facts()
        stack.enter_context(alone_with_device(facts["name"]))
        if profile is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="tvm-coexec-"))
            store = stack.enter_context(Profile.create(Path(folder) / "profile", facts))
        else:
            store = stack.enter_context(Profile.open(profile, facts))
            stack.enter_context(alone_with_profile(Path(profile)))
        tuner = Tuner(session, store, target_for(facts))
        for layer in tqdm(list(dict.fromkeys(layers)), desc="measuring", unit="layer", leave=False):
            _search_split(tuner, layer)
        return list(store.samples()), measure_overheads(tuner, time_smallest_layer(tuner), math.inf)


def _search_split(tuner: Tuner, layer: AnyLayer) -> None:
    """Measure an even grid of splits, then the neighbourhood of the best, until it is known unit by unit."""
    candidate = tuner.default_candidate(layer)
    low, high = 0, layer.units
    while True:
        splits = sorted({round(float(split)) for split in np.linspace(low, high, 7)})
        tuner.measure(candidate, [Point(split, layer.units - split, repeats_for(layer)) for split in splits])
        failure = tuner.profile.failure(candidate)
        if failure is not None:
            warnings.warn(f"the splits of {layer} cannot be measured: {failure}", stacklevel=2)
            return
        best = plan_measured("layer", layer, tuner.profile.samples(), Overheads(0.0)).cpu_units
        if len(splits) == high - low + 1:
            return
        position = splits.index(best) if best in splits else len(splits) // 2
        low, high = splits[max(position - 1, 0)], splits[min(position + 1, len(splits) - 1)]
