"""What an ONNX model says of its values: their types, and the tensors that they may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, TypeProto, helper, numpy_helper

from tvm_coexec.errors import ModelError, last_line
from tvm_coexec.frontends.trace import Source

Meaning: TypeAlias = "str | list[Meaning] | None"
"""A tensor's name (empty: it is left out), a sequence of such, or None for an optional value that is not there."""

DTYPES = {
    TensorProto.DataType.Value(name): name.lower().replace("double", "float64")
    for name in ("FLOAT16", "DOUBLE", "BOOL", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64")
} | {TensorProto.FLOAT: "float32"}
"""Types of elements that modules can hold, by ONNX's numbers, under numpy's names."""

DOMAINS = ("", "ai.onnx", "ai.onnx.preview")
"""Whose operators can be read."""

HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
"""Types of elements that are computed as float32."""


class Scope:
    """What names stand for: those of a graph, or of a body that may read what is around it.

    A name stands for a tensor, or for a list of them if it is a sequence.
    """

    def __init__(self, around: Scope | None, source: Source | None, opset: int) -> None:
        self.around, self.source, self.opset = around, source, opset
        self.meanings: dict[str, Meaning] = {"": ""}

    def find(self, name: str) -> Meaning:
        scope: Scope | None = self
        while scope is not None:
            if name in scope.meanings:
                return scope.meanings[name]
            scope = scope.around
        raise ModelError(f"the value {name!r} is read before it is made; sort the model's nodes")


@dataclass(frozen=True)
class ValueType:
    """Type of elements, and shape, of a tensor; every extent is known."""

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"

    @property
    def proto(self) -> TypeProto:
        return helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype)), self.shape)


def type_of(proto: TypeProto) -> ValueType | None:
    """The type of a tensor of which everything is known; None otherwise."""
    tensor = proto.tensor_type
    if tensor.elem_type not in DTYPES or not tensor.HasField("shape"):
        return None
    sizes = [dimension.dim_value for dimension in tensor.shape.dim if dimension.WhichOneof("value") == "dim_value"]
    if len(sizes) < len(tensor.shape.dim):
        return None
    return ValueType(DTYPES[tensor.elem_type], tuple(sizes))


def type_of_array(array: np.ndarray) -> ValueType:
    """Give the type of a constant."""
    return ValueType(str(array.dtype), array.shape)


def to_array(tensor: TensorProto) -> np.ndarray:
    """Read a tensor of the model; numbers of two bytes become float32.

    Raises
    ------
    ModelError
        It holds more or fewer numbers than its shape says, or is of a type that numpy does not know.
    """
    try:
        array = np.asarray(numpy_helper.to_array(tensor))
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"the constant {tensor.name!r} is damaged ({last_line(error)}); export the model again"
        ) from error
    return array.astype(np.float32) if tensor.data_type in HALVES else array


def attributes(node: NodeProto) -> dict[str, Any]:
    """Read the values of a node's attributes by name, strings decoded."""
    values = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    return {name: _decoded(value) for name, value in values.items()}


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(item) for item in value]
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def source_of(node: NodeProto) -> Source:
    """Where a node stands in the user's model."""
    operator = f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
    if node.name:
        return Source(operator, node.name, "node")
    return Source(operator, next(iter(filter(None, node.output)), ""), "output")


def rounds_up(node: NodeProto) -> bool:
    """Whether a pooling's last windows may reach beyond the padding."""
    return node.op_type in ("AveragePool", "LpPool", "MaxPool") and bool(attributes(node).get("ceil_mode", 0))
