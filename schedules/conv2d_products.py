"""Convolutions on a GPU as dense products: a pixel of the output is a row, whose taps are runs of the input's channels.

Nothing is copied for it: the halo holds the padding. Of an image without padding channels, which a network's first
layer reads, a whole line of the kernel is one run. Weights are those of :mod:`.conv2d_direct`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvm_coexec.layers import TILE, Conv2d, Hardware, ImageLayouts, Variant, tile_count

from . import conv2d_direct, few_rows, gpu_products, pixels
from .conv2d_direct import WEIGHTS, error_bound, has_long_lines, pack_weights, terms, weight_bytes, weights_name
from .dispatch import Dispatch
from .pixels import Pixels
from .product import Extents

if TYPE_CHECKING:
    from .frame import Launch
    from .product import Product

__all__ = ["error_bound", "pack_weights", "terms", "weight_bytes", "weights_name"]

_GAIN = 4
"""How much faster these kernels are than register tiles that read all operands from global memory, roughly."""


def can_compute(layer: Conv2d) -> bool:
    """Whether every channel of the output reads all channels of the input."""
    return layer.groups == 1


def cost(layer: Conv2d) -> float:
    """Estimated time, in multiply-adds of the direct form."""
    return conv2d_direct.cost(layer) / _GAIN


def variants(layer: Conv2d, side: str, hardware: Hardware, layouts: ImageLayouts) -> list[Variant]:
    """The search space of one side, the most promising first; only a GPU has one."""
    if side == "cpu":
        return []
    found = gpu_products.variants(extents(layer, layouts), hardware)
    # Others have several runs of the input where a network's layout is another one.
    return [one for one in found if one.implementation != few_rows.IMPLEMENTATION or layer.kernel == (1, 1)]


def dispatch(layer: Conv2d, side: str, variant: Variant, layouts: ImageLayouts) -> Dispatch:
    """Launch geometry of a half."""
    return gpu_products.dispatch(extents(layer, layouts), variant)


def launches(layer: Conv2d, side: str, variant: Variant, layouts: ImageLayouts) -> tuple[Launch, ...]:
    """Build the one kernel of a half."""
    return gpu_products.launches(_product(layer, layouts), variant)


def extents(layer: Conv2d, layouts: ImageLayouts) -> Extents:
    """How large the layer is as a product."""
    rows, (lines, columns) = Pixels(layer, layouts, 1, 1), layer.kernel
    taps, span = (lines, columns) if has_long_lines(layer, layouts) else (lines * columns, 1)
    return Extents(rows.true_rows, layer.out_channels, span * layer.in_channels, taps, rows.unit_rows)


def _product(layer: Conv2d, layouts: ImageLayouts) -> Product:
    from .frame import Operand
    from .product import Product

    rows, size = Pixels(layer, layouts, 1, 1), extents(layer, layouts)
    shapes = pixels.operand_shapes(rows, WEIGHTS, (tile_count(layer.out_channels), size.reduction, TILE))
    pixel, kernel_columns = layouts.input.pixel(layer.in_channels), layer.kernel[1]
    line = layouts.input.extents(layer.h, layer.w)[1] * pixel

    def run_offset(tap: Any) -> Any:
        if has_long_lines(layer, layouts):
            return tap * (layer.dilation[0] * line)
        tap_h, tap_w = tap // kernel_columns, tap % kernel_columns
        return tap_h * (layer.dilation[0] * line) + tap_w * (layer.dilation[1] * pixel)

    return Product(
        layer=layer,
        operands=tuple(Operand(name, shapes[name]) for name in pixels.operand_names(layer, WEIGHTS)),
        extents=size,
        first_element=lambda row: layouts.input.element(rows.input_pixel(row, 0, 0), 0, layer.in_channels),
        run_offset=run_offset,
        aligned=pixel % 4 == 0 and layer.in_channels % 4 == 0,
        output_row=lambda row: rows.output_pixel(layouts.output, row),
        residual_row=lambda row: rows.output_pixel(layouts.residual, row),
        output_tile=layouts.output.first_tile,
        residual_tile=layouts.residual.first_tile,
        output_width=layouts.output.tile_width,
    )
