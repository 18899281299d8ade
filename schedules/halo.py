"""Zeros around an image: whoever writes one that shares memory with other tensors clears its halo as well."""

from __future__ import annotations

from dataclasses import dataclass

from tvm_coexec.layers import ImageLayout, tile_count

from .dispatch import Dispatch

GROUP_LINES = 8
"""Lines of memory that a work-group looks after, where units are channels: a group costs as much as some stores."""


@dataclass(frozen=True)
class Halo:
    """The halo of an image, and how the layer that writes the image is divided.

    Parameters
    ----------
    image
        Batch, lines, columns and channels.
    units, axis
        The layer's: each unit clears what lies beside its own channels or lines; the first of lines also what lies
        above, the last what lies below. A layer of a single unit clears all, whatever the unit is called.
    """

    image: tuple[int, int, int, int]
    layout: ImageLayout
    units: int
    axis: str

    @property
    def width(self) -> int:
        """Pixels from one line to the next in memory."""
        return self.layout.extents(*self.image[1:3])[1]

    @property
    def height(self) -> int:
        """Lines of an image in memory."""
        return self.layout.extents(*self.image[1:3])[0]

    @property
    def buffer_shape(self) -> tuple[int, int, int]:
        """Pixels in memory, tiles of a pixel, channels of a tile."""
        return self.image[0] * self.height * self.width, self.layout.tiles(self.image[3]), self.layout.tile_width

    @property
    def unit_tiles(self) -> int:
        """Tiles of a unit of channels."""
        return -(-tile_count(self.image[3]) // self.units)

    @property
    def dispatch(self) -> Dispatch:
        lines = 1 if self.axis == "lines" else self.image[0] * self.height
        return Dispatch((-(-lines // GROUP_LINES), 1), (1, 1), unit_axis=1, padded_rows=0)
