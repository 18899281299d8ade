"""Relax's operators on images: what of their attributes a layer can express, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import relax

from tvm_coexec.errors import ModelError
from tvm_coexec.frontends.trace import Source

OPERATIONS = {
    "relax.concat": "concat",
    "relax.max": "max",
    "relax.nn.adaptive_avg_pool2d": "pool",
    "relax.nn.avg_pool2d": "pool",
    "relax.nn.batch_norm": "batch_norm",
    "relax.nn.conv2d": "conv2d",
    "relax.nn.max_pool2d": "pool",
    "relax.nn.pad": "pad",
}
"""Relax's operators that occur in networks for images, and the operations that they become."""


def pad(before: list[int], after: list[int], value: float = 0.0) -> dict[str, Any]:
    """Attributes of padding with a number; ``before`` and ``after`` have one for each axis.

    Zeros beside the lines and columns of images ``[batch, channels, height, width]`` are what convolutions read.
    """
    if value != 0 or len(before) != 4 or any([*before[:2], *after[:2]]) or min(*before, *after) < 0:
        return {"before": tuple(before), "after": tuple(after), "value": value}
    return {"padding": (*before[2:], *after[2:])}


def batch_norm(parameters: list[np.ndarray], epsilon: float) -> tuple[np.ndarray, np.ndarray]:
    """Scale and shift of a batch normalisation from gamma, beta, mean and variance, shaped ``[channels, 1, 1]``."""
    gamma, beta, mean, variance = (array.astype(np.float64).reshape(-1, 1, 1) for array in parameters)
    scale = gamma / np.sqrt(variance + epsilon)
    return scale, beta - mean * scale


def concat_axis(call: relax.Call) -> int:
    """The axis of a concatenation; Relax leaves out the first."""
    return 0 if call.attrs.axis is None else int(call.attrs.axis)


def attributes(op: str, call: relax.Call, source: Source) -> dict[str, Any]:
    """Read the attributes of an operation on images; none of other operations."""
    reader = {"conv2d": _conv2d, "pool": _pool, "concat": _concat, "batch_norm": _batch_norm, "pad": _pad}.get(op)
    return {} if reader is None else reader(call, source)


def _conv2d(call: relax.Call, source: Source) -> dict[str, Any]:
    attrs = call.attrs
    layouts = (attrs.data_layout, attrs.kernel_layout, attrs.out_layout)
    if layouts != ("NCHW", "OIHW", "NCHW"):
        raise ModelError(f"{source} has the layouts {', '.join(layouts)}; supported is NCHW with weights OIHW")
    return {
        "stride": _numbers(attrs.strides),
        "padding": _numbers(attrs.padding),
        "dilation": _numbers(attrs.dilation),
        "groups": int(attrs.groups),
    }


def _pool(call: relax.Call, source: Source) -> dict[str, Any]:
    attrs = call.attrs
    if attrs.layout != "NCHW" or attrs.out_layout != "NCHW":
        raise ModelError(f"{source} has the layout {attrs.layout}; supported is NCHW")
    if call.op.name == "relax.nn.adaptive_avg_pool2d":
        sizes = _numbers(attrs.output_size or ())
        if sizes not in ((1,), (1, 1)):
            raise ModelError(f"{source} pools to {list(sizes)} pixels; supported is one pixel, [1, 1]")
        return {"kind": "average", "kernel": None}
    return {
        "kind": "max" if call.op.name == "relax.nn.max_pool2d" else "average",
        "kernel": _numbers(attrs.pool_size),
        "stride": _numbers(attrs.strides),
        "padding": _numbers(attrs.padding),
        "dilation": _numbers(attrs.dilation),
        "count_padding": bool(attrs.count_include_pad),
    }


def _concat(call: relax.Call, source: Source) -> dict[str, Any]:
    return {"axis": concat_axis(call) % len(call.ty.shape)}


def _batch_norm(call: relax.Call, source: Source) -> dict[str, Any]:
    attrs = call.attrs
    if not (attrs.center and attrs.scale) or attrs.training or int(attrs.axis) != 1:
        raise ModelError(
            f"{source} is in training mode, leaves out its scale or shift, or works on axis {attrs.axis}; "
            "supported is inference on axis 1 with both"
        )
    return {"epsilon": float(attrs.epsilon)}


def _pad(call: relax.Call, source: Source) -> dict[str, Any]:
    attrs = call.attrs
    if attrs.pad_mode != "constant":
        raise ModelError(f"{source} pads by {attrs.pad_mode}; supported is padding with a number")
    widths = _numbers(attrs.pad_width)
    return pad(list(widths[::2]), list(widths[1::2]), float(attrs.pad_value))


def _numbers(values: Any) -> tuple[int, ...]:
    return tuple(int(value) for value in values)
