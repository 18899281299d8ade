"""This layer multiplies the matrices of two activations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from .base import Base, Size
from .registry import register

Steps = tuple[int, int, int, int]
"""How far it is from one item, head, row of a matrix and column of a matrix to the next."""


@dataclass(frozen=True)
class Matrices:
    """Where the matrices of a product are in a tensor of rows: one for each head of each item of a batch.

    Attributes
    ----------
    size
        Rows and channels of the tensor.
    first
        The row and the channel of the first element.
    row_steps, channel_steps
        Rows and channels of the tensor from one item, head, matrix row and matrix column to the next; 0: all are alike.
    """

    size: Size
    first: tuple[int, int]
    row_steps: Steps
    channel_steps: Steps

    def __post_init__(self) -> None:
        for name in ("size", "first", "row_steps", "channel_steps"):
            object.__setattr__(self, name, tuple(getattr(self, name)))

    def row(self, item: Any, head: Any, i: Any, j: Any) -> Any:
        """Compute the tensor's row of an element of a matrix."""
        return self.first[0] + sum(step * at for step, at in zip(self.row_steps, (item, head, i, j), strict=True))

    def channel(self, item: Any, head: Any, i: Any, j: Any) -> Any:
        """Compute the tensor's channel of an element of a matrix."""
        return self.first[1] + sum(step * at for step, at in zip(self.channel_steps, (item, head, i, j), strict=True))

    def of(self, rows: np.ndarray, *extents: int) -> np.ndarray:
        """View a tensor's rows as the matrices themselves, ``[item, head, i, j]`` of these extents."""
        at = np.indices(extents)
        elements: np.ndarray = rows[self.row(*at), self.channel(*at)]
        return elements


@register
@dataclass(frozen=True)
class MatMul(Base):
    """``left · right · scale`` of each head of each item of a batch: ``[m, k] × [k, n]``, then ``epilogue``.

    Attributes
    ----------
    heads_in_rows
        Whether the results of the heads are rows of their own, ``[batch, heads, m]`` of ``n`` channels, or stand side
        by side in rows ``[batch, m]``.
    """

    batch: int
    heads: int
    m: int
    k: int
    n: int
    left: Matrices
    right: Matrices
    scale: float = 1.0
    heads_in_rows: bool = True
    epilogue: tuple[str, ...] = ()
    op: ClassVar[str] = "matmul"
    kernels: ClassVar[str] = "tvm_coexec.schedules.matmul"
    mixes_rows: ClassVar[bool] = True
    axis: ClassVar[str] = "channels"
    channel_local: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in ("left", "right"):
            operand = getattr(self, name)
            object.__setattr__(self, name, Matrices(**operand) if isinstance(operand, Mapping) else operand)
        if min(self.batch, self.heads, self.m, self.k, self.n) < 1:
            raise ValueError(f"sizes of products must be at least 1, got {self}")
        super().__post_init__()
        for operand, rows, columns in ((self.left, self.m, self.k), (self.right, self.k, self.n)):
            last = (self.batch - 1, self.heads - 1, rows - 1, columns - 1)
            if not (operand.row(*last) < operand.size[0] and operand.channel(*last) < operand.size[1]):
                raise ValueError(f"the matrices of {operand} do not lie within their tensor")

    @property
    def rows(self) -> int:
        """Rows of the result."""
        return self.batch * self.m * (self.heads if self.heads_in_rows else 1)

    @property
    def input_sizes(self) -> tuple[Size, ...]:
        return (self.left.size, self.right.size)

    @property
    def output_size(self) -> Size:
        return (self.rows, self.out_channels)

    @property
    def out_channels(self) -> int:
        return self.n if self.heads_in_rows else self.heads * self.n

    @property
    def flops(self) -> int:
        return 2 * self.batch * self.heads * self.m * self.k * self.n

    @property
    def activation_bytes(self) -> int:
        operands = self.batch * self.heads * self.k * (self.m + self.n)
        return self.item_bytes * (operands + self.rows * self.out_channels * (2 if "residual" in self.epilogue else 1))

    def facts(self) -> dict[str, float]:
        shared = self.item_bytes * self.batch * self.heads * self.m * self.k
        return super().facts() | {"reduction": self.k, "shared_bytes": shared, "group_channels": self.n, "inputs": 2}

    def evaluate(self, operands: Mapping[str, np.ndarray], pixels: np.ndarray | None = None) -> np.ndarray:
        left = self.left.of(operands["input"].astype(np.float64), self.batch, self.heads, self.m, self.k)
        right = self.right.of(operands["input1"].astype(np.float64), self.batch, self.heads, self.k, self.n)
        product = left @ right * self.scale
        return (product if self.heads_in_rows else product.transpose(0, 2, 1, 3)).reshape(self.output_size)
