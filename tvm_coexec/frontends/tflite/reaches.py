"""Constants that reach beyond what they count: indices, padding and bounds that LiteRT refuses when it runs a file."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tvm_coexec.errors import ModelError

from .importer import Conversion


def check_indices(step: Conversion, position: int, extents: Sequence[int]) -> None:
    """Refuse constant indices of an axis, or of as many axes as there are numbers in each, that name no element.

    Raises
    ------
    ModelError
        Naming the first.
    """
    indices = step.importer.constant(step.operator.inputs[position])
    if indices is None:
        return
    limits = np.broadcast_to(np.array(extents if len(extents) > 1 else extents[0]), indices.shape)
    for index, extent in zip(indices[beyond := (indices < 0) | (indices >= limits)], limits[beyond], strict=True):
        raise _overreach(step, f"the index {index} is none of an axis of {extent} elements")


def check_padding(step: Conversion, most: Sequence[int] | None = None) -> list[list[int]]:
    """List what the second operand puts before and behind each axis, never less than nothing nor more than ``most``.

    Raises
    ------
    ModelError
        Naming the first that is.
    """
    widths: list[list[int]] = step.constant(1).reshape(-1, 2).tolist()
    for axis, pair in enumerate(widths):
        if min(pair) < 0:
            raise _overreach(step, f"axis {axis} is padded by {min(pair)} elements")
        if most is not None and max(pair) > max(most[axis], 0):
            raise _overreach(
                step, f"axis {axis} is padded by {max(pair)} of its elements, of which {most[axis]} can be"
            )
    return widths


def check_parts(step: Conversion, begins: Sequence[int], sizes: Sequence[int]) -> None:
    """Refuse parts of a tensor that begin outside it or have sizes that there are not; -1 is all that is left.

    Raises
    ------
    ModelError
        Naming the first.
    """
    for axis, (extent, begin, size) in enumerate(zip(step.shape(0), begins, sizes, strict=True)):
        if not 0 <= begin <= extent or size < -1:
            raise _overreach(step, f"{size} elements are taken from {begin} on, of the {extent} on axis {axis}")


def _overreach(step: Conversion, what: str) -> ModelError:
    return ModelError(f"{step.source} breaks the rules of TFLite ({what}); convert the model again")
