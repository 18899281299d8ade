"""Tensors seen as matrices of heads: what a product of two activations reads and makes, through views."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace

from tvm_coexec.frontends.trace import Operation, Trace

from .views import View, follow, scaling, view_of


class HeadFinder:
    """Looks through the views before and after the products of a trace."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.producers = {operation.output: operation for operation in trace.operations}
        self.readers: dict[str, list[Operation]] = defaultdict(list)
        for operation in trace.operations:
            for name in set(operation.inputs):
                self.readers[name].append(operation)
        self.outputs = {value for _, value in trace.outputs}

    def collapsed(self, kind: str, find: Callable[[Operation], Operation | None]) -> Trace:
        """The trace with what is found around its operations of a kind; later ones see no farther than its results."""
        patterns = []
        for operation in self.trace.operations:
            pattern = find(operation) if operation.op == kind else None
            if pattern is not None:
                patterns.append(pattern)
                self.producers.pop(pattern.output, None)
        return self.trace.collapsed(patterns)

    def heads(self, name: str) -> View | None:
        """An operand as a view ``[batch, heads, …, …]``; of three axes batch and heads may be one."""
        if name in self.trace.constants:
            return None
        if len(self.trace.shapes[name]) == 3 and (apart := self._apart(name)) is not None:
            return apart
        shape = self.trace.shapes[name]
        if not 2 <= len(shape) <= 4:
            return None
        return view_of(name, self.producers, self.trace).reshaped((1,) * (4 - len(shape)) + shape)

    def _apart(self, name: str) -> View | None:
        """What a value of three axes is a view of, if batch and heads became its first one."""
        factor, is_turned = 1.0, False
        while (operation := self.producers.get(name)) is not None and len(self.trace.shapes[name]) == 3:
            scaled = scaling(operation, self.trace)
            if scaled is not None:
                factor *= scaled[1]
            elif operation.op == "transpose" and operation.attributes["axes"] == (0, 2, 1):
                is_turned = not is_turned
            elif not self._keeps_rows(operation):
                return None
            name = operation.inputs[0] if scaled is None else scaled[0]
        if len(self.trace.shapes[name]) != 4:
            return None
        view = view_of(name, self.producers, self.trace)
        view = view.transposed((0, 1, 3, 2)) if is_turned else view
        return replace(view, factor=view.factor * factor)

    def rows(
        self, product: Operation, shape: tuple[int, ...], is_turned: bool = False
    ) -> tuple[Operation, bool] | None:
        """The operation after which the heads of each row stand side by side again, or are the channels of images.

        ``is_turned`` if the product makes the rows of each head as columns.
        """
        batch, heads, queries, dim = shape
        channels = heads * dim
        heads_apart = View("", shape, (queries * channels, dim, channels, 1))
        heads_apart = heads_apart.transposed((0, 1, 3, 2)) if is_turned else heads_apart
        operation: Operation | None = product
        while operation and (view := heads_apart.reshaped(self.trace.shapes[operation.output])) is None:
            reader = self.only_reader(operation.output)
            operation = reader if reader is not None and self._keeps_rows(reader) else None
        while view is not None and operation is not None:
            if view.is_row_major:
                return operation, False
            if view.shape[:2] == (batch, channels) and math.prod(view.shape[2:]) == queries:
                pixels = view.reshaped((batch, channels, queries))
                if pixels is not None and pixels.has_strides((queries * channels, 1, channels)):
                    return operation, True
            operation = self.only_reader(operation.output)
            view = follow(view, operation, self.trace) if operation is not None else None
            if view is not None and view.factor != 1:
                return None
        return None

    def back(self, name: str) -> str:
        """The value of which this is the same, as behind a dropout, batch and heads one axis or two."""
        while (operation := self.producers.get(name)) is not None and self._keeps_rows(operation):
            name = operation.inputs[0]
        return name

    def same(self, name: str) -> str:
        """The last of the values that are the same as this one."""
        while (reader := self.only_reader(name)) is not None and self._keeps_rows(reader):
            name = reader.output
        return name

    def _keeps_rows(self, operation: Operation) -> bool:
        """Whether an operation changes nothing but how many axes come before the last two."""
        if operation.op != "reshape":
            return False
        before, after = (self.trace.shapes[name] for name in (operation.inputs[0], operation.output))
        return len(before) >= 2 and before[-2:] == after[-2:]

    def only_reader(self, name: str) -> Operation | None:
        readers = self.readers[name]
        return readers[0] if len(readers) == 1 and name not in self.outputs else None


def for_heads(view: View, batch: int, heads: int) -> View:
    """The view with so many items and heads, where one is for all."""
    sizes, strides = list(view.shape), list(view.strides)
    for axis, size in enumerate((batch, heads)):
        if sizes[axis] == 1:
            sizes[axis], strides[axis] = size, 0
    return replace(view, shape=tuple(sizes), strides=tuple(strides))
