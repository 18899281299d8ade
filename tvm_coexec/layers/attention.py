"""Layers of transformers that mix rows: attention, and the placing of rows among others."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from .base import TILE, Size, check_epilogue, tile_count


@dataclass(frozen=True)
class Attention:
    """``softmax(q · kᵀ · scale + mask) · v`` of each head of each item of a batch.

    q, k and v are columns of tensors of rows, often of one and the same: head ``h`` of operand ``i`` has the columns
    from ``offsets[i] + h · head_dim`` on, in a tensor of ``channels[i]``. A unit is the smallest number of heads
    whose results fill whole tiles.

    Attributes
    ----------
    mask
        ``none``; or a summand for each key of each item, ``[batch, keys]``: ``constant`` for a parameter of the
        layer, ``input`` for a fourth tensor.
    """

    batch: int
    heads: int
    queries: int
    keys: int
    head_dim: int
    scale: float
    channels: tuple[int, int, int]
    offsets: tuple[int, int, int] = (0, 0, 0)
    mask: str = "none"
    op: ClassVar[str] = "attention"
    axis: ClassVar[str] = "channels"
    channel_local: ClassVar[bool] = False
    epilogue: ClassVar[tuple[str, ...]] = ()

    MASKS: ClassVar[tuple[str, ...]] = ("none", "constant", "input")

    def __post_init__(self) -> None:
        for name in ("channels", "offsets"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if min(self.batch, self.heads, self.queries, self.keys, self.head_dim) < 1:
            raise ValueError(f"sizes of attention must be at least 1, got {self}")
        if self.mask not in self.MASKS:
            raise ValueError(f"unknown mask {self.mask!r}; known: {', '.join(self.MASKS)}")
        for channels, offset in zip(self.channels, self.offsets, strict=True):
            if not 0 <= offset <= channels - self.out_channels:
                raise ValueError(
                    f"{self.heads} heads of {self.head_dim} from {offset} on do not lie within {channels} channels"
                )

    @property
    def input_sizes(self) -> tuple[Size, ...]:
        rows = (self.queries, self.keys, self.keys)
        sizes = tuple((self.batch * n, channels) for n, channels in zip(rows, self.channels, strict=True))
        return (*sizes, (self.batch, self.keys)) if self.mask == "input" else sizes

    @property
    def output_size(self) -> Size:
        return (self.batch * self.queries, self.out_channels)

    @property
    def out_channels(self) -> int:
        return self.heads * self.head_dim

    @property
    def unit_heads(self) -> int:
        """Heads of a unit; the last unit may have fewer."""
        return min(self.heads, TILE // math.gcd(TILE, self.head_dim))

    @property
    def unit_channels(self) -> int:
        """Output channels of a unit: a multiple of a tile, unless there is but one unit."""
        return self.unit_heads * self.head_dim

    @property
    def units(self) -> int:
        return -(-self.heads // self.unit_heads)

    @property
    def flops(self) -> int:
        return 4 * self.batch * self.queries * self.keys * self.out_channels

    @property
    def weight_bytes(self) -> int:
        return 4 * self.batch * self.keys if self.mask == "constant" else 0

    @property
    def activation_bytes(self) -> int:
        return 8 * self.batch * (self.queries + self.keys) * self.out_channels


@dataclass(frozen=True)
class Place:
    """Rows of each item of a batch, cut or moved: row ``i`` becomes row ``i + shift`` of ``out_rows``.

    Rows for which there is none are zero. If ``has_summand``, a constant ``[out_rows, channels]`` is added to each
    item: so a class token and position embeddings are put to the rows of an image's patches.
    """

    batch: int
    in_rows: int
    out_rows: int
    channels: int
    shift: int = 0
    has_summand: bool = False
    epilogue: tuple[str, ...] = ()
    op: ClassVar[str] = "place"
    axis: ClassVar[str] = "channels"
    channel_local: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if min(self.batch, self.in_rows, self.out_rows, self.channels) < 1:
            raise ValueError(f"sizes of placed rows must be at least 1, got {self}")
        if not -self.in_rows < self.shift < self.out_rows:
            raise ValueError(f"no row of {self} stays")
        check_epilogue(self.epilogue)

    @property
    def input_sizes(self) -> tuple[Size, ...]:
        return ((self.batch * self.in_rows, self.channels),)

    @property
    def output_size(self) -> Size:
        return (self.batch * self.out_rows, self.channels)

    @property
    def out_channels(self) -> int:
        return self.channels

    @property
    def units(self) -> int:
        return tile_count(self.channels)

    @property
    def flops(self) -> int:
        return self.batch * self.out_rows * self.channels

    @property
    def weight_bytes(self) -> int:
        return 4 * self.out_rows * self.channels if self.has_summand else 0

    @property
    def activation_bytes(self) -> int:
        results = self.out_rows * (2 if "residual" in self.epilogue else 1)
        return 4 * self.batch * self.channels * (min(self.in_rows, self.out_rows) + results)
