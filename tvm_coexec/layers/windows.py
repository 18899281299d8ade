"""What convolutions and poolings share: each of their outputs is made of a window of the input."""

from __future__ import annotations

from typing import Any, cast

from .base import Base, units_along


class Windowed(Base):
    """A layer of images ``[batch, h, w, channels]`` that moves a window over them."""

    h: int
    w: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]
    batch: int
    axis: str

    def _window_count(self, size: int, axis: int) -> int:
        """Count the windows that fit along an axis of ``size`` pixels and what is added to them."""
        padded = size + self.padding[axis] + self.padding[axis + 2]
        return (padded - self.dilation[axis] * (self.kernel[axis] - 1) - 1) // self.stride[axis] + 1

    @property
    def out_h(self) -> int:
        return self._window_count(self.h, 0)

    @property
    def out_w(self) -> int:
        return self._window_count(self.w, 1)

    @property
    def units(self) -> int:
        return units_along(cast(Any, self))  # which has channels, too

    @property
    def reads_own_line(self) -> bool:
        """Whether a line of the output needs one line of the input, the same."""
        return self.kernel[0] == self.stride[0] == 1 and self.padding[::2] == (0, 0)

    def window_facts(self) -> dict[str, float]:
        """Say what the predictors see of the window."""
        return {
            "kernel_height": self.kernel[0],
            "kernel_width": self.kernel[1],
            "stride": max(self.stride),
            "dilation": max(self.dilation),
            "output_width": self.out_w,
        }
