"""Guided search: of layers that matter, the variants that the predictors expect to be the best are measured.

A model of the costs learns from what was measured and says what to measure next, for some rounds or until it expects
nothing better (Chen et al., "Learning to Optimize Tensor Programs", NeurIPS 2018, section 3).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from . import schedules
from .layers import AnyLayer, Variant
from .planning.features import Halves
from .planning.predictors import LatencyPredictor
from .planning.samples import Candidate, VariantSets
from .tuner import Tuner, training_points

_ROUNDS = 4
"""Times that the predictors learn anew."""

_PROMISING = 1.1
"""A variant is worth a measurement if its predicted time is at most so many times that of the best one measured."""

Train = Callable[[], Mapping[str, LatencyPredictor]]


def first_candidates(tuner: Tuner, layer: AnyLayer) -> list[Candidate]:
    """One variant of every way to compute the layer, so that the predictors have seen each of them on it.

    Two ways differ by their operands: Winograd's convolutions of different sizes read different weights.
    """
    operands = schedules.family(layer).operand_names
    spaces = [tuner.variants(layer, side) for side in ("cpu", "gpu")]
    firsts = [
        list({(one.implementation, operands(layer, one)): one for one in reversed(space)}.values())[::-1]
        for space in spaces
    ]
    count = max(len(variants) for variants in firsts)
    return [Candidate(layer, *(variants[place % len(variants)] for variants in firsts)) for place in range(count)]


def search_variants(tuner: Tuner, layers: Sequence[AnyLayer], train: Train, until: float) -> None:
    """Measure promising variants of each layer.

    Parameters
    ----------
    train
        Learns from all that has been measured, and returns the predictor of each side.
    until
        When to stop, by :func:`time.monotonic`.
    """
    from tqdm import tqdm

    for number in range(1, _ROUNDS + 1 if layers else 0):
        measured, failed = tuner.profile.measured_variants(), tuner.profile.failed_variants()
        if {side for side, _ in measured} != {"cpu", "gpu"}:
            return  # nothing to learn from
        predictors = train()
        promising = [_promising(tuner, layer, predictors, measured, failed) for layer in layers]
        candidates = [candidate for candidate in promising if candidate is not None]
        for candidate in tqdm(candidates, desc=f"searching, round {number}", unit="layer"):
            if time.monotonic() > until:
                return
            tuner.measure(candidate, training_points(candidate.layer))
        if not candidates:
            return


def _promising(
    tuner: Tuner,
    layer: AnyLayer,
    predictors: Mapping[str, LatencyPredictor],
    measured: VariantSets,
    failed: VariantSets,
) -> Candidate | None:
    """The most promising variants that were never measured; a side that has none takes part with its best one."""
    chosen, unmeasured = {}, False
    for side, predictor in predictors.items():
        known, bad = (sets.get((side, layer), frozenset()) for sets in (measured, failed))
        variants = [one for one in tuner.variants(layer, side) if one not in bad and predictor.knows(layer, one)]
        if not variants:
            return None
        times_us = dict(zip(variants, _expected_us(layer, variants, predictor), strict=True))
        best_us = min((us for variant, us in times_us.items() if variant in known), default=np.inf)
        new = [variant for variant in variants if variant not in known and times_us[variant] <= _PROMISING * best_us]
        unmeasured |= bool(new)
        chosen[side] = min(new or variants, key=times_us.__getitem__)
    return Candidate(layer, chosen["cpu"], chosen["gpu"]) if unmeasured else None


def _expected_us(layer: AnyLayer, variants: Sequence[Variant], predictor: LatencyPredictor) -> np.ndarray:
    """For each variant, the geometric mean of the times of the whole layer alone and of a half beside the other."""
    half = layer.units / 2
    halves = Halves.grid(layer, variants, np.array([layer.units, half]), np.array([0.0, half]))
    times_us = predictor.predict(halves).reshape(len(variants), 2)
    return np.sqrt(times_us.prod(axis=1))
