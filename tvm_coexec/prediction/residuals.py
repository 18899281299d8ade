"""What was measured of a layer corrects what is predicted of it: how far a predictor was off for the same kernels.

A predictor smooths over all that it learned from. Of a layer that was measured itself, as those of a model that was
tuned for, the remaining errors are known, and mostly the same for every split.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from tvm_coexec.layers import AnyLayer, Variant, layer_from_json, layer_to_json
from tvm_coexec.profile.records import Sample

Kernel = tuple[AnyLayer, Variant]
KernelAlone = tuple[AnyLayer, Variant, bool]
"""A kernel, and whether the other side is idle meanwhile."""

_LAYER_PRIOR, _KERNEL_PRIOR = 4.0, 0.5
"""Samples without noise that outweigh the assumption that a layer is like all others, and a kernel like the layer's
other kernels. Chosen by leaving out one sample at a time."""

_ALONE_PRIORS = (0.5, 2.0, 8.0, np.inf)
"""Samples that outweigh the assumption that a kernel alone is off by as much as one beside the other side's work. Each
device gets the number that predicts its own samples best where one at a time is left out: on an H200 the GPU's kernels
are predicted to 3.5 % by the first and 5.2 % by the last, which tells nothing apart, its noisy CPU's to 9.8 and 8.7."""


_NEVER_KNOWN = 0.1
"""Share of the variance that stays unknown however much was measured: the times of other splits, and the next time."""


class Known(NamedTuple):
    """How far predictions were off, and the share of the variance that is still unknown."""

    log_error: float
    unknown: float

    def and_also(self, more: Known) -> Known:
        """This of a layer, with what is known of one of its kernels beyond."""
        return Known(self.log_error + more.log_error, self.unknown * more.unknown)


_NOTHING = Known(0.0, 1.0)


@dataclass(frozen=True)
class Residuals:
    """Measured times over predicted ones, as logarithms: of kernels, and of layers for their other kernels.

    Parameters
    ----------
    layers, kernels, alone
        What is known of each layer, of each of its kernels, and of these with the other side idle or at work.
    """

    layers: Mapping[AnyLayer, Known] = field(default_factory=dict)
    kernels: Mapping[Kernel, Known] = field(default_factory=dict)
    alone: Mapping[KernelAlone, Known] = field(default_factory=dict)

    @classmethod
    def of(cls, samples: Sequence[Sample], log_errors: np.ndarray, counts: np.ndarray) -> Residuals:
        """Weighted means of the samples' errors, drawn towards what is known without them."""
        layers = _means([sample.layer for sample in samples], log_errors, counts, _LAYER_PRIOR)
        usual = np.array([layers[sample.layer].log_error for sample in samples])
        keys = [(sample.layer, sample.variant) for sample in samples]
        kernels = _means(keys, log_errors - usual, counts, _KERNEL_PRIOR)
        return cls(layers, {kernel: layers[kernel[0]].and_also(known) for kernel, known in kernels.items()})

    def telling_alone(self, samples: Sequence[Sample], log_errors: np.ndarray, counts: np.ndarray) -> Residuals:
        """Tell kernels alone from concurrent ones as well, as far as the samples that this was made of agree."""
        keys = [(sample.layer, sample.variant, not sample.other_units) for sample in samples]
        left = log_errors - np.array([self.kernels[layer, variant].log_error for layer, variant, _ in keys])
        prior = min(_ALONE_PRIORS, key=lambda one: _left_over(keys, left, counts, one))
        alone = _means(keys, left, counts, prior) if np.isfinite(prior) else {}
        return replace(self, alone={key: self.kernels[key[:2]].and_also(known) for key, known in alone.items()})

    def factors(self, kernels: Sequence[Kernel], *, alone: bool = False) -> np.ndarray:
        """Give factors on the predicted times of kernels, beside the other side's work or alone."""
        return np.exp([self._of(kernel, alone).log_error for kernel in kernels])

    def uncertainty_factors(self, kernels: Sequence[Kernel], *, alone: bool = False) -> np.ndarray:
        """Factors by which predictions of kernels are off less than those of layers that were never measured."""
        unknown = np.array([self._of(kernel, alone).unknown for kernel in kernels])
        return np.sqrt(_NEVER_KNOWN + (1 - _NEVER_KNOWN) * unknown)

    def _of(self, kernel: Kernel, alone: bool) -> Known:
        known = self.alone.get((*kernel, alone)) or self.kernels.get(kernel)
        return known or self.layers.get(kernel[0], _NOTHING)

    def to_json(self) -> list[dict[str, Any]]:
        variants: dict[AnyLayer, list[list[Any]]] = defaultdict(list)
        for (layer, variant), known in self.kernels.items():
            concurrent, alone = (self.alone.get((layer, variant, is_alone)) for is_alone in (False, True))
            variants[layer].append([variant.to_json(), known, concurrent, alone])
        return [
            {"layer": layer_to_json(layer), "known": [*known], "variants": variants[layer]}
            for layer, known in self.layers.items()
        ]

    @classmethod
    def from_json(cls, entries: Sequence[Mapping[str, Any]]) -> Residuals:
        layers, kernels, alone = {}, {}, {}
        for entry in entries:
            layer = layer_from_json(entry["layer"])
            layers[layer] = Known(*map(float, entry["known"]))
            for fields, known, *by_alone in entry["variants"]:
                variant = Variant.from_json(fields)
                kernels[layer, variant] = Known(*map(float, known))
                for is_alone, own in zip((False, True), by_alone, strict=True):
                    if own is not None:
                        alone[layer, variant, is_alone] = Known(*map(float, own))
        return cls(layers, kernels, alone)


def _left_over(keys: Sequence[Hashable], log_errors: np.ndarray, counts: np.ndarray, prior: float) -> float:
    """How far samples are off in the mean where each is expected by the others of its key."""
    sums, weights = _sums(keys, log_errors, counts)
    others = np.array([sums[key] for key in keys]) - log_errors * counts
    expected = others / (np.array([weights[key] for key in keys]) - counts + prior)
    return float(np.average(np.abs(log_errors - expected), weights=counts))


def _means(keys: Sequence[Hashable], log_errors: np.ndarray, counts: np.ndarray, prior: float) -> dict[Any, Known]:
    sums, weights = _sums(keys, log_errors, counts)
    return {key: Known(sums[key] / (weights[key] + prior), prior / (weights[key] + prior)) for key in sums}


def _sums(
    keys: Sequence[Hashable], log_errors: np.ndarray, counts: np.ndarray
) -> tuple[Mapping[Hashable, float], Mapping[Hashable, float]]:
    """Give for each key the sum of its weighted errors, and that of the weights."""
    sums: dict[Hashable, float] = defaultdict(float)
    weights: dict[Hashable, float] = defaultdict(float)
    for key, error, count in zip(keys, log_errors, counts, strict=True):
        sums[key] += float(error * count)
        weights[key] += float(count)
    return sums, weights
