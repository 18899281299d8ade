"""From a model to answers: build, whatever the split, against ONNX Runtime; and what build refuses."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_builder import OnnxBuilder

import tvm_coexec
from tvm_coexec.errors import DeviceError, FileFormatError, InputError, ModelError
from tvm_coexec.prediction.evaluation import Evaluation
from tvm_coexec.runtime.device import Device

pytestmark = [pytest.mark.slow, pytest.mark.one_runtime]

BATCH, WIDTH, HIDDEN = 9, 70, 130


def block_model() -> onnx.ModelProto:
    """A transformer's MLP block and a head: layer normalisation, GELU, a residual, softmax; odd sizes."""
    rng = np.random.default_rng(5)
    shapes = {
        "gamma": [WIDTH],
        "beta": [WIDTH],
        "w1": [WIDTH, HIDDEN],
        "b1": [HIDDEN],
        "w2": [HIDDEN, WIDTH],
        "w3": [WIDTH, 10],
    }
    constants = {
        name: (rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32) for name, shape in shapes.items()
    }
    nodes = [
        helper.make_node("LayerNormalization", ["x", "gamma", "beta"], ["normal"], "norm", epsilon=1e-5),
        helper.make_node("MatMul", ["normal", "w1"], ["product"], "up"),
        helper.make_node("Add", ["product", "b1"], ["sum"]),
        helper.make_node("Gelu", ["sum"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "w2"], ["narrow"], "down"),
        helper.make_node("Add", ["narrow", "x"], ["block"]),
        helper.make_node("MatMul", ["block", "w3"], ["scores"], "head"),
        helper.make_node("Softmax", ["scores"], ["y"], axis=-1),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [3, 3, c]) for n, c in (("x", WIDTH), ("y", 10))]
    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "block", ends[:1], ends[1:], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return block_model()


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((3, 3, WIDTH), np.float32)


@pytest.fixture(scope="module")
def expected(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    return np.asarray(onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": images})[0])


@pytest.mark.parametrize("split", ["cpu", "gpu", 0.0, 0.5, 1, {"up": 1, "down": 0.5}, "measured"], ids=str)
def test_every_way_to_split_gives_onnxruntimes_answer(
    split: object, model: onnx.ModelProto, images: np.ndarray, expected: np.ndarray, device: Device
) -> None:
    module = tvm_coexec.build(model, device=device, split=split)  # type: ignore[arg-type]
    module.outputs["y"][:] = np.nan
    np.testing.assert_allclose(module(images), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(module(x=images), module(images))
    assert len(module.plan.layers) == len(module.splits)


def test_a_tuned_profile_predicts_a_plan_and_the_module_survives_its_file(
    model: onnx.ModelProto,
    images: np.ndarray,
    expected: np.ndarray,
    device: Device,
    tuned: tuple[Path, list[Evaluation]],
    tmp_path: Path,
) -> None:
    profile, evaluations = tuned
    assert isinstance(evaluations[0], Evaluation) and [one.side for one in evaluations] == ["cpu", "gpu"]
    module = tvm_coexec.build(model, device=device, profile=profile)
    np.testing.assert_allclose(module(images), expected, rtol=1e-4, atol=1e-6)
    assert all(layer.total_us > 0 and layer.reason for layer in module.plan.layers)
    module.export(tmp_path / "m.coexec")
    np.testing.assert_array_equal(tvm_coexec.load(tmp_path / "m.coexec", device=device)(images), module(images))
    again = tvm_coexec.build(model, device=device, profile=profile, split={"up": 0})
    assert again.splits["up"] == 0


def test_a_model_that_was_tuned_for_keeps_the_best_plan_that_was_tried(
    model: onnx.ModelProto,
    images: np.ndarray,
    expected: np.ndarray,
    device: Device,
    tuned: tuple[Path, list[Evaluation]],
    tmp_path: Path,
) -> None:
    profile = tmp_path / "profile"
    shutil.copytree(tuned[0], profile)
    tvm_coexec.tune(profile, device=device.info.name, minutes=0.01, models=[model], families=["linear", "rowwise"])
    module = tvm_coexec.build(model, device=device, profile=profile)
    assert module.plan.tried and module.plan.total_us > 0
    np.testing.assert_allclose(module(images), expected, rtol=1e-4, atol=1e-6)
    chosen = tvm_coexec.build(model, device=device, profile=profile, split={"up": 0})
    assert chosen.splits["up"] == 0 and not chosen.plan.tried


def test_a_path_builds_as_the_model_does(model: onnx.ModelProto, device: Device, tmp_path: Path) -> None:
    onnx.save(model, tmp_path / "m.onnx")
    assert tvm_coexec.build(tmp_path / "m.onnx", device=device, split="cpu").sync_count == 0


def test_an_input_without_axes_may_be_a_scalar_of_numpy(device: Device) -> None:
    b = OnnxBuilder(x=(3, 40), s=())
    module = tvm_coexec.build(b.model(b.add("Mul", b.add("Relu", "x"), "s")), device=device, split="cpu")
    x = np.linspace(-1, 1, 120, dtype=np.float32).reshape(3, 40)
    for factor in (np.float32(2), np.array(2, np.float32)):
        np.testing.assert_allclose(module(x, factor), 2 * np.maximum(x, 0), rtol=1e-6)
    with pytest.raises(InputError, match=r"float32 array of shape \(\), not float64"):
        module(x, np.float64(2))


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("fast", "none of predicted, measured, cpu, gpu"),
        (1.5, "number from 0 to 1"),
        (True, "number from 0 to 1"),
        ({"nope": 1}, "names layer 'nope'"),
        ({"up": 99}, "cannot compute 99"),
        ("predicted", "needs a profile"),
    ],
    ids=str,
)
def test_wrong_splits_are_refused(split: object, message: str, model: onnx.ModelProto, device: Device) -> None:
    with pytest.raises(InputError, match=message):
        tvm_coexec.build(model, device=device, split=split)  # type: ignore[arg-type]


def test_what_cannot_be_built_is_named(device: Device, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model file"):
        tvm_coexec.build(tmp_path / "none.onnx", device=device, split="cpu")
    with pytest.raises(FileFormatError, match="no profile at"):
        tvm_coexec.build(block_model(), device=device, profile=tmp_path / "none")
    with pytest.raises(DeviceError, match="'nope'"):
        tvm_coexec.build(block_model(), device="nope", split="cpu")


def test_importing_the_package_imports_nothing_heavy() -> None:
    heavy = ("tvm", "xgboost", "pyopencl", "numpy", "onnx")
    code = f"import sys, tvm_coexec; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_loading_a_module_needs_no_compiler(device: Device, tmp_path: Path) -> None:
    tvm_coexec.build(block_model(), device=device, split=0.5).export(tmp_path / "m.coexec")
    code = f"""
import sys, numpy, tvm_coexec
module = tvm_coexec.load({str(tmp_path / "m.coexec")!r})
module(numpy.zeros((3, 3, {WIDTH}), numpy.float32))
print([name for name in ("tvm", "tvm_ffi", "xgboost", "onnx") if name in sys.modules])
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
