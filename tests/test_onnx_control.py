"""Control flow, functions, sequences and shape arithmetic of ONNX models: resolved before layers are formed."""

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx_builder import OnnxBuilder, check_against_onnxruntime, layers

from tvm_coexec.api import build_graph
from tvm_coexec.errors import ModelError
from tvm_coexec.frontends import to_graph
from tvm_coexec.runtime.device import Device
from tvm_coexec.verification import NetworkCheck


def value(name: str, shape: tuple[int | str, ...] | None, dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def body(nodes: list[onnx.NodeProto], inputs: list[Any], outputs: list[Any], name: str = "body") -> onnx.GraphProto:
    return helper.make_graph(nodes, name, inputs, outputs)


def branches() -> dict[str, onnx.GraphProto]:
    return {
        f"{name}_branch": body([helper.make_node(op, ["x"], ["r"])], [], [value("r", (4, 5))], name)
        for name, op in (("then", "Relu"), ("else", "Sigmoid"))
    }


def test_a_branch_is_chosen_by_a_shape() -> None:
    b = OnnxBuilder(x=(4, 5))
    size = b.add("Gather", b.add("Shape", "x"), b.const(0, "int64"))
    graph = check_against_onnxruntime(b.model(b.add("If", b.add("Equal", size, b.const(4, "int64")), **branches())))
    assert layers(graph) == [("map", ("relu",))]


def test_both_branches_run_where_the_model_computes_which_is_taken() -> None:
    b = OnnxBuilder(x=(4, 5))
    total = b.add("ReduceSum", "x", keepdims=0)
    check_against_onnxruntime(b.model(b.add("If", b.add("Less", total, b.const(0.0)), **branches())))


def branches_for_lengths() -> dict[str, onnx.GraphProto]:
    """Sums of groups of four, and of groups of three, which 8 numbers do not have."""
    made = {}
    for name, size in (("then", 4), ("else", 3)):
        nodes = [
            helper.make_node("Constant", [], ["any"], value_ints=[-1]),
            helper.make_node("Constant", [], ["size"], value_ints=[size]),
            helper.make_node("Concat", ["any", "size"], ["shape"], axis=0),
            helper.make_node("Reshape", ["x", "shape"], ["groups"]),
            helper.make_node("ReduceSum", ["groups"], ["r"], keepdims=0),
        ]
        made[f"{name}_branch"] = body(nodes, [], [value("r", ())], name)
    return made


def test_a_branch_that_is_none_for_the_shapes_given_makes_nan(device: Device) -> None:
    """Models that hear sounds at two rates, of which a length fits one alone."""
    b = OnnxBuilder()
    b.inputs += [value("x", ("samples",)), value("rate", (), TensorProto.INT64)]
    model = b.model(b.add("If", b.add("Equal", "rate", b.const(16000, "int64")), **branches_for_lengths()))
    with pytest.warns(UserWarning, match=r"^If \(node '\w+'\) gives NaN where its else_branch would be taken"):
        graph = to_graph(model, {"x": (8,)})
    module = build_graph(graph, device, split="cpu")
    x = np.arange(8, dtype=np.float32)
    assert module(x, np.array(16000)) == x.sum()
    assert np.isnan(module(x, np.array(8000)))
    verdict = NetworkCheck(model, graph).verdict(module)
    assert verdict.agrees and verdict.finite_share == 1


def test_branches_none_of_which_fits_the_shapes_are_refused() -> None:
    b = OnnxBuilder()
    b.inputs.append(value("x", ("samples",)))
    total = b.add("ReduceSum", "x", keepdims=0)
    model = b.model(b.add("If", b.add("Less", total, b.const(0.0)), **branches_for_lengths()))
    with pytest.raises(ModelError, match="breaks the rules of ONNX"):
        to_graph(model, {"x": (7,)})


def loop_body(condition: str) -> onnx.GraphProto:
    """Doubles its state, and lists what it was; goes on while the state's sum is below 100, or always."""
    nodes = [
        helper.make_node("Add", ["a", "a"], ["next"]),
        helper.make_node("ReduceSum", ["next"], ["sum"], keepdims=0),
        helper.make_node("Constant", [], ["most"], value_float=100.0),
        helper.make_node("Less", ["sum", "most"], ["below"]),
        helper.make_node("Identity", ["goes_on"], ["always"]),
        helper.make_node("Identity", ["a"], ["listed"]),
    ]
    inputs = [value("i", (), TensorProto.INT64), value("goes_on", (), TensorProto.BOOL), value("a", (4, 5))]
    outputs = [value(condition, (), TensorProto.BOOL), value("next", (4, 5))]
    return body(nodes, inputs, outputs + ([value("listed", (4, 5))] if condition == "always" else []))


@pytest.mark.parametrize("count", [1, 3])
def test_a_loop_of_constant_length_is_unrolled(count: int) -> None:
    b = OnnxBuilder(x=(4, 5))
    out = b.add("Loop", b.const(count, "int64"), b.const(True, "bool"), "x", body=loop_body("always"), outputs=2)
    check_against_onnxruntime(b.model(out, f"{out}.1"))


def test_a_loop_that_the_model_ends_changes_nothing_after_its_end() -> None:
    b = OnnxBuilder(x=(4, 5))
    positive = b.add("Abs", "x")
    b.add("Loop", b.const(8, "int64"), b.const(True, "bool"), positive, body=loop_body("below"))
    check_against_onnxruntime(b.model("v1"))


def test_a_loop_of_which_only_the_model_knows_the_end_is_named() -> None:
    b = OnnxBuilder(x=(4, 5))
    with pytest.raises(ModelError, match=r"^Loop \(node 'n1'\) runs as often as the model computes"):
        to_graph(b.model(b.add("Loop", "", "", b.add("Abs", "x"), body=loop_body("below"))))


def test_a_scan_runs_along_any_axis_and_backwards() -> None:
    nodes = [helper.make_node("Add", ["s", "row"], ["next"]), helper.make_node("Mul", ["next", "row"], ["out"])]
    graph = body(nodes, [value("s", (4,)), value("row", (4,))], [value("next", (4,)), value("out", (4,))])
    b = OnnxBuilder(x=(4, 3))
    out = b.add(
        "Scan", b.const(np.ones(4)), "x", body=graph, num_scan_inputs=1, scan_input_axes=[1],
        scan_input_directions=[1], scan_output_axes=[1], outputs=2,
    )  # fmt: skip
    check_against_onnxruntime(b.model(out, f"{out}.1"))


def test_a_loop_without_a_known_number_of_results_is_named() -> None:
    b = OnnxBuilder(x=(4, 5))
    b.inputs.append(value("n", (), TensorProto.INT64))
    with pytest.raises(ModelError, match=r"^Loop \(node 'n0'\) has a number of iterations that the model computes"):
        to_graph(b.model(b.add("Loop", "n", b.const(True, "bool"), "x", body=loop_body("always"), outputs=2)))


def test_sequences_are_lists_while_the_model_is_read() -> None:
    b = OnnxBuilder(x=(6, 4))
    parts = b.add("SplitToSequence", "x", b.const([1, 2, 3], "int64"))
    grown = b.add("SequenceInsert", parts, b.add("Relu", "x"), b.const(0, "int64"))
    shorter = b.add("SequenceErase", grown, b.const(1, "int64"))
    last = b.add("SequenceAt", shorter, b.const(-1, "int64"))
    check_against_onnxruntime(b.model(b.add("ConcatFromSequence", shorter, axis=0), last))


def test_functions_of_the_model_and_of_onnx_are_expanded() -> None:
    b = OnnxBuilder(x=(2, 6, 5))
    b.opset = 21
    out = b.add("GroupNormalization", b.add("Twice", "x"), b.weights(6), b.weights(6), num_groups=3)
    b.nodes[0].domain = "own"
    graph = helper.make_graph(b.nodes, "g", b.inputs, [value(out, (2, 6, 5))], b.constants)
    twice = helper.make_function(
        "own", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 21)]
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("own", 1)]
    check_against_onnxruntime(helper.make_model(graph, opset_imports=opsets, functions=[twice], ir_version=10))


def test_shape_arithmetic_is_folded() -> None:
    b = OnnxBuilder(x=(2, 3, 4))
    shape = b.add("Cast", b.add("Shape", b.add("Relu", "x")), to=TensorProto.INT32)
    first = b.add("Slice", shape, b.const([0], "int64"), b.const([1], "int64"))
    counted = b.add("Range", b.const(0, "int32"), b.add("Squeeze", first), b.const(1, "int32"))
    rows = b.add("Concat", first, b.add("Mul", b.const([-1], "int32"), b.add("Slice", counted, *b_bounds(b))), axis=0)
    check_against_onnxruntime(b.model(b.add("Reshape", "x", b.add("Cast", rows, to=TensorProto.INT64))))


def b_bounds(b: OnnxBuilder) -> tuple[str, str]:
    return b.const([1], "int64"), b.const([2], "int64")


def test_random_numbers_and_sizes_that_are_computed_are_named() -> None:
    b = OnnxBuilder(x=(4, 5))
    with pytest.raises(ModelError, match=r"^RandomNormalLike \(node 'n0'\) makes random numbers"):
        to_graph(b.model(b.add("RandomNormalLike", "x")))
    b = OnnxBuilder(x=(4, 5))
    with pytest.raises(ModelError, match=r"^NonZero \(node 'n0'\) makes a tensor whose size depends on"):
        to_graph(b.model(b.add("NonZero", "x")))
