"""Normalisations, and lengths of windows, are written for tensors of any number of axes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from tvm import relax

from tvm_coexec.errors import ModelError

from .call import Call, Converter


def _batch_normalise(call: Call) -> Any:
    """A product and a sum, with constants where the statistics are constant."""
    values, source = call.attributes, call.node.source
    if values.get("training_mode", 0) or any(call.node.proto.output[1:]):
        raise ModelError(f"{source} may be in training mode; export the model for inference")
    if not values.get("spatial", 1):
        raise ModelError(f"{source} has statistics for every pixel; supported is spatial=1")
    x, dtype = call.operand(0), call.type(0).dtype
    spread = (-1, *[1] * (len(call.type(0).shape) - 2))
    epsilon = values.get("epsilon", 1e-5)
    arrays = [call.array(index) for index in range(1, 5)]
    if all(array is not None for array in arrays):
        gamma, beta, mean, variance = (np.asarray(array, np.float64).reshape(spread) for array in arrays)
        factor = gamma / np.sqrt(variance + epsilon)
        scale, shift = call.constant(factor, dtype), call.constant(beta - mean * factor, dtype)
    else:
        gamma, beta, mean, variance = (
            call.builder.emit(relax.op.reshape(call.operand(index), spread)) for index in range(1, 5)
        )
        deviation = relax.op.sqrt(relax.op.add(variance, call.constant(epsilon, dtype)))
        scale = call.builder.emit(relax.op.divide(gamma, deviation))
        shift = call.builder.emit(relax.op.subtract(beta, relax.op.multiply(mean, scale)))
    return relax.op.add(call.builder.emit(relax.op.multiply(x, scale)), shift)


def _pool_lengths(call: Call) -> Any:
    """Lengths of windows that reach beyond the padding, of which TVM counts the elements that they have."""
    values, shape = call.attributes, call.type(0).shape
    axes = range(len(shape) - 2)
    is_same = values.get("auto_pad", "NOTSET").startswith("SAME")
    if not values.get("ceil_mode") or is_same or len(axes) not in _AVERAGES:
        return None
    window, power = list(values["kernel_shape"]), float(values.get("p", 2))
    strides, dilations = (list(values.get(name, [1] * len(axes))) for name in ("strides", "dilations"))
    begins = list(values.get("pads", [0] * len(axes)))[: len(axes)]
    widths = [0] * 4
    for axis in axes:
        if (call.result.shape[axis + 2] - 1) * strides[axis] >= begins[axis] + shape[axis + 2]:
            return None  # by ONNX's inference a window holds padding alone; ONNX Runtime leaves that out
        reach = (call.result.shape[axis + 2] - 1) * strides[axis] + dilations[axis] * (window[axis] - 1) + 1
        widths += [begins[axis], max(reach - begins[axis] - shape[axis + 2], 0)]

    def number(value: float) -> relax.Expr:
        return call.constant(value, call.type(0).dtype)

    powers = call.builder.emit(relax.op.nn.pad(relax.op.power(relax.op.abs(call.operand(0)), number(power)), widths))
    means = _AVERAGES[len(axes)](powers, window, strides, dilation=dilations, count_include_pad=True)
    return relax.op.power(relax.op.multiply(means, number(math.prod(window))), number(1 / power))


_AVERAGES = {1: relax.op.nn.avg_pool1d, 2: relax.op.nn.avg_pool2d, 3: relax.op.nn.avg_pool3d}
"""Relax's averages by the number of axes that windows have."""


def _check_neighbours(call: Call) -> None:
    """Look at how many channels a normalisation sums over; TVM is right for those that are left."""
    size, channels = call.attributes["size"], call.type(0).shape[1]
    if size % 2 == 0 or not 0 < size < 2 * channels:
        raise ModelError(
            f"{call.node.source} sums over {size} of {channels} channels; export the model with an odd number "
            "from 1 on, and less than twice as many as there are channels"
        )


CONVERTERS: Mapping[str, Converter] = {
    "BatchNormalization": _batch_normalise,
    "LRN": _check_neighbours,
    "LpPool": _pool_lengths,
}
