"""Direct convolution is a dense kernel over the output's pixels, for any window, stride, padding, dilation and groups.

A pointwise layer is the linear kernel over all pixels. A network's first layer reads an image without padding
channels, where a line of the kernel is one run of ``kernel width · channels`` values.

Weights are ``[tiles, kernel lines · columns · span, 32]``. The span is what a tile's channels read: all input channels
without groups; with groups those of every group that the tile touches, zeros standing where a channel does not read.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from tvm_coexec.layers import MAX_NARROW, TILE, Conv2d, Hardware, ImageLayouts, Variant, tile_count

from . import pixels
from .dispatch import ERROR_BOUND
from .pixels import Pixels, describe
from .search import WEIGHT_COST, dense_variants

if TYPE_CHECKING:
    from .frame import Description, Launch

IMPLEMENTATION = "direct"
WEIGHTS = "weights"
SKIP_LINES, SKIP_COLUMNS = 1, 2
"""Values of ``skip``: taps outside the image are left out where a whole line (or also a column) of the kernel is."""
_MAX_WRITTEN_OUT = 64
"""Rows times columns of the kernel, up to which a kernel is small enough to be written out for each column."""

dispatch = pixels.dispatch


def can_compute(layer: Conv2d) -> bool:
    """Whether the implementation knows the layer: this one knows all."""
    return True


def cost(layer: Conv2d) -> float:
    """Estimated time, in multiply-adds."""
    rows = layer.batch * layer.out_h * layer.out_w
    return (rows + WEIGHT_COST) * _taps(layer) * tile_count(layer.out_channels) * TILE


def _span(layer: Conv2d) -> int:
    """Input channels that a tile of output channels reads."""
    group_out, group_in = layer.out_channels // layer.groups, layer.in_channels // layer.groups
    spans = []
    for first in range(0, layer.out_channels, TILE):
        last = min(first + TILE, layer.out_channels) - 1
        spans.append((last // group_out - first // group_out + 1) * group_in)
    return max(spans)


def error_bound(variant: Variant) -> float:
    """Bound the error of a result, relative to the largest value of the output."""
    return ERROR_BOUND


def terms(layer: Conv2d, variant: Variant) -> int:
    """Products that are added up for one output element, those with weights of zero included."""
    return _taps(layer)


def _taps(layer: Conv2d) -> int:
    return layer.kernel[0] * layer.kernel[1] * _span(layer)


def weight_bytes(layer: Conv2d, _variant: Variant) -> int:
    """Count the bytes of the weights."""
    return layer.weight_bytes


def _first_channel(layer: Conv2d, tile: Any, least: Callable[[Any, int], Any]) -> Any:
    """The first input channel that a tile multiplies; of a channel-local layer only its own, which it has not to await.

    Other tiles with groups read no further than the image's last channel: where a tile holds several groups, some
    weights are zero.
    """
    if layer.groups == 1:
        return 0
    first = tile * TILE // (layer.out_channels // layer.groups) * (layer.in_channels // layer.groups)
    return first if layer.channel_local else least(first, layer.in_channels - _span(layer))


def weights_name(variant: Variant) -> str:
    """Name of the operand that holds the weights."""
    return WEIGHTS


def pack_weights(layer: Conv2d, weights: np.ndarray, variant: Variant) -> np.ndarray:
    """Pack weights ``[out, in / groups, kernel]`` as the kernels read them."""
    group_out, group_in = layer.out_channels // layer.groups, layer.in_channels // layer.groups
    span = _span(layer)
    packed = np.zeros((tile_count(layer.out_channels), *layer.kernel, span, TILE), np.float32)
    for group in range(layer.groups):
        channels = np.arange(group * group_out, (group + 1) * group_out)
        for tile in np.unique(channels // TILE):
            mine = channels[channels // TILE == tile]
            start = group * group_in - _first_channel(layer, int(tile), min)
            packed[tile, :, :, start : start + group_in, mine % TILE] = weights[mine].transpose(0, 2, 3, 1)
    return packed.reshape(tile_count(layer.out_channels), -1, TILE)


def variants(layer: Conv2d, side: str, hardware: Hardware, layouts: ImageLayouts) -> list[Variant]:
    """List the search space of one side, the most promising first."""
    space = pixels.space(
        layer,
        layouts,
        reduction=_inner_reduction(layer, layouts),
        taps=_taps(layer),
        channels=layer.out_channels,
        weighted=True,
    )
    return [
        Variant.make(IMPLEMENTATION, **dict(variant.params), skip=skip)
        for variant in dense_variants(IMPLEMENTATION, side, hardware, space)
        for skip in _skips(layer, layouts, variant["rows"])
    ]


def _inner_reduction(layer: Conv2d, layouts: ImageLayouts) -> int:
    return layer.kernel[1] * layer.in_channels if has_long_lines(layer, layouts) else _span(layer)


def has_long_lines(layer: Conv2d, layouts: ImageLayouts) -> bool:
    """Whether the values that a line of the kernel reads follow each other."""
    is_without_padding = layer.in_channels <= MAX_NARROW and layouts.input.width == layer.in_channels
    return is_without_padding and layer.dilation[1] == 1 and layer.groups == 1


def _skips(layer: Conv2d, layouts: ImageLayouts, block: int) -> list[int]:
    """Values of ``skip`` that a block of rows allows, the one that leaves out most first."""
    pixels = Pixels(layer, layouts, block, block)
    top, left, bottom, right = layer.padding
    lines = pixels.in_one_row and (top or bottom)
    columns = pixels.columns == block and pixels.in_one_row and (left or right)
    written_out = block * layer.kernel[1] <= _MAX_WRITTEN_OUT and not has_long_lines(layer, layouts)
    return [SKIP_COLUMNS] * bool(columns and written_out) + [SKIP_LINES] * bool(lines) + [0]


def launches(layer: Conv2d, side: str, variant: Variant, layouts: ImageLayouts) -> tuple[Launch, ...]:
    """Build the one kernel of a half."""
    from .register_tiles import launch

    params = dict(variant.params)
    rows = Pixels.of(layer, layouts, variant)
    # the variant was chosen for an image of few channels as an input has it, and here it may have padding channels
    k_split = math.gcd(params.pop("k_split"), _inner_reduction(layer, layouts))
    description = _describe(rows, k_split, params.pop("skip"))
    return (launch(description, side, variant, params),)


def _describe(pixels: Pixels[Conv2d], k_split: int, skip: int) -> Description:
    """Describe the layer as a dense kernel over the rows of ``pixels``."""
    from tvm.script.ir_builder import tirx as T

    layer, layouts = pixels.layer, pixels.layouts
    (kernel_h, kernel_w), span = layer.kernel, _span(layer)
    columns = () if has_long_lines(layer, layouts) else (kernel_w,)

    def weight(buffers: dict[str, Any], index: list[Any], begin: Any) -> Any:
        _row, t, channel, s, tap_h, *column, k = index
        tap = tap_h * kernel_w + (column[0] if column else 0)
        return buffers[WEIGHTS][begin + t, tap * span + k * k_split + s, channel]

    def term(buffers: dict[str, Any], index: list[Any], begin: Any) -> Any:
        row, t, _channel, s, tap_h, *column, k = index
        pixel = pixels.input_pixel(row, tap_h, column[0] if column else 0)
        channel = _first_channel(layer, begin + t, T.min) + k * k_split + s
        source = layouts.input.element(pixel, channel, layer.in_channels)
        return buffers["input"][source] * weight(buffers, index, begin)

    def is_needed(row: Any, tap_h: Any, *rest: Any) -> Any:
        return pixels.is_inside(row, tap_h, rest[0] if skip == SKIP_COLUMNS else None) if skip else None

    return describe(
        pixels,
        WEIGHTS,
        (tile_count(layer.out_channels), kernel_h * kernel_w * span, TILE),
        reduction=(kernel_h, *columns, _inner_reduction(layer, layouts) // k_split),
        term=term,
        weight=weight,
        partial_sums=k_split,
        is_needed=is_needed,
        written_out=(1,) if skip == SKIP_COLUMNS else (),
    )
