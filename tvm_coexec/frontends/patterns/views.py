"""Views are values that show the elements of another one: chains of reshapes, transposes and slices copy nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from tvm_coexec.frontends.trace import Operation, Trace

_SCALINGS = ("multiply", "divide")


def row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of a tensor whose elements lie one behind the other."""
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


@dataclass(frozen=True)
class View:
    """Element ``i`` is ``factor`` times the element of ``root`` at ``offset`` plus ``i`` times ``strides``."""

    root: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0
    factor: float = 1.0

    def has_strides(self, strides: tuple[int, ...]) -> bool:
        """Whether the strides are these, wherever there is more than one element."""
        found = zip(self.shape, self.strides, strides, strict=True)
        return all(size == 1 or own == other for size, own, other in found)

    @property
    def is_row_major(self) -> bool:
        return self.has_strides(row_major(self.shape))

    def transposed(self, axes: tuple[int, ...]) -> View:
        return replace(self, shape=tuple(self.shape[a] for a in axes), strides=tuple(self.strides[a] for a in axes))

    def sliced(self, axis: int, begin: int, count: int) -> View:
        shape = (*self.shape[:axis], count, *self.shape[axis + 1 :])
        return replace(self, shape=shape, offset=self.offset + begin * self.strides[axis])

    def reshaped(self, shape: tuple[int, ...]) -> View | None:
        """The same elements in the same order; None if their places follow no strides then."""
        old = [(size, stride) for size, stride in zip(self.shape, self.strides, strict=True) if size > 1]
        strides: list[int] = []
        for size in reversed(shape):
            if size == 1:
                strides.append(0)
                continue
            if not old:
                return None
            extent, stride = old.pop()
            while extent % size and old and old[-1][1] == extent * stride:
                extent *= old.pop()[0]
            if extent % size:
                return None
            strides.append(stride)
            if extent > size:
                old.append((extent // size, stride * size))
        return replace(self, shape=shape, strides=tuple(reversed(strides)))


def follow(view: View, operation: Operation, trace: Trace) -> View | None:
    """What an operation makes of a view; None if that is no view."""
    shape = trace.shapes[operation.output]
    if operation.op == "reshape":
        return view.reshaped(shape)
    if operation.op == "transpose":
        return view.transposed(operation.attributes["axes"])
    if operation.op == "slice":
        names = ("axis", "begin", "count")
        return view.sliced(*(operation.attributes[name] for name in names)).reshaped(shape)
    if operation.op in _SCALINGS:
        return _scaled(view, operation, trace)
    return None


def _scaled(view: View, operation: Operation, trace: Trace) -> View | None:
    factor = scaling(operation, trace)
    if factor is None or trace.shapes[operation.output] != view.shape:
        return None
    return replace(view, factor=view.factor * factor[1])


def scaling(operation: Operation, trace: Trace) -> tuple[str, float] | None:
    """Find the value that an operation multiplies by a number, and the number."""
    first, second = operation.inputs[0], operation.inputs[-1]
    number = trace.scalar(second)
    if operation.op == "divide" and number and first not in trace.constants:
        return first, 1 / number
    if operation.op == "multiply" and number is None:
        first, number = second, trace.scalar(first)
    if operation.op == "multiply" and number is not None and first not in trace.constants:
        return first, number
    return None


def view_of(name: str, producers: Mapping[str, Operation], trace: Trace) -> View:
    """The value as a view of the farthest value whose elements it shows."""
    chain: list[Operation] = []
    root = name
    while root in producers:
        operation = producers[root]
        if operation.op in _SCALINGS:
            scaled = scaling(operation, trace)
            if scaled is None:
                break
            chain.append(operation)
            root = scaled[0]
        elif operation.op in ("reshape", "transpose", "slice"):
            chain.append(operation)
            root = operation.inputs[0]
        else:
            break
    view = View(root, trace.shapes[root], row_major(trace.shapes[root]))
    for operation in reversed(chain):
        seen = follow(view, operation, trace)
        if seen is None:
            shape = trace.shapes[operation.output]
            seen = View(operation.output, shape, row_major(shape))
        view = seen
    return view
