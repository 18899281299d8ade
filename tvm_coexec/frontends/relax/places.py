"""Indices that only the run tells: counted from the start of their axes, and kept within them.

An index beyond its axis reads or writes an element of that axis, whichever it is, and never other memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from tvm import ir, relax, te, tirx

from tvm_coexec.errors import ModelError

_Extents = Sequence[int]
"""The extent of the axis of which something is an index, or one for each number of its last axis."""


def within(index: Any, extent: int) -> Any:
    """Write an index of an axis in TIR, negative ones counted from the end."""
    index = index.astype("int64")
    counted = tirx.Select(index < 0, index + extent, index)
    return tirx.max(tirx.min(counted, tirx.const(extent - 1, "int64")), tirx.const(0, "int64"))


def keep_within(call: relax.Call, arguments: Sequence[relax.Expr], builder: relax.BlockBuilder) -> list[relax.Expr]:
    """Bring the indices among the arguments of a call of Relax's, if there are any, within the axes that they name.

    Raises
    ------
    ModelError
        An axis has no elements.
    """
    find = _EXTENTS.get(getattr(call.op, "name", ""))
    if find is None or getattr(call.attrs, "mode", "fast") not in ("fast", "avg", "max"):
        return list(arguments)
    data, indices, *rest = arguments
    of_each = find(call, [int(size) for size in data.ty.shape])
    if not isinstance(indices, relax.Tuple):
        return [data, kept(indices, of_each[0], builder), *rest]
    all_kept = [kept(index, extents, builder) for index, extents in zip(indices.fields, of_each, strict=False)]
    return [data, relax.Tuple(all_kept), *rest]


def kept(indices: relax.Expr, extents: _Extents, builder: relax.BlockBuilder) -> relax.Expr:
    """Emit indices that are within their axes."""
    dtype = str(indices.ty.dtype)
    if 0 in extents and 0 not in [int(size) for size in indices.ty.shape]:
        raise ModelError("an axis without elements is indexed; give it some")
    if dtype == "bool":
        return indices
    if isinstance(indices, ir.GenericConst) and "int" in dtype:
        array, sizes = indices.value.numpy().astype(np.int64), np.array(extents if len(extents) > 1 else extents[0])
        return relax.const(np.clip(np.where(array < 0, array + sizes, array), 0, sizes - 1), "int64")

    def compute(given: te.Tensor) -> te.Tensor:
        def element(*index: Any) -> Any:
            if "int" not in dtype:  # regions of images, of which the first number is the image's
                number = tirx.Select(given[index] >= 0, tirx.min(given[index], float(extents[0] - 1)), 0.0)
                return tirx.Select(index[-1] == 0, number, given[index])
            places = [within(given[index], extent) for extent in extents]
            chosen = places[-1]
            for position in reversed(range(len(places) - 1)):
                chosen = tirx.Select(index[-1] == position, places[position], chosen)
            return chosen

        return te.compute(given.shape, element, name="indices")

    return builder.emit(builder.call_te(compute, indices))


def _of_axis(call: relax.Call, shape: Sequence[int]) -> list[_Extents]:
    axis = call.attrs.axis
    return [[math.prod(shape) if axis is None else shape[int(axis)]]]


def _of_first_axes(call: relax.Call, shape: Sequence[int]) -> list[_Extents]:
    first, depth = int(getattr(call.attrs, "batch_dims", 0)), int(call.args[1].ty.shape[-1])
    return [shape[first : first + depth]]


def _of_images(call: relax.Call, shape: Sequence[int]) -> list[_Extents]:
    return [shape[:1]]


def _of_each_axis(call: relax.Call, shape: Sequence[int]) -> list[_Extents]:
    return [[extent] for extent in shape]


_EXTENTS: Mapping[str, Callable[[relax.Call, Sequence[int]], list[_Extents]]] = {
    "relax.gather_elements": _of_axis,
    "relax.gather_nd": _of_first_axes,
    "relax.index_put": _of_each_axis,
    "relax.index_tensor": _of_each_axis,
    "relax.scatter_elements": _of_axis,
    "relax.scatter_nd": _of_first_axes,
    "relax.take": _of_axis,
    "relax.vision.roi_align": _of_images,
    "relax.vision.roi_pool": _of_images,
}
"""Relax's operators that read or write at the indices that their second argument has."""
