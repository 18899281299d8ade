"""Two layers of transformers mix rows: attention, and the one that places rows among others."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from .base import Base, Size
from .registry import register
from .types import tile_channels


@register
@dataclass(frozen=True)
class Attention(Base):
    """``softmax(q · kᵀ · scale + mask) · v`` of each head of each item of a batch.

    q, k and v are columns of tensors of rows, often of one and the same: head ``h`` of operand ``i`` has the columns
    from ``offsets[i] + h · head_steps[i]`` on, in a tensor of ``channels[i]``. A unit is the smallest number of heads
    whose results fill whole tiles.

    Attributes
    ----------
    head_dim, value_dim
        Columns of a head of q and k, and of v; as many where ``value_dim`` is left out.
    head_steps
        Columns from one head to the next; where left out, heads stand side by side. 0: all heads read the same ones.
    mask
        ``none``; or summands of the scores, a row of keys each: ``constant`` for a parameter of the layer, ``input``
        for a fourth tensor.
    mask_sizes
        For how many items, heads and queries the mask has a row, each 1 or all; a row for each item where left out.
    empty_is_zero
        Whether a query has zeros of which every score is minus infinity.
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
    mask_sizes: tuple[int, int, int] = (0, 0, 0)
    value_dim: int = 0
    head_steps: tuple[int, int, int] = (-1, -1, -1)
    empty_is_zero: bool = False
    op: ClassVar[str] = "attention"
    kernels: ClassVar[str] = "tvm_coexec.schedules.attention"
    mixes_rows: ClassVar[bool] = True
    axis: ClassVar[str] = "channels"
    channel_local: ClassVar[bool] = False
    epilogue: ClassVar[tuple[str, ...]] = ()

    MASKS: ClassVar[tuple[str, ...]] = ("none", "constant", "input")
    MASK_OPERANDS: ClassVar[dict[str, str]] = {"constant": "mask", "input": "input3"}

    def __post_init__(self) -> None:
        object.__setattr__(self, "value_dim", self.value_dim or self.head_dim)
        sizes = self.mask_sizes if any(self.mask_sizes) else (self.batch, 1, 1)
        object.__setattr__(self, "mask_sizes", tuple(sizes) if self.mask != "none" else (0, 0, 0))
        steps = zip(self.head_steps, self.head_dims, strict=True)
        object.__setattr__(self, "head_steps", tuple(dim if step < 0 else step for step, dim in steps))
        for name in ("channels", "offsets"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        super().__post_init__()
        self._check()

    def _check(self) -> None:
        if min(self.batch, self.heads, self.queries, self.keys, self.head_dim, self.value_dim) < 1:
            raise ValueError(f"sizes of attention must be at least 1, got {self}")
        if self.mask not in self.MASKS:
            raise ValueError(f"unknown mask {self.mask!r}; known: {', '.join(self.MASKS)}")
        full = (self.batch, self.heads, self.queries)
        if self.mask != "none" and any(
            size not in (1, count) for size, count in zip(self.mask_sizes, full, strict=True)
        ):
            raise ValueError(f"a mask of {self.mask_sizes} items, heads and queries does not fit {full}")
        for channels, offset, step, dim in zip(
            self.channels, self.offsets, self.head_steps, self.head_dims, strict=True
        ):
            if not 0 <= offset <= channels - (self.heads - 1) * step - dim:
                raise ValueError(
                    f"{self.heads} heads of {dim} from {offset} on, {step} apart, do not lie within {channels} channels"
                )

    @property
    def head_dims(self) -> tuple[int, int, int]:
        """Columns of a head of queries, of keys and of values."""
        return (self.head_dim, self.head_dim, self.value_dim)

    @property
    def mask_rows(self) -> int:
        """Rows of the mask, items first, then heads, then queries; 0 without one."""
        return math.prod(self.mask_sizes)

    @property
    def masks_queries(self) -> bool:
        """Whether the mask has a row for each query."""
        return self.mask_sizes[2] > 1

    @property
    def input_sizes(self) -> tuple[Size, ...]:
        rows = (self.queries, self.keys, self.keys)
        sizes = tuple((self.batch * n, channels) for n, channels in zip(rows, self.channels, strict=True))
        return (*sizes, (self.mask_rows, self.keys)) if self.mask == "input" else sizes

    @property
    def output_size(self) -> Size:
        return (self.batch * self.queries, self.out_channels)

    @property
    def out_channels(self) -> int:
        return self.heads * self.value_dim

    @property
    def unit_heads(self) -> int:
        """Heads of a unit; the last unit may have fewer."""
        return min(self.heads, tile_channels(self.dtype) // math.gcd(tile_channels(self.dtype), self.value_dim))

    @property
    def unit_channels(self) -> int:
        """Output channels of a unit: a multiple of a tile, unless there is but one unit."""
        return self.unit_heads * self.value_dim

    @property
    def units(self) -> int:
        return -(-self.heads // self.unit_heads)

    @property
    def flops(self) -> int:
        return 2 * self.batch * self.heads * self.queries * self.keys * (self.head_dim + self.value_dim)

    @property
    def weight_bytes(self) -> int:
        return self.item_bytes * self.mask_rows * self.keys if self.mask == "constant" else 0

    @property
    def activation_bytes(self) -> int:
        return self.item_bytes * self.batch * self.heads * (self.queries + self.keys) * (self.head_dim + self.value_dim)

    def mask_row(self, item: Any, head: Any, query: Any) -> Any:
        """The row of the mask that holds for a query."""
        row: Any = 0
        for size, index in zip(self.mask_sizes, (item, head, query), strict=True):
            row = row * size + (index if size > 1 else 0)
        return row

    def own_parameters(self) -> dict[str, tuple[int, ...]]:
        return {"mask": (self.mask_rows, self.keys)} if self.mask == "constant" else {}

    def facts(self) -> dict[str, float]:
        """A head reads its own columns alone."""
        return super().facts() | {
            "reduction": 2 * self.keys,
            "channel_padding": self.units * self.unit_heads / self.heads,
            "group_channels": self.value_dim,
        }

    def evaluate(self, operands: Mapping[str, np.ndarray], pixels: np.ndarray | None = None) -> np.ndarray:
        q, k, v = (self._heads_of(operands[name], index) for index, name in enumerate(("input", "input1", "input2")))
        scores = q @ k.transpose(0, 1, 3, 2) * self.scale
        mask = operands.get("mask", operands.get("input3"))
        if mask is not None:
            scores = scores + mask.astype(np.float64).reshape(*self.mask_sizes, self.keys)
        highest = scores.max(axis=-1, keepdims=True)
        power = np.exp(scores - (np.where(np.isneginf(highest), 0.0, highest) if self.empty_is_zero else highest))
        total = power.sum(axis=-1, keepdims=True)
        result = (power / (np.where(total == 0, 1.0, total) if self.empty_is_zero else total)) @ v
        return result.transpose(0, 2, 1, 3).reshape(-1, self.out_channels)

    def _heads_of(self, rows: np.ndarray, index: int) -> np.ndarray:
        """View one of the three operands as ``[batch, heads, rows, columns of a head]``."""
        starts = self.offsets[index] + self.head_steps[index] * np.arange(self.heads)
        columns = starts[:, None] + np.arange(self.head_dims[index])
        return rows[:, columns].astype(np.float64).reshape(self.batch, -1, *columns.shape).transpose(0, 2, 1, 3)


@register
@dataclass(frozen=True)
class PlaceRows(Base):
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
    kernels: ClassVar[str] = "tvm_coexec.schedules.place_rows"
    mixes_rows: ClassVar[bool] = True
    axis: ClassVar[str] = "channels"
    channel_local: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if min(self.batch, self.in_rows, self.out_rows, self.channels) < 1:
            raise ValueError(f"sizes of placed rows must be at least 1, got {self}")
        if not -self.in_rows < self.shift < self.out_rows:
            raise ValueError(f"no row of {self} stays")
        super().__post_init__()

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
    def flops(self) -> int:
        return self.batch * self.out_rows * self.channels

    @property
    def weight_bytes(self) -> int:
        return self.item_bytes * self.out_rows * self.channels if self.has_summand else 0

    @property
    def activation_bytes(self) -> int:
        results = self.out_rows * (2 if "residual" in self.epilogue else 1)
        return self.item_bytes * self.batch * self.channels * (min(self.in_rows, self.out_rows) + results)

    def own_parameters(self) -> dict[str, tuple[int, ...]]:
        return {"summand": (self.out_rows, self.channels)} if self.has_summand else {}

    def evaluate(self, operands: Mapping[str, np.ndarray], pixels: np.ndarray | None = None) -> np.ndarray:
        rows = operands["input"].astype(np.float64).reshape(self.batch, self.in_rows, self.channels)
        result = np.zeros((self.batch, self.out_rows, self.channels))
        first, last = max(self.shift, 0), min(self.in_rows + self.shift, self.out_rows)
        result[:, first:last] = rows[:, first - self.shift : last - self.shift]
        if self.has_summand:
            result = result + operands["summand"].astype(np.float64)
        return result.reshape(-1, self.channels)
