"""Recognise activations and layer normalisation that a model spells out in elementary operations."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tvm_coexec.frontends.trace import Operation, Trace

_ARITHMETIC = ("add", "subtract", "multiply", "divide", "power")
_SEARCH_DEPTH = 6
_TOLERANCE = 1e-6
"""Operations of the longest activation that models spell out, and how far its constants may be rounded."""

Polynomial = dict[tuple[int, int], float]
"""Coefficients by the powers of ``x`` and of a function of ``x``."""


@dataclass(frozen=True)
class _Form:
    """An activation written as a polynomial of ``x`` and ``function(argument(x))``."""

    activation: str
    function: str
    argument: Polynomial
    result: Polynomial
    numbers: tuple[float, ...] = ()

    def is_around(self, operation: Operation) -> bool:
        """Whether the operation is the function, with its numbers."""
        found = operation.attributes.get("numbers", ())
        return operation.op == self.function and np.allclose(found, self.numbers, rtol=_TOLERANCE)


_HALF_OF_X_TIMES_1_PLUS_F: Polynomial = {(1, 0): 0.5, (1, 1): 0.5}
_X_TIMES_F: Polynomial = {(1, 1): 1.0}
_TANH_ARGUMENT: Polynomial = {(1, 0): math.sqrt(2 / math.pi), (3, 0): 0.044715 * math.sqrt(2 / math.pi)}
_FORMS = (
    _Form("gelu", "erf", {(1, 0): math.sqrt(0.5)}, _HALF_OF_X_TIMES_1_PLUS_F),
    _Form("gelu_tanh", "tanh", _TANH_ARGUMENT, _HALF_OF_X_TIMES_1_PLUS_F),
    _Form("gelu_tanh", "sigmoid", {powers: 2 * factor for powers, factor in _TANH_ARGUMENT.items()}, _X_TIMES_F),
    _Form("silu", "sigmoid", {(1, 0): 1.0}, _X_TIMES_F),
    _Form("hard_swish", "relu6", {(1, 0): 1.0, (0, 0): 3.0}, {(1, 1): 1 / 6}),
    _Form("hard_swish", "clip", {(1, 0): 1 / 6, (0, 0): 0.5}, _X_TIMES_F, (0.0, 1.0)),
    _Form("hard_swish", "hard_sigmoid", {(1, 0): 1.0}, _X_TIMES_F, (1 / 6, 0.5)),
)


def collapse_patterns(trace: Trace) -> Trace:
    """Replace every spelled-out GELU, SiLU, hard swish and layer normalisation by one operation.

    What is left of a pattern is its parts; it stays in the trace only where something else reads it.
    """
    producers = {operation.output: operation for operation in trace.operations}
    readers: dict[str, list[Operation]] = defaultdict(list)
    for operation in trace.operations:
        for name in set(operation.inputs):
            readers[name].append(operation)
    finder = _Finder(trace, producers, readers)
    found = [finder.activation(operation) or finder.layer_norm(operation) for operation in trace.operations]
    return trace.collapsed(pattern for pattern in found if pattern is not None)


@dataclass(frozen=True)
class _Finder:
    trace: Trace
    producers: dict[str, Operation]
    readers: dict[str, list[Operation]]

    def activation(self, function: Operation) -> Operation | None:
        """The activation that is built around ``function``, such as an erf or tanh."""
        for form in (form for form in _FORMS if form.is_around(function)):
            for x in self._ancestors(function.inputs[0]):
                if not _same(self._polynomial(function.inputs[0], {x: (1, 0)}), form.argument):
                    continue
                for result in self._descendants(function.output):
                    if _same(self._polynomial(result.output, {x: (1, 0), function.output: (0, 1)}), form.result):
                        return Operation(form.activation, (x,), result.output, result.source)
        return None

    def layer_norm(self, quotient: Operation) -> Operation | None:
        """The normalisation, without scale and shift, that ``quotient`` ends."""
        if quotient.op != "divide":
            return None
        x, axis = self._centred(quotient.inputs[0])
        root = self._made_by("sqrt", quotient.inputs[1])
        shifted = self._made_by("add", root.inputs[0]) if root else None
        if x is None or shifted is None:
            return None
        for variance, epsilon in (shifted.inputs, shifted.inputs[::-1]):
            number = self.trace.scalar(epsilon)
            if number is not None and self._variance(variance) == (x, axis):
                attributes = {"axes": (axis,), "epsilon": number}
                return Operation("layer_norm", (x,), quotient.output, quotient.source, attributes)
        return None

    def _variance(self, name: str) -> tuple[str | None, int]:
        """``x`` and the axis if the value is the mean of the squares of centred ``x``."""
        square, axis = self._mean_of(name)
        operation = self.producers.get(square) if square else None
        if operation is None:
            return None, 0
        first, second = operation.inputs[0], operation.inputs[-1]
        is_square = operation.op == "power" and self.trace.scalar(second) == 2
        is_product = operation.op == "multiply" and self._centred(first) == self._centred(second)
        found = self._centred(first)
        return found if (is_square or is_product) and found[1] == axis else (None, 0)

    def _centred(self, name: str) -> tuple[str | None, int]:
        """``x`` and the axis if the value is ``x`` less its mean over one axis."""
        operation = self._made_by("subtract", name)
        if operation is not None:
            mean_of, axis = self._mean_of(operation.inputs[1])
            if mean_of == operation.inputs[0]:
                return mean_of, axis
        return None, 0

    def _mean_of(self, name: str) -> tuple[str | None, int]:
        operation = self._made_by("mean", name)
        if operation is None or not operation.attributes["keep_axes"] or len(operation.attributes["axes"]) != 1:
            return None, 0
        return operation.inputs[0], operation.attributes["axes"][0]

    def _made_by(self, op: str, name: str) -> Operation | None:
        operation = self.producers.get(name)
        return operation if operation is not None and operation.op == op else None

    def _ancestors(self, name: str, depth: int = _SEARCH_DEPTH) -> Iterator[str]:
        """The value, and those that it is computed from by arithmetic, nearest first."""
        if name in self.trace.constants:
            return
        level = [name]
        for _ in range(depth):
            yield from level
            operations = [self.producers[value] for value in level if value in self.producers]
            level = [
                value
                for operation in operations
                if operation.op in _ARITHMETIC
                for value in dict.fromkeys(operation.inputs)
                if value not in self.trace.constants
            ]

    def _descendants(self, name: str, depth: int = _SEARCH_DEPTH) -> Iterator[Operation]:
        """What is computed from the value by arithmetic, nearest first."""
        level = [name]
        for _ in range(depth):
            operations = [reader for value in level for reader in self.readers[value] if reader.op in _ARITHMETIC]
            yield from operations
            level = [operation.output for operation in operations]

    def _polynomial(
        self, name: str, symbols: dict[str, tuple[int, int]], depth: int = _SEARCH_DEPTH
    ) -> Polynomial | None:
        """The value as a polynomial of ``symbols``; None if it depends on anything else."""
        if name in symbols:
            return {symbols[name]: 1.0}
        number = self.trace.scalar(name)
        if number is not None:
            return {(0, 0): number}
        operation = self.producers.get(name)
        if operation is None or operation.op not in _ARITHMETIC or depth == 0:
            return None
        left, right = (self._polynomial(operand, symbols, depth - 1) for operand in operation.inputs)
        return None if left is None or right is None else _combine(operation.op, left, right)


def _combine(op: str, left: Polynomial, right: Polynomial) -> Polynomial | None:
    if op in ("add", "subtract"):
        sign = 1 if op == "add" else -1
        return {powers: left.get(powers, 0) + sign * right.get(powers, 0) for powers in left | right}
    if op == "multiply":
        return _product(left, right)
    number = right.get((0, 0)) if right.keys() == {(0, 0)} else None
    if op == "divide" and number:
        return {powers: factor / number for powers, factor in left.items()}
    if op == "power" and number in (2, 3):
        square = _product(left, left)
        return square if number == 2 else _product(square, left)
    return None


def _product(left: Polynomial, right: Polynomial) -> Polynomial:
    result: Polynomial = {}
    for (a, b), factor in left.items():
        for (c, d), other in right.items():
            result[a + c, b + d] = result.get((a + c, b + d), 0) + factor * other
    return result


def _same(found: Polynomial | None, wanted: Polynomial) -> bool:
    return (
        found is not None
        and found.keys() == wanted.keys()
        and all(math.isclose(found[powers], wanted[powers], rel_tol=_TOLERANCE) for powers in wanted)
    )
