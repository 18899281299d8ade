"""What ONNX nodes' attributes, and inputs' types, may be: what else a file says is refused in a line."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, defs, helper, numpy_helper
from onnx_builder import OnnxBuilder, check_against_onnxruntime

from tvm_coexec.errors import ModelError
from tvm_coexec.frontends import to_graph
from tvm_coexec.frontends.onnx.attributes import WORDS


@pytest.mark.parametrize(
    ("operator", "attributes", "message"),
    [
        ("Softmax", {"axis": 2**62}, "has 4611686018427387904 as its attribute 'axis', beyond 2147483647"),
        ("Concat", {"axis": -(2**62)}, "has -4611686018427387904 as its attribute 'axis'"),
        ("MaxPool", {"kernel_shape": [2**31, 1]}, "has 2147483648 as its attribute 'kernel_shape'"),
        ("LRN", {"size": -3}, "sums over -3 of 4 channels; export the model with an odd number"),
        ("LRN", {"size": 4}, "sums over 4 of 4 channels"),
        ("LeakyRelu", {"alpha": np.inf}, "has inf as its attribute 'alpha', which has to be finite; export"),
        ("Selu", {"gamma": np.nan}, "has nan as its attribute 'gamma'"),
        ("LpNormalization", {"axis": 4}, "has the axis 4, of a tensor with 4 axes"),
    ],
)
def test_numbers_that_attributes_cannot_be(operator, attributes, message):
    b = OnnxBuilder(x=(1, 4, 8, 8))
    with pytest.raises(ModelError, match=rf"^{operator} \(node 'n0'\) {message}"):
        to_graph(b.model(b.add(operator, "x", **attributes)))


@pytest.mark.parametrize(
    ("attributes", "told"),
    [
        ({"pads": [10**6] * 4}, r"of shape \(1, 4, 2000006, 2000006\) has more than"),
        ({"pads": [-1] * 4}, "breaks the rules of ONNX .*pads"),
        ({"strides": [0, 0]}, "breaks the rules of ONNX .*strides"),
        ({"dilations": [2**31] * 2}, "has 2147483648 as its attribute 'dilations'"),
        ({"group": 2}, "Conv .*the weights' second axis"),
        ({"group": 0}, "Conv .* number of groups"),
    ],
)
def test_convolutions_that_there_are_not(attributes, told):
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], name="n", **attributes)]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3, 8, 8))
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 4, "a", "b"))
    weights = [numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "w")]
    graph = helper.make_graph(nodes, "test", [given], [result], weights)
    with pytest.raises(ModelError, match=told) as refused:
        to_graph(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9))
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(("kind", "told"), [(999, "of type 999, which ONNX does not know"), (8, "string")])
def test_types_of_inputs_that_no_module_has(kind, told):
    b = OnnxBuilder(x=(4, 8))
    model = b.model(b.add("Identity", "x"))
    model.graph.input[0].type.tensor_type.elem_type = kind
    with pytest.raises(ModelError, match=f"^input 'x' is {told}; supported are"):
        to_graph(model)


def test_an_equation_is_no_code(tmp_path):
    b = OnnxBuilder(x=(4, 8))
    path = tmp_path / "written"
    product = b.add("Einsum", "x", "x", equation=f"ij,ij->ij')\n    open({str(path)!r}, 'w')\n#")
    with pytest.raises(ModelError, match=r"breaks the rules of ONNX .*Einsum"):
        to_graph(b.model(product))
    assert not path.exists()


def test_bounds_may_be_any_whole_number():
    b = OnnxBuilder(opset=9, x=(4, 5))
    check_against_onnxruntime(b.model(b.add("Slice", "x", axes=[0], starts=[1], ends=[2**63 - 1])))
    b = OnnxBuilder(x=(4, 5))
    shape = b.add("Shape", "x", start=-(2**63), end=2**63 - 1)
    check_against_onnxruntime(b.model(b.add("Reshape", b.add("Relu", "x"), shape)))


def of_a_function(nodes, shape, result, **attributes):
    """A model that calls a function of its own, which makes ``d`` of ``a`` by some nodes."""
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    function = helper.make_function("own", "Own", ["a"], ["d"], nodes, opsets[:1], list(attributes))
    call = helper.make_node("Own", ["x"], ["y"], domain="own", **attributes)
    kinds = (("x", TensorProto.FLOAT, shape), ("y", TensorProto.FLOAT, result))
    values = [helper.make_tensor_value_info(*kind) for kind in kinds]
    graph = helper.make_graph([call], "test", values[:1], values[1:])
    return helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=9)


@pytest.mark.parametrize(("operator", "attribute"), [("Constant", "value_int"), ("Softmax", "axis")])
def test_numbers_that_a_function_takes_are_for_its_nodes_to_judge(operator, attribute):
    node = helper.make_node(operator, ["a"][: operator == "Softmax"], ["b"])
    node.attribute.append(onnx.AttributeProto(name=attribute, type=onnx.AttributeProto.INT, ref_attr_name="big"))
    cast = helper.make_node("Cast", ["b"], ["c"], to=TensorProto.FLOAT)
    nodes = [node, cast, helper.make_node("Mul", ["a", "c"], ["d"])]
    model = of_a_function(nodes, (4, 5), (4, 5), big=2**40)
    if operator == "Constant":
        check_against_onnxruntime(model)
    else:
        with pytest.raises(ModelError, match=r"Softmax .* has 1099511627776 as its attribute 'axis', beyond"):
            to_graph(model)


@pytest.mark.parametrize(
    ("operator", "attributes", "told"),
    [
        ("MaxPool", {"kernel_shape": [2, 2], "auto_pad": b"\xff\xfe"}, r"'\\\\xff\\\\xfe' as its attribute 'auto_pad'"),
        ("MaxPool", {"kernel_shape": [2, 2], "auto_pad": "valid"}, "'valid' as its attribute 'auto_pad'"),
        ("DepthToSpace", {"blocksize": 2, "mode": "RCD"}, "'RCD' as its attribute 'mode', which is none of DCR, CRD"),
        ("Gelu", {"approximate": ""}, "'' as its attribute 'approximate'"),
        ("Pad", {"mode": "n" * 70_000}, r"'n+\.\.\.n+' as its attribute 'mode'"),
    ],
)
def test_words_that_onnx_does_not_know(operator, attributes, told):
    b = OnnxBuilder(x=(1, 4, 8, 8), opset=20)
    operands = [b.const([1] * 8, "int64")] if operator == "Pad" else []
    with pytest.raises(ModelError, match=rf"^{operator} \(node 'n0'\) has {told}.*; export the model again$"):
        to_graph(b.model(b.add(operator, "x", *operands, **attributes)))


def test_a_mode_of_resizing_that_there_is_not():
    b = OnnxBuilder(x=(1, 1, 4, 4))
    resized = b.add("Resize", "x", "", b.const(np.float32([1, 1, 2, 2])), mode="NEAREST")
    message = r"^Resize \(node 'n0'\) has 'NEAREST' as its attribute 'mode', which is none of nearest, linear, cubic;"
    with pytest.raises(ModelError, match=message):
        to_graph(b.model(resized))


def test_a_word_that_a_function_takes_is_for_its_nodes_to_judge():
    node = helper.make_node("DepthToSpace", ["a"], ["b"], blocksize=2)
    node.attribute.append(onnx.AttributeProto(name="mode", type=onnx.AttributeProto.STRING, ref_attr_name="order"))
    for order, is_known in (("CRD", True), ("RCD", False)):
        model = of_a_function([node, helper.make_node("Relu", ["b"], ["d"])], (1, 4, 2, 2), (1, 1, 4, 4), order=order)
        if is_known:
            check_against_onnxruntime(model)
        else:
            with pytest.raises(ModelError, match=r"^DepthToSpace .* has 'RCD' as its attribute 'mode'"):
                to_graph(model)


def test_what_onnx_takes_where_nothing_is_said_is_known():
    of_onnx = {schema.name: schema for schema in defs.get_all_schemas_with_history() if schema.domain == ""}
    for (operator, name), words in WORDS.items():
        default = defs.get_schema(operator, of_onnx[operator].since_version, "").attributes[name].default_value
        assert default.type != onnx.AttributeProto.STRING or default.s.decode() in words, (operator, name)
