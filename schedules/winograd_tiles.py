"""The tiles of m×m output pixels that Winograd's convolution computes: where they lie, and what they read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tvm_coexec.layers import Conv2d, ImageLayout, ImageLayouts, line_block

from .pixels import check_layouts, every


def weights_name(m: int) -> str:
    """Name of the operand that holds the weights of F(m×m, 3×3)."""
    return f"winograd{m}_weights"


@dataclass(frozen=True)
class WinogradTiles:
    """The tiles of a layer's output, which are counted line by line through all images."""

    layer: Conv2d
    layouts: ImageLayouts
    m: int

    def __post_init__(self) -> None:
        check_layouts(self.layer, self.layouts)

    @property
    def points(self) -> int:
        """Factors of a line: a tile reads ``points × points`` pixels."""
        return self.m + 2

    @property
    def unit_lines(self) -> int | None:
        """Lines of tiles in a unit; None where units are tiles of channels."""
        return None if self.layer.axis == "channels" else line_block(self.layer.out_h) // self.m

    @property
    def unit_count(self) -> int | None:
        """Tiles in a unit; None where units are tiles of channels."""
        return None if self.unit_lines is None else self.unit_lines * self.columns

    @property
    def lines(self) -> int:
        """Lines of tiles; where units are lines, a whole number of units."""
        return -(-self.layer.out_h // self.m) if self.unit_lines is None else self.layer.units * self.unit_lines

    @property
    def columns(self) -> int:
        return -(-self.layer.out_w // self.m)

    @property
    def count(self) -> int:
        return self.layer.batch * self.lines * self.columns

    @property
    def at_once(self) -> int:
        """Tiles that a half of an even split computes: all of its channels, or those of its lines."""
        return self.count if self.unit_count is None else -(-self.count // 2)

    def _corner(self, tile: Any) -> tuple[Any, Any, Any]:
        """Locate a tile's first output pixel: its image, line and column."""
        line, column = tile // self.columns, tile % self.columns
        if self.layer.batch == 1:
            return 0, line * self.m, column * self.m
        return line // self.lines, line % self.lines * self.m, column * self.m

    def input_pixel(self, tile: Any, i: int, j: int) -> tuple[Any, Any]:
        """A pixel in memory that a tile reads, and whether it exists; None if it does for every tile.

        A tile that is cut off by the image's edge reads pixels behind the halo, which must count as zero: only in
        exact arithmetic do they leave the other outputs alone.
        """
        layer, halo = self.layer, self.layouts.input.halo
        height, width = self.layouts.input.extents(layer.h, layer.w)
        image, line, column = self._corner(tile)
        line = line + i + halo[0] - layer.padding[0]
        column = column + j + halo[1] - layer.padding[1]
        conditions = []
        if (self.lines - 1) * self.m + i + halo[0] - layer.padding[0] >= height:
            conditions.append(line < height)
        if (self.columns - 1) * self.m + j + halo[1] - layer.padding[1] >= width:
            conditions.append(column < width)
        return (image * height + line) * width + column, every(conditions)

    def output_pixel(self, layout: ImageLayout, tile: Any, i: int, j: int) -> Any:
        """The pixel in memory where an output of a tile lies."""
        halo_h, halo_w = layout.halo
        height, width = layout.extents(self.layer.out_h, self.layer.out_w)
        image, line, column = self._corner(tile)
        return (image * height + line + i + halo_h) * width + column + j + halo_w

    def is_stored(self, tile: Any, i: int, j: int) -> Any:
        """Whether an output of a tile is a pixel of the image; None if it is for every tile."""
        _image, line, column = self._corner(tile)
        conditions = []
        if (self.lines - 1) * self.m + i >= self.layer.out_h:
            conditions.append(line + i < self.layer.out_h)
        if (self.columns - 1) * self.m + j >= self.layer.out_w:
            conditions.append(column + j < self.layer.out_w)
        return every(conditions)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Give the shapes of the images: the input as plain elements, the output as pixels of whole tiles."""
        layer, layouts = self.layer, self.layouts

        def pixels(layout: ImageLayout, h: int, w: int) -> int:
            return layer.batch * math.prod(layout.extents(h, w))

        def tiles(layout: ImageLayout) -> tuple[int, int, int]:
            return pixels(layout, layer.out_h, layer.out_w), layout.tiles(layer.out_channels), layout.tile_width

        return {
            "input": (pixels(layouts.input, layer.h, layer.w) * layouts.input.pixel(layer.in_channels),),
            "residual": tiles(layouts.residual),
            "output": tiles(layouts.output),
        }
