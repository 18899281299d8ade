"""What the kernels of images read: windows of pixels, and runs of channels that follow each other in one operand."""

from __future__ import annotations

import math
from itertools import accumulate

from tvm_coexec.layers import (
    NARROW_LAYERS,
    TILE,
    Concat,
    Elementwise,
    ImageLayouts,
    LocalNorm,
    PixelLayer,
    Pool,
    Rearrange,
)

from .pixels import check_widths

POSITIONS = "positions"
"""The operand that says, for each line and column of a resized image, where it lies in the input."""


def window(layer: PixelLayer) -> Pool:
    """The pooling that reads the same pixels as the layer: one that is none reads a pixel for each that it writes."""
    if isinstance(layer, Pool):
        return layer
    batch, h, w, channels = layer.output_size
    axis = layer.axis if isinstance(layer, Elementwise) else "channels"
    return Pool("max", h, w, channels, (1, 1), batch=batch, axis=axis)


def input_names(layer: PixelLayer) -> tuple[str, ...]:
    """Roles of the images that a layer reads, the residual left out."""
    return ("input", *(f"input{position}" for position in range(1, len(layer.input_sizes))))


def first_channels(layer: Concat) -> tuple[int, ...]:
    """Where each operand begins in the output."""
    return tuple(accumulate(layer.channels[:-1], initial=0))


def fills_up(layer: Concat, layouts: ImageLayouts) -> bool:
    """Whether the padding channels of the last operand can be read as those of the output."""
    return first_channels(layer)[-1] % TILE == 0 and layouts.inputs[-1].width is None


def common_run(layer: PixelLayer, layouts: ImageLayouts) -> int:
    """The largest number of channels that divides a tile and never straddles two operands."""
    if isinstance(layer, Rearrange):
        return math.gcd(TILE, layer.run)
    if not isinstance(layer, Concat):
        return TILE
    edges = first_channels(layer) if fills_up(layer, layouts) else (*first_channels(layer), layer.out_channels)
    return math.gcd(TILE, *edges)


def check_layouts(layer: PixelLayer, layouts: ImageLayouts) -> None:
    """Refuse layouts that are not one for each input, and images that kernels cannot read or write."""
    if len(layouts.inputs) != len(layer.input_sizes):
        raise ValueError(f"{len(layer.input_sizes)} inputs of a {layer.op} need as many layouts, not {layouts.inputs}")
    if isinstance(layer, NARROW_LAYERS):
        check_widths(layer, layouts)
    elif layouts.output.width is not None or layouts.residual.width is not None:
        raise ValueError(f"a {layer.op} writes whole tiles, so that neither output nor residual can be narrow")
    if isinstance(layer, LocalNorm) and (layouts.input.is_slice or layouts.input.width is not None):
        raise ValueError("a local_norm reads beside its channels, so that its input is neither narrow nor a slice")
