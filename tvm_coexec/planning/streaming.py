"""What a half takes longer in a network than alone: its weights come from memory, not from a cache.

A layer that is measured again and again finds its weights in the last-level cache. In a network whose weights do not
fit there, every layer's have been replaced by others' when its turn comes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tvm_coexec import schedules
from tvm_coexec.graph import Graph
from tvm_coexec.layers import TILE, AnyLayer, Conv2d, Linear, Variant

_CACHE_SHARE = 0.25
"""Of the last-level cache, what weights can count on from one run to the next: activations and all other programs on
the machine pass through it meanwhile."""


@dataclass(frozen=True)
class Streaming:
    """How fast each side reads weights that no cache holds, and the size of the cache that may hold them.

    Parameters
    ----------
    alone_bytes_per_us, beside_bytes_per_us
        By side: while the other side idles, and while it reads as well.
    """

    alone_bytes_per_us: dict[str, float]
    beside_bytes_per_us: dict[str, float]
    cache_bytes: int

    def applies(self, graph: Graph) -> bool:
        """Whether the cache does not hold the weights of a network until its next run."""
        return sum(node.layer.weight_bytes for node in graph.nodes) > _CACHE_SHARE * self.cache_bytes

    def lengthen(
        self, side: str, layer: AnyLayer, variant: Variant, warm_us: np.ndarray, units: np.ndarray, beside: np.ndarray
    ) -> np.ndarray:
        """Times of halves in a network.

        Reading and computing overlap, the better the shorter one of them is: the root of the sum of their squares.

        Parameters
        ----------
        warm_us
            Times with the weights in the cache.
        units, beside
            Units of this side and of the other.
        """
        rate = np.where(beside > 0, self.beside_bytes_per_us[side], self.alone_bytes_per_us[side])
        return np.hypot(warm_us, fetched_bytes(layer, variant) * units / layer.units / rate)


def fetched_bytes(layer: AnyLayer, variant: Variant) -> float:
    """Bytes that come from memory where the kernels of a variant read a layer's weights.

    A kernel that computes a part of a tile's channels at a time reads the tile in as many passes, each with gaps, which
    prefetching fills: with half of the channels, weights arrive at 10 GB/s instead of 27 on an x86 core.
    """
    packed = schedules.conv2d.weight_bytes(layer, variant) if isinstance(layer, Conv2d) else layer.weight_bytes
    return packed * TILE / min(dict(variant.params).get("channels", TILE), TILE)


def streaming_layer(cache_bytes: int) -> Linear:
    """A layer that mostly reads weights, too many for the cache."""
    k = 4096
    return Linear(1, k, max(2 * cache_bytes // (4 * k), 1024), ("bias",))
