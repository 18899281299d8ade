"""Pooling, concatenation, arithmetic and local normalisation of images are kernels of the dense frame.

A unit is a tile of 32 output channels or, of a pooling, a block of lines, and the rows of the frame are the output's
pixels. Operands are ``input``,
``input1`` and so on, then what the epilogue reads, then ``output``; all but the epilogue's constants are images of
tiles (``layers.ImageLayout``). No kernel needs a halo: windows are clipped to the image, but for averages, to which
the zeros of a halo add nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from tvm_coexec.layers import (
    TILE,
    Hardware,
    ImageLayouts,
    PixelLayer,
    Pool,
    Resize,
    Variant,
    fused_operands,
)

from .dispatch import ERROR_BOUND, Dispatch
from .image_geometry import POSITIONS, check_layouts, common_run, input_names, window
from .packing import pack_steps
from .pixels import Pixels, space
from .search import RegisterTile, Space, dense_variants

if TYPE_CHECKING:
    from .frame import Launch

IMPLEMENTATION = "images"
_MAP_ROWS = 4
"""Pixels in a block where each reads its own place alone: more of them only meet in the same sets of the cache."""


def operand_names(layer: PixelLayer, variant: Variant) -> tuple[str, ...]:
    """Names of the buffers that a half reads and writes."""
    positions = (POSITIONS,) if isinstance(layer, Resize) else ()
    return (*input_names(layer), *positions, *fused_operands(layer.epilogue), "output")


def pack(layer: PixelLayer, params: Mapping[str, np.ndarray], variant: Variant) -> dict[str, np.ndarray]:
    """Pack the constants of the epilogue, and the places of a resized image, as the kernels read them."""
    packed = pack_steps(layer, params)
    return packed | {POSITIONS: _positions(layer)} if isinstance(layer, Resize) else packed


def _positions(layer: Resize) -> np.ndarray:
    """Give for each output line the input's line above it and the share of the one below; then the same for columns."""
    tables = []
    for axis, extent in enumerate((layer.out_h, layer.out_w)):
        last = layer.input[1 + axis] - 1
        position = np.clip(np.arange(extent) * layer.scale[axis] + layer.shift[axis], 0, last)
        tables += [np.floor(position), position - np.floor(position)]
    return np.concatenate(tables).astype(np.float32)


def error_bound(variant: Variant) -> float:
    """Bound the error of a result, relative to the largest value of the output."""
    return ERROR_BOUND


def dispatch(layer: PixelLayer, side: str, variant: Variant) -> Dispatch:
    """Launch geometry of a half."""
    return Pixels.of(window(layer), ImageLayouts.alone(layer), variant).dispatch(side, variant)


def default_variant(layer: PixelLayer, side: str, hardware: Hardware) -> Variant:
    """A good variant for a layer that was never tuned."""
    return variants(layer, side, hardware)[0]


def variants(layer: PixelLayer, side: str, hardware: Hardware) -> list[Variant]:
    """List the search space of one side, the most promising first."""
    layouts = ImageLayouts.alone(layer)
    read = window(layer)
    found = dense_variants(
        IMPLEMENTATION,
        side,
        hardware,
        space(read, layouts, reduction=1, taps=int(layer.facts()["reduction"])),
        partial(_register_tiles, read),
    )
    return list(dict.fromkeys(_with_whole_runs(variant, common_run(layer, layouts)) for variant in found))


def _with_whole_runs(variant: Variant, run: int) -> Variant:
    """The variant with vectors that lie in one operand each."""
    params = dict(variant.params)
    if run < TILE:
        key = "lanes" if "lanes" in params else "channels"
        params[key] = min(params[key], run)
    return Variant.make(variant.implementation, **params)


def _register_tiles(pixels: Pool, hardware: Hardware, space: Space) -> list[RegisterTile]:
    """List blocks of pixels that leave half of the registers to what they read, by estimated cost.

    The estimate counts padded rows, the input that a line of the window reads for a block, and the work to find
    where a block lies: it is done once where blocks divide the image's lines.
    """
    vectors = space.width // hardware.lanes
    most = hardware.vector_registers // (2 * vectors) if math.prod(pixels.kernel) > 1 else _MAP_ROWS
    ranked = []
    for rows in range(1, min(space.rows, max(1, most)) + 1):
        padding = space.padded_rows(rows) / space.rows
        reads = (rows - 1) * pixels.stride[1] + pixels.kernel[1]
        finding = 0.3 * (1 / rows if pixels.out_w % rows == 0 or rows % pixels.out_w == 0 else 1)
        ranked.append((padding * (1 + finding + reads / (rows * pixels.kernel[1])), rows))
    return [(rows, space.width, 1) for _, rows in sorted(ranked)]


def build(layer: PixelLayer, side: str, variant: Variant, layouts: ImageLayouts | None = None) -> tuple[Launch, ...]:
    """Build the one kernel of a half."""
    from .image_kernels import describe
    from .register_tiles import launch

    layouts = layouts or ImageLayouts.alone(layer)
    check_layouts(layer, layouts)
    params = dict(variant.params)
    del params["k_split"]
    names = operand_names(layer, variant)
    return (launch(describe(layer, Pixels.of(window(layer), layouts, variant), names, side), side, variant, params),)
