"""Layers that only images have, besides convolutions: pooling, concatenation, element-wise arithmetic, normalisation.

All of them work on ``[batch, h, w, channels]``, and a unit is a tile of 32 output channels, as it is for convolutions:
a side that owns a tile of a convolution goes on with the same tile. Pooling and arithmetic may be divided by lines as
well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .base import Base, Size, check_axis, pixel_indices, units_along
from .registry import register
from .windows import Windowed


def _check_sizes(layer: Pool | Concat | Elementwise | LocalNorm, *sizes: int) -> None:
    if min(sizes) < 1:
        raise ValueError(f"sizes of an image must be at least 1, got {layer}")


@register
@dataclass(frozen=True)
class Pool(Windowed):
    """The maximum or average of each window of each channel, followed by the steps of ``epilogue``.

    ``kind`` is ``max``, ``average`` or ``mean_square``, the average of the squares. ``padding`` is (top, left, bottom,
    right); it is never a maximum, and counts in an average's divisor only if ``count_padding``. Global pooling has a
    window as large as the image.
    """

    kind: str
    h: int
    w: int
    channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    count_padding: bool = False
    batch: int = 1
    epilogue: tuple[str, ...] = ()
    axis: str = "channels"
    op: ClassVar[str] = "pool"
    kernels: ClassVar[str] = "tvm_coexec.schedules.images"
    channel_local: ClassVar[bool] = True

    KINDS: ClassVar[tuple[str, ...]] = ("average", "max", "mean_square")

    def __post_init__(self) -> None:
        if self.kind not in self.KINDS:
            raise ValueError(f"unknown pooling {self.kind!r}; known: {', '.join(self.KINDS)}")
        _check_sizes(self, self.h, self.w, self.channels, self.batch, *self.kernel, *self.stride, *self.dilation)
        reach = [dilation * (kernel - 1) + 1 for dilation, kernel in zip(self.dilation, self.kernel, strict=True)]
        if min(self.padding) < 0 or any(
            padding >= extent for padding, extent in zip(self.padding, reach * 2, strict=True)
        ):
            raise ValueError(f"padding of a pooling must be at least 0 and less than its window, got {self}")
        if min(self.out_h, self.out_w) < 1:
            raise ValueError(f"a {self.kernel} window does not fit into {self.h}×{self.w} pixels with {self.padding}")
        super().__post_init__()
        check_axis(self)

    @property
    def input_sizes(self) -> tuple[Size, ...]:
        return ((self.batch, self.h, self.w, self.channels),)

    @property
    def output_size(self) -> Size:
        return (self.batch, self.out_h, self.out_w, self.channels)

    @property
    def out_channels(self) -> int:
        return self.channels

    @property
    def flops(self) -> int:
        return self.batch * self.out_h * self.out_w * self.channels * self.kernel[0] * self.kernel[1]

    @property
    def activation_bytes(self) -> int:
        outputs = self.out_h * self.out_w * (2 if "residual" in self.epilogue else 1)
        return self.item_bytes * self.batch * self.channels * (self.h * self.w + outputs)

    def reads_locally(self, role: str) -> bool:
        return self.axis == "channels" or role == "residual" or self.reads_own_line

    @property
    def kind_name(self) -> str:
        return f"{self.kind}_pool"

    def facts(self) -> dict[str, float]:
        return super().facts() | {"reduction": math.prod(self.kernel), "inputs": 1, **self.window_facts()}

    def evaluate(self, operands: Mapping[str, np.ndarray], pixels: np.ndarray | None = None) -> np.ndarray:
        """Compute a position of the window at a time."""
        x = operands["input"].astype(np.float64)
        image, line, column = pixel_indices(self, pixels)
        is_max = self.kind == "max"
        result = np.full((len(image), self.channels), -np.inf if is_max else 0.0)
        counts = np.zeros((len(image), 1))
        for tap_h, tap_w in np.ndindex(*self.kernel):
            lines = line * self.stride[0] + tap_h * self.dilation[0] - self.padding[0]
            columns = column * self.stride[1] + tap_w * self.dilation[1] - self.padding[1]
            inside = (lines >= 0) & (lines < self.h) & (columns >= 0) & (columns < self.w)
            read = x[image[inside], lines[inside], columns[inside]]
            read = read**2 if self.kind == "mean_square" else read
            result[inside] = np.maximum(result[inside], read) if is_max else result[inside] + read
            counts[inside] += 1
        if is_max:
            return result
        return result / (math.prod(self.kernel) if self.count_padding else counts)


@register
@dataclass(frozen=True)
class Concat(Base):
    """Images side by side along their channels; ``channels`` has the number of each. It takes no epilogue."""

    h: int
    w: int
    channels: tuple[int, ...]
    batch: int = 1
    op: ClassVar[str] = "concat"
    kernels: ClassVar[str] = "tvm_coexec.schedules.images"
    axis: ClassVar[str] = "channels"
    channel_local: ClassVar[bool] = False
    epilogue: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))
        super().__post_init__()
        _check_sizes(self, self.h, self.w, self.batch, *self.channels)

    @property
    def input_sizes(self) -> tuple[Size, ...]:
        return tuple((self.batch, self.h, self.w, channels) for channels in self.channels)

    @property
    def output_size(self) -> Size:
        return (self.batch, self.h, self.w, self.out_channels)

    @property
    def out_channels(self) -> int:
        return sum(self.channels)

    @property
    def flops(self) -> int:
        return 0

    @property
    def activation_bytes(self) -> int:
        return 2 * self.item_bytes * self.batch * self.h * self.w * self.out_channels

    def facts(self) -> dict[str, float]:
        return super().facts() | {"output_width": self.w, "inputs": len(self.channels)}

    def evaluate(self, operands: Mapping[str, np.ndarray], pixels: np.ndarray | None = None) -> np.ndarray:
        return np.concatenate(_rows_at(self, operands, pixels), axis=-1)


@register
@dataclass(frozen=True)
class Elementwise(Base):
    """Two images combined element by element, followed by the steps of ``epilogue``.

    ``kind`` is ``add``, ``divide``, ``maximum``, ``minimum``, ``multiply`` or ``subtract``. ``first`` and ``second``
    are the sizes ``[batch, h, w, channels]``: an axis of a single element has the same one for all of the other's, as
    in squeeze and excitation.
    """

    kind: str
    first: Size
    second: Size
    epilogue: tuple[str, ...] = ()
    axis: str = "channels"
    op: ClassVar[str] = "elementwise"
    kernels: ClassVar[str] = "tvm_coexec.schedules.images"

    KINDS: ClassVar[tuple[str, ...]] = ("add", "divide", "maximum", "minimum", "multiply", "subtract")

    def __post_init__(self) -> None:
        if self.kind not in self.KINDS:
            raise ValueError(f"unknown element-wise kind {self.kind!r}; known: {', '.join(self.KINDS)}")
        for name in ("first", "second"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        _check_sizes(self, *self.first, *self.second)
        if any(1 not in pair and pair[0] != pair[1] for pair in zip(self.first, self.second, strict=True)):
            raise ValueError(f"images of {self.first} and {self.second} cannot be combined element by element")
        super().__post_init__()
        check_axis(self)

    @property
    def input_sizes(self) -> tuple[Size, ...]:
        return (self.first, self.second)

    @property
    def output_size(self) -> Size:
        return tuple(max(pair) for pair in zip(self.first, self.second, strict=True))

    @property
    def batch(self) -> int:
        return self.output_size[0]

    @property
    def out_h(self) -> int:
        return self.output_size[1]

    @property
    def out_w(self) -> int:
        return self.output_size[2]

    @property
    def out_channels(self) -> int:
        return self.output_size[3]

    @property
    def channel_local(self) -> bool:
        return all(self.is_whole_along("channels", size) for size in self.input_sizes)

    def is_whole_along(self, axis: str, size: Size) -> bool:
        """Whether an operand of this size has elements of its own for every unit along an axis."""
        index = 3 if axis == "channels" else 1
        return size[index] == self.output_size[index] or self.units == 1

    @property
    def units(self) -> int:
        return units_along(self)

    @property
    def flops(self) -> int:
        return math.prod(self.output_size)

    @property
    def activation_bytes(self) -> int:
        outputs = math.prod(self.output_size) * (2 if "residual" in self.epilogue else 1)
        return self.item_bytes * (math.prod(self.first) + math.prod(self.second) + outputs)

    def reads_locally(self, role: str) -> bool:
        return role == "residual" or self.is_whole_along(self.axis, self.second if role == "input1" else self.first)

    def facts(self) -> dict[str, float]:
        return super().facts() | {"output_width": self.out_w, "inputs": 2}

    def evaluate(self, operands: Mapping[str, np.ndarray], pixels: np.ndarray | None = None) -> np.ndarray:
        result: np.ndarray = getattr(np, self.kind)(*_rows_at(self, operands, pixels))
        return result


@register
@dataclass(frozen=True)
class LocalNorm(Base):
    """Each channel over a power of the mean square of its ``size`` neighbours: ONNX's local response normalisation.

    The divisor is ``(bias + alpha · sum of squares / size) ** beta``; beyond the last channel, squares are 0.
    """

    h: int
    w: int
    channels: int
    size: int
    alpha: float
    beta: float
    bias: float
    batch: int = 1
    epilogue: tuple[str, ...] = ()
    op: ClassVar[str] = "local_norm"
    kernels: ClassVar[str] = "tvm_coexec.schedules.images"
    axis: ClassVar[str] = "channels"
    channel_local: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_sizes(self, self.h, self.w, self.channels, self.batch, self.size)
        super().__post_init__()

    @property
    def input_sizes(self) -> tuple[Size, ...]:
        return (self.output_size,)

    @property
    def output_size(self) -> Size:
        return (self.batch, self.h, self.w, self.channels)

    @property
    def out_channels(self) -> int:
        return self.channels

    @property
    def flops(self) -> int:
        return self.batch * self.h * self.w * self.channels * (2 * self.size + 2)

    @property
    def activation_bytes(self) -> int:
        return (
            self.item_bytes * self.batch * self.h * self.w * self.channels * (3 if "residual" in self.epilogue else 2)
        )

    def facts(self) -> dict[str, float]:
        return super().facts() | {"reduction": self.size, "output_width": self.w, "inputs": 1}

    def evaluate(self, operands: Mapping[str, np.ndarray], pixels: np.ndarray | None = None) -> np.ndarray:
        (x,) = _rows_at(self, operands, pixels)
        before = (self.size - 1) // 2
        ends = np.arange(self.channels) - before + self.size
        sums = np.pad(np.cumsum(x**2, axis=-1), ((0, 0), (1, 0)))
        total = sums[:, np.minimum(ends, self.channels)] - sums[:, np.maximum(ends - self.size, 0)]
        return x / (self.bias + self.alpha / self.size * total) ** self.beta


def _rows_at(
    layer: Concat | Elementwise | LocalNorm, operands: Mapping[str, np.ndarray], pixels: np.ndarray | None
) -> list[np.ndarray]:
    """Take some pixels of each operand; where an axis of one has a single element, that is the same for all pixels."""
    batch, h, w, _ = layer.output_size
    names = ["input", *(f"input{number}" for number in range(1, len(layer.input_sizes)))]
    where = pixel_indices(layer, pixels)
    images = [np.broadcast_to(x, (batch, h, w, x.shape[-1])) for x in (operands[name] for name in names)]
    return [image[where].astype(np.float64) for image in images]
