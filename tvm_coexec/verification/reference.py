"""What a step should compute, in float64 numpy: the yardstick of every measured candidate."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from tvm_coexec.layers import (
    AnyLayer,
    Attention,
    Concat,
    Conv2d,
    Elementwise,
    ImageLayer,
    Linear,
    LocalNorm,
    MatMul,
    PlaceRows,
    Pool,
    Rearrange,
    Resize,
    RowWise,
    step_name,
    step_numbers,
    step_operands,
)

_erf = np.vectorize(math.erf, otypes=[np.float64])


def _gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + _erf(x / math.sqrt(2)))


def _gelu_tanh(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _silu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + np.tanh(0.5 * x))


def _relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def _relu6(x: np.ndarray) -> np.ndarray:
    return np.clip(x, 0, 6)


def _hard_swish(x: np.ndarray) -> np.ndarray:
    return x * np.clip(x + 3, 0, 6) / 6


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * x))


def _elu(x: np.ndarray, alpha: float, factor: float) -> np.ndarray:
    return factor * np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def _softplus(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(x, 0)


_ACTIVATIONS: dict[str, Callable[..., np.ndarray]] = {
    "abs": np.abs,
    "clip": np.clip,
    "elu": _elu,
    "erf": _erf,
    "exp": np.exp,
    "hard_sigmoid": lambda x, alpha, beta: np.clip(alpha * x + beta, 0, 1),
    "inverse_root": lambda x, epsilon: 1 / np.sqrt(np.maximum(x, 0) + epsilon),
    "leaky_relu": lambda x, alpha: np.where(x < 0, alpha * x, x),
    "mish": lambda x: x * np.tanh(_softplus(x)),
    "negative": np.negative,
    "softplus": _softplus,
    "square": np.square,
    "tanh": np.tanh,
    "relu": _relu,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "silu": _silu,
    "relu6": _relu6,
    "hard_swish": _hard_swish,
    "sigmoid": _sigmoid,
}


def _convolve(layer: Conv2d, x: np.ndarray, weights: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Some pixels of the output: the input that each reads, times the weights, group by group."""
    top, left, bottom, right = layer.padding
    padded = np.pad(x.astype(np.float64), ((0, 0), (top, bottom), (left, right), (0, 0)))
    image, line, column = np.unravel_index(pixels, (layer.batch, layer.out_h, layer.out_w))
    tap_h, tap_w = np.indices(layer.kernel).reshape(2, -1)
    lines = line[:, None] * layer.stride[0] + tap_h * layer.dilation[0]
    columns = column[:, None] * layer.stride[1] + tap_w * layer.dilation[1]
    read = padded[image[:, None], lines, columns].reshape(len(pixels), len(tap_h), layer.groups, -1)
    packed = weights.astype(np.float64).reshape(layer.groups, -1, read.shape[-1], len(tap_h))
    by_group = read.transpose(2, 0, 1, 3).reshape(layer.groups, len(pixels), -1)
    result = by_group @ packed.transpose(0, 3, 2, 1).reshape(layer.groups, by_group.shape[2], -1)
    return result.transpose(1, 0, 2).reshape(len(pixels), layer.out_channels)


def _attend(layer: Attention, operands: Mapping[str, np.ndarray]) -> np.ndarray:
    q, k, v = (_heads(layer, operands[name], position) for position, name in enumerate(("input", "input1", "input2")))
    scores = q @ k.transpose(0, 1, 3, 2) * layer.scale
    mask = operands.get("mask", operands.get("input3"))
    if mask is not None:
        scores = scores + mask.astype(np.float64).reshape(*layer.mask_sizes, layer.keys)
    highest = scores.max(axis=-1, keepdims=True)
    power = np.exp(scores - (np.where(np.isneginf(highest), 0.0, highest) if layer.empty_is_zero else highest))
    total = power.sum(axis=-1, keepdims=True)
    result = (power / (np.where(total == 0, 1.0, total) if layer.empty_is_zero else total)) @ v
    return result.transpose(0, 2, 1, 3).reshape(-1, layer.out_channels)


def _heads(layer: Attention, rows: np.ndarray, operand: int) -> np.ndarray:
    """Columns of one of the three operands of attention, ``[batch, heads, rows, columns of a head]``."""
    starts = layer.offsets[operand] + layer.head_steps[operand] * np.arange(layer.heads)
    columns = starts[:, None] + np.arange(layer.head_dims[operand])
    return rows[:, columns].astype(np.float64).reshape(layer.batch, -1, *columns.shape).transpose(0, 2, 1, 3)


def _multiply(layer: MatMul, operands: Mapping[str, np.ndarray]) -> np.ndarray:
    left = layer.left.of(operands["input"].astype(np.float64), layer.batch, layer.heads, layer.m, layer.k)
    right = layer.right.of(operands["input1"].astype(np.float64), layer.batch, layer.heads, layer.k, layer.n)
    product = left @ right * layer.scale
    return (product if layer.heads_in_rows else product.transpose(0, 2, 1, 3)).reshape(layer.output_size)


def _place_rows(layer: PlaceRows, operands: Mapping[str, np.ndarray]) -> np.ndarray:
    rows = operands["input"].astype(np.float64).reshape(layer.batch, layer.in_rows, layer.channels)
    result = np.zeros((layer.batch, layer.out_rows, layer.channels))
    first, last = max(layer.shift, 0), min(layer.in_rows + layer.shift, layer.out_rows)
    result[:, first:last] = rows[:, first - layer.shift : last - layer.shift]
    if layer.has_summand:
        result = result + operands["summand"].astype(np.float64)
    return result.reshape(-1, layer.channels)


def _pool(layer: Pool, x: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Some pixels of the output, a place of the window at a time."""
    image, line, column = np.unravel_index(pixels, (layer.batch, layer.out_h, layer.out_w))
    is_max = layer.kind == "max"
    result = np.full((len(pixels), layer.channels), -np.inf if is_max else 0.0)
    counts = np.zeros((len(pixels), 1))
    for tap_h, tap_w in np.ndindex(*layer.kernel):
        lines = line * layer.stride[0] + tap_h * layer.dilation[0] - layer.padding[0]
        columns = column * layer.stride[1] + tap_w * layer.dilation[1] - layer.padding[1]
        inside = (lines >= 0) & (lines < layer.h) & (columns >= 0) & (columns < layer.w)
        read = x[image[inside], lines[inside], columns[inside]]
        read = read**2 if layer.kind == "mean_square" else read
        result[inside] = np.maximum(result[inside], read) if is_max else result[inside] + read
        counts[inside] += 1
    if is_max:
        return result
    return result / (math.prod(layer.kernel) if layer.count_padding else counts)


def _normalise_locally(layer: LocalNorm, x: np.ndarray) -> np.ndarray:
    before = (layer.size - 1) // 2
    ends = np.arange(layer.channels) - before + layer.size
    sums = np.pad(np.cumsum(x**2, axis=-1), ((0, 0), (1, 0)))
    total = sums[:, np.minimum(ends, layer.channels)] - sums[:, np.maximum(ends - layer.size, 0)]
    return x / (layer.bias + layer.alpha / layer.size * total) ** layer.beta


def _rearrange(layer: Rearrange, x: np.ndarray) -> np.ndarray:
    """Every element from its place, which is computed for the whole output at once."""
    positions = [np.full(layer.output, offset) for offset in layer.offsets]
    for axis, indices in enumerate(np.indices(layer.output)):
        rest = indices + layer.starts[axis]
        for _, extent, along, step in reversed(layer.axis_digits(axis)):
            positions[along] += rest % extent * step
            rest = rest // extent
    inside = np.all(
        [(position >= 0) & (position < size) for position, size in zip(positions, layer.input, strict=True)], axis=0
    )
    read = x[tuple(np.clip(position, 0, size - 1) for position, size in zip(positions, layer.input, strict=True))]
    return np.where(inside, read, layer.fill)


def _resize(layer: Resize, x: np.ndarray) -> np.ndarray:
    """Lines, then columns, between those of the input."""
    for axis, count in enumerate((layer.out_h, layer.out_w)):
        last = layer.input[1 + axis] - 1
        position = np.clip(np.arange(count) * layer.scale[axis] + layer.shift[axis], 0, last)
        below = np.floor(position).astype(int)
        share = np.expand_dims(position - below, (0, 2, 3) if axis == 0 else (0, 1, 3))
        x = x.take(below, 1 + axis) * (1 - share) + x.take(np.minimum(below + 1, last), 1 + axis) * share
    return x


def _image_body(layer: AnyLayer, operands: Mapping[str, np.ndarray], pixels: np.ndarray) -> np.ndarray:
    """Some pixels of a layer's output image."""
    if isinstance(layer, Conv2d):
        return _convolve(layer, operands["input"], operands["weights"], pixels)
    if isinstance(layer, Pool):
        return _pool(layer, operands["input"].astype(np.float64), pixels)
    if isinstance(layer, Rearrange | Resize):
        image = operands["input"].astype(np.float64)
        made = _rearrange(layer, image) if isinstance(layer, Rearrange) else _resize(layer, image)
        return made.reshape(-1, layer.out_channels)[pixels]
    h, w = layer.output_size[1:3]
    names = ["input", *(f"input{position}" for position in range(1, len(layer.input_sizes)))]
    # An axis of one element has the same for every place.
    batch = layer.output_size[0]
    images = [np.broadcast_to(x, (batch, h, w, x.shape[-1])) for x in (operands[name] for name in names)]
    where = np.unravel_index(pixels, (batch, h, w))
    rows = [image[where].astype(np.float64) for image in images]
    if isinstance(layer, Concat):
        return np.concatenate(rows, axis=-1)
    if isinstance(layer, Elementwise):
        result: np.ndarray = getattr(np, layer.kind)(*rows)
        return result
    if isinstance(layer, LocalNorm):
        return _normalise_locally(layer, rows[0])
    raise NotImplementedError(f"there is no reference for {layer.op} layers")


_MIXING: dict[type, Callable[..., np.ndarray]] = {Attention: _attend, MatMul: _multiply, PlaceRows: _place_rows}
"""Layers that mix rows."""


def _body(layer: AnyLayer, operands: Mapping[str, np.ndarray], pixels: np.ndarray | None) -> np.ndarray:
    if isinstance(layer, ImageLayer):
        every = np.arange(math.prod(layer.output_size[:-1]))
        return _image_body(layer, operands, every if pixels is None else pixels)
    if isinstance(layer, Attention | MatMul | PlaceRows):
        return _MIXING[type(layer)](layer, operands)
    x = operands["input"].astype(np.float64)
    if isinstance(layer, Linear):
        return x @ operands["weights"].astype(np.float64)
    if not isinstance(layer, RowWise):
        raise NotImplementedError(f"there is no reference for {layer.op} layers")
    if layer.kind == "layer_norm":
        centred = x - x.mean(axis=-1, keepdims=True)
        normal = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + layer.epsilon)
        return normal * operands["gamma"] + operands["beta"]
    if layer.kind == "softmax":
        power = np.exp(x - x.max(axis=-1, keepdims=True))
        return power / power.sum(axis=-1, keepdims=True)
    return x


def evaluate(layer: AnyLayer, operands: Mapping[str, np.ndarray], pixels: np.ndarray | None = None) -> np.ndarray:
    """Rows of the layer's output in float64.

    Parameters
    ----------
    operands
        ``input [rows, k]``, ``weights [k, n]``, vectors ``[n]``, ``residual [rows, n]``: unpacked, any number of rows.
        For a layer of images ``input``, ``input1`` … ``[batch, h, w, channels]``, ``weights [out, in / groups,
        kernel]`` and, of the pixels computed alone, ``residual [pixels, out]``.
    pixels
        Numbers of the pixels of an output image to compute; by default all.
    """
    value = _body(layer, operands, pixels)
    for step, name in zip(layer.epilogue, step_operands(layer.epilogue), strict=True):
        value = _after_step(value, step, None if name is None else operands[name].astype(np.float64))
    return value


def _after_step(value: np.ndarray, step: str, operand: np.ndarray | None) -> np.ndarray:
    if operand is None:
        return _ACTIVATIONS[step_name(step)](value, *step_numbers(step))
    if step == "scale":
        return value * operand
    return np.where(value < 0, value * operand, value) if step == "prelu" else value + operand


def relative_error(result: np.ndarray, expected: np.ndarray) -> float:
    """Largest error over the largest magnitude expected; infinite where a result is not finite."""
    if not np.all(np.isfinite(result)):
        return math.inf
    return float(np.abs(result - expected).max() / max(float(np.abs(expected).max()), 1e-30))
