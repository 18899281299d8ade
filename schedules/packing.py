"""How constants lie in memory for kernels that compute whole tiles."""

from __future__ import annotations

import numpy as np

from tvm_coexec.layers import TILE, tile_count


def in_tiles(values: np.ndarray) -> np.ndarray:
    """``[…, channels]`` as float32 ``[…, tiles, 32]``, zero behind the last channel."""
    *outer, channels = values.shape
    padded = np.zeros((*outer, tile_count(channels) * TILE), np.float32)
    padded[..., :channels] = values
    return padded.reshape(*outer, -1, TILE)
