"""ONNX models in ONNX Runtime or, where it is not installed or refuses them, in ONNX's own reference evaluator."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from ..errors import ModelError, first_line
from .evaluator import Evaluator
from .recurrent_layouts import with_steps_first

_LARGEST_PROTO = 2**31 - 2**20
"""Bytes beyond which a model needs files beside it for its weights."""

_VIEWS = ("Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
"""Operators whose result holds the numbers of their first operand."""

_SIGMOID_ROUNDING = 2.0**-22
"""How far ONNX Runtime's sigmoid is off: at -14.33 release 1.32 gives 5.7e-7 or 6.3e-7, where 6.0e-7 is right."""

_INTEGER_PRODUCTS = frozenset(
    (
        "ConvInteger",
        "DynamicQuantizeLSTM",
        "DynamicQuantizeMatMul",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "QAttention",
        "QGemm",
        "QLinearConv",
        "QLinearMatMul",
    )
)
"""Operators that ONNX Runtime computes by instructions which may limit sums of products to 16 bits."""


def onnx_evaluator(model: onnx.ModelProto | str | os.PathLike[str]) -> OnnxRuntimeEvaluator | ReferenceEvaluator:
    """ONNX Runtime if it is installed and takes the model, else the reference evaluator."""
    if isinstance(model, onnx.ModelProto):
        proto = onnx.ModelProto()
        proto.CopyFrom(model)
    else:
        proto = onnx.load(model)
    try:
        return OnnxRuntimeEvaluator(proto)
    except (ImportError, ModelError) as refusal:
        try:
            return ReferenceEvaluator(proto)
        except Exception as error:  # it raises whatever it stumbles over
            reason = f"{first_line(refusal)}; {first_line(error)}"
            raise ModelError(f"neither ONNX Runtime nor ONNX's reference evaluator takes the model: {reason}") from None


class _OnnxEvaluator(Evaluator):
    def __init__(self, proto: onnx.ModelProto) -> None:
        self._proto = proto
        constants = {tensor.name for tensor in proto.graph.initializer}
        self.inputs = [value.name for value in proto.graph.input if value.name not in constants]
        self.outputs = [output.name for output in proto.graph.output]
        self.values = [name for node in proto.graph.node for name in node.output if name]
        self.steps = _steps(proto.graph)
        found = {value.name: _choices(proto.graph, value) for value in proto.graph.input if value.name in self.inputs}
        self.choices = {name: numbers for name, numbers in found.items() if numbers}


class OnnxRuntimeEvaluator(_OnnxEvaluator):
    """ONNX Runtime, which rewrites nothing before it runs the model, but for weights of 8 bits.

    On x86-64 without VNNI, sums of a uint8 times an int8 are limited to 16 bits unless it makes such weights uint8.
    """

    def __init__(self, proto: onnx.ModelProto) -> None:
        import onnxruntime

        super().__init__(with_steps_first(proto))
        self.engine = f"ONNX Runtime {onnxruntime.__version__}"
        self.rounding = dict.fromkeys(_read_from(proto.graph, "Sigmoid"), _SIGMOID_ROUNDING)
        self._sessions: dict[tuple[str, ...], Any] = {}
        self._session(())

    def run(self, arrays: Sequence[np.ndarray], wanted: Sequence[str]) -> dict[str, np.ndarray]:
        inner = tuple(name for name in wanted if name not in self.outputs)
        given = dict(zip(self.inputs, arrays, strict=True))
        try:
            results = self._session(inner).run(list(wanted), given)
        except Exception as error:  # it has a class of its own for every kind of failure
            raise ModelError(f"{self.engine} cannot run the model: {first_line(error)}") from None
        return dict(zip(wanted, results, strict=True))

    def _session(self, inner: tuple[str, ...]) -> Any:
        """Open the model with inner values among its outputs."""
        import onnxruntime

        if inner not in self._sessions:
            proto = onnx.ModelProto()
            proto.CopyFrom(self._proto)
            proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner)
            options = onnxruntime.SessionOptions()
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
            if any(node.op_type in _INTEGER_PRODUCTS for node in proto.graph.node):
                options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
                options.add_session_config_entry("session.x64quantprecision", "1")
            options.log_severity_level = 4
            with tempfile.TemporaryDirectory(prefix="tvm-coexec-") as folder:
                try:
                    self._sessions[inner] = onnxruntime.InferenceSession(
                        _readable(proto, Path(folder)), options, providers=["CPUExecutionProvider"]
                    )
                except Exception as error:  # it has a class of its own for every kind of failure
                    raise ModelError(f"{self.engine} refuses the model: {first_line(error)}") from None
        return self._sessions[inner]


class ReferenceEvaluator(_OnnxEvaluator):
    """ONNX's reference evaluator, in numpy: slow, and part of the package that reads the models."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        from onnx.reference import ReferenceEvaluator as Reference

        super().__init__(proto)
        self.engine = f"ONNX's reference evaluator {onnx.__version__}"
        self._reference = Reference(proto)

    def run(self, arrays: Sequence[np.ndarray], wanted: Sequence[str]) -> dict[str, np.ndarray]:
        given = dict(zip(self.inputs, arrays, strict=True))
        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                results: Any = self._reference.run(None, given, intermediate=True)
        except Exception as error:  # it raises whatever it stumbles over
            raise ModelError(f"{self.engine} cannot run the model: {first_line(error)}") from None
        return {name: np.asarray(results[name]) for name in wanted}


def _readable(proto: onnx.ModelProto, folder: Path) -> bytes | str:
    """The model as ONNX Runtime takes it."""
    if proto.ByteSize() < _LARGEST_PROTO:
        content: bytes = proto.SerializeToString()
        return content
    path = str(folder / "model.onnx")
    onnx.save(proto, path, save_as_external_data=True)
    return path


def _steps(graph: onnx.GraphProto) -> dict[str, float]:
    """How far the numbers that floats can be lie apart, where these are made of quantised activations."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    steps = {}
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] not in constants and node.input[1] in constants:
            scale = numpy_helper.to_array(constants[node.input[1]])
            if scale.size == 1:
                steps[node.output[0]] = float(scale.item())
    return steps


def _read_from(graph: onnx.GraphProto, operator: str) -> set[str]:
    """The values that an operator makes, and those that hold the same numbers in another shape."""
    found: set[str] = set()
    for node in graph.node:
        if node.op_type == operator or (node.op_type in _VIEWS and node.input[0] in found):
            found.add(node.output[0])
    return found


def _constants(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """The tensors that a graph holds, by name."""
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
            found[node.output[0]] = node.attribute[0].t
    return found


def _readers(graph: onnx.GraphProto, name: str) -> Iterator[tuple[onnx.NodeProto, int]]:
    """List the nodes that read an input's numbers, and where among their operands."""
    followed = {name}
    for node in graph.node:
        if node.op_type in _VIEWS and node.input[0] in followed:
            followed.add(node.output[0])
            continue
        yield from ((node, position) for position, operand in enumerate(node.input) if operand in followed)


def _choices(graph: onnx.GraphProto, value: onnx.ValueInfoProto) -> Sequence[int]:
    """The whole numbers that an input may be; none where the model says nothing of them."""
    sizes, compared = list(_table_sizes(graph, value.name)), set(_compared_with(graph, value.name))
    if sizes:
        return range(min(sizes))
    tensor = value.type.tensor_type
    is_one = all(size.dim_value == 1 for size in tensor.shape.dim)
    if not compared or (is_one and compared.isdisjoint((0, 1))):
        return sorted(compared)
    # a mask, for one, is compared with what is left out: some of its numbers have to be others
    is_bytes = tensor.elem_type in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    return () if is_bytes and not is_one else sorted(compared | {0, 1})


def _table_sizes(graph: onnx.GraphProto, name: str) -> Iterator[int]:
    """How many entries the constant tables have from which an input chooses."""
    constants = _constants(graph)
    for node, position in _readers(graph, name):
        if node.op_type.startswith("Gather") and position == 1 and node.input[0] in constants:
            axes = [attribute.i for attribute in node.attribute if attribute.name == "axis"]
            yield constants[node.input[0]].dims[axes[0] if axes else 0]


def _compared_with(graph: onnx.GraphProto, name: str) -> Iterator[int]:
    """The whole numbers with one of which an input is compared, such as the rates that a model knows."""
    constants = _constants(graph)
    for node, position in _readers(graph, name):
        other = constants.get(node.input[1 - position]) if node.op_type == "Equal" else None
        numbers = None if other is None else numpy_helper.to_array(other)
        if numbers is not None and numbers.dtype.kind in "iu":
            yield from map(int, numbers.reshape(-1))
