"""Form the layers of networks for images: convolutions, pooling and concatenations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from tvm_coexec.errors import ModelError
from tvm_coexec.frontends.trace import Operation, Source
from tvm_coexec.graph.graph import Image
from tvm_coexec.layers import Concat, Conv2d, LocalNorm, Pool, is_nonnegative

from . import moves as fuse_moves
from .state import State
from .values import NO_PADDING, Value, claim_image

if TYPE_CHECKING:
    from .drafts import Draft, DraftTensor


def _add_conv2d(state: State, operation: Operation) -> None:
    activation, constant = operation.inputs
    weights = state.trace.constants.get(constant)
    if weights is None or activation in state.trace.constants:
        raise ModelError(
            f"{operation.source} must convolve an activation with constant weights; make its weights a constant"
        )
    value = fuse_moves.with_channels_second(state, state.values[activation], operation.source)
    add_convolution(state, operation, value, weights)


def add_convolution(state: State, operation: Operation, value: Value, weights: np.ndarray) -> None:
    """Add a convolution of a value, which the operation's attributes describe."""
    source, attributes = operation.source, operation.attributes
    batch, h, w, channels = value.read_as_image(source)
    padding = tuple(a + b for a, b in zip(attributes["padding"], value.padding, strict=True))
    if value.pending is not None and value.pending.shift is not None and padding != NO_PADDING:
        value = state.settled(value)
    layer = Conv2d(
        h,
        w,
        channels,
        weights.shape[0],
        weights.shape[2:],
        attributes["stride"],
        padding,
        attributes["dilation"],
        attributes["groups"],
        batch,
    )
    _finish_convolution(state, operation, layer, value, weights)


def add_covering_convolution(state: State, operation: Operation, value: Value, weights: np.ndarray) -> None:
    """A linear layer that reads a whole flattened image: a convolution whose kernel covers the image.

    So the order of the pixels in memory, and what lies between them, is a matter of convolutions alone.
    """
    tensor = value.tensor
    image = tensor.image or (value.batch, 1, tensor.rows // value.batch, tensor.channels)
    if image[0] != value.batch:
        raise ModelError(f"{operation.source} reads an image that is not flattened to one row; flatten it whole")
    claim_image(tensor, image, operation.source)
    batch, h, w, channels = image
    layer = Conv2d(h, w, channels, weights.shape[1], (h, w), batch=batch)
    _finish_convolution(state, operation, layer, value, weights.T.reshape(-1, channels, h, w))


def _finish_convolution(state: State, operation: Operation, layer: Conv2d, value: Value, weights: np.ndarray) -> None:
    shape, value = state.trace.shapes[operation.output], state.readable_by(weights, value)
    draft = state.new_draft(layer, value.tensor, shape, layer.out_channels, operation.source)
    draft.params["weights"] = weights
    if value.pending is not None:
        draft.absorb_before(value.pending)
    _set_image(state, operation, draft, (layer.batch, layer.out_h, layer.out_w, layer.out_channels))


def _set_image(state: State, operation: Operation, draft: Draft, image: tuple[int, int, int, int]) -> None:
    """Let the operation's result be the image that a draft makes, its channels first."""
    draft.output.image = image
    state.set(operation, draft)
    value = state.values[operation.output]
    state.values[operation.output] = replace(value, batch=image[0])


def _add_pad(state: State, operation: Operation) -> None:
    """Padding waits for the convolution or pooling that reads it; it comes after whatever is pending."""
    value = state.materialised(operation.inputs[0], operation.source)
    value.read_as_image(operation.source)
    shape = state.trace.shapes[operation.output]
    state.values[operation.output] = replace(value, shape=shape, padding=operation.attributes["padding"])


def _add_pool(state: State, operation: Operation) -> None:
    source, attributes = operation.source, operation.attributes
    name = operation.inputs[0]
    kind = attributes.get("kind", "max" if operation.op == "max" else "average")
    value = state.values[name] if state.values[name].pending is None else state.materialised(name, source)
    value = fuse_moves.with_channels_second(state, value, source)
    batch, h, w, channels = value.read_as_image(source)
    if attributes.get("kernel") is None:
        if value.padding != NO_PADDING:
            raise ModelError(f"{source} reads a padded image; pool it before it is padded")
        layer = Pool(kind, h, w, channels, (h, w), batch=batch)
    else:
        layer = _windowed(kind, operation, value, state.trace.shapes[operation.output])
    draft = state.new_draft(layer, value.tensor, state.trace.shapes[operation.output], channels, source)
    _set_image(state, operation, draft, (batch, layer.out_h, layer.out_w, channels))


def _add_reduction(state: State, operation: Operation) -> None:
    """The mean or maximum over axes that follow each other, but for the channels': a pooling of whole lines."""
    source, axes = operation.source, operation.attributes["axes"]
    if operation.is_on_images:
        _add_pool(state, operation)
        return
    value = state.materialised(operation.inputs[0], source)
    image = _reduced_image(value, axes, source)
    own = value.tensor.image
    if own is not None and image == (own[0], own[1] * own[2], 1, own[3]):
        image, kernel = own, own[1:3]
    else:
        kernel = (1, image[2]) if not value.channels_last and axes[0] == len(value.shape) - 1 else (image[1], 1)
    claim_image(value.tensor, image, source)
    batch, h, w, channels = image
    layer = Pool("max" if operation.op == "max" else "average", h, w, channels, kernel, kernel, batch=batch)
    result = state.trace.shapes[operation.output]
    draft = state.new_draft(layer, value.tensor, result, channels, source)
    draft.output.name, draft.output.image = operation.output, (batch, layer.out_h, layer.out_w, channels)
    seen = draft.output.rows if value.channels_last else batch
    state.values[operation.output] = Value(draft.output, result, seen)


def _reduced_image(value: Value, axes: tuple[int, ...], source: Source) -> Image:
    """The image of which lines or columns are reduced: rows become lines of one, those that go together."""
    shape, channels = value.shape, value.tensor.channels
    first, behind = (axes[0], axes[-1] + 1) if axes else (0, 0)
    if axes and value.channels_last and value.has_channels_at(len(shape) - 1) and behind < len(shape):
        if axes == tuple(range(first, behind)):
            return math.prod(shape[:first]), math.prod(shape[first:behind]), math.prod(shape[behind:-1]), channels
    elif value.has_channels_at(1) and len(axes) == 1 and first > 1:
        if len(shape) == 4:
            return shape[0], shape[2], shape[3], channels
        if len(shape) == 3:
            return shape[0], 1, shape[2], channels
    raise ModelError(f"{source} reduces axes {list(axes)} of {list(shape)}; supported are neighbours of the channels'")


def _windowed(kind: str, operation: Operation, value: Value, shape: tuple[int, ...]) -> Pool:
    source, attributes = operation.source, operation.attributes
    batch, h, w, channels = value.read_as_image(source)
    own, count_padding = attributes["padding"], attributes["count_padding"] and any(attributes["padding"])
    if value.padding != NO_PADDING:
        if kind == "average" and (count_padding or own == NO_PADDING):
            count_padding = True
        elif kind == "average" or not _is_nonnegative(value):
            raise ModelError(
                f"{source} reads an image padded with zeros, which it would have to tell from its own padding; "
                "give the pooling the padding"
            )
    top, left, bottom, right = (a + b for a, b in zip(own, value.padding, strict=True))
    kernel, stride, dilation = attributes["kernel"], attributes["stride"], attributes["dilation"]
    # rounding up the number of windows is the same as more padding behind the last pixel
    reach = [
        (count - 1) * step + spread * (size - 1) + 1
        for count, step, spread, size in zip(shape[2:], stride, dilation, kernel, strict=True)
    ]
    beyond = [max(extent - size, 0) for extent, size in zip(reach, (top + h + bottom, left + w + right), strict=True)]
    if any(beyond) and kind == "average" and count_padding:
        raise ModelError(f"{source} averages with padding counted and ceil_mode, whose divisors vary; use one of both")
    padding = (top, left, bottom + beyond[0], right + beyond[1])
    try:
        return Pool(kind, h, w, channels, kernel, stride, padding, dilation, kind == "average" and count_padding, batch)
    except ValueError as error:
        raise ModelError(f"{source} cannot be built: {error}") from None


def _is_nonnegative(value: Value) -> bool:
    """Whether zeros around the image never are a maximum."""
    producer = value.tensor.producer
    return producer is not None and producer.epilogue[-1:] != [] and is_nonnegative(producer.epilogue[-1])


def _add_local_norm(state: State, operation: Operation) -> None:
    value = state.materialised(operation.inputs[0], operation.source)
    batch, h, w, channels = value.read_as_image(operation.source)
    layer = LocalNorm(h, w, channels, batch=batch, **operation.attributes)
    draft = state.new_draft(layer, value.tensor, value.shape, channels, operation.source)
    _set_image(state, operation, draft, (batch, h, w, channels))


def _add_concat(state: State, operation: Operation) -> None:
    source, axis = operation.source, operation.attributes["axis"]
    values = [state.materialised(name, source) for name in operation.inputs]
    if not all(value.has_channels_at(axis) for value in values):
        fuse_moves.add_joined(state, operation)
        return
    tensors = _joined(state, operation.inputs)
    image = next((tensor.image for tensor in tensors if tensor.image), None)
    batch, h, w = (1, tensors[0].rows, 1) if image is None else image[:3]
    if image is not None:
        for tensor in tensors:
            claim_image(tensor, (batch, h, w, tensor.channels), source)
    channels = tuple(tensor.channels for tensor in tensors)
    shape = state.trace.shapes[operation.output]
    draft = state.new_draft(Concat(h, w, channels, batch), tensors[0], shape, sum(channels), source)
    draft.others = tuple(tensors[1:])
    draft.output.image = None if image is None else (batch, h, w, sum(channels))
    state.set(operation, draft, values[0])


def _joined(state: State, names: Sequence[str]) -> list[DraftTensor]:
    """What a concatenation takes for its operands: of concatenations that nothing else reads theirs, while few."""
    tensors: list[DraftTensor] = []
    for index, name in enumerate(names, 1):
        tensor = state.values[name].tensor
        producer, own = tensor.producer, [tensor]
        if producer is not None and isinstance(producer.layer, Concat) and state.is_only_reader(name):
            own = [producer.input, *producer.others]
        if len(tensors) + len(own) + len(names) - index > _MOST_OPERANDS:
            own = [tensor]
        elif producer is not None and own != [tensor]:
            state.drafts.remove(producer)
        tensors += own
    return tensors


_MOST_OPERANDS = 16
"""Operands up to which concatenations become one."""


HANDLERS: dict[str, Callable[[State, Operation], None]] = {
    "concat": _add_concat,
    "conv2d": _add_conv2d,
    "local_norm": _add_local_norm,
    "max": _add_reduction,
    "mean": _add_reduction,
    "pad": _add_pad,
    "pool": _add_pool,
}
"""Operations that this module makes layers of."""
