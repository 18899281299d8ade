"""Operators that random graphs grow by: all that are supported, with operands, axes and attributes of every kind."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from random_graphs import Growing, check, has_rank
from random_moves import (
    concatenation,
    cut,
    division,
    gathering,
    padding,
    rearrangement,
    resizing,
    spreading,
    transposition,
    view,
)

UNARY = (
    "Abs", "Cos", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Mish", "Neg",
    "Relu", "Selu", "Sigmoid", "Sin", "Softplus", "Softsign", "Tanh",
)  # fmt: skip
REDUCTIONS = ("ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "ReduceL2", "ReduceSumSquare", "ReduceL1")
MARGIN = 1e-3
"""Distance that numbers keep from where a result jumps."""


def unary(g: Growing) -> str:
    return g.add(g.pick(UNARY), g.value())


def parametric(g: Growing) -> str:
    """Operators with attributes or with constants of their own."""
    x = g.value()
    kind = g.pick(("LeakyRelu", "Elu", "HardSigmoid", "ThresholdedRelu", "Celu", "Clip", "PRelu", "Gelu"))
    if kind == "Clip":
        low, high = g.const(-0.5) if g.chance(70) else "", g.const(0.8) if g.chance(70) else ""
        return g.add("Clip", x, low, high)
    if kind == "PRelu":
        channels = g[x].shape[1] if g[x].ndim > 1 else 1
        shape = g.pick(((1,), (channels, *(1,) * (g[x].ndim - 2)), g[x].shape[-1:]))
        return g.add("PRelu", x, g.const(g.normal(*shape)))
    if kind == "Gelu":
        return g.add("Gelu", x, approximate=g.pick(("none", "tanh")))
    check(kind != "ThresholdedRelu" or np.abs(g[x] - 0.3).min() > MARGIN)
    return g.add(kind, x, alpha=0.3)


def positive(g: Growing) -> str:
    """Functions of positive numbers."""
    x = g.add("Add", g.add("Abs", g.value()), g.const(0.5))
    if g.chance(25):
        return g.add("Pow", x, g.const(g.pick((2.0, 0.5, -1.0, 3.0))))
    return g.add(g.pick(("Sqrt", "Log", "Reciprocal")), x)


def rounded(g: Growing) -> str:
    """Functions that jump, away from their jumps."""
    x = g.value()
    op = g.pick(("Floor", "Ceil", "Round", "Sign", "Cast"))
    doubled = g[x] * 2
    check(np.abs(doubled - np.round(doubled)).min() > MARGIN)
    if op == "Cast":
        whole = g.add("Cast", x, to=g.pick((6, 7)))  # int32, int64
        return g.add("Cast", whole, to=1)
    return g.add(op, x)


def with_constant(g: Growing) -> str:
    """Arithmetic with a constant of any shape that fits, on either side."""
    x = g.value()
    shape = [size if g.chance(50) else 1 for size in g[x].shape]
    while shape and shape[0] == 1 and g.chance(60):
        del shape[0]
    array = g.normal(*shape)
    constant = g.const(np.where(np.abs(array) < 0.2, 0.5, array))
    op = g.pick(("Add", "Sub", "Mul", "Div", "Min", "Max"))
    first = g.chance(30) and (op != "Div" or np.abs(g[x]).min() > 0.1)
    return g.add(op, *((constant, x) if first else (x, constant)))


def of_two(g: Growing) -> str:
    """Arithmetic of two activations whose shapes are equal or spread to each other."""
    x = g.value()

    def fits(array: np.ndarray) -> bool:
        try:
            return np.broadcast_shapes(array.shape, g[x].shape) is not None
        except ValueError:
            return False

    y = g.value(fits)
    op = g.pick(("Add", "Add", "Sub", "Mul", "Mul", "Min", "Max", "Sum", "Mean", "Div"))
    check(op != "Div" or np.abs(g[y]).min() > 0.1)
    return g.add(op, *((x, y) if g.chance(50) else (y, x)))


def chosen(g: Growing) -> str:
    """Comparisons and choices by them."""
    x = g.value()
    other = g.const(g.normal(*g[x].shape[-1:]))
    check(np.abs(g[x] - g[other]).min() > MARGIN)
    mask = g.add(g.pick(("Greater", "Less", "GreaterOrEqual", "LessOrEqual")), x, other)
    if g.chance(30):
        mask = g.add("Not", mask)
    return g.add("Where", mask, *((x, other) if g.chance(50) else (other, x)))


def matmul(g: Growing) -> str:
    x = g.value(lambda array: array.ndim >= 1)
    kind = g.pick(("right", "right", "right", "left", "batched", "two", "gemm"))
    k, n = g[x].shape[-1], g.pick((1, 5, 16, 32, 33, 40, 64))
    if kind == "right":
        product = g.add("MatMul", x, g.const(g.normal(k, n, scale=k**-0.5)))
        return g.add("Add", product, g.const(g.normal(n))) if g.chance(50) else product
    if kind == "gemm":
        return _gemm(g)
    check(g[x].ndim >= 2)
    if kind == "left":
        rows = g[x].shape[-2]
        return g.add("MatMul", g.const(g.normal(n, rows, scale=rows**-0.5)), x)
    if kind == "batched":
        return g.add("MatMul", x, g.const(g.normal(*g[x].shape[:-2], k, n, scale=k**-0.5)))
    axes = [*range(g[x].ndim - 2), g[x].ndim - 1, g[x].ndim - 2]
    scaled = g.add("Mul", x, g.const(k**-0.5))
    return g.add("MatMul", scaled, g.add("Transpose", x, perm=axes))


def _gemm(g: Growing) -> str:
    x = g.value(has_rank(2))
    trans_a, trans_b, n = g.integer(0, 1), g.integer(0, 1), g.pick((1, 5, 32, 40))
    k, rows = g[x].shape[1 - trans_a], g[x].shape[trans_a]
    weights = g.normal(*((n, k) if trans_b else (k, n)), scale=k**-0.5)
    bias = [] if g.chance(30) else [g.const(g.normal(*g.pick(((n,), (1, n), (rows, 1), (1,), (rows, n)))))]
    scales = {"alpha": g.pick((1.0, 0.5)), "beta": g.pick((1.0, 0.7))}
    return g.add("Gemm", x, g.const(weights), *bias, transA=trans_a, transB=trans_b, **scales)


def _window(g: Growing, sizes: Sequence[int]) -> dict[str, Any]:
    """Kernel, strides, padding and dilations over some axes."""
    kernel = [g.pick((1, 2, 3, 3, 5)) for _ in sizes]
    window: dict[str, Any] = {"kernel_shape": kernel}
    if g.chance(50):
        window["strides"] = [g.integer(1, 2) for _ in sizes]
    style = g.integer(0, 9)
    if style < 6:
        window["pads"] = [g.integer(0, size // 2) for size in kernel * 2]
    elif style < 8:
        window["auto_pad"] = g.pick(("SAME_UPPER", "SAME_LOWER", "VALID"))
    return window


def convolution(g: Growing) -> str:
    x = g.value(has_rank(3, 4, 4, 5))
    channels, sizes = g[x].shape[1], g[x].shape[2:]
    window = _window(g, sizes)
    if g.chance(20):
        window["dilations"] = [g.integer(1, 2) for _ in sizes]
    groups = g.pick([1, 1, channels, *(size for size in (2, 4) if channels % size == 0)])
    out = groups * g.pick((1, 1, 2, 3)) if groups > 1 else g.pick((1, 3, 16, 32, 33, 40))
    taps = channels // groups * math.prod(window["kernel_shape"])
    weights = g.const(g.normal(out, channels // groups, *window["kernel_shape"], scale=taps**-0.5))
    bias = [g.const(g.normal(out))] if g.chance(50) else []
    return g.add("Conv", x, weights, *bias, group=groups, **window)


def transposed_convolution(g: Growing) -> str:
    x = g.value(has_rank(3, 4))
    channels, sizes = g[x].shape[1], g[x].shape[2:]
    kernel, strides = [g.integer(1, 4) for _ in sizes], [g.integer(1, 2) for _ in sizes]
    groups = g.pick([1, 1, *(size for size in (2, channels) if channels % size == 0)])
    out = g.pick((1, 2, 3, 16))
    pads = [g.integer(0, size // 2) for size in kernel * 2]
    extra = [g.integer(0, stride - 1) for stride in strides]
    weights = g.const(g.normal(channels, out, *kernel, scale=(channels / groups * math.prod(kernel)) ** -0.5))
    bias = [g.const(g.normal(out * groups))] if g.chance(50) else []
    window: dict[str, Any] = {"kernel_shape": kernel, "strides": strides, "pads": pads, "output_padding": extra}
    return g.add("ConvTranspose", x, weights, *bias, group=groups, **window)


def pooling(g: Growing) -> str:
    x = g.value(has_rank(3, 4, 4, 5))
    if g.chance(30):
        return g.add(g.pick(("GlobalAveragePool", "GlobalMaxPool")), x)
    window = _window(g, g[x].shape[2:])
    # ONNX Runtime dies of some windows that are larger than the image
    check(all(extent <= size for extent, size in zip(window["kernel_shape"], g[x].shape[2:], strict=True)))
    if "auto_pad" not in window and g.chance(20):
        window["ceil_mode"] = 1
    if g.chance(50):
        return g.add("MaxPool", x, **window)
    return g.add("AveragePool", x, count_include_pad=g.integer(0, 1), **window)


def normalisation(g: Growing) -> str:
    x = g.value(lambda array: array.ndim >= 2)
    shape = g[x].shape
    kind = g.pick(("BatchNormalization", "BatchNormalization", "InstanceNormalization", "LayerNormalization", "LRN"))
    if kind == "BatchNormalization":
        parameters = [g.normal(shape[1]) for _ in range(3)] + [np.abs(g.normal(shape[1])) + 0.5]
        return g.add(kind, x, *map(g.const, parameters))
    if kind == "LayerNormalization":
        axis = g.axis(len(shape)) if g.chance(40) else -1
        parameters = [g.normal(*shape[axis:]) for _ in range(2)]
        check(math.prod(shape[axis:]) > 1)
        return g.add(kind, x, *map(g.const, parameters), axis=axis, epsilon=1e-3)
    check(len(shape) in (3, 4) and (kind != "LRN" or len(shape) == 4))
    if kind == "LRN":
        return g.add(kind, x, size=g.pick((1, 3, 5)), alpha=0.1, beta=0.6, bias=1.5)
    check(math.prod(shape[2:]) > 1)
    return g.add(kind, x, g.const(g.normal(shape[1])), g.const(g.normal(shape[1])), epsilon=1e-2)


def softmax(g: Growing) -> str:
    x = g.value(lambda array: array.ndim >= 1)
    return g.add(g.pick(("Softmax", "Softmax", "LogSoftmax")), x, axis=g.axis(g[x].ndim) if g.chance(60) else -1)


def reduction(g: Growing) -> str:
    x = g.value(lambda array: array.ndim >= 1)
    rank = g[x].ndim
    axes = sorted({g.axis(rank) % rank for _ in range(g.integer(1, rank))})
    axes = [axis - rank if g.chance(30) else axis for axis in axes]
    return g.add(g.pick(REDUCTIONS), x, g.const(axes, "int64"), keepdims=g.integer(0, 1))


def arg_extremum(g: Growing) -> str:
    x = g.value(lambda array: array.ndim >= 1)
    axis = g.axis(g[x].ndim)
    ordered = np.sort(g[x], axis=axis)
    check(ordered.shape[axis] > 1 and np.diff(ordered, axis=axis).min() > MARGIN)
    if g.chance(50):
        k = g.integer(1, ordered.shape[axis])
        found = g.add("TopK", x, g.const([k], "int64"), outputs=2, axis=axis, largest=g.integer(0, 1))
        return found
    index = g.add(g.pick(("ArgMax", "ArgMin")), x, axis=axis, keepdims=g.integer(0, 1))
    return g.add("Cast", index, to=1)


def excitation(g: Growing) -> str:
    """A squeeze-and-excitation block."""
    x = g.value(has_rank(4))
    channels = g[x].shape[1]
    squeezed = g.add("GlobalAveragePool", x)
    hidden = g.add("Relu", g.add("Conv", squeezed, g.const(g.normal(4, channels, 1, 1, scale=channels**-0.5))))
    weights = g.const(g.normal(channels, 4, 1, 1, scale=0.5))
    gate = g.add(g.pick(("Sigmoid", "HardSigmoid")), g.add("Conv", hidden, weights))
    return g.add("Mul", *((x, gate) if g.chance(50) else (gate, x)))


def residual(g: Growing) -> str:
    """A convolution, and what it read added to it."""
    x = g.value(has_rank(4))
    channels = g[x].shape[1]
    weights = g.const(g.normal(channels, channels, 3, 3, scale=(9 * channels) ** -0.5))
    made = g.add("Conv", x, weights, pads=[1, 1, 1, 1])
    activated = g.add(g.pick(("Relu", "Sigmoid", "Identity", "HardSwish")), made)
    return g.add("Relu", g.add("Add", *((activated, x) if g.chance(50) else (x, activated))))


def attention(g: Growing) -> str:
    """Attention over the rows of three axes, by one or more heads."""
    x = g.value(lambda array: array.ndim == 3 and array.shape[-1] % 2 == 0)
    batch, rows, width = g[x].shape
    heads = g.pick((1, 2))
    parts = []
    for perm in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]):
        made = g.add("MatMul", x, g.const(g.normal(width, width, scale=width**-0.5)))
        shaped = g.add("Reshape", made, g.const([batch, rows, heads, width // heads], "int64"))
        parts.append(g.add("Transpose", shaped, perm=perm))
    scores = g.add("Mul", g.add("MatMul", *parts[:2]), g.const((width / heads) ** -0.5))
    mixed = g.add("MatMul", g.add("Softmax", scores, axis=-1), parts[2])
    joined = g.add("Transpose", mixed, perm=[0, 2, 1, 3])
    return g.add("Reshape", joined, g.const([batch, rows, width], "int64"))


OPERATORS = (
    unary, unary, parametric, positive, rounded, with_constant, with_constant, of_two, of_two, chosen, matmul, matmul,
    convolution, convolution, convolution, transposed_convolution, pooling, pooling, normalisation, normalisation,
    softmax, reduction, arg_extremum, view, view, transposition, transposition, concatenation, concatenation, division,
    cut, cut, gathering, padding, spreading, resizing, rearrangement, excitation, residual, attention,
)  # fmt: skip
