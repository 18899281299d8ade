"""What all layers share: how their work is divided, and the steps that may follow their result."""

from __future__ import annotations

from typing import ClassVar, Protocol

TILE = 32
"""Output channels in a tile: 128 bytes of float32, so that two processors never write one cache line."""

ROW_BLOCK = 8
"""Rows in a unit of a row-wise operator."""

_MIN_LINES = 14
"""Lines of an image that is worth dividing by them: of fewer, a unit is too large a part."""

SCRATCH = "scratch_"
"""How the names of operands begin that only pass something on from one kernel of a half to its next."""


def tile_count(channels: int) -> int:
    """Tiles that hold ``channels`` output channels."""
    return -(-channels // TILE)


def line_block(lines: int) -> int:
    """Lines in a unit of an image with so many: 1, 2 or 4, so that a unit is a small part of the image."""
    return next(block for block in (4, 2, 1) if lines >= block * _MIN_LINES or block == 1)


def row_tiles(channels: int) -> int:
    """Tiles from one row of an activation to the next, in memory.

    Rows whose distance is a multiple of 2 KiB fall into few cache sets, so such rows get one tile of padding.
    """
    tiles = tile_count(channels)
    return tiles + 1 if tiles % 16 == 0 else tiles


Size = tuple[int, ...]
"""The size of a tensor as a layer sees it: rows and channels, or of an image batch, height, width and channels."""


class Layer(Protocol):
    """What planning and measuring need to know of any layer."""

    op: ClassVar[str]

    @property
    def axis(self) -> str:
        """Whether units are tiles of ``channels``, blocks of ``rows`` or, of an image, blocks of ``lines``."""

    @property
    def epilogue(self) -> tuple[str, ...]:
        """Steps applied to the result, in order."""

    @property
    def input_sizes(self) -> tuple[Size, ...]:
        """Sizes of the tensor ``input``, then of each of ``others``; a residual is as large as the output."""

    @property
    def output_size(self) -> Size:
        """The size of the result."""

    @property
    def out_channels(self) -> int:
        """Channels of the result."""

    @property
    def channel_local(self) -> bool:
        """Whether a tile of output channels needs no more of its activations than the same tile of channels."""

    @property
    def units(self) -> int:
        """Parts that a split counts in."""

    @property
    def flops(self) -> int:
        """Floating-point operations of the whole layer, epilogue left out."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of constant operands that one run reads."""

    @property
    def activation_bytes(self) -> int:
        """Bytes of activations that one run reads and writes."""


class _Divisible(Protocol):
    """An image layer that may be divided along its channels or its lines."""

    @property
    def axis(self) -> str: ...
    @property
    def batch(self) -> int: ...
    @property
    def out_h(self) -> int: ...
    @property
    def out_channels(self) -> int: ...


def units_along(layer: _Divisible) -> int:
    """Units of an image layer along its axis."""
    if layer.axis == "channels":
        return tile_count(layer.out_channels)
    return -(-layer.out_h // line_block(layer.out_h))


def check_axis(layer: _Divisible) -> None:
    """Refuse an axis that the layer has no units along."""
    if layer.axis not in ("channels", "lines"):
        raise ValueError(f"the axis of an image layer is channels or lines, not {layer.axis!r}")
    if layer.axis == "lines" and not has_lines(layer):
        raise ValueError(
            f"only a single image of {_MIN_LINES} lines or more is divided by lines, got {layer.batch} of {layer.out_h}"
        )


def has_lines(layer: _Divisible) -> bool:
    """Whether the output is one image of enough lines to divide it by them."""
    return layer.batch == 1 and layer.out_h >= _MIN_LINES


def unit_channels(layer: Layer) -> int:
    """Output channels of a unit, where units are parts of the channels: a tile, unless the layer says otherwise."""
    return int(getattr(layer, "unit_channels", TILE))
