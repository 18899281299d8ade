"""Operators on elements that TVM's importer lacks, or that it takes for others of the same name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from tvm import relax, te, tirx, topi

from tvm_coexec.errors import ModelError
from tvm_coexec.frontends.relax.blocks import depth_to_space, space_to_depth
from tvm_coexec.frontends.relax.sums import running_products, running_sums
from tvm_coexec.frontends.trace import axis_within

from .call import Call, Converter


def _broadcast(call: Call, element: Callable[..., Any]) -> relax.Expr:
    """``element`` of the operands' elements, of which axes of one are repeated."""
    shape, dtype = call.result.shape, call.result.dtype

    def compute(*operands: te.Tensor) -> te.Tensor:
        wide = [topi.broadcast_to(operand, shape) for operand in operands]
        return te.compute(
            shape, lambda *index: element(*(operand[index] for operand in wide)).astype(dtype), name="elements"
        )

    return call.loops(compute, *(operand for operand in call.operands if operand is not None))


def _pow(call: Call) -> Any:
    base, exponent = call.type(0).dtype, call.type(1).dtype
    if base == exponent and base.startswith("float"):
        return None
    wide = "float32" if base == "float32" and exponent != "float64" else "float64"
    return _broadcast(call, lambda x, y: _pow_of(x.astype(wide), y.astype(wide), base))


def _pow_of(x: Any, y: Any, dtype: str) -> Any:
    result = tirx.power(x, y)
    return result if dtype.startswith("float") else tirx.trunc(result)


def _mod(call: Call) -> Any:
    """The remainder of a quotient that is rounded towards zero (fmod), or down."""
    is_float, towards_zero = call.type(0).dtype.startswith("float"), call.attributes.get("fmod", 0)
    if not is_float:
        return _broadcast(call, tirx.truncmod if towards_zero else tirx.floormod)

    zero = tirx.const(0, "float64")

    def element(x: Any, y: Any) -> Any:
        # C's function is exact, however often the divisor fits in: no quotient has as many digits
        x, y = x.astype("float64"), y.astype("float64")
        remainder = tirx.call_pure_extern("float64", "fmod", x, y)
        if towards_zero:
            return remainder
        has_other_sign = tirx.any(tirx.all(remainder < zero, y > zero), tirx.all(remainder > zero, y < zero))
        return tirx.Select(has_other_sign, remainder + y, remainder)

    return _broadcast(call, element)


def _shift_bits(call: Call) -> Any:
    """What is shifted by all its bits or more is gone, which processors see otherwise; so is a negative shift."""
    dtype = call.type(0).dtype
    bits = np.iinfo(dtype).bits
    is_left = call.attributes["direction"] == "LEFT"

    def element(x: Any, y: Any) -> Any:
        # C has no shift of its own for them
        count = y.astype("uint64")
        within = tirx.min(count, tirx.const(bits - 1, "uint64")).astype(dtype)
        moved = tirx.shift_left(x, within) if is_left else tirx.shift_right(x, within)
        beyond = tirx.const(0, dtype) if is_left or dtype.startswith("u") else moved
        return tirx.Select(count < tirx.const(bits, "uint64"), moved, beyond)

    return _broadcast(call, element)


def _cast_bits(call: Call) -> Any:
    dtype = call.result.dtype
    if "bool" in (dtype, call.type(0).dtype):
        return _broadcast(call, lambda x: x.astype("int8") != tirx.const(0, "int8"))
    return _broadcast(call, lambda x: tirx.reinterpret(dtype, x))


def _is_infinite(call: Call) -> Any:
    values = call.attributes
    infinite = tirx.const(float("inf"), call.type(0).dtype)
    high, low = values.get("detect_positive", 1), values.get("detect_negative", 1)

    def element(x: Any) -> Any:
        never = tirx.const(False, "bool")
        return tirx.any(x == infinite if high else never, x == -infinite if low else never)

    return _broadcast(call, element)


def _tile(call: Call) -> Any:
    repeats = call.array(1)
    return None if repeats is None else relax.op.tile(call.operand(0), [int(count) for count in repeats])


def _depth_to_space(call: Call) -> Any:
    return depth_to_space(call.operand(0), call.type(0).shape, call.attributes["blocksize"], blocks_last=_is_crd(call))


def _space_to_depth(call: Call) -> Any:
    return space_to_depth(call.operand(0), call.type(0).shape, call.attributes["blocksize"], blocks_last=_is_crd(call))


def _is_crd(call: Call) -> bool:
    """Whether the channels of a block's pixels stand together, rather than the pixels of each channel."""
    return bool(call.attributes.get("mode", "DCR") == "CRD")


def _normalise_lengths(call: Call) -> Any:
    """Divide elements by the sum of their absolute values, or by the root of the sum of squares; zeros stay zeros."""
    x, dtype = call.operand(0), call.type(0).dtype
    axis, power = call.attributes.get("axis", -1), call.attributes.get("p", 2)
    axis = axis_within(axis, len(call.type(0).shape), call.node.source)
    sizes = relax.op.abs(x) if power == 1 else relax.op.multiply(x, x)
    total = call.builder.emit(relax.op.sum(call.builder.emit(sizes), axis, keepdims=True))
    length = total if power == 1 else call.builder.emit(relax.op.sqrt(total))

    def divided(values: te.Tensor, lengths: te.Tensor) -> te.Tensor:
        wide = topi.broadcast_to(lengths, values.shape)
        zero = tirx.const(0, dtype)

        def element(*index: Any) -> Any:
            return tirx.if_then_else(wide[index] == zero, zero, values[index] / wide[index])

        return te.compute(values.shape, element, name="normalised")

    return call.loops(divided, x, length)


def _cumulated(running: Callable[..., Callable[[te.Tensor], te.Tensor]]) -> Converter:
    """Make a converter of an operation on all elements up to each one of an axis."""

    def convert(call: Call) -> Any:
        shape, position = call.type(0).shape, call.array(1)
        if position is None or not shape:
            return None
        if position.size != 1:
            raise ModelError(f"{call.node.source} has {position.size} axes, and takes one; export the model again")
        axis = axis_within(int(position.reshape(())), len(shape), call.node.source)
        exclusive, reverse = (bool(call.attributes.get(name, 0)) for name in ("exclusive", "reverse"))
        return call.loops(running(shape, axis, exclusive, reverse), call.operand(0))

    return convert


def _sign(call: Call) -> Any:
    """What is no number has no sign; TVM compares with -1, which is no unsigned number (as of 0.27)."""
    x, dtype = call.operand(0), call.type(0).dtype
    if dtype.startswith("uint"):
        return relax.op.minimum(x, call.constant(np.array(1), dtype))
    if not dtype.startswith("float"):
        return None
    return relax.op.where(relax.op.isnan(x), x, relax.op.sign(x))


def _prelu(call: Call) -> Any:
    """Look at what is multiplied below zero, which ONNX's inference does not, and keep the numbers above from it.

    TVM is right for slopes that fit; a layer's step multiplies zeros by them, of which NaN and infinity make NaN.
    """
    shape, slope = call.type(0).shape, call.type(1).shape
    if len(slope) > len(shape) or any(
        own not in (1, size) for own, size in zip(slope[::-1], shape[::-1], strict=False)
    ):
        raise ModelError(
            f"{call.node.source} has a slope of shape {list(slope)}, which does not fit the last axes of "
            f"{list(shape)}; export the model again"
        )
    array = call.array(1)
    if array is None or np.isfinite(array).all():
        return None
    return _broadcast(call, lambda x, below: tirx.Select(x < 0, x * below, x))


def _extreme(reduce: Callable[..., relax.Expr]) -> Converter:
    """Reduce truth values as the numbers 0 and 1: TVM knows no least and no largest of them."""

    def convert(call: Call) -> Any:
        axes = call.attributes.get("axes", call.array(1))
        if call.type(0).dtype != "bool" or (axes is None and call.operand(1) is not None):
            return None
        if (axes is None or len(axes) == 0) and call.attributes.get("noop_with_empty_axes", 0):
            return call.operand(0)
        chosen = None if axes is None or len(axes) == 0 else [int(axis) for axis in axes]
        numbers = call.builder.emit(relax.op.astype(call.operand(0), "uint8"))
        reduced = call.builder.emit(reduce(numbers, chosen, bool(call.attributes.get("keepdims", 1))))
        return relax.op.astype(reduced, "bool")

    return convert


def _log_sum_exp(call: Call) -> Any:
    """Leave infinite largest numbers where they are: TVM takes them from themselves."""
    axes = call.attributes.get("axes", call.array(1))
    if not call.type(0).dtype.startswith("float") or axes is None or not len(axes):
        return None
    x, chosen = call.operand(0), [int(axis) for axis in axes]
    largest = call.builder.emit(relax.op.max(x, chosen, True))
    shift = call.builder.emit(relax.op.where(relax.op.isfinite(largest), largest, relax.op.zeros_like(largest)))
    sums = call.builder.emit(relax.op.sum(relax.op.exp(relax.op.subtract(x, shift)), chosen, True))
    return relax.op.reshape(relax.op.add(relax.op.log(sums), shift), call.result.shape)


CONVERTERS: Mapping[str, Converter] = {
    "BitCast": _cast_bits,
    "BitShift": _shift_bits,
    "CumProd": _cumulated(running_products),
    "CumSum": _cumulated(running_sums),
    "DepthToSpace": _depth_to_space,
    "IsInf": _is_infinite,
    "LpNormalization": _normalise_lengths,
    "Mod": _mod,
    "PRelu": _prelu,
    "ReduceLogSumExp": _log_sum_exp,
    "ReduceMax": _extreme(relax.op.max),
    "ReduceMin": _extreme(relax.op.min),
    "Pow": _pow,
    "Sign": _sign,
    "SpaceToDepth": _space_to_depth,
    "Tile": _tile,
}
