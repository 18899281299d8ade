"""ONNX models: checked against what can be built, then imported by TVM's own Relax front end."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import NodeProto, TensorProto, ValueInfoProto
from tvm import IRModule, relax
from tvm.relax.frontend.onnx import from_onnx

from ..errors import ModelError, last_line
from .onnx_nodes import attributes, check_resizing, known_operation, resolve_automatic_padding, small_constants
from .relax import Known, Naming, bindings, returned, trace_function
from .trace import Source, Trace

_DTYPES = {
    TensorProto.DataType.Value(name): name.lower()
    for name in (
        "FLOAT",
        "DOUBLE",
        "FLOAT16",
        "BOOL",
        "INT8",
        "INT16",
        "INT32",
        "INT64",
        "UINT8",
        "UINT16",
        "UINT32",
        "UINT64",
    )
}
"""Types of inputs that numpy knows too."""

_CONTROL_FLOW = ("If", "Loop", "Scan")

_OLDEST_OPSET = 7


def trace_onnx(model: onnx.ModelProto | Path) -> Trace:
    """List the operations of an ONNX model, called by the names of its own values and nodes.

    Raises
    ------
    ModelError
        If the file cannot be read, or naming the first input or node that cannot be built.
    """
    if isinstance(model, Path):
        proto = _read(model)
    else:
        proto = onnx.ModelProto()
        proto.CopyFrom(model)
    _check_opset(proto)
    _check_inputs(proto.graph)
    _check_operators(proto.graph)
    _check_consistency(model)
    check_resizing(proto, _source)
    resolve_automatic_padding(proto)
    outputs = [output.name for output in proto.graph.output]
    module = _import(proto)
    return trace_function(module, _naming(module["main"], proto.graph, outputs))


def _read(path: Path) -> onnx.ModelProto:
    if not path.is_file():
        raise ModelError(f"there is no model file {str(path)!r}; give the path of an ONNX file")
    try:
        return onnx.load(path)
    except (DecodeError, onnx.checker.ValidationError, OSError) as error:
        raise ModelError(f"cannot read {str(path)!r} as an ONNX model ({error}); export it again") from error


def _check_opset(model: onnx.ModelProto) -> None:
    if not model.graph.node:
        raise ModelError("the model has no nodes, so it is empty or no ONNX model; export it again")
    for opset in model.opset_import:
        if opset.domain in ("", "ai.onnx") and opset.version < _OLDEST_OPSET:
            raise ModelError(
                f"the model has ONNX opset {opset.version}; opsets from {_OLDEST_OPSET} on are supported, "
                "so convert it with onnx.version_converter"
            )


def _check_inputs(graph: onnx.GraphProto) -> None:
    constants = {tensor.name for tensor in graph.initializer}
    for value in graph.input:
        if value.name not in constants:
            _check_input(value)


def _check_input(value: ValueInfoProto) -> None:
    name, tensor = value.name, value.type.tensor_type
    if tensor.elem_type not in _DTYPES:
        found = TensorProto.DataType.Name(tensor.elem_type).lower()
        raise ModelError(f"input {name!r} is {found}; supported are {', '.join(_DTYPES.values())}")
    if not tensor.HasField("shape"):
        raise ModelError(f"input {name!r} has no shape; give every input a fixed shape")
    for axis, dimension in enumerate(tensor.shape.dim):
        if dimension.WhichOneof("value") == "dim_value":
            if dimension.dim_value < 1:
                raise ModelError(
                    f"input {name!r} has a dimension of {dimension.dim_value} (axis {axis}); give it one above 0"
                )
            continue
        label, option = "dynamic dimension", f"--input_name {name} --input_shape ..."
        if dimension.dim_param:
            label += f" {dimension.dim_param!r}"
            option = f"--dim_param {dimension.dim_param} --dim_value ..."
        raise ModelError(
            f"input {name!r} has the {label} (axis {axis}); fix it, for instance with "
            f"'python -m onnxruntime.tools.make_dynamic_shape_fixed {option}'"
        )


def _check_operators(graph: onnx.GraphProto) -> None:
    for node in graph.node:
        if node.domain not in ("", "ai.onnx"):
            raise ModelError(f"{_source(node)} is no operator of ONNX; replace it by some that are")
        if node.op_type in _CONTROL_FLOW:
            raise ModelError(f"{_source(node)} is control flow, which no module can hold; export the model without it")
    _check_statistics(graph)


def _check_statistics(graph: onnx.GraphProto) -> None:
    """Refuse what TVM's importer would silently get wrong: further outputs, and what only training does."""
    read = {name for node in graph.node for name in node.input if name} | {output.name for output in graph.output}
    for node in graph.node:
        source, values = _source(node), attributes(node)
        if node.op_type == "LayerNormalization" and read & set(node.output[1:]):
            raise ModelError(f"{source} has its mean or deviation read; only its first output is supported")
        if node.op_type in ("BatchNormalization", "MaxPool") and read & set(node.output[1:]):
            raise ModelError(f"{source} has its output {node.output[1]!r} read; only its first output is supported")
        training = values.get("training_mode", 0) or (
            node.op_type == "Dropout" and len(node.input) > 2 and node.input[2]
        )
        if training:
            raise ModelError(f"{source} may be in training mode; export the model for inference")
        if node.op_type == "ConvTranspose" and "output_shape" in values:
            raise ModelError(f"{source} has an output_shape; give it pads instead")
        if node.op_type == "BatchNormalization" and not values.get("spatial", 1):
            raise ModelError(f"{source} has statistics for every pixel; supported is spatial=1")


def _check_consistency(model: onnx.ModelProto | Path) -> None:
    """Let ONNX check its own rules, types and shapes; a path lets it read models of more than 2 GiB."""
    try:
        onnx.checker.check_model(str(model) if isinstance(model, Path) else model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        raise ModelError(f"the model breaks the rules of ONNX ({error}); export it again") from error


def _import(model: onnx.ModelProto) -> IRModule:
    """Import with every value as an output, so that each Relax variable can be told the ONNX value that it is."""
    outputs = {output.name for output in model.graph.output}
    for name in _values(model.graph):
        if name not in outputs:
            model.graph.output.append(onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    printed = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(printed):
            warnings.simplefilter("ignore")
            return from_onnx(model, sanitize_input_names=False)
    except Exception as error:  # TVM's converters raise whatever they stumble over
        named = [str(_source(node)) for node in model.graph.node if node.op_type in f"{printed.getvalue()} {error}"]
        reason = last_line(error, type(error).__name__)
        raise ModelError(
            f"TVM cannot import {', '.join(named) or 'the model'} ({reason}); replace it in the model"
        ) from error


def _naming(function: relax.Function, graph: onnx.GraphProto, outputs: list[str]) -> Naming:
    by_name = dict(zip((output.name for output in graph.output), returned(function), strict=True))
    values = {parameter: parameter.name for parameter in function.params}
    sources: dict[relax.Var, Source] = {}
    for node in graph.node:
        for name in node.output:
            value = by_name.get(name)
            if isinstance(value, relax.Var) and value not in values:
                values[value], sources[value] = name, _source(node)
    # one ONNX operator may become several bindings, of which the last makes its value
    source = Source("the result", outputs[0], "output")
    for index, binding in reversed(list(enumerate(bindings(function)))):
        source = sources.setdefault(binding.var, source)
        values.setdefault(binding.var, f"{source.name}/{index}")
    return Naming(values, sources, [(name, by_name[name]) for name in outputs], _known(function, graph, by_name))


def _known(function: relax.Function, graph: onnx.GraphProto, by_name: dict[str, relax.Expr]) -> dict[relax.Var, Known]:
    """What is read from nodes instead of from Relax; operations on constants alone are the importer's."""
    numbers = small_constants(graph)
    by_name = by_name | {parameter.name: parameter for parameter in function.params}
    known = {}
    for node in graph.node:
        variable = by_name.get(node.output[0])
        try:
            operation = known_operation(node, _source(node), numbers) if isinstance(variable, relax.Var) else None
        except ModelError:
            continue  # no layer of its own computes it, so Relax's form is read
        if operation is not None and all(name in by_name for name in operation[1]):
            op, inputs, values = operation
            known[variable] = Known(op, tuple(by_name[name] for name in inputs), values)
    return known


def _values(graph: onnx.GraphProto) -> Iterator[str]:
    return (name for node in graph.node for name in node.output if name)


def _source(node: NodeProto) -> Source:
    operator = f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
    return Source(operator, node.name, "node") if node.name else Source(operator, node.output[0], "output")
