"""Dense layers, which are worth splitting: linear layers and convolutions.

A unit is a tile of 32 output channels or, of a convolution whose ``axis`` says so, a block of lines of its output.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from .base import Base, Size, check_axis, pixel_indices
from .registry import register
from .windows import Windowed


@register
@dataclass(frozen=True)
class Linear(Base):
    """``[m, k] × [k, n]`` followed by the steps of ``epilogue``, in order."""

    m: int
    k: int
    n: int
    epilogue: tuple[str, ...] = ()
    op: ClassVar[str] = "linear"
    kernels: ClassVar[str] = "tvm_coexec.schedules.linear"
    axis: ClassVar[str] = "channels"
    channel_local: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if min(self.m, self.k, self.n) < 1:
            raise ValueError(f"linear sizes must be at least 1, got m={self.m}, k={self.k}, n={self.n}")
        super().__post_init__()

    @property
    def input_sizes(self) -> tuple[Size, ...]:
        return ((self.m, self.k),)

    @property
    def output_size(self) -> Size:
        return (self.m, self.n)

    @property
    def out_channels(self) -> int:
        return self.n

    @property
    def flops(self) -> int:
        return 2 * self.m * self.k * self.n

    @property
    def weight_bytes(self) -> int:
        return self.item_bytes * self.k * self.n

    @property
    def activation_bytes(self) -> int:
        return self.item_bytes * self.m * (self.k + self.n * (2 if "residual" in self.epilogue else 1))

    def own_parameters(self) -> dict[str, tuple[int, ...]]:
        return {"weights": (self.k, self.n)}

    def facts(self) -> dict[str, float]:
        shared = self.item_bytes * self.m * self.k
        return super().facts() | {"reduction": self.k, "shared_bytes": shared}

    def evaluate(self, operands: Mapping[str, np.ndarray], pixels: np.ndarray | None = None) -> np.ndarray:
        return operands["input"].astype(np.float64) @ operands["weights"].astype(np.float64)


@register
@dataclass(frozen=True)
class Conv2d(Windowed):
    """A convolution of ``[batch, h, w, in_channels]``, followed by the steps of ``epilogue``, in order.

    ``kernel``, ``stride``, ``dilation`` and ``padding`` may be given as one number or as a pair (height, width), the
    padding also as (top, left, bottom, right); they are kept as pairs, the padding as four numbers. Along its
    ``channels`` a layer's weights are divided and its input is read twice; along its ``lines`` it is the other way.
    """

    h: int
    w: int
    in_channels: int
    out_channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    batch: int = 1
    epilogue: tuple[str, ...] = ()
    axis: str = "channels"
    op: ClassVar[str] = "conv2d"
    kernels: ClassVar[str] = "tvm_coexec.schedules.conv2d"

    def __post_init__(self) -> None:
        for name, length in (("kernel", 2), ("stride", 2), ("dilation", 2), ("padding", 4)):
            object.__setattr__(self, name, _extents(name, getattr(self, name), length))
        sizes = (self.h, self.w, self.in_channels, self.out_channels, self.groups, self.batch)
        if min(*sizes, *self.kernel, *self.stride, *self.dilation) < 1 or min(self.padding) < 0:
            raise ValueError(f"convolution sizes must be at least 1 and paddings at least 0, got {self}")
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise ValueError(
                f"{self.groups} groups do not divide {self.in_channels} input and {self.out_channels} output channels"
            )
        if min(self.out_h, self.out_w) < 1:
            raise ValueError(f"a {self.kernel} kernel does not fit into {self.h}×{self.w} pixels with {self.padding}")
        super().__post_init__()
        check_axis(self)

    @property
    def taps(self) -> int:
        """Products that are added up for one output element."""
        return self.kernel[0] * self.kernel[1] * (self.in_channels // self.groups)

    @property
    def input_sizes(self) -> tuple[Size, ...]:
        return ((self.batch, self.h, self.w, self.in_channels),)

    @property
    def output_size(self) -> Size:
        return (self.batch, self.out_h, self.out_w, self.out_channels)

    @property
    def channel_local(self) -> bool:
        return self.groups == self.in_channels == self.out_channels

    @property
    def flops(self) -> int:
        return 2 * self.batch * self.out_h * self.out_w * self.out_channels * self.taps

    @property
    def weight_bytes(self) -> int:
        return self.item_bytes * self.out_channels * self.taps

    @property
    def activation_bytes(self) -> int:
        outputs = self.out_h * self.out_w * self.out_channels * (2 if "residual" in self.epilogue else 1)
        return self.item_bytes * self.batch * (self.h * self.w * self.in_channels + outputs)

    def own_parameters(self) -> dict[str, tuple[int, ...]]:
        return {"weights": (self.out_channels, self.in_channels // self.groups, *self.kernel)}

    def reads_locally(self, role: str) -> bool:
        return super().reads_locally(role) if self.axis == "channels" else role == "residual" or self.reads_own_line

    def facts(self) -> dict[str, float]:
        """A half with groups reads the input of its own channels alone, and one by lines that of its own lines."""
        reads_all = self.groups == 1 and self.axis == "channels"
        return super().facts() | {
            "reduction": self.taps,
            "shared_bytes": self.item_bytes * self.batch * self.h * self.w * self.in_channels if reads_all else 0,
            "group_channels": self.in_channels // self.groups,
            **self.window_facts(),
        }

    def evaluate(self, operands: Mapping[str, np.ndarray], pixels: np.ndarray | None = None) -> np.ndarray:
        """The input that each pixel reads, times the weights, group by group."""
        top, left, bottom, right = self.padding
        padded = np.pad(operands["input"].astype(np.float64), ((0, 0), (top, bottom), (left, right), (0, 0)))
        image, line, column = pixel_indices(self, pixels)
        tap_h, tap_w = np.indices(self.kernel).reshape(2, -1)
        lines = line[:, None] * self.stride[0] + tap_h * self.dilation[0]
        columns = column[:, None] * self.stride[1] + tap_w * self.dilation[1]
        read = padded[image[:, None], lines, columns].reshape(len(image), len(tap_h), self.groups, -1)
        packed = operands["weights"].astype(np.float64).reshape(self.groups, -1, read.shape[-1], len(tap_h))
        by_group = read.transpose(2, 0, 1, 3).reshape(self.groups, len(image), -1)
        result = by_group @ packed.transpose(0, 3, 2, 1).reshape(self.groups, by_group.shape[2], -1)
        return result.transpose(1, 0, 2).reshape(len(image), self.out_channels)


def _extents(name: str, value: Any, length: int) -> tuple[int, ...]:
    """Make ``length`` numbers of one, of a pair or, for a length of four, of four."""
    numbers = (value, value) if isinstance(value, int) else tuple(value)
    if len(numbers) not in (2, length):
        raise ValueError(f"{name} {value} of a convolution is neither one number nor {length}")
    return numbers * (length // len(numbers))
