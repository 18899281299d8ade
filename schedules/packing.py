"""How constants lie in memory for kernels that compute whole tiles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tvm_coexec.layers import TILE, Layer, channel_constants, tile_count


@dataclass(frozen=True)
class Stored:
    """A constant as a module's file holds it; for ``winograd`` see ``module.tensors.ConstantSpec``."""

    array: np.ndarray
    winograd: int = 0


def as_read(packed: Mapping[str, np.ndarray]) -> dict[str, Stored]:
    """Store constants as the kernels read them."""
    return {role: Stored(array) for role, array in packed.items()}


def in_tiles(values: np.ndarray) -> np.ndarray:
    """``[…, channels]`` as float32 ``[…, tiles, 32]``, zero behind the last channel."""
    *outer, channels = values.shape
    padded = np.zeros((*outer, tile_count(channels) * TILE), np.float32)
    padded[..., :channels] = values
    return padded.reshape(*outer, -1, TILE)


def pack_steps(layer: Layer, params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Pack the constants of a layer's epilogue, each as ``[tiles, 32]``."""
    return {name: in_tiles(params[name]) for name in channel_constants(layer.epilogue)}


def step_shapes(layer: Layer) -> dict[str, tuple[int, ...]]:
    """Shapes of the constants of a layer's epilogue as they are packed."""
    return dict.fromkeys(channel_constants(layer.epilogue), (tile_count(layer.out_channels), TILE))
