"""TFLite's operators that look elements up, move them to other places, or run along an axis."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from tvm import relax

from tvm_coexec.errors import ModelError
from tvm_coexec.frontends.relax.sorting import extreme_indices
from tvm_coexec.frontends.relax.sums import running_sums

from .importer import Conversion
from .reaches import check_indices


def _gather(step: Conversion) -> relax.Expr:
    options, shape, positions = step.options, step.shape(0), step.shape(1)
    axis = step.counted(options.Axis(), len(shape))
    check_indices(step, 1, [shape[axis]])
    if not options.BatchDims():
        return relax.op.take(step.operand(0), step.operand(1), axis=axis)
    batch_axes = options.BatchDims() if options.BatchDims() >= 0 else options.BatchDims() + len(positions)
    return _gather_in_batches(step, axis, batch_axes)


def _gather_in_batches(step: Conversion, axis: int, batch_axes: int) -> relax.Expr:
    """Each of the batch has places of its own: all are looked up in one table, a batch behind the other."""
    shape, positions = step.shape(0), step.shape(1)
    if axis != batch_axes:
        raise ModelError(
            f"{step.source} gathers along axis {axis} in {batch_axes} batch axes; move the axis behind them"
        )
    batch, extent = math.prod(shape[:axis]), shape[axis]
    table = relax.op.reshape(step.operand(0), (batch * extent, *shape[axis + 1 :]))
    firsts = (np.arange(batch, dtype="int64") * extent).reshape(*shape[:axis], *[1] * (len(positions) - batch_axes))
    rows = relax.op.add(relax.op.astype(step.operand(1), "int64"), relax.const(firsts, "int64"))
    return relax.op.take(table, rows, axis=0)


def _gather_nd(step: Conversion) -> relax.Expr:
    check_indices(step, 1, step.shape(0)[: step.shape(1)[-1]])
    return relax.op.gather_nd(step.operand(0), relax.op.astype(step.operand(1), "int64"))


def _scatter_nd(step: Conversion) -> relax.Expr:
    """Add rows to zeros, at the places that come first."""
    dtype = step.tensor(1).dtype
    check_indices(step, 0, step.integers(2)[: step.shape(0)[-1]])
    zeros = relax.const(np.zeros(step.integers(2), dtype), dtype)
    return relax.op.scatter_nd(zeros, relax.op.astype(step.operand(0), "int64"), step.operand(1), "add")


def _embedding(step: Conversion) -> relax.Expr:
    """EMBEDDING_LOOKUP has the numbers before the table."""
    check_indices(step, 0, step.shape(1)[:1])
    return relax.op.take(step.operand(1), step.operand(0), axis=0)


def _extreme(make: Callable[..., relax.Expr]) -> Callable[[Conversion], relax.Expr]:
    def convert(step: Conversion) -> relax.Expr:
        wanted = step.importer.file.tensors[step.operator.outputs[0]].dtype
        axis = step.counted(step.integers(1)[0], len(step.shape(0)))
        return relax.op.astype(make(step.operand(0), axis=axis, keepdims=False), wanted)

    return convert


def _top(step: Conversion) -> list[relax.Expr]:
    """TOPK_V2 finds along the last axis the largest and where they stand."""
    shape = step.shape(0)
    axis, count = len(shape) - 1, step.integers(1)[0]
    builder, value = step.importer.builder, step.operand(0)
    positions = builder.emit(builder.call_te(extreme_indices(shape, axis, count), value))
    wanted = step.importer.file.tensors[step.operator.outputs[1]].dtype
    return [relax.op.gather_elements(value, positions, axis), relax.op.astype(positions, wanted)]


def _diagonal(step: Conversion) -> relax.Expr:
    """MATRIX_DIAG gives zeros but for the last axis of the operand, which goes from corner to corner."""
    dtype, extent = step.tensor(0).dtype, step.shape(0)[-1]
    is_there = relax.const(np.eye(extent, dtype=bool), "bool")
    return relax.op.where(is_there, relax.op.expand_dims(step.operand(0), -1), relax.const(0, dtype))


def _with_diagonal(step: Conversion) -> relax.Expr:
    """MATRIX_SET_DIAG gives the operand with other numbers from corner to corner."""
    h, w = step.shape(0)[-2:]
    padded = step.operand(1)
    if w > min(h, w):
        rank = len(step.shape(1))
        padded = relax.op.nn.pad(padded, [0] * (2 * rank - 1) + [w - min(h, w)])
    is_there = relax.const(np.eye(h, w, dtype=bool), "bool")
    return relax.op.where(is_there, relax.op.expand_dims(padded, -2), step.operand(0))


def _updated(step: Conversion) -> relax.Expr:
    """DYNAMIC_UPDATE_SLICE writes at a position that is known: what is beside the update stays."""
    shape, part = step.shape(0), step.shape(1)
    begins = [
        max(min(begin, whole - size), 0) for begin, whole, size in zip(step.integers(2), shape, part, strict=True)
    ]
    widths = [(begin, whole - size - begin) for begin, whole, size in zip(begins, shape, part, strict=True)]
    moved = relax.op.nn.pad(step.operand(1), [width for pair in widths for width in pair])
    inside = np.pad(np.ones(part, bool), widths)
    return relax.op.where(relax.const(inside, "bool"), moved, step.operand(0))


def _cumulated(step: Conversion) -> relax.Expr:
    """CUMSUM gives the sums of all before each index of an axis."""
    shape, builder = step.shape(0), step.importer.builder
    compute = running_sums(
        shape, step.counted(step.integers(1)[0], len(shape)), step.options.Exclusive(), step.options.Reverse()
    )
    return builder.emit(builder.call_te(compute, builder.emit(step.operand(0))))


def _space_to_batch(step: Conversion) -> relax.Expr:
    """Pads, then cuts the axes behind the batch into blocks, whose places become the batch's outer axes."""
    shape, blocks, pads = step.shape(0), step.integers(1), step.constant(2).reshape(-1, 2).tolist()
    count = len(blocks)
    widths = [0, 0, *(width for pair in pads for width in pair), *[0, 0] * (len(shape) - count - 1)]
    sizes = [extent + sum(pair) for extent, pair in zip(shape[1:], pads, strict=False)]
    rest = shape[count + 1 :]
    padded = relax.op.nn.pad(step.operand(0), widths) if any(widths) else step.operand(0)
    split = [part for size, block in zip(sizes, blocks, strict=True) for part in (size // block, block)]
    parts = relax.op.reshape(padded, (shape[0], *split, *rest))
    inner, outer = [2 * axis + 2 for axis in range(count)], [2 * axis + 1 for axis in range(count)]
    moved = relax.op.permute_dims(parts, [*inner, 0, *outer, *range(2 * count + 1, 2 * count + 1 + len(rest))])
    batch = shape[0] * math.prod(blocks)
    return relax.op.reshape(moved, (batch, *(size // block for size, block in zip(sizes, blocks, strict=True)), *rest))


def _batch_to_space(step: Conversion) -> relax.Expr:
    """Undoes SPACE_TO_BATCH_ND: blocks from the batch, then cuts off the edges."""
    shape, blocks, crops = step.shape(0), step.integers(1), step.constant(2).reshape(-1, 2).tolist()
    count, batch = len(blocks), shape[0] // math.prod(blocks)
    rest = shape[count + 1 :]
    parts = relax.op.reshape(step.operand(0), (*blocks, batch, *shape[1:]))
    joined = [axis for position in range(count) for axis in (count + 1 + position, position)]
    moved = relax.op.permute_dims(parts, [count, *joined, *range(2 * count + 1, 2 * count + 1 + len(rest))])
    sizes = [extent * block for extent, block in zip(shape[1 : count + 1], blocks, strict=True)]
    whole = relax.op.reshape(moved, (batch, *sizes, *rest))
    if not any(edge for pair in crops for edge in pair):
        return whole
    begins, ends = [before for before, _ in crops], [size - pair[1] for size, pair in zip(sizes, crops, strict=True)]
    return relax.op.strided_slice(whole, list(range(1, count + 1)), begins, ends, [1] * count)


def _selected(step: Conversion) -> relax.Expr:
    """SELECT, whose condition may have but one place for each row."""
    condition, rank = step.operand(0), len(step.shape(1))
    if len(step.shape(0)) == 1 and rank > 1:
        condition = relax.op.reshape(condition, (-1, *[1] * (rank - 1)))
    return relax.op.where(condition, step.operand(1), step.operand(2))


def _where(step: Conversion) -> relax.Expr:
    raise ModelError(
        f"{step.source} makes as many rows as its input has places that are true, which only the run tells; leave "
        "it out of the model and do it to the model's output"
    )


CONVERTERS: dict[str, Callable[[Conversion], relax.Expr | list[relax.Expr]]] = {
    "ARG_MAX": _extreme(relax.op.argmax),
    "ARG_MIN": _extreme(relax.op.argmin),
    "BATCH_TO_SPACE_ND": _batch_to_space,
    "CUMSUM": _cumulated,
    "DYNAMIC_UPDATE_SLICE": _updated,
    "EMBEDDING_LOOKUP": _embedding,
    "GATHER": _gather,
    "GATHER_ND": _gather_nd,
    "MATRIX_DIAG": _diagonal,
    "MATRIX_SET_DIAG": _with_diagonal,
    "SCATTER_ND": _scatter_nd,
    "SELECT": _selected,
    "SPACE_TO_BATCH_ND": _space_to_batch,
    "TOPK_V2": _top,
    "WHERE": _where,
}
"""Operators for which the file's own order of axes matters."""
