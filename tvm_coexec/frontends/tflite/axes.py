"""TFLite's operators that name axes or extents are reductions, slices, joins and reshapes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import tflite
from tvm import relax

from tvm_coexec.errors import ModelError

from .elementwise import activated
from .images import with_bias
from .importer import Conversion
from .reaches import check_padding, check_parts

_IMAGE_AXES = (1, 2)
"""Lines and columns."""


def _reduced(step: Conversion, make: Callable[..., relax.Expr]) -> relax.Expr:
    rank = len(step.shape(0))
    axes = sorted({step.counted(axis, rank) for axis in step.integers(1)}) if rank else []
    if not axes and rank:
        return step.operand(0)
    keeps = bool(step.options is not None and step.options.KeepDims())
    image = step.operator.inputs[0]
    if rank == 4 and tuple(axes) == _IMAGE_AXES and not step.is_first and step.importer.is_image(image):
        # without the axes of the pixels, what is left is in the same order either way
        return make(step.importer.image(image), [2, 3], keeps)
    return make(step.operand(0), sorted(step.axis(axis, rank) for axis in axes), keeps)


def _reduced_truth(step: Conversion, make: Callable[..., relax.Expr]) -> relax.Expr:
    """Whether any or all are true: the largest or least of numbers."""
    rank = len(step.shape(0))
    axes = sorted({step.axis(axis, rank) for axis in step.integers(1)})
    if not axes and rank:
        return step.operand(0)
    numbers = relax.op.astype(step.operand(0), "int8")
    return relax.op.astype(make(numbers, axes, bool(step.options is not None and step.options.KeepDims())), "bool")


def _padded(step: Conversion, mode: str = "constant") -> relax.Expr:
    """PAD and PADV2, which has the number to fill in as its third operand."""
    widths = check_padding(step)
    value = float(step.constant(2).item()) if step.has(2) else 0.0
    ordered = [int(width) for widths_of_axis in step.in_order(widths) for width in widths_of_axis]
    return relax.op.nn.pad(step.operand(0), ordered, mode, value)


def _mirrored(step: Conversion) -> relax.Expr:
    """MIRROR_PAD adds the elements behind the edge again, in reverse; with the edge itself if it is symmetric."""
    is_symmetric = step.options.Mode() == tflite.MirrorPadMode.SYMMETRIC
    widths = step.in_order(check_padding(step, [extent - (not is_symmetric) for extent in step.shape(0)]))
    value = step.operand(0)
    shape = step.in_order(step.shape(0))
    for axis, (before, after) in enumerate(widths):
        if before or after:
            skipped = 0 if is_symmetric else 1
            positions = np.pad(np.arange(shape[axis]), (before, after), "symmetric" if not skipped else "reflect")
            value = relax.op.take(value, relax.const(positions.astype("int64"), "int64"), axis=axis)
    return value


def _joined(step: Conversion) -> relax.Expr:
    """CONCATENATION joins operands; LiteRT computes no activation after it, even where its options name one."""
    return relax.op.concat(step.operands(), step.axis(step.options.Axis(), len(step.shape(0))))


def _split(step: Conversion) -> list[relax.Expr]:
    """SPLIT has the axis before the value."""
    axis, parts = step.axis(step.integers(0)[0], len(step.shape(1))), step.options.NumSplits()
    return [step.operand(1)] if parts == 1 else _parts(step, relax.op.split(step.operand(1), parts, axis))


def _split_by_sizes(step: Conversion) -> list[relax.Expr]:
    shape, sizes = step.shape(0), step.integers(1)
    if len(sizes) == 1:
        return [step.operand(0)]
    axis = step.counted(step.integers(2)[0], len(shape))
    sizes = [shape[axis] - sum(size for size in sizes if size >= 0) if size < 0 else size for size in sizes]
    ends = [int(end) for end in np.cumsum(sizes)[:-1]]
    return _parts(step, relax.op.split(step.operand(0), ends, step.axis(axis, len(shape))))


def _parts(step: Conversion, split: relax.Expr) -> list[relax.Expr]:
    whole = step.importer.builder.emit(split)
    return [relax.TupleGetItem(whole, position) for position in range(len(step.operator.outputs))]


def _sliced(step: Conversion) -> relax.Expr:
    """SLICE cuts out a part; a size of -1 is all that is left."""
    shape, begins, sizes = step.shape(0), step.integers(1), step.integers(2)
    check_parts(step, begins, sizes)
    ends = [extent if size < 0 else begin + size for extent, begin, size in zip(shape, begins, sizes, strict=True)]
    return _cut(step, begins, ends, [1] * len(shape))


def _cut(step: Conversion, begins: list[int], ends: list[int], strides: list[int]) -> relax.Expr:
    """Ranges of those axes of which not all is left."""
    whole = [(0, extent, 1) for extent in step.shape(0)]
    ranges = list(zip(begins, ends, strides, strict=True))
    axes = [axis for axis, found in enumerate(ranges) if found != whole[axis]]
    value = step.operand(0)
    if not axes:
        return value
    begins, ends, strides = (list(numbers) for numbers in zip(*(ranges[axis] for axis in axes), strict=True))
    return relax.op.strided_slice(value, [step.axis(axis, len(whole)) for axis in axes], begins, ends, strides)


def _strided_slice(step: Conversion) -> relax.Expr:
    """STRIDED_SLICE cuts with steps; bits of masks say which bounds are left out, which axes are dropped or new."""
    options, shape = step.options, step.shape(0)
    begins, ends, strides = (step.integers(position) for position in (1, 2, 3))
    ranges: list[tuple[int, int, int]] = []
    result: list[int] = []
    for position in range(len(begins)):
        bit, axis = 1 << position, len(ranges)
        if options.EllipsisMask() & bit:
            new = sum(1 for later in range(position + 1, len(begins)) if options.NewAxisMask() & (1 << later))
            for _ in range(len(shape) - axis - (len(begins) - position - 1 - new)):
                result.append(shape[len(ranges)])
                ranges.append((0, shape[len(ranges)], 1))
        elif options.NewAxisMask() & bit:
            result.append(1)
        else:
            begin = None if options.BeginMask() & bit else begins[position]
            end = None if options.EndMask() & bit else ends[position]
            if options.ShrinkAxisMask() & bit:
                begin = begins[position] % shape[axis]
                ranges.append((begin, begin + 1, 1))
                continue
            if options.Offset() and end is not None:
                end += slice(begin, None, strides[position]).indices(shape[axis])[0]
                end = None if end < 0 else end  # it counts from the begin, not from behind
            taken = range(*slice(begin, end, strides[position]).indices(shape[axis]))
            result.append(len(taken))
            # a bound before the first element can only be written from behind
            stop = taken.stop if taken.stop >= 0 else -shape[axis] - 1
            ranges.append((taken.start, stop, taken.step))
    for axis in range(len(ranges), len(shape)):
        ranges.append((0, shape[axis], 1))
        result.append(shape[axis])
    if 0 in result:
        raise ModelError(f"{step.source} makes a tensor without elements; remove it from the model")
    cut = _cut(step, *(list(numbers) for numbers in zip(*ranges, strict=True)))
    if not (options.NewAxisMask() | options.ShrinkAxisMask()):
        return cut
    return relax.op.reshape(cut, result)


def _softmax(step: Conversion) -> relax.Expr:
    value, beta = step.operand(0), step.options.Beta()
    if beta != 1:
        value = relax.op.multiply(value, relax.const(beta, "float32"))
    return relax.op.nn.softmax(value, step.axis(-1, len(step.shape(0))))


def _log_softmax(step: Conversion) -> relax.Expr:
    return relax.op.nn.log_softmax(step.operand(0), step.axis(-1, len(step.shape(0))))


def _reshaped(step: Conversion) -> relax.Expr:
    return _to_shape(step, step.new_shape())


def _to_shape(step: Conversion, shape: list[int]) -> relax.Expr:
    elements = math.prod(step.shape(0))
    known = math.prod(size for size in shape if size >= 0)
    if -1 in shape:
        shape = [elements // max(known, 1) if size < 0 else size for size in shape]
    if math.prod(shape) != elements:
        raise ModelError(
            f"{step.source} reshapes {list(step.shape(0))} to {shape}, which has {math.prod(shape)} elements "
            f"instead of {elements}; convert the model again"
        )
    return relax.op.reshape(step.operand(0), shape)


def _squeezed(step: Conversion) -> relax.Expr:
    shape = step.shape(0)
    axes = {step.counted(step.options.SqueezeDims(i), len(shape)) for i in range(step.options.SqueezeDimsLength())}
    dropped = axes or {axis for axis, size in enumerate(shape) if size == 1}
    return _to_shape(step, [size for axis, size in enumerate(shape) if axis not in dropped])


def _expanded(step: Conversion) -> relax.Expr:
    shape = list(step.shape(0))
    axis = step.counted(step.integers(1)[0], len(shape) + 1)
    return _to_shape(step, [*shape[:axis], 1, *shape[axis:]])


def _transposed(step: Conversion) -> relax.Expr:
    return relax.op.permute_dims(step.operand(0), step.integers(1))


def _packed(step: Conversion) -> relax.Expr:
    axis = step.counted(step.options.Axis(), len(step.shape(0)) + 1)
    return relax.op.concat([relax.op.expand_dims(value, axis) for value in step.operands()], axis)


def _unpacked(step: Conversion) -> list[relax.Expr]:
    shape = step.shape(0)
    axis = step.counted(step.options.Axis(), len(shape))
    if shape[axis] == 1:
        return [relax.op.squeeze(step.operand(0), axis)]
    parts = _parts(step, relax.op.split(step.operand(0), shape[axis], axis))
    return [relax.op.squeeze(step.importer.builder.emit(part), axis) for part in parts]


def _shape(step: Conversion) -> relax.Expr:
    out = step.importer.file.tensors[step.operator.outputs[0]].dtype
    return relax.const(np.array(step.shape(0), out), out)


def _rank(step: Conversion) -> relax.Expr:
    return relax.const(np.array(len(step.shape(0)), "int32"), "int32")


def _fully_connected(step: Conversion) -> relax.Expr:
    """Rows of as many numbers as the weights have columns, times the weights."""
    units, depth = step.shape(1)
    result = relax.op.matmul(_rows(step, depth), step.moved(1, (1, 0)))
    result = activated(with_bias(step, result, 2, (1, -1)), step.options)
    shape = step.shape(0)
    return relax.op.reshape(result, (*shape[:-1], units)) if step.options.KeepNumDims() and len(shape) != 2 else result


def _rows(step: Conversion, depth: int) -> relax.Expr:
    shape = step.shape(0)
    if len(shape) == 2 and shape[1] == depth:
        return step.operand(0)
    return relax.op.reshape(step.operand(0), (math.prod(shape) // depth, depth))


def _matmul(step: Conversion) -> relax.Expr:
    first, second = (
        _adjoint(value, len(step.shape(position))) if adjoined else value
        for position, (value, adjoined) in enumerate(
            zip(step.operands(), (step.options.AdjX(), step.options.AdjY()), strict=True)
        )
    )
    return relax.op.matmul(first, second)


def _adjoint(value: relax.Expr, rank: int) -> relax.Expr:
    return relax.op.permute_dims(value, [*range(rank - 2), rank - 1, rank - 2])


IN_EITHER_ORDER: dict[str, Callable[[Conversion], relax.Expr | list[relax.Expr]]] = {
    "CONCATENATION": _joined,
    "LOG_SOFTMAX": _log_softmax,
    "MEAN": functools.partial(_reduced, make=relax.op.mean),
    "MIRROR_PAD": _mirrored,
    "PAD": _padded,
    "PADV2": _padded,
    "REDUCE_ALL": functools.partial(_reduced_truth, make=relax.op.min),
    "REDUCE_ANY": functools.partial(_reduced_truth, make=relax.op.max),
    "REDUCE_MAX": functools.partial(_reduced, make=relax.op.max),
    "REDUCE_MIN": functools.partial(_reduced, make=relax.op.min),
    "REDUCE_PROD": functools.partial(_reduced, make=relax.op.prod),
    "SLICE": _sliced,
    "SOFTMAX": _softmax,
    "SPLIT": _split,
    "SPLIT_V": _split_by_sizes,
    "SUM": functools.partial(_reduced, make=relax.op.sum),
}
"""Operators that name axes of the file, wherever these stand in their operands."""

IN_FILE_ORDER: dict[str, Callable[[Conversion], relax.Expr | list[relax.Expr]]] = {
    "BATCH_MATMUL": _matmul,
    "EXPAND_DIMS": _expanded,
    "FULLY_CONNECTED": _fully_connected,
    "PACK": _packed,
    "RANK": _rank,
    "RESHAPE": _reshaped,
    "SHAPE": _shape,
    "SQUEEZE": _squeezed,
    "STRIDED_SLICE": _strided_slice,
    "TRANSPOSE": _transposed,
    "UNPACK": _unpacked,
}
"""Operators for which the order of all elements matters."""
