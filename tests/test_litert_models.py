"""Files that LiteRT judges: MediaPipe's own operators, and weights of 8 bits, as it computes them."""

from pathlib import Path

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from tflite_writer import Writer

from tvm_coexec.verification.litert_evaluator import LiteRtEvaluator
from tvm_coexec.verification.litert_models import BIASED_TRANSPOSE, with_own_operators, with_wide_weights

SAME, VALID = 1, 2


def biased_transpose(weights: np.ndarray, bias: np.ndarray, padding: int) -> bytes:
    """A file whose only operator is MediaPipe's, of an image of 3 by 5 pixels, at stride 2."""
    out, height, width, channels = weights.shape
    size = (6, 10) if padding == SAME else (2 * 2 + height, 4 * 2 + width)
    writer = Writer()
    image = writer.tensor("x", (1, 3, 5, channels))
    made = writer.add("CUSTOM", [image, writer.constant(weights), writer.constant(bias)], (1, *size, out))
    model = schema.ModelT.InitFromPackedBuf(writer.finish([image], [made]), 0)
    model.operatorCodes[0].customCode = BIASED_TRANSPOSE
    model.subgraphs[0].operators[0].customOptions = np.array([padding, 2, 2], np.int32).view(np.uint8)
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


@pytest.mark.parametrize("padding", [SAME, VALID])
def test_a_transposed_convolution_with_a_bias_is_computed(tmp_path: Path, padding: int) -> None:
    random = np.random.default_rng(0)
    x, weights = random.standard_normal((1, 3, 5, 4)), random.standard_normal((6, 2, 2, 4))
    bias = random.standard_normal(6).astype(np.float32)
    path = tmp_path / "model.tflite"
    path.write_bytes(biased_transpose(weights.astype(np.float32), bias, padding))
    evaluator = LiteRtEvaluator(path)
    (result,) = evaluator.run([x.astype(np.float32)], evaluator.outputs).values()
    # windows of two pixels at stride two do not overlap
    expected = np.einsum("bijc,oyxc->biyjxo", x, weights).reshape(1, 6, 10, 6) + bias
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


def test_other_files_are_left_as_they_are() -> None:
    writer = Writer()
    image = writer.tensor("x", (1, 4))
    content = writer.finish([image], [writer.add("RELU", [image], (1, 4))])
    assert with_own_operators(content) is content
    assert with_wide_weights(content) is content


@pytest.mark.parametrize("scales", [[0.02], [0.01, 0.02, 0.03]])
def test_activations_beside_weights_of_8_bits_are_not_rounded(tmp_path: Path, scales: list[float]) -> None:
    random = np.random.default_rng(0)
    x, weights = random.standard_normal((4, 32)), random.integers(-127, 128, (3, 32)).astype(np.int8)
    writer = Writer()
    rows = writer.tensor("x", (4, 32))
    made = writer.add("FULLY_CONNECTED", [rows, writer.constant(weights, scales)], (4, 3))
    path = tmp_path / "model.tflite"
    path.write_bytes(writer.finish([rows], [made]))
    evaluator = LiteRtEvaluator(path)
    (result,) = evaluator.run([x.astype(np.float32)], evaluator.outputs).values()
    np.testing.assert_allclose(result, x @ (weights * np.reshape(scales, (-1, 1))).T, rtol=1e-4, atol=1e-4)
