"""Networks converted for LiteRT compute what ONNX Runtime computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from networks import NETWORKS
from onnx_builder import OnnxBuilder, linear, random_inputs, run_onnx
from peer_process import save_network
from peers import PeerError, prepare

pytest.importorskip("ai_edge_litert", reason="needs the package ai-edge-litert")


def converted_output(model: onnx.ModelProto, inputs: dict[str, np.ndarray], folder: Path) -> np.ndarray:
    save_network(folder, model, inputs)
    return prepare("litert", folder / "model.onnx", inputs, 1).output()


def check(model: onnx.ModelProto, folder: Path, inputs: dict[str, np.ndarray] | None = None) -> None:
    inputs = inputs or random_inputs(model)
    (expected,) = run_onnx(model, inputs).values()
    result = converted_output(model, inputs, folder)
    assert result.shape == expected.shape
    np.testing.assert_allclose(result, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)


def test_an_encoder_of_images(tmp_path: Path) -> None:
    check(NETWORKS["vit_b16"](size=64, width=1 / 4, classes=10), tmp_path)


def test_an_encoder_of_text(tmp_path: Path) -> None:
    words = np.random.default_rng(0).integers(0, 50, (1, 16))
    check(NETWORKS["minilm"](size=16, width=1 / 4, depth=2, words=50), tmp_path, {"input": words})


def heads(b: OnnxBuilder, x: str, perm: list[int]) -> str:
    """Two items of 6 rows as 4 heads of 8 channels."""
    return b.add("Transpose", b.add("Reshape", x, b.const([2, 6, 4, 8], "int64")), perm=perm)


def attention(b: OnnxBuilder, operands: list[str], mask: str) -> str:
    q, k, v = (heads(b, x, perm) for x, perm in zip(operands, ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]), strict=True))
    scores = b.add("Add", b.add("Mul", b.add("MatMul", q, k), b.const(8**-0.5)), mask)
    mixed = b.add("MatMul", b.add("Softmax", scores, axis=-1), v)
    return b.add("Reshape", b.add("Transpose", mixed, perm=[0, 2, 1, 3]), b.const([2, 6, 32], "int64"))


@pytest.mark.parametrize("shared", [False, True])
def test_attention_of_two_items_with_a_mask(shared: bool, tmp_path: Path) -> None:
    """Keys that another layer reads too are computed whole, and queries that no linear layer makes are scaled."""
    b = OnnxBuilder(x=(2, 6, 32), mask=(2, 1, 1, 6))
    keys = linear(b, "x", 32, 32)
    queries = "x" if shared else linear(b, "x", 32, 32)
    mixed = attention(b, [queries, keys, linear(b, "x", 32, 32)], "mask")
    check(b.model(b.add("Add", mixed, b.add("Relu", keys)) if shared else mixed), tmp_path)


def test_a_mask_that_is_a_constant(tmp_path: Path) -> None:
    b = OnnxBuilder(x=(2, 6, 32))
    mask = b.const(np.where(np.arange(6) < 4, 0, np.finfo(np.float32).min).reshape(1, 1, 1, 6))
    check(b.model(attention(b, [linear(b, "x", 32, 32) for _ in range(3)], mask)), tmp_path)


@pytest.mark.parametrize("batch", [1, 2])
def test_rows_cut_and_put_together(batch: int, tmp_path: Path) -> None:
    b = OnnxBuilder(x=(batch, 5, 8))
    longer = b.add("Concat", "x", b.const(np.ones((batch, 2, 8))), axis=1)
    cut = b.add("Slice", longer, b.const([-4], "int64"), b.const([2**62], "int64"), b.const([1], "int64"))
    check(b.model(b.add("Add", cut, b.weights(4, 8))), tmp_path)


@pytest.mark.parametrize("activation", ["Relu", "Gelu", "Sigmoid", "HardSwish"])
def test_activations_before_and_after_a_sum(activation: str, tmp_path: Path) -> None:
    b = OnnxBuilder(x=(6, 32))
    x = b.add("Add", "x", b.add(activation, linear(b, "x", 32, 32)))
    check(b.model(b.add(activation, b.add("Add", "x", linear(b, x, 32, 32)))), tmp_path)


def test_an_approximate_gelu(tmp_path: Path) -> None:
    b = OnnxBuilder(x=(6, 32))
    check(b.model(b.add("Gelu", linear(b, "x", 32, 32), approximate="tanh")), tmp_path)


def test_softmax_of_rows(tmp_path: Path) -> None:
    b = OnnxBuilder(x=(6, 32))
    check(b.model(b.add("Softmax", linear(b, "x", 32, 32), axis=-1)), tmp_path)


def test_what_is_not_converted_is_named(tmp_path: Path) -> None:
    b = OnnxBuilder(x=(6, 32))
    model = b.model(b.add("Sin", "x"))
    with pytest.raises(PeerError, match=r"not converted: .* is a Sin layer"):
        converted_output(model, random_inputs(model), tmp_path)


@pytest.mark.parametrize("table", ["x", "whole numbers"])
def test_other_gathers_are_refused(table: str, tmp_path: Path) -> None:
    b = OnnxBuilder(x=(6, 32), rows=(1, 4))
    b.inputs[1].type.tensor_type.elem_type = onnx.TensorProto.INT64
    source = "x" if table == "x" else b.const(np.arange(12).reshape(3, 4), "int64")
    gathered = b.add("Gather", source, "rows", axis=0)
    model = b.model(gathered if table == "x" else b.add("Cast", gathered, to=onnx.TensorProto.FLOAT))
    with pytest.raises(PeerError, match="is a Gather layer of other than a table's rows"):
        converted_output(model, random_inputs(model), tmp_path)
