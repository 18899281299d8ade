"""Gathering, scattering and sorting; indices that only the run tells are looked after in ``relax/places.py``."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from tvm import relax, te, tirx

from tvm_coexec.errors import ModelError
from tvm_coexec.frontends.relax.scattering import scattered_elements, scattered_parts
from tvm_coexec.frontends.relax.sorting import extreme_indices
from tvm_coexec.frontends.trace import axis_within

from .call import Call, Converter


def _axis(call: Call, default: int = 0, name: str = "axis") -> int:
    return axis_within(call.attributes.get(name, default), len(call.type(0).shape), call.node.source)


def _gather(call: Call) -> Any:
    return relax.op.take(call.operand(0), call.operand(1), _axis(call))


def _gather_elements(call: Call) -> Any:
    return relax.op.gather_elements(call.operand(0), call.operand(1), _axis(call))


def _gather_nd(call: Call) -> Any:
    indices = relax.op.astype(call.operand(1), "int64")
    return relax.op.gather_nd(call.operand(0), indices, call.attributes.get("batch_dims", 0))


def _slice(call: Call) -> Any:
    """Bounds counted from the start; TVM takes those beyond the ends otherwise."""
    shape, values = call.type(0).shape, call.attributes
    bounds = [values.get(name, call.array(position)) for position, name in enumerate(("starts", "ends", "axes"), 1)]
    if bounds[0] is None or bounds[1] is None:
        raise ModelError(f"{call.node.source} has bounds that the model computes; make them constants")
    axes = [int(axis) % len(shape) for axis in (range(len(bounds[0])) if bounds[2] is None else bounds[2])]
    steps = call.array(4)
    steps = np.ones(len(axes), np.int64) if steps is None else steps
    ranges = [
        range(shape[axis])[int(begin) : int(end) : int(step)]
        for axis, begin, end, step in zip(axes, bounds[0], bounds[1], steps, strict=True)
    ]
    if all(each.step > 0 for each in ranges):
        begins, ends, strides = zip(*((each.start, each.stop, each.step) for each in ranges), strict=True)
        return relax.op.strided_slice(call.operand(0), axes, list(begins), list(ends), list(strides))
    by_axis = dict(zip(axes, ranges, strict=True))

    def compute(x: te.Tensor) -> te.Tensor:
        def element(*index: Any) -> Any:
            moved = [
                by_axis[axis].start + at * by_axis[axis].step if axis in by_axis else at
                for axis, at in enumerate(index)
            ]
            return x[tuple(moved)]

        return te.compute(call.result.shape, element, name="sliced")

    return call.loops(compute, call.operand(0))


def _scatter_elements(call: Call) -> Any:
    shape, axis = call.type(0).shape, _axis(call)
    write = scattered_elements(shape, call.type(1).shape, axis, call.attributes.get("reduction", "none"))
    return call.loops(write, call.operand(0), call.operand(1), call.operand(2))


def _scatter_nd(call: Call) -> Any:
    shape, size = call.type(0).shape, call.type(1).shape
    write = scattered_parts(shape, size, call.attributes.get("reduction", "none"))
    return call.loops(write, call.operand(0), call.operand(1), call.operand(2))


def _unpool(call: Call) -> Any:
    """Put numbers at their places in a tensor of zeros, which is counted through."""
    shape, places = call.result.shape, (math.prod(call.type(0).shape),)
    size = (math.prod(shape),)
    indices = call.builder.emit(relax.op.reshape(call.operand(1), places))
    x = call.builder.emit(relax.op.reshape(call.operand(0), places))
    zeros = call.builder.emit(relax.op.zeros(size, call.type(0).dtype))
    return relax.op.reshape(call.loops(scattered_elements(size, places, 0, "none"), zeros, indices, x), shape)


def _pool_regions(call: Call) -> Any:
    """Average regions. Maxima are ONNX's of weighted corners, which Relax's operator does not take.

    Half a pixel is one of the image, while Relax scales all that it is given: TVM's converter moves boxes too far.
    A box that ends before it begins has no points to take where their number is the box's own.
    """
    values, boxes = call.attributes, call.operand(1)
    if values.get("mode", "avg") != "avg":
        raise ModelError(f"{call.node.source} takes maxima of regions; supported are averages (mode='avg')")
    scale = float(values.get("spatial_scale", 1.0))
    default = "half_pixel" if call.node.opset >= 16 else "output_half_pixel"
    is_aligned = values.get("coordinate_transformation_mode", default) == "half_pixel"
    dtype = call.type(1).dtype
    if is_aligned:
        boxes = relax.op.subtract(boxes, call.constant(np.array(0.5 / scale), dtype))
    images = relax.op.astype(relax.op.expand_dims(call.operand(2), 1), dtype)
    ratio = values.get("sampling_ratio", 0)
    pooled = relax.op.vision.roi_align(
        call.operand(0),
        relax.op.concat([images, boxes], axis=1),
        pooled_size=call.result.shape[2:],
        spatial_scale=scale,
        sample_ratio=ratio,
        aligned=is_aligned,
        layout="NCHW",
    )
    if not is_aligned or ratio > 0:
        return pooled
    begins, ends = (relax.op.strided_slice(boxes, [1], [first], [first + 2]) for first in (0, 2))
    narrower = relax.op.min(relax.op.subtract(ends, begins), axis=1, keepdims=True)
    has_points = relax.op.expand_dims(relax.op.greater(narrower, call.constant(np.array(0), dtype)), [2, 3])
    return relax.op.where(has_points, pooled, call.constant(np.array(0), dtype))


def _one_hot(call: Call) -> Any:
    """The last operand's second number where an index, counted from either end, names the position; else its first."""
    shape = call.result.shape
    axis = axis_within(call.attributes.get("axis", -1), len(shape), call.node.source)

    def compute(given: te.Tensor, values: te.Tensor) -> te.Tensor:
        def element(*index: Any) -> Any:
            named = given[(*index[:axis], *index[axis + 1 :])].astype("int64")
            position = tirx.Select(named < 0, named + shape[axis], named)
            return tirx.Select(position == index[axis], values[1], values[0])

        return te.compute(shape, element, name="one_hot")

    return call.loops(compute, call.operand(0), call.operand(2))


def _reverse_sequence(call: Call) -> Any:
    """The first numbers along one axis from the last to the first, as many as there are for the position on another."""
    batch_axis, time_axis = _axis(call, 1, "batch_axis"), _axis(call, 0, "time_axis")

    def compute(x: te.Tensor, lengths: te.Tensor) -> te.Tensor:
        def element(*index: Any) -> Any:
            time, length = index[time_axis], lengths[index[batch_axis]].astype("int64")
            length = tirx.min(length, call.type(0).shape[time_axis])
            position = tirx.Select(time < length, length - 1 - time, time)
            return x[(*index[:time_axis], position, *index[time_axis + 1 :])]

        return te.compute(x.shape, element, name="reversed")

    return call.loops(compute, call.operand(0), call.operand(1))


def _top_k(call: Call) -> Any:
    axis, shape = _axis(call, -1), call.type(0).shape
    count = call.model.types[call.node.proto.output[0] or call.node.proto.output[1]].shape[axis]
    largest = bool(call.attributes.get("largest", 1))
    positions = call.loops(extreme_indices(shape, axis, count, largest), call.operand(0))
    return [relax.op.gather_elements(call.operand(0), positions, axis), positions]


def _extreme_position(*, largest: bool) -> Converter:
    """The place of the first number along an axis, or the last, that none exceeds; the first number may be NaN."""

    def convert(call: Call) -> Any:
        is_kept, takes_last = (bool(call.attributes.get(name, usual)) for name, usual in _KEEPING_AND_LAST)
        axis, shape = _axis(call), call.type(0).shape
        return call.loops(_places(call.result.shape, axis, shape[axis], is_kept, takes_last, largest), call.operand(0))

    return convert


def _places(
    result: Sequence[int], axis: int, extent: int, is_kept: bool, takes_last: bool = False, largest: bool = True
) -> Callable[[te.Tensor], te.Tensor]:
    """Loops that find the place of an extreme along an axis, which the result has kept or not."""

    def later(before: Sequence[Any], one: Sequence[Any]) -> tuple[Any, Any]:
        low, high = (before[1], one[1]) if largest else (one[1], before[1])
        is_taken = tirx.any(before[0] < 0, low <= high if takes_last else low < high)
        place, number = (tirx.Select(is_taken, *pair) for pair in zip(one, before, strict=True))
        return place, number

    def nothing(*dtypes: str) -> tuple[Any, Any]:
        return tirx.const(-1, dtypes[0]), tirx.const(0, dtypes[1])

    def compute(x: te.Tensor) -> te.Tensor:
        place, extreme = te.reduce_axis((0, extent), "place"), te.comm_reducer(later, nothing)

        def element(*index: Any) -> Any:
            read = (*index[:axis], place.var, *index[axis + is_kept :])
            return extreme((place.var.astype("int64"), x[read]), axis=place)

        return te.compute(result, element, name="extreme")[0]

    return compute


def _hardmax(call: Call) -> Any:
    """One where a row's largest number is first, and zeros; a row is all from an axis on in ONNX's first versions."""
    shape, dtype, is_old = call.type(0).shape, call.type(0).dtype, call.node.opset < _ONE_AXIS
    axis = axis_within(call.attributes.get("axis", 1 if is_old else -1), len(shape), call.node.source)
    x = call.operand(0)
    if is_old:
        shape, axis = (math.prod(shape[:axis]), math.prod(shape[axis:])), 1
        x = call.builder.emit(relax.op.reshape(x, shape))
    places = call.loops(_places([*shape[:axis], 1, *shape[axis + 1 :]], axis, shape[axis], True), x)

    def compute(found: te.Tensor) -> te.Tensor:
        def element(*index: Any) -> Any:
            return (found[(*index[:axis], 0, *index[axis + 1 :])] == index[axis]).astype(dtype)

        return te.compute(shape, element, name="hardmax")

    return relax.op.reshape(call.loops(compute, places), call.result.shape)


_KEEPING_AND_LAST = (("keepdims", 1), ("select_last_index", 0))

_ONE_AXIS = 13
"""The opset from which on an axis of Hardmax is one alone."""

CONVERTERS: Mapping[str, Converter] = {
    "ArgMax": _extreme_position(largest=True),
    "ArgMin": _extreme_position(largest=False),
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Hardmax": _hardmax,
    "MaxUnpool": _unpool,
    "OneHot": _one_hot,
    "ReverseSequence": _reverse_sequence,
    "RoiAlign": _pool_regions,
    "Scatter": _scatter_elements,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
    "Slice": _slice,
    "TopK": _top_k,
}
