"""Small ONNX models, and what ONNX Runtime makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from reference import evaluate

from tvm_coexec.frontends import to_graph
from tvm_coexec.graph import Graph

Shape = tuple[int | str, ...]
LIGHT = Path(onnx.__file__).parent / "backend/test/data/light"


class OnnxBuilder:
    """Collects nodes; every method gives the name of the value that it adds."""

    def __init__(self, opset: int = 20, **inputs: Shape) -> None:
        self.opset = opset
        self.inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()]
        self.constants: list[onnx.TensorProto] = []
        self.nodes: list[onnx.NodeProto] = []
        self.random = np.random.default_rng(0)

    def const(self, array: Any, dtype: str = "float32") -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array, dtype), name))
        return name

    def weights(self, *shape: int) -> str:
        return self.const(self.random.standard_normal(shape) / np.sqrt(shape[0]))

    def add(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        """Add a node named ``n<index>`` and give the name of its first output."""
        index = len(self.nodes)
        names = [f"v{index}" if i == 0 else f"v{index}.{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, name=f"n{index}", **attributes))
        return names[0]

    def model(self, *outputs: str) -> onnx.ModelProto:
        infos = [onnx.ValueInfoProto(name=name) for name in outputs]
        graph = helper.make_graph(self.nodes, "test", self.inputs, infos, self.constants)
        opsets = [helper.make_opsetid("", self.opset)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
        return onnx.shape_inference.infer_shapes(model)


def linear(builder: OnnxBuilder, x: str, k: int, n: int) -> str:
    return builder.add("Add", builder.add("MatMul", x, builder.weights(k, n)), builder.weights(n))


def random_inputs(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Normal numbers; whole ones are 0 and 1."""
    random = np.random.default_rng(1)
    inputs = {}
    for value in model.graph.input:
        shape = [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        is_whole = np.issubdtype(dtype, np.integer)
        inputs[value.name] = (random.integers(0, 2, shape) if is_whole else random.standard_normal(shape)).astype(dtype)
    return inputs


def run_onnx(model: onnx.ModelProto, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.x64quantprecision", "1")  # else it may limit sums to 16 bits
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))


def check_against_onnxruntime(model: onnx.ModelProto) -> Graph:
    """Form the graph, compare what it computes to ONNX Runtime, and give it for a look at its nodes."""
    graph = to_graph(model)
    inputs = random_inputs(model)
    expected = run_onnx(model, inputs)
    results = evaluate(graph, inputs)
    assert list(results) == list(expected)
    for name, array in expected.items():
        assert results[name].shape == array.shape
        np.testing.assert_allclose(results[name], array, rtol=1e-4, atol=1e-5 * np.nanmax(np.abs(array)))
    return graph


def layers(graph: Graph) -> list[tuple[str, tuple[str, ...]]]:
    """Kind and epilogue of every node, in execution order."""
    return [(getattr(node.layer, "kind", node.layer.op), node.layer.epilogue) for node in graph.nodes]


def light_network(name: str) -> onnx.ModelProto:
    """A test network of the onnx package, its constant weights replaced by random ones, without its softmax.

    Factors and variances of batch normalisations are near one: a variance below zero would make everything no number.
    """
    model = onnx.load(LIGHT / f"light_{name}.onnx")
    random = np.random.default_rng(5)
    shapes = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    if model.graph.node[-1].op_type == "Softmax":
        model.graph.output[0].name = model.graph.node[-1].input[0]
        del model.graph.node[-1]
    normalisations = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    near_one = {node.input[position] for node in normalisations for position in (1, 4)}
    for node in list(model.graph.node):
        if node.op_type == "ConstantOfShape":
            shape = tuple(shapes[node.input[0]])
            scale = np.sqrt(2 / max(np.prod(shape[1:]), 1)) if len(shape) > 1 else 0.1
            array = (random.standard_normal(shape) * scale + (node.output[0] in near_one)).astype(np.float32)
            model.graph.initializer.append(numpy_helper.from_array(array, node.output[0]))
            model.graph.node.remove(node)
    kept = [value for value in model.graph.input if value.name not in shapes]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    model.ir_version = 8
    return model
