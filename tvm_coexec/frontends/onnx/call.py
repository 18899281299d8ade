"""What converters of ONNX operators of our own are given: a node, its operands, and types of all values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from tvm import relax

from .simplifier import SimpleModel, SimpleNode
from .values import ValueType, attributes


@dataclass(frozen=True)
class Call:
    """A node with its operands, and what a converter may want to know of it."""

    builder: relax.BlockBuilder
    node: SimpleNode
    model: SimpleModel
    operands: list[relax.Expr | None]

    @cached_property
    def attributes(self) -> dict[str, Any]:
        return attributes(self.node.proto)

    def operand(self, index: int) -> relax.Expr | None:
        """Give an operand; None if it is left out."""
        return self.operands[index] if index < len(self.operands) else None

    def array(self, index: int) -> np.ndarray | None:
        """Give a constant operand; None for others."""
        return self.model.constants.get(self.node.proto.input[index]) if self.operand(index) is not None else None

    def type(self, index: int) -> ValueType:
        return self.model.types[self.node.proto.input[index]]

    def constant(self, array: object, dtype: str) -> relax.Expr:
        return relax.const(np.asarray(array, dtype), dtype)

    def loops(self, compute: Callable[..., Any], *operands: relax.Expr) -> relax.Var:
        """Emit tensor expressions, or loops, as one operation."""
        return self.builder.emit(self.builder.call_te(compute, *operands))

    @property
    def result(self) -> ValueType:
        """Type of the first result."""
        return self.model.types[self.node.proto.output[0]]


Converter = Callable[[Call], Any]
"""Gives the node's results, or None where TVM's own converter is right."""
