"""The check of whole networks: that it sees what is wrong, names the node, and is silent where all is right."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnx_builder import OnnxBuilder, linear
from onnx_to_tflite import convert
from reference import evaluate
from tflite_writer import Writer

import tvm_coexec
from tvm_coexec import api, cli
from tvm_coexec.api import build_graph
from tvm_coexec.errors import KernelError
from tvm_coexec.frontends import ReadModel, read_model, to_graph
from tvm_coexec.graph import Graph
from tvm_coexec.runtime.device import Device
from tvm_coexec.verification import NetworkCheck
from tvm_coexec.verification.differences import difference
from tvm_coexec.verification.evaluators import evaluator_for
from tvm_coexec.verification.inputs import nudged, random_inputs
from tvm_coexec.verification.onnx_evaluators import OnnxRuntimeEvaluator, ReferenceEvaluator
from tvm_coexec.verification.recurrent_layouts import with_steps_first

pytestmark = pytest.mark.one_runtime


def image_network() -> onnx.ModelProto:
    builder = OnnxBuilder(x=(1, 3, 8, 8))
    first = builder.add("Relu", builder.add("Conv", "x", builder.weights(40, 3, 3, 3), pads=[1, 1, 1, 1]))
    second = builder.add("Conv", first, builder.weights(40, 40, 1, 1))
    pooled = builder.add("GlobalAveragePool", builder.add("Add", second, first))
    flat = builder.add("Flatten", pooled)
    return builder.model(builder.add("Softmax", linear(builder, flat, 40, 7)))


def spoilt(graph: Graph, node_name: str) -> Graph:
    """The graph with one of a node's weights changed."""
    nodes = []
    for node in graph.nodes:
        params = {name: array.copy() for name, array in node.params.items()}
        if node.name == node_name:
            params["weights"].reshape(-1)[5] += 3
        nodes.append(replace(node, params=params))
    return replace(graph, nodes=nodes)


def test_a_right_network_is_found_right(device: Device) -> None:
    model = image_network()
    graph = to_graph(model)
    check = NetworkCheck(model, graph)
    for split in ("cpu", "gpu", 0.5):
        verdict = check.verdict(build_graph(graph, device, split=split))
        assert verdict.agrees and 0 <= verdict.largest < 1e-5 and verdict.finite_share == 1
        assert str(verdict).startswith("everything agrees with ONNX Runtime")


@pytest.mark.parametrize(("spoilt_node", "value"), [("n0", "v1"), ("n2", "v3"), ("n6", "v7")])
def test_the_first_node_that_differs_is_named(device: Device, spoilt_node: str, value: str) -> None:
    model = image_network()
    graph = spoilt(to_graph(model), spoilt_node)
    verdict = NetworkCheck(model, graph).verdict(build_graph(graph, device, split=0.5))
    assert not verdict.agrees and len(verdict.findings) == 2
    assert "output 'v8' differs from ONNX Runtime" in verdict.findings[0]
    assert f"is {value!r}, of node {spoilt_node!r}" in verdict.findings[1]


def spoil_what_is_read(monkeypatch: pytest.MonkeyPatch, node: str) -> None:
    """Let every graph that is formed from now on have one node with other weights."""

    def read_and_spoil(*arguments: Any) -> ReadModel:
        read = read_model(*arguments)
        return ReadModel(lambda: spoilt(read.to_graph(), node))

    monkeypatch.setattr(api, "read_model", read_and_spoil)


def test_build_raises_what_the_check_finds(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    tvm_coexec.build(image_network(), device=device, split=0.5, check=True)
    spoil_what_is_read(monkeypatch, "n2")
    with pytest.raises(KernelError, match=r"output 'v8' differs .* of node 'n2' \(conv2d\).*; do not use the module"):
        tvm_coexec.build(image_network(), device=device, split=0.5, check=True)


def test_the_command_says_what_agrees(device: Device, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(image_network(), path)
    assert cli.main(["check", str(path), "--device", device.info.name]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["split cpu", "split gpu", "split 0.5"]
    assert all("everything agrees with ONNX Runtime" in line for line in lines)


def test_the_command_fails_where_something_differs(
    device: Device, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(image_network(), path)
    spoil_what_is_read(monkeypatch, "n2")
    assert cli.main(["check", str(path), "--device", device.info.name, "--split", "0.5"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all(line.startswith("split 0.5: ") for line in lines)
    assert "'v3', of node 'n2'" in lines[1]


def test_a_tflite_file_is_compared_with_litert(device: Device, tmp_path: Path) -> None:
    source, path = tmp_path / "model.onnx", tmp_path / "model.tflite"
    builder = OnnxBuilder(x=(1, 3, 8, 8))
    builder.add("Relu", builder.add("Conv", "x", builder.weights(40, 3, 3, 3), builder.weights(40)))
    onnx.save(builder.model("v1"), source)
    path.write_bytes(convert(source))
    graph = to_graph(path)
    check = NetworkCheck(path, graph)
    verdict = check.verdict(build_graph(graph, device, split=0.5))
    assert verdict.agrees and verdict.engine.startswith("LiteRT")
    assert not check.verdict(build_graph(spoilt(graph, graph.nodes[0].name), device, split=0.5)).agrees


def test_a_relax_module_is_compared_with_its_own_compilation(device: Device) -> None:
    from tvm.relax.frontend.onnx import from_onnx

    module = from_onnx(image_network())
    graph = to_graph(module)
    check = NetworkCheck(module, graph)
    verdict = check.verdict(build_graph(graph, device, split=0.5))
    assert verdict.agrees and verdict.engine.startswith("TVM")
    first = next(node.name for node in graph.nodes if node.layer.op == "conv2d")
    verdict = check.verdict(build_graph(spoilt(graph, first), device, split=0.5))
    assert "no inner value can be compared with TVM" in verdict.findings[-1]


def test_a_program_of_torch_is_compared_with_itself(device: Device) -> None:
    torch = pytest.importorskip("torch", reason="needs torch, to export a program")
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 40, 3), torch.nn.ReLU(), torch.nn.Conv2d(40, 8, 3)).eval()
    program = torch.export.export(network, (torch.randn(1, 3, 8, 8),))
    graph = to_graph(program)
    verdict = NetworkCheck(program, graph).verdict(build_graph(graph, device, split=0.5))
    assert verdict.agrees and verdict.engine.startswith("torch")
    first = graph.nodes[0]
    graph = spoilt(graph, first.name)
    verdict = NetworkCheck(program, graph).verdict(build_graph(graph, device, split=0.5))
    assert f"of node {first.name!r}" in verdict.findings[-1]


def test_both_evaluators_of_onnx_see_the_same_inner_values() -> None:
    model = image_network()
    inputs = random_inputs(to_graph(model), {}, seed=3)
    runtime, reference = OnnxRuntimeEvaluator(model), ReferenceEvaluator(model)
    wanted = list(runtime.values)
    assert wanted == list(reference.values) and len(wanted) == len(model.graph.node)
    expected = reference.run(inputs, wanted)
    for name, array in runtime.run(inputs, wanted).items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("operator", ["MatMulInteger", "ConvInteger"])
def test_onnx_runtime_limits_no_sums_of_products_of_bytes(operator: str) -> None:
    """On x86-64 without VNNI, it would limit 255 * 127 + 255 * 127 to 16 bits."""
    is_product = operator == "MatMulInteger"
    shape, weights = ((4, 8), (8, 32)) if is_product else ((1, 8, 3, 3), (32, 8, 2, 2))
    b = OnnxBuilder(opset=14, x=shape)
    numbers = b.add("DynamicQuantizeLinear", "x", outputs=3)
    whole = b.add(operator, numbers, b.const(np.full(weights, 127), "int8"), f"{numbers}.2")
    model = b.model(b.add("Cast", whole, to=TensorProto.FLOAT))
    results = OnnxRuntimeEvaluator(model).run([np.ones(shape, np.float32)], [whole])
    assert set(results[whole].flat) == {255 * 127 * (8 if is_product else 8 * 2 * 2)}


def test_without_onnx_runtime_the_reference_evaluator_judges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert evaluator_for(image_network()).engine.startswith("ONNX's reference evaluator")


def test_a_sigmoid_near_zero_is_judged_by_what_onnx_runtime_knows_of_it(device: Device) -> None:
    """It is off by as much as its approximation of all sigmoids is, which is a part of one that is near zero."""
    b = OnnxBuilder(x=(1, 64))
    model = b.model(b.add("Sigmoid", b.add("Add", b.add("Mul", "x", b.const(1e-3)), b.const(-14.3))))
    graph = to_graph(model)
    check = NetworkCheck(model, graph)
    module = build_graph(graph, device, split="cpu")
    exact = 1 / (1 + np.exp(14.3 - 1e-3 * check.arrays[0].astype(np.float64)))
    np.testing.assert_allclose(module(*check.arrays), exact, rtol=1e-5)
    assert check.verdict(module).agrees


@pytest.mark.parametrize("operator", ["LSTM", "GRU", "RNN"])
def test_onnx_runtime_judges_recurrent_operators_whose_sequences_come_first(operator: str) -> None:
    """It has no kernels of this layout, and ONNX's reference evaluator ignores activations and bounds."""
    gates, functions = {"LSTM": (4, 3), "GRU": (3, 2), "RNN": (1, 1)}[operator]
    b = OnnxBuilder(opset=14, x=(2, 5, 3))
    weights = [b.weights(1, 4 * gates, 3), b.weights(1, 4 * gates, 4), b.weights(1, 8 * gates)]
    states = [b.weights(2, 1, 4) for _ in range(2 if operator == "LSTM" else 1)]
    values = {"activations": ["HardSigmoid", "Softsign", "Relu"][:functions], "clip": 0.4, "hidden_size": 4}
    count = len(states) + 1
    out = b.add(operator, "x", *weights, "", *states, layout=1, outputs=count, **values)
    model = b.model(out, *(f"{out}.{position}" for position in range(1, count)))
    graph = to_graph(model)
    evaluator = evaluator_for(model)
    assert evaluator.engine.startswith("ONNX Runtime")
    inputs = random_inputs(graph, {}, seed=1)
    expected = evaluator.run(inputs, evaluator.outputs)
    found = evaluate(graph, {"x": inputs[0]}).values()
    for result, array in zip(found, expected.values(), strict=True):
        np.testing.assert_allclose(result, array, rtol=1e-4, atol=1e-5)


def test_a_model_that_onnx_runtime_takes_is_not_copied() -> None:
    model = image_network()
    assert with_steps_first(model) is model


def test_numbers_of_table_entries_stay_within_their_table() -> None:
    builder = OnnxBuilder()
    builder.inputs.append(helper.make_tensor_value_info("token", TensorProto.INT64, [2, 50]))
    row = builder.add("Gather", builder.weights(6, 8), builder.add("Unsqueeze", "token", builder.const([2], "int64")))
    model = builder.model(builder.add("Relu", row))
    (tokens,) = random_inputs(to_graph(model), evaluator_for(model).choices, seed=0)
    assert set(tokens.reshape(-1)) == set(range(6))


@pytest.mark.parametrize(
    ("dtype", "shape", "constant", "choices"),
    [
        ("int64", (), 16000, [16000]),
        ("int64", (1,), 0, [0, 1]),
        ("int64", (2, 50), 0, [0, 1]),  # a mask, of which all would be left out
        ("int64", ("batch", 50), 7, [0, 1, 7]),
        ("uint8", (2, 50), 255, None),
        ("bool", (2, 50), False, None),
        ("float32", (2, 50), -np.inf, None),
    ],
)
def test_inputs_that_are_compared_with_a_constant_are_others_too(
    dtype: str, shape: tuple[int | str, ...], constant: float, choices: list[int] | None
) -> None:
    builder = OnnxBuilder()
    elements = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    builder.inputs.append(helper.make_tensor_value_info("x", elements, shape))
    equal = builder.add("Equal", "x", builder.const(constant, dtype))
    evaluator = evaluator_for(builder.model(builder.add("Cast", equal, to=TensorProto.FLOAT)))
    assert evaluator.choices.get("x") == choices


floats = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)  # a share of the least of these is nothing
arrays: Any = st.lists(floats, min_size=1, max_size=30).map(lambda values: np.array(values, np.float32))


@given(arrays)
def test_what_is_equal_does_not_differ(array: np.ndarray) -> None:
    apart = difference(array, array.copy())
    assert apart.size == 0 and apart.is_allowed


@given(arrays, st.integers(0, 29), st.floats(2e-3, 1e3))
def test_a_large_difference_is_found_where_it_is(array: np.ndarray, index: int, share: float) -> None:
    index %= len(array)
    step = np.float32(share * (np.abs(array).max() or 1))
    found = array.copy()
    found[index] += step
    apart = difference(found, array)
    assert not apart.is_allowed and apart.where == (index,)
    assert apart.size == pytest.approx(share, rel=0.02)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_what_is_no_finite_number_must_be_the_same(number: float) -> None:
    expected = np.array([1, number, 2], np.float32)
    assert difference(expected.copy(), expected).is_allowed
    for other in (0, -number if np.isinf(number) else np.inf):
        apart = difference(np.array([1, other, 2], np.float32), expected)
        assert not apart.is_allowed and apart.size == np.inf and apart.where == (1,)
    assert not difference(expected, np.array([1, 0, 2], np.float32)).is_allowed


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_nudged_inputs_differ_everywhere_by_little(dtype: type) -> None:
    array = np.random.default_rng(0).standard_normal((50, 40)).astype(dtype)
    (found,) = nudged([array])
    assert found.dtype == dtype and (found != array).all()
    np.testing.assert_allclose(found, array, rtol=2e-3 if dtype == np.float16 else 2e-6)


def test_a_model_that_rounds_activations_to_bytes_makes_something_of_a_nudge() -> None:
    """Where an activation lies between two bytes, either is right, and all that follows differs by a byte's step."""
    b = OnnxBuilder(opset=14, x=(256, 256))
    numbers = b.add("DynamicQuantizeLinear", "x", outputs=3)
    model = b.model(b.add("DequantizeLinear", numbers, f"{numbers}.1", f"{numbers}.2"))
    array = np.random.default_rng(0).standard_normal((256, 256)).astype(np.float32)
    evaluator = OnnxRuntimeEvaluator(model)
    expected, found = (evaluator.run(arrays, evaluator.outputs) for arrays in ([array], nudged([array])))
    (name,) = evaluator.outputs
    assert difference(found[name], expected[name]).size > 1e-3


def test_floats_that_integers_stand_for_may_be_a_step_apart() -> None:
    expected = np.arange(-4, 5, dtype=np.float32) * np.float32(0.06)
    assert not difference(expected + np.float32(0.06), expected).is_allowed
    assert difference(expected + np.float32(0.06), expected, step=0.06).is_allowed
    assert not difference(expected + np.float32(0.12), expected, step=0.06).is_allowed


def test_litert_knows_the_steps_of_a_quantised_file(tmp_path: Path) -> None:
    writer = Writer()
    x = writer.tensor("rows", (2, 3))
    whole = writer.add("QUANTIZE", [x], (2, 3))
    writer.tensors[whole] = writer.tensors[writer.tensor("whole", (2, 3), "int8", [0.25])]
    result = writer.add("DEQUANTIZE", [whole], (2, 3))
    path = tmp_path / "model.tflite"
    path.write_bytes(writer.finish([x], [result]))
    assert evaluator_for(path).steps == {writer.tensors[result].name: 0.25}


def test_onnx_evaluators_know_the_steps_of_quantised_activations() -> None:
    b = OnnxBuilder(x=(2, 3))
    scale, zero = b.const(0.25), b.const(3, "int8")
    result = b.add("DequantizeLinear", b.add("QuantizeLinear", "x", scale, zero), scale, zero)
    weights = b.add("DequantizeLinear", b.const(np.ones((3, 2)), "int8"), scale)
    model = b.model(result, b.add("MatMul", "x", weights))
    assert OnnxRuntimeEvaluator(model).steps == ReferenceEvaluator(model).steps == {result: 0.25}


def test_whole_numbers_are_compared_exactly_but_for_quantised_ones() -> None:
    expected = np.array([3, 100, 250])
    assert not difference(expected + 1, expected).is_allowed
    assert difference((expected + 1).astype(np.uint8), expected.astype(np.uint8)).is_allowed
    assert not difference((expected + 2).astype(np.uint8), expected.astype(np.uint8)).is_allowed
    assert not difference(expected > 3, expected > 200).is_allowed
