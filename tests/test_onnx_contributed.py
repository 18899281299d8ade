"""What ONNX Runtime's quantisation tools write into models, compared with ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_builder import run_onnx
from reference import evaluate

from tvm_coexec.errors import ModelError
from tvm_coexec.frontends import to_graph

random = np.random.default_rng(0)


def model_of(
    operator: str,
    inputs: list[str],
    outputs: list[str],
    constants: dict[str, np.ndarray],
    shape: list[int],
    **values: int,
) -> onnx.ModelProto:
    node = helper.make_node(operator, inputs, outputs, name="n", domain="com.microsoft", **values)
    graph = helper.make_graph(
        [node],
        "contributed",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def check(model: onnx.ModelProto, shape: tuple[int, ...], tolerance: float) -> None:
    x = random.standard_normal(shape, np.float32)
    expected = list(run_onnx(model, {"x": x}).values())
    results = evaluate(to_graph(model), {"x": x}).values()
    for result, array in zip(results, expected, strict=True):
        np.testing.assert_allclose(result, array, rtol=0, atol=tolerance * np.abs(array).max())


def int8(*shape: int) -> np.ndarray:
    return random.integers(-127, 128, shape).astype(np.int8)


def quantised_lstm(directions: int, per_channel: bool) -> onnx.ModelProto:
    sizes, scales = {"w": (directions, 6, 20), "r": (directions, 5, 20)}, (directions, *([20] if per_channel else []))
    constants: dict[str, np.ndarray] = {}
    for name, size in sizes.items():
        constants[name] = int8(*size)
        constants[f"{name}s"] = random.uniform(0.002, 0.006, scales).astype(np.float32)
        constants[f"{name}z"] = np.zeros(scales, np.int8)
    constants["b"] = random.standard_normal((directions, 40)).astype(np.float32)
    names = ["x", "w", "r", "b", "", "", "", "", "ws", "wz", "rs", "rz"]
    way = {"direction": "bidirectional" if directions == 2 else "forward"}
    return model_of("DynamicQuantizeLSTM", names, ["y", "last"], constants, [7, 2, 6], hidden_size=5, **way)


@pytest.mark.parametrize(("directions", "per_channel"), [(1, True), (2, False)])
def test_an_lstm_of_quantised_weights(directions: int, per_channel: bool) -> None:
    """ONNX Runtime rounds inputs and states to 8 bits as well."""
    check(quantised_lstm(directions, per_channel), (7, 2, 6), 2e-2)


def test_quantised_weights_that_are_no_constants_are_refused() -> None:
    model = quantised_lstm(1, False)
    model.graph.node[0].input[8] = "x"
    with pytest.raises(ModelError, match=r"DynamicQuantizeLSTM \(node 'n'\) has weights, scales or zero points"):
        to_graph(model)


@pytest.mark.parametrize("bias", [False, True])
def test_a_product_with_quantised_weights(bias: bool) -> None:
    constants = {
        "w": int8(6, 5),
        "s": np.array(0.01, np.float32),
        "z": np.array(3, np.int8),
        "b": random.standard_normal(5).astype(np.float32),
    }
    names = ["x", "w", "s", "z", *(["b"] if bias else [])]
    check(model_of("DynamicQuantizeMatMul", names, ["y"], constants, [4, 6]), (4, 6), 1e-5)
