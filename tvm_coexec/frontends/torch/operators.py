"""Converters of torch's operators that TVM 0.27 lacks, or has wrong, and the operators that are kept whole for them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import relax

from tvm_coexec.frontends.relax.module import Known
from tvm_coexec.frontends.relax.places import kept
from tvm_coexec.frontends.relax.sorting import extreme_indices
from tvm_coexec.frontends.relax.sums import running_products, running_sums

from . import arithmetic as torch_arithmetic
from . import resizing as torch_resizing
from . import writing as torch_writing
from .importer import Converter, Importer

if TYPE_CHECKING:
    from torch import fx

NOT_DECOMPOSED = {
    "chunk.default",
    "flatten.using_ints",
    "hardsigmoid.default",
    "hardswish.default",
    "hardtanh.default",
    "instance_norm.default",
    "leaky_relu.default",
    "linear.default",
    "matmul.default",
    "prelu.default",
    "relu6.default",
    "reshape.default",
    "scaled_dot_product_attention.default",
    "silu.default",
    "softmax.int",
    "split.Tensor",
    "split_with_sizes.default",
    "transpose.int",
    "unbind.int",
}
"""Operators that TVM imports as one: torch would take them apart into what is harder to recognise."""


def _arguments(node: fx.Node, importer: Importer, *defaults: Any) -> list[Any]:
    """Give the positional arguments; the last ones that may be left out have ``defaults``."""
    given = list(importer.retrieve_args(node))
    count = sum(1 for argument in node.target._schema.arguments if not argument.kwarg_only)
    return given + list(defaults[len(defaults) - (count - len(given)) :]) if len(given) < count else given


def _attention(node: fx.Node, importer: Importer) -> relax.Expr:
    """Multiply, and take a softmax; TVM's own converter swaps heads and rows, and takes no boolean mask (in 0.27)."""
    q, k, v, mask, _dropout, causal = _arguments(node, importer, None, 0.0, False)
    emit = importer.block_builder.emit
    if node.kwargs.get("enable_gqa", False):
        k, v = (_repeated_heads(importer, q, operand) for operand in (k, v))
    scale = node.kwargs.get("scale")
    scale = 1 / math.sqrt(int(q.ty.shape[-1])) if scale is None else float(scale)
    rank = len(k.ty.shape)
    turned = emit(relax.op.permute_dims(k, [*range(rank - 2), rank - 1, rank - 2]))
    scores = emit(relax.op.matmul(q, turned))
    scores = emit(relax.op.multiply(scores, relax.const(scale, "float32")))
    if causal:
        seen = np.tri(int(q.ty.shape[-2]), int(k.ty.shape[-2]), dtype=bool)
        scores = emit(relax.op.add(scores, relax.const(_summands(seen))))
    constant = None if mask is None else importer.constant(node.args[3])
    if constant is not None:
        mask = constant = _summands(constant) if constant.dtype == bool else constant
        scores = emit(relax.op.add(scores, relax.const(constant)))
    elif mask is not None:
        scores = emit(relax.op.add(scores, _float_mask(mask, importer)))
    may_be_empty = mask is not None and (constant is None or bool(np.isneginf(constant).all(axis=-1).any()))
    return emit(relax.op.matmul(_probabilities(scores, importer, may_be_empty), v))


def _probabilities(scores: relax.Expr, importer: Importer, may_be_empty: bool) -> relax.Expr:
    """Compute the softmax of scores; as torch has it, a query for which no key counts has zeros."""
    emit = importer.block_builder.emit
    softmax = emit(relax.op.nn.softmax(scores, -1))
    if not may_be_empty:
        return softmax
    never = relax.const(-math.inf, "float32")
    is_empty = emit(relax.op.equal(emit(relax.op.max(scores, -1, True)), never))
    result = emit(relax.op.where(is_empty, relax.const(0.0, "float32"), softmax))
    importer.known[result.name] = Known(
        "softmax", (scores,), {"axes": (len(scores.ty.shape) - 1,), "empty_is_zero": True}
    )
    return result


def _repeated_heads(importer: Importer, q: relax.Expr, operand: relax.Expr) -> relax.Expr:
    repeats = int(q.ty.shape[-3]) // int(operand.ty.shape[-3])
    return importer.block_builder.emit(relax.op.repeat(operand, repeats, len(operand.ty.shape) - 3))


def _float_mask(mask: relax.Expr, importer: Importer) -> relax.Expr:
    """What a mask adds to the scores; where one of booleans is false, a key does not count."""
    if str(mask.ty.dtype) != "bool":
        return mask
    nothing, never = relax.const(0.0, "float32"), relax.const(-math.inf, "float32")
    return importer.block_builder.emit(relax.op.where(mask, nothing, never))


def _summands(seen: np.ndarray) -> np.ndarray:
    return np.where(seen, np.float32(0), np.float32(-np.inf))


def _where(node: fx.Node, importer: Importer) -> relax.Expr:
    """Scores of which a constant says that some do not count have a constant added, as attention has it."""
    condition, *values = node.args
    never = [importer.constant(value) for value in values]
    seen = importer.constant(condition)
    is_for_softmax = all("softmax" in str(reader.target) for reader in node.users)
    for position, number in enumerate(never):
        if seen is not None and is_for_softmax and number is not None and number.size == 1 and number == -np.inf:
            summands = _summands(seen if position else ~seen)
            return importer.block_builder.emit(relax.op.add(importer.env[values[1 - position]], relax.const(summands)))
    seen, *numbers = importer.retrieve_args(node)
    numbers = [torch_arithmetic.of_type(value, torch_arithmetic.dtype_of(node), importer) for value in numbers]
    return importer.block_builder.emit(relax.op.where(seen, *numbers))


def _slice(node: fx.Node, importer: Importer) -> relax.Expr:
    x, axis, begin, end, step = _arguments(node, importer, 0, None, None, 1)
    size = int(x.ty.shape[axis])
    begin, end, step = slice(begin, end, step).indices(size)
    result = relax.op.strided_slice(x, [axis], [begin], [max(begin, end)], [step])
    return importer.known_slice(result, x, axis, begin) if step == 1 else importer.block_builder.emit(result)


def _select(node: fx.Node, importer: Importer) -> relax.Expr:
    x, axis, index = importer.retrieve_args(node)
    size = int(x.ty.shape[axis])
    begin = index % size
    part = importer.block_builder.emit(relax.op.strided_slice(x, [axis], [begin], [begin + 1]))
    return importer.known_slice(relax.op.squeeze(part, [axis]), x, axis, begin)


def _rounded_division(node: fx.Node, importer: Importer) -> relax.Expr:
    """TVM's converter makes an int32 of a whole divisor, whatever is divided (as of 0.27)."""
    dividend, divisor = importer.retrieve_args(node)[:2]
    mode = node.kwargs.get("rounding_mode", node.args[2] if len(node.args) > 2 else None)
    emit = importer.block_builder.emit
    if not isinstance(divisor, relax.Expr):
        divisor = relax.const(divisor, dividend.ty.dtype)
    is_whole = "int" in str(dividend.ty.dtype) and "int" in str(divisor.ty.dtype)
    if is_whole:
        return emit((relax.op.floor_divide if mode == "floor" else relax.op.divide)(dividend, divisor))
    quotient = emit(relax.op.divide(dividend, divisor))
    rounding = {"floor": relax.op.floor, "trunc": relax.op.trunc}.get(mode)
    return quotient if rounding is None else emit(rounding(quotient))


def _instance_norm(node: fx.Node, importer: Importer) -> relax.Expr:
    """TVM's converter takes the mean's place for that of epsilon (as of 0.27)."""
    x, *parameters = importer.retrieve_args(node)[:5]
    gamma, beta = _scale_and_shift(x, parameters[:2])
    if not node.args[5]:  # statistics that were kept in training
        emit, epsilon = importer.block_builder.emit, float(node.args[7])
        norms = emit(relax.op.nn.batch_norm(x, gamma, beta, *parameters[2:], axis=1, epsilon=epsilon, training=False))
        return emit(relax.TupleGetItem(norms, 0))
    norm = relax.op.nn.instance_norm(x, gamma, beta, 1, list(range(2, len(x.ty.shape))), float(node.args[7]))
    return importer.block_builder.emit(norm)


def _batch_norm(node: fx.Node, importer: Importer) -> list[relax.Expr]:
    """Multiply by constants and add constants, for tensors of any number of axes."""
    x, epsilon = importer.env[node.args[0]], float(node.args[6])
    defaults = (1.0, 0.0, 0.0, 1.0)
    gamma, beta, mean, variance = (
        np.asarray(default if one is None else importer.constant(one), np.float64)
        for one, default in zip(node.args[1:5], defaults, strict=True)
    )
    factor = gamma / np.sqrt(variance + epsilon)
    shift = beta - mean * factor
    spread, emit = (-1, *[1] * (len(x.ty.shape) - 2)), importer.block_builder.emit
    factor, shift = (relax.const(values.reshape(spread), str(x.ty.dtype)) for values in (factor, shift))
    return [emit(relax.op.add(emit(relax.op.multiply(x, factor)), shift))]


def _group_norm(node: fx.Node, importer: Importer) -> relax.Expr:
    """TVM's converter needs a scale and a shift (as of 0.27)."""
    x, *parameters = importer.retrieve_args(node)[:3]
    groups, epsilon = node.args[6:8]
    gamma, beta = _scale_and_shift(x, parameters)
    axes = list(range(2, len(x.ty.shape)))
    return importer.block_builder.emit(relax.op.nn.group_norm(x, gamma, beta, int(groups), 1, axes, float(epsilon)))


def _scale_and_shift(x: relax.Expr, parameters: list[relax.Expr | None]) -> list[relax.Expr]:
    """Scale and shift of each channel, ones and zeros where the network has none."""
    channels = int(x.ty.shape[1])
    neutral = (np.ones(channels, "float32"), np.zeros(channels, "float32"))
    return [relax.const(default) if own is None else own for own, default in zip(parameters, neutral, strict=True)]


def _elu(node: fx.Node, importer: Importer) -> relax.Expr:
    """TVM's converter leaves out the scales, of which SELU is made (as of 0.27)."""
    x, alpha, scale, input_scale = _arguments(node, importer, 1.0, 1.0, 1.0)
    emit = importer.block_builder.emit

    def times(value: relax.Expr, factor: float) -> relax.Expr:
        return value if factor == 1 else emit(relax.op.multiply(value, relax.const(factor, "float32")))

    nothing, one = relax.const(0.0, "float32"), relax.const(1.0, "float32")
    power = emit(relax.op.exp(times(emit(relax.op.minimum(x, nothing)), input_scale)))
    below = times(emit(relax.op.subtract(power, one)), alpha * scale)
    return emit(relax.op.where(emit(relax.op.greater(x, nothing)), times(x, scale), below))


def _reduction(reduce: Callable[..., relax.Expr]) -> Callable[[Any, Importer], relax.Expr]:
    """Make a converter of an operator with the arguments ``dim`` and ``keepdim``."""

    def convert(node: fx.Node, importer: Importer) -> relax.Expr:
        x, axes, keep = _arguments(node, importer, None, False)
        return importer.block_builder.emit(reduce(x, axes or None if isinstance(axes, list | tuple) else axes, keep))

    return convert


def _adaptive_max_pool(node: fx.Node, importer: Importer) -> list[relax.Expr]:
    """Compute maxima without their indices; the windows are those of a pooling where they are all of one size."""
    x, size = importer.env[node.args[0]], [int(length) for length in node.args[1]]
    shape, emit = [int(length) for length in x.ty.shape], importer.block_builder.emit
    if len(shape) == 4 and not shape[2] % size[0] and not shape[3] % size[1]:
        window = [shape[2] // size[0], shape[3] // size[1]]
        return [emit(relax.op.nn.max_pool2d(x, pool_size=window, strides=window))]
    for axis, count in enumerate(size, len(shape) - len(size)):
        extent = shape[axis]
        windows = [(index * extent // count, -(-(index + 1) * extent // count)) for index in range(count)]
        parts = [emit(relax.op.strided_slice(x, [axis], [begin], [end])) for begin, end in windows]
        x = emit(relax.op.concat([emit(relax.op.max(part, axis, keepdims=True)) for part in parts], axis))
    return [x]


def _with_place(*, largest: bool) -> Converter:
    """Make a converter of an extreme of an axis, and of its place; NaN is both, and TVM's sorts (as of 0.27)."""

    def convert(node: fx.Node, importer: Importer) -> list[relax.Expr]:
        x, axis, keep = _arguments(node, importer, False)
        emit = importer.block_builder.emit
        if not x.ty.shape:
            return [x, relax.const(0, "int64")]
        is_truth = str(x.ty.dtype) == "bool"
        numbers = emit(relax.op.astype(x, "uint8")) if is_truth else x
        results = _extremes(importer, numbers, 1, axis, largest, nan_is_first=True)
        results = results if keep else [emit(relax.op.squeeze(each, [axis])) for each in results]
        return [emit(relax.op.astype(results[0], "bool")), results[1]] if is_truth else results

    return convert


def _top_k(node: fx.Node, importer: Importer) -> list[relax.Expr]:
    """Find the largest or least numbers and their indices; TVM's own sorting is a function of its run-time library."""
    x, count, axis, largest, _sorted = _arguments(node, importer, -1, True, True)
    return _extremes(importer, x, int(count), axis, bool(largest))


def _sort(node: fx.Node, importer: Importer) -> list[relax.Expr]:
    """Sort all numbers of an axis, from the least or the largest on; equal ones stay in their order."""
    x, axis, descending = _arguments(node, importer, -1, False)
    return _extremes(importer, x, int(x.ty.shape[axis]), axis, bool(descending))


def _stable_sort(node: fx.Node, importer: Importer) -> list[relax.Expr]:
    """Sort as :func:`_sort` does, which keeps equal numbers in their order anyway; all arguments have names here."""
    x, axis, descending = importer.env[node.args[0]], node.kwargs.get("dim", -1), node.kwargs.get("descending", False)
    return _extremes(importer, x, int(x.ty.shape[axis]), axis, bool(descending))


def _extremes(
    importer: Importer, x: relax.Expr, count: int, axis: int, largest: bool, nan_is_first: bool = False
) -> list[relax.Expr]:
    emit, shape = importer.block_builder.emit, tuple(int(size) for size in x.ty.shape)
    axis %= len(shape)
    indices = emit(importer.block_builder.call_te(extreme_indices(shape, axis, count, largest, nan_is_first), x))
    return [emit(relax.op.gather_elements(x, indices, axis)), indices]


def _running(join: Callable[..., Any]) -> Converter:
    """Make a converter of sums or products of all elements up to each one of an axis."""

    def convert(node: fx.Node, importer: Importer) -> relax.Expr:
        x, axis = importer.retrieve_args(node)[:2]
        shape, builder = tuple(int(size) for size in x.ty.shape), importer.block_builder
        x = torch_arithmetic.of_type(x, torch_arithmetic.dtype_of(node), importer)
        return builder.emit(builder.call_te(join(shape, axis % len(shape), False, False), x)) if shape else x

    return convert


def _sample_grid(node: fx.Node, importer: Importer) -> relax.Expr:
    """TVM's converter takes the places' axis for one of channels (as of 0.27)."""
    x, grid, mode, padding, corners = _arguments(node, importer, 0, 0, False)
    emit = importer.block_builder.emit
    sampled = relax.op.image.grid_sample(
        x,
        emit(relax.op.permute_dims(grid, [0, 3, 1, 2])),
        method=("bilinear", "nearest", "bicubic")[mode],
        layout="NCHW",
        padding_mode=("zeros", "border", "reflection")[padding],
        align_corners=bool(corners),
    )
    return emit(sampled)


def _any(node: fx.Node, importer: Importer) -> relax.Expr:
    x, *given = list(importer.retrieve_args(node))
    axes, keep = given + [None, False][len(given) :]
    emit = importer.block_builder.emit
    if str(x.ty.dtype) != "bool":
        x = emit(relax.op.not_equal(x, relax.const(0, x.ty.dtype)))
    as_numbers = emit(relax.op.astype(x, "int8"))
    return emit(relax.op.astype(emit(relax.op.max(as_numbers, axes, keep)), "bool"))


def _index(node: fx.Node, importer: Importer) -> relax.Expr:
    """Read at indices along some axes; TVM's converter knows only some cases (as of 0.27).

    The axes that are indexed come first and become one, along which rows are taken.
    """
    x, indices = importer.retrieve_args(node)
    emit = importer.block_builder.emit
    shape = [int(size) for size in x.ty.shape]
    indexed = [axis for axis, index in enumerate(indices) if index is not None]
    others = [axis for axis in range(len(shape)) if axis not in indexed]
    positions: relax.Expr = None
    for axis in indexed:
        if str(indices[axis].ty.dtype) == "bool":
            raise ValueError("its result has as many elements as a mask has trues, which is not known before it runs")
        index = kept(indices[axis], [shape[axis]], importer.block_builder)
        size = relax.const(shape[axis], "int64")
        before = None if positions is None else emit(relax.op.multiply(positions, size))
        positions = index if before is None else emit(relax.op.add(before, index))
    rows = emit(relax.op.permute_dims(x, [*indexed, *others]))
    rows = emit(relax.op.reshape(rows, [math.prod(shape[a] for a in indexed), *(shape[a] for a in others)]))
    taken = emit(relax.op.take(rows, positions, 0))
    rank = len(positions.ty.shape)
    if indexed != list(range(indexed[0], indexed[0] + len(indexed))) or indexed[0] == 0:
        return taken
    before = list(range(rank, rank + indexed[0]))
    behind = list(range(rank + indexed[0], rank + len(others)))
    return emit(relax.op.permute_dims(taken, [*before, *range(rank), *behind]))


CONVERTERS: dict[str, Converter] = {
    **torch_arithmetic.CONVERTERS,
    **torch_resizing.CONVERTERS,
    **torch_writing.CONVERTERS,
    "_native_batch_norm_legit_no_training.default": _batch_norm,
    "adaptive_max_pool2d.default": _adaptive_max_pool,
    "amax.default": _reduction(relax.op.max),
    "amin.default": _reduction(relax.op.min),
    "any.default": _any,
    "any.dim": _any,
    "any.dims": _any,
    "cumprod.default": _running(running_products),
    "cumsum.default": _running(running_sums),
    "div.Scalar_mode": _rounded_division,
    "div.Tensor_mode": _rounded_division,
    "elu.default": _elu,
    "grid_sampler_2d.default": _sample_grid,
    "index.Tensor": _index,
    "instance_norm.default": _instance_norm,
    "native_group_norm.default": _group_norm,
    "max.dim": _with_place(largest=True),
    "min.dim": _with_place(largest=False),
    "prod.dim_int": _reduction(relax.op.prod),
    "scaled_dot_product_attention.default": _attention,
    "select.int": _select,
    "slice.Tensor": _slice,
    "sort.default": _sort,
    "sort.stable": _stable_sort,
    "topk.default": _top_k,
    "where.self": _where,
}
"""Converters by the name of the operator, which take the node and the importer."""
