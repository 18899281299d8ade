"""How images lie in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .base import TILE, Layer, Size, may_have_lines, row_tiles
from .dense import Conv2d
from .images import Elementwise, Pool
from .rearrange import Rearrange
from .resize import Resize

MAX_NARROW = 4
"""Channels up to which an image that no kernel writes, a network's input, is kept without padding channels."""

WIDTHS = (8, 16)
"""Channels of a pixel that kernels write, where they are fewer than a tile's: whole vectors of most processors."""


@dataclass(frozen=True)
class ImageLayout:
    """How an image lies in memory: ``[batch, h + 2·halo, w + 2·halo, pixel]``.

    The halo, of so many pixels above and below, left and right, holds zeros, which a convolution reads as its padding;
    a layer's own kernels leave it alone. A pixel holds ``row_tiles`` tiles or, in a narrow image, a part of one, as
    many elements as its ``width``. An image that is a slice of a larger one shares its pixels: it has some of their
    ``parent_tiles``, from ``first_tile`` on.
    """

    halo: tuple[int, int] = (0, 0)
    width: int | None = None
    parent_tiles: int | None = None
    first_tile: int = 0

    @classmethod
    def fitting(cls, image: Size, halo: tuple[int, int] = (0, 0)) -> ImageLayout:
        """The layout of an image that no layer reads as rows or as a part of another, with such a halo or a wider one.

        One of few channels is narrow. Where it may be divided by lines, these are whole tiles in memory, so that two
        processors never write one cache line; if no halo makes them that, the image is not narrow.
        """
        batch, h, w, channels = image
        width = next((width for width in WIDTHS if channels <= width), None)
        if width is None or not may_have_lines(batch, h):
            return cls(halo, width)
        beside = range(halo[1], halo[1] + TILE // width)
        whole = [columns for columns in beside if (w + 2 * columns) * width % TILE == 0]
        return cls((halo[0], whole[0]), width) if whole else cls(halo)

    @property
    def tile_width(self) -> int:
        """Channels of a tile that a pixel holds."""
        return TILE if self.width is None else self.width

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
        return self.tiles(channels) * TILE if self.width is None else self.width

    def element(self, pixel: Any, channel: Any, channels: int) -> Any:
        """Where in memory one of an image's channels lies; ``pixel`` counts those of the halo too."""
        return pixel * self.pixel(channels) + (self.first_tile * TILE + channel)


NARROW_LAYERS = (Conv2d, Elementwise, Pool, Rearrange, Resize)
"""Layers that read and write narrow images."""


def wanted_halo(layer: Layer) -> tuple[int, int]:
    """The halo that a layer wants around its first input."""
    if not isinstance(layer, Conv2d):
        return (0, 0)
    top, left, bottom, right = layer.padding
    return (max(top, bottom), max(left, right))


def reads_tiles(layer: Layer, position: int = 0) -> bool:
    """Whether a layer reads as many channels of an input's pixels as it writes: of a narrow one for a narrow output.

    So every layer reads a residual. Other convolutions than depthwise ones read the channels that there are, what
    rearranges an image reads elements in any place, and what has a single channel for all is read there.
    """
    if isinstance(layer, Rearrange):
        return False
    if not isinstance(layer, Conv2d):
        return layer.input_sizes[position][-1] == layer.out_channels
    return layer.groups == layer.in_channels == layer.out_channels and layer.in_channels > MAX_NARROW


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
        others = (ImageLayout(),) * (len(layer.input_sizes) - 1)
        if not isinstance(layer, NARROW_LAYERS):
            return cls(others=others)
        is_pointwise = isinstance(layer, Conv2d) and layer.kernel == (1, 1)
        output = ImageLayout.fitting(layer.output_size, (1, 1) if is_pointwise else (0, 0))
        residual = ImageLayout() if output.width is None else ImageLayout.fitting(layer.output_size)
        halo = wanted_halo(layer)
        inputs = [
            ImageLayout(halo)
            if output.width is None and reads_tiles(layer, position)
            else ImageLayout.fitting(size, halo)
            for position, size in enumerate(layer.input_sizes)
        ]
        if isinstance(layer, Conv2d) and layer.in_channels <= MAX_NARROW:
            inputs = [ImageLayout(halo, layer.in_channels)]
        return cls(inputs[0], output, residual, tuple(inputs[1:]))

    @property
    def inputs(self) -> tuple[ImageLayout, ...]:
        """Layouts of all inputs but the residual, in order."""
        return (self.input, *self.others)
