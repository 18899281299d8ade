"""The vocabulary that every stage shares: a layer, how its work is divided, and a variant of a kernel.

A layer's work is divided in *units*. For a dense layer a unit is a tile of 32 output channels, or of an image a
block of 1, 2 or 4 lines; for a row-wise operator it is a block of 8 rows. The GPU computes units ``[0, g)``, the CPU
``[g, units)``.
"""

from .attention import Attention, PlaceRows
from .base import (
    KIND_PREFIX,
    ROW_BLOCK,
    SCRATCH,
    TILE,
    Base,
    Layer,
    Size,
    has_lines,
    line_block,
    row_tiles,
    tile_count,
)
from .dense import Conv2d, Linear
from .division import along_partition_axes, by_lines
from .images import Concat, Elementwise, LocalNorm, Pool
from .kinds import AnyLayer, ImageLayer, PixelLayer
from .layout import MAX_NARROW, NARROW_LAYERS, WIDTHS, ImageLayout, ImageLayouts, reads_tiles, wanted_halo
from .matmul import MatMul, Matrices
from .opaque import Opaque, Operand, constant_name
from .rearrange import Digit, Rearrange
from .registry import known_operators, layer_from_json, layer_to_json, register
from .resize import Resize
from .rowwise import RowWise
from .steps import (
    ACTIVATIONS,
    EPILOGUE_STEPS,
    PER_CHANNEL,
    channel_constants,
    check_epilogue,
    clip,
    elu,
    fused_operands,
    is_nonnegative,
    keeps_zero,
    step,
    step_name,
    step_numbers,
    step_operands,
)
from .types import FLOAT32, KERNEL_TYPES, TILE_BYTES, item_bytes, sum_type
from .variants import GENERATOR_VERSION, IMAGE_WIDTH, Hardware, Variant, by_threads, grid_for

__all__ = [
    "ACTIVATIONS",
    "EPILOGUE_STEPS",
    "FLOAT32",
    "GENERATOR_VERSION",
    "IMAGE_WIDTH",
    "KERNEL_TYPES",
    "KIND_PREFIX",
    "MAX_NARROW",
    "NARROW_LAYERS",
    "PER_CHANNEL",
    "ROW_BLOCK",
    "SCRATCH",
    "TILE",
    "TILE_BYTES",
    "WIDTHS",
    "AnyLayer",
    "Attention",
    "Base",
    "Concat",
    "Conv2d",
    "Digit",
    "Elementwise",
    "Hardware",
    "ImageLayer",
    "ImageLayout",
    "ImageLayouts",
    "Layer",
    "Linear",
    "LocalNorm",
    "MatMul",
    "Matrices",
    "Opaque",
    "Operand",
    "PixelLayer",
    "PlaceRows",
    "Pool",
    "Rearrange",
    "Resize",
    "RowWise",
    "Size",
    "Variant",
    "along_partition_axes",
    "by_lines",
    "by_threads",
    "channel_constants",
    "check_epilogue",
    "clip",
    "constant_name",
    "elu",
    "fused_operands",
    "grid_for",
    "has_lines",
    "is_nonnegative",
    "item_bytes",
    "keeps_zero",
    "known_operators",
    "layer_from_json",
    "layer_to_json",
    "line_block",
    "reads_tiles",
    "register",
    "row_tiles",
    "step",
    "step_name",
    "step_numbers",
    "step_operands",
    "sum_type",
    "tile_count",
    "wanted_halo",
]
