"""Recognise attention: two products of activations with a softmax between, their operands views of rows."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

from .trace import Operation, Trace
from .views import View, follow, scaling, view_of


def collapse_attention(trace: Trace) -> Trace:
    """Replace every attention by one operation ``attention`` on the tensors that its operands are columns of."""
    finder = _Finder(trace)
    found = [finder.attention(operation) for operation in trace.operations if operation.op == "softmax"]
    return trace.collapsed(pattern for pattern in found if pattern is not None)


@dataclass(frozen=True)
class _Scores:
    """What a softmax is applied to: ``factor · (left × right) + mask``."""

    left: str
    right: str
    factor: float
    mask: str | None


class _Finder:
    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.producers = {operation.output: operation for operation in trace.operations}
        self.readers: dict[str, list[Operation]] = defaultdict(list)
        for operation in trace.operations:
            for name in set(operation.inputs):
                self.readers[name].append(operation)
        self.outputs = {value for _, value in trace.outputs}

    def attention(self, softmax: Operation) -> Operation | None:
        """The attention around a softmax; None if it is something else."""
        scores = self._scores(softmax)
        product = self._only_reader(self._same(softmax.output))
        if (
            scores is None
            or product is None
            or product.op != "matmul"
            or self._back(product.inputs[0]) != softmax.output
        ):
            return None
        q, k, v = (self._heads(name) for name in (scores.left, scores.right, product.inputs[1]))
        if q is None or k is None or v is None:
            return None
        k = k.transposed((0, 1, 3, 2))
        batch, heads, queries, head_dim = q.shape
        keys = v.shape[2]
        expected = (batch, heads, keys, head_dim)
        columns = [self._columns(view) for view in (q, k, v)]
        if (k.shape, v.shape) != (expected, expected) or None in columns:
            return None
        mask = () if scores.mask is None else (scores.mask,)
        if mask and not self._is_mask(mask[0], batch, keys):
            return None
        result = self._rows(product, q.shape) if v.factor == 1 else None
        if result is None:
            return None
        attributes = {
            "batch": batch,
            "heads": heads,
            "queries": queries,
            "keys": keys,
            "head_dim": head_dim,
            "scale": scores.factor * q.factor * k.factor,
            "offsets": tuple(columns),
        }
        return Operation("attention", (q.root, k.root, v.root, *mask), result.output, product.source, attributes)

    def _scores(self, softmax: Operation) -> _Scores | None:
        rank = len(self.trace.shapes[softmax.output])
        if softmax.attributes["axes"] != (rank - 1,):
            return None
        name, factor, mask = self._back(softmax.inputs[0]), 1.0, None
        while (operation := self.producers.get(name)) is not None:
            scaled = scaling(operation, self.trace)
            if operation.op == "matmul":
                return _Scores(operation.inputs[0], operation.inputs[1], factor, mask)
            if scaled is not None:
                name, factor = scaled[0], factor * scaled[1]
            elif operation.op == "add" and mask is None and factor == 1:
                pair = self._product_and_mask(operation)
                if pair is None:
                    return None
                name, mask = pair
            else:
                return None
            name = self._back(name)
        return None

    def _product_and_mask(self, operation: Operation) -> tuple[str, str] | None:
        size = math.prod(self.trace.shapes[operation.output])
        for name, mask in (operation.inputs, operation.inputs[::-1]):
            if name not in self.trace.constants and math.prod(self.trace.shapes[name]) == size:
                return name, mask
        return None

    def _is_mask(self, name: str, batch: int, keys: int) -> bool:
        """Whether a summand of the scores is one number for each key, of each item or of all."""
        constant = self.trace.constants.get(name)
        shape = self.trace.shapes[name] if constant is None else constant.shape
        wide = (1,) * (4 - len(shape)) + tuple(shape)
        batches = (batch,) if constant is None else (1, batch)
        return len(wide) == 4 and wide[0] in batches and wide[1:] == (1, 1, keys)

    def _heads(self, name: str) -> View | None:
        """An operand as a view ``[batch, heads, …, …]``; a missing batch is one of 1."""
        if name in self.trace.constants:
            return None
        view = view_of(name, self.producers, self.trace)
        if len(view.shape) == 3:
            return view.reshaped((1, *view.shape)) or None
        return view if len(view.shape) == 4 else None

    def _columns(self, view: View) -> int | None:
        """The first column of a view ``[batch, heads, rows, head_dim]`` of rows; None if it is none."""
        root = self.trace.shapes[view.root]
        batch, heads, rows, head_dim = view.shape
        channels = math.prod(root) // (batch * rows)
        fits = batch * rows * channels == math.prod(root) and view.offset + heads * head_dim <= channels
        if not fits or not root or root[-1] != channels:
            return None
        return view.offset if view.has_strides((rows * channels, head_dim, channels, 1)) else None

    def _rows(self, product: Operation, shape: tuple[int, ...]) -> Operation | None:
        """The operation after which the heads of each row stand side by side again."""
        _batch, heads, queries, head_dim = shape
        channels = heads * head_dim
        view: View | None = View("", shape, (queries * channels, head_dim, channels, 1))
        view = view.reshaped(self.trace.shapes[product.output]) if view else None
        operation: Operation | None = product
        while view is not None and operation is not None:
            if view.is_row_major:
                return operation
            operation = self._only_reader(operation.output)
            view = follow(view, operation, self.trace) if operation is not None else None
            if view is not None and view.factor != 1:
                return None
        return None

    def _back(self, name: str) -> str:
        """The value of which this is the same, seen in the same shape, as behind a dropout."""
        while (operation := self.producers.get(name)) is not None and operation.op == "reshape":
            if self.trace.shapes[operation.inputs[0]] != self.trace.shapes[name]:
                break
            name = operation.inputs[0]
        return name

    def _same(self, name: str) -> str:
        """The last of the values that are the same as this one."""
        while (reader := self._only_reader(name)) is not None and reader.op == "reshape":
            if self.trace.shapes[reader.output] != self.trace.shapes[name]:
                break
            name = reader.output
        return name

    def _only_reader(self, name: str) -> Operation | None:
        readers = self.readers[name]
        return readers[0] if len(readers) == 1 and name not in self.outputs else None
