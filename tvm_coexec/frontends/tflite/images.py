"""TFLite's operators on images are written with channels first: convolutions, pooling, resizing, and moved pixels."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tflite
from tvm import relax

from tvm_coexec.errors import ModelError
from tvm_coexec.frontends.relax.blocks import depth_to_space, space_to_depth
from tvm_coexec.frontends.windows import same_padding

from .elementwise import activated
from .importer import Conversion

_OHWI_TO_OIHW = (0, 3, 1, 2)


def _conv2d(step: Conversion) -> relax.Expr:
    channels, out_channels = step.shape(0)[3], step.shape(1)[0]
    groups = channels // step.shape(1)[3]
    if channels % step.shape(1)[3] or out_channels % groups:
        raise ModelError(f"{step.source} has {channels} channels, which its weights do not divide; convert it again")
    return _convolution(step, step.moved(1, _OHWI_TO_OIHW), groups)


def _depthwise_conv2d(step: Conversion) -> relax.Expr:
    return _convolution(step, step.moved(1, (3, 0, 1, 2)), groups=step.shape(0)[3])


def _convolution(step: Conversion, weights: relax.Expr, groups: int) -> relax.Expr:
    options = step.options
    dilation = (options.DilationHFactor(), options.DilationWFactor())
    result = relax.op.nn.conv2d(
        step.operand(0),
        weights,
        strides=_stride(options),
        padding=_padding(step, step.shape(1)[1:3], dilation),
        dilation=dilation,
        groups=groups,
        data_layout="NCHW",
        kernel_layout="OIHW",
    )
    return activated(with_bias(step, result, 2, (1, -1, 1, 1)), options)


def with_bias(step: Conversion, result: relax.Expr, index: int, shape: tuple[int, ...]) -> relax.Expr:
    """The result and the bias that is the operand at ``index``, if there is one; integers count what weights do."""
    if not step.has(index):
        return result
    bias = step.constant(index)
    if step.tensor(index).dtype != "float32":
        read = [step.tensor(other).quantisation for other in range(index)]
        scales = [quantisation.scale for quantisation in read if quantisation is not None]
        bias = (bias * functools.reduce(np.multiply, scales, np.ones(1))).astype(np.float32)
    return result if not bias.any() else relax.op.add(result, relax.const(bias.reshape(shape), "float32"))


def _stride(options: Any) -> tuple[int, int]:
    return options.StrideH(), options.StrideW()


def _padding(step: Conversion, kernel: tuple[int, ...], dilation: tuple[int, int] = (1, 1)) -> list[int]:
    """Give the padding at top, left, bottom and right; where the sum is odd, one more behind."""
    if step.options.Padding() == tflite.Padding.VALID:
        return [0, 0, 0, 0]
    sums = same_padding(step.shape(0)[1:3], kernel, _stride(step.options), dilation)
    before = [total // 2 for total in sums]
    return [*before, *(total - first for total, first in zip(sums, before, strict=True))]


def _transpose_conv(step: Conversion) -> relax.Expr:
    """A transposed convolution whose operands are the size of its result, weights, image and bias."""
    result = transposed(step, 2, _stride(step.options), step.integers(0)[1:3])
    return activated(with_bias(step, result, 3, (1, -1, 1, 1)), step.options)


def transposed(step: Conversion, index: int, stride: tuple[int, int], size: Sequence[int]) -> relax.Expr:
    """A transposed convolution of the operand at ``index``; what is more than ``size`` is cut off on both sides."""
    sizes = zip(step.shape(index)[1:3], stride, step.shape(1)[1:3], size, strict=True)
    excess = [(extent - 1) * pace + reach - wanted for extent, pace, reach, wanted in sizes]
    before = [max(more, 0) // 2 for more in excess]
    after = [max(more, 0) - first for more, first in zip(excess, before, strict=True)]
    return relax.op.nn.conv2d_transpose(
        step.operand(index),
        step.moved(1, (3, 0, 1, 2)),
        strides=stride,
        padding=[*before, *after],
        output_padding=[max(-more, 0) for more in excess],
        data_layout="NCHW",
        kernel_layout="IOHW",
    )


def _pool(step: Conversion, kind: str) -> relax.Expr:
    options = step.options
    kernel = (options.FilterHeight(), options.FilterWidth())
    make = relax.op.nn.max_pool2d if kind == "max" else relax.op.nn.avg_pool2d
    image = step.operand(0)
    if kind == "l2":
        image = relax.op.multiply(image, image)
    result = make(image, pool_size=kernel, strides=_stride(options), padding=_padding(step, kernel), layout="NCHW")
    return activated(relax.op.sqrt(result) if kind == "l2" else result, options)


def _resize(step: Conversion, method: str) -> relax.Expr:
    options, size = step.options, step.integers(1)
    mode, rounding = "asymmetric", "floor"
    if options.AlignCorners():
        mode, rounding = "align_corners", "round_prefer_ceil"
    elif options.HalfPixelCenters():
        mode, rounding = "half_pixel", "round_prefer_ceil"
    # corners of one pixel alone are no range, so there are two, of which the first is kept
    computed = [max(extent, 2) for extent in size] if options.AlignCorners() else size
    result = relax.op.image.resize2d(
        step.operand(0),
        tuple(computed),
        layout="NCHW",
        method=method,
        coordinate_transformation_mode=mode,
        rounding_method=rounding if method == "nearest_neighbor" else "",
    )
    return result if computed == size else relax.op.strided_slice(result, [2, 3], [0, 0], size, [1, 1])


def _depth_to_space(step: Conversion) -> relax.Expr:
    batch, h, w, channels = step.shape(0)
    return depth_to_space(step.operand(0), (batch, channels, h, w), step.options.BlockSize())


def _space_to_depth(step: Conversion) -> relax.Expr:
    batch, h, w, channels = step.shape(0)
    return space_to_depth(step.operand(0), (batch, channels, h, w), step.options.BlockSize())


CONVERTERS: dict[str, Callable[[Conversion], relax.Expr]] = {
    "AVERAGE_POOL_2D": functools.partial(_pool, kind="average"),
    "CONV_2D": _conv2d,
    "DEPTHWISE_CONV_2D": _depthwise_conv2d,
    "DEPTH_TO_SPACE": _depth_to_space,
    "L2_POOL_2D": functools.partial(_pool, kind="l2"),
    "MAX_POOL_2D": functools.partial(_pool, kind="max"),
    "RESIZE_BILINEAR": functools.partial(_resize, method="linear"),
    "RESIZE_NEAREST_NEIGHBOR": functools.partial(_resize, method="nearest_neighbor"),
    "SPACE_TO_DEPTH": _space_to_depth,
    "TRANSPOSE_CONV": _transpose_conv,
}
"""Operators that are written with channels first, whatever order their operands are in."""
