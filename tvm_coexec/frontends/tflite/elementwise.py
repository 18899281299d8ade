"""TFLite's operators that compute each element from those at the same place, in whatever order of axes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import tflite
from tvm import relax

from tvm_coexec.errors import ModelError

from .importer import Conversion


def activated(value: relax.Expr, options: Any) -> relax.Expr:
    """Apply the activation that an operator's options ask for."""
    kind = 0 if options is None else options.FusedActivationFunction()
    if kind == tflite.ActivationFunctionType.NONE:
        return value
    return FUSED[kind](value)


def clipped(value: relax.Expr, low: float, high: float) -> relax.Expr:
    """Limit the value to a range."""
    return relax.op.clip(value, low, high)


def _hard_swish(value: relax.Expr) -> relax.Expr:
    gate = clipped(relax.op.add(value, _number(3.0, value)), 0, 6)
    return relax.op.multiply(relax.op.multiply(value, gate), _number(1 / 6, value))


def _elu(value: relax.Expr) -> relax.Expr:
    below = relax.op.nn.relu(relax.op.subtract(_number(1.0, value), relax.op.exp(value)))
    return relax.op.subtract(relax.op.nn.relu(value), below)


def _number(number: float, beside: relax.Expr) -> relax.Expr:
    dtype = beside.ty.dtype if hasattr(beside, "ty") and isinstance(beside.ty, relax.TensorType) else "float32"
    return relax.const(number, str(dtype))


def _unary(make: Callable[[relax.Expr], relax.Expr]) -> Callable[[Conversion], relax.Expr]:
    return lambda step: make(step.operand(0))


def _binary(make: Callable[[relax.Expr, relax.Expr], relax.Expr]) -> Callable[[Conversion], relax.Expr]:
    def convert(step: Conversion) -> relax.Expr:
        has_activation = hasattr(step.options, "FusedActivationFunction")
        return activated(make(step.operand(0), step.operand(1)), step.options if has_activation else None)

    return convert


def _squared_difference(first: relax.Expr, second: relax.Expr) -> relax.Expr:
    difference = relax.op.subtract(first, second)
    return relax.op.multiply(difference, difference)


def _divide(step: Conversion) -> relax.Expr:
    """Divide; quotients of integers are rounded towards zero."""
    first, second = step.operands()
    if step.tensor(0).dtype.startswith("float"):
        return activated(relax.op.divide(first, second), step.options)
    quotient = relax.op.divide(relax.op.astype(first, "float64"), relax.op.astype(second, "float64"))
    return relax.op.astype(relax.op.trunc(quotient), step.tensor(0).dtype)


def _gelu(step: Conversion) -> relax.Expr:
    make = relax.op.nn.gelu_tanh if step.options is not None and step.options.Approximate() else relax.op.nn.gelu
    return make(step.operand(0))


def _leaky_relu(step: Conversion) -> relax.Expr:
    value, alpha = step.operand(0), float(step.options.Alpha())
    if math.isfinite(alpha):
        return relax.op.nn.leakyrelu(value, alpha)
    below = relax.op.multiply(value, _number(alpha, value))
    return relax.op.where(relax.op.greater(value, _number(0.0, value)), value, below)


def _prelu(step: Conversion) -> relax.Expr:
    """Below zero there is a slope, of one number for each channel where that is enough.

    A layer's step multiplies zero by it as well, of which NaN and infinity make NaN.
    """
    channels, value = step.shape(0)[-1], step.operand(0)
    slopes, zero = step.importer.constant(step.operator.inputs[1]), _number(0.0, value)
    if slopes is None or not np.isfinite(slopes).all():
        below = relax.op.multiply(value, step.operand(1))
        return relax.op.where(relax.op.greater_equal(value, zero), value, below)
    if slopes.size == 1 or slopes.size == channels == slopes.shape[-1]:
        of_channels = np.broadcast_to(slopes.reshape(-1), (channels,)).copy()
        axis = step.axis(-1, len(step.shape(0)))
        return relax.op.nn.prelu(value, relax.const(of_channels, "float32"), axis=axis)
    below = relax.op.multiply(step.operand(1), relax.op.minimum(value, zero))
    return relax.op.add(relax.op.maximum(value, zero), below)


def _cast(step: Conversion) -> relax.Expr:
    tensor = step.importer.file.tensors[step.operator.outputs[0]]
    if step.tensor(0).is_quantised or tensor.is_quantised:
        raise ModelError(f"{step.source} reads the integers of a quantised tensor; convert the model without it")
    return relax.op.astype(step.operand(0), tensor.dtype)


def _same(step: Conversion) -> relax.Expr:
    """What passes on the numbers of its operand, which is known by them whatever stands for them in the file."""
    return step.operand(0)


def _fake_quant(step: Conversion) -> relax.Expr:
    """The nearest of a few numbers between two bounds, which are moved so that 0 is one of them."""
    options = step.options
    # LiteRT computes the bounds in float32, where halves may fall to the other side
    first, last = np.float32(options.NarrowRange()), np.float32(2 ** options.NumBits() - 1)
    low, high = np.float32(options.Min()), np.float32(options.Max())
    scale = (high - low) / (last - first)
    zero_point = np.floor(np.clip(first - low / scale, first, last) + np.float32(0.5))
    low, high = (first - zero_point) * scale, (last - zero_point) * scale
    shifted = relax.op.subtract(clipped(step.operand(0), float(low), float(high)), relax.const(low, "float32"))
    scaled = relax.op.multiply(shifted, relax.const(1 / scale, "float32"))
    steps = relax.op.floor(relax.op.add(scaled, relax.const(0.5, "float32")))
    return relax.op.add(relax.op.multiply(steps, relax.const(scale, "float32")), relax.const(low, "float32"))


def _add_n(step: Conversion) -> relax.Expr:
    return functools.reduce(relax.op.add, step.operands())


def _select(step: Conversion) -> relax.Expr:
    return relax.op.where(*step.operands())


FUSED: dict[int, Callable[[relax.Expr], relax.Expr]] = {
    tflite.ActivationFunctionType.RELU: relax.op.nn.relu,
    tflite.ActivationFunctionType.RELU_N1_TO_1: functools.partial(clipped, low=-1, high=1),
    tflite.ActivationFunctionType.RELU6: functools.partial(clipped, low=0, high=6),
    tflite.ActivationFunctionType.TANH: relax.op.tanh,
}
"""Activations that other operators may end in."""

_UNARY: dict[str, Callable[[relax.Expr], relax.Expr]] = {
    "ABS": relax.op.abs,
    "CEIL": relax.op.ceil,
    "COS": relax.op.cos,
    "ELU": _elu,
    "EXP": relax.op.exp,
    "FLOOR": relax.op.floor,
    "HARD_SWISH": _hard_swish,
    "LOG": relax.op.log,
    "LOGICAL_NOT": relax.op.logical_not,
    "LOGISTIC": relax.op.sigmoid,
    "NEG": relax.op.negative,
    "RELU": relax.op.nn.relu,
    "RELU6": FUSED[tflite.ActivationFunctionType.RELU6],
    "RELU_0_TO_1": functools.partial(clipped, low=0, high=1),
    "RELU_N1_TO_1": FUSED[tflite.ActivationFunctionType.RELU_N1_TO_1],
    "ROUND": relax.op.round,
    "RSQRT": relax.op.rsqrt,
    "SIGN": relax.op.sign,
    "SIN": relax.op.sin,
    "SQRT": relax.op.sqrt,
    "SQUARE": lambda value: relax.op.multiply(value, value),
    "TANH": relax.op.tanh,
}

_BINARY: dict[str, Callable[[relax.Expr, relax.Expr], relax.Expr]] = {
    "ADD": relax.op.add,
    "ATAN2": relax.op.atan2,
    "EQUAL": relax.op.equal,
    "FLOOR_DIV": relax.op.floor_divide,
    "FLOOR_MOD": relax.op.floor_mod,
    "GREATER": relax.op.greater,
    "GREATER_EQUAL": relax.op.greater_equal,
    "LESS": relax.op.less,
    "LESS_EQUAL": relax.op.less_equal,
    "LOGICAL_AND": relax.op.logical_and,
    "LOGICAL_OR": relax.op.logical_or,
    "MAXIMUM": relax.op.maximum,
    "MINIMUM": relax.op.minimum,
    "MUL": relax.op.multiply,
    "NOT_EQUAL": relax.op.not_equal,
    "POW": relax.op.power,
    "SQUARED_DIFFERENCE": _squared_difference,
    "SUB": relax.op.subtract,
}

CONVERTERS: dict[str, Callable[[Conversion], relax.Expr]] = {
    **{code: _unary(make) for code, make in _UNARY.items()},
    **{code: _binary(make) for code, make in _BINARY.items()},
    "ADD_N": _add_n,
    "CAST": _cast,
    "DENSIFY": _same,
    "DEQUANTIZE": _same,
    "DIV": _divide,
    "FAKE_QUANT": _fake_quant,
    "GELU": _gelu,
    "LEAKY_RELU": _leaky_relu,
    "PRELU": _prelu,
    "QUANTIZE": _same,
    "SELECT_V2": _select,
}
