"""ONNX models become the graphs that one would draw by hand, and these compute what ONNX Runtime computes."""

import subprocess
import sys
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_builder import OnnxBuilder, check_against_onnxruntime, layers, linear

from tvm_coexec.frontends import to_graph

ACTIVATION_NODES: dict[str, tuple[str, dict[str, Any]]] = {
    "relu": ("Relu", {}),
    "gelu": ("Gelu", {}),
    "gelu_tanh": ("Gelu", {"approximate": "tanh"}),
}


def activation(builder: OnnxBuilder, name: str, x: str) -> str:
    if name == "silu":
        return builder.add("Mul", x, builder.add("Sigmoid", x))
    op, attributes = ACTIVATION_NODES[name]
    return builder.add(op, x, **attributes)


@pytest.mark.parametrize("name", ["relu", "gelu", "gelu_tanh", "silu"])
@pytest.mark.parametrize("residual", [False, True])
def test_mlp_is_one_node_a_layer(name, residual):
    b = OnnxBuilder(x=(7, 33))
    hidden = activation(b, name, linear(b, "x", 33, 65))
    out = linear(b, hidden, 65, 33)
    if residual:
        out = b.add("Add", "x", out)
    out = activation(b, name, out)
    graph = check_against_onnxruntime(b.model(out))
    last = ("bias", "residual", name) if residual else ("bias", name)
    assert layers(graph) == [("linear", ("bias", name)), ("linear", last)]
    assert [node.name for node in graph.nodes] == ["n0", "n3" if name != "silu" else "n4"]
    assert graph.inputs == ["x"] and graph.outputs == [out]


def test_residual_before_bias_keeps_the_models_order():
    b = OnnxBuilder(x=(3, 8))
    product = b.add("MatMul", "x", b.weights(8, 8))
    out = b.add("Relu", b.add("Add", b.add("Add", product, "x"), b.weights(8)))
    assert layers(check_against_onnxruntime(b.model(out))) == [("linear", ("residual", "bias", "relu"))]


@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("bias_shape", [(), (7,), (1, 7), None])
def test_gemm_folds_its_factors_into_the_weights(trans_b, bias_shape):
    b = OnnxBuilder(x=(4, 5))
    operands = ["x", b.weights(*((7, 5) if trans_b else (5, 7)))]
    if bias_shape is not None:
        operands.append(b.const(b.random.standard_normal(bias_shape)))
    graph = check_against_onnxruntime(b.model(b.add("Gemm", *operands, transB=trans_b, alpha=0.5, beta=3.0)))
    assert layers(graph) == [("linear", () if bias_shape is None else ("bias",))]
    weights = graph.nodes[0].params["weights"]
    assert weights.shape == (5, 7) and weights.dtype == np.float32 and weights.flags.c_contiguous


def test_gemm_with_an_activation_as_third_operand_adds_a_residual():
    b = OnnxBuilder(x=(4, 5), y=(4, 7))
    graph = check_against_onnxruntime(b.model(b.add("Gemm", "x", b.weights(5, 7), "y")))
    assert layers(graph) == [("linear", ("residual",))]


def test_transformer_mlp_block():
    b = OnnxBuilder(x=(2, 5, 24))
    normal = b.add("LayerNormalization", "x", b.weights(24), b.weights(24), epsilon=1e-6)
    hidden = b.add("Gelu", linear(b, normal, 24, 96))
    out = b.add("Add", linear(b, hidden, 96, 24), "x")
    graph = check_against_onnxruntime(b.model(out))
    assert layers(graph) == [("layer_norm", ()), ("linear", ("bias", "gelu")), ("linear", ("bias", "residual"))]
    assert graph.nodes[2].residual == "x"
    assert graph.nodes[0].layer.epsilon == pytest.approx(1e-6)
    assert (graph.tensors[out].shape, graph.tensors[out].rows) == ((2, 5, 24), 10)


def test_layer_norm_and_softmax_take_epilogues():
    b = OnnxBuilder(x=(3, 9))
    normal = b.add("Relu", b.add("LayerNormalization", "x", b.weights(9)))
    out = b.add("Add", b.add("Softmax", normal), normal)
    assert layers(check_against_onnxruntime(b.model(out))) == [("layer_norm", ("relu",)), ("softmax", ("residual",))]


def test_optional_operands_and_results_may_be_left_out():
    b = OnnxBuilder(x=(3, 9))
    out = b.add("LayerNormalization", b.add("Dropout", "x", ""), b.weights(9))
    b.nodes[1].output.append("")
    assert layers(check_against_onnxruntime(b.model(out))) == [("layer_norm", ())]


def test_softmax_head_with_three_axes():
    b = OnnxBuilder(x=(2, 3, 11))
    out = b.add("Softmax", linear(b, "x", 11, 10), axis=2)
    assert layers(check_against_onnxruntime(b.model(out))) == [("linear", ("bias",)), ("softmax", ())]


def test_old_opsets_flatten_for_softmax():
    b = OnnxBuilder(opset=11, x=(3, 10))
    assert layers(check_against_onnxruntime(b.model(b.add("Softmax", "x")))) == [("softmax", ())]


def test_intermediate_that_is_an_output_is_not_fused_away():
    b = OnnxBuilder(x=(4, 6))
    before = linear(b, "x", 6, 8)
    graph = check_against_onnxruntime(b.model(before, b.add("Relu", before)))
    assert layers(graph) == [("linear", ("bias",)), ("map", ("relu",))]


def test_intermediate_with_two_readers_is_not_fused_away():
    b = OnnxBuilder(x=(4, 6))
    shared = linear(b, "x", 6, 6)
    out = b.add("Add", linear(b, b.add("Relu", shared), 6, 6), shared)
    graph = check_against_onnxruntime(b.model(out))
    assert layers(graph) == [("linear", ("bias",)), ("map", ("relu",)), ("linear", ("bias", "residual"))]


def test_sum_of_two_linear_layers_goes_to_the_later_one():
    b = OnnxBuilder(x=(4, 6))
    first, second = linear(b, "x", 6, 8), linear(b, "x", 6, 8)
    graph = check_against_onnxruntime(b.model(b.add("Add", second, first)))
    assert layers(graph) == [("linear", ("bias",)), ("linear", ("bias", "residual"))]
    assert graph.nodes[1].residual == graph.nodes[0].output


def test_sum_goes_to_the_earlier_layer_when_the_later_one_is_read_twice():
    b = OnnxBuilder(x=(4, 6))
    first, second = linear(b, "x", 6, 8), linear(b, "x", 6, 8)
    graph = check_against_onnxruntime(b.model(b.add("Add", first, second), b.add("Softmax", second)))
    assert sorted(layers(graph)) == [("linear", ("bias",)), ("linear", ("bias", "residual")), ("softmax", ())]
    summing = next(node for node in graph.nodes if node.residual)
    assert summing.name == "n0"  # the first linear layer, moved behind the second


def test_second_residual_and_second_bias_open_a_map():
    b = OnnxBuilder(x=(4, 6), y=(4, 6))
    once = b.add("Add", linear(b, "x", 6, 6), "x")
    twice = b.add("Relu", b.add("Add", once, "y"))
    out = b.add("Relu", b.add("Add", twice, b.weights(6)))
    graph = check_against_onnxruntime(b.model(out))
    assert layers(graph) == [("linear", ("bias", "residual")), ("map", ("residual", "relu", "bias", "relu"))]


def test_second_bias_after_an_activation_moves_into_the_next_layer():
    b = OnnxBuilder(x=(4, 6))
    hidden = b.add("Add", b.add("Relu", linear(b, "x", 6, 6)), b.weights(6))
    assert layers(check_against_onnxruntime(b.model(linear(b, hidden, 6, 3)))) == [
        ("linear", ("bias", "relu")),
        ("linear", ("bias",)),
    ]


def test_value_added_to_itself():
    b = OnnxBuilder(x=(4, 6))
    hidden = linear(b, "x", 6, 6)
    graph = check_against_onnxruntime(b.model(b.add("Add", hidden, hidden)))
    assert layers(graph) == [("linear", ("bias",)), ("map", ("residual",))]


def test_operators_on_an_input_become_one_map():
    b = OnnxBuilder(x=(4, 6))
    out = b.add("Relu", b.add("Add", b.add("Relu", "x"), b.weights(6)))
    assert layers(check_against_onnxruntime(b.model(out))) == [("map", ("relu", "bias", "relu"))]


def test_input_normalisation_disappears_in_the_first_layer():
    b = OnnxBuilder(x=(4, 6))
    normal = b.add("Div", b.add("Sub", "x", b.weights(6)), b.const(np.arange(1, 7)))
    graph = check_against_onnxruntime(b.model(b.add("MatMul", normal, b.weights(6, 3))))
    assert layers(graph) == [("linear", ("bias",))]


def test_factor_read_by_two_layers_and_shift_read_by_a_residual():
    b = OnnxBuilder(x=(4, 6))
    scaled = b.add("Mul", "x", b.const(0.25))
    shifted = b.add("Sub", b.const(1.5), linear(b, scaled, 6, 6))
    out = b.add("Add", linear(b, b.add("Relu", shifted), 6, 6), b.add("MatMul", scaled, b.weights(6, 6)))
    assert all(kind == "linear" for kind, _ in layers(check_against_onnxruntime(b.model(out))))


def test_reshapes_that_keep_rows_cost_nothing():
    b = OnnxBuilder(x=(2, 3, 1, 8))
    flat = b.add("Flatten", "x", axis=3)
    hidden = b.add("Identity", b.add("Unsqueeze", linear(b, flat, 8, 12), b.const([0], "int64")))
    hidden = b.add("Squeeze", b.add("Relu", hidden), b.const([0], "int64"))
    hidden = b.add("Cast", b.add("Dropout", hidden, outputs=2), to=1)
    hidden = b.add("Reshape", hidden, b.const([0, 1, -1], "int64"))
    out = b.add("Transpose", b.add("Reshape", hidden, b.const([2, 1, -1, 12], "int64")), perm=[1, 0, 2, 3])
    graph = check_against_onnxruntime(b.model(out))
    assert layers(graph) == [("linear", ("bias", "relu"))]
    assert graph.tensors[out].shape == (1, 2, 3, 12)


def test_images_are_flattened_and_unflattened():
    b = OnnxBuilder(x=(5, 2, 3, 4))
    hidden = b.add("Relu", linear(b, b.add("Flatten", "x"), 24, 24))
    graph = check_against_onnxruntime(b.model(b.add("Reshape", hidden, b.const([5, 2, 3, 4], "int64"))))
    assert [(t.rows, t.channels, t.channel_axes) for t in graph.tensors.values()] == [(5, 24, 3), (5, 24, 3)]


def test_last_axis_of_one_channel_may_be_squeezed():
    b = OnnxBuilder(x=(5, 4))
    graph = check_against_onnxruntime(b.model(b.add("Squeeze", linear(b, "x", 4, 1), b.const([1], "int64"))))
    output = graph.tensors[graph.outputs[0]]
    assert (output.shape, output.rows, output.channels) == ((5,), 5, 1)


def test_shape_arithmetic_and_constants_are_folded():
    b = OnnxBuilder(x=(2, 3, 8))
    weights = b.add("Reshape", b.add("Transpose", b.weights(8, 12), perm=[1, 0]), b.const([8, 12], "int64"))
    bias = b.add("Mul", b.add("Constant", value=onnx.numpy_helper.from_array(np.float32(0.5))), b.weights(12))
    shape = b.add(
        "Concat",
        b.add("Slice", b.add("Shape", "x"), b.const([0], "int64"), b.const([2], "int64")),
        b.const([-1], "int64"),
        axis=0,
    )
    out = b.add("Reshape", b.add("Add", b.add("MatMul", "x", weights), bias), shape)
    assert layers(check_against_onnxruntime(b.model(out))) == [("linear", ("bias",))]


def test_one_row_and_vectors():
    b = OnnxBuilder(x=(9,))
    graph = check_against_onnxruntime(b.model(b.add("Relu", b.add("MatMul", "x", b.weights(9, 5)))))
    assert (graph.nodes[0].layer.m, graph.nodes[0].layer.k, graph.nodes[0].layer.n) == (1, 9, 5)


def test_outputs_that_share_a_value_or_are_inputs_are_copied():
    b = OnnxBuilder(x=(4, 6))
    hidden = b.add("Relu", "x")
    graph = check_against_onnxruntime(b.model(b.add("Identity", hidden), hidden, b.add("Identity", "x")))
    assert layers(graph) == [("map", ("relu",)), ("map", ()), ("map", ())]


def test_names_of_inputs_and_outputs_stay(tmp_path):
    b = OnnxBuilder(**{"input.1": (4, 6)})
    model = b.model(b.add("Relu", linear(b, "input.1", 6, 3)))
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    before = model.SerializeToString()
    for graph in (to_graph(path), to_graph(str(path)), to_graph(model)):
        assert (graph.inputs, graph.outputs) == (["input.1"], ["v2"])
    assert model.SerializeToString() == before


def test_external_weights_are_read(tmp_path):
    b = OnnxBuilder(x=(4, 6))
    path = tmp_path / "model.onnx"
    model = b.model(linear(b, "x", 6, 300))
    weights = onnx.numpy_helper.to_array(model.graph.initializer[0])
    onnx.save(model, path, save_as_external_data=True, location="model.data", size_threshold=1)
    np.testing.assert_array_equal(to_graph(path).nodes[0].params["weights"], weights)


def test_unnamed_and_equally_named_nodes_get_names():
    b = OnnxBuilder(x=(4, 6))
    model = b.model(linear(b, linear(b, linear(b, "x", 6, 6), 6, 6), 6, 6))
    for node, name in zip(model.graph.node, ["same", "", "same", "", "", ""], strict=True):
        node.name = name
    assert [node.name for node in to_graph(model).nodes] == ["same", "same_2", "v4"]


def test_to_graph_is_imported_without_onnx_or_tvm():
    code = "import sys, tvm_coexec.frontends; assert not {'onnx', 'tvm'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@settings(max_examples=40)
@given(st.data())
def test_random_chains_equal_onnxruntime(data):
    rows = data.draw(st.sampled_from([(1,), (3,), (2, 5)]), label="rows")
    width = data.draw(st.integers(1, 9), label="width")
    b = OnnxBuilder(x=(*rows, width))
    values = [("x", width)]
    for _ in range(data.draw(st.integers(1, 8), label="length")):
        x, k = data.draw(st.sampled_from(values[-3:]), label="operand")
        op = data.draw(
            st.sampled_from(["linear", "bias", "residual", "norm", "softmax", "copy", *ACTIVATION_NODES, "silu"])
        )
        if op == "linear":
            n = data.draw(st.integers(1, 9), label="channels")
            values.append((linear(b, x, k, n), n))
        elif op == "bias":
            values.append((b.add("Add", x, b.weights(k)), k))
        elif op == "residual":
            other = data.draw(st.sampled_from([name for name, n in values if n == k]), label="residual")
            values.append((b.add("Add", x, other), k))
        elif op == "norm":
            values.append((b.add("LayerNormalization", x, b.weights(k), b.weights(k), epsilon=0.1), k))
        elif op == "softmax":
            values.append((b.add("Softmax", x), k))
        elif op == "copy":
            values.append((b.add("Identity", x), k))
        else:
            values.append((activation(b, op, x), k))
    computed = [name for name, _ in values[1:]]
    outputs = data.draw(st.lists(st.sampled_from(computed), min_size=1, max_size=2, unique=True), label="outputs")
    check_against_onnxruntime(b.model(*outputs))
