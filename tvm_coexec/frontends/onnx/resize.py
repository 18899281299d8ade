"""Resize and Upsample along any axes: each number is a weighted sum of a few of its axis, one axis after another."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax, te, tirx

from tvm_coexec.errors import ModelError

from .call import Call, Converter

_F = np.float32
"""The precision in which ONNX Runtime computes coordinates: what lies between two elements is rounded alike."""


@dataclass(frozen=True)
class _Axis:
    """How an axis changes; ``scale`` is not always the quotient of the sizes, and ``roi`` the part that is cut out."""

    before: int
    after: int
    scale: float
    roi: tuple[float, float]


@dataclass(frozen=True)
class _Taps:
    """Elements and their weights, ``[after, taps]`` each; where ``is_outside`` the result is a given number."""

    positions: np.ndarray
    weights: np.ndarray
    is_outside: np.ndarray


def _resize(call: Call) -> Any:
    values, shape = call.attributes, call.type(0).shape
    axes = _axes(call)
    changed = {axis: each for axis, each in axes.items() if each.before != each.after or _cuts(values)}
    if _is_known_to_relax(call, axes):
        return _image(call)
    taps = {axis: _taps_of(each, values, call) for axis, each in changed.items()}
    result = call.operand(0)
    outside = float(values.get("extrapolation_value", 0.0))
    for axis, each in taps.items():
        result = call.loops(_weighted(axis, each, outside), result, *_tables(call, each, call.type(0).dtype))
    if not taps:
        result = relax.op.reshape(result, shape)
    return result


def _cuts(values: Mapping[str, Any]) -> bool:
    return bool(values.get("coordinate_transformation_mode") == "tf_crop_and_resize")


def _image(call: Call) -> relax.Expr:
    values = call.attributes
    return relax.op.image.resize2d(
        call.operand(0),
        size=relax.ShapeExpr(call.result.shape[2:]),
        layout="NCHW",
        method="linear" if values.get("mode") == "linear" else "nearest_neighbor",
        coordinate_transformation_mode=_coordinate_mode(call),
        rounding_method=_nearest_mode(call),
    )


def _is_old(call: Call) -> bool:
    """Whether the operator is from before opset 11, which has no modes of coordinates and of rounding."""
    return call.node.proto.op_type == "Upsample" or call.node.opset < 11


def _coordinate_mode(call: Call) -> str:
    return str(call.attributes.get("coordinate_transformation_mode", "asymmetric" if _is_old(call) else "half_pixel"))


def _nearest_mode(call: Call) -> str:
    return str(call.attributes.get("nearest_mode", "floor" if _is_old(call) else "round_prefer_floor"))


def _is_known_to_relax(call: Call, axes: Mapping[int, _Axis]) -> bool:
    """Whether Relax's own operator does the same: images by linear interpolation, or by whole factors."""
    values, mode = call.attributes, call.attributes.get("mode", "nearest")
    if len(call.type(0).shape) != 4 or values.get("antialias"):
        return False
    changed = [axis for axis, each in axes.items() if each.before != each.after]
    if not changed or min(changed) < 2 or call.type(0).dtype != "float32":
        return False
    if any(not math.isclose(each.scale, each.after / each.before, rel_tol=1e-6) for each in axes.values()):
        return False
    position = _coordinate_mode(call)
    if mode == "nearest":
        whole = all(each.after % each.before == 0 for each in axes.values())
        return whole and position == "asymmetric" and _nearest_mode(call) == "floor"
    above_one = all(axes[axis].after > 1 for axis in axes if axis > 1)
    return (
        mode == "linear"
        and above_one
        and position in ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
    )


def _axes(call: Call) -> dict[int, _Axis]:
    """Say what happens to each axis of the operand."""
    shape, after = call.type(0).shape, call.result.shape
    rank, values = len(shape), call.attributes
    listed = [int(axis) % rank for axis in values.get("axes", range(rank))]
    roi_index, scales_index = (None, 1) if _is_old(call) else (1, 2)
    scales = np.asarray(values["scales"]) if "scales" in values else call.array(scales_index)
    if scales is None or not scales.size:
        scales = np.array([after[axis] / shape[axis] for axis in listed])
        if values.get("keep_aspect_ratio_policy", "stretch") != "stretch":
            scales[:] = _kept_ratio(call, [shape[axis] for axis in listed])
    roi = call.array(roi_index) if roi_index is not None else None
    if _cuts(values) and roi is None:
        raise ModelError(f"{call.node.source} cuts out a part that the model computes; make it a constant")
    if roi is None or roi.size != 2 * len(listed):
        roi = np.repeat([0.0, 1.0], len(listed))
    return {
        axis: _Axis(shape[axis], after[axis], float(scale), (float(begin), float(end)))
        for axis, scale, begin, end in zip(listed, scales, roi[: len(listed)], roi[len(listed) :], strict=True)
    }


def _kept_ratio(call: Call, sizes: Sequence[int]) -> float:
    wanted = call.array(3)
    ratios = [int(want) / size for want, size in zip(np.asarray(wanted), sizes, strict=True)]
    return min(ratios) if call.attributes["keep_aspect_ratio_policy"] == "not_larger" else max(ratios)


def _positions(axis: _Axis, mode: str) -> np.ndarray:
    """Where the elements of the result lie in the operand."""
    x, scale = np.arange(axis.after, dtype=_F), _F(axis.scale)
    if axis.after == 1 and mode in ("align_corners", "pytorch_half_pixel"):
        return x
    if mode == "align_corners":
        return x * _F(axis.before - 1) / (_F(axis.scale) * _F(axis.before) - _F(1))
    if mode in ("asymmetric", "tf_half_pixel_for_nn"):
        return (x + _F(0.5 if mode == "tf_half_pixel_for_nn" else 0)) / scale
    if mode == "tf_crop_and_resize":
        begin, end = (_F(bound) for bound in axis.roi)
        if axis.after == 1:
            return _F(0.5) * (begin + end) * _F(axis.before - 1) + x
        return begin * _F(axis.before - 1) + x * (end - begin) * _F(axis.before - 1) / _F(axis.after - 1)
    if mode not in ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel"):
        raise ValueError(f"coordinate_transformation_mode is {mode}")
    return _symmetric_offset(axis, mode) + (x + _F(0.5)) / scale - _F(0.5)


def _symmetric_offset(axis: _Axis, mode: str) -> np.float32:
    """Half of what the rounding of the size leaves over."""
    if mode != "half_pixel_symmetric":
        return _F(0)
    return _F(axis.before) / _F(2) * (_F(1) - _F(axis.after) / (_F(axis.scale) * _F(axis.before)))


def _taps_of(axis: _Axis, values: Mapping[str, Any], call: Call) -> _Taps:
    positions = _positions(axis, _coordinate_mode(call))
    is_outside = np.zeros(axis.after, bool)
    if _cuts(values):
        is_outside = (positions < 0) | (positions > axis.before - 1)
    mode = values.get("mode", "nearest")
    if mode == "nearest":
        # before opset 11 nothing says how positions are rounded: ONNX Runtime does so where an image shrinks
        is_old_shrinking = _is_old(call) and axis.scale < 1
        nearest = _rounded(positions, "ceil" if is_old_shrinking else _nearest_mode(call))
        return _Taps(np.clip(nearest, 0, axis.before - 1)[:, None], np.ones((axis.after, 1)), is_outside)
    shrink = min(axis.scale, 1.0) if values.get("antialias", 0) else 1.0
    kernel, radius = (_hat, 1) if mode == "linear" else (_cubic(values.get("cubic_coeff_a", -0.75)), 2)
    reach = math.ceil(radius / shrink)
    first = np.floor(positions).astype(np.int64) - reach + 1
    taps = first[:, None] + np.arange(2 * reach)
    weights = kernel((taps - positions[:, None].astype(np.float64)) * shrink)
    if values.get("exclude_outside", 0):
        weights = np.where((taps < 0) | (taps >= axis.before), 0.0, weights)
    if values.get("exclude_outside", 0) or values.get("antialias", 0):
        weights /= weights.sum(axis=1, keepdims=True)
    return _Taps(np.clip(taps, 0, axis.before - 1), weights, is_outside)


def _rounded(positions: np.ndarray, mode: str) -> np.ndarray:
    half = _F(0.5)
    rounded = {
        "round_prefer_floor": lambda: np.ceil(positions - half),
        "round_prefer_ceil": lambda: np.floor(positions + half),
        "floor": lambda: np.floor(positions),
        "ceil": lambda: np.ceil(positions),
    }[mode]()
    return rounded.astype(np.int64)


def _hat(distance: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(distance), 0)


def _cubic(a: float) -> Callable[[np.ndarray], np.ndarray]:
    def kernel(distance: np.ndarray) -> np.ndarray:
        x = np.abs(distance)
        near = (a + 2) * x**3 - (a + 3) * x**2 + 1
        far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
        return np.where(x <= 1, near, np.where(x < 2, far, 0))

    return kernel


def _tables(call: Call, taps: _Taps, dtype: str) -> list[relax.Expr]:
    """Places, and weights where they are not all one, and where the result is a given number."""
    tables = [call.constant(taps.positions, "int32")]
    if taps.positions.shape[1] > 1 or taps.is_outside.any():
        tables.append(call.constant(taps.weights, dtype if dtype.startswith("float") else "float32"))
        tables.append(call.constant(taps.is_outside, "bool"))
    return tables


def _weighted(axis: int, taps: _Taps, outside: float) -> Callable[..., te.Tensor]:
    after, count = taps.positions.shape

    def compute(x: te.Tensor, positions: te.Tensor, *rest: te.Tensor) -> te.Tensor:
        shape = (*x.shape[:axis], after, *x.shape[axis + 1 :])

        def element(*index: Any) -> Any:
            def tap(number: int) -> Any:
                return x[(*index[:axis], positions[index[axis], number], *index[axis + 1 :])]

            if not rest:
                return tap(0)
            weights, is_outside = rest
            total = sum(tap(number).astype(weights.dtype) * weights[index[axis], number] for number in range(count))
            total = tirx.if_then_else(is_outside[index[axis]], tirx.const(outside, weights.dtype), total)
            if str(x.dtype).startswith("float"):
                return total
            low, high = (float(getattr(np.iinfo(str(x.dtype)), bound)) for bound in ("min", "max"))
            return tirx.max(tirx.min(tirx.nearbyint(total), high), low).astype(x.dtype)

        return te.compute(shape, element, name="resized")

    return compute


CONVERTERS: Mapping[str, Converter] = {"Resize": _resize, "Upsample": _resize}
