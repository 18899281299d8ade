"""How the tensors of a trace are seen: as rows of channels or as images, which only their readers tell."""

from __future__ import annotations

import math

from tvm_coexec.frontends.trace import Operation, Trace
from tvm_coexec.layers import ACTIVATIONS

from .drafts import DraftTensor, trailing_axes

_ELEMENTWISE = (*ACTIVATIONS, "add", "divide", "maximum", "minimum", "multiply", "prelu", "subtract", "power", "pad")


_ON_LINES = ("conv1d", "group_norm", "instance_norm")
"""Operations that take ``[batch, channels, length]`` as an image of one line."""

_Seen = tuple[int, tuple[int, ...]]
"""The index of an operation in the trace, and the shape of the image that it reads."""


class Readers:
    """What the readers of each value of a trace take it for; found once, from the last operation to the first."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self._images: dict[str, _Seen] = {}
        self._channels: dict[str, set[int]] = {}
        for index, operation in reversed(list(enumerate(trace.operations))):
            for name in dict.fromkeys(operation.inputs):
                if name in trace.shapes:
                    self._note(index, operation, name)

    def tensor(self, name: str) -> DraftTensor:
        """Make the tensor of a value: an image if a reader takes it, or what follows from it, as one."""
        shape, dtype = self.trace.shapes[name], self.trace.dtypes.get(name, "float32")
        if name not in self._images or dtype != "float32":
            return DraftTensor(name, shape, self._last_axis(name), dtype=dtype)
        batch, channels, h, w = self._images[name][1]
        return DraftTensor(name, shape, channels, image=(batch, h, w, channels), channels_first=h * w > 1)

    def _note(self, index: int, operation: Operation, name: str) -> None:
        """Remember what one operation says of a value that it reads; later operations were asked before."""
        shapes, output = self.trace.shapes, operation.output
        shape = shapes[name]
        goes_on = operation.op == "reshape" or operation.op in _ELEMENTWISE
        if len(shape) == 3 and operation.op in _ON_LINES:
            self._images[name] = (index, (*shape[:2], 1, shape[2]))
        elif len(shape) == 4 and (operation.is_on_images or _is_scaled_as_image(self.trace, operation)):
            self._images[name] = (index, shape)
        elif goes_on and output in self._images and math.prod(shapes[output]) == math.prod(shape):
            self._images[name] = min(self._images[output], self._images.get(name, self._images[output]))
        seen = self._channels.setdefault(name, set())
        if operation.op != "reshape":
            seen.update(shape[-1:])
        elif name == operation.inputs[0]:
            seen.update(self._channels.get(output, ()))

    def _last_axis(self, name: str) -> int:
        """Find the channels of rows: those that the readers see, so that a model may begin by flattening its input."""
        shape, seen = self.trace.shapes[name], self._channels.get(name, set())
        last = shape[-1] if shape else 1
        channels = next(iter(seen)) if len(seen) == 1 else last
        return channels if trailing_axes(shape, channels) else last


def _is_scaled_as_image(trace: Trace, operation: Operation) -> bool:
    """Whether a constant of the operation has the shape ``[channels, 1, 1]``, beside a value of four axes."""
    shapes = [trace.constants[name].shape for name in operation.inputs if name in trace.constants]
    is_arithmetic = operation.op in ("add", "divide", "multiply", "subtract")
    vectors = [shape for shape in shapes if shape[-2:] == (1, 1) and math.prod(shape) > 1]
    return is_arithmetic and len(vectors) == 1 and len(trace.shapes[operation.output]) == 4
