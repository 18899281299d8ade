"""What was measured of a layer corrects what is predicted of it: how far a predictor was off for the same kernels.

A predictor smooths over all that it learned from. Of a layer that was measured itself, as those of a model that was
tuned for, the remaining errors are known, and mostly the same for every split.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tvm_coexec.layers import AnyLayer, Variant, layer_from_json, layer_to_json
from tvm_coexec.profile.records import Sample

Kernel = tuple[AnyLayer, Variant]

_LAYER_PRIOR, _KERNEL_PRIOR = 4.0, 0.5
"""Samples without noise that outweigh the assumption that a layer is like all others, and a kernel like the layer's
other kernels. Chosen by leaving out one sample at a time."""


@dataclass(frozen=True)
class Residuals:
    """Measured times over predicted ones, as logarithms: of kernels, and of layers for their other kernels."""

    layers: Mapping[AnyLayer, float] = field(default_factory=dict)
    kernels: Mapping[Kernel, float] = field(default_factory=dict)

    @classmethod
    def of(cls, samples: Sequence[Sample], log_errors: np.ndarray, counts: np.ndarray) -> Residuals:
        """Weighted means of the samples' errors, drawn towards what is known without them."""
        layers = _means([sample.layer for sample in samples], log_errors, counts, _LAYER_PRIOR)
        usual = np.array([layers[sample.layer] for sample in samples])
        kernels = _means(
            [(sample.layer, sample.variant) for sample in samples], log_errors - usual, counts, _KERNEL_PRIOR
        )
        return cls(layers, {kernel: layers[kernel[0]] + error for kernel, error in kernels.items()})

    def factors(self, kernels: Sequence[Kernel]) -> np.ndarray:
        """Factors on the predicted times of kernels."""
        return np.exp([self.kernels.get(kernel, self.layers.get(kernel[0], 0.0)) for kernel in kernels])

    def to_json(self) -> list[dict[str, Any]]:
        variants: dict[AnyLayer, list[list[Any]]] = defaultdict(list)
        for (layer, variant), error in self.kernels.items():
            variants[layer].append([variant.to_json(), error])
        return [
            {"layer": layer_to_json(layer), "log_error": error, "variants": variants[layer]}
            for layer, error in self.layers.items()
        ]

    @classmethod
    def from_json(cls, entries: Sequence[Mapping[str, Any]]) -> Residuals:
        layers, kernels = {}, {}
        for entry in entries:
            layer = layer_from_json(entry["layer"])
            layers[layer] = float(entry["log_error"])
            kernels.update({(layer, Variant.from_json(variant)): float(error) for variant, error in entry["variants"]})
        return cls(layers, kernels)


def _means(keys: Sequence[Hashable], log_errors: np.ndarray, counts: np.ndarray, prior: float) -> dict[Any, float]:
    sums: dict[Hashable, float] = defaultdict(float)
    weights: dict[Hashable, float] = defaultdict(float)
    for key, error, count in zip(keys, log_errors, counts, strict=True):
        sums[key] += float(error * count)
        weights[key] += float(count)
    return {key: sums[key] / (weights[key] + prior) for key in sums}
