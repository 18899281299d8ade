"""What was measured of a layer corrects what is predicted of it: how far a predictor was off for the same kernels.

A predictor smooths over all that it learned from. Of a layer that was measured itself, as those of a model that was
tuned for, the remaining errors are known, and mostly the same for every split.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from tvm_coexec.layers import AnyLayer, Variant, layer_from_json, layer_to_json
from tvm_coexec.profile.records import Sample

Kernel = tuple[AnyLayer, Variant]

_LAYER_PRIOR, _KERNEL_PRIOR = 4.0, 0.5
"""Samples without noise that outweigh the assumption that a layer is like all others, and a kernel like the layer's
other kernels. Chosen by leaving out one sample at a time."""


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
    layers, kernels
        What is known of each.
    """

    layers: Mapping[AnyLayer, Known] = field(default_factory=dict)
    kernels: Mapping[Kernel, Known] = field(default_factory=dict)

    @classmethod
    def of(cls, samples: Sequence[Sample], log_errors: np.ndarray, counts: np.ndarray) -> Residuals:
        """Weighted means of the samples' errors, drawn towards what is known without them."""
        layers = _means([sample.layer for sample in samples], log_errors, counts, _LAYER_PRIOR)
        usual = np.array([layers[sample.layer].log_error for sample in samples])
        kernels = _means(
            [(sample.layer, sample.variant) for sample in samples], log_errors - usual, counts, _KERNEL_PRIOR
        )
        return cls(layers, {kernel: layers[kernel[0]].and_also(known) for kernel, known in kernels.items()})

    def factors(self, kernels: Sequence[Kernel]) -> np.ndarray:
        """Give factors on the predicted times of kernels."""
        return np.exp([self._of(kernel).log_error for kernel in kernels])

    def uncertainty_factors(self, kernels: Sequence[Kernel]) -> np.ndarray:
        """Factors by which predictions of kernels are off less than those of layers that were never measured."""
        unknown = np.array([self._of(kernel).unknown for kernel in kernels])
        return np.sqrt(_NEVER_KNOWN + (1 - _NEVER_KNOWN) * unknown)

    def _of(self, kernel: Kernel) -> Known:
        return self.kernels.get(kernel) or self.layers.get(kernel[0], _NOTHING)

    def to_json(self) -> list[dict[str, Any]]:
        variants: dict[AnyLayer, list[list[Any]]] = defaultdict(list)
        for (layer, variant), known in self.kernels.items():
            variants[layer].append([variant.to_json(), *known])
        return [
            {"layer": layer_to_json(layer), "known": [*known], "variants": variants[layer]}
            for layer, known in self.layers.items()
        ]

    @classmethod
    def from_json(cls, entries: Sequence[Mapping[str, Any]]) -> Residuals:
        layers, kernels = {}, {}
        for entry in entries:
            layer = layer_from_json(entry["layer"])
            layers[layer] = Known(*map(float, entry["known"]))
            for variant, *known in entry["variants"]:
                kernels[layer, Variant.from_json(variant)] = Known(*map(float, known))
        return cls(layers, kernels)


def _means(keys: Sequence[Hashable], log_errors: np.ndarray, counts: np.ndarray, prior: float) -> dict[Any, Known]:
    sums: dict[Hashable, float] = defaultdict(float)
    weights: dict[Hashable, float] = defaultdict(float)
    for key, error, count in zip(keys, log_errors, counts, strict=True):
        sums[key] += float(error * count)
        weights[key] += float(count)
    return {key: Known(sums[key] / (weights[key] + prior), prior / (weights[key] + prior)) for key in sums}
