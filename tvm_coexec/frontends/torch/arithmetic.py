"""Torch's functions of elements, and of parts of an axis, that TVM's importer lacks, or refuses for truth values."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import relax

from .importer import Converter, Importer

if TYPE_CHECKING:
    from torch import fx


def _of_two(
    numeric: Callable[..., relax.Expr],
    plain: Callable[..., Any],
    logical: Callable[..., relax.Expr] | None = None,
    is_turned: bool = False,
) -> Converter:
    """Make a converter of an operation on two operands, or on the same ``is_turned`` round.

    TVM's drops the factor of what is the second in turn (as of 0.27), and LLVM has no arithmetic of truth values.
    """

    def convert(node: fx.Node, importer: Importer) -> Any:
        operands, factor = importer.retrieve_args(node), node.kwargs.get("alpha", 1)
        if logical is not None and all(_is_truth(each) for each in operands):
            return importer.block_builder.emit(logical(*operands))
        if factor == 1 and not is_turned:
            return importer._binary_op(numeric, plain)(node)
        dtype = str(node.meta["val"].dtype).removeprefix("torch.")
        first, second = (_of_type(each, dtype, importer) for each in operands[:: -1 if is_turned else 1])
        if factor != 1:
            second = importer.block_builder.emit(relax.op.multiply(second, relax.const(factor, dtype)))
        return importer.block_builder.emit(numeric(first, second))

    return convert


def _of_type(value: Any, dtype: str, importer: Importer) -> relax.Expr:
    if not isinstance(value, relax.Expr):
        return relax.const(value, dtype)
    return value if str(value.ty.dtype) == dtype else importer.block_builder.emit(relax.op.astype(value, dtype))


def _is_truth(value: Any) -> bool:
    return isinstance(value, relax.Expr) and str(value.ty.dtype) == "bool"


def _power_of_two(node: fx.Node, importer: Importer) -> relax.Expr:
    emit, x = importer.block_builder.emit, importer.retrieve_args(node)[0]
    return emit(relax.op.exp(emit(relax.op.multiply(x, relax.const(math.log(2), str(x.ty.dtype))))))


def _hypotenuse(node: fx.Node, importer: Importer) -> relax.Expr:
    emit = importer.block_builder.emit
    squares = [emit(relax.op.multiply(each, each)) for each in importer.retrieve_args(node)]
    return emit(relax.op.sqrt(emit(relax.op.add(*squares))))


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
    emit, rank = importer.block_builder.emit, len(x.ty.shape)
    rows = [emit(relax.op.expand_dims(each, rank - position)) for position, each in ((1, x), (2, y))]
    apart = emit(relax.op.abs(emit(relax.op.subtract(*rows))))
    if math.isinf(power):
        return emit(relax.op.max(apart, -1))
    powers = apart if power == 1 else emit(relax.op.power(apart, relax.const(power, str(x.ty.dtype))))
    total = emit(relax.op.sum(powers, -1))
    return total if power == 1 else emit(relax.op.power(total, relax.const(1 / power, str(x.ty.dtype))))


CONVERTERS: dict[str, Converter] = {
    "_cdist_forward.default": _distances,
    "add.Tensor": _of_two(relax.op.add, operator.add, relax.op.logical_or),
    "exp2.default": _power_of_two,
    "fake_quantize_per_tensor_affine_cachemask.default": _fake_quantised,
    "hypot.default": _hypotenuse,
    "mul.Tensor": _of_two(relax.op.multiply, operator.mul, relax.op.logical_and),
    "rsub.Scalar": _of_two(relax.op.subtract, operator.sub, is_turned=True),
    "rsub.Tensor": _of_two(relax.op.subtract, operator.sub, is_turned=True),
    "sub.Tensor": _of_two(relax.op.subtract, operator.sub),
    "unfold.default": _windows,
    "var_mean.correction": _variance_and_mean,
}
