"""Sizes that are those of an operand times factors, rounded as ONNX Runtime does, where ONNX's inference does not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import NodeProto

from .values import attributes

SCALING = ("Resize", "Upsample")
"""Operators whose results have the sizes of their operands times factors."""

_MOST = 2.0**31
"""Sizes from here on are more than kernels count."""


def scaled_shape(
    node: NodeProto, before: tuple[int, ...], inferred: tuple[int, ...], constants: Sequence[np.ndarray | None]
) -> tuple[int, ...]:
    """The shape of what is scaled: each size times its factor is a float32 product, of which the whole part is taken.

    ``constants`` has the node's operands, with None for those that are no constants. That the factor 1.3 makes 13 of
    10 is so in float32 alone: 1.3 is written as a little less.
    """
    values, shape = attributes(node), list(inferred)
    scales = values.get("scales", constants[2 if len(constants) > 2 else -1])
    if scales is None or values.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        return inferred
    for axis, scale in zip(values.get("axes", range(len(shape))), scales, strict=False):
        with np.errstate(over="ignore"):
            size = np.float32(before[axis]) * np.float32(scale)
        if size < _MOST:  # else what is inferred is told to be too large
            shape[axis] = int(size)
    return tuple(shape)
