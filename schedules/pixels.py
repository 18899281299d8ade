"""The pixels of an output image as the rows of the frame: where each lies in memory, and what its convolution reads.

Row ``(batch · out_h + oh) · columns + ow`` is the output pixel ``(oh, ow)``. ``columns`` is the image's width rounded
up to whole blocks, so that a block lies in one image row and its pixels are a constant distance apart. Columns behind
the image's right edge are computed and not stored. Where the input's pixels follow each other as the output's do (a
pointwise layer without halo), blocks run across the image's edges instead. Where units are lines, rows that belong to
no pixel may follow those of each unit, so that it has whole blocks too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from tvm_coexec.layers import (
    WIDTHS,
    Conv2d,
    ImageLayout,
    ImageLayouts,
    Pool,
    Variant,
    fused_operands,
    line_block,
    reads_tiles,
    tile_count,
)

from .dispatch import Dispatch, dense_dispatch, fitted, rows_of_group
from .packing import step_shapes
from .search import Space

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tvm_coexec.layers import ImageLayer

    from .frame import Description


Windowed = TypeVar("Windowed", bound=Conv2d | Pool)


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step


@dataclass(frozen=True)
class Pixels(Generic[Windowed]):
    """The rows of a layer's frame, each of which is a pixel of the output.

    Parameters
    ----------
    block
        Rows that one register tile holds.
    group
        Rows of which the frame has a whole number: a block, or the blocks of a work-group.
    """

    layer: Windowed
    layouts: ImageLayouts
    block: int
    group: int

    @classmethod
    def of(cls, layer: Windowed, layouts: ImageLayouts, variant: Variant) -> Pixels[Windowed]:
        """The rows that a variant computes."""
        return cls(layer, layouts, variant["rows"], rows_of_group(variant))

    def __post_init__(self) -> None:
        if isinstance(self.layer, Conv2d):
            check_layouts(self.layer, self.layouts)

    @property
    def runs_on(self) -> bool:
        """Whether input pixels follow each other as output pixels do, across the image's edges."""
        layer, (halo_h, halo_w) = self.layer, self.layouts.input.halo
        one_image = layer.batch == 1 or (layer.kernel[0] == 1 and halo_h == 0)
        return one_image and halo_w == 0 and layer.kernel[1] == 1 and layer.stride == (1, 1)

    @property
    def columns(self) -> int:
        # A block that ran over the edge of a line would have no constant distance between its pixels in memory.
        width = self.layer.out_w
        return width if self.runs_on or self.block % width == 0 else _round_up(width, self.block)

    @property
    def in_one_row(self) -> bool:
        """Whether a block lies in one row of the image."""
        return not self.runs_on and self.columns % self.block == 0

    @property
    def true_rows(self) -> int:
        """Rows up to the last one that may exist."""
        return self.layer.batch * self.layer.out_h * self.columns

    @property
    def unit_rows(self) -> int | None:
        """Rows of a unit; None where units are tiles."""
        return None if self.layer.axis == "channels" else _round_up(self._unit_positions, self.group)

    @property
    def _unit_positions(self) -> int:
        """Rows of a unit of lines, but for those that follow its last line."""
        return line_block(self.layer.out_h) * self.columns

    @property
    def rows(self) -> int:
        return _round_up(self.true_rows, self.group) if self.unit_rows is None else self.layer.units * self.unit_rows

    def _in_line(self, row: Any) -> Any:
        """A row's number, if those were not counted that follow the units' last lines."""
        if self.unit_rows in (None, self._unit_positions):
            return row
        return row // self.unit_rows * self._unit_positions + row % self.unit_rows

    def position(self, row: Any) -> tuple[Any, Any, Any]:
        """Locate a row's pixel: its image, line and column."""
        return self._position(self._in_line(row))

    def _position(self, number: Any) -> tuple[Any, Any, Any]:
        line, column = number // self.columns, number % self.columns
        if self.layer.batch == 1:
            return 0, line, column
        return line // self.layer.out_h, line % self.layer.out_h, column

    def input_pixel(self, row: Any, tap_h: Any, tap_w: Any) -> Any:
        """The pixel in memory that a row reads at a position of the kernel."""
        return self._input_pixel(self._in_line(row), tap_h, tap_w)

    def _input_pixel(self, number: Any, tap_h: Any, tap_w: Any) -> Any:
        layer, halo = self.layer, self.layouts.input.halo
        height, width = self.layouts.input.extents(layer.h, layer.w)
        # The halo may be wider than this layer's padding, since other layers read it too.
        first = (halo[0] - layer.padding[0]) * width + halo[1] - layer.padding[1]
        tap = tap_h * (layer.dilation[0] * width) + tap_w * layer.dilation[1]
        if self.runs_on:
            return number + first + tap
        image, line, column = self._position(number)
        line = image * height + line * layer.stride[0]
        return line * width + column * layer.stride[1] + first + tap

    def output_pixel(self, layout: ImageLayout, row: Any) -> Any:
        """The pixel in memory that a row writes."""
        return self._output_pixel(layout, self._in_line(row))

    def _output_pixel(self, layout: ImageLayout, number: Any) -> Any:
        if layout.halo == (0, 0) and self.columns == self.layer.out_w:
            return number
        return layout.pixel_at(self.layer.out_h, self.layer.out_w, *self._position(number))

    def is_stored(self, row: Any) -> Any:
        """Whether a row is a pixel of the image; None if all are."""
        conditions = []
        number = self._in_line(row)
        if self.columns != self.layer.out_w:
            conditions.append(number % self.columns < self.layer.out_w)
        if self.rows != self.true_rows:
            conditions.append(number < self.true_rows)
        if self.unit_rows not in (None, self._unit_positions):
            conditions.append(row % self.unit_rows < self._unit_positions)
        return every(conditions)

    def is_inside(self, row: Any, tap_h: Any, tap_w: Any = None) -> Any:
        """Whether a tap is inside the input image; only its line counts if the column of the kernel is not given."""
        layer = self.layer
        _image, line, column = self.position(row)
        taps = [(line, tap_h, layer.h, 0)] + ([(column, tap_w, layer.w, 1)] if tap_w is not None else [])
        conditions = []
        for position, tap, size, axis in taps:
            read = position * layer.stride[axis] + tap * layer.dilation[axis] - layer.padding[axis]
            conditions += [read >= 0, read < size]
        return every(conditions)

    @property
    def input_pixels(self) -> int:
        """Pixels of the input in memory, those included that only rows without a pixel read."""
        layer = self.layer
        image = math.prod(self.layouts.input.extents(layer.h, layer.w))
        corner = (layer.kernel[0] - 1, layer.kernel[1] - 1)
        return max(layer.batch * image, *(self._input_pixel(position, *corner) + 1 for position in self._line_ends()))

    def output_pixels(self, layout: ImageLayout) -> int:
        """Count the pixels of the output or the residual in memory, slack for rows without a pixel included."""
        layer = self.layer
        image = math.prod(layout.extents(layer.out_h, layer.out_w))
        return max(layer.batch * image, *(self._output_pixel(layout, position) + 1 for position in self._line_ends()))

    def output_shape(self, layout: ImageLayout) -> tuple[int, int, int]:
        """Give the shape of the output or the residual as a buffer of whole tiles."""
        return self.output_pixels(layout), layout.tiles(self.layer.out_channels), layout.tile_width

    def dispatch(self, side: str, variant: Variant) -> Dispatch:
        """Launch geometry of a dense kernel over the pixels."""
        variant = fitted(variant, self.layouts.output.tile_width)
        return dense_dispatch(side, variant, self.rows, self.unit_rows, tile_count(self.layer.out_channels))

    def _line_ends(self) -> Iterable[int]:
        last = self._in_line(self.rows - 1) // self.columns
        return (line * self.columns + self.columns - 1 for line in range(max(0, last - 1), last + 1))


def check_layouts(layer: Conv2d, layouts: ImageLayouts) -> None:
    """Refuse an input whose halo does not hold the padding, and narrow images that kernels cannot read or write."""
    top, left, bottom, right = layer.padding
    halo = layouts.input.halo
    if halo[0] < max(top, bottom) or halo[1] < max(left, right):
        raise ValueError(f"the input's halo {halo} is narrower than the padding {layer.padding}")
    if layouts.input.width is not None and layouts.input.width < layer.in_channels:
        raise ValueError(f"an image of {layer.in_channels} channels cannot have pixels of {layouts.input.width}")
    check_widths(layer, layouts)


def check_widths(layer: ImageLayer, layouts: ImageLayouts) -> None:
    """Refuse outputs whose pixels kernels do not write, and operands of which they would read more than a pixel."""
    inputs = [layout for position, layout in enumerate(layouts.inputs) if reads_tiles(layer, position)]
    output = layouts.output
    if output.width is not None and (output.width not in WIDTHS or output.width < layer.out_channels):
        raise ValueError(f"kernels write pixels of {WIDTHS} channels or of tiles, so that none can have {output.width}")
    if any(layout.tile_width < output.tile_width for layout in (layouts.residual, *inputs)):
        raise ValueError(f"a {layer.op} that writes {output.tile_width} channels of a pixel cannot read narrower ones")


def space(layer: Conv2d | Pool, layouts: ImageLayouts, **rest: Any) -> Space:
    """What the search knows of a dense kernel over the pixels of a layer; ``rest`` has the space's other fields."""
    return Space(
        rows=layer.batch * layer.out_h * layer.out_w,
        padded_rows=lambda block: Pixels(layer, layouts, block, block).rows,
        parts=layer.units if layer.axis == "lines" else 1,
        line=layer.out_w if Pixels(layer, layouts, 1, 1).runs_on else None,
        width=layouts.output.tile_width,
        **rest,
    )


def dispatch(layer: Conv2d, side: str, variant: Variant, layouts: ImageLayouts) -> Dispatch:
    """Launch geometry of a half that is a dense kernel over the pixels."""
    return Pixels.of(layer, layouts, variant).dispatch(side, variant)


def operand_names(layer: Conv2d, weights: str) -> tuple[str, ...]:
    """Names of a kernel's buffers in the order of its arguments; ``weights`` says how they are packed."""
    return ("input", weights, *fused_operands(layer.epilogue), "output")


def operand_shapes(pixels: Pixels[Conv2d], weights: str, weights_shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Give the shapes of a kernel's buffers: the input as plain elements, the output as pixels of whole tiles."""
    layer, layouts = pixels.layer, pixels.layouts
    return {
        "input": (pixels.input_pixels * layouts.input.pixel(layer.in_channels),),
        weights: weights_shape,
        **step_shapes(layer),
        "residual": pixels.output_shape(layouts.residual),
        "output": pixels.output_shape(layouts.output),
    }


def describe(pixels: Pixels[Conv2d], weights: str, weights_shape: tuple[int, ...], **reduction: Any) -> Description:
    """Describe a convolution as a dense kernel over the rows of ``pixels``."""
    names, shapes = operand_names(pixels.layer, weights), operand_shapes(pixels, weights, weights_shape)
    return describe_rows(pixels.layer, pixels, names, shapes, **reduction)


def describe_rows(
    layer: ImageLayer,
    pixels: Pixels[Any],
    names: Iterable[str],
    shapes: Mapping[str, tuple[int, ...]],
    **reduction: Any,
) -> Description:
    """A dense kernel over the rows of ``pixels``; ``reduction`` holds the description's other fields."""
    from .frame import Description, Operand

    layouts = pixels.layouts
    return Description(
        layer=layer,
        operands=tuple(Operand(name, shapes[name]) for name in names),
        rows=pixels.rows,
        unit_rows=pixels.unit_rows,
        channels=layer.out_channels,
        output_row=lambda row: pixels.output_pixel(layouts.output, row),
        residual_row=lambda row: pixels.output_pixel(layouts.residual, row),
        output_tile=layouts.output.first_tile,
        residual_tile=layouts.residual.first_tile,
        output_width=layouts.output.tile_width,
        is_stored=pixels.is_stored,
        **reduction,
    )


def every(conditions: Iterable[Any]) -> Any:
    """The conjunction of conditions, of which None is one that always holds; None if there are no others."""
    from tvm.script.ir_builder import tirx as T

    given = [condition for condition in conditions if condition is not None]
    return reduce(T.And, given) if given else None
