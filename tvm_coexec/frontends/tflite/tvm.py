"""TFLite's rarer operators, written by TVM's own front end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tflite
from tvm import relax
from tvm.relax.frontend.tflite.tflite_frontend import ExprTable, OperatorConverter, TensorWrapper

from tvm_coexec.errors import ModelError

from .importer import Conversion, Importer


def by_tvm(step: Conversion) -> relax.Expr | list[relax.Expr]:
    """What TVM makes of an operator."""
    result = _TensorsOfImporter(step.importer).convert_map[step.operator.code](op=step.operator.native)
    if len(step.operator.outputs) == 1:
        return result
    whole = step.importer.builder.emit(result)
    return [relax.TupleGetItem(whole, position) for position in range(len(step.operator.outputs))]


class _TensorsOfImporter(OperatorConverter):
    """TVM's converters, whose operands are those that the importer knows.

    TVM 0.27 knows tensors by their names, which a file may use twice; makes constants of those that depend on no
    input only where it has thought of it; and refuses most operators on quantised tensors, which are numbers here.
    """

    def __init__(self, importer: Importer) -> None:
        super().__init__(importer.file.model, importer.file.graph, ExprTable(), importer.builder)
        self.importer = importer

    def get_tensors(self, tensors_idx_list: Sequence[int]) -> list[TensorWrapper]:
        graph, model = self.importer.file.graph, self.importer.file.model
        wrapped = []
        for index in map(int, tensors_idx_list):
            native = _Computed(graph.Tensors(index)) if index >= 0 else None
            wrapped.append(TensorWrapper(index, native, None if native is None else model.Buffers(native.Buffer())))
        return wrapped

    def has_expr(self, input_tensor_idx: int) -> bool:
        return self.importer.constant(input_tensor_idx) is None

    def get_expr(self, input_tensor_idx: int) -> relax.Expr:
        return self.importer.value(input_tensor_idx)

    def get_tensor_expr(self, tensor: TensorWrapper, is_sparse: bool = False) -> relax.Expr:
        return self.importer.value(tensor.tensor_idx)

    def get_tensor_value(self, tensor_wrapper: TensorWrapper, is_sparse: bool = False) -> np.ndarray:
        array = self.importer.constant(tensor_wrapper.tensor_idx)
        if array is None:
            name = self.importer.file.tensors[tensor_wrapper.tensor_idx].name
            raise ModelError(f"tensor {name!r} depends on the model's inputs, but has to be a constant; make it one")
        return array

    def get_tensor_shape(self, tensor_wrapper: TensorWrapper) -> np.ndarray:
        index = tensor_wrapper.tensor_idx
        if any(index in known for known in (self.importer.in_file_order, self.importer.channels_first)):
            return np.array(self.importer.shape(index), "int32")
        return np.array(self.importer.file.tensors[index].shape, "int32")


class _Computed:
    """A tensor of the file as one of the numbers that it stands for."""

    def __init__(self, native: Any) -> None:
        self._native = native

    def __getattr__(self, name: str) -> Any:
        return getattr(self._native, name)

    def Quantization(self) -> None:  # noqa: N802 - the reading library's own name
        return None

    def Type(self) -> int:  # noqa: N802 - the reading library's own name
        quantisation, kind = self._native.Quantization(), self._native.Type()
        is_quantised = quantisation is not None and quantisation.ScaleLength()
        return int(tflite.TensorType.FLOAT32 if is_quantised or kind == tflite.TensorType.FLOAT16 else kind)
