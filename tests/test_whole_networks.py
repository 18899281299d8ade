"""Whole networks, built and run: every way to divide them gives what ONNX Runtime gives."""

import numpy as np
import onnx
import pytest
from networks import NETWORKS
from onnx_builder import light_network, random_inputs, run_onnx
from poison import poison

import tvm_coexec
from tvm_coexec.runtime.device import Device
from tvm_coexec.runtime.module import Module
from tvm_coexec.runtime.program import Work, network_reads, waits_of

SMALL = {
    "resnet18": {"size": 64, "width": 1 / 4, "classes": 10},
    "resnet50": {"size": 64, "width": 1 / 8, "classes": 10},
    "vgg16": {"size": 64, "width": 1 / 8, "classes": 10},
    "inception_v3": {"size": 75, "width": 1 / 4, "classes": 10},
    "mobilenet_v2": {"size": 64, "width": 1 / 2, "classes": 10},
    "squeezenet": {"size": 64, "width": 1 / 2, "classes": 10},
    "vit_b16": {"size": 64, "width": 1 / 4, "classes": 10},
    "minilm": {"size": 16, "width": 1 / 4, "depth": 2, "words": 100},
}


@pytest.fixture(scope="module", params=SMALL)
def model(request: pytest.FixtureRequest) -> onnx.ModelProto:
    sizes = SMALL[request.param]
    made: onnx.ModelProto = NETWORKS[request.param](**sizes)
    return made


def error(module: Module, inputs: dict[str, np.ndarray], expected: np.ndarray) -> float:
    poison(module)
    return float(np.abs(module(**inputs) - expected).max() / np.abs(expected).max())


def test_every_split_gives_the_same(model: onnx.ModelProto, device: Device) -> None:
    inputs = random_inputs(model)
    (expected,) = run_onnx(model, inputs).values()
    module = tvm_coexec.build(model, device=device, split=0.5)
    steps = module._executor.manifest.steps
    random = np.random.default_rng(3)
    assert error(module, inputs, expected) < 1e-4
    for choose in (
        lambda units: 0,
        lambda units: units,
        lambda units: min(1, units),
        lambda units: max(units - 1, 0),
        lambda units: int(random.integers(units + 1)),
    ):
        module.set_splits({step.name: choose(step.units) for step in steps if step.gpu and step.cpu})
        assert error(module, inputs, expected) < 1e-4
    use = module.memory
    assert use.activation_bound_bytes <= use.activation_bytes < use.peak_bytes


@pytest.mark.parametrize("name", ["bvlc_alexnet", "resnet50", "vgg19"])
def test_networks_of_the_onnx_package(name: str, device: Device) -> None:
    model = light_network(name)
    inputs = random_inputs(model)
    (expected,) = run_onnx(model, inputs).values()
    module = tvm_coexec.build(model, device=device, split=0.5)
    assert error(module, inputs, expected) < 1e-4
    assert np.argmax(module(**inputs)) == np.argmax(expected)


def test_memory_that_is_shared_makes_no_divided_step_wait(model: onnx.ModelProto, device: Device) -> None:
    manifest = tvm_coexec.build(model, device=device, split=0.5)._executor.manifest
    wholes = {tensor.name: tensor.wholes for tensor in manifest.tensors}
    needed, shared = (network_reads(manifest.steps, wholes, memory) for memory in (None, manifest.shared()))
    assert needed != shared
    for side in ("cpu", "gpu"):
        waits = [waits_of([Work(1, 1, read) for read in reads], side) for reads in (needed, shared)]
        assert waits[0] == waits[1]
