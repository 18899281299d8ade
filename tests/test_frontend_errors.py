"""Each ONNX model that cannot be built ends in one error that names the operator, the node, and the remedy."""

import os
import re
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx_builder import OnnxBuilder, check_against_onnxruntime, layers, linear

from tvm_coexec.errors import ModelError
from tvm_coexec.frontends import to_graph
from tvm_coexec.frontends.onnx.operators import CONVERTERS
from tvm_coexec.frontends.onnx.simplifier import _RANDOM
from tvm_coexec.frontends.onnx.simplify import _HANDLERS, WITHOUT_CONVERTERS
from tvm_coexec.frontends.onnx.values import DOMAINS


def test_operator_that_nothing_imports():
    b = OnnxBuilder(x=(4, 4))
    model = b.model(b.add("Det", b.add("Relu", "x")))
    with pytest.raises(ModelError, match=r"^Det \(node 'n1'\) is an operator that cannot be imported"):
        to_graph(model)
    model.graph.node[1].name = ""
    with pytest.raises(ModelError, match=r"^Det \(output 'v1'\) is an operator that cannot be imported"):
        to_graph(model)


def test_what_nothing_imports_is_listed_for_who_has_not_loaded_tvm():
    from tvm.relax.frontend.onnx import onnx_frontend

    names = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if schema.domain in DOMAINS}
    converted = {*CONVERTERS, *_HANDLERS, *_RANDOM, *onnx_frontend._get_convert_map()}
    assert names - converted == set(WITHOUT_CONVERTERS)


def test_constant_that_the_process_may_not_hold(monkeypatch):
    b = OnnxBuilder(x=(1, 1))
    model = b.model(b.add("Add", "x", b.add("ConstantOfShape", b.const([20_000, 20_000], "int64"))))
    monkeypatch.setattr("resource.getrlimit", lambda which: (1 << 30, 1 << 30))
    with pytest.raises(ModelError, match=r"makes a constant of 400000000 elements, more than memory holds"):
        to_graph(model)


def test_tensors_of_more_axes_than_arrays_have():
    b = OnnxBuilder(x=(1,) * 70)
    with pytest.raises(ModelError, match="tensor 'x' has 70 axes, and arrays of numpy 1 have 32 at most"):
        to_graph(b.model(b.add("Relu", "x")))


@pytest.mark.parametrize(
    ("operator", "others", "attributes"),
    [
        ("MaxPool", [], {"kernel_shape": [20, 20]}),
        ("AveragePool", [], {"kernel_shape": [20, 20]}),
        ("Pad", [[-9] * 8], {}),
    ],
)
def test_results_that_would_be_smaller_than_nothing(operator, others, attributes):
    b = OnnxBuilder(x=(1, 4, 8, 8))
    constants = [b.const(other, "int64") for other in others]
    with pytest.raises(ModelError, match=rf"^{operator} \(.*\) makes a tensor of shape \(.*-1.*\), which there is not"):
        to_graph(b.model(b.add(operator, "x", *constants, **attributes)))


@pytest.mark.parametrize(
    ("operator", "operand", "attributes"),
    [
        ("CumSum", 9, {}),
        ("CumSum", -3, {}),
        ("GatherElements", np.zeros((4, 8)), {"axis": 9}),
        ("ReverseSequence", np.ones(8), {"batch_axis": 9}),
        ("RMSNormalization", np.ones(8, np.float32), {"axis": 3}),
        ("LayerNormalization", np.ones(8, np.float32), {"axis": 3}),
    ],
)
def test_axes_that_onnx_does_not_look_at(operator, operand, attributes):
    b = OnnxBuilder(opset=23, x=(4, 8))
    dtype = "int64" if np.asarray(operand).dtype != np.float32 else "float32"
    with pytest.raises(
        ModelError, match=rf"^{operator} \(node 'n0'\) has the axis -?\d, of a tensor with 2 axes; export"
    ):
        to_graph(b.model(b.add(operator, "x", b.const(operand, dtype), **attributes)))


@pytest.mark.parametrize("shape", [(5,), (4, 1), (1, 2, 3, 4), (2, 2, 1)])
def test_a_slope_that_fits_no_axis(shape):
    b = OnnxBuilder(x=(2, 3, 4))
    message = rf"^PRelu \(node 'n0'\) has a slope of shape {re.escape(str(list(shape)))}, which does not fit"
    with pytest.raises(ModelError, match=message):
        to_graph(b.model(b.add("PRelu", "x", b.const(np.ones(shape)))))


def test_a_second_result_that_no_converter_makes(monkeypatch):
    monkeypatch.setattr("tvm_coexec.frontends.onnx.importer.SECOND_RESULTS", {})
    b = OnnxBuilder(x=(1, 4, 8, 8))
    pooled = b.add("MaxPool", "x", kernel_shape=[2, 2], outputs=2)
    message = r"^the output 'v0.1' of MaxPool \(node 'n0'\) is read, which cannot be made; leave it out"
    with pytest.raises(ModelError, match=message):
        to_graph(b.model(b.add("Cast", f"{pooled}.1", to=1)))


def test_constant_that_no_memory_holds():
    b = OnnxBuilder(x=(4, 4))
    huge = b.add("Expand", b.const([[1.0]], "float32"), b.const([1 << 22, 1 << 22], "int64"))
    model = b.model(b.add("Add", "x", b.add("ReduceMax", huge, b.const([0, 1], "int64"), keepdims=1)))
    with pytest.raises(ModelError, match=r"^Expand \(node 'n0'\) makes a constant of 17592186044416 elements, more"):
        to_graph(model)


def test_operator_of_another_domain():
    b = OnnxBuilder(x=(4, 5))
    model = b.model(b.add("Gelu", "x"))
    model.graph.node[0].domain = "com.acme"
    with pytest.raises(ModelError, match=r"com.acme.Gelu \(node 'n0'\)"):
        to_graph(model)


def test_slice_of_an_activation():
    b = OnnxBuilder(x=(4, 5))
    model = b.model(b.add("Slice", "x", b.const([0], "int64"), b.const([2], "int64")))
    assert layers(check_against_onnxruntime(model)) == [("place", ())]


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (("batch", 5), r"dynamic dimensions: 'x' \[batch, 5\]; fix them with --shape x=batch,5"),
        ((2, "sequence", 5), r"dynamic dimensions: 'x' \[2, sequence, 5\]"),
        ((4, None), r"dynamic dimensions: 'x' \[4, \?\]; fix them with --shape x=4,\?"),
        ((4, 0), r"input 'x' has a dimension of 0 \(axis 1\)"),
    ],
)
def test_shape_of_an_input(shape, message):
    b = OnnxBuilder(x=shape)
    with pytest.raises(ModelError, match=message):
        to_graph(b.model(b.add("Relu", "x")))


@pytest.mark.parametrize(("dtype", "name"), [(TensorProto.FLOAT16, "float16"), (TensorProto.INT64, "int64")])
def test_type_of_an_input(dtype, name):
    b = OnnxBuilder(x=(4, 5))
    b.inputs = [helper.make_tensor_value_info("x", dtype, (4, 5))]
    graph = to_graph(b.model(b.add("Cast", "x", to=TensorProto.FLOAT)))
    assert graph.tensors["x"].dtype == name and layers(graph) == [("opaque", ())]


def test_input_without_a_shape_or_of_another_kind():
    b = OnnxBuilder(x=(4, 5))
    model = b.model(b.add("Relu", "x"))
    model.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(ModelError, match="input 'x' has no shape"):
        to_graph(model)
    model.graph.input[0].type.Clear()
    with pytest.raises(ModelError, match="input 'x' is undefined; supported are float"):
        to_graph(model)


def test_halves_in_the_middle_are_computed_in_float32():
    b = OnnxBuilder(x=(4, 5))
    half = b.add("Cast", "x", to=TensorProto.FLOAT16)
    with pytest.warns(UserWarning, match="float16 .* is computed in float32"):
        graph = to_graph(b.model(b.add("Cast", b.add("Relu", half), to=TensorProto.FLOAT)))
    assert layers(graph) == [("map", ("relu",))]


@pytest.mark.parametrize(
    "build",
    [
        lambda b: b.add("MatMul", b.weights(3, 4), "x"),
        lambda b: b.add("MatMul", "x", b.weights(4)),
        lambda b: b.add("Gemm", "x", b.weights(4, 3), transA=1),
        lambda b: b.add("Div", b.const(1), "x"),
        lambda b: b.add("Pow", "x", b.const(3)),
        lambda b: b.add("Add", "x", b.weights(4, 1)),
        lambda b: b.add("Add", "x", b.weights(2, 1, 4)),
        lambda b: b.add("LayerNormalization", "x", b.weights(4, 4), axis=0),
        lambda b: b.add("LayerNormalization", "x", "vector"),
    ],
)
def test_operands_that_only_relax_takes(build):
    b = OnnxBuilder(x=(4, 4), y=(4, 4), row=(1, 4), vector=(4,))
    out = build(b)
    b.inputs = [value for value in b.inputs if any(value.name in node.input for node in b.nodes)]
    assert "opaque" in dict(layers(check_against_onnxruntime(b.model(out))))


def test_division_of_whole_numbers_by_zero():
    b = OnnxBuilder(x=(4, 4))
    with pytest.raises(ModelError, match=r"^TVM cannot import Div \(node 'n1'\) \(.* divisor value 0"):
        to_graph(b.model(b.add("Div", b.add("Cast", "x", to=TensorProto.INT32), b.const(0, "int32"))))


def test_input_read_in_rows_of_two_lengths():
    b = OnnxBuilder(x=(4, 2, 3))
    outputs = [linear(b, b.add("Flatten", "x"), 6, 4), linear(b, "x", 3, 4)]
    graph = check_against_onnxruntime(b.model(*outputs))
    assert layers(graph) == [("rearrange", ()), ("linear", ("bias",)), ("linear", ("bias",))]


def test_what_only_the_importer_refuses():
    b = OnnxBuilder(x=(4, 5))
    with pytest.raises(ModelError, match=r"TVM cannot import LayerNormalization \(node 'n0'\)"):
        to_graph(b.model(b.add("LayerNormalization", "x", b.weights(1, 5))))


def test_statistics_of_layer_norm():
    b = OnnxBuilder(x=(4, 5))
    out = b.add("LayerNormalization", "x", b.weights(5), outputs=2)
    check_against_onnxruntime(b.model(out, f"{out}.1"))


def test_dropout_in_training_and_its_mask():
    b = OnnxBuilder(x=(4, 5))
    with pytest.raises(ModelError, match=r"^Dropout \(node 'n0'\) may be in training mode"):
        to_graph(b.model(b.add("Dropout", "x", b.const(0.5), b.const(True, "bool"))))


def test_softmax_of_old_opsets_over_several_axes():
    b = OnnxBuilder(opset=11, x=(2, 3, 4))
    graph = check_against_onnxruntime(b.model(b.add("Softmax", b.add("Relu", "x"), axis=1)))
    assert [kind for kind, _ in layers(graph)] == ["map", "rearrange", "softmax"]


def test_an_opset_that_nobody_knows_yet():
    b = OnnxBuilder(opset=99, x=(4, 5))
    with pytest.raises(ModelError, match="opset 99, and the package onnx here knows those up to"):
        to_graph(b.model(b.add("Relu", "x")))


def test_oldest_opset():
    b = OnnxBuilder(opset=6, x=(4, 5))
    with pytest.raises(ModelError, match="opset 6; opsets from 7 on are supported"):
        to_graph(b.model(b.add("Relu", "x")))


def test_output_that_is_a_constant():
    b = OnnxBuilder(x=(4, 5))
    out = b.add("Relu", "x")
    check_against_onnxruntime(b.model(out, b.add("Identity", b.weights(4))))
    b = OnnxBuilder()
    with pytest.raises(ModelError, match="output 'v0' is a constant of a model without inputs"):
        to_graph(b.model(b.add("Identity", b.weights(4))))


def test_model_that_breaks_the_rules():
    b = OnnxBuilder(x=(4, 5))
    model = b.model(b.add("Relu", "x"))
    model.graph.node[0].input[0] = "nowhere"
    with pytest.raises(ModelError, match=r"the model breaks the rules of ONNX .*nowhere"):
        to_graph(model)


def test_weights_of_another_type():
    b = OnnxBuilder(x=(4, 5))
    with pytest.raises(ModelError, match="the model breaks the rules of ONNX"):
        to_graph(b.model(b.add("MatMul", "x", b.const(np.ones((5, 3)), "float64"))))


def test_models_that_are_no_whole_ones():
    b = OnnxBuilder(x=(4, 5))
    model = b.model(linear(b, "x", 5, 64))
    model.graph.input[0].type.tensor_type.elem_type = 65
    with pytest.raises(ModelError, match="input 'x' is of type 65, which ONNX does not know"):
        to_graph(model)
    model = b.model("v1")
    del model.graph.output[:]
    with pytest.raises(ModelError, match="the model has no outputs"):
        to_graph(model)
    model = b.model("v1")
    model.graph.initializer[0].raw_data += bytes(4)
    with pytest.raises(ModelError, match="the constant 'c0' is damaged"):
        to_graph(model)


@pytest.mark.parametrize("name", [b"a node", b"an input", b"an output"])
def test_names_that_are_no_utf8(name, tmp_path):
    node = helper.make_node("Relu", ["an input"], ["an output"], name="a node")
    infos = [helper.make_tensor_value_info(one, TensorProto.FLOAT, [4, 8]) for one in ("an input", "an output")]
    graph = helper.make_graph([node], "g", infos[:1], infos[1:])
    content = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString()
    path = tmp_path / "model.onnx"
    path.write_bytes(content.replace(name, b"\xff\xfe" + name[2:]))
    with pytest.raises(ModelError, match="is no UTF-8; export it again"):
        to_graph(path)


def test_missing_empty_and_damaged_files(tmp_path, monkeypatch):
    with pytest.raises(ModelError, match=r"there is no model file '.*absent.onnx'; give the path"):
        to_graph(tmp_path / "absent.onnx")
    with pytest.raises(ModelError, match="' is no file; give the path of an ONNX file"):
        to_graph(str(tmp_path))
    path = tmp_path / "model.onnx"
    path.touch()
    with monkeypatch.context() as patched:
        patched.setattr(os, "access", lambda *_: False)
        with pytest.raises(ModelError, match=r"model.onnx cannot be read \(Permission denied\); check the path, and"):
            to_graph(path)
    path.write_bytes(b"")
    with pytest.raises(ModelError, match="the model has no nodes"):
        to_graph(path)
    path.write_bytes(b"\x08\xff\xff not a model")
    with pytest.raises(ModelError, match=r"cannot read '.*model.onnx' as an ONNX model"):
        to_graph(path)
    b = OnnxBuilder(x=(4, 5))
    data = b.model(linear(b, "x", 5, 64)).SerializeToString()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match=r"cannot read '.*model.onnx' as an ONNX model"):
        to_graph(path)


def test_missing_external_weights(tmp_path):
    b = OnnxBuilder(x=(4, 6))
    path = tmp_path / "model.onnx"
    onnx.save(
        b.model(linear(b, "x", 6, 300)), path, save_as_external_data=True, location="model.data", size_threshold=1
    )
    (tmp_path / "model.data").unlink()
    with pytest.raises(ModelError, match=r"cannot read '.*model.onnx' as an ONNX model \(.*model.data"):
        to_graph(path)


def test_models_of_another_kind():
    with pytest.raises(ModelError, match="cannot build from a dict; give the path of an ONNX file"):
        to_graph({})  # type: ignore[arg-type]


def test_onnx_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.delitem(sys.modules, "tvm_coexec.frontends.onnx.file", raising=False)
    with pytest.raises(ModelError, match=r"needs the package onnx; install tvm-coexec\[onnx\]"):
        to_graph("model.onnx")


@pytest.mark.parametrize(
    "entries",
    [
        {"location": "weights.bin", "offset": "0", "length": "256"},
        {"location": "weights.bin", "offset": "abc", "length": "10"},
        {"location": "weights.bin", "offset": "0", "length": "-1"},
        {"location": "weights.bin", "offset": "99999999999999999999999", "length": "10"},
        {"location": "nowhere.bin", "offset": "0", "length": "10"},
        {"location": "../weights.bin", "offset": "0", "length": "10"},
        {"location": "/etc/passwd", "offset": "0", "length": "10"},
        {"location": "pipe.bin", "offset": "0", "length": "256"},
        {"location": "", "offset": "0", "length": "256"},
        {},
    ],
    ids=str,
)
def test_weights_that_are_not_beside_the_file_as_it_says(entries, tmp_path):
    b = OnnxBuilder(x=(4, 8))
    model = b.model(b.add("MatMul", "x", b.const(np.ones((8, 8), np.float32))))
    (tmp_path / "weights.bin").write_bytes(bytes(10))
    os.mkfifo(tmp_path / "pipe.bin")
    (weights,) = model.graph.initializer
    weights.ClearField("raw_data")
    weights.data_location = onnx.TensorProto.EXTERNAL
    for key, value in entries.items():
        weights.external_data.add(key=key, value=value)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(
        ModelError, match=r"cannot read .*model\.onnx' as an ONNX model \(.*\); export it again"
    ) as caught:
        to_graph(path)
    assert "\n" not in str(caught.value)
