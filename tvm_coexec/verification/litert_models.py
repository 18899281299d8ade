"""TFLite files as LiteRT can judge them: without variables and MediaPipe's own operators, and with weights that are
floats.

LiteRT has no kernels for MediaPipe's, and beside weights of 8 bits it rounds the activations to 8 bits as well.
"""

from __future__ import annotations

from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from ..errors import ModelError
from ..frontends.tflite.file import TfliteFile

BIASED_TRANSPOSE = b"Convolution2DTransposeBias"

_ROUNDING = (
    schema.BuiltinOperator.BATCH_MATMUL,
    schema.BuiltinOperator.CONV_2D,
    schema.BuiltinOperator.DEPTHWISE_CONV_2D,
    schema.BuiltinOperator.FULLY_CONNECTED,
)
"""Operators of which LiteRT rounds the activations where their weights are integers."""


_OF_VARIABLES = tuple(
    getattr(schema.BuiltinOperator, name) for name in ("CALL_ONCE", "VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE")
)


def without_variables(content: bytes, file: TfliteFile) -> bytes:
    """The file whose variables are inputs and outputs, those of ``file``."""
    if not file.states:
        return content
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    graph = model.subgraphs[0]
    same: dict[int, int] = {}
    for again in (operator for operator in file.operators if operator.code == "READ_VARIABLE"):
        same[again.outputs[0]] = same.get(again.inputs[0], again.inputs[0])
    kept = []
    for operator in graph.operators:
        code = model.operatorCodes[operator.opcodeIndex].builtinCode
        operator.inputs = [same.get(index, index) for index in _numbers(operator.inputs)]
        if code not in _OF_VARIABLES:
            kept.append(operator)
        elif code == schema.BuiltinOperator.READ_VARIABLE:
            _let_be_constant(model, graph, operator.outputs[0], file)
    graph.operators, graph.inputs = kept, list(file.inputs)
    graph.outputs = [same.get(index, index) for index in file.outputs]
    return _packed(model)


def _let_be_constant(model: Any, graph: Any, index: int, file: TfliteFile) -> None:
    """Store the numbers of a variable that nothing assigns."""
    if (stored := file.tensors[index].stored) is None:
        return
    graph.tensors[index].buffer = len(model.buffers)
    model.buffers.append(schema.BufferT())
    model.buffers[-1].data = np.ascontiguousarray(stored).reshape(-1).view(np.uint8)


def _numbers(values: Any) -> list[int]:
    """The numbers of a vector, which is None where it is empty."""
    return [] if values is None else list(values)


def with_own_operators(content: bytes) -> bytes:
    """The file as LiteRT takes it, with the same operators of its own in the place of MediaPipe's."""
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    replaced = {index for index, code in enumerate(model.operatorCodes) if code.customCode == BIASED_TRANSPOSE}
    if not replaced:
        return content
    for graph in model.subgraphs:
        for operator in graph.operators:
            if operator.opcodeIndex in replaced:
                _replace(model, graph, operator)
    for index in replaced:
        code = model.operatorCodes[index]
        code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.TRANSPOSE_CONV
        code.customCode, code.version = None, 3  # the version that takes a bias
    return _packed(model)


def with_wide_weights(content: bytes) -> bytes:
    """The file with floats in the place of the weights of 8 bits that are beside activations of floats."""
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    widened = [
        _widen_weights(model, graph, operator)
        for graph in model.subgraphs
        for operator in graph.operators
        if model.operatorCodes[operator.opcodeIndex].builtinCode in _ROUNDING
    ]
    return _packed(model) if any(widened) else content


def _packed(model: Any) -> bytes:
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _widen_weights(model: Any, graph: Any, operator: Any) -> bool:
    """Make an operator's weights floats if they are such integers, and tell whether they were."""
    activation, weights = (graph.tensors[index] for index in operator.inputs[:2])
    content, quantisation = model.buffers[weights.buffer].data, weights.quantization
    if activation.type != schema.TensorType.FLOAT32 or weights.type != schema.TensorType.INT8 or content is None:
        return False
    along = [1] * len(weights.shape)
    along[quantisation.quantizedDimension] = -1
    scale, zero = (np.reshape(values, along) for values in (quantisation.scale, quantisation.zeroPoint))
    integers = np.frombuffer(bytes(content), np.int8).reshape(weights.shape)
    buffer = schema.BufferT()
    buffer.data = ((integers - zero) * scale).astype(np.float32).reshape(-1).view(np.uint8)
    weights.type, weights.quantization, weights.buffer = schema.TensorType.FLOAT32, None, len(model.buffers)
    model.buffers.append(buffer)
    return True


def _replace(model: Any, graph: Any, operator: Any) -> None:
    """Write a transposed convolution of a stated size, with a bias."""
    image, weights, bias = operator.inputs
    size = graph.tensors[operator.outputs[0]].shape
    if operator.customOptions is None:
        raise ModelError(f"{BIASED_TRANSPOSE.decode()} lacks its options, without which LiteRT cannot be asked")
    padding, width_stride, height_stride = np.frombuffer(bytes(operator.customOptions), np.int32)[:3]
    options = schema.TransposeConvOptionsT()
    options.padding = schema.Padding.SAME if padding == 1 else schema.Padding.VALID  # an enumeration of C's: 1 and 2
    options.strideW, options.strideH = int(width_stride), int(height_stride)
    operator.inputs = [_constant(model, graph, np.asarray(size, np.int32)), weights, image, bias]
    operator.customOptions = None
    operator.builtinOptionsType, operator.builtinOptions = schema.BuiltinOptions.TransposeConvOptions, options


def _constant(model: Any, graph: Any, array: np.ndarray) -> int:
    """Add a constant, and give its number."""
    buffer, tensor = schema.BufferT(), schema.TensorT()
    buffer.data = array.view(np.uint8)
    tensor.name, tensor.shape, tensor.type = f"shape/{len(graph.tensors)}", list(array.shape), schema.TensorType.INT32
    tensor.buffer = len(model.buffers)
    model.buffers.append(buffer)
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1
