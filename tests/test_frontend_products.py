"""Matrix products of two activations become layers, whatever views their operands are, judged by ONNX Runtime."""

from collections.abc import Callable

import pytest
from onnx_builder import OnnxBuilder, check_against_onnxruntime, layers, linear


def kinds(b: OnnxBuilder, *outputs: str) -> list[str]:
    return [kind for kind, _ in layers(check_against_onnxruntime(b.model(*outputs)))]


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((5, 7), (7, 9)),
        ((2, 5, 7), (2, 7, 40)),
        ((2, 3, 5, 7), (2, 3, 7, 9)),
        ((2, 3, 5, 7), (7, 9)),
        ((5, 7), (2, 3, 7, 9)),
        ((2, 1, 5, 7), (2, 3, 7, 9)),
        ((3, 5, 7), (2, 3, 7, 9)),
    ],
    ids=str,
)
def test_two_inputs(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    b = OnnxBuilder(x=left, y=right)
    assert kinds(b, b.add("MatMul", "x", "y")) == ["matmul"]


def heads(b: OnnxBuilder, x: str, perm: list[int]) -> str:
    return b.add("Transpose", b.add("Reshape", x, b.const([2, 6, 4, 8], "int64")), perm=perm)


def test_scores_and_what_they_weigh_without_a_softmax() -> None:
    b = OnnxBuilder(x=(2, 6, 32))
    q, k, v = (heads(b, linear(b, "x", 32, 32), perm) for perm in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]))
    scores = b.add("Relu", b.add("MatMul", b.add("Mul", q, b.const(0.3)), k))
    merged = b.add("Transpose", b.add("MatMul", scores, v), perm=[0, 2, 1, 3])
    out = linear(b, b.add("Reshape", merged, b.const([2, 6, 32], "int64")), 32, 16)
    assert kinds(b, out) == ["linear"] * 3 + ["matmul"] * 2 + ["linear"]


def test_channels_attend_to_channels() -> None:
    """As in cross-covariance attention, where rows are summed up."""
    b = OnnxBuilder(x=(2, 6, 32))
    q, k, v = (heads(b, linear(b, "x", 32, 32), [0, 2, 3, 1]) for _ in range(3))
    scores = b.add("Softmax", b.add("MatMul", q, b.add("Transpose", k, perm=[0, 1, 3, 2])), axis=-1)
    result = b.add("Transpose", b.add("MatMul", scores, v), perm=[0, 3, 1, 2])
    out = linear(b, b.add("Reshape", result, b.const([2, 6, 32], "int64")), 32, 16)
    assert "opaque" not in kinds(b, out)


def test_images_as_matrices() -> None:
    b = OnnxBuilder(x=(2, 3, 6, 5))
    q, k = (b.add("Conv", "x", b.weights(8, 3, 1, 1)) for _ in range(2))
    flat = [b.add("Reshape", name, b.const([2, 8, 30], "int64")) for name in (q, k)]
    gram = b.add("MatMul", flat[0], b.add("Transpose", flat[1], perm=[0, 2, 1]))
    assert kinds(b, gram) == ["conv2d", "conv2d", "matmul"]


STEPS: dict[str, Callable[[OnnxBuilder, str], str]] = {
    "relu": lambda b, x: b.add("Relu", x),
    "bias": lambda b, x: b.add("Add", x, b.weights(40)),
    "scale": lambda b, x: b.add("Mul", x, b.const(0.3)),
    "residual": lambda b, x: b.add("Add", x, "z"),
    "softmax": lambda b, x: b.add("Softmax", x, axis=-1),
    "softmax_of_rows": lambda b, x: b.add("Softmax", x, axis=1),
}


@pytest.mark.parametrize("step", STEPS)
def test_what_follows(step: str) -> None:
    b = OnnxBuilder(x=(2, 5, 7), y=(2, 7, 40), z=(2, 5, 40))
    found = kinds(b, STEPS[step](b, b.add("MatMul", "x", "y")))
    assert found[0] == "matmul"


def test_one_operand_twice() -> None:
    b = OnnxBuilder(x=(2, 5, 7))
    assert kinds(b, b.add("MatMul", "x", b.add("Transpose", "x", perm=[0, 2, 1]))) == ["matmul"]


def test_what_is_no_view_of_rows() -> None:
    b = OnnxBuilder(x=(2, 6, 4), y=(3, 16))
    turned = b.add("Transpose", "y", perm=[1, 0])
    check_against_onnxruntime(b.model(b.add("MatMul", b.add("Reshape", "x", b.const([3, 16], "int64")), turned)))
    b = OnnxBuilder(x=(5, 7), y=(7,))
    check_against_onnxruntime(b.model(b.add("MatMul", "x", "y")))
    b = OnnxBuilder(x=(2, 1, 3, 5, 7), y=(2, 2, 1, 7, 4))
    check_against_onnxruntime(b.model(b.add("MatMul", "x", "y")))
