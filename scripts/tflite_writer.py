"""Write a TFLite file operator by operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

TYPES = {name.lower(): code for name, code in vars(schema.TensorType).items() if isinstance(code, int)}


class Writer:
    """Collects tensors and operators; tensors are known by number.

    Parameters
    ----------
    of
        The writer of the first graph of the same file, if this is to be another.
    """

    def __init__(self, of: Writer | None = None) -> None:
        self.buffers: list[Any] = of.buffers if of else [schema.BufferT()]
        self.tensors: list[Any] = []
        self.operators: list[Any] = []
        self.codes: list[int | str] = of.codes if of else []

    def tensor(
        self, name: str, shape: Sequence[int], dtype: str = "float32", scales: Sequence[float] = (), axis: int = 0
    ) -> int:
        """Add a tensor; of one that is quantised, ``scales`` has a number for all or for each place on ``axis``."""
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type = name, list(shape), TYPES[dtype]
        if scales:
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.scale, tensor.quantization.zeroPoint = list(scales), [0] * len(scales)
            tensor.quantization.quantizedDimension = axis
        self.tensors.append(tensor)
        return len(self.tensors) - 1

    def constant(self, array: np.ndarray, scales: Sequence[float] = (), axis: int = 0) -> int:
        number = self.tensor(f"constant{len(self.tensors)}", array.shape, str(array.dtype), scales, axis)
        self.tensors[number].buffer = len(self.buffers)
        self.buffers.append(schema.BufferT())
        self.buffers[-1].data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        return number

    def integers(self, values: Sequence[int] | Sequence[Sequence[int]] | np.ndarray) -> int:
        return self.constant(np.array(values, np.int32))

    def shape(self, tensor: int) -> tuple[int, ...]:
        return tuple(self.tensors[tensor].shape)

    def add(self, operator: str, inputs: Sequence[int], shape: Sequence[int], options: str = "", **values: Any) -> int:
        """An operator, with options of the type ``<options>Options``; its output has ``shape``.

        What is no operator of TFLite's own is a custom one, which takes ``custom``, the bytes of its options.
        """
        code = getattr(schema.BuiltinOperator, operator, operator)
        if code not in self.codes:
            self.codes.append(code)
        output = self.tensor(f"{operator.lower()}{len(self.tensors)}", shape)
        added = schema.OperatorT()
        added.opcodeIndex, added.inputs, added.outputs = self.codes.index(code), list(inputs), [output]
        if "custom" in values:
            added.customOptions = list(values.pop("custom"))
        if options:
            added.builtinOptionsType = getattr(schema.BuiltinOptions, f"{options}Options")
            added.builtinOptions = getattr(schema, f"{options}OptionsT")()
            for name, value in values.items():
                setattr(added.builtinOptions, name, value)
        self.operators.append(added)
        return output

    def reshaped(self, tensor: int, shape: Sequence[int]) -> int:
        """The tensor itself, if it has the shape already."""
        if self.shape(tensor) == tuple(shape):
            return tensor
        return self.add("RESHAPE", [tensor, self.integers(shape)], shape, "Reshape", newShape=list(shape))

    def transposed(self, tensor: int, order: Sequence[int]) -> int:
        shape = [self.shape(tensor)[axis] for axis in order]
        return self.add("TRANSPOSE", [tensor, self.integers(order)], shape, "Transpose")

    def sliced(self, tensor: int, axis: int, begin: int, size: int) -> int:
        """The tensor itself, if it is ``size`` long."""
        shape = list(self.shape(tensor))
        if shape[axis] == size:
            return tensor
        begins = [begin if position == axis else 0 for position in range(len(shape))]
        shape[axis] = size
        return self.add("SLICE", [tensor, self.integers(begins), self.integers(shape)], shape, "Slice")

    def _graph(self, inputs: Sequence[int], outputs: Sequence[int]) -> Any:
        graph = schema.SubGraphT()
        graph.tensors, graph.operators, graph.inputs, graph.outputs = self.tensors, self.operators, inputs, outputs
        return graph

    def finish(
        self, inputs: Sequence[int], outputs: Sequence[int], others: Sequence[tuple[Writer, list[int], list[int]]] = ()
    ) -> bytes:
        """Give the file; ``others`` are further graphs of it, each with its inputs and outputs."""
        model = schema.ModelT()
        graphs = [self._graph(inputs, outputs), *(other._graph(*ends) for other, *ends in others)]
        model.version, model.subgraphs, model.buffers, model.operatorCodes = 3, graphs, self.buffers, []
        for kind in self.codes:
            entry = schema.OperatorCodeT()
            if isinstance(kind, str):
                entry.customCode = kind
            code = schema.BuiltinOperator.CUSTOM if isinstance(kind, str) else kind
            entry.builtinCode, entry.deprecatedBuiltinCode = code, min(code, 127)
            model.operatorCodes.append(entry)
        builder = flatbuffers.Builder(1024)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())
