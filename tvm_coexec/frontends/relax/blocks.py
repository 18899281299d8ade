"""Blocks of pixels that become channels, and channels that become blocks of pixels."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import relax


def depth_to_space(x: relax.Expr, shape: Sequence[int], block: int, *, blocks_last: bool = False) -> relax.Expr:
    """Blocks of channels become blocks of pixels; channels count within a block's pixel unless ``blocks_last``."""
    batch, channels, h, w = shape
    depth = channels // block**2
    split = (batch, depth, block, block, h, w) if blocks_last else (batch, block, block, depth, h, w)
    parts = relax.op.reshape(x, split)
    moved = relax.op.permute_dims(parts, [0, 1, 4, 2, 5, 3] if blocks_last else [0, 3, 4, 1, 5, 2])
    return relax.op.reshape(moved, (batch, depth, h * block, w * block))


def space_to_depth(x: relax.Expr, shape: Sequence[int], block: int, *, blocks_last: bool = False) -> relax.Expr:
    """Turn blocks of pixels into blocks of channels: the inverse of :func:`depth_to_space`."""
    batch, channels, h, w = shape
    parts = relax.op.reshape(x, (batch, channels, h // block, block, w // block, block))
    moved = relax.op.permute_dims(parts, [0, 1, 3, 5, 2, 4] if blocks_last else [0, 3, 5, 1, 2, 4])
    return relax.op.reshape(moved, (batch, channels * block**2, h // block, w // block))
