"""Matrix products of two activations: every split on both processors against float64, in modules of one layer."""

from typing import Any

import numpy as np
import pytest
from onnx_builder import OnnxBuilder, linear, random_inputs, run_onnx
from slow import slow_except
from small_modules import one_layer

from tvm_coexec.api import build_graph
from tvm_coexec.frontends import to_graph
from tvm_coexec.layers import Hardware, MatMul, Matrices, layer_from_json, layer_to_json
from tvm_coexec.runtime.device import Device
from tvm_coexec.runtime.module import Module

GPU = Hardware(16, 32, "gpu", 64)


def rows(batch: int, heads: int, count: int, columns: int, channels: int, first: int = 0) -> Matrices:
    """Matrices whose rows are rows of a tensor, heads side by side."""
    return Matrices((batch * count, channels), (0, first), (count, 0, 1, 0), (0, columns if heads > 1 else 0, 0, 1))


def turned(matrices: Matrices) -> Matrices:
    """The same matrices with rows and columns exchanged."""
    (*outer_rows, i, j), (*outer, c, d) = matrices.row_steps, matrices.channel_steps
    return Matrices(matrices.size, matrices.first, (*outer_rows, j, i), (*outer, d, c))


LAYERS = [
    MatMul(2, 1, 5, 7, 70, rows(2, 1, 5, 7, 7), rows(2, 1, 7, 70, 80, 3)),
    MatMul(1, 1, 17, 40, 128, rows(1, 1, 17, 40, 40), rows(1, 1, 40, 128, 128), 0.5, epilogue=("bias", "relu")),
    MatMul(2, 3, 9, 16, 11, rows(2, 3, 9, 16, 48), turned(rows(2, 3, 11, 16, 144, 48)), 0.25),
    MatMul(2, 3, 9, 7, 64, Matrices((54, 7), (0, 0), (27, 9, 1, 0), (0, 0, 0, 1)), rows(2, 3, 7, 64, 192), 1.0, False),
    MatMul(1, 4, 9, 7, 24, rows(1, 4, 9, 7, 28), rows(1, 4, 7, 24, 96), 1.0, False, ("residual",)),
    MatMul(1, 2, 8, 9, 8, turned(rows(1, 2, 9, 8, 16)), rows(1, 2, 9, 8, 16), 1.0),
    MatMul(3, 1, 5, 4, 6, Matrices((5, 4), (0, 0), (0, 0, 1, 0), (0, 0, 0, 1)), rows(3, 1, 4, 6, 6), 1.0),
]


@pytest.mark.parametrize("layer", slow_except(LAYERS, 4), ids=range(len(LAYERS)))
def test_every_split(layer: MatMul, device: Device) -> None:
    built, units = Module(one_layer(layer, device), device), layer.units
    for cpu in sorted({0, 1, units - 1, units}):
        assert built.check_step(0, cpu, units - cpu) < built.error_bound(0)


@pytest.mark.parametrize("layer", slow_except([LAYERS[0], LAYERS[4]], 0), ids=[0, 4])
def test_kernels_for_a_gpu(layer: MatMul, device: Device) -> None:
    built = Module(one_layer(layer, device, GPU), device)
    assert built.check_step(0, 0, layer.units) < built.error_bound(0)


@pytest.mark.parametrize("layer", LAYERS, ids=range(len(LAYERS)))
def test_layers_become_plain_values_and_back(layer: Any) -> None:
    assert layer_from_json(layer_to_json(layer)) == layer


def test_matrices_outside_their_tensor_are_refused() -> None:
    with pytest.raises(ValueError, match="do not lie within their tensor"):
        MatMul(2, 1, 5, 7, 70, rows(2, 1, 5, 7, 7), rows(2, 1, 7, 70, 72, 3))


@pytest.mark.slow
@pytest.mark.parametrize("split", ["cpu", 0.5, "gpu"])
def test_a_network_of_products(split: Any, device: Device) -> None:
    b = OnnxBuilder(x=(2, 6, 32))
    parts = []
    for _ in range(3):
        heads = b.add("Reshape", linear(b, "x", 32, 96), b.const([2, 6, 2, 48], "int64"))
        parts.append(b.add("Transpose", heads, perm=[0, 2, 3, 1]))
    q, k, v = parts
    of_channels = b.add("Softmax", b.add("MatMul", q, b.add("Transpose", k, perm=[0, 1, 3, 2])), axis=-1)
    mixed = b.add("Transpose", b.add("MatMul", of_channels, v), perm=[0, 3, 1, 2])
    rows = b.add("Reshape", mixed, b.const([2, 6, 96], "int64"))
    gram = b.add("Relu", b.add("MatMul", rows, b.add("Transpose", rows, perm=[0, 2, 1])))
    model = b.model(b.add("Add", linear(b, b.add("MatMul", gram, rows), 96, 32), "x"))
    graph = to_graph(model)
    assert [node.layer.op for node in graph.nodes].count("matmul") == 4
    inputs = random_inputs(model)
    (expected,) = run_onnx(model, inputs).values()
    result = build_graph(graph, device, split=split)(**inputs)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
