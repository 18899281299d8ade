"""Recognise attention: two products of activations with a softmax between, their operands views of rows."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tvm_coexec.frontends.trace import Operation, Trace

from .heads import HeadFinder, for_heads
from .views import View, scaling


def collapse_attention(trace: Trace) -> Trace:
    """Replace every attention by one operation ``attention`` on the tensors that its operands are columns of."""
    finder = _Finder(trace)
    return finder.collapsed("softmax", finder.attention)


@dataclass(frozen=True)
class _Scores:
    """What a softmax is applied to: ``factor · (left × right)`` plus masks, each added to scores of some shape."""

    left: str
    right: str
    factor: float
    masks: tuple[tuple[str, tuple[int, ...]], ...]
    empty_is_zero: bool


@dataclass(frozen=True)
class _Columns:
    """Where the heads of an operand are in rows: the first column, the columns from head to head, and the order."""

    offset: int
    step: int
    channels_first: bool


class _Finder(HeadFinder):
    def attention(self, softmax: Operation) -> Operation | None:
        """Find the attention around a softmax; None if it is something else."""
        scores = self._scores(softmax)
        product, is_turned = self._product(softmax)
        if scores is None or product is None:
            return None
        q, k, v = (self.heads(name) for name in (scores.left, scores.right, product.inputs[0 if is_turned else 1]))
        if q is None or k is None or v is None or v.factor != 1:
            return None
        v = v.transposed((0, 1, 3, 2)) if is_turned else v
        batch, heads, _, head_dim = q.shape
        k, v = (for_heads(view, batch, heads) for view in (k.transposed((0, 1, 3, 2)), v))
        if k.shape != (batch, heads, v.shape[2], head_dim) or v.shape[:2] != (batch, heads):
            return None
        as_it_is = self._layer(scores, product, (q, k, v), is_turned)
        if as_it_is is not None or heads == 1:
            return as_it_is
        # heads that do not stand in rows side by side may be rows of their own
        merged = [view.reshaped((batch * heads, 1, *view.shape[2:])) for view in (q, k, v)]
        operands = tuple(view for view in merged if view is not None)
        return self._layer(scores, product, operands, is_turned) if len(operands) == 3 else None

    def _product(self, softmax: Operation) -> tuple[Operation | None, bool]:
        """What multiplies the softmax by values, and whether it is the second factor, its rows columns."""
        reader = self.only_reader(self.same(softmax.output))
        axes = () if reader is None else reader.attributes.get("axes", ())
        is_turned = reader is not None and reader.op == "transpose" and axes[:-2] == tuple(range(len(axes) - 2))
        name = softmax.output if reader is None or not is_turned else reader.output
        product = self.only_reader(self.same(name)) if is_turned else reader
        if product is None or product.op != "matmul" or self.back(product.inputs[int(is_turned)]) != name:
            return None, False
        return product, is_turned

    def _layer(
        self, scores: _Scores, product: Operation, operands: tuple[View, ...], is_turned: bool
    ) -> Operation | None:
        q, k, v = operands
        batch, heads, queries, head_dim = q.shape
        keys, value_dim = v.shape[2:]
        columns = [found for view in operands if (found := self._columns(view)) is not None]
        result = self.rows(product, (batch, heads, queries, value_dim), is_turned)
        mask = self._mask(scores, batch, heads, f"{product.output}/mask") if scores.masks else ("", (0, 0, 0))
        if len(columns) != 3 or result is None or mask is None:
            return None
        operation, channels_first = result
        attributes = {
            "batch": batch,
            "heads": heads,
            "queries": queries,
            "keys": keys,
            "head_dim": head_dim,
            "value_dim": value_dim,
            "scale": scores.factor * q.factor * k.factor,
            "offsets": tuple(column.offset for column in columns),
            "head_steps": tuple(column.step for column in columns),
            "mask_sizes": mask[1],
            "empty_is_zero": scores.empty_is_zero,
            "channels_first": (*(column.channels_first for column in columns), channels_first),
        }
        inputs = (q.root, k.root, v.root, *([mask[0]] if scores.masks else []))
        return Operation("attention", inputs, operation.output, product.source, attributes)

    def _scores(self, softmax: Operation) -> _Scores | None:
        rank = len(self.trace.shapes[softmax.output])
        if softmax.attributes["axes"] != (rank - 1,):
            return None
        name, factor = self.back(softmax.inputs[0]), 1.0
        masks: list[tuple[str, tuple[int, ...]]] = []
        empty_is_zero = softmax.attributes.get("empty_is_zero", False)
        while (operation := self.producers.get(name)) is not None:
            scaled = scaling(operation, self.trace)
            if operation.op == "matmul":
                return _Scores(operation.inputs[0], operation.inputs[1], factor, tuple(masks), empty_is_zero)
            if scaled is not None:
                name, factor = scaled[0], factor * scaled[1]
            elif operation.op == "add" and factor == 1:
                pair = self._product_and_mask(operation)
                if pair is None:
                    return None
                name = pair[0]
                masks.append((pair[1], self.trace.shapes[operation.output]))
            else:
                return None
            name = self.back(name)
        return None

    def _product_and_mask(self, operation: Operation) -> tuple[str, str] | None:
        """The summand that scales a product of activations, which is as large as the sum, and the other one."""
        size = math.prod(self.trace.shapes[operation.output])
        for name, mask in (operation.inputs, operation.inputs[::-1]):
            is_activation = name not in self.trace.constants and math.prod(self.trace.shapes[name]) == size
            if is_activation and self._is_product(name):
                return name, mask
        return None

    def _is_product(self, name: str) -> bool:
        """Whether a value is a product of activations, but for factors and summands."""
        while (operation := self.producers.get(self.back(name))) is not None:
            scaled = scaling(operation, self.trace)
            if operation.op == "add" and (constants := set(operation.inputs) & self.trace.constants.keys()):
                name = next(value for value in operation.inputs if value not in constants)
            elif scaled is not None:
                name = scaled[0]
            else:
                return operation.op == "matmul" and not set(operation.inputs) & self.trace.constants.keys()
        return False

    def _mask(self, scores: _Scores, batch: int, heads: int, name: str) -> tuple[str, tuple[int, int, int]] | None:
        """The one mask that all summands of the scores are, and its sizes; several constants become one, ``name``."""
        sizes = [self._mask_sizes(mask, shape, batch, heads) for mask, shape in scores.masks]
        known = [of for of in sizes if of is not None]
        if len(known) != len(sizes):
            return None
        if len(known) == 1:
            return scores.masks[0][0], known[0]
        constants = [self.trace.constants.get(mask) for mask, _ in scores.masks]
        arrays = [array.reshape(*of, -1) for array, of in zip(constants, known, strict=True) if array is not None]
        if len(arrays) != len(known):
            return None
        total = sum(arrays[1:], start=arrays[0])
        self.trace.constants[name] = total
        items, of_heads, queries = total.shape[:3]
        return name, (items, of_heads, queries)

    def _mask_sizes(self, name: str, scores: tuple[int, ...], batch: int, heads: int) -> tuple[int, int, int] | None:
        """Count items, heads and queries for which a summand of scores has a row of keys; None if it has none."""
        constant = self.trace.constants.get(name)
        shape = self.trace.shapes[name] if constant is None else constant.shape
        if len(shape) > len(scores) or not shape or shape[-1] != scores[-1]:
            return None
        *leading, queries, _keys = (1,) * (len(scores) - len(shape)) + tuple(shape)
        full = list(scores[:-2])
        if leading == full:
            return (batch, heads, queries)
        for axis in range(len(full) + 1):
            parts = ((leading[:axis], full[:axis]), (leading[axis:], full[axis:]))
            is_split = (math.prod(full[:axis]), math.prod(full[axis:])) == (batch, heads)
            if is_split and all(part == whole or math.prod(part) == 1 for part, whole in parts):
                return (math.prod(leading[:axis]), math.prod(leading[axis:]), queries)
        return (1, 1, queries) if math.prod(leading) == 1 else None

    def _columns(self, view: View) -> _Columns | None:
        """Where a view ``[batch, heads, rows, columns]`` is in a tensor of rows or an image; None if it is nowhere."""
        root = self.trace.shapes[view.root]
        batch, heads, rows, dim = view.shape
        channels = math.prod(root) // (batch * rows)
        if batch * rows * channels != math.prod(root) or len(root) < 2:
            return None
        for channels_first in (False, True):
            unit = rows if channels_first else 1
            offset, rest = divmod(view.offset, unit)
            step, beyond = divmod(view.strides[1] if heads > 1 else dim * unit, unit)
            strides = (rows * channels, step * unit, 1 if channels_first else channels, unit)
            is_there = root[-1] == channels if not channels_first else root[:2] == (batch, channels)
            inside = offset + (heads - 1) * step + dim <= channels
            if is_there and inside and not rest and not beyond and view.has_strides(strides):
                return _Columns(offset, step, channels_first)
        return None
