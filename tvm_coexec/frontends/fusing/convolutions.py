"""Form layers of convolutions that are none of images as such: transposed ones, and those of lines."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tvm_coexec.errors import ModelError
from tvm_coexec.frontends.trace import Operation
from tvm_coexec.layers import Conv2d, Rearrange

from . import images as fuse_images
from . import moves as fuse_moves
from .state import State
from .values import Value


def add(state: State, operation: Operation) -> bool:
    """Form the layers of an operation, if it is one of this module's."""
    if operation.op == "conv1d":
        add_conv1d(state, operation)
    elif operation.op == "conv2d_transpose":
        add_transposed(state, operation)
    else:
        return False
    return True


def add_conv1d(state: State, operation: Operation) -> None:
    """Add a convolution of an image of one line."""
    name, constant = operation.inputs
    weights = _weights(state, operation, constant)
    value = fuse_moves.with_channels_second(state, state.value(name, operation.source), operation.source)
    if not value.has_channels_at(1):
        raise ModelError(f"{operation.source} reads shape {list(value.shape)}, whose second axis is not the channels")
    batch, channels, length = value.shape
    line = replace(value, shape=(batch, channels, 1, length), batch=batch)
    fuse_images.add_convolution(state, operation, line, weights[:, :, None])


def add_transposed(state: State, operation: Operation) -> None:
    """A convolution that makes all pixels of a window of the result as channels, and a layer that moves them there.

    Along an axis of stride ``s``, the result's line ``s · q + r - padding`` is the sum over ``t`` of line ``q - t`` of
    the input times line ``r + s · t`` of the kernel.
    """
    source, attributes = operation.source, operation.attributes
    weights = _weights(state, operation, operation.inputs[1])
    value = fuse_moves.with_channels_second(state, state.materialised(operation.inputs[0], source), source)
    batch, h, w, channels = value.read_as_image(source)
    stride, padding, groups = attributes["stride"], attributes["padding"], attributes["groups"]
    shape = state.trace.shapes[operation.output]
    taps = [-(-size // step) for size, step in zip(weights.shape[2:], stride, strict=True)]
    # lines of windows that hold the result, the padding before it included
    counts = [-(-(before + size) // step) for before, size, step in zip(padding[:2], shape[2:], stride, strict=True)]
    behind = [max(count - size, 0) for count, size in zip(counts, (h, w), strict=True)]
    spread = _windows(weights, stride, taps, groups)
    around = (taps[0] - 1, taps[1] - 1, behind[0], behind[1])
    layer = Conv2d(h, w, channels, len(spread), tuple(taps), padding=around, groups=groups, batch=batch)
    windows = state.new_draft(layer, value.tensor, (batch, len(spread), layer.out_h, layer.out_w), len(spread), source)
    windows.params["weights"] = spread
    windows.output.image = (batch, layer.out_h, layer.out_w, layer.out_channels)
    image = (batch, shape[2], shape[3], shape[1])
    mixed = Rearrange(layer.output_size, image, _digits(layer, stride, shape[1]), starts=(0, *padding[:2], 0))
    draft = state.new_draft(mixed, windows.output, shape, shape[1], source)
    draft.output.name, draft.output.image = operation.output, image
    state.values[operation.output] = Value(draft.output, shape, batch)


def _windows(weights: np.ndarray, stride: tuple[int, int], taps: list[int], groups: int) -> np.ndarray:
    """Weights ``[in, out / groups, kernel]`` as those of a convolution whose channels are groups, places, outputs."""
    inputs, outputs = weights.shape[:2]
    missing = [count * step - size for count, step, size in zip(taps, stride, weights.shape[2:], strict=True)]
    full = np.pad(weights, ((0, 0), (0, 0), (0, missing[0]), (0, missing[1])))
    parts = full.reshape(groups, inputs // groups, outputs, taps[0], stride[0], taps[1], stride[1])
    # groups, place in the window, outputs of the group, inputs of the group, taps from the last to the first
    ordered = parts.transpose(0, 4, 6, 2, 1, 3, 5)[..., ::-1, ::-1]
    return ordered.reshape(-1, inputs // groups, *taps)


def _digits(windows: Conv2d, stride: tuple[int, int], channels: int) -> tuple[tuple[int, int, int, int], ...]:
    """Where the result's pixels lie among the channels of the windows."""
    each = channels // windows.groups
    lines = ((1, windows.out_h, 1, 1), (1, stride[0], 3, stride[1] * each))
    columns = ((2, windows.out_w, 2, 1), (2, stride[1], 3, each))
    of_channels = ((3, windows.groups, 3, stride[0] * stride[1] * each), (3, each, 3, 1))
    digits = ((0, windows.batch, 0, 1), *lines, *columns, *of_channels)
    return tuple(digit for digit in digits if digit[1] > 1)


def _weights(state: State, operation: Operation, name: str) -> np.ndarray:
    weights = state.trace.constants.get(name)
    if weights is None or operation.inputs[0] in state.trace.constants:
        raise ModelError(
            f"{operation.source} must convolve an activation with constant weights; make its weights a constant"
        )
    return weights
