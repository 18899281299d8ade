"""Operators that random graphs grow by: all that are supported, with operands, axes and attributes of every kind."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from random_graphs import Growing, UnfitError

UNARY = (
    "Abs", "Cos", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Mish", "Neg",
    "Relu", "Selu", "Sigmoid", "Sin", "Softplus", "Softsign", "Tanh",
)  # fmt: skip
REDUCTIONS = ("ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "ReduceL2", "ReduceSumSquare", "ReduceL1")
MARGIN = 1e-3
"""Distance that numbers keep from where a result jumps."""


def _has_rank(*ranks: int) -> Callable[[np.ndarray], bool]:
    return lambda array: array.ndim in ranks


def _check(fits: Any) -> None:
    if not fits:
        raise UnfitError


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
    _check(kind != "ThresholdedRelu" or np.abs(g[x] - 0.3).min() > MARGIN)
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
    _check(np.abs(doubled - np.round(doubled)).min() > MARGIN)
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
    _check(op != "Div" or np.abs(g[y]).min() > 0.1)
    return g.add(op, *((x, y) if g.chance(50) else (y, x)))


def chosen(g: Growing) -> str:
    """Comparisons and choices by them."""
    x = g.value()
    other = g.const(g.normal(*g[x].shape[-1:]))
    _check(np.abs(g[x] - g[other]).min() > MARGIN)
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
    _check(g[x].ndim >= 2)
    if kind == "left":
        rows = g[x].shape[-2]
        return g.add("MatMul", g.const(g.normal(n, rows, scale=rows**-0.5)), x)
    if kind == "batched":
        return g.add("MatMul", x, g.const(g.normal(*g[x].shape[:-2], k, n, scale=k**-0.5)))
    axes = [*range(g[x].ndim - 2), g[x].ndim - 1, g[x].ndim - 2]
    scaled = g.add("Mul", x, g.const(k**-0.5))
    return g.add("MatMul", scaled, g.add("Transpose", x, perm=axes))


def _gemm(g: Growing) -> str:
    x = g.value(_has_rank(2))
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
    x = g.value(_has_rank(3, 4, 4, 5))
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
    x = g.value(_has_rank(3, 4))
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
    x = g.value(_has_rank(3, 4, 4, 5))
    if g.chance(30):
        return g.add(g.pick(("GlobalAveragePool", "GlobalMaxPool")), x)
    window = _window(g, g[x].shape[2:])
    # ONNX Runtime dies of some windows that are larger than the image
    _check(all(extent <= size for extent, size in zip(window["kernel_shape"], g[x].shape[2:], strict=True)))
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
        _check(math.prod(shape[axis:]) > 1)
        return g.add(kind, x, *map(g.const, parameters), axis=axis, epsilon=1e-3)
    _check(len(shape) in (3, 4) and (kind != "LRN" or len(shape) == 4))
    if kind == "LRN":
        return g.add(kind, x, size=g.pick((1, 3, 5)), alpha=0.1, beta=0.6, bias=1.5)
    _check(math.prod(shape[2:]) > 1)
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
    _check(ordered.shape[axis] > 1 and np.diff(ordered, axis=axis).min() > MARGIN)
    if g.chance(50):
        k = g.integer(1, ordered.shape[axis])
        found = g.add("TopK", x, g.const([k], "int64"), outputs=2, axis=axis, largest=g.integer(0, 1))
        return found
    index = g.add(g.pick(("ArgMax", "ArgMin")), x, axis=axis, keepdims=g.integer(0, 1))
    return g.add("Cast", index, to=1)


def view(g: Growing) -> str:
    """Reshapes of every kind."""
    x = g.value()
    shape, kind = g[x].shape, g.pick(("Reshape", "Flatten", "Squeeze", "Unsqueeze"))
    if kind == "Flatten":
        return g.add(kind, x, axis=g.integer(-len(shape), len(shape)))
    if kind == "Squeeze":
        ones = [axis for axis, size in enumerate(shape) if size == 1 and g.chance(60)]
        return g.add(kind, x, *([g.const(ones, "int64")] if ones else []))
    if kind == "Unsqueeze":
        return g.add(kind, x, g.const([g.axis(len(shape) + 1)], "int64"))
    target = _refactored(g, shape)
    if target and g.chance(30):
        target[g.integer(0, len(target) - 1)] = -1
    return g.add(kind, x, g.const(target, "int64"))


def _refactored(g: Growing, shape: Sequence[int]) -> list[int]:
    """Other sizes of as many elements: neighbours are joined, or an axis is divided."""
    target = list(shape)
    for _ in range(g.integer(1, 2)):
        if len(target) > 1 and g.chance(50):
            index = g.integer(0, len(target) - 2)
            target[index : index + 2] = [target[index] * target[index + 1]]
        elif target:
            index = g.integer(0, len(target) - 1)
            divisor = g.pick([size for size in (1, 2, 3, 4, 8) if target[index] % size == 0])
            target[index : index + 1] = [divisor, target[index] // divisor]
    return target


def transposition(g: Growing) -> str:
    x = g.value(lambda array: array.ndim >= 2)
    axes = list(range(g[x].ndim))
    if g.chance(50):  # what exporters write: channels to the end or from there
        perm = g.pick(([axes[0], *axes[2:], axes[1]], [axes[0], axes[-1], *axes[1:-1]], axes[::-1]))
    else:
        perm = []
        while axes:
            perm.append(axes.pop(g.integer(0, len(axes) - 1)))
    return g.add("Transpose", x, perm=perm)


def concatenation(g: Growing) -> str:
    x = g.value(lambda array: array.ndim >= 1)
    rank, axis = g[x].ndim, g.axis(g[x].ndim)

    def fits(array: np.ndarray) -> bool:
        own, other = list(g[x].shape), list(array.shape)
        return len(own) == len(other) and own[: axis % rank] + own[axis % rank + 1 :] == (
            other[: axis % rank] + other[axis % rank + 1 :]
        )

    others = [g.value(fits) for _ in range(g.integer(1, 2))]
    if g.chance(20):
        others.append(g.const(g.normal(*g[x].shape)))
    return g.add("Concat", *([x, *others] if g.chance(70) else [*others, x]), axis=axis)


def division(g: Growing) -> str:
    x = g.value(lambda array: array.ndim >= 1 and max(array.shape) > 1)
    axis = g.pick([axis for axis, size in enumerate(g[x].shape) if size > 1])
    size = g[x].shape[axis]
    first = g.integer(1, size - 1)
    sizes = g.const([first, size - first], "int64")
    return g.add("Split", x, sizes, outputs=2, axis=axis - g[x].ndim if g.chance(30) else axis)


def cut(g: Growing) -> str:
    """Slices with all kinds of begins, ends and steps."""
    x = g.value(lambda array: array.ndim >= 1)
    rank = g[x].ndim
    axes = sorted({g.integer(0, rank - 1) for _ in range(g.integer(1, 2))})
    starts, ends, steps = [], [], []
    for axis in axes:
        size = g[x].shape[axis]
        if g.chance(25):
            starts, ends, steps = [*starts, -1], [*ends, -(2**31)], [*steps, -g.integer(1, 2)]
        else:
            first = g.integer(0, size - 1)
            last = g.pick((g.integer(first + 1, size), 2**31 - 1))
            starts.append(first - size if g.chance(30) else first)
            ends.append(last)
            steps.append(g.pick((1, 1, 1, 2, 3)))
    axes = [axis - rank if g.chance(30) else axis for axis in axes]
    return g.add("Slice", x, *(g.const(numbers, "int64") for numbers in (starts, ends, axes, steps)))


def gathering(g: Growing) -> str:
    x = g.value(lambda array: array.ndim >= 1)
    axis = g.axis(g[x].ndim)
    size = g[x].shape[axis]
    if g.chance(25):
        shape = list(g[x].shape)
        shape[axis] = g.integer(1, 3)
        return g.add("GatherElements", x, g.const(g.random.integers(-size, size, shape), "int64"), axis=axis)
    shape = g.pick(((), (1,), (3,), (2, 2)))
    return g.add("Gather", x, g.const(g.random.integers(-size, size, shape), "int64"), axis=axis)


def padding(g: Growing) -> str:
    x = g.value(lambda array: array.ndim >= 1)
    rank = g[x].ndim
    mode = g.pick(("constant", "constant", "reflect", "edge"))
    limits = [min(2, size - 1) if mode == "reflect" else 2 for size in g[x].shape]
    some = [g.chance(50) for _ in range(rank)]
    pads = [g.integer(0, limit) if on else 0 for limit, on in zip(limits * 2, some * 2, strict=True)]
    number = [g.const(g.pick((0.0, 1.5)))] if mode == "constant" and g.chance(50) else []
    return g.add("Pad", x, g.const(pads, "int64"), *number, mode=mode)


def spreading(g: Growing) -> str:
    x = g.value(lambda array: array.ndim >= 1)
    kind = g.pick(("Expand", "Tile"))
    if kind == "Tile":
        return g.add(kind, x, g.const([g.pick((1, 1, 2, 3)) for _ in g[x].shape], "int64"))
    shape = [size if size > 1 else g.integer(1, 3) for size in g[x].shape]
    return g.add(kind, x, g.const([2, *shape] if g.chance(20) else shape, "int64"))


def resizing(g: Growing) -> str:
    x = g.value(_has_rank(3, 4, 4))
    mode = g.pick(("nearest", "linear", "linear"))
    coordinates = g.pick(("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"))
    nearest = g.pick(("floor", "round_prefer_floor", "ceil")) if mode == "nearest" else None
    attributes = {"mode": mode, "coordinate_transformation_mode": coordinates, "nearest_mode": nearest}
    if g.chance(50):
        scales = [1.0, 1.0, *(g.pick((1.0, 2.0, 0.5, 3.0)) for _ in g[x].shape[2:])]
        # ONNX Runtime and ONNX's own tests align corners in different ways where a size is no whole number
        is_whole = all(size * scale % 1 == 0 for size, scale in zip(g[x].shape, scales, strict=True))
        _check(is_whole or coordinates != "align_corners")
        return g.add("Resize", x, "", g.const(scales), **attributes)
    sizes = [*g[x].shape[:2], *(g.integer(1, 2 * size) for size in g[x].shape[2:])]
    return g.add("Resize", x, "", "", g.const(sizes, "int64"), **attributes)


def rearrangement(g: Growing) -> str:
    """Depth to space, space to depth, triangles and running sums."""
    kind = g.pick(("DepthToSpace", "SpaceToDepth", "Trilu", "CumSum"))
    if kind == "DepthToSpace":
        x = g.value(lambda array: array.ndim == 4 and array.shape[1] % 4 == 0)
        return g.add(kind, x, blocksize=2, mode=g.pick(("DCR", "CRD")))
    if kind == "SpaceToDepth":
        x = g.value(lambda array: array.ndim == 4 and array.shape[2] % 2 == array.shape[3] % 2 == 0)
        return g.add(kind, x, blocksize=2)
    x = g.value(lambda array: array.ndim >= 2)
    if kind == "Trilu":
        return g.add(kind, x, upper=g.integer(0, 1))
    return g.add(kind, x, g.const(g.axis(g[x].ndim), "int64"), exclusive=g.integer(0, 1), reverse=g.integer(0, 1))


def excitation(g: Growing) -> str:
    """A squeeze-and-excitation block."""
    x = g.value(_has_rank(4))
    channels = g[x].shape[1]
    squeezed = g.add("GlobalAveragePool", x)
    hidden = g.add("Relu", g.add("Conv", squeezed, g.const(g.normal(4, channels, 1, 1, scale=channels**-0.5))))
    weights = g.const(g.normal(channels, 4, 1, 1, scale=0.5))
    gate = g.add(g.pick(("Sigmoid", "HardSigmoid")), g.add("Conv", hidden, weights))
    return g.add("Mul", *((x, gate) if g.chance(50) else (gate, x)))


def residual(g: Growing) -> str:
    """A convolution, and what it read added to it."""
    x = g.value(_has_rank(4))
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
