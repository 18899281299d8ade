"""What is no number, infinite or huge is on both sides what the operators' definitions say, and stays in its place."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from litert import file_of, run_litert
from onnx_builder import OnnxBuilder, run_onnx
from slow import slow_except
from small_modules import one_layer
from tflite_writer import Writer

import tvm_coexec
from tvm_coexec.layers import Attention, Conv2d, Elementwise, Linear, LocalNorm, Pool, RowWise
from tvm_coexec.runtime.device import Device
from tvm_coexec.runtime.module import Module
from tvm_coexec.verification.checking import random_params
from tvm_coexec.verification.reference import evaluate

NAN, INF = np.nan, np.inf
SPECIAL = np.array(
    [NAN, INF, -INF, 3e38, -3e38, 1e20, -1e20, 1e-40, -0.0, 0, 100, -100, 88.5, -88.5, 7, -4], np.float32
)

ACTIVATIONS = [
    "relu",
    "relu6",
    "hard_swish",
    "sigmoid",
    "silu",
    "gelu",
    "gelu_tanh",
    "tanh",
    "exp",
    "elu(1,1)",
    "softplus",
    "mish",
    "erf",
    "hard_sigmoid(0.2,0.5)",
    "leaky_relu(0.1)",
    "abs",
    "negative",
    "square",
    "clip(-1,2)",
]


def with_special(rng: np.random.Generator, shape: tuple[int, ...], part: float = 0.1) -> np.ndarray:
    """Normal numbers, some of which are special."""
    special = rng.choice(SPECIAL, shape)
    return np.where(rng.random(shape) < part, special, rng.standard_normal(shape)).astype(np.float32)


def check(result: np.ndarray, expected: np.ndarray, tolerance: float = 1e-5) -> None:
    """See that numbers are numbers of the right size, and that all others are the same; what overflows may."""
    largest = float(np.finfo(np.float32).max)
    with np.errstate(all="ignore"):
        expected = np.where(np.abs(expected) > largest, np.sign(expected) * INF, expected)
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(np.isnan(result), np.isnan(expected))
    np.testing.assert_array_equal(result[~finite], expected[~finite])
    np.testing.assert_allclose(result[finite], expected[finite], rtol=tolerance, atol=tolerance)


def of_every_split(layer: Any, device: Device, operands: dict[str, np.ndarray]) -> list[np.ndarray]:
    """What a module of one layer makes of inputs on the GPU, on both sides, and on the CPU."""
    module, results = Module(one_layer(layer, device), device), []
    for cpu_units in sorted({0, layer.units // 2, layer.units}):
        module.set_splits({"layer": cpu_units})
        results.append(module(*operands.values()))
    return results


@pytest.mark.parametrize("activation", slow_except(ACTIVATIONS, 5, 8, 18))
@pytest.mark.parametrize("n", slow_except([64, 70], 1))
def test_activations(activation: str, n: int, device: Device) -> None:
    layer = RowWise("map", 16, n, epilogue=(activation,))
    x = with_special(np.random.default_rng(0), (16, n), 0.5)
    with np.errstate(all="ignore"):
        expected = evaluate(layer, {"input": x.astype(np.float64)})
    for result in of_every_split(layer, device, {"x": x}):
        check(result, expected)


@pytest.mark.parametrize("activation", slow_except(["tanh", "erf"], 0))
def test_small_numbers_keep_their_digits(activation: str, device: Device) -> None:
    """Of what networks do again and again, such as a thousand times, errors grow where results vanish."""
    layer = RowWise("map", 16, 64, epilogue=(activation,))
    signs = np.random.default_rng(0).choice([-1, 1], (16, 64))
    x = (signs * np.geomspace(1e-30, 30, 16 * 64).reshape(16, 64)).astype(np.float32)
    expected = evaluate(layer, {"input": x.astype(np.float64)})
    for result in of_every_split(layer, device, {"x": x}):
        np.testing.assert_allclose(result, expected, rtol=1e-6)
        assert np.abs(result).max() == 1


@pytest.mark.parametrize("kind", ["softmax", "layer_norm"])
@pytest.mark.parametrize("n", slow_except([64, 70], 1))
def test_rows(kind: str, n: int, device: Device) -> None:
    """A row with NaN is NaN, one of -inf alone as well, and no other row is touched."""
    layer = RowWise(kind, 16, n, epsilon=1e-5)
    x = np.random.default_rng(0).standard_normal((16, n), np.float32)
    x[3, 5], x[4, n - 1], x[5], x[6, 1:], x[7, 0], x[8, 2] = NAN, NAN, -INF, -INF, INF, -3.3e38
    x[9] = -3.3e38
    params = random_params(layer, 1)
    with np.errstate(all="ignore"):
        expected = evaluate(layer, {"input": x.astype(np.float64), **params})
    rows = [row for row in range(16) if kind == "softmax" or row not in (8, 9)]  # whose squares overflow
    for result in of_every_split(layer, device, {"x": x}):
        check(result[rows], expected[rows])


@pytest.mark.parametrize("kind", ["max", "average"])
@pytest.mark.parametrize(
    "window",
    [((3, 3), (2, 2), (1, 1, 1, 1)), pytest.param(((2, 2), (1, 1), (0, 0, 0, 0)), marks=pytest.mark.slow)],
)
def test_pools(kind: str, window: Any, device: Device) -> None:
    layer = Pool(kind, 9, 11, 70, *window)
    x = with_special(np.random.default_rng(0), layer.input_sizes[0], 0.02)
    x[np.isneginf(x) | (x < -1e38)] = NAN  # a window of nothing but these has as many largest values as libraries
    with np.errstate(all="ignore"):
        expected = evaluate(layer, {"input": x.astype(np.float64)}).reshape(layer.output_size)
    for result in of_every_split(layer, device, {"x": x}):
        check(result, expected)


@pytest.mark.slow
def test_local_norm(device: Device) -> None:
    layer = LocalNorm(3, 5, 70, 5, 1e-4, 0.75, 1.0)
    x = np.random.default_rng(0).standard_normal(layer.input_sizes[0], np.float32)
    x[0, 0, 1, 3], x[0, 1, 2], x[0, 2, 0, 69], x[0, 2, 4, 0] = NAN, 1e20, NAN, NAN
    wide = x.astype(np.float64)
    sums = sum(np.pad(wide, ((0, 0), (0, 0), (0, 0), (2, 2)))[..., tap : tap + 70] ** 2 for tap in range(5))
    expected = wide / (1 + 1e-4 / 5 * sums) ** 0.75
    for result in of_every_split(layer, device, {"x": x}):
        check(result, expected)
        np.testing.assert_allclose(result[0, 1, 2], expected[0, 1, 2], rtol=1e-4)


@pytest.mark.parametrize("m", [1, 9])
def test_linear_layers(m: int, device: Device) -> None:
    layer = Linear(m, 64, 70, ("bias", "relu"))
    x = np.random.default_rng(0).standard_normal((m, 64), np.float32)
    x[m // 2, 5] = NAN
    params = random_params(layer, 1)
    expected = evaluate(layer, {"input": x, **params})
    for result in of_every_split(layer, device, {"x": x}):
        check(result, expected)


@pytest.mark.parametrize("channels", slow_except([3, 64], 0))
def test_direct_convolutions_keep_what_is_special_in_its_neighbourhood(channels: int, device: Device) -> None:
    layer = Conv2d(7, 7, channels, 64, (5, 5), padding=(2, 2, 2, 2), epilogue=("bias", "relu6"))
    x = np.random.default_rng(0).standard_normal(layer.input_sizes[0], np.float32)
    x[0, 0, 0, 1], x[0, 6, 6, 2] = NAN, 3e38
    params = random_params(layer, 1)
    with np.errstate(all="ignore"):
        expected = evaluate(layer, {"input": x.astype(np.float64), **params}).reshape(layer.output_size)
    assert 0 < np.isnan(expected).sum() < expected.size / 3
    for result in of_every_split(layer, device, {"x": x}):
        check(result, expected)


def test_attention(device: Device) -> None:
    layer = Attention(1, 2, 9, 10, 8, 0.3, (16, 16, 16), mask="input")
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((rows, 16), np.float32) for rows in (9, 10, 10))
    mask = np.where(rng.random((1, 10)) < 0.4, -INF, 0).astype(np.float32)
    mask[0, 0] = 0
    q[3, 5], q[5, 12] = NAN, INF
    with np.errstate(all="ignore"):
        inputs = {"input": q, "input1": k, "input2": v, "input3": mask}
        expected = evaluate(layer, {name: array.astype(np.float64) for name, array in inputs.items()})
    for result in of_every_split(layer, device, inputs):
        check(result, expected)


@pytest.mark.one_runtime
@pytest.mark.parametrize("split", slow_except(["cpu", 0.5], 1))
def test_nan_is_where_onnxruntime_has_it(split: Any, device: Device) -> None:
    b = OnnxBuilder(17, x=(2, 64), z=(2, 64))
    made = [b.add(op, "x") for op in ("Relu", "Softmax", "Sigmoid", "Sign")]
    made += [b.add("Clip", "x", b.const(0.0), b.const(6.0)), b.add("PRelu", "x", b.const(0.1))]
    made += [b.add(op, "x", "z") for op in ("Max", "Min")]
    model = b.model(*made)
    rng = np.random.default_rng(0)
    x, z = (rng.standard_normal((2, 64), np.float32) for _ in range(2))
    x[0, 3], z[1, 5] = NAN, NAN
    expected = run_onnx(model, {"x": x, "z": z})
    results = tvm_coexec.build(model, device=device, split=split)(x=x, z=z)
    assert list(results) == list(expected)
    for name, array in expected.items():
        check(results[name], array)


@pytest.mark.one_runtime
def test_constants_leave_no_nan_out(device: Device) -> None:
    """Zeros that are divided or multiplied, bounds that are no numbers, and sums of exponentials of infinity."""
    b = OnnxBuilder(20, x=(4, 64))
    made = [b.add(op, *operands) for op in ("Div", "Mul") for operands in (("x", b.const(0.0)), (b.const(0.0), "x"))]
    made += [b.add(op, *operands) for op in ("Max", "Min") for operands in (("x", b.const(NAN)), (b.const(NAN), "x"))]
    made += [b.add("ReduceLogSumExp", "x", b.const([1], "int64"), keepdims=kept) for kept in (0, 1)]
    clipped = b.add("Clip", "x", b.const(NAN), b.const(6.0))
    x = with_special(np.random.default_rng(0), (4, 64))
    x[1:] = np.nan_to_num(x[1:], nan=1.0)
    x[2:] = np.minimum(x[2:], 50)
    expected = run_onnx(b.model(*made), {"x": x})
    for split in ("cpu", 0.5, "gpu"):
        results = tvm_coexec.build(b.model(*made, clipped), device=device, split=split)(x)
        for name, array in expected.items():
            check(results[name], array)
        assert np.isnan(results[clipped]).all()


@pytest.mark.parametrize("factor", slow_except([INF, -INF, NAN, 3e38], 0, 2))
def test_products_with_what_is_no_number_come_after_sums(factor: float, device: Device) -> None:
    b = OnnxBuilder(x=(4, 40))
    weights = np.random.default_rng(0).uniform(-4, 4, (40, 40)).astype(np.float32)
    weights[:, 3] = 0
    scaled = b.add("Mul", b.add("MatMul", "x", b.const(weights)), b.const(factor))
    model = b.model(scaled)
    x = np.random.default_rng(1).standard_normal((4, 40)).astype(np.float32) * 1e-3
    with np.errstate(all="ignore"):
        expected = (x @ weights) * np.float32(factor)
    for split in ("cpu", 0.5, "gpu"):
        check(tvm_coexec.build(model, device=device, split=split)(x), expected, tolerance=1e-4)


def test_places_of_extrema_pass_over_nan_as_onnxruntime_does(device: Device) -> None:
    x = np.array([[1, NAN, 3, 2], [NAN, 1, 3, 2], [3, NAN, 1, 2], [NAN] * 4, [2, 1, 1, 2]], np.float32)
    b = OnnxBuilder(x=x.shape)
    ways = itertools.product(("ArgMax", "ArgMin"), (0, 1), (0, 1))
    model = b.model(*(b.add(op, "x", axis=1, select_last_index=last, keepdims=kept) for op, last, kept in ways))
    expected = run_onnx(model, {"x": x})
    results = tvm_coexec.build(model, device=device, split="cpu")(x)
    assert list(results) == list(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(results[name], array)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_hardmax_has_one_where_the_largest_number_is_first(axis: int, device: Device) -> None:
    rows = np.array([[1, NAN, 3, 2], [3, NAN, 1, 2], [1, 2, 3, NAN], [-INF] * 4, [INF, INF, 0, 0]], np.float32)
    x = rows if axis else np.ascontiguousarray(rows.T)
    b = OnnxBuilder(x=x.shape)
    model = b.model(b.add("Hardmax", "x", axis=axis))
    result = tvm_coexec.build(model, device=device, split="cpu")(x)
    expected = np.eye(4, dtype=np.float32)[[2, 0, 2, 0, 0]]
    np.testing.assert_array_equal(result, expected if axis else expected.T)
    np.testing.assert_array_equal(result, run_onnx(model, {"x": x})["v0"])


@pytest.mark.parametrize("op", ["ReduceMax", "ReduceMin"])
def test_extrema_of_axes_keep_nan(op: str, device: Device) -> None:
    builder = OnnxBuilder(17, x=(2, 64))
    model = builder.model(builder.add(op, "x", axes=[1], keepdims=1))
    x = np.random.default_rng(0).standard_normal((2, 64), np.float32)
    x[0, 3] = NAN
    expected = (np.max if op == "ReduceMax" else np.min)(x, axis=1, keepdims=True)
    check(tvm_coexec.build(model, device=device, split="cpu")(x), expected)


@pytest.mark.parametrize("kind", ["maximum", "minimum"])
def test_extrema_of_images_keep_nan(kind: str, device: Device) -> None:
    layer = Elementwise(kind, (1, 4, 5, 70), (1, 4, 5, 70))
    rng = np.random.default_rng(0)
    x, z = (with_special(rng, (1, 4, 5, 70)) for _ in range(2))
    expected = (np.maximum if kind == "maximum" else np.minimum)(x, z)
    for result in of_every_split(layer, device, {"x": x, "z": z}):
        check(result, expected)


@pytest.mark.one_runtime
def test_remainders_are_exact_however_large_quotients_are(device: Device) -> None:
    random = np.random.default_rng(0)
    divisors, x = (
        (random.standard_normal(shape) * 10.0 ** random.integers(-30, 30, shape)).astype(np.float32)
        for shape in ((64,), (4, 64))
    )
    x[0, :3], divisors[2:5] = (NAN, INF, 1), (INF, NAN, 0)
    b = OnnxBuilder(x=x.shape)
    model = b.model(*(b.add("Mod", "x", b.const(by), fmod=1) for by in (0.195, divisors)))
    expected = run_onnx(model, {"x": x})
    results = tvm_coexec.build(model, device=device, split="cpu")(x)
    for name, array in expected.items():
        np.testing.assert_array_equal(results[name], array)


@pytest.mark.one_runtime
def test_what_is_not_below_zero_has_no_slope(device: Device) -> None:
    b = OnnxBuilder(x=(4, 64))
    model = b.model(b.add("PRelu", "x", b.const([NAN, INF, -INF, 0.5] * 16)))
    x = with_special(np.random.default_rng(0), (4, 64))
    result = tvm_coexec.build(model, device=device, split="cpu")(x)
    np.testing.assert_array_equal(result, *run_onnx(model, {"x": x}).values())


@pytest.mark.parametrize("slope", [[NAN, INF, -INF, 0.5], [[NAN]], [[INF, 1, 1, 1], [2, -INF, NAN, 1]], None])
def test_what_is_not_below_zero_has_no_slope_in_tflite_either(slope: Any, tmp_path: Path, device: Device) -> None:
    writer = Writer()
    x = writer.tensor("x", (2, 4))
    slopes = writer.tensor("slopes", (2, 4)) if slope is None else writer.constant(np.array(slope, np.float32))
    path = tmp_path / "sloped.tflite"
    inputs = [x] if slope else [x, slopes]
    path.write_bytes(writer.finish(inputs, [writer.add("PRELU", [x, slopes], (2, 4))]))
    given = np.array([[0, 1, NAN, INF], [-1, 0, -INF, -3]], np.float32)
    array = np.array([NAN, INF, -INF, 0.5] if slope is None else slope, np.float32)
    with np.errstate(invalid="ignore"):
        expected = np.where(given >= 0, given, given * array)
    others = () if slope else (np.broadcast_to(array, (2, 4)).copy(),)
    np.testing.assert_array_equal(tvm_coexec.build(path, device=device, split="cpu")(given, *others), expected)


@pytest.mark.parametrize("slope", [NAN, INF])
def test_leaky_slopes_of_tflite_may_be_no_numbers(slope: float, tmp_path: Path, device: Device) -> None:
    content = file_of("LEAKY_RELU", [(3, 5)], [(3, 5)], options="LeakyRelu", alpha=slope)
    inputs, expected = run_litert(content)
    path = tmp_path / "leaky.tflite"
    path.write_bytes(content)
    np.testing.assert_array_equal(tvm_coexec.build(path, device=device, split="cpu")(*inputs), *expected)
