"""Networks in TFLite files: images lie between layers as these want them, and weights and integers are numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from litert import CONVOLUTION, WINDOW, check, file_of, graph_of, numbers, ops, run_litert
from reference import evaluate
from tflite_writer import TYPES, Writer

from tvm_coexec.errors import ModelError
from tvm_coexec.frontends.fusing.fuser import fuse
from tvm_coexec.frontends.tflite.model import trace_tflite
from tvm_coexec.frontends.tflite.states import read_tflite


def convolved(writer: Writer, source: int, channels: int, kernel: int = 1, scales: Sequence[float] = ()) -> int:
    """A convolution without padding's loss, in whatever type of weights."""
    shape = writer.shape(source)
    weights = numbers(channels, kernel, kernel, shape[3])
    held = writer.constant(weights)
    if scales:
        small = np.clip(np.round(weights * 30), -127, 127).astype(np.int8)
        held = writer.constant(small, scales)
    operands = [source, held, writer.constant(numbers(channels))]
    return writer.add("CONV_2D", operands, (*shape[:3], channels), "Conv2D", padding=0, **CONVOLUTION)


def network(body: str) -> bytes:
    """A network for images with something between two convolutions."""
    writer = Writer()
    x = writer.tensor("image", (1, 8, 8, 3))
    first = convolved(writer, x, 8, 3)
    if body == "residual with more channels":
        pads = writer.integers([[0, 0], [0, 0], [0, 0], [0, 4]])
        padded = writer.add("PAD", [first, pads], (1, 8, 8, 12), "Pad")
        result = writer.add("ADD", [convolved(writer, first, 12), padded], (1, 8, 8, 12), "Add")
    elif body == "squeeze and excite":
        mean = writer.add("MEAN", [first, writer.integers([1, 2])], (1, 1, 1, 8), "Reducer", keepDims=True)
        gate = writer.add("LOGISTIC", [convolved(writer, mean, 8)], (1, 1, 1, 8))
        result = writer.add("MUL", [first, gate], (1, 8, 8, 8), "Mul")
    elif body == "pool and flatten":
        window = WINDOW | {"filterHeight": 8, "filterWidth": 8, "padding": 1}
        pooled = writer.add("AVERAGE_POOL_2D", [first], (1, 1, 1, 8), "Pool2D", **window)
        rows = writer.reshaped(pooled, (1, 8))
        result = writer.add("FULLY_CONNECTED", [rows, writer.constant(numbers(4, 8)), -1], (1, 4), "FullyConnected")
        return writer.finish([x], [result])
    else:
        slopes = writer.constant(numbers(1, 1, 8))
        result = writer.add("PRELU", [first, slopes], (1, 8, 8, 8))
    return writer.finish([x], [convolved(writer, result, 4, 3)])


@pytest.mark.parametrize("body", ["residual with more channels", "squeeze and excite", "pool and flatten", "slopes"])
def test_no_transpose_is_left_in_a_network_for_images(body: str, tmp_path: Path) -> None:
    graph = check(network(body), tmp_path)
    assert "TRANSPOSE" not in ops(graph) and ops(graph).count("conv2d") >= 1
    assert graph.tensors[graph.inputs[0]].shape == (1, 8, 8, 3) and graph.inputs == ["image"]


@pytest.mark.parametrize("is_read_otherwise", [False, True])
def test_zeros_around_an_input_are_a_convolution_s_padding(is_read_otherwise: bool, tmp_path: Path) -> None:
    writer = Writer()
    x = writer.tensor("image", (1, 9, 8, 3))
    pads = writer.integers([[0, 0], [1, 1], [2, 0], [0, 0]])
    padded = writer.add("PAD", [x, pads], (1, 11, 10, 3), "Pad")
    weights = [writer.constant(numbers(8, 3, 3, 3)), writer.constant(numbers(8))]
    options = CONVOLUTION | {"strideH": 2, "strideW": 2}
    result = writer.add("CONV_2D", [padded, *weights], (1, 5, 4, 8), "Conv2D", padding=1, **options)
    outputs = [result, padded] if is_read_otherwise else [result]
    graph = check(writer.finish([x], outputs), tmp_path)
    if not is_read_otherwise:
        assert [node.layer.padding for node in graph.nodes] == [(1, 2, 1, 0)]


def test_weights_of_fewer_bits_are_widened_when_built(tmp_path: Path) -> None:
    writer = Writer()
    x = writer.tensor("image", (1, 8, 8, 3))
    half = writer.constant(numbers(6, 1, 1, 3).astype(np.float16))
    weights = writer.add("DEQUANTIZE", [half], (6, 1, 1, 3))
    operands = [x, weights, writer.constant(numbers(6))]
    hidden = writer.add("CONV_2D", operands, (1, 8, 8, 6), "Conv2D", **CONVOLUTION)
    small = writer.constant(np.arange(-60, 60, dtype=np.int8).reshape(4, 5, 1, 6), [0.01, 0.02, 0.03, 0.04])
    weights = writer.add("DEQUANTIZE", [small], (4, 5, 1, 6))
    operands = [hidden, weights, writer.constant(numbers(4))]
    result = writer.add("CONV_2D", operands, (1, 8, 8, 4), "Conv2D", padding=0, **CONVOLUTION)
    assert ops(check(writer.finish([x], [result]), tmp_path)) == ["conv2d", "conv2d"]


def test_weights_of_eight_bits_beside_float_activations(tmp_path: Path) -> None:
    """LiteRT makes integers of the activations, too, which costs it more than the tolerance here."""
    writer = Writer()
    x = writer.tensor("rows", (3, 8))
    weights = np.arange(-64, 64, dtype=np.int8).reshape(16, 8)
    operands = [x, writer.constant(weights, [0.02]), -1]
    content = writer.finish([x], [writer.add("FULLY_CONNECTED", operands, (3, 16), "FullyConnected")])
    graph = graph_of(content, tmp_path)
    rows = numbers(3, 8)
    (result,) = evaluate(graph, {"rows": rows}).values()
    np.testing.assert_allclose(result, rows @ (weights.T * np.float32(0.02)), rtol=1e-5, atol=1e-6)
    assert ops(graph) == ["linear"]


def test_integers_between_layers_are_kept_to_their_grid(tmp_path: Path) -> None:
    writer = Writer()
    x = writer.tensor("image", (1, 6, 6, 3), "int8", [0.05])
    small = np.random.default_rng(2).integers(-127, 127, (8, 3, 3, 3)).astype(np.int8)
    weights = writer.constant(small, list(np.linspace(0.01, 0.02, 8)))
    bias = writer.constant(np.arange(8, dtype=np.int32) * 50, list(0.05 * np.linspace(0.01, 0.02, 8)))
    hidden = writer.add("CONV_2D", [x, weights, bias], (1, 6, 6, 8), "Conv2D", padding=0, **CONVOLUTION)
    pool = WINDOW | {"filterHeight": 2, "filterWidth": 2, "padding": 1}
    result = writer.add("MAX_POOL_2D", [hidden], (1, 5, 5, 8), "Pool2D", **pool)
    for tensor in (hidden, result):
        made = writer.tensor("", (), "int8", [0.2])
        held = writer.tensors.pop(made)
        writer.tensors[tensor].quantization, writer.tensors[tensor].type = held.quantization, held.type
    content = writer.finish([x], [result])
    graph = graph_of(content, tmp_path)
    inputs, (expected,) = run_litert(content)
    (found,) = evaluate(graph, dict(zip(graph.inputs, inputs, strict=True))).values()
    assert found.dtype == np.int8 and np.abs(found.astype(int) - expected).max() <= 1
    assert (found == expected).mean() > 0.97


def test_shapes_that_are_computed_are_known_when_built(tmp_path: Path) -> None:
    """Keras writes the batch of a Flatten so."""
    writer = Writer()
    x = writer.tensor("rows", (2, 3, 4))
    shape = writer.add("SHAPE", [x], (3,), "Shape", outType=TYPES["int32"])
    bounds = [writer.integers(value) for value in ([0], [1], [1])]
    batch = writer.add("STRIDED_SLICE", [shape, *bounds], (), "StridedSlice", shrinkAxisMask=1)
    packed = writer.add("PACK", [batch, writer.constant(np.array(12, np.int32))], (2,), "Pack", valuesCount=2)
    for tensor in (shape, batch, packed):
        writer.tensors[tensor].type = TYPES["int32"]
    check(writer.finish([x], [writer.add("RESHAPE", [x, packed], (2, 12), "Reshape")]), tmp_path)


def test_inputs_take_other_shapes(tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(network("squeeze and excite"))
    graph = fuse(trace_tflite(read_tflite(path, {"image": (2, 5, 7, 3)})))
    assert graph.tensors["image"].shape == (2, 5, 7, 3)
    interpreter = Interpreter(str(path))
    interpreter.resize_tensor_input(interpreter.get_input_details()[0]["index"], (2, 5, 7, 3))
    interpreter.allocate_tensors()
    image = numbers(2, 5, 7, 3)
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image)
    interpreter.invoke()
    expected = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    (result,) = evaluate(graph, {"image": image}).values()
    np.testing.assert_allclose(result, expected, atol=1e-4)
    with pytest.raises(ModelError, match=r"input 'image' is \[1, 8, 8, 3\]; the shape \[5, 7, 3\] does not fit"):
        read_tflite(path, {"image": (5, 7, 3)})
    with pytest.raises(ModelError, match="a shape is given for 'x'; the inputs are image"):
        read_tflite(path, {"x": (5, 7, 3)})


def test_what_a_model_cannot_tell_before_it_runs(tmp_path: Path) -> None:
    content = file_of("RESHAPE", [(2, 3), (2,)], [(3, 2)], options="Reshape")
    with pytest.raises(
        ModelError, match=r"^RESHAPE \(tensor 'reshape2'\) reads 'x1', which depends on the model's inp"
    ):
        graph_of(content, tmp_path)


def test_results_are_what_the_file_says(tmp_path: Path) -> None:
    content = file_of("ABS", [(2, 3)], [(2, 4)])
    with pytest.raises(ModelError, match=r"ABS \(tensor 'abs1'\) makes float32 of shape \[2, 3\], where the file has"):
        graph_of(content, tmp_path)


def test_an_operator_in_tvms_reasons_is_only_named(tmp_path: Path) -> None:
    content = file_of("ADD", [(2, 3), (2, 4)], [(2, 3)], options="Add")
    with pytest.raises(ModelError, match=r"^ADD \(tensor 'add2'\) cannot be imported \(In relax\.add, the first input"):
        graph_of(content, tmp_path)
