"""Depthwise convolution: each channel reads itself alone, so that a half needs only its own channels of the input.

Weights are ``[tiles, kernel lines · columns, 32]``; a line of the kernel is written out for a block of pixels, which
share most of what they read.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from tvm_coexec.layers import MAX_NARROW, TILE, Conv2d, Hardware, ImageLayouts, Variant, tile_count

from . import pixels
from .dispatch import ERROR_BOUND
from .packing import in_tiles
from .pixels import Pixels, describe
from .search import NARROW_LANES, RegisterTile, Space, dense_variants

if TYPE_CHECKING:
    from .frame import Description, Launch

IMPLEMENTATION = "depthwise"
WEIGHTS = "depthwise_weights"

dispatch = pixels.dispatch


def can_compute(layer: Conv2d) -> bool:
    """Whether the layer has one filter a channel, and an input of whole tiles."""
    return layer.groups == layer.in_channels == layer.out_channels and layer.in_channels > MAX_NARROW


def cost(layer: Conv2d) -> float:
    """Estimated time, in multiply-adds."""
    return layer.flops / 2


def error_bound(variant: Variant) -> float:
    """Bound the error of a result, relative to the largest value of the output."""
    return ERROR_BOUND


def terms(layer: Conv2d, variant: Variant) -> int:
    """Products that are added up for one output element."""
    return layer.taps


def weight_bytes(layer: Conv2d, _variant: Variant) -> int:
    """Count the bytes of the weights."""
    return layer.weight_bytes


def weights_name(variant: Variant) -> str:
    """Name of the operand that holds the weights."""
    return WEIGHTS


def pack_weights(layer: Conv2d, weights: np.ndarray, variant: Variant) -> np.ndarray:
    """Pack weights ``[channels, 1, kernel]`` as the kernels read them."""
    return np.ascontiguousarray(in_tiles(weights.reshape(layer.out_channels, -1).T).transpose(1, 0, 2))


def variants(layer: Conv2d, side: str, hardware: Hardware, layouts: ImageLayouts) -> list[Variant]:
    """List the search space of one side, the most promising first."""
    space = pixels.space(layer, layouts, reduction=1, taps=layer.taps)
    return dense_variants(IMPLEMENTATION, side, hardware, space, partial(_register_tiles, layer))


def _register_tiles(layer: Conv2d, hardware: Hardware, space: Space) -> list[RegisterTile]:
    """List tiles that leave half of the registers to what they read, by estimated cost.

    The estimate counts padded rows, and the input that a line of the kernel reads for a block of pixels. Of narrow
    vectors a tile takes few channels of many pixels, which share more of what they read, and leaves registers for
    another pixel: by LLVM's models seven pixels of two vectors take 82 % of the peak of cortex-a55 and 90 of
    neoverse-n1, four pixels of four vectors 49 and 78, with sums kept on the stack.
    """
    lanes = hardware.lanes
    is_narrow = lanes <= NARROW_LANES
    ranked = []
    width = space.width
    for channels in {width, max(width // 2, lanes), *([max(width // 4, lanes)] if is_narrow else [])}:
        vectors = channels // lanes
        for rows in range(1, space.rows + 1):
            if rows * vectors > hardware.vector_registers // 2 - (vectors if is_narrow else 0):
                break
            padding = space.padded_rows(rows) / space.rows
            reads = (rows - 1) * layer.stride[1] + layer.kernel[1]
            ranked.append((padding * (1 + reads / (rows * layer.kernel[1])), -channels, rows))
    return [(rows, -channels, 1) for _, channels, rows in sorted(ranked)]


def launches(layer: Conv2d, side: str, variant: Variant, layouts: ImageLayouts) -> tuple[Launch, ...]:
    """Build the one kernel of a half."""
    from .register_tiles import launch

    params = dict(variant.params)
    del params["k_split"]
    return (launch(_describe(Pixels.of(layer, layouts, variant)), side, variant, params),)


def _describe(pixels: Pixels[Conv2d]) -> Description:
    layer = pixels.layer
    kernel_h, kernel_w = layer.kernel
    layout = pixels.layouts.input

    def term(buffers: dict[str, Any], index: list[Any], begin: Any) -> Any:
        row, t, channel, _s, tap_h, tap_w = index
        pixel = pixels.input_pixel(row, tap_h, tap_w)
        source = layout.element(pixel, (begin + t) * TILE + channel, layer.in_channels)
        return buffers["input"][source] * buffers[WEIGHTS][begin + t, tap_h * kernel_w + tap_w, channel]

    return describe(
        pixels,
        WEIGHTS,
        (tile_count(layer.out_channels), kernel_h * kernel_w, TILE),
        reduction=(kernel_h, kernel_w),
        term=term,
        written_out=(1,),
    )
