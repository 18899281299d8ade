"""Models of many nodes, and nodes of many operands: built in proportion, without deep recursion."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from slow import slow_except

import tvm_coexec
from tvm_coexec.frontends import to_graph
from tvm_coexec.runtime.device import Device

pytestmark = pytest.mark.one_runtime

MANY = 70


def model(nodes: list[onnx.NodeProto], shape: list[int], result: list[int], dtype: int) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "many",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info("y", dtype, result)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.slow
@pytest.mark.parametrize(("axis", "dtype"), [(0, TensorProto.FLOAT), (1, TensorProto.FLOAT), (1, TensorProto.INT64)])
def test_many_operands_are_joined_in_their_order(device: Device, axis: int, dtype: int) -> None:
    """Every second operand is another value, and the last group is not full."""
    names = ["x", "negative"] * (MANY // 2)
    nodes = [helper.make_node("Neg", ["x"], ["negative"]), helper.make_node("Concat", names, ["y"], axis=axis)]
    shape = [3, 4]
    result = [size * (MANY if index == axis else 1) for index, size in enumerate(shape)]
    x = np.arange(12).reshape(shape).astype(helper.tensor_dtype_to_np_dtype(dtype))
    y = tvm_coexec.build(model(nodes, shape, result, dtype), device=device, split=0.5)(x)
    assert np.array_equal(y, np.concatenate([x, -x] * (MANY // 2), axis))


@pytest.mark.parametrize(
    ("operator", "compute"),
    slow_except(
        [("Sum", np.add.reduce), ("Max", np.max), ("Min", np.min), ("Mean", lambda values, axis: values.mean(axis))],
        3,
    ),
)
def test_many_operands_are_taken_one_after_the_other(operator: str, compute: Any, device: Device) -> None:
    """One of them has fewer axes, and some elements are NaN."""
    shapes = [[3, 8] if index % 5 else [8] for index in range(MANY)]
    names = [f"x{index}" for index in range(MANY)]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in zip(names, shapes, strict=True)
    ]
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 8])
    graph = helper.make_graph([helper.make_node(operator, names, ["y"])], "many", values, [result])
    many = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    random = np.random.default_rng(0)
    given = [random.standard_normal(shape, np.float32) for shape in shapes]
    given[7][1, 3] = np.nan
    expected = compute(np.stack([np.broadcast_to(value, (3, 8)).astype(np.float64) for value in given]), axis=0)
    assert "opaque" not in {node.layer.op for node in to_graph(many).nodes}
    y = tvm_coexec.build(many, device=device, split=0.5)(*given)
    assert np.allclose(y, expected, atol=1e-5, equal_nan=True)


def test_a_long_chain_of_steps_becomes_layers_of_some_steps_each(device: Device) -> None:
    names = ["x", *(f"v{number}" for number in range(MANY - 1)), "y"]
    operators = ["Abs", "Neg", "Sigmoid"]
    nodes = [
        helper.make_node(operators[index % 3], [read], [made]) for index, (read, made) in enumerate(pairwise(names))
    ]
    chain = model(nodes, [2, 8], [2, 8], TensorProto.FLOAT)
    assert 1 < len(to_graph(chain).nodes) < MANY / 8
    x = expected = np.linspace(-2, 2, 16, dtype=np.float32).reshape(2, 8)
    for index in range(MANY):
        expected = [np.abs, np.negative, lambda v: 1 / (1 + np.exp(-v))][index % 3](expected)
    assert np.allclose(tvm_coexec.build(chain, device=device, split=0.5)(x), expected, atol=1e-6)


@pytest.mark.slow
def test_each_of_many_parts_is_made_alone(device: Device) -> None:
    """The parts are integers, which TVM's loops split."""
    parts = [f"part{number}" for number in range(20)]
    nodes = [
        helper.make_node("Split", ["x"], parts, axis=1),
        helper.make_node("Concat", parts[::-1], ["y"], axis=1),
    ]
    x = np.arange(80).reshape(2, 40)
    y = tvm_coexec.build(model(nodes, [2, 40], [2, 40], TensorProto.INT64), device=device, split=0.5)(x)
    assert np.array_equal(y, x.reshape(2, 20, 2)[:, ::-1].reshape(2, 40))
