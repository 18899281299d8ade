"""This layer makes images larger or smaller by linear interpolation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .base import Base, Size, some_rows
from .registry import register


@register
@dataclass(frozen=True)
class Resize(Base):
    """An image of other lines and columns, followed by ``epilogue``.

    Output line ``y`` lies at ``y · scale[0] + shift[0]`` among those of the input, and is interpolated between the
    two lines beside it; columns likewise. What lies beside the image is its edge.
    """

    input: Size
    out_h: int
    out_w: int
    scale: tuple[float, float]
    shift: tuple[float, float] = (0.0, 0.0)
    epilogue: tuple[str, ...] = ()
    op: ClassVar[str] = "resize"
    kernels: ClassVar[str] = "tvm_coexec.schedules.images"
    axis: ClassVar[str] = "channels"
    channel_local: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("input", "scale", "shift"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if min(*self.input, self.out_h, self.out_w) < 1:
            raise ValueError(f"sizes of a resized image must be at least 1, got {self}")
        super().__post_init__()

    @property
    def input_sizes(self) -> tuple[Size, ...]:
        return (self.input,)

    @property
    def output_size(self) -> Size:
        return (self.input[0], self.out_h, self.out_w, self.input[3])

    @property
    def out_channels(self) -> int:
        return self.input[3]

    @property
    def flops(self) -> int:
        return 8 * math.prod(self.output_size)

    @property
    def activation_bytes(self) -> int:
        outputs = math.prod(self.output_size) * (2 if "residual" in self.epilogue else 1)
        return self.item_bytes * (math.prod(self.input) + outputs)

    def facts(self) -> dict[str, float]:
        return super().facts() | {"reduction": 4, "output_width": self.out_w, "inputs": 1}

    def evaluate(self, operands: Mapping[str, np.ndarray], pixels: np.ndarray | None = None) -> np.ndarray:
        """Interpolate lines, then columns, between those of the input."""
        x = operands["input"].astype(np.float64)
        for axis, count in enumerate((self.out_h, self.out_w)):
            last = self.input[1 + axis] - 1
            position = np.clip(np.arange(count) * self.scale[axis] + self.shift[axis], 0, last)
            below = np.floor(position).astype(int)
            share = np.expand_dims(position - below, (0, 2, 3) if axis == 0 else (0, 1, 3))
            x = x.take(below, 1 + axis) * (1 - share) + x.take(np.minimum(below + 1, last), 1 + axis) * share
        return some_rows(x, pixels)
