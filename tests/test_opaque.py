"""Layers that only Relax knows: what they are, what they compute in a network, and tensors of other types."""

import json
from collections.abc import Callable

import numpy as np
import onnx
import pytest
import tvm
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx_builder import OnnxBuilder, check_against_onnxruntime, layers, linear, random_inputs, run_onnx

import tvm_coexec
from tvm_coexec import schedules
from tvm_coexec.api import plan_graph
from tvm_coexec.errors import InputError, ModelError
from tvm_coexec.frontends import to_graph
from tvm_coexec.layers import Hardware, Opaque, Operand, layer_from_json, layer_to_json
from tvm_coexec.module.tensors import TensorSpec
from tvm_coexec.runtime.device import Device
from tvm_coexec.schedules import programs


def mixed_model() -> onnx.ModelProto:
    """Linear layers with operators between them that only Relax knows."""
    b = OnnxBuilder(x=(4, 40))
    hidden = b.add("Transpose", linear(b, "x", 40, 48), perm=[1, 0])
    largest = b.add("ReduceMax", hidden, b.const([0], "int64"), keepdims=1)
    halves = b.add("Split", linear(b, b.add("Cos", largest), 4, 70), axis=1, num_outputs=2, outputs=2)
    return b.model(b.add("Sub", halves, b.add("Sin", f"{halves}.1")))


def token_model() -> onnx.ModelProto:
    """An embedding: numbers of words go in, and a mask of them."""
    b = OnnxBuilder()
    b.inputs = [
        helper.make_tensor_value_info("ids", TensorProto.INT64, (1, 7)),
        helper.make_tensor_value_info("mask", TensorProto.BOOL, (1, 7, 1)),
    ]
    rows = b.add("Gather", b.weights(11, 40), "ids")
    model = b.model(linear(b, b.add("Where", "mask", rows, b.const(0.0)), 40, 33), b.add("Add", "ids", "ids"))
    return model


def opaque_layer() -> Opaque:
    graph = to_graph(mixed_model())
    return next(node.layer for node in graph.nodes if isinstance(node.layer, Opaque))


def test_an_opaque_layer_survives_json() -> None:
    layer = opaque_layer()
    assert layer_from_json(json.loads(json.dumps(layer_to_json(layer)))) == layer
    assert layer.units == 1 and layer.epilogue == () and layer.flops > 0


def recurrent_model() -> onnx.ModelProto:
    """A recurrent operator, whose program has thousands of lines."""
    b = OnnxBuilder(x=(3, 1, 4))
    y = b.add("LSTM", "x", b.weights(1, 20, 4), b.weights(1, 20, 5), hidden_size=5)
    return b.model(linear(b, b.add("Reshape", y, b.const([3, 5], "int64")), 5, 40))


@pytest.mark.parametrize("make", [mixed_model, token_model, recurrent_model])
def test_tvm_reads_a_program_as_it_was_made(make: Callable[[], onnx.ModelProto]) -> None:
    """Where a layer comes from a file, its text is all there is."""
    layers = [node.layer for node in to_graph(make()).nodes if isinstance(node.layer, Opaque)]
    assert layers
    for layer in layers:
        made, read = programs.parsed(layer.program), tvm.script.from_source(layer.program)
        tvm.ir.assert_structural_equal(read, made)


def test_it_has_no_variant_for_the_gpu() -> None:
    layer = opaque_layer()
    family = schedules.family(layer)
    assert family.variants(layer, "gpu", Hardware()) == []
    (variant,) = family.variants(layer, "cpu", Hardware())
    with pytest.raises(ValueError, match="runs on the CPU alone"):
        family.build(layer, "gpu", variant)


def test_operands_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="cannot lie as"):
        Operand((2, 3), (2, 4))
    with pytest.raises(ValueError, match="cannot be those of 4 equal images"):
        Operand((2, 3), (2, 3), channels_first=True, batch=4)
    with pytest.raises(ValueError, match="is a constant"):
        Opaque("Cos", "", (), Operand((1,), (1, 1)))


def test_mixed_networks_and_tensors_of_other_types_are_read_right() -> None:
    assert "opaque" in dict(layers(check_against_onnxruntime(mixed_model())))
    graph = to_graph(token_model())
    assert [graph.tensors[name].dtype for name in graph.inputs] == ["int64", "bool"]
    assert [graph.tensors[name].dtype for name in graph.outputs] == ["float32", "int64"]


@pytest.mark.parametrize("split", ["cpu", "gpu", 0.5])
def test_a_mixed_network_runs_at_any_split(split: str | float, device: Device) -> None:
    model = mixed_model()
    inputs = random_inputs(model)
    module = tvm_coexec.build(model, device=device, split=split)
    (expected,) = run_onnx(model, inputs).values()
    for _ in range(2):
        np.testing.assert_allclose(module(**inputs), expected, rtol=1e-4, atol=1e-5)
    for layer in module.plan.layers:
        assert layer.layer.op != "opaque" or (layer.cpu_units == 1 and layer.gpu is None)


def test_the_plan_says_why_a_layer_is_on_the_cpu(device: Device) -> None:
    plan = plan_graph(to_graph(mixed_model()), device, split="gpu")
    reasons = {layer.reason for layer in plan.layers if layer.layer.op == "opaque"}
    assert reasons == {"cpu alone: the gpu has no kernels for opaque layers"}


def test_tokens_go_in_and_a_file_keeps_them(device: Device, tmp_path) -> None:
    model = token_model()
    inputs = {"ids": np.array([[1, 10, 0, 3, 3, 7, 2]]), "mask": np.array([1, 1, 0, 1, 0, 1, 1], bool).reshape(1, 7, 1)}
    expected = run_onnx(model, inputs)
    module = tvm_coexec.build(model, device=device, split=0.5)
    module.export(tmp_path / "module.tvmx")
    for built in (module, tvm_coexec.load(tmp_path / "module.tvmx", device=device)):
        results = built(**inputs)
        for name, array in expected.items():
            assert results[name].dtype == array.dtype
            np.testing.assert_allclose(results[name], array, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match=r"input 'ids' must be a int64 array of shape \(1, 7\), not int32"):
        module(ids=inputs["ids"].astype("int32"), mask=inputs["mask"])


def test_what_neither_a_layer_nor_relax_computes_is_named() -> None:
    b = OnnxBuilder(x=(4, 5))
    with pytest.raises(ModelError, match=r"^NonZero \(node 'n0'\)"):
        to_graph(b.model(b.add("NonZero", "x")))
    b = OnnxBuilder(x=(4, 5))
    with pytest.raises(ModelError, match=r"^Unique \(node 'n0'\) makes a tensor whose size depends on"):
        to_graph(b.model(b.add("Unique", "x")))


@given(
    rows=st.integers(1, 5),
    channels=st.integers(1, 70),
    dtype=st.sampled_from(["bool", "int8", "int64", "float32", "float16"]),
)
def test_a_view_holds_what_was_written(rows: int, channels: int, dtype: str) -> None:
    spec = TensorSpec("x", (rows, channels), dtype=dtype)
    memory = np.zeros(spec.memory_words, np.float32)
    array = (np.arange(rows * channels).reshape(rows, channels) % 2).astype(dtype)
    spec.view(memory)[:] = array
    np.testing.assert_array_equal(spec.view(memory), array)
    assert spec.row_bytes * rows <= memory.nbytes


def test_a_number_beyond_a_table_reads_its_last_entry(device: Device) -> None:
    b = OnnxBuilder(ids=(1, 3))
    b.inputs[0].type.tensor_type.elem_type = TensorProto.INT64
    table = np.arange(20, dtype=np.float32).reshape(5, 4)
    module = tvm_coexec.build(b.model(b.add("Gather", b.const(table), "ids", axis=0)), device=device, split="cpu")
    np.testing.assert_array_equal(module(ids=np.array([[1, 10**6, 5]])), table[[1, 4, 4]][None])
    assert sum(layer.layer.weight_bytes for layer in module.plan.layers) == 4 * 3 * 4


def test_random_inputs_leave_indices_alone(device: Device) -> None:
    b = OnnxBuilder(x=(7, 40))
    b.inputs.append(helper.make_tensor_value_info("ids", TensorProto.INT64, (1, 7)))
    rows = b.add("Gather", b.weights(11, 40), "ids")
    module = tvm_coexec.build(b.model(b.add("Add", linear(b, "x", 40, 40), rows)), device=device, split="cpu")
    module.randomize_inputs()
    assert np.unique(module.inputs["x"]).size == 7 * 40 and not module.inputs["ids"].any()
