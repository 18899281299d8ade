"""Relax's operators on images whose layers are several, or that take elements from other places."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax, tirx

from tvm_coexec.errors import ModelError
from tvm_coexec.frontends.trace import Source

OPERATIONS = {
    "relax.image.resize2d": "resize",
    "relax.nn.conv1d": "conv1d",
    "relax.nn.conv2d_transpose": "conv2d_transpose",
    "relax.nn.group_norm": "group_norm",
    "relax.nn.instance_norm": "instance_norm",
    "relax.strided_slice": "cut",
}
"""Relax's operators of this kind, and the operations that they become."""


def attributes(op: str, call: relax.Call, source: Source) -> dict[str, Any]:
    """Read the attributes of an operation of this kind; none of other operations."""
    reader = {"cut": _cut, "resize": _resize, "conv1d": _conv1d, "conv2d_transpose": _transposed}.get(op)
    reader = _norm if op in ("group_norm", "instance_norm") else reader
    return {} if reader is None else reader(call, source)


def _cut(call: relax.Call, source: Source) -> dict[str, Any]:
    """List axis, first place and step of each cut, places counted from the start."""
    axes, begins, _ends, *rest = (_numbers(argument, source) for argument in call.args[1:])
    shape = [int(size) for size in call.args[0].ty.shape.values]
    strides = rest[0] if rest else [1] * len(axes)
    cuts = []
    for axis, begin, stride in zip(axes, begins, strides, strict=True):
        size = shape[axis % len(shape)]
        first = min(max(begin + size if begin < 0 else begin, 0), size if stride > 0 else size - 1)
        cuts.append((axis % len(shape), first, stride))
    return {"cuts": tuple(cuts)}


def _numbers(argument: Any, source: Source) -> list[int]:
    values = [getattr(field, "value", field) for field in argument.fields] if isinstance(argument, relax.Tuple) else []
    if not values or not all(isinstance(value, int | tirx.IntImm) for value in values):
        raise ModelError(f"{source} cuts at places that the model computes; make them constants")
    return [int(value) for value in values]


def _resize(call: relax.Call, source: Source) -> dict[str, Any]:
    """How often each axis is repeated, or where lines and columns lie between those that there are."""
    attrs = call.attrs
    shape, result = ([int(size) for size in of.ty.shape.values] for of in (call.args[0], call))
    if attrs.layout != "NCHW" or any(float(bound) for bound in attrs.roi):
        raise ModelError(f"{source} resizes a part of an image, or one in the layout {attrs.layout}")
    pairs = list(zip(shape[2:], result[2:], strict=True))
    mode = attrs.coordinate_transformation_mode
    if attrs.method == "linear" and min(result[2:]) > 1:
        affine = [_straight(before, after, mode, source) for before, after in pairs]
        return {"scale": tuple(scale for scale, _ in affine), "shift": tuple(shift for _, shift in affine)}
    is_whole = all(after % before == 0 for before, after in pairs)
    if attrs.method == "nearest_neighbor" and is_whole and (mode, attrs.rounding_method) in _FLOORS:
        return {"factors": (1, 1, *(after // before for before, after in pairs))}
    raise ModelError(f"{source} resizes by {attrs.method} {mode}, which is neither linear nor whole repetition")


_FLOORS = (
    ("asymmetric", "floor"),
    ("half_pixel", "round"),
    ("half_pixel", "round_prefer_floor"),
    ("half_pixel", "round_prefer_ceil"),
)
"""What takes the pixel in which the new one lies, where an image grows by whole factors."""


def _straight(before: int, after: int, mode: str, source: Source) -> tuple[float, float]:
    """Compute factor and summand that make of an output's line its place among those of the input."""
    scale = float(np.float32(before) / np.float32(after))
    if mode == "align_corners":
        return (before - 1) / (after - 1), 0.0
    if mode == "asymmetric":
        return scale, 0.0
    if mode not in ("half_pixel", "pytorch_half_pixel"):
        raise ModelError(f"{source} places pixels by {mode}, which no layer does")
    return scale, 0.5 * scale - 0.5


def _norm(call: relax.Call, source: Source) -> dict[str, Any]:
    """Groups, where there are any, and what is added to variances."""
    attrs, rank = call.attrs, len(call.args[0].ty.shape)
    axes = [int(axis) % rank for axis in attrs.axes]
    if int(attrs.channel_axis) != 1 or axes != list(range(2, rank)) or not (attrs.center and attrs.scale):
        raise ModelError(f"{source} normalises other axes than those of pixels, or without scale and shift")
    return {"epsilon": float(attrs.epsilon), "groups": int(getattr(attrs, "num_groups", 0))}


def _conv1d(call: relax.Call, source: Source) -> dict[str, Any]:
    attrs = call.attrs
    if (attrs.data_layout, attrs.kernel_layout) != ("NCW", "OIW"):
        raise ModelError(f"{source} has the layout {attrs.data_layout}; supported is NCW with weights OIW")
    before, after = (int(size) for size in attrs.padding)
    return {
        "stride": (1, int(attrs.strides[0])),
        "padding": (0, before, 0, after),
        "dilation": (1, int(attrs.dilation[0])),
        "groups": int(attrs.groups),
    }


def _transposed(call: relax.Call, source: Source) -> dict[str, Any]:
    attrs = call.attrs
    layouts = (attrs.data_layout, attrs.kernel_layout)
    if layouts != ("NCHW", "IOHW") or any(int(step) != 1 for step in attrs.dilation):
        raise ModelError(f"{source} is dilated or has the layouts {', '.join(layouts)}; supported is NCHW with IOHW")
    return {
        "stride": tuple(int(step) for step in attrs.strides),
        "padding": tuple(int(size) for size in attrs.padding),
        "groups": int(attrs.groups),
    }
