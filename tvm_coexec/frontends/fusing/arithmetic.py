"""Form layers of arithmetic on two activations, of which one may be repeated along some axes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tvm_coexec.errors import ModelError
from tvm_coexec.frontends.trace import Operation, Source
from tvm_coexec.graph.graph import Image
from tvm_coexec.layers import Elementwise

from .moves import with_channels_at
from .state import State
from .values import Value, claim_image

OPERATIONS = Elementwise.KINDS
"""Operations that this module makes layers of."""


@dataclass(frozen=True)
class _Sizes:
    """The operands as images that are combined element by element, and the axis of the result's channels."""

    first: Image
    second: Image
    channel_axis: int
    is_image: bool


def add_arithmetic(state: State, operation: Operation) -> None:
    """Add one layer; what follows becomes its epilogue. The square of an activation is a step of what makes it."""
    if operation.op == "multiply" and len(set(operation.inputs)) == 1:
        state.append_step(operation, operation.inputs[0], "square")
        return
    source, shape = operation.source, state.trace.shapes[operation.output]
    values = [state.materialised(name, source) for name in operation.inputs]
    sizes = _sizes(values, shape)
    if sizes is None:
        values = _with_common_channels(state, values, source)
        sizes = _sizes(values, shape)
    if sizes is None:
        raise ModelError(
            f"{source} combines activations of shapes {' and '.join(str(list(value.shape)) for value in values)} whose "
            "channels are on different axes, or which repeat each other along too many"
        )
    if sizes.is_image:
        for value, size in zip(values, (sizes.first, sizes.second), strict=True):
            claim_image(value.tensor, size, source)
    layer = Elementwise(operation.op, sizes.first, sizes.second)
    draft = state.new_draft(layer, values[0].tensor, shape, layer.out_channels, source)
    draft.others = (values[1].tensor,)
    draft.output.name = operation.output
    if sizes.is_image:
        batch, h, w, channels = layer.output_size
        draft.output.image = (batch, h, w, channels)
    state.values[operation.output] = Value(draft.output, shape, math.prod(shape[: sizes.channel_axis]))


def _with_common_channels(state: State, values: list[Value], source: Source) -> list[Value]:
    """The operands, the smaller as a copy whose channels are on the axis of the larger one's."""
    smaller, larger = sorted(values, key=lambda value: math.prod(value.shape))
    axis = larger.channel_axis
    if axis is None or len(smaller.shape) != len(larger.shape) or smaller.shape == larger.shape:
        return values
    moved = with_channels_at(state, smaller, axis, source)
    return [moved if value is smaller else value for value in values]


def _sizes(values: list[Value], shape: tuple[int, ...]) -> _Sizes | None:
    """None where no layer can see the operands so."""
    axis = _channel_axis(values, len(shape))
    if axis is None:
        return None
    wide = [(1,) * (len(shape) - len(value.shape)) + value.shape for value in values]
    for value, extents in zip(values, wide, strict=True):
        if extents[axis] != value.tensor.channels:
            return None
    rest = [index for index in range(len(shape)) if index != axis]
    is_image = len(shape) in (3, 4) and axis == 1 and (math.prod(shape[2:]) > 1 or _are_images(values))
    groups = _alike(rest, wide, shape)
    if is_image:
        groups = [[0], *([[]] if len(shape) == 3 else []), *([index] for index in rest[1:])]
    if len(groups) > 3:
        return None
    first, second = (_image(groups, extents, axis) for extents in wide)
    return _Sizes(first, second, axis, is_image)


def _image(groups: list[list[int]], extents: tuple[int, ...], channel_axis: int) -> Image:
    """Put axes together as batch, height and width, fewer than three behind ones."""
    sizes = [math.prod(extents[index] for index in group) for group in groups]
    batch, h, w = (*(1,) * (3 - len(sizes)), *sizes)
    return batch, h, w, extents[channel_axis]


def _are_images(values: list[Value]) -> bool:
    return any(value.tensor.image is not None for value in values)


def _channel_axis(values: list[Value], rank: int) -> int | None:
    """The axis, of so many, that all operands with several channels have them on; None where they differ."""
    several = [value for value in values if value.tensor.channels > 1] or values
    axes = {None if value.channel_axis is None else value.channel_axis + rank - len(value.shape) for value in several}
    return axes.pop() if len(axes) == 1 else None


def _alike(indices: list[int], wide: list[tuple[int, ...]], shape: tuple[int, ...]) -> list[list[int]]:
    """Neighbouring axes along which the same operands are repeated, put together; those of one element left out."""
    groups: list[list[int]] = []
    last: list[bool] | None = None
    for index in indices:
        if shape[index] == 1:
            continue
        repeated = [extents[index] < shape[index] for extents in wide]
        if repeated == last:
            groups[-1].append(index)
        else:
            groups.append([index])
        last = repeated
    return groups
