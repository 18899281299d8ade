"""Operators whose rows do not depend on each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .base import ROW_BLOCK, Base, Size
from .registry import register


@register
@dataclass(frozen=True)
class RowWise(Base):
    """An operator whose rows do not depend on each other: ``[m, n] → [m, n]``, then ``epilogue``.

    ``kind`` is ``layer_norm``, ``softmax`` or ``map`` (the epilogue alone).
    """

    kind: str
    m: int
    n: int
    epilogue: tuple[str, ...] = ()
    epsilon: float = 0.0
    op: ClassVar[str] = "rowwise"
    kernels: ClassVar[str] = "tvm_coexec.schedules.rowwise"
    axis: ClassVar[str] = "rows"
    channel_local: ClassVar[bool] = False

    KINDS: ClassVar[tuple[str, ...]] = ("layer_norm", "softmax", "map")

    def __post_init__(self) -> None:
        if self.kind not in self.KINDS:
            raise ValueError(f"unknown row-wise kind {self.kind!r}; known: {', '.join(self.KINDS)}")
        if min(self.m, self.n) < 1:
            raise ValueError(f"row-wise sizes must be at least 1, got m={self.m}, n={self.n}")
        super().__post_init__()

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
        return 2 * self.item_bytes * self.n if self.kind == "layer_norm" else 0

    @property
    def activation_bytes(self) -> int:
        return self.item_bytes * self.m * self.n * (3 if "residual" in self.epilogue else 2)

    def own_parameters(self) -> dict[str, tuple[int, ...]]:
        return {"gamma": (self.n,), "beta": (self.n,)} if self.kind == "layer_norm" else {}

    def reads_locally(self, role: str) -> bool:
        return True

    @property
    def kind_name(self) -> str:
        return self.kind

    def facts(self) -> dict[str, float]:
        return super().facts() | {"channel_padding": 1.0}

    def evaluate(self, operands: Mapping[str, np.ndarray], pixels: np.ndarray | None = None) -> np.ndarray:
        x = operands["input"].astype(np.float64)
        if self.kind == "layer_norm":
            centred = x - x.mean(axis=-1, keepdims=True)
            normal = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + self.epsilon)
            return normal * operands["gamma"] + operands["beta"]
        if self.kind == "softmax":
            power = np.exp(x - x.max(axis=-1, keepdims=True))
            return power / power.sum(axis=-1, keepdims=True)
        return x
