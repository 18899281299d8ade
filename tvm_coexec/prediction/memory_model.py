"""What a half takes longer in a network than alone: neither its weights nor its activations wait in its own cache.

A layer that is measured again and again finds its weights in a cache and its input where it was a moment ago. In a
network other layers' weights have passed since, another kernel has written the input, partly on the other processor,
and the memory of the output was last used for something else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tvm_coexec import schedules
from tvm_coexec.layers import TILE, AnyLayer, Conv2d, Variant

from .layer_facts import touched_bytes

_CACHE_SHARE = 0.25
"""Share of what caches hold that weights can count on from one run to the next: activations and all other programs on
the machine pass through it meanwhile."""


@dataclass(frozen=True)
class Rates:
    """Bytes a microsecond, by side: while the other side idles, and while it works as well."""

    alone: Mapping[str, float]
    concurrent: Mapping[str, float]

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Rates:
        alone, concurrent = (
            {side: float(fields[when][side]) for side in ("cpu", "gpu")} for when in ("alone", "concurrent")
        )
        return cls(alone, concurrent)

    def at(self, side: str, concurrent: np.ndarray) -> np.ndarray:
        """The rate of each half of a side, from the units that the other side works on."""
        return np.where(concurrent > 0, self.concurrent[side], self.alone[side])


@dataclass(frozen=True)
class MemoryModel:
    """How much longer halves take in a network.

    Parameters
    ----------
    weights
        At which weights arrive that no cache holds.
    activations
        Those that a half reads and writes, by the time that they cost on top of the half's own.
    cache_bytes
        What caches hold of the weights that both sides read again and again.
    """

    weights: Rates
    activations: Rates
    cache_bytes: int

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> MemoryModel:
        weights, activations = (Rates.from_json(fields[what]) for what in ("weights", "activations"))
        return cls(weights, activations, int(fields["cache_bytes"]))

    def streams_weights(self, weight_bytes: float) -> bool:
        """Whether the cache does not hold so many bytes of weights from one run of a network to the next."""
        return weight_bytes > _CACHE_SHARE * self.cache_bytes

    def read_weights(
        self,
        side: str,
        layer: AnyLayer,
        variant: Variant,
        warm_us: np.ndarray,
        units: np.ndarray,
        concurrent: np.ndarray,
    ) -> np.ndarray:
        """Predict the times of halves whose weights come from memory.

        Reading and computing overlap, the better the shorter one of them is: the root of the sum of their squares. By
        lines both sides read all weights, which come from memory once for both.

        Parameters
        ----------
        warm_us
            Times with the weights in the cache.
        units, concurrent
            Units of this side and of the other.
        """
        if layer.axis == "lines":
            weights_us = np.full(len(units), fetched_bytes(layer, variant) / self.weights.alone[side])
        else:
            weights_us = fetched_bytes(layer, variant) * units / layer.units / self.weights.at(side, concurrent)
        return np.hypot(warm_us, weights_us)

    def hand_over_us(self, side: str, layer: AnyLayer, units: np.ndarray, concurrent: np.ndarray) -> np.ndarray:
        """What halves take longer since their activations come from elsewhere."""
        return touched_bytes(layer, units) / self.activations.at(side, concurrent)


def fetched_bytes(layer: AnyLayer, variant: Variant) -> float:
    """Count the bytes that come from memory where the kernels of a variant read a layer's weights.

    A kernel that computes a part of a tile's channels at a time reads the tile in as many passes, each with gaps, which
    prefetching fills: with half of the channels, weights arrive at 10 GB/s instead of 27 on an x86 core.
    """
    return packed_bytes(layer, variant) * TILE / min(dict(variant.params).get("channels", TILE), TILE)


def packed_bytes(layer: AnyLayer, variant: Variant) -> int:
    """Bytes of a layer's weights as the kernels of a variant read them, padding left out: some are transformed."""
    return schedules.conv2d.weight_bytes(layer, variant) if isinstance(layer, Conv2d) else layer.weight_bytes


def packing(layer: AnyLayer, variant: Variant) -> str:
    """Name the packing of a variant's weights: variants of the same packing read the same."""
    return schedules.conv2d.weights_name(variant) if isinstance(layer, Conv2d) else ""
