"""Constants that reach beyond what they count: indices, padding and sizes, at which ONNX's inference does not look."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from onnx import NodeProto

from .values import attributes

_Shape = tuple[int, ...]
_Arrays = Sequence[np.ndarray | None]


def overreach(node: NodeProto, shape: _Shape, arrays: _Arrays) -> str | None:
    """What reaches beyond the first operand, of this shape; ``arrays`` has None for operands that are no constants."""
    check = _CHECKS.get(node.op_type)
    padded = [*arrays, *[None] * (4 - len(arrays))]
    return next(check(attributes(node), shape, padded), None) if check else None


def _indices(values: Mapping[str, Any], shape: _Shape, arrays: _Arrays) -> Iterator[str]:
    axis = values.get("axis", 0)
    if -len(shape) <= axis < len(shape):  # else its number is refused
        yield from _beyond(arrays[1], np.array(shape[axis]))


def _tuples(values: Mapping[str, Any], shape: _Shape, arrays: _Arrays) -> Iterator[str]:
    first, indices = values.get("batch_dims", 0), arrays[1]
    if indices is not None and indices.ndim and first + indices.shape[-1] <= len(shape):
        yield from _beyond(indices, np.array(shape[first : first + indices.shape[-1]]))


def _beyond(indices: np.ndarray | None, extents: np.ndarray) -> Iterator[str]:
    """Name the first index that is none of an axis, counted from either end; the last axis has one for each extent."""
    if indices is None:
        return
    missed = (indices < -extents) | (indices >= extents)
    if missed.any():
        place = tuple(np.argwhere(missed)[0])
        extent = extents[place[-1]] if extents.ndim else extents
        yield f"the index {indices[place]} is none of an axis of {extent} elements"


def _reflections(values: Mapping[str, Any], shape: _Shape, arrays: _Arrays) -> Iterator[str]:
    """ONNX's padding by reflection is less than there are elements."""
    pads, axes = values.get("pads", arrays[1]), arrays[3]
    if values.get("mode") != "reflect" or pads is None:
        return
    of_axes = range(len(shape)) if axes is None else [int(axis) for axis in axes]
    for axis, before, after in zip(of_axes, pads, pads[len(of_axes) :], strict=False):
        if -len(shape) <= axis < len(shape):
            kept = shape[axis] + min(before, 0) + min(after, 0)
            if max(before, after) >= max(kept, 1):
                yield f"{max(before, after)} elements are reflected into the padding of an axis of {kept}"


def _sizes(values: Mapping[str, Any], shape: _Shape, arrays: _Arrays) -> Iterator[str]:
    for what, array in (("scale", arrays[2]), ("size", arrays[3])):
        if array is not None and array.size and 0 not in shape and not (array > 0).all():
            yield f"the {what} {array[~(array > 0)][0]} is not above zero"


_CHECKS: Mapping[str, Callable[[Mapping[str, Any], _Shape, _Arrays], Iterator[str]]] = {
    **dict.fromkeys(("Gather", "GatherElements", "Scatter", "ScatterElements"), _indices),
    **dict.fromkeys(("GatherND", "ScatterND"), _tuples),
    "Pad": _reflections,
    "Resize": _sizes,
}
