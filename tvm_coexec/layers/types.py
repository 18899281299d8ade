"""The types of numbers: the bytes that an element takes where it is stored, and the type in which sums are kept."""

from __future__ import annotations

TILE_BYTES = 128
"""Bytes of a tile of channels: two cache lines, so that two processors never write one, whatever the type."""

FLOAT32 = "float32"

KERNEL_TYPES = (FLOAT32,)
"""The types of layers that kernels are made for."""

_SUMS = {FLOAT32: FLOAT32, "float16": FLOAT32, "int8": "int32"}
"""The types that layers may have, and that of their sums, which a product of many terms needs to stay right."""


def item_bytes(dtype: str) -> int:
    """Bytes of an element where it is stored; only booleans do not say their bits."""
    return int("".join(filter(str.isdigit, dtype)) or 8) // 8


def tile_channels(dtype: str) -> int:
    """Count the channels of a tile."""
    return TILE_BYTES // item_bytes(dtype)


def sum_type(dtype: str) -> str:
    """The type in which a layer of some type adds up."""
    return _SUMS[dtype]


def check_dtype(dtype: str) -> None:
    """Refuse what no layer computes with."""
    if dtype not in _SUMS:
        raise ValueError(f"layers compute with {', '.join(_SUMS)}, not with {dtype!r}")
