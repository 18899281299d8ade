"""How images lie in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .base import TILE, Layer, row_tiles
from .dense import Conv2d

MAX_NARROW = 4
"""Channels up to which an image that no kernel writes, a network's input, is kept without padding channels."""


@dataclass(frozen=True)
class ImageLayout:
    """How an image lies in memory: ``[batch, h + 2·halo, w + 2·halo, pixel]``.

    The halo, of so many pixels above and below, left and right, holds zeros, which a convolution reads as its padding;
    a layer's own kernels leave it alone. A pixel holds ``row_tiles`` tiles, or in a ``narrow`` image its channels
    alone. An image that is a slice of a larger one shares its pixels: it has some of their ``parent_tiles``, from
    ``first_tile`` on.
    """

    halo: tuple[int, int] = (0, 0)
    narrow: bool = False
    parent_tiles: int | None = None
    first_tile: int = 0

    @property
    def is_slice(self) -> bool:
        return self.parent_tiles is not None

    def extents(self, h: int, w: int) -> tuple[int, int]:
        """Count lines in memory of an image of ``h`` lines and ``w`` columns, and pixels from one line to the next."""
        return h + 2 * self.halo[0], w + 2 * self.halo[1]

    def pixel_at(self, h: int, w: int, image: Any, line: Any, column: Any) -> Any:
        """Where in memory a pixel of such an image lies, those of the halo counted."""
        height, width = self.extents(h, w)
        return (image * height + line + self.halo[0]) * width + column + self.halo[1]

    def tiles(self, channels: int) -> int:
        """Tiles from one pixel to the next, where pixels have whole ones."""
        return row_tiles(channels) if self.parent_tiles is None else self.parent_tiles

    def pixel(self, channels: int) -> int:
        """Elements from one pixel to the next."""
        return channels if self.narrow else self.tiles(channels) * TILE

    def element(self, pixel: Any, channel: Any, channels: int) -> Any:
        """Where in memory one of an image's channels lies; ``pixel`` counts those of the halo too."""
        return pixel * self.pixel(channels) + (self.first_tile * TILE + channel)


@dataclass(frozen=True)
class ImageLayouts:
    """The layouts of the images that a layer reads and writes; ``others`` has those of its second and further inputs.

    Where a tensor is no image, its rows are the lines of one image without halo, a pixel wide.
    """

    input: ImageLayout = ImageLayout()
    output: ImageLayout = ImageLayout()
    residual: ImageLayout = ImageLayout()
    others: tuple[ImageLayout, ...] = ()

    @classmethod
    def alone(cls, layer: Layer) -> ImageLayouts:
        """Those of a layer that is measured by itself.

        What follows a pointwise layer often reads a halo. Some of its variants take much longer where they write one,
        so that it is measured with one too.
        """
        if not isinstance(layer, Conv2d):
            return cls(others=(ImageLayout(),) * (len(layer.input_sizes) - 1))
        top, left, bottom, right = layer.padding
        around = ImageLayout((max(top, bottom), max(left, right)), layer.in_channels <= MAX_NARROW)
        return cls(around, ImageLayout((1, 1)) if layer.kernel == (1, 1) else ImageLayout())

    @property
    def inputs(self) -> tuple[ImageLayout, ...]:
        """Layouts of all inputs but the residual, in order."""
        return (self.input, *self.others)
