"""Row-wise operators are layer normalisation, softmax over the channels, and element-wise maps.

A unit is a block of 8 rows. Operands: ``input [rows, row tiles, 32]``, for layer normalisation ``gamma`` and ``beta
[tiles, 32]``, then what the epilogue reads, then ``output [rows, row tiles, 32]``. Channels that only fill up a tile
are zero in every activation, and are written as zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from tvm_coexec.layers import (
    ROW_BLOCK,
    TILE,
    Hardware,
    ImageLayouts,
    RowWise,
    Variant,
    fused_operands,
    row_tiles,
    tile_count,
)

from .dispatch import ERROR_BOUND, Dispatch
from .packing import in_tiles

if TYPE_CHECKING:
    from .frame import Launch, Operand

IMPLEMENTATION = "rows"
GROUPS = "group_rows"
"""The kernels of a GPU, where a work-group computes a row."""
_ITEMS = (32, 64, 128, 256)
_ITEM_CHANNELS = 6
"""Channels of an item with which the reading of a row and the adding up of its items' sums take equally long."""
_CONSTANTS = {"layer_norm": ("gamma", "beta")}


def operand_names(layer: RowWise, variant: Variant) -> tuple[str, ...]:
    """Names of the buffers that a half reads and writes."""
    return ("input", *_CONSTANTS.get(layer.kind, ()), *fused_operands(layer.epilogue), "output")


def pack(layer: RowWise, params: Mapping[str, np.ndarray], variant: Variant) -> dict[str, np.ndarray]:
    """Pack vectors of ``n`` elements as the kernels read them."""
    names = (name for name in operand_names(layer, variant) if name not in ("input", "residual", "output"))
    return {name: in_tiles(params[name]) for name in names}


def error_bound(variant: Variant) -> float:
    """Bound the error of a result, relative to the largest value of the output."""
    return ERROR_BOUND


def dispatch(layer: RowWise, side: str, variant: Variant) -> Dispatch:
    """Give the launch geometry of a half: one work-group of one work-item a unit, or one of several for each row."""
    if variant.implementation == GROUPS:
        return Dispatch((ROW_BLOCK, 1), (variant["items"], 1), unit_axis=0, padded_rows=layer.units * ROW_BLOCK)
    return Dispatch(grid=(1, 1), group=(1, 1), unit_axis=0, padded_rows=layer.units * ROW_BLOCK)


def steps_per_item(layer: RowWise) -> int:
    """Elements that a work-item computes one after the other."""
    return ROW_BLOCK * layer.n


def default_variant(layer: RowWise, side: str, hardware: Hardware) -> Variant:
    """A good variant for an operator that was never tuned."""
    return variants(layer, side, hardware)[0]


def variants(layer: RowWise, side: str, hardware: Hardware) -> list[Variant]:
    """List the search space of one side, the most promising first."""
    if side == "gpu" and hardware.opencl_type == "gpu":
        fitting = [items for items in _ITEMS if items <= hardware.max_group_size] or [1]
        fitting.sort(key=lambda items: abs(math.log2(layer.n / items / _ITEM_CHANNELS)))
        return [Variant.make(GROUPS, items=items) for items in fitting]
    return [Variant.make(IMPLEMENTATION, lanes=hardware.lanes)]


def operands(layer: RowWise, variant: Variant) -> tuple[Operand, ...]:
    """List the kernel's arguments."""
    from .frame import Operand

    activation = (layer.units * ROW_BLOCK, row_tiles(layer.n), TILE)
    constant = (tile_count(layer.n), TILE)
    shapes = {"input": activation, "residual": activation, "output": activation}
    return tuple(Operand(name, shapes.get(name, constant)) for name in operand_names(layer, variant))


def build(layer: RowWise, side: str, variant: Variant, layouts: ImageLayouts | None = None) -> tuple[Launch, ...]:
    """Build the one kernel of a half."""
    from .frame import Launch
    from .rows import group_rows, schedule_rows

    arguments = operands(layer, variant)
    if variant.implementation == GROUPS:
        module = group_rows(layer, arguments, variant["items"])
        return (Launch(module, arguments, dispatch(layer, side, variant)),)
    module = schedule_rows(layer, arguments, lanes=variant["lanes"], gpu=side == "gpu")
    return (Launch(module, arguments, dispatch(layer, side, variant)),)
