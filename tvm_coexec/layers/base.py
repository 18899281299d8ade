"""What all layers share: how their work is divided, and the steps that may follow their result."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, cast

import numpy as np

from .steps import channel_constants, check_epilogue
from .types import FLOAT32, check_dtype, item_bytes, tile_channels

TILE = tile_channels(FLOAT32)
"""Output channels in a tile of float32, the only type that kernels are made for."""

ROW_BLOCK = 8
"""Rows in a unit of a row-wise operator."""

_MIN_LINES = 14
"""Lines of an image that is worth dividing by them: of fewer, a unit is too large a part."""

KIND_PREFIX = "kind:"
"""How the feature begins that says of which kind a layer is."""

SCRATCH = "scratch_"
"""How the names of operands begin that only pass something on from one kernel of a half to its next."""


def tile_count(channels: int, dtype: str = FLOAT32) -> int:
    """Tiles that hold ``channels`` output channels."""
    return -(-channels // tile_channels(dtype))


def line_block(lines: int) -> int:
    """Lines in a unit of an image with so many: 1, 2 or 4, so that a unit is a small part of the image."""
    return next(block for block in (4, 2, 1) if lines >= block * _MIN_LINES or block == 1)


def row_tiles(channels: int, dtype: str = FLOAT32) -> int:
    """Count the tiles from one row of an activation to the next, in memory.

    Rows whose distance is a multiple of 2 KiB fall into few cache sets, so such rows get one tile of padding.
    """
    tiles = tile_count(channels, dtype)
    return tiles + 1 if tiles % 16 == 0 else tiles


Size = tuple[int, ...]
"""The size of a tensor as a layer sees it: rows and channels, or of an image batch, height, width and channels."""


class Layer(Protocol):
    """What planning and measuring need to know of any layer."""

    op: ClassVar[str]
    kernels: ClassVar[str]
    mixes_rows: ClassVar[bool]

    @property
    def dtype(self) -> str:
        """The type of the activations and of the constants."""

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

    @property
    def input_dtypes(self) -> tuple[str, ...]:
        """Types of the tensors ``input`` and ``others``; a residual has the output's."""

    @property
    def output_dtype(self) -> str:
        """The type of the result."""

    @property
    def unit_channels(self) -> int:
        """Output channels of a unit, where units are parts of the channels."""

    def own_parameters(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the constants that the epilogue does not ask for."""

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all constants, as a model gives them: packed by nobody yet."""

    def parameter_dtype(self, name: str) -> str:
        """Give the type of one of the constants."""

    def reads_locally(self, role: str) -> bool:
        """Whether a unit needs only the same unit of the activation with a role, where that is divided as this is."""

    @property
    def kind_name(self) -> str:
        """What the predictors know such layers by: all of one ``op``, or those that are computed alike."""

    def facts(self) -> dict[str, float]:
        """Say what predictors see of the layer besides its operations and bytes: its sizes and its kind.

        A family adds features of its own under names that begin with its ``op`` and a colon.
        """

    def evaluate(self, operands: Mapping[str, np.ndarray], pixels: np.ndarray | None = None) -> np.ndarray:
        """Compute rows of the result in float64, the epilogue left out."""


@dataclass(frozen=True)
class Base:
    """What a layer is unless its class says otherwise: of float32, divided by tiles of channels, without constants.

    A class of layers derives from it, gives what :class:`Layer` asks for besides that, and is made known by
    :func:`tvm_coexec.layers.register`.

    Attributes
    ----------
    kernels
        The module that knows how to compute such layers: see :mod:`tvm_coexec.schedules`.
    mixes_rows
        Whether a row of the result needs other rows of the operands.
    """

    dtype: str = field(default=FLOAT32, kw_only=True)
    kernels: ClassVar[str]
    mixes_rows: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_dtype(self.dtype)
        check_epilogue(cast(Layer, self).epilogue)

    @property
    def item_bytes(self) -> int:
        """Bytes of an element."""
        return item_bytes(self.dtype)

    @property
    def input_dtypes(self: Layer) -> tuple[str, ...]:
        return (self.dtype,) * len(self.input_sizes)

    @property
    def output_dtype(self: Layer) -> str:
        return self.dtype

    @property
    def unit_channels(self) -> int:
        return tile_channels(self.dtype)

    @property
    def units(self: Layer) -> int:
        return tile_count(self.out_channels, self.dtype)

    @property
    def weight_bytes(self) -> int:
        return 0

    def own_parameters(self) -> dict[str, tuple[int, ...]]:
        return {}

    def parameter_shapes(self: Layer) -> dict[str, tuple[int, ...]]:
        return self.own_parameters() | dict.fromkeys(channel_constants(self.epilogue), (self.out_channels,))

    def parameter_dtype(self: Layer, name: str) -> str:
        return self.dtype

    def reads_locally(self: Layer, role: str) -> bool:
        return role == "residual" or self.channel_local

    @property
    def kind_name(self: Layer) -> str:
        return self.op

    def facts(self: Layer) -> dict[str, float]:
        tiles = tile_count(self.out_channels, self.dtype)
        return {
            "rows": math.prod(self.output_size[:-1]),
            "reduction": 1,
            "channels": self.out_channels,
            "channel_padding": tiles * tile_channels(self.dtype) / self.out_channels,
            "shared_bytes": 0,
            f"{KIND_PREFIX}{self.kind_name}": 1.0,
        }


class _Divisible(Protocol):
    """An image layer that may be divided along its channels or its lines."""

    @property
    def axis(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def batch(self) -> int: ...
    @property
    def out_h(self) -> int: ...
    @property
    def out_channels(self) -> int: ...


def units_along(layer: _Divisible) -> int:
    """Count the units of an image layer along its axis."""
    if layer.axis == "channels":
        return tile_count(layer.out_channels, layer.dtype)
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
    return may_have_lines(layer.batch, layer.out_h)


def may_have_lines(batch: int, lines: int) -> bool:
    """Whether some layer divides so many images of so many lines by them."""
    return batch == 1 and lines >= _MIN_LINES


def pixel_indices(layer: Layer, pixels: np.ndarray | None) -> tuple[np.ndarray, ...]:
    """Give the image, line and column of pixels of an image layer's output, or of all of them."""
    sizes = layer.output_size[:-1]
    return np.unravel_index(np.arange(math.prod(sizes)) if pixels is None else pixels, sizes)


def some_rows(image: np.ndarray, pixels: np.ndarray | None) -> np.ndarray:
    """Give the channels of an image's pixels, or of some of them."""
    rows = image.reshape(-1, image.shape[-1])
    return rows if pixels is None else rows[pixels]
