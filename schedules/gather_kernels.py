"""These kernels fetch an image's elements from other places: they rearrange and interpolate images."""

from __future__ import annotations

import math
from typing import Any

from tvm.script.ir_builder import tirx as T

from tvm_coexec.layers import TILE, Pool, Rearrange, Resize

from .image_geometry import POSITIONS
from .pixels import Pixels, every


def only(_old: Any, new: Any) -> Any:
    """Join a reduction of a single term: the accumulator becomes it."""
    return new


def _within(extent: int, position: Any) -> Any:
    return T.min(position, T.int32(extent - 1))


def rearrange(layer: Rearrange, pixels: Pixels[Pool]) -> dict[str, Any]:
    """Fields of the description of a rearranged image: each element is read from its place, or is the filling."""
    layout, run = pixels.layouts.input, math.gcd(TILE, layer.run)

    def term(buffers: dict[str, Any], index: list[Any], begin: Any) -> Any:
        row, t, channel, *_ = index
        # A row that is no pixel reads what the last one does.
        out = [_within(size, at) for size, at in zip(layer.output[:3], pixels.position(row), strict=True)]
        first = (begin + t) * TILE + channel // run * run
        position = _positions(layer, [*out, first])
        conditions = [first < layer.output[3]] if layer.output[3] % TILE else []
        inside = [position[axis] >= 0 for axis in range(4) if layer.reach(axis)[0] < 0]
        inside += [position[axis] < layer.input[axis] for axis in range(4) if layer.reach(axis)[1] >= layer.input[axis]]
        image, line, column, first_read = position
        pixel = layout.pixel_at(layer.input[1], layer.input[2], image, line, column)
        value = buffers["input"][layout.element(pixel, first_read + channel % run, layer.input[3])]
        if inside:
            value = T.if_then_else(every(inside), value, T.float32(layer.fill))
        return T.if_then_else(conditions[0], value, T.float32(0)) if conditions else value

    return {"reduction": (1,), "term": term, "combine": only}


def _positions(layer: Rearrange, out: list[Any]) -> list[Any]:
    """Compute the place in the input of one of the output."""
    position: list[Any] = [T.int32(offset) for offset in layer.offsets]
    for axis in range(4):
        rest, index = 1, out[axis] + layer.starts[axis] if layer.starts[axis] else out[axis]
        for _, extent, along, step in reversed(layer.axis_digits(axis)):
            digit = index // rest if rest > 1 else index
            if rest * extent < layer.starts[axis] + layer.output[axis]:
                digit = digit % extent
            if step and extent > 1:
                position[along] = position[along] + digit * step
            rest *= extent
    return position


def resize(layer: Resize, pixels: Pixels[Pool]) -> dict[str, Any]:
    """Fields of the description of an interpolated image: four pixels, each times its share.

    Places and shares are read from a table. Computed in the kernel, TVM writes them out for every lane of a vector, and
    OpenCL compilers took minutes for such a kernel.
    """
    layout = pixels.layouts.input

    def neighbour(positions: Any, axis: int, at: Any, tap: Any) -> tuple[Any, Any]:
        """A line or column beside the place of an output's, and the share that it has in it."""
        extent = (layer.out_h, layer.out_w)[axis]
        first = 2 * layer.out_h * axis
        share, tap_share = positions[first + extent + at], T.Cast("float32", tap)
        at_input = _within(layer.input[1 + axis], T.Cast("int32", positions[first + at]) + tap)
        return at_input, tap_share * share + (1 - tap_share) * (1 - share)

    def term(buffers: dict[str, Any], index: list[Any], begin: Any) -> Any:
        row, t, channel, _s, tap_h, tap_w = index
        sizes = layer.output_size[:3]
        image, y, x = (_within(size, at) for size, at in zip(sizes, pixels.position(row), strict=True))
        positions = buffers[POSITIONS]
        (line, line_share), (column, column_share) = (
            neighbour(positions, axis, at, tap) for axis, (at, tap) in enumerate(((y, tap_h), (x, tap_w)))
        )
        pixel = layout.pixel_at(layer.input[1], layer.input[2], image, line, column)
        value = buffers["input"][layout.element(pixel, (begin + t) * TILE + channel, layer.input[3])]
        return value * (line_share * column_share)

    return {"reduction": (2, 2), "term": term, "written_out": (0, 1)}
