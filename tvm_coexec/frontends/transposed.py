"""Transposed convolutions as convolutions that layers know: of the image as it is, and then its channels spread."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tvm import relax


@dataclass(frozen=True)
class _Axis:
    """Height or width: ``size`` places of the result, from ``begin`` on, of those that all pixels reach together."""

    extent: int
    kernel: int
    stride: int
    begin: int
    size: int

    @property
    def taps(self) -> int:
        """How many pixels reach one place of the result."""
        return -(-self.kernel // self.stride)

    @property
    def first(self) -> int:
        """The first pixel whose block of ``stride`` places belongs to the result."""
        return self.begin // self.stride

    @property
    def blocks(self) -> int:
        return -(-(self.begin + self.size) // self.stride) - self.first

    @property
    def padding(self) -> tuple[int, int]:
        before = self.taps - 1 - self.first
        return before, max(self.blocks + self.taps - 1 - before - self.extent, 0)

    def windows(self) -> np.ndarray:
        """For each place in a block, the place in the kernel that each tap has, or the number behind its last."""
        places = np.arange(self.stride)[:, None] + np.arange(self.taps)[::-1] * self.stride
        return np.minimum(places, self.kernel)


def transposed_conv2d(
    image: relax.Expr,
    weights: np.ndarray,
    extents: tuple[int, int, int],
    stride: tuple[int, int],
    begins: tuple[int, int],
    sizes: tuple[int, int],
    finish: Callable[[relax.Expr, int], relax.Expr],
) -> relax.Expr:
    """A transposed convolution of ``[batch, channels, h, w]``.

    Each pixel makes a block of ``stride`` pixels together with the few before it: that is a convolution to as many
    times the channels, which then move into height and width.

    Parameters
    ----------
    image, extents
        The image, its batch, height and width.
    weights
        Those of the transposed convolution, ``[out, in, kernel height, kernel width]``.
    begins, sizes
        What is kept of all pixels that the result could have.
    finish
        What follows for each channel, such as a bias; it is told how many times the channels repeat.
    """
    height, width = (
        _Axis(*numbers) for numbers in zip(extents[1:], weights.shape[2:], stride, begins, sizes, strict=True)
    )
    out, channels = weights.shape[:2]
    around = np.pad(weights, ((0, 0), (0, 0), (0, 1), (0, 1)))
    rows, columns = height.windows(), width.windows()
    spread = around[:, :, rows[:, None, :, None], columns[None, :, None, :]].transpose(2, 3, 0, 1, 4, 5)
    kernel = np.ascontiguousarray(spread.reshape(-1, channels, height.taps, width.taps))
    (top, bottom), (left, right) = height.padding, width.padding
    blocks = relax.op.nn.conv2d(image, relax.const(kernel, "float32"), padding=[top, left, bottom, right])
    result = finish(blocks, stride[0] * stride[1])
    # as many as the padding leaves, which may be more than are asked for
    counts = [axis.extent + sum(axis.padding) - axis.taps + 1 for axis in (height, width)]
    if stride != (1, 1):
        result = relax.op.reshape(result, (extents[0], *stride, out, *counts))
        result = relax.op.permute_dims(result, [0, 3, 4, 1, 5, 2])
        result = relax.op.reshape(result, (extents[0], out, counts[0] * stride[0], counts[1] * stride[1]))
    starts = [axis.begin - axis.first * axis.stride for axis in (height, width)]
    ends = [start + axis.size for start, axis in zip(starts, (height, width), strict=True)]
    whole = [count * pace for count, pace in zip(counts, stride, strict=True)]
    if starts == [0, 0] and ends == whole:
        return result
    return relax.op.strided_slice(result, [2, 3], starts, ends, [1, 1])
