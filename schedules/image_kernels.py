"""The kernels of images as descriptions of the dense frame: how an output's element is reduced, and finished."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tvm.script.ir_builder import tirx as T

from tvm_coexec.layers import (
    TILE,
    Concat,
    Elementwise,
    ImageLayout,
    LocalNorm,
    PixelLayer,
    Pool,
    Rearrange,
    Resize,
    tile_count,
)

from .extrema import at_least, larger, smaller
from .frame import Description, kept_where, one_if_channel
from .gather_kernels import only, rearrange, resize
from .image_geometry import POSITIONS, common_run, fills_up, first_channels, input_names
from .packing import step_shapes
from .pixels import Pixels, describe_rows, every

_LOWEST = float(np.finfo(np.float32).min)
_SQUARED_SCALE = 2.0**-32
"""Factor of what a normalisation squares, so that squares of less than 1e28 are numbers."""
_SMALLEST = 1e-37
"""Below any divisor of a normalisation that means something; it keeps padding channels from dividing zero by zero."""
_MAX_WRITTEN_OUT = 64
"""Pixels of a block times columns of a window, up to which a window's line is written out."""


def describe(layer: PixelLayer, pixels: Pixels[Pool], names: Sequence[str], side: str) -> Description:
    """Describe the layer as a dense kernel over the rows of ``pixels``, with operands of these names."""
    return describe_rows(layer, pixels, names, _shapes(layer, pixels), **_reduction(layer, pixels, side))


def _shapes(layer: PixelLayer, pixels: Pixels[Pool]) -> dict[str, tuple[int, ...]]:
    """Give operands' shapes: inputs as plain elements, what is as large as the output as pixels of whole tiles."""
    layouts = pixels.layouts
    shapes = {
        **step_shapes(layer),
        POSITIONS: (2 * (layer.output_size[1] + layer.output_size[2]),),
        "residual": pixels.output_shape(layouts.residual),
        "output": pixels.output_shape(layouts.output),
    }
    for name, layout, size in zip(input_names(layer), layouts.inputs, layer.input_sizes, strict=True):
        if isinstance(layer, Pool):
            count = pixels.input_pixels
        elif size[:3] == layer.output_size[:3] and not isinstance(layer, Rearrange | Resize):
            count = pixels.output_pixels(layout)
        else:
            count = size[0] * math.prod(layout.extents(size[1], size[2]))
        shapes[name] = (count * layout.pixel(size[-1]),)
    return shapes


def _operand_pixel(layout: ImageLayout, size: tuple[int, ...], position: tuple[Any, Any, Any]) -> Any:
    """Where in memory lies the pixel of an image, of which an axis may have a single element, for one of the output.

    A row that is no pixel reads the last one.
    """
    image, line, column = (
        0 if extent == 1 else T.min(at, T.int32(extent - 1)) for extent, at in zip(size[:3], position, strict=True)
    )
    return layout.pixel_at(size[1], size[2], image, line, column)


def _reduction(layer: PixelLayer, pixels: Pixels[Pool], side: str) -> dict[str, Any]:
    """Fields of the description that say how an element is computed."""
    if isinstance(layer, Pool):
        return _pool(layer, pixels, _ARITHMETIC[side]["maximum"])
    if isinstance(layer, Concat):
        return _concat(layer, pixels)
    if isinstance(layer, Rearrange):
        return rearrange(layer, pixels)
    if isinstance(layer, Resize):
        return resize(layer, pixels)
    return (
        _local_norm(layer, pixels)
        if isinstance(layer, LocalNorm)
        else _elementwise(layer, pixels, _ARITHMETIC[side][layer.kind])
    )


def _pool(layer: Pool, pixels: Pixels[Pool], maximum: Callable[[Any, Any], Any]) -> dict[str, Any]:
    layout = pixels.layouts.input
    is_max = layer.kind == "max"
    taps = layer.kernel[0] * layer.kernel[1]

    def term(buffers: dict[str, Any], index: list[Any], begin: Any) -> Any:
        row, t, channel, _s, tap_h, tap_w = index
        pixel = pixels.input_pixel(row, tap_h, tap_w)
        value = buffers["input"][layout.element(pixel, (begin + t) * TILE + channel, layer.channels)]
        return value * value if layer.kind == "mean_square" else value

    def average(buffers: dict[str, Any], index: list[Any], begin: Any, total: Any) -> Any:
        return total * _average_factor(layer, pixels, index[0])

    return {
        "reduction": layer.kernel,
        "term": term,
        "written_out": (1,) if pixels.block * layer.kernel[1] <= _MAX_WRITTEN_OUT else (),
        "is_needed": lambda row, tap_h, tap_w: _is_inside(layer, pixels, row, (tap_h, tap_w)),
        "start": _LOWEST if is_max else 0.0,
        "combine": (only if taps == 1 else maximum) if is_max else _add,
        "finish": None if is_max or taps == 1 else average,
    }


def _add(x: Any, y: Any) -> Any:
    return x + y


def _is_inside(layer: Pool, pixels: Pixels[Pool], row: Any, taps: tuple[Any, Any]) -> Any:
    """Whether a tap is inside the image; None where all are, or where zeros of the halo may be added."""
    _image, *position = pixels.position(row)
    conditions = []
    for axis, size in enumerate((layer.h, layer.w)):
        before, after = layer.padding[axis], layer.padding[axis + 2]
        if layer.kind != "max" and max(before, after) <= pixels.layouts.input.halo[axis]:
            continue
        read = position[axis] * layer.stride[axis] + taps[axis] * layer.dilation[axis]
        if before:
            conditions.append(read >= before)
        if after:
            conditions.append(read < size + before)
    return every(conditions)


def _average_factor(layer: Pool, pixels: Pixels[Pool], row: Any) -> Any:
    """Divide one by the number of taps that count."""
    if layer.count_padding or not any(layer.padding):
        return T.float32(1 / (layer.kernel[0] * layer.kernel[1]))
    _image, *position = pixels.position(row)
    counts = []
    for axis, size in enumerate((layer.h, layer.w)):
        if not layer.padding[axis] and not layer.padding[axis + 2]:
            counts.append(T.int32(layer.kernel[axis]))
            continue
        step = layer.dilation[axis]
        start = position[axis] * layer.stride[axis] - layer.padding[axis]
        first = (T.max(T.int32(0) - start, T.int32(0)) + (step - 1)) // step
        behind = T.min((size - 1 - start) // step + 1, T.int32(layer.kernel[axis]))
        counts.append(behind - first)
    return T.float32(1) / T.Cast("float32", counts[0] * counts[1])


def _concat(layer: Concat, pixels: Pixels[Pool]) -> dict[str, Any]:
    layouts = pixels.layouts
    run, starts = common_run(layer, layouts), first_channels(layer)

    def term(buffers: dict[str, Any], index: list[Any], begin: Any) -> Any:
        row, t, channel, _s, _tap = index
        position = (begin + t) * TILE + channel
        first = (begin + t) * TILE + channel // run * run
        operands = zip(input_names(layer), layouts.inputs, starts, layer.channels, strict=True)
        values = [
            buffers[name][layout.element(pixels.output_pixel(layout, row), position - start, channels)]
            for name, layout, start, channels in operands
        ]
        ends = list(starts[1:])
        if not fills_up(layer, layouts):
            values.append(T.float32(0))
            ends.append(layer.out_channels)
        value = values.pop()
        for end, mine in zip(reversed(ends), reversed(values), strict=True):
            value = T.if_then_else(first < end, mine, value)
        return value

    return {"reduction": (1,), "term": term, "combine": only}


_SUMS_AND_PRODUCTS: dict[str, Callable[[Any, Any], Any]] = {
    "add": operator.add,
    "divide": operator.truediv,
    "multiply": operator.mul,
    "subtract": operator.sub,
}
_ARITHMETIC = {
    "cpu": {**_SUMS_AND_PRODUCTS, "maximum": larger, "minimum": smaller},
    "gpu": {**_SUMS_AND_PRODUCTS, "maximum": T.max, "minimum": T.min},
}


def _elementwise(layer: Elementwise, pixels: Pixels[Pool], compute: Callable[[Any, Any], Any]) -> dict[str, Any]:
    channels = layer.out_channels
    spread = [size[3] < channels for size in layer.input_sizes]
    divides = layer.kind == "divide"
    # A single element for all channels is there for those, too, that only fill up a tile and are to stay zero.
    fills = channels % TILE != 0 and (divides or (any(spread) and layer.kind != "multiply"))

    def element(buffers: dict[str, Any], index: list[Any], begin: Any, operand: int) -> Any:
        row, t, channel, *_ = index
        name, layout = input_names(layer)[operand], pixels.layouts.inputs[operand]
        size = layer.input_sizes[operand]
        if size[:3] == layer.output_size[:3]:
            pixel = pixels.output_pixel(layout, row)
        else:
            pixel = _operand_pixel(layout, size, pixels.position(row))
        position = 0 if spread[operand] else (begin + t) * TILE + channel
        return buffers[name][layout.element(pixel, position, size[3])]

    def term(buffers: dict[str, Any], index: list[Any], begin: Any) -> Any:
        x, y = (element(buffers, index, begin, operand) for operand in (0, 1))
        if not fills:
            return compute(x, y)
        exists = one_if_channel(channels, begin + index[1], index[2])
        y = y + (T.float32(1) - exists) if divides else y
        return compute(x, y) * exists

    return {"reduction": (1,), "term": term, "combine": only}


def _local_norm(layer: LocalNorm, pixels: Pixels[Pool]) -> dict[str, Any]:
    layout = pixels.layouts.input
    tiles, written = layout.tiles(layer.channels), tile_count(layer.channels)
    last_tile = layer.batch * math.prod(layout.extents(layer.h, layer.w)) * tiles - 1
    before = (layer.size - 1) // 2
    reach = -(-layer.size // (2 * TILE))

    def term(buffers: dict[str, Any], index: list[Any], begin: Any) -> Any:
        row, t, channel, _s, tap = index
        pixel, tile = pixels.output_pixel(layout, row), begin + t
        neighbour = tile * TILE + (channel + tap - before)
        # Beside a pixel's channels lie those of another pixel, which count as zero; what nothing was written to, as
        # what fills up a pixel and what lies beside the image, could be no number and is not read.
        position, end = (tile, written - 1) if tiles > written else (pixel * tiles + tile, last_tile)
        within = T.And(position >= reach, position <= end - reach)
        clamped = T.max(T.min(neighbour, T.int32(layer.channels - 1)), T.int32(0))
        image, first = buffers["input"], pixel * tiles * TILE
        value = T.if_then_else(within, image[first + neighbour], image[first + clamped])
        exists = _zero_or_one(neighbour + 1) * _zero_or_one(layer.channels - neighbour)
        scaled = kept_where(exists, value) * T.float32(_SQUARED_SCALE)
        return scaled * scaled

    def finish(buffers: dict[str, Any], index: list[Any], begin: Any, total: Any) -> Any:
        row, t, channel = index
        divisor = T.float32(layer.bias * _SQUARED_SCALE**2) + total * T.float32(layer.alpha / layer.size)
        factor = _power(at_least(_SMALLEST, divisor), -layer.beta) * T.float32(_SQUARED_SCALE ** (2 * layer.beta))
        source = (pixels.output_pixel(layout, row) * tiles + begin + t) * TILE + channel
        return buffers["input"][source] * factor

    return {"reduction": (layer.size,), "term": term, "finish": finish}


def _zero_or_one(value: Any) -> Any:
    return T.max(T.min(value, T.int32(1)), T.int32(0))


def _power(x: Any, exponent: float) -> Any:
    """``x ** exponent`` of a positive ``x``; by square roots where it is a multiple of a quarter, as it mostly is."""
    quarters = round(abs(exponent) * 4)
    if not math.isclose(quarters, abs(exponent) * 4) or quarters > 16:
        return T.pow(x, T.float32(exponent))
    factors = [x] * (quarters // 4)
    if quarters & 2:
        factors.append(T.sqrt(x))
    if quarters & 1:
        factors.append(T.sqrt(T.sqrt(x)))
    value = math.prod(factors, start=T.float32(1))
    return T.float32(1) / value if exponent < 0 else value
