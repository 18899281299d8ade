"""The vocabulary that every stage shares: a layer, how its work is divided, and a variant of a kernel.

A layer's work is divided in *units*. For a dense layer a unit is a tile of 32 output channels, or of an image a
block of 1, 2 or 4 lines; for a row-wise operator it is a block of 8 rows. The GPU computes units ``[0, g)``, the CPU
``[g, units)``.
"""

from .attention import Attention, Place
from .base import (
    ACTIVATIONS,
    EPILOGUE_STEPS,
    ROW_BLOCK,
    SCRATCH,
    TILE,
    Layer,
    Size,
    check_epilogue,
    has_lines,
    line_block,
    row_tiles,
    tile_count,
    unit_channels,
)
from .dense import Conv2d, Linear
from .images import Concat, LocalNorm, Pool, Product
from .layout import MAX_NARROW, ImageLayout, ImageLayouts
from .opaque import Opaque, Operand, constant_name
from .registry import (
    AnyLayer,
    ImageLayer,
    by_lines,
    layer_from_json,
    layer_to_json,
    parameter_dtype,
    parameter_shapes,
    reads_locally,
    ways_to_divide,
)
from .rowwise import RowWise
from .variants import Hardware, Variant, grid_for

__all__ = [
    "ACTIVATIONS",
    "EPILOGUE_STEPS",
    "MAX_NARROW",
    "ROW_BLOCK",
    "SCRATCH",
    "TILE",
    "AnyLayer",
    "Attention",
    "Concat",
    "Conv2d",
    "Hardware",
    "ImageLayer",
    "ImageLayout",
    "ImageLayouts",
    "Layer",
    "Linear",
    "LocalNorm",
    "Opaque",
    "Operand",
    "Place",
    "Pool",
    "Product",
    "RowWise",
    "Size",
    "Variant",
    "by_lines",
    "check_epilogue",
    "constant_name",
    "grid_for",
    "has_lines",
    "layer_from_json",
    "layer_to_json",
    "line_block",
    "parameter_dtype",
    "parameter_shapes",
    "reads_locally",
    "row_tiles",
    "tile_count",
    "unit_channels",
    "ways_to_divide",
]
