"""The plan of a layer from splits that were measured: nothing is predicted."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from tvm_coexec.errors import MeasurementError
from tvm_coexec.layers import AnyLayer, Variant
from tvm_coexec.prediction.predictors import newest
from tvm_coexec.prediction.uncertainty import TAILS
from tvm_coexec.profile.records import Sample

from .chances import Time
from .division import Division, Half, Overheads, side_alone
from .plan import LayerPlan


def plan_measured(name: str, layer: AnyLayer, samples: Iterable[Sample], overheads: Overheads) -> LayerPlan:
    """The best of the splits that were measured of exactly this layer; nothing is predicted, so all is certain."""
    halves = _measured_halves(layer, samples)
    splits = []
    for (side, units, other_units), half in halves.items():
        if other_units == 0 and units == layer.units:
            splits.append(side_alone(side, layer, half, overheads))
        elif side == "cpu" and units + other_units == layer.units and ("gpu", other_units, units) in halves:
            gpu = halves["gpu", other_units, units]
            splits.append(Division(units, half, gpu, max(half.us, gpu.us) + overheads.split_us))
    if not splits:
        raise MeasurementError(
            f"the profile holds no split of layer {name!r} ({layer}) with both halves measured; "
            "tune this layer, or use split='predicted'"
        )
    best = min(splits, key=lambda split: split.total_us)
    return best.to_plan(name, layer, f"the best of {len(splits)} measured splits")


def _measured_halves(layer: AnyLayer, samples: Iterable[Sample]) -> dict[tuple[str, int, int], Half]:
    """Find the best variant for each ``(side, units, other units)``, by the median of its newest repetitions."""
    repetitions_us: dict[tuple[tuple[str, int, int], Variant], list[float]] = {}
    for sample in newest(sample for sample in samples if sample.layer == layer):
        key = (sample.side, sample.units, sample.other_units), sample.variant
        repetitions_us.setdefault(key, []).extend(sample.latency_us)
    best: dict[tuple[str, int, int], Half] = {}
    for (where, variant), times_us in repetitions_us.items():
        low_us, usual_us, high_us = np.quantile(times_us, [TAILS[0], 0.5, TAILS[1]]).tolist()
        half = Half(variant, Time(usual_us, low_us, high_us))
        if where not in best or half.us < best[where].us:
            best[where] = half
    return best
