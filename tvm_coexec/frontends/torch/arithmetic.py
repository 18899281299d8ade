"""Torch's functions of elements, and of parts of an axis, that TVM's importer lacks, or refuses for truth values."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import relax

from .importer import Converter, Importer

if TYPE_CHECKING:
    from torch import fx


def _of_two(
    numeric: Callable[..., relax.Expr], logical: Callable[..., relax.Expr] | None = None, is_turned: bool = False
) -> Converter:
    """Make a converter of an operation on two operands, or on the same ``is_turned`` round.

    TVM's drops the factor of what is the second in turn, and the fraction of a number beside whole ones (as of 0.27);
    LLVM has no arithmetic of truth values.
    """

    def convert(node: fx.Node, importer: Importer) -> relax.Expr:
        factor, dtype = node.kwargs.get("alpha", 1), dtype_of(node)
        operands = [of_type(each, dtype, importer) for each in importer.retrieve_args(node)]
        first, second = operands[:: -1 if is_turned else 1]
        if factor != 1:
            second = importer.block_builder.emit(relax.op.multiply(second, relax.const(factor, dtype)))
        join = logical if logical is not None and dtype == "bool" else numeric
        return importer.block_builder.emit(join(first, second))

    return convert


def dtype_of(node: fx.Node) -> str:
    """Tell the type of a node's result, as TVM names it."""
    return str(node.meta["val"].dtype).removeprefix("torch.")


def of_type(value: Any, dtype: str, importer: Importer) -> relax.Expr:
    """Give a value in a type: a number as a constant, an expression cast where it has another."""
    if not isinstance(value, relax.Expr):
        return relax.const(value, dtype)
    return value if str(value.ty.dtype) == dtype else importer.block_builder.emit(relax.op.astype(value, dtype))


def _compared(compare: Callable[..., relax.Expr]) -> Converter:
    """Make a converter of a comparison with a number, of which TVM's drops the fraction beside whole ones."""

    def convert(node: fx.Node, importer: Importer) -> relax.Expr:
        import torch

        x, number = importer.retrieve_args(node)
        dtype = str(torch.result_type(node.args[0].meta["val"], number)).removeprefix("torch.")
        return importer.block_builder.emit(compare(of_type(x, dtype, importer), relax.const(number, dtype)))

    return convert


def _power_of_two(node: fx.Node, importer: Importer) -> relax.Expr:
    emit, dtype = importer.block_builder.emit, dtype_of(node)
    x = of_type(importer.retrieve_args(node)[0], dtype, importer)
    return emit(relax.op.exp(emit(relax.op.multiply(x, relax.const(math.log(2), dtype)))))


def _hypotenuse(node: fx.Node, importer: Importer) -> relax.Expr:
    """Take the squares in float64, which those of float32 do not exceed; what is infinite stays so beside NaN."""
    emit, dtype = importer.block_builder.emit, dtype_of(node)
    operands = [of_type(each, "float64", importer) for each in importer.retrieve_args(node)]
    squares = [emit(relax.op.multiply(each, each)) for each in operands]
    length = emit(relax.op.sqrt(emit(relax.op.add(*squares))))
    is_infinite = emit(relax.op.logical_or(*(emit(relax.op.isinf(each)) for each in operands)))
    return of_type(emit(relax.op.where(is_infinite, relax.const(math.inf, "float64"), length)), dtype, importer)


def _variance_and_mean(node: fx.Node, importer: Importer) -> list[relax.Expr]:
    """The mean, and the mean square of what differs from it, of which the divisor is less by a correction."""
    x, *axes = importer.retrieve_args(node)
    emit, shape = importer.block_builder.emit, [int(size) for size in x.ty.shape]
    axis = axes[0] if axes and axes[0] else list(range(len(shape)))
    count = math.prod(shape[each] for each in axis)
    correction = node.kwargs.get("correction")
    divisor = max(count - (1 if correction is None else float(correction)), 0.0)
    keep = bool(node.kwargs.get("keepdim", False))
    difference = emit(relax.op.subtract(x, emit(relax.op.mean(x, axis, keepdims=True))))
    squares = emit(relax.op.sum(emit(relax.op.multiply(difference, difference)), axis, keep))
    factor = 1 / divisor if divisor else math.inf
    variance = emit(relax.op.multiply(squares, relax.const(factor, str(x.ty.dtype))))
    return [variance, emit(relax.op.mean(x, axis, keep))]


def _windows(node: fx.Node, importer: Importer) -> relax.Expr:
    """Overlapping parts of an axis, whose elements become the last axis."""
    x, axis, size, step = importer.retrieve_args(node)
    emit, rank = importer.block_builder.emit, len(x.ty.shape)
    if not rank:  # torch takes one number for an axis of one
        return emit(relax.op.reshape(x, (size,)))
    axis %= rank
    count = (int(x.ty.shape[axis]) - size) // step + 1
    places = np.arange(count)[:, None] * step + np.arange(size)
    parts = emit(relax.op.take(x, relax.const(places.astype(np.int64)), axis))
    return emit(relax.op.permute_dims(parts, [each for each in range(rank + 1) if each != axis + 1] + [axis + 1]))


def _fake_quantised(node: fx.Node, importer: Importer) -> list[relax.Expr]:
    """Round to the numbers that a quantised tensor can have; the second result, a mask, is for training."""
    x, scale, zero, low, high = importer.retrieve_args(node)
    emit, dtype = importer.block_builder.emit, str(x.ty.dtype)
    # torch multiplies by a reciprocal of float32, and rounds before it adds
    inverse = np.float32(1) / np.float32(scale)
    whole = emit(relax.op.round(emit(relax.op.multiply(x, relax.const(inverse, dtype)))))
    bounded = emit(relax.op.clip(whole, low - zero, high - zero))
    return [emit(relax.op.multiply(bounded, relax.const(np.float32(scale), dtype)))]


def _distances(node: fx.Node, importer: Importer) -> relax.Expr:
    """Lengths of the differences of all rows of one tensor from all of another."""
    x, y, power = importer.retrieve_args(node)[:3]
    emit, dtype = importer.block_builder.emit, str(x.ty.dtype)
    rows = [emit(relax.op.expand_dims(each, len(each.ty.shape) - behind)) for behind, each in ((1, x), (2, y))]
    apart = emit(relax.op.abs(emit(relax.op.subtract(*rows))))
    if power == 0:  # how many numbers differ
        differs = emit(relax.op.logical_not(emit(relax.op.equal(apart, relax.const(0, dtype)))))
        return emit(relax.op.sum(emit(relax.op.astype(differs, dtype)), -1))
    if math.isinf(power):
        return emit(relax.op.max(apart, -1))
    powers = apart if power == 1 else emit(relax.op.power(apart, relax.const(power, dtype)))
    total = emit(relax.op.sum(powers, -1))
    return total if power == 1 else emit(relax.op.power(total, relax.const(1 / power, dtype)))


CONVERTERS: dict[str, Converter] = {
    "_cdist_forward.default": _distances,
    "add.Tensor": _of_two(relax.op.add, relax.op.logical_or),
    "div.Tensor": _of_two(relax.op.divide),
    "eq.Scalar": _compared(relax.op.equal),
    "exp2.default": _power_of_two,
    "fake_quantize_per_tensor_affine_cachemask.default": _fake_quantised,
    "ge.Scalar": _compared(relax.op.greater_equal),
    "gt.Scalar": _compared(relax.op.greater),
    "hypot.default": _hypotenuse,
    "le.Scalar": _compared(relax.op.less_equal),
    "lt.Scalar": _compared(relax.op.less),
    "mul.Tensor": _of_two(relax.op.multiply, relax.op.logical_and),
    "ne.Scalar": _compared(relax.op.not_equal),
    "rsub.Scalar": _of_two(relax.op.subtract, is_turned=True),
    "rsub.Tensor": _of_two(relax.op.subtract, is_turned=True),
    "sub.Tensor": _of_two(relax.op.subtract),
    "unfold.default": _windows,
    "var_mean.correction": _variance_and_mean,
}
