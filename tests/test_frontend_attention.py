"""Transformers as exporters write them become layers of attention, judged by ONNX Runtime."""

import math

import numpy as np
import onnx
import pytest
from onnx_builder import OnnxBuilder, check_against_onnxruntime, layers, linear

HEADS = 4


def fused_attention(b: OnnxBuilder, x: str, batch: int, rows: int, width: int, *, split: bool = False) -> str:
    """Queries, keys and values from one linear layer."""
    head_dim = width // HEADS
    qkv = b.add("Reshape", linear(b, x, width, 3 * width), b.const([batch, rows, 3, HEADS, head_dim], "int64"))
    turned = b.add("Transpose", qkv, perm=[2, 0, 3, 1, 4])
    if split:
        first = b.add("Split", turned, outputs=3, axis=0, num_outputs=3)
        parts = [b.add("Squeeze", name, b.const([0], "int64")) for name in (first, f"{first}.1", f"{first}.2")]
    else:
        parts = [b.add("Gather", turned, b.const(i, "int64"), axis=0) for i in range(3)]
    q, k, v = parts
    scores = b.add("MatMul", q, b.add("Transpose", k, perm=[0, 1, 3, 2]))
    probabilities = b.add("Softmax", b.add("Mul", scores, b.const(head_dim**-0.5)), axis=-1)
    return merged(b, b.add("MatMul", probabilities, v), batch, rows, width)


def merged(b: OnnxBuilder, heads: str, batch: int, rows: int, width: int) -> str:
    turned = b.add("Transpose", heads, perm=[0, 2, 1, 3])
    return b.add("Reshape", turned, b.const([batch, rows, width], "int64"))


def norm(b: OnnxBuilder, x: str, width: int) -> str:
    return b.add("LayerNormalization", x, b.weights(width), b.weights(width), axis=-1, epsilon=1e-6)


def block(b: OnnxBuilder, x: str, batch: int, rows: int, width: int, *, split: bool) -> str:
    attended = fused_attention(b, norm(b, x, width), batch, rows, width, split=split)
    x = b.add("Add", x, linear(b, attended, width, width))
    hidden = b.add("Gelu", linear(b, norm(b, x, width), width, 2 * width))
    return b.add("Add", x, linear(b, hidden, 2 * width, width))


@pytest.mark.parametrize("batch", [1, 2])
def test_a_vision_transformer(batch: int) -> None:
    b, width = OnnxBuilder(x=(batch, 3, 32, 32)), 64
    image = b.add("Conv", "x", b.weights(width, 3, 8, 8), b.weights(width), strides=[8, 8])
    patches = b.add("Transpose", b.add("Reshape", image, b.const([batch, width, 16], "int64")), perm=[0, 2, 1])
    token = b.add("Expand", b.weights(1, 1, width), b.const([batch, 1, width], "int64"))
    x = b.add("Add", b.add("Concat", token, patches, axis=1), b.weights(1, 17, width))
    for split in (False, True):
        x = block(b, x, batch, 17, width, split=split)
    first = b.add("Gather", norm(b, x, width), b.const(0, "int64"), axis=1)
    graph = check_against_onnxruntime(b.model(linear(b, first, width, 10)))
    kinds = [kind for kind, _ in layers(graph)]
    encoder = ["layer_norm", "linear", "attention", "linear", "layer_norm", "linear", "linear"]
    assert kinds == ["conv2d", "place", *encoder, *encoder, "layer_norm", "place", "linear"]
    attention = next(node for node in graph.nodes if node.layer.op == "attention")
    assert attention.layer.offsets == (0, 64, 128)
    assert attention.others == (attention.input,) * 2


def separate(b: OnnxBuilder, scale: str, mask: str | None = None, batch: int = 2) -> str:
    """Queries, keys and values from three linear layers."""
    rows, width = 6, 32
    head_dim = width // HEADS

    def heads(perm: list[int]) -> str:
        shape = b.const([batch, rows, HEADS, head_dim], "int64")
        return b.add("Transpose", b.add("Reshape", linear(b, "x", width, width), shape), perm=perm)

    q, k, v = heads([0, 2, 1, 3]), heads([0, 2, 3, 1]), heads([0, 2, 1, 3])
    if scale == "before":
        q, k = (b.add("Mul", name, b.const(head_dim**-0.25)) for name in (q, k))
    scores = b.add("MatMul", q, k)
    if scale == "after":
        scores = b.add("Div", scores, b.const(math.sqrt(head_dim)))
    if mask is not None:
        scores = b.add("Add", scores, mask)
    probabilities = b.add("Dropout", b.add("Softmax", scores, axis=-1))
    return merged(b, b.add("MatMul", probabilities, v), batch, rows, width)


@pytest.mark.parametrize("scale", ["before", "after", "none"])
def test_three_linear_layers(scale: str) -> None:
    b = OnnxBuilder(x=(2, 6, 32))
    graph = check_against_onnxruntime(b.model(linear(b, separate(b, scale), 32, 32)))
    assert [kind for kind, _ in layers(graph)] == ["linear"] * 3 + ["attention", "linear"]
    assert graph.nodes[3].layer.scale == pytest.approx(1.0 if scale == "none" else 8**-0.5)


def test_a_mask_that_is_an_input() -> None:
    b = OnnxBuilder(x=(2, 6, 32), mask=(2, 1, 1, 6))
    graph = check_against_onnxruntime(b.model(separate(b, "after", "mask")))
    assert graph.nodes[-1].others[-1] == "mask"


def test_a_mask_that_is_a_constant() -> None:
    b = OnnxBuilder(x=(2, 6, 32))
    mask = b.const(np.where(np.arange(6) < 4, 0, np.finfo(np.float32).min).reshape(1, 1, 1, 6))
    graph = check_against_onnxruntime(b.model(separate(b, "after", mask)))
    assert graph.nodes[-1].params["mask"].shape == (1, 6)


@pytest.mark.parametrize(
    "shape", [(6, 6), (1, 1, 6, 6), (2, 1, 6, 6), (1, 4, 6, 6), (2, 4, 1, 6), (2, 4, 6, 6)], ids=str
)
def test_masks_of_any_size(shape: tuple[int, ...]) -> None:
    for is_constant in (False, True):
        b = OnnxBuilder(x=(2, 6, 32), **({} if is_constant else {"mask": shape}))
        mask = b.weights(*shape) if is_constant else "mask"
        graph = check_against_onnxruntime(b.model(separate(b, "after", mask)))
        assert [kind for kind, _ in layers(graph)] == ["linear"] * 3 + ["attention"]


def test_a_query_that_may_look_at_nothing_has_no_number() -> None:
    b = OnnxBuilder(x=(2, 6, 32))
    mask = np.where(np.arange(36).reshape(6, 6) < 12, -np.inf, 0.0)
    with np.errstate(invalid="ignore"):
        graph = check_against_onnxruntime(b.model(separate(b, "after", b.const(mask))))
    assert "attention" in {kind for kind, _ in layers(graph)}


def test_a_mask_of_a_scalar_for_each_query_is_computed_in_parts() -> None:
    b = OnnxBuilder(x=(2, 6, 32), mask=(2, 1, 6, 1))
    graph = check_against_onnxruntime(b.model(separate(b, "after", "mask")))
    assert "attention" not in {kind for kind, _ in layers(graph)}


@pytest.mark.parametrize("dtype", ["int64", "int32"])
def test_a_mask_of_whole_numbers(dtype: str) -> None:
    b = OnnxBuilder(x=(2, 6, 32), mask=(2, 6))
    b.inputs[1].type.tensor_type.elem_type = onnx.TensorProto.DataType.Value(dtype.upper())
    axes = b.const([1, 2], "int64")
    kept = b.add("Cast", b.add("Unsqueeze", "mask", axes), to=onnx.TensorProto.FLOAT)
    mask = b.add("Mul", b.add("Sub", b.const(1.0), kept), b.const(-1e4))
    graph = check_against_onnxruntime(b.model(separate(b, "after", mask)))
    assert [kind for kind, _ in layers(graph)].count("attention") == 1


def test_rows_are_cut_and_put_together() -> None:
    b = OnnxBuilder(x=(2, 5, 8))
    longer = b.add("Concat", "x", b.const(np.ones((2, 2, 8))), axis=1)
    axes = b.const([1], "int64")
    cut = b.add("Slice", longer, b.const([-4], "int64"), b.const([2**62], "int64"), axes)
    graph = check_against_onnxruntime(b.model(b.add("Add", cut, b.weights(4, 8))))
    assert [kind for kind, _ in layers(graph)] == ["place", "place"]


def test_constants_of_each_item() -> None:
    b = OnnxBuilder(x=(2, 5, 8))
    graph = check_against_onnxruntime(b.model(b.add("Concat", "x", b.weights(2, 1, 8), axis=1)))
    assert layers(graph) == [("opaque", ())]


def test_slices_of_channels() -> None:
    b = OnnxBuilder(x=(2, 5, 8))
    bounds = (b.const([number], "int64") for number in (0, 4, 2))
    graph = check_against_onnxruntime(b.model(b.add("Slice", "x", *bounds)))
    assert layers(graph) == [("rearrange", ())]
