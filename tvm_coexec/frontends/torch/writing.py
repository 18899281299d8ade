"""Torch's operators that write elements at indices, and those that say where maxima lie and put them there again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import relax

from tvm_coexec.errors import ModelError
from tvm_coexec.frontends.relax.maxima import Windows, places_of_maxima
from tvm_coexec.frontends.relax.scattering import scattered_elements, scattered_parts

from .importer import Converter, Importer, source_of

if TYPE_CHECKING:
    from torch import fx

_REDUCTIONS = {"sum": "add", "prod": "mul", "amax": "max", "amin": "min"}


def _put(node: fx.Node, importer: Importer) -> relax.Expr:
    """Write numbers at indices along some axes, or where a mask is true."""
    x, indices, values, *adds = importer.retrieve_args(node)
    masks = [axis for axis, index in enumerate(indices) if index is not None and str(index.ty.dtype) == "bool"]
    if not masks:
        return _put_at(x, indices, values, any(adds), importer)
    constant = importer.constant(node.args[1][masks[0]])
    if constant is not None and len(masks) == 1:
        places = [relax.const(axis_places) for axis_places in np.nonzero(constant)]
        return _put_at(x, [*indices[: masks[0]], *places, *indices[masks[0] + 1 :]], values, any(adds), importer)
    if any(index is not None and axis != masks[0] for axis, index in enumerate(indices)):
        raise ModelError(f"{source_of(node)} writes by a mask and other indices; use torch.where")
    return _put_where(node, (x, indices[masks[0]], values), masks[0], any(adds), importer)


def _put_where(
    node: fx.Node, operands: tuple[relax.Expr, ...], axis: int, adds: bool, importer: Importer
) -> relax.Expr:
    (x, mask, values), emit = operands, importer.block_builder.emit
    behind = len(x.ty.shape) - axis - len(mask.ty.shape)
    shape = [int(size) for size in values.ty.shape]
    while shape and len(shape) > behind and shape[0] == 1:
        shape = shape[1:]
    if len(shape) > behind:
        raise ModelError(
            f"{source_of(node)} writes as many numbers as its mask has places, which only the run tells; use "
            "torch.where, or write one number"
        )
    values = emit(relax.op.reshape(values, shape))
    mask = emit(relax.op.reshape(mask, [*[1] * axis, *mask.ty.shape, *[1] * behind]))
    new = emit(relax.op.add(x, values)) if adds else values
    return emit(relax.op.where(mask, new, x))


def _put_at(
    x: relax.Expr, indices: Sequence[relax.Expr | None], values: relax.Expr, adds: bool, importer: Importer
) -> relax.Expr:
    """Write parts that have the axes without indices; those with indices come first meanwhile."""
    emit, shape = importer.block_builder.emit, [int(size) for size in x.ty.shape]
    given = {axis: index for axis, index in enumerate(indices) if index is not None}
    others = [axis for axis in range(len(shape)) if axis not in given]
    places = np.broadcast_shapes(*(tuple(map(int, index.ty.shape)) for index in given.values()))
    columns = [
        emit(relax.op.reshape(emit(relax.op.broadcast_to(relax.op.astype(index, "int64"), places)), (*places, 1)))
        for index in given.values()
    ]
    first, count = min(given), len(given)
    lead = first if max(given) - first == count - 1 else 0  # axes that are apart come first in torch, too
    rank = len(places)
    wide = (*(shape[axis] for axis in others[:lead]), *places, *(shape[axis] for axis in others[lead:]))
    updates = emit(relax.op.broadcast_to(values, wide))
    turned = [*range(lead, lead + rank), *range(lead), *range(lead + rank, len(wide))]
    updates = emit(relax.op.permute_dims(updates, turned)) if turned else updates
    order = [*given, *others]
    sizes = tuple(shape[axis] for axis in order)
    write = scattered_parts(sizes, (*places, count), "add" if adds else "none")
    stacked = emit(relax.op.concat(columns, -1))
    result = emit(importer.block_builder.call_te(write, emit(relax.op.permute_dims(x, order)), stacked, updates))
    return emit(relax.op.permute_dims(result, [int(axis) for axis in np.argsort(order)]))


def _scatter_add(node: fx.Node, importer: Importer) -> relax.Expr:
    return _scattered(importer.retrieve_args(node), "add", importer)


def _scatter(node: fx.Node, importer: Importer) -> relax.Expr:
    x, axis, indices, updates = importer.retrieve_args(node)
    if not isinstance(updates, relax.Expr):
        updates = relax.const(np.full([int(size) for size in indices.ty.shape], updates, str(x.ty.dtype)))
    return _scattered((x, axis, indices, updates), "none", importer)


def _scatter_reduce(node: fx.Node, importer: Importer) -> relax.Expr:
    *operands, reduction = importer.retrieve_args(node)[:5]
    if reduction not in _REDUCTIONS or not node.kwargs.get("include_self", True):
        raise ModelError(
            f"{source_of(node)} reduces by {reduction}, or leaves out what was there; supported are "
            f"{', '.join(_REDUCTIONS)} with include_self=True"
        )
    return _scattered(operands, _REDUCTIONS[reduction], importer)


def _scattered(operands: Sequence[Any], reduction: str, importer: Importer) -> relax.Expr:
    x, axis, indices, updates = operands
    emit, shape = importer.block_builder.emit, tuple(int(size) for size in x.ty.shape)
    places = tuple(int(size) for size in indices.ty.shape)
    updates = emit(relax.op.strided_slice(updates, list(range(len(places))), [0] * len(places), list(places)))
    write = scattered_elements(shape, places, axis % len(shape), reduction)
    return emit(importer.block_builder.call_te(write, x, indices, updates))


def _max_pool(axes: int) -> Converter:
    """Make a converter to maxima, and their places in each image if something reads them.

    TVM's takes no windows that are as far apart as they are wide, and makes up places (as of 0.27).
    """

    def convert(node: fx.Node, importer: Importer) -> list[relax.Expr]:
        x, *given = importer.retrieve_args(node)
        given += [[], 0, 1, False][len(given) - 1 :]
        kernel, strides, pads, dilations = (_of_axes(value, axes) for value in given[:4])
        emit, windows = importer.block_builder.emit, Windows(kernel, strides or kernel, dilations, pads, last_nan=True)
        shape = [int(size) for size in x.ty.shape]
        images = emit(relax.op.reshape(x, (*[1] * (axes + 2 - len(shape)), *shape)))
        pool = importer._max_pool2d_impl if axes == 2 else importer._max_pool3d_impl
        maxima = emit(pool(images, kernel, windows.strides, pads, dilations, given[4]))
        result = (*shape[:-axes], *[int(size) for size in maxima.ty.shape][2:])
        results = [emit(relax.op.reshape(maxima, result))]
        if any(user.args[1] for user in node.users):
            whole = tuple(int(size) for size in images.ty.shape)
            pooled = (*whole[:2], *result[-axes:])
            find = places_of_maxima(whole, pooled, windows, in_image=True, first_is_fastest=False)
            results.append(emit(relax.op.reshape(emit(importer.block_builder.call_te(find, images)), result)))
        return results

    return convert


def _of_axes(value: Any, count: int) -> list[int]:
    numbers = [int(each) for each in value] if isinstance(value, list | tuple) else [int(value)]
    return numbers * count if len(numbers) == 1 else numbers


def _max_unpool(node: fx.Node, importer: Importer) -> relax.Expr:
    """Put numbers at their places in images of zeros."""
    x, places, size = importer.retrieve_args(node)
    emit, shape = importer.block_builder.emit, [int(extent) for extent in x.ty.shape]
    images, size = math.prod(shape[:-2]), [int(extent) for extent in size]
    rows = (images, math.prod(shape[-2:]))
    empty = relax.const(np.zeros((images, math.prod(size)), str(x.ty.dtype)))
    flat = [emit(relax.op.reshape(value, rows)) for value in (places, x)]
    write = scattered_elements((images, math.prod(size)), rows, 1, "none")
    return emit(relax.op.reshape(emit(importer.block_builder.call_te(write, empty, *flat)), (*shape[:-2], *size)))


CONVERTERS: dict[str, Converter] = {
    "index_put.default": _put,
    "max_pool2d_with_indices.default": _max_pool(2),
    "max_pool3d_with_indices.default": _max_pool(3),
    "max_unpool2d.default": _max_unpool,
    "scatter.src": _scatter,
    "scatter.value": _scatter,
    "scatter_add.default": _scatter_add,
    "scatter_reduce.two": _scatter_reduce,
}
