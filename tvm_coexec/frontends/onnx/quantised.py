"""Quantised operators: whole numbers are multiplied and added as such, and rounded as ONNX Runtime rounds them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from tvm import relax, te, tirx

from tvm_coexec.errors import ModelError
from tvm_coexec.frontends.trace import axis_within

from .call import Call, Converter
from .padding import window_padding


def _spread(
    call: Call, position: int, shape: tuple[int, ...], axis: int
) -> Callable[[te.Tensor, tuple[Any, ...]], Any]:
    """How the elements of a scale or zero point are read for those of a tensor: one for all, by axis, or by block."""
    size = call.type(position).shape
    block = call.attributes.get("block_size", 0)
    if not size or (len(size) == 1 and size[0] == 1):
        return lambda table, index: table[(0,) * len(size)]
    axis = axis_within(axis, len(shape), call.node.source)
    missing = 0 if len(size) == 1 else len(shape) - len(size)
    place = 0 if len(size) == 1 else axis - missing
    is_short = (block or len(size) == 1) and place >= 0 and size[place] * max(block, 1) < shape[axis]
    if missing < 0 or place < 0 or is_short:
        raise ModelError(
            f"{call.node.source} has a scale or zero point of shape {list(size)}, which does not fit the axis {axis} "
            f"of {list(shape)}; export the model again"
        )
    if len(size) == 1:
        return lambda table, index: table[index[axis]]
    block = block or -(-shape[axis] // size[place])

    def element(table: te.Tensor, index: tuple[Any, ...]) -> Any:
        along = (0 if extent == 1 else index[missing + position] for position, extent in enumerate(size))
        return table[tuple(at // block if missing + position == axis else at for position, at in enumerate(along))]

    return element


def _given(operands: Sequence[relax.Expr | None]) -> list[relax.Expr]:
    """Those that are not left out."""
    return [operand for operand in operands if operand is not None]


def _rounded(value: Any, zero: Any, dtype: str) -> Any:
    """Round to the nearest whole number, counted from the zero point, within the type's range."""
    limits = np.iinfo(dtype)
    moved = tirx.nearbyint(value) + zero.astype("float32")
    bounded = tirx.max(tirx.min(moved, float(limits.max)), float(limits.min))
    return bounded.astype("int32").astype(dtype)


def _check_whole(call: Call, dtype: str) -> None:
    if dtype not in ("int8", "uint8", "int16", "uint16", "int32"):
        raise ModelError(f"{call.node.source} makes {dtype}; supported are int8, uint8, int16 and uint16")


def _quantize(call: Call) -> Any:
    shape, axis = call.type(0).shape, call.attributes.get("axis", 1 if len(call.type(0).shape) > 1 else 0)
    dtype = call.result.dtype
    _check_whole(call, dtype)
    scale_at = _spread(call, 1, shape, axis)
    zero_at = _spread(call, 2, shape, axis) if call.operand(2) is not None else None

    def compute(x: te.Tensor, scale: te.Tensor, *zeros: te.Tensor) -> te.Tensor:
        def element(*index: Any) -> Any:
            zero = zero_at(zeros[0], index) if zero_at else tirx.const(0, dtype)
            return _rounded(x[index].astype("float32") / scale_at(scale, index).astype("float32"), zero, dtype)

        return te.compute(shape, element, name="quantised")

    return call.loops(compute, *_given(call.operands[:3]))


def _dequantize(call: Call) -> Any:
    shape, axis = call.type(0).shape, call.attributes.get("axis", 1 if len(call.type(0).shape) > 1 else 0)
    dtype = call.result.dtype
    scale_at = _spread(call, 1, shape, axis)
    zero_at = _spread(call, 2, shape, axis) if call.operand(2) is not None else None

    def compute(x: te.Tensor, scale: te.Tensor, *zeros: te.Tensor) -> te.Tensor:
        def element(*index: Any) -> Any:
            value = x[index].astype("int32")
            if zero_at is not None:
                value = value - zero_at(zeros[0], index).astype("int32")
            return (value.astype("float32") * scale_at(scale, index).astype("float32")).astype(dtype)

        return te.compute(shape, element, name="dequantised")

    return call.loops(compute, *_given(call.operands[:3]))


def _quantize_dynamically(call: Call) -> Any:
    """Scale and zero point by the range of what is quantised, in which zero lies."""
    x, shape = call.operand(0), call.type(0).shape
    high = call.builder.emit(relax.op.maximum(relax.op.max(x), call.constant(0, "float32")))
    low = call.builder.emit(relax.op.minimum(relax.op.min(x), call.constant(0, "float32")))
    limit = np.float32(255)

    def scale_of(top: te.Tensor, bottom: te.Tensor) -> te.Tensor:
        return te.compute((), lambda: (top[()] - bottom[()]) / limit, name="scale")

    def zero_of(bottom: te.Tensor, scale: te.Tensor) -> te.Tensor:
        def element() -> Any:
            # nothing but zeros has the scale zero
            position = tirx.Select(scale[()] == 0, tirx.const(0, "float32"), -bottom[()] / scale[()])
            return _rounded(position, tirx.const(0, "uint8"), "uint8")

        return te.compute((), element, name="zero_point")

    def quantised(values: te.Tensor, scale: te.Tensor, zero: te.Tensor) -> te.Tensor:
        def element(*index: Any) -> Any:
            quotient = tirx.Select(scale[()] == 0, tirx.const(0, "float32"), values[index] / scale[()])
            return _rounded(quotient, zero[()], "uint8")

        return te.compute(shape, element, name="quantised")

    scale = call.loops(scale_of, high, low)
    zero = call.loops(zero_of, low, scale)
    return [call.loops(quantised, x, scale, zero), scale, zero]


def _centred(call: Call, position: int, zero_position: int, axis: int) -> relax.Expr:
    """Subtract an operand's zero point, as int32."""
    shape = call.type(position).shape
    zero = call.operand(zero_position)
    by_axis = zero is not None and len(call.type(zero_position).shape) > 0
    zero_at = (
        _spread(call, zero_position, shape, axis)
        if by_axis and len(shape) > 1
        else lambda table, index: table[(0,) * len(table.shape)]
    )

    def compute(x: te.Tensor, *zeros: te.Tensor) -> te.Tensor:
        def element(*index: Any) -> Any:
            value = x[index].astype("int32")
            return value - zero_at(zeros[0], index).astype("int32") if zeros else value

        return te.compute(shape, element, name="centred")

    operands = [call.operand(position), *([] if zero is None else [zero])]
    if call.array(position) is not None and (zero is None or call.array(zero_position) is not None):
        return call.constant(_centred_constant(call, position, zero_position, axis), "int32")
    return call.loops(compute, *operands)


def _centred_constant(call: Call, position: int, zero_position: int, axis: int) -> np.ndarray:
    array, zero = call.array(position), call.array(zero_position)
    assert array is not None
    wide = array.astype(np.int32)
    if zero is None:
        return wide
    if zero.ndim == 1 and zero.size > 1:
        spread = [1] * wide.ndim
        spread[axis % wide.ndim] = -1
        zero = zero.reshape(spread)
    elif zero.size == 1:
        zero = zero.reshape(())
    return wide - zero.astype(np.int32)


def _convolved(call: Call, x: relax.Expr, weights: relax.Expr, x_position: int, weights_position: int) -> relax.Expr:
    values = call.attributes
    spatial = len(call.type(x_position).shape) - 2
    kernel = call.type(weights_position).shape[2:]
    pads = window_padding(values, call.type(x_position).shape[2:], kernel)
    op = {1: relax.op.nn.conv1d, 2: relax.op.nn.conv2d, 3: relax.op.nn.conv3d}[spatial]
    return op(
        x,
        weights,
        strides=list(values.get("strides", [1] * spatial)),
        padding=pads,
        dilation=list(values.get("dilations", [1] * spatial)),
        groups=values.get("group", 1),
        out_dtype="int32",
    )


def _conv_integer(call: Call) -> Any:
    return _convolved(call, _centred(call, 0, 2, 1), _centred(call, 1, 3, 0), 0, 1)


def _matmul_integer(call: Call) -> Any:
    return relax.op.matmul(_centred(call, 0, 2, -2), _centred(call, 1, 3, -1), out_dtype="int32")


def _requantised(call: Call, product: relax.Expr, positions: tuple[int, int, int, int], axis: int) -> relax.Expr:
    """Scale a product of integers as the result is; ``positions``: scales of operands and result, its zero point."""
    left, right, own, zero_position = positions
    shape, dtype = call.result.shape, call.result.dtype

    def at(position: int) -> Callable[[te.Tensor, tuple[Any, ...]], Any]:
        return _spread(call, position, shape, axis if position == right else -2)

    readers = [at(position) for position in (left, right, own, zero_position)]

    def compute(total: te.Tensor, *tables: te.Tensor) -> te.Tensor:
        def element(*index: Any) -> Any:
            first, second, scale, zero = (read(table, index) for read, table in zip(readers, tables, strict=True))
            factor = first.astype("float32") * second.astype("float32") / scale.astype("float32")
            return _rounded(total[index].astype("float32") * factor, zero, dtype)

        return te.compute(shape, element, name="requantised")

    return call.loops(compute, product, *(call.operand(position) for position in positions))


def _qlinear_matmul(call: Call) -> Any:
    product = relax.op.matmul(_centred(call, 0, 2, -2), _centred(call, 3, 5, -1), out_dtype="int32")
    return _requantised(call, call.builder.emit(product), (1, 4, 6, 7), -1)


def _qlinear_conv(call: Call) -> Any:
    product = call.builder.emit(_convolved(call, _centred(call, 0, 2, 1), _centred(call, 3, 5, 0), 0, 3))
    bias = call.operand(8)
    if bias is not None:
        spread = (1, -1, *[1] * (len(call.type(0).shape) - 2))
        product = call.builder.emit(relax.op.add(product, call.builder.emit(relax.op.reshape(bias, spread))))
    return _requantised(call, product, (1, 4, 6, 7), 1)


CONVERTERS: Mapping[str, Converter] = {
    "ConvInteger": _conv_integer,
    "DequantizeLinear": _dequantize,
    "DynamicQuantizeLinear": _quantize_dynamically,
    "MatMulInteger": _matmul_integer,
    "QLinearConv": _qlinear_conv,
    "QLinearMatMul": _qlinear_matmul,
    "QuantizeLinear": _quantize,
}
