"""Normalisations, for tensors of any number of axes."""

from __future__ import annotations

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


CONVERTERS: Mapping[str, Converter] = {"BatchNormalization": _batch_normalise}
