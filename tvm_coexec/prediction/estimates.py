"""Rough times of halves whose kernels were never measured: bytes by a bandwidth, operations by a speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tvm_coexec.layers import AnyLayer
from tvm_coexec.profile.records import Sample

from .base_time import BaseTime
from .predictors import labels_us

_TERMS = ("constant", "flops", "bytes")


def fit_estimates(samples: Sequence[Sample]) -> dict[str, BaseTime]:
    """Calibrate the estimate of each side that has samples.

    Layers outside the tuned families mostly move data, so the samples with the fewest operations a byte count: half of
    all, which still tell a side's speed at computing.
    """
    estimates = {}
    for side in ("cpu", "gpu"):
        own = sorted((sample for sample in samples if sample.side == side), key=_intensity)
        chosen = own[: max(len(own) // 2, 1)]
        if chosen:
            rows = [_describe(sample.layer, np.array(float(sample.units))) for sample in chosen]
            described = {name: np.array([row[name] for row in rows]) for name in rows[0]}
            latency_us = labels_us(chosen)
            estimates[side] = BaseTime.fit(described, latency_us, np.ones(len(chosen)), _TERMS)
    return estimates


def estimate_us(estimate: BaseTime, layer: AnyLayer, units: np.ndarray) -> np.ndarray:
    """Estimate the time of so many units of a layer."""
    return estimate.predict(_describe(layer, np.asarray(units, float)))


def _describe(layer: AnyLayer, units: np.ndarray) -> Mapping[str, np.ndarray]:
    """A half's share of its layer's work; the time does not follow from more. By lines it reads all weights."""
    share = units / layer.units
    weight_bytes = layer.weight_bytes * (1.0 if layer.axis == "lines" else share)
    return {"units": units, "flops": layer.flops * share, "bytes": weight_bytes + layer.activation_bytes * share}


def _intensity(sample: Sample) -> float:
    return sample.layer.flops / (sample.layer.weight_bytes + sample.layer.activation_bytes)
