"""How the model's inputs are seen: as rows of channels or as images, which only their readers tell."""

from __future__ import annotations

import math
from collections.abc import Iterator

from tvm_coexec.frontends.trace import Operation, Trace
from tvm_coexec.layers import ACTIVATIONS

from .drafts import DraftTensor, trailing_axes

_ELEMENTWISE = (*ACTIVATIONS, "add", "divide", "maximum", "minimum", "multiply", "prelu", "subtract", "power", "pad")


_ON_LINES = ("conv1d", "group_norm", "instance_norm")
"""Operations that take ``[batch, channels, length]`` as an image of one line."""


def input_tensor(trace: Trace, name: str) -> DraftTensor:
    """The tensor of an input: an image if a reader takes it as one."""
    shape, dtype = trace.shapes[name], trace.dtypes.get(name, "float32")
    seen = next(_image_shapes(trace, name), None) if dtype == "float32" else None
    if seen is None:
        return DraftTensor(name, shape, _channels(trace, name), dtype=dtype)
    batch, channels, h, w = seen
    return DraftTensor(name, shape, channels, image=(batch, h, w, channels), channels_first=h * w > 1)


def _image_shapes(trace: Trace, name: str) -> Iterator[tuple[int, ...]]:
    """The shapes ``[batch, channels, height, width]`` in which the value, or what follows from it, is read."""
    size = math.prod(trace.shapes[name])
    followed = {name}
    for operation in trace.operations:
        read = [value for value in operation.inputs if value in followed]
        if not read:
            continue
        is_image = operation.is_on_images or _is_scaled_as_image(trace, operation)
        seen = trace.shapes[read[0]]
        if operation.op in _ON_LINES and len(seen) == 3 and math.prod(seen) == size:
            yield (*seen[:2], 1, seen[2])
        if is_image and len(seen) == 4 and math.prod(seen) == size:
            yield seen
        if operation.op == "reshape" or operation.op in _ELEMENTWISE:
            followed.add(operation.output)


def _is_scaled_as_image(trace: Trace, operation: Operation) -> bool:
    """Whether a constant of the operation has the shape ``[channels, 1, 1]``, beside a value of four axes."""
    shapes = [trace.constants[name].shape for name in operation.inputs if name in trace.constants]
    is_arithmetic = operation.op in ("add", "divide", "multiply", "subtract")
    vectors = [shape for shape in shapes if shape[-2:] == (1, 1) and math.prod(shape) > 1]
    return is_arithmetic and len(vectors) == 1 and len(trace.shapes[operation.output]) == 4


def _channels(trace: Trace, name: str) -> int:
    """Channels of rows: those that the readers see, so that a model may begin by flattening its input."""
    shape = trace.shapes[name]
    views = {name}
    seen = set()
    for operation in trace.operations:
        if operation.op == "reshape" and operation.inputs[0] in views:
            views.add(operation.output)
        elif operation.op != "reshape":
            seen |= {trace.shapes[read][-1] for read in operation.inputs if read in views and trace.shapes[read]}
    last = shape[-1] if shape else 1
    channels = seen.pop() if len(seen) == 1 else last
    return channels if trailing_axes(shape, channels) else last
