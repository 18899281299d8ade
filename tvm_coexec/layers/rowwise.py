"""Operators whose rows do not depend on each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import ROW_BLOCK, Size
from .steps import check_epilogue


@dataclass(frozen=True)
class RowWise:
    """An operator whose rows do not depend on each other: ``[m, n] → [m, n]``, then ``epilogue``.

    ``kind`` is ``layer_norm``, ``softmax`` or ``map`` (the epilogue alone).
    """

    kind: str
    m: int
    n: int
    epilogue: tuple[str, ...] = ()
    epsilon: float = 0.0
    op: ClassVar[str] = "rowwise"
    axis: ClassVar[str] = "rows"
    channel_local: ClassVar[bool] = False

    KINDS: ClassVar[tuple[str, ...]] = ("layer_norm", "softmax", "map")

    def __post_init__(self) -> None:
        if self.kind not in self.KINDS:
            raise ValueError(f"unknown row-wise kind {self.kind!r}; known: {', '.join(self.KINDS)}")
        if min(self.m, self.n) < 1:
            raise ValueError(f"row-wise sizes must be at least 1, got m={self.m}, n={self.n}")
        check_epilogue(self.epilogue)

    @property
    def input_sizes(self) -> tuple[Size, ...]:
        return ((self.m, self.n),)

    @property
    def output_size(self) -> Size:
        return (self.m, self.n)

    @property
    def out_channels(self) -> int:
        return self.n

    @property
    def units(self) -> int:
        return -(-self.m // ROW_BLOCK)

    @property
    def flops(self) -> int:
        return 8 * self.m * self.n

    @property
    def weight_bytes(self) -> int:
        return 8 * self.n if self.kind == "layer_norm" else 0

    @property
    def activation_bytes(self) -> int:
        return 4 * self.m * self.n * (3 if "residual" in self.epilogue else 2)
