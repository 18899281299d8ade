"""TFLite files with MediaPipe's own operators replaced by TFLite's, since LiteRT has no kernels for them."""

from __future__ import annotations

from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from ..errors import ModelError

BIASED_TRANSPOSE = b"Convolution2DTransposeBias"


def with_own_operators(content: bytes) -> bytes:
    """The file as LiteRT takes it."""
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
    builder = flatbuffers.Builder(len(content))
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _replace(model: Any, graph: Any, operator: Any) -> None:
    """A transposed convolution of a stated size, with a bias."""
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
    """A new constant's number."""
    buffer, tensor = schema.BufferT(), schema.TensorT()
    buffer.data = array.view(np.uint8)
    tensor.name, tensor.shape, tensor.type = f"shape/{len(graph.tensors)}", list(array.shape), schema.TensorType.INT32
    tensor.buffer = len(model.buffers)
    model.buffers.append(buffer)
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1
