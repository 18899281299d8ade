"""What a graph computes, in float64 numpy: written apart from the product, to judge it by."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from tvm_coexec.graph import Graph, Node, Tensor
from tvm_coexec.layers import (
    AnyLayer,
    Attention,
    Concat,
    Conv2d,
    Elementwise,
    Linear,
    LocalNorm,
    MatMul,
    Matrices,
    Opaque,
    Operand,
    PlaceRows,
    Pool,
    Rearrange,
    Resize,
    RowWise,
)

_erf = np.vectorize(math.erf, otypes=[np.float64])

_ACTIVATIONS: dict[str, Callable[..., np.ndarray]] = {
    "abs": lambda x: np.where(x < 0, -x, x),
    "clip": lambda x, low, high: np.minimum(np.maximum(x, low), high),
    "elu": lambda x, alpha, factor: factor * np.where(x > 0, x, alpha * (np.exp(np.minimum(x, 0)) - 1)),
    "erf": _erf,
    "exp": np.exp,
    "hard_sigmoid": lambda x, alpha, beta: np.minimum(np.maximum(alpha * x + beta, 0.0), 1.0),
    "inverse_root": lambda x, epsilon: 1 / np.sqrt(np.maximum(x, 0) + epsilon),
    "leaky_relu": lambda x, alpha: np.where(x > 0, x, alpha * x),
    "mish": lambda x: x * np.tanh(np.log1p(np.exp(x))),
    "negative": lambda x: -x,
    "softplus": lambda x: np.where(x > 0, x, 0) + np.log1p(np.exp(-np.abs(x))),
    "square": lambda x: x**2,
    "tanh": np.tanh,
    "relu": lambda x: np.where(x > 0, x, 0.0),
    "gelu": lambda x: x * (1 + _erf(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "silu": lambda x: x * (1 + np.tanh(x / 2)) / 2,
    "relu6": lambda x: np.minimum(np.maximum(x, 0.0), 6.0),
    "hard_swish": lambda x: x * np.minimum(np.maximum(x + 3, 0.0), 6.0) / 6,
    "sigmoid": lambda x: (1 + np.tanh(x / 2)) / 2,
}


def evaluate(graph: Graph, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs of a graph, in the shapes that the model's user sees."""
    values: dict[str, np.ndarray] = {}
    for name in graph.inputs:
        tensor = graph.tensors[name]
        assert inputs[name].shape == tensor.shape, f"input {name!r} has shape {inputs[name].shape}, not {tensor.shape}"
        values[name] = _from_user(
            tensor, inputs[name].astype(np.float64 if tensor.dtype == "float32" else tensor.dtype)
        )
    for node in graph.nodes:
        opaque = isinstance(node.layer, Opaque)
        values[node.output] = _compute_program(node, values) if opaque else _evaluate_node(node, values)
        _fill_parents(graph, node.output, values)
    return {name: _to_user(graph.tensors[name], values[name]) for name in graph.outputs}


def _fill_parents(graph: Graph, name: str, values: dict[str, np.ndarray]) -> None:
    """Put a tensor where it lies in those that it is part of."""
    sliced = graph.tensors[name]
    if sliced.parent is not None:
        parent = graph.tensors[sliced.parent]
        rows = values.setdefault(sliced.parent, np.full((parent.rows, parent.channels), np.nan))
        end = sliced.first_channel + sliced.channels
        rows[:, sliced.first_channel : end] = values[name]
        if name == graph.slices(sliced.parent)[-1]:
            rows[:, end:] = 0
        _fill_parents(graph, sliced.parent, values)


def _from_user(tensor: Tensor, array: np.ndarray) -> np.ndarray:
    """Rows of channels."""
    if tensor.channels_first:
        assert tensor.image is not None
        batch, h, w, channels = tensor.image
        array = array.reshape(batch, channels, h * w).transpose(0, 2, 1)
    return array.reshape(tensor.rows, tensor.channels)


def _to_user(tensor: Tensor, rows: np.ndarray) -> np.ndarray:
    if tensor.channels_first:
        assert tensor.image is not None
        batch, h, w, channels = tensor.image
        rows = rows.reshape(batch, h * w, channels).transpose(0, 2, 1)
    return rows.reshape(tensor.shape)


def evaluate_layer(layer: AnyLayer, params: Mapping[str, np.ndarray], images: Mapping[str, np.ndarray]) -> np.ndarray:
    """The output image of a layer alone, from its images by their roles."""
    values = {role: image.reshape(-1, image.shape[-1]).astype(np.float64) for role, image in images.items()}
    others = tuple(role for role in images if role not in ("input", "residual"))
    residual = "residual" if "residual" in layer.epilogue else None
    node = Node("node", layer, "input", residual, "output", dict(params), others)
    return _evaluate_node(node, values).reshape(layer.output_size)


def _evaluate_node(node: Node, values: Mapping[str, np.ndarray]) -> np.ndarray:
    params = {name: array.astype(np.float64) for name, array in node.params.items()}
    value = values[node.input]
    if isinstance(node.layer, Linear):
        value = value @ params["weights"]
    elif isinstance(node.layer, Conv2d):
        value = _convolve(node.layer, value, params["weights"])
    elif isinstance(node.layer, Pool):
        value = _pool(node.layer, value)
    elif isinstance(node.layer, Rearrange):
        value = _rearrange(node.layer, value)
    elif isinstance(node.layer, Resize):
        value = _resize(node.layer, value)
    elif isinstance(node.layer, LocalNorm):
        value = _normalise_locally(node.layer, value)
    elif isinstance(node.layer, Concat):
        value = np.concatenate([value, *(values[name] for name in node.others)], axis=1)
    elif isinstance(node.layer, Elementwise):
        value = _combine(node.layer, value, values[node.others[0]])
    elif isinstance(node.layer, Attention):
        value = _attend(node.layer, value, *(values[name] for name in node.others), **params)
    elif isinstance(node.layer, MatMul):
        value = _multiply_matrices(node.layer, value, values[node.others[0]])
    elif isinstance(node.layer, PlaceRows):
        value = _place_rows(node.layer, value, params.get("summand", np.zeros(1)))
    else:
        value = _row_wise(node.layer, value, params)
    residual = {} if node.residual is None else {"residual": values[node.residual]}
    return after_steps(node.layer.epilogue, value, params, residual)


def after_steps(
    epilogue: Sequence[str], value: np.ndarray, params: Mapping[str, np.ndarray], values: Mapping[str, np.ndarray]
) -> np.ndarray:
    """Rows of channels after the steps of an epilogue, whose residual is among ``values``."""
    met: Counter[str] = Counter()
    for step in epilogue:
        position = f"{step}{met[step] or ''}"
        met[step] += 1
        if step == "residual":
            value = value + values["residual"]
        elif step == "bias":
            value = value + params[position]
        elif step == "scale":
            value = value * params[position]
        elif step == "prelu":
            value = np.where(value > 0, value, value * params[position])
        else:
            name, _, numbers = step.removesuffix(")").partition("(")
            value = _ACTIVATIONS[name](value, *map(float, numbers.split(",") if numbers else ()))
    return value


def _combine(layer: Elementwise, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    x, y = first.reshape(layer.first), second.reshape(layer.second)
    results = {
        "add": lambda: x + y,
        "divide": lambda: x / y,
        "maximum": lambda: np.where(x > y, x, y),
        "minimum": lambda: np.where(x < y, x, y),
        "multiply": lambda: x * y,
        "subtract": lambda: x - y,
    }
    return results[layer.kind]().reshape(-1, layer.out_channels)


def _rearrange(layer: Rearrange, rows: np.ndarray) -> np.ndarray:
    """Element by element."""
    image = rows.reshape(layer.input)
    result = np.full(layer.output, layer.fill)
    for index in np.ndindex(*layer.output):
        position = list(layer.offsets)
        for axis in range(4):
            digits = [digit for digit in layer.digits if digit[0] == axis]
            values = (
                np.unravel_index(index[axis] + layer.starts[axis], [digit[1] for digit in digits]) if digits else ()
            )
            for value, (_, _, along, step) in zip(values, digits, strict=True):
                position[along] += int(value) * step
        if all(0 <= at < size for at, size in zip(position, layer.input, strict=True)):
            result[index] = image[tuple(position)]
    return result.reshape(-1, layer.output[3])


def _resize(layer: Resize, rows: np.ndarray) -> np.ndarray:
    image = rows.reshape(layer.input)
    for axis, count in ((1, layer.out_h), (2, layer.out_w)):
        positions = np.arange(count) * layer.scale[axis - 1] + layer.shift[axis - 1]
        lines = np.moveaxis(image, axis, -1)
        known = np.arange(lines.shape[-1])
        between = [np.interp(positions, known, line) for line in lines.reshape(-1, len(known))]
        image = np.moveaxis(np.reshape(between, (*lines.shape[:-1], count)), -1, axis)
    return image.reshape(-1, layer.out_channels)


def _row_wise(layer: RowWise, value: np.ndarray, params: Mapping[str, np.ndarray]) -> np.ndarray:
    if layer.kind == "layer_norm":
        scale = np.sqrt(value.var(axis=1, keepdims=True) + layer.epsilon)
        return (value - value.mean(axis=1, keepdims=True)) / scale * params["gamma"] + params["beta"]
    if layer.kind == "softmax":
        power = np.exp(value - value.max(axis=1, keepdims=True))
        return power / power.sum(axis=1, keepdims=True)
    return value


def _taps(layer: Conv2d | Pool, image: np.ndarray, fill: float) -> Iterator[tuple[int, int, np.ndarray]]:
    """List for each index of a kernel the pixels that it meets, as ``[batch, out_h, out_w, channels]``."""
    top, left, bottom, right = layer.padding
    padded = np.pad(image, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=fill)
    for y in range(layer.kernel[0]):
        for x in range(layer.kernel[1]):
            first_y, first_x = y * layer.dilation[0], x * layer.dilation[1]
            rows = slice(first_y, first_y + (layer.out_h - 1) * layer.stride[0] + 1, layer.stride[0])
            columns = slice(first_x, first_x + (layer.out_w - 1) * layer.stride[1] + 1, layer.stride[1])
            yield y, x, padded[:, rows, columns]


def _convolve(layer: Conv2d, rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    image = rows.reshape(layer.batch, layer.h, layer.w, layer.in_channels)
    result = np.zeros((layer.batch, layer.out_h, layer.out_w, layer.groups, layer.out_channels // layer.groups))
    grouped = weights.reshape(layer.groups, -1, *weights.shape[1:])
    for y, x, pixels in _taps(layer, image, 0.0):
        split = pixels.reshape(*pixels.shape[:3], layer.groups, -1)
        result += np.einsum("bhwgi,goi->bhwgo", split, grouped[..., y, x], optimize=True)
    return result.reshape(-1, layer.out_channels)


def _pool(layer: Pool, rows: np.ndarray) -> np.ndarray:
    image = rows.reshape(layer.batch, layer.h, layer.w, layer.channels)
    image = image * image if layer.kind == "mean_square" else image
    if layer.kind == "max":
        result = np.max([pixels for _, _, pixels in _taps(layer, image, -np.inf)], axis=0)
    else:
        count = np.sum(
            [pixels for _, _, pixels in _taps(layer, np.ones_like(image), float(layer.count_padding))], axis=0
        )
        result = np.sum([pixels for _, _, pixels in _taps(layer, image, 0.0)], axis=0) / count
    return result.reshape(-1, layer.channels)


def _normalise_locally(layer: LocalNorm, rows: np.ndarray) -> np.ndarray:
    before, after = (layer.size - 1) // 2, layer.size // 2
    squares = np.pad(rows**2, ((0, 0), (before, after)))
    total = np.sum([squares[:, offset : offset + layer.channels] for offset in range(layer.size)], axis=0)
    return rows / (layer.bias + layer.alpha / layer.size * total) ** layer.beta


def _compute_program(node: Node, values: Mapping[str, np.ndarray]) -> np.ndarray:
    """What TVM makes of an opaque layer's program, in the program's own types."""
    layer = node.layer
    assert isinstance(layer, Opaque)
    import tvm
    from tvm import relax

    from tvm_coexec.schedules.programs import parsed

    target = tvm.target.Target({"kind": "llvm", "opt-level": 0})  # what is so small is computed before it is optimised
    executable = tvm.compile(parsed(layer.program), target=target)
    read = [values[name] for name in (node.input, *node.others)]
    seen = [_as_seen(operand, rows) for operand, rows in zip(layer.inputs, read, strict=True)]
    arrays = [tvm.runtime.tensor(array) for array in (*seen, *node.params.values())]
    result = relax.VirtualMachine(executable, tvm.cpu())["main"](*arrays).numpy()
    assert (result.shape, str(result.dtype)) == (layer.output.shape, layer.output.dtype)
    if layer.output.channels_first:
        result = result.reshape(layer.output.batch, layer.output.size[-1], -1).transpose(0, 2, 1)
    rows = result.reshape(layer.output.rows, -1)
    return rows.astype(np.float64) if layer.output.dtype == "float32" else rows


def _as_seen(operand: Operand, rows: np.ndarray) -> np.ndarray:
    if operand.channels_first:
        rows = rows.reshape(operand.batch, -1, operand.size[-1]).transpose(0, 2, 1)
    return np.ascontiguousarray(rows.astype(operand.dtype)).reshape(operand.shape)


def _attend(
    layer: Attention, q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray | None = None
) -> np.ndarray:
    heads = []
    for head in range(layer.heads):
        columns = [
            rows[:, offset + head * step :][:, :dim].reshape(layer.batch, -1, dim)
            for rows, offset, step, dim in zip((q, k, v), layer.offsets, layer.head_steps, layer.head_dims, strict=True)
        ]
        scores = np.einsum("bqd,bkd->bqk", columns[0], columns[1]) * layer.scale
        if mask is not None:
            of_heads = mask.reshape(*layer.mask_sizes, layer.keys)
            scores = scores + of_heads[:, head if layer.mask_sizes[1] > 1 else 0]
        is_empty = np.isneginf(scores).all(axis=2, keepdims=True) if layer.empty_is_zero else np.False_
        scores = np.where(is_empty, 0, scores)
        powers = np.exp(scores - scores.max(axis=2, keepdims=True))
        heads.append(np.where(is_empty, 0, powers @ columns[2] / powers.sum(axis=2, keepdims=True)))
    return np.concatenate(heads, axis=2).reshape(-1, layer.out_channels)


def _multiply_matrices(layer: MatMul, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    result = np.zeros((layer.batch, layer.heads, layer.m, layer.n))
    for item, head in np.ndindex(layer.batch, layer.heads):
        first = _matrix(layer.left, left, item, head, (layer.m, layer.k))
        result[item, head] = first @ _matrix(layer.right, right, item, head, (layer.k, layer.n)) * layer.scale
    if not layer.heads_in_rows:
        result = np.concatenate(list(result.transpose(1, 0, 2, 3)), axis=2)
    return result.reshape(layer.output_size)


def _matrix(matrices: Matrices, rows: np.ndarray, item: int, head: int, shape: tuple[int, int]) -> np.ndarray:
    result = np.empty(shape)
    (of_item, of_head, of_i, of_j), channels = matrices.row_steps, matrices.channel_steps
    for i, j in np.ndindex(*shape):
        row = matrices.first[0] + item * of_item + head * of_head + i * of_i + j * of_j
        column = matrices.first[1] + item * channels[0] + head * channels[1] + i * channels[2] + j * channels[3]
        result[i, j] = rows[row, column]
    return result


def _place_rows(layer: PlaceRows, rows: np.ndarray, summand: np.ndarray) -> np.ndarray:
    result = np.zeros((layer.batch, layer.out_rows, layer.channels))
    for row in range(layer.out_rows):
        if 0 <= row - layer.shift < layer.in_rows:
            result[:, row] = rows.reshape(layer.batch, -1, layer.channels)[:, row - layer.shift]
    return (result + summand).reshape(-1, layer.channels)
