"""Inputs whose values the user fixes: constants of the module, whatever the model's format."""

import argparse
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import ArrayLike
from onnx import TensorProto, helper
from onnx_builder import OnnxBuilder, linear, run_onnx
from reference import evaluate
from tflite_writer import Writer
from tvm import relax

import tvm_coexec
from tvm_coexec import cli
from tvm_coexec.cli.options import add_given_options
from tvm_coexec.errors import ModelError
from tvm_coexec.frontends import to_graph
from tvm_coexec.runtime.device import Device

pytestmark = pytest.mark.one_runtime


def typed(model: onnx.ModelProto, name: str, dtype: int) -> onnx.ModelProto:
    for value in model.graph.input:
        if value.name == name:
            value.type.tensor_type.elem_type = dtype
    return model


def rated_model() -> onnx.ModelProto:
    """A network that has other layers for another rate, as models of speech have."""
    b = OnnxBuilder(x=("batch", 8), rate=())
    branches = []
    for index, columns in enumerate((5, 7)):
        weights = b.weights(8, columns)
        product = helper.make_node("MatMul", ["x", weights], [f"y{index}"])
        result = helper.make_tensor_value_info(f"y{index}", TensorProto.FLOAT, None)
        branches.append(helper.make_graph([product], f"branch{index}", [], [result]))
    is_high = b.add("Equal", "rate", b.const(16000, "int64"))
    chosen = b.add("If", is_high, then_branch=branches[0], else_branch=branches[1])
    return typed(b.model(b.add("Relu", chosen)), "rate", TensorProto.INT64)


@pytest.mark.parametrize(("rate", "columns"), [(16000, 5), (8000, 7), ([8000], 7), (np.float32(16000), 5)])
def test_what_follows_from_a_value_is_computed_when_a_module_is_built(
    rate: ArrayLike, columns: int, device: Device
) -> None:
    x = np.random.default_rng(3).random((4, 8), np.float32)
    module = tvm_coexec.build(
        rated_model(), device=device, split=0.5, shapes={"x": (4, 8)}, values={"rate": rate}, check=True
    )
    assert list(module.inputs) == ["x"]
    given = np.asarray(rate, np.int64).reshape(())
    (expected,) = run_onnx(rated_model(), {"x": x, "rate": given}).values()
    assert expected.shape == (4, columns)
    np.testing.assert_allclose(module(x), expected, rtol=1e-5, atol=1e-6)


def masked_model() -> onnx.ModelProto:
    b = OnnxBuilder(mask=("rows", 6), x=("rows", 6), half=("rows", 1))
    model = b.model(b.add("Add", b.add("Mul", "x", "mask"), "half"))
    return model


def test_an_array_has_the_shape_that_a_model_leaves_open(device: Device) -> None:
    mask = np.arange(18, dtype=np.float64).reshape(3, 6).T[::2].T.repeat(2, 1)  # not contiguous before
    graph = to_graph(masked_model(), values={"mask": mask, "half": 0.5})
    assert graph.inputs == ["x"] and graph.tensors["x"].shape == (3, 6)
    module = tvm_coexec.build(
        masked_model(), device=device, split="cpu", values={"mask": mask, "half": 0.5}, check=True
    )
    x = np.ones((3, 6), np.float32)
    np.testing.assert_array_equal(module(x), mask.astype(np.float32) + 0.5)


class Unreadable:
    """An object that numpy cannot make an array of, as tensors of other devices are."""

    def __init__(self, error: type[Exception]) -> None:
        self.error = error

    def __array__(self, *_: object, **__: object) -> np.ndarray:
        raise self.error("is on another device")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({1: 1, "q": 2}, "a value is given for 1, 'q'; the inputs are x, rate"),
        ({"q": 1}, "a value is given for 'q'; the inputs are x, rate"),
        ({"rate": 0.5}, "input 'rate' is int64, which cannot be 0.5"),
        ({"rate": float("nan")}, "input 'rate' is int64, which cannot be nan"),
        ({"rate": 2.0**63}, "input 'rate' is int64, which cannot be 9.2"),
        ({"rate": [1, 2]}, r"input 'rate' is \[\]; its value is \[2\], give one of that shape"),
        ({"rate": "16000"}, "the value of input 'rate' is of type <U5; give it numbers"),
        ({"rate": None}, "the value of input 'rate' is of type object; give it numbers"),
        ({"rate": [[1], [1, 2]]}, "the value of input 'rate' is no array"),
        ({"rate": Unreadable(RuntimeError)}, "the value of input 'rate' is no array .is on another device."),
        ({"rate": Unreadable(TypeError)}, "the value of input 'rate' is no array .is on another device."),
        ({"rate": 2**64}, "the value of input 'rate' does not fit 64 bits; give it smaller numbers"),
        ({"rate": 2.0**60}, "input 'rate' is int64, and its value has floats up to 1.15.*e.18, where they do not"),
        ({"x": 1e39}, "input 'x' is float32, which cannot be 1e\\+39"),
        ({"x": np.zeros((3, 8))}, r"input 'x' is \[4, 8\]; its value is \[3, 8\]"),
        ({"x": 1, "rate": 1}, "values are given for all inputs"),
    ],
)
def test_values_that_do_not_fit(values: dict[str, ArrayLike], message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message):
        to_graph(rated_model(), {"x": (4, 8)}, values)
    onnx.save(rated_model(), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=message):
        to_graph(tmp_path / "m.onnx", {"x": (4, 8)}, values)


@pytest.mark.parametrize("number", [1234567890123456789, -(2**63), 2**63 - 1])
def test_whole_numbers_are_read_as_they_are(number: int, tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    add_given_options(parser)
    values = parser.parse_args(["--value", f"v={number},1"]).values
    assert values == {"v": [number, 1]}
    b = OnnxBuilder(v=(1, 2), x=(3, 2))
    model = typed(
        b.model(b.add("Where", b.add("Equal", "v", b.const([[number, 2]], "int64")), "x", b.const(0.0))),
        "v",
        TensorProto.INT64,
    )
    graph = to_graph(model, values=values)
    x = np.ones((3, 2))
    np.testing.assert_array_equal(*evaluate(graph, {"x": x}).values(), [[1, 0]] * 3)


def test_a_number_leaves_dimensions_open() -> None:
    with pytest.raises(ModelError, match=r"dynamic dimensions: 'x' \[batch, 8\]"):
        to_graph(rated_model(), values={"x": 1})


def test_inputs_of_a_tflite_file(device: Device, tmp_path: Path) -> None:
    writer = Writer()
    inputs = [writer.tensor(name, (2, 6)) for name in ("scale", "x")]
    path = tmp_path / "m.tflite"
    path.write_bytes(writer.finish(inputs, [writer.add("MUL", inputs, (2, 6), "Mul", fusedActivationFunction=0)]))
    x = np.random.default_rng(0).random((2, 6), np.float32)
    module = tvm_coexec.build(path, device=device, split="cpu", values={"scale": 3}, check=True)
    assert list(module.inputs) == ["x"]
    np.testing.assert_array_equal(module(x), 3 * x)


def test_inputs_of_a_relax_module(device: Device) -> None:
    builder = relax.BlockBuilder()
    x, scale = (relax.Var(name, relax.TensorType((2, 6), "float32")) for name in ("x", "scale"))
    with builder.function("main", [x, scale]):
        builder.emit_func_output(builder.normalize(relax.op.multiply(x, scale)))
    given = np.arange(12).reshape(2, 6)
    module = tvm_coexec.build(builder.get(), device=device, split="cpu", values={"scale": given}, check=True)
    assert list(module.inputs) == ["x"]
    np.testing.assert_array_equal(module(np.ones((2, 6), np.float32)), given)
    for value in ([2.0], given.ravel().tolist()):  # of other shapes, which fill the input
        fixed = to_graph(builder.get(), values={"scale": value})
        expected = np.broadcast_to(value, 12).reshape(2, 6)
        np.testing.assert_array_equal(*evaluate(fixed, {"x": np.ones((2, 6))}).values(), expected)
    with pytest.raises(ModelError, match=r"input 'scale' is \[2, 6\]; its value is \[5\], give one of that shape"):
        to_graph(builder.get(), values={"scale": [1] * 5})
    with pytest.raises(ModelError, match=r"input 'scale' is \[2, 6\]; the shape \[1, 6\] does not fit"):
        to_graph(builder.get(), {"scale": (1, 6)})
    with pytest.raises(ModelError, match="a value is given for 'y'; the inputs are x, scale"):
        to_graph(builder.get(), {}, {"y": 1})


def test_the_option_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "m.onnx", tmp_path / "m.coexec"
    b = OnnxBuilder(x=(4, 8), scale=(5,), shift=())
    onnx.save(b.model(b.add("Add", b.add("Mul", linear(b, "x", 8, 5), "scale"), "shift")), path)
    given = ["--device", "pocl", "--split", "0.5", "--value", "scale=1,2.5,-3,0,1e-1", "--value", "shift=-7"]
    assert cli.main(["build", str(path), "--out", str(out), *given]) == 0
    module = tvm_coexec.load(out, device="pocl")
    x = np.random.default_rng(0).random((4, 8), np.float32)
    inputs = {"x": x, "scale": np.array([1, 2.5, -3, 0, 0.1], np.float32), "shift": np.array(-7, np.float32)}
    (expected,) = run_onnx(onnx.load(path), inputs).values()
    np.testing.assert_allclose(module(x), expected, rtol=1e-5, atol=1e-6)
    assert cli.main(["check", str(path), *given]) == 0
    for wrong in ("shift", "shift=", "shift=a", "shift=1,,2"):
        with pytest.raises(SystemExit):
            cli.main(["build", str(path), "--out", str(out), "--value", wrong])
        assert f"cannot read {wrong!r}; write an input's name and numbers" in capsys.readouterr().err
