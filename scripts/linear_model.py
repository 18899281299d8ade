"""Other engines get a single linear layer as an ONNX model."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tvm_coexec.layers import Linear

_ACTIVATION_NODES = {
    "relu": lambda x, y: [helper.make_node("Relu", [x], [y])],
    "gelu": lambda x, y: [helper.make_node("Gelu", [x], [y])],
    "gelu_tanh": lambda x, y: [helper.make_node("Gelu", [x], [y], approximate="tanh")],
    "relu6": lambda x, y: [helper.make_node("Clip", [x, "zero", "six"], [y])],
    "hard_swish": lambda x, y: [helper.make_node("HardSwish", [x], [y])],
    "sigmoid": lambda x, y: [helper.make_node("Sigmoid", [x], [y])],
    "silu": lambda x, y: [
        helper.make_node("Sigmoid", [x], [f"{y}.sigmoid"]),
        helper.make_node("Mul", [x, f"{y}.sigmoid"], [y]),
    ],
}


def linear_model(layer: Linear, copies: int = 1, seed: int = 0) -> onnx.ModelProto:
    """Make ``copies`` of a layer with the same random weights, each with an input, and a residual, of its own."""
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((layer.k, layer.n), np.float32) / np.float32(np.sqrt(layer.k))
    constants = {"weights": weights, "bias": rng.standard_normal(layer.n, np.float32)}
    if "relu6" in layer.epilogue:
        constants |= {"zero": np.array(0, np.float32), "six": np.array(6, np.float32)}
    nodes, inputs, outputs = [], [], []
    for copy in range(copies):
        inputs.append(helper.make_tensor_value_info(f"x{copy}", TensorProto.FLOAT, [layer.m, layer.k]))
        nodes.append(helper.make_node("MatMul", [f"x{copy}", "weights"], [f"product{copy}"]))
        value = f"product{copy}"
        for index, step in enumerate(layer.epilogue):
            result = f"value{copy}.{index}"
            if step == "bias":
                nodes.append(helper.make_node("Add", [value, "bias"], [result]))
            elif step == "residual":
                inputs.append(helper.make_tensor_value_info(f"r{copy}", TensorProto.FLOAT, [layer.m, layer.n]))
                nodes.append(helper.make_node("Add", [value, f"r{copy}"], [result]))
            else:
                nodes += _ACTIVATION_NODES[step](value, result)
            value = result
        nodes.append(helper.make_node("Identity", [value], [f"y{copy}"]))
        outputs.append(helper.make_tensor_value_info(f"y{copy}", TensorProto.FLOAT, [layer.m, layer.n]))
    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "layer", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
