"""Dimensions that a model leaves open: given by name, by option or argument, and asked for all at once."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx_builder import OnnxBuilder, linear, run_onnx

import tvm_coexec
from tvm_coexec import cli
from tvm_coexec.errors import ModelError
from tvm_coexec.frontends import to_graph
from tvm_coexec.runtime.device import Device

pytestmark = pytest.mark.one_runtime


def open_model() -> onnx.ModelProto:
    b = OnnxBuilder(x=("batch", 8), y=("batch", "width"), z=(3, None))
    shape = b.add("Shape", "y")
    same = b.add("Reshape", b.add("Relu", "y"), b.add("Concat", shape, axis=0))
    return b.model(linear(b, "x", 8, 5), same, b.add("Relu", "z"))


def test_open_dimensions_are_asked_for_all_at_once() -> None:
    with pytest.raises(ModelError, match=r"'x' \[batch, 8\], 'y' \[batch, width\], 'z' \[3, \?\].*--shape z=3,\?"):
        to_graph(open_model())
    with pytest.raises(ModelError, match=r"dynamic dimensions: 'y' \[4, width\], 'z'"):
        to_graph(open_model(), {"x": (4, 8)})


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"q": (1,)}, "a shape is given for 'q'; the inputs are x, y, z"),
        ({"x": (4, 9)}, r"input 'x' is \[batch, 8\]; the shape \[4, 9\] does not fit"),
        ({"x": (4,)}, "does not fit"),
        ({"x": (0, 8)}, "does not fit"),
        ({"x": (4, 8), "y": (5, 2)}, r"input 'y' is \[batch, width\]; the shape \[5, 2\] does not fit"),
    ],
)
def test_shapes_that_do_not_fit(shapes: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        to_graph(open_model(), shapes)


def test_a_bound_model_computes_what_it_should(device: Device) -> None:
    random = np.random.default_rng(0)
    inputs = {"x": random.random((4, 8)), "y": random.random((4, 6)), "z": random.random((3, 2))}
    given = {name: array.astype(np.float32) for name, array in inputs.items()}
    module = tvm_coexec.build(open_model(), device=device, split=0.5, shapes={"y": (4, 6), "z": (3, 2)})
    for name, expected in run_onnx(open_model(), given).items():
        np.testing.assert_allclose(module(**given)[name], expected, rtol=1e-5, atol=1e-6)


def test_a_dimension_of_minus_one_is_open(device: Device) -> None:
    b = OnnxBuilder(x=(-1, 8))
    model = b.model(linear(b, "x", 8, 5))
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = -1
    with pytest.raises(ModelError, match=r"dynamic dimensions: 'x' \[\?, 8\]"):
        to_graph(model)
    x = np.random.default_rng(0).random((4, 8), np.float32)
    module = tvm_coexec.build(model, device=device, split=0.5, shapes={"x": (4, 8)})
    (expected,) = run_onnx(model, {"x": x}).values()
    np.testing.assert_allclose(module(x=x), expected, rtol=1e-5, atol=1e-6)


def test_the_option_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    b = OnnxBuilder(x=("batch", 8))
    path, out = tmp_path / "m.onnx", tmp_path / "m.coexec"
    onnx.save(b.model(linear(b, "x", 8, 5)), path)
    build = ["build", str(path), "--device", "pocl", "--split", "0.5", "--out", str(out)]
    assert cli.main([*build, "--shape", "x=4,8"]) == 0
    assert tvm_coexec.load(out, device="pocl").inputs["x"].shape == (4, 8)
    with pytest.raises(SystemExit):
        cli.main([*build, "--shape", "x=4,eight"])
    assert "cannot read 'x=4,eight'" in capsys.readouterr().err
