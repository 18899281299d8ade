"""Guided search: of layers that matter, the variants that the predictors expect to be the best are measured.

A model of the costs learns from what was measured and says what to measure next, for some rounds or until it expects
nothing better (Chen et al., "Learning to Optimize Tensor Programs", NeurIPS 2018, section 3).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from tvm_coexec import schedules
from tvm_coexec.layers import AnyLayer, Variant, by_threads
from tvm_coexec.prediction.features import Halves
from tvm_coexec.prediction.predictors import LatencyPredictor
from tvm_coexec.profile.records import Candidate, VariantSets

from .tuner import Tuner

_ROUNDS = 4
"""Times that the predictors learn anew."""

_PROMISING = 1.1
"""A variant is worth a measurement if its predicted time is at most so many times that of the best one measured."""

_SUSPICIOUS = 1.15
"""A variant that took so many times as long as predicted may have been measured while other work ran."""

Train = Callable[[], Mapping[str, LatencyPredictor]]


def first_candidates(tuner: Tuner, layer: AnyLayer) -> list[Candidate]:
    """One variant of every way to compute the layer, so that the predictors have seen each of them on it.

    Two ways differ by their operands: Winograd's convolutions of different sizes read different weights. The first one
    is also measured by each number of the CPU's threads.
    """
    operands = schedules.family(layer).operand_names
    spaces = [tuner.variants(layer, side) for side in ("cpu", "gpu")]
    firsts = [
        list({(one.implementation, operands(layer, one)): one for one in reversed(space)}.values())[::-1]
        for space in spaces
    ]
    firsts[0] += by_threads(firsts[0][:1], filter(None, tuner.threads))
    count = max(len(variants) for variants in firsts)
    return [Candidate(layer, *(variants[index % len(variants)] for variants in firsts)) for index in range(count)]


def search_variants(tuner: Tuner, layers: Sequence[AnyLayer], train: Train, is_over: Callable[[], bool]) -> None:
    """Measure promising variants of each layer, and once more those that took longer than they should.

    Parameters
    ----------
    train
        Learns from all that has been measured, and returns the predictor of each side.
    is_over
        Tells when to begin with no other.
    """
    from tqdm import tqdm

    suspected: VariantSets = {}
    for number in range(1, _ROUNDS + 1 if layers else 0):
        known, failed = tuner.profile.measured_variants(), tuner.profile.failed_variants()
        if {side for side, _ in known} != {"cpu", "gpu"}:
            return  # nothing to learn from
        search = _Search(tuner, train(), known, failed, suspected)
        candidates = [found for found in map(search.promising, layers) if found is not None]
        works = [(candidate, tuner.points(candidate.layer), again) for candidate, again in candidates]
        measured = tuner.measure_all(works, is_over)
        done = sum(1 for _ in tqdm(measured, desc=f"searching, round {number}", total=len(works), unit="layer"))
        if not candidates or done < len(works):
            return
        suspected = search.suspected


class _Search:
    """One round of the search.

    A variant is ``suspected`` where it was measured, took much longer than predicted, and would promise to be the best
    otherwise: something else may have been going on. A search measures it once more, and then believes it.
    """

    def __init__(
        self,
        tuner: Tuner,
        predictors: Mapping[str, LatencyPredictor],
        measured: VariantSets,
        failed: VariantSets,
        suspected: VariantSets,
    ) -> None:
        self.tuner, self.predictors = tuner, predictors
        self.measured, self.failed, self.suspected = measured, failed, dict(suspected)

    def promising(self, layer: AnyLayer) -> tuple[Candidate, bool] | None:
        """The most promising variants, and whether what is known of them is to be measured again.

        A side that has no promising variant takes part with its best one.
        """
        chosen, found, again = {}, False, False
        for side, predictor in self.predictors.items():
            variants = [one for one in self._ways(layer, side) if predictor.knows(layer, one)]
            if not variants:
                return None
            times_us = dict(zip(variants, _expected_us(layer, variants, predictor), strict=True))
            promising = self._promising(side, layer, times_us)
            chosen[side] = min(promising or times_us, key=(promising or times_us).__getitem__)
            found |= bool(promising)
            again |= chosen[side] in promising and chosen[side] in self.measured.get((side, layer), frozenset())
        return (Candidate(layer, chosen["cpu"], chosen["gpu"]), again) if found else None

    def _ways(self, layer: AnyLayer, side: str) -> list[Variant]:
        """Every kernel on all cores, and by other numbers of threads those alone that were measured of the layer."""
        failed = self.failed.get((side, layer), frozenset())
        tried = {one.kernel for one in self.measured.get((side, layer), frozenset())}
        ways = self.tuner.ways(layer, side)
        return [one for one in ways if one.kernel not in failed and (not one.threads or one.kernel in tried)]

    def _promising(self, side: str, layer: AnyLayer, times_us: Mapping[Variant, float]) -> dict[Variant, float]:
        """List variants worth a measurement, with the times that they promise."""
        known = self.measured.get((side, layer), frozenset())
        limit_us = _PROMISING * min((us for variant, us in times_us.items() if variant in known), default=np.inf)
        new = {variant: us for variant, us in times_us.items() if variant not in known and us <= limit_us}
        suspected = self.suspected.get((side, layer), frozenset())
        believed = [variant for variant in times_us if variant in known and variant not in suspected]
        usual_us = _expected_us(layer, believed, self.predictors[side].without_memory())
        suspicious = {
            variant: float(us)
            for variant, us in zip(believed, usual_us, strict=True)
            if us <= limit_us / _PROMISING and times_us[variant] > _SUSPICIOUS * us
        }
        if suspicious and not new:
            first = min(suspicious, key=suspicious.__getitem__)
            self.suspected[side, layer] = suspected | {first}
            return {first: suspicious[first]}
        return new


def _expected_us(layer: AnyLayer, variants: Sequence[Variant], predictor: LatencyPredictor) -> np.ndarray:
    """Predict for each variant the geometric mean of the times of the whole layer alone and of concurrent halves."""
    if not variants:
        return np.array([])
    half = layer.units / 2
    halves = Halves.grid(layer, variants, np.array([layer.units, half]), np.array([0.0, half]))
    times_us = predictor.predict(halves).reshape(len(variants), 2)
    return np.sqrt(times_us.prod(axis=1))
