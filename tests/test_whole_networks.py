"""Whole networks, built and run: every way to divide them gives what ONNX Runtime gives."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx
import pytest
from networks import NETWORKS
from onnx_builder import light_network, random_inputs, run_onnx
from poison import poison

import tvm_coexec
from tvm_coexec import schedules
from tvm_coexec.compiler import buffers
from tvm_coexec.compiler.buffers import halos_to_clear
from tvm_coexec.compiler.packaging import Choice, package
from tvm_coexec.compiler.target import target_for
from tvm_coexec.frontends import to_graph
from tvm_coexec.graph.dependencies import Read, Work, waits_of
from tvm_coexec.layers import by_lines
from tvm_coexec.module.manifest import Manifest
from tvm_coexec.module.package import Package
from tvm_coexec.runtime.device import Device, open_device
from tvm_coexec.runtime.module import Module

pytestmark = pytest.mark.slow

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


@pytest.fixture(autouse=True)
def all_memory_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small networks have little memory to share, for which no halo would be cleared, and nobody would wait."""
    monkeypatch.setattr(buffers, "_CLEARING_WORDS", 0)
    monkeypatch.setattr(buffers, "_WAITING_WORDS", 0)


@pytest.fixture(scope="module", params=SMALL)
def model(request: pytest.FixtureRequest) -> onnx.ModelProto:
    sizes = SMALL[request.param]
    made: onnx.ModelProto = NETWORKS[request.param](**sizes)
    return made


def error(module: Module, inputs: dict[str, np.ndarray], expected: np.ndarray) -> float:
    poison(module)
    return float(np.abs(module(**inputs) - expected).max() / np.abs(expected).max())


@pytest.mark.one_runtime
def test_every_split_gives_the_same(model: onnx.ModelProto, device: Device) -> None:
    inputs = random_inputs(model)
    (expected,) = run_onnx(model, inputs).values()
    module = tvm_coexec.build(model, device=device, split=0.5)
    if device.mechanism == "svm":
        assert len(module.plan.syncs) == module.sync_count
    steps = module.manifest.steps
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


@pytest.mark.one_runtime
@pytest.mark.parametrize("name", ["bvlc_alexnet", "resnet50"])
def test_networks_of_the_onnx_package(name: str, device: Device) -> None:
    model = light_network(name)
    inputs = random_inputs(model)
    (expected,) = run_onnx(model, inputs).values()
    module = tvm_coexec.build(model, device=device, split=0.5)
    assert error(module, inputs, expected) < 1e-4
    assert np.argmax(module(**inputs)) == np.argmax(expected)


def divided_at_random(model: onnx.ModelProto, device: Device, seed: int, lines: float = 0.7) -> Module:
    return Module(packaged_at_random(model, device, seed, lines), device)


def packaged_at_random(model: onnx.ModelProto, device: Device, seed: int, lines: float) -> Package:
    """The network, each layer divided at a random place, such a share of those that can be by lines, or by channels."""
    graph, facts = to_graph(model), device.facts()
    target, random = target_for(facts), np.random.default_rng(seed)
    choices = []
    for node in graph.nodes:
        family = schedules.family(node.layer)
        if family.variants(node.layer, "gpu", target.hardware):
            node.layer = by_lines(node.layer) or node.layer if random.random() < lines else node.layer
            variants = [family.default_variant(node.layer, side, target.hardware) for side in ("cpu", "gpu")]
            choices.append(Choice(int(random.integers(node.layer.units + 1)), *variants))
        else:
            choices.append(Choice(node.layer.units, family.default_variant(node.layer, "cpu", target.hardware), None))
    return package(graph, choices, target, facts)


def waits_with_and_without_memory(manifest: Manifest) -> tuple[list[dict[int, int]], list[dict[int, int]]]:
    """The waits of both sides of a module whose steps are all divided, and those that its data needs."""
    data = [tuple(read for read in reads if not read.overwrites) for reads in manifest.reads()]
    assert data != manifest.reads(), "memory is shared"

    def waits(reads: Sequence[tuple[Read, ...]]) -> list[dict[int, int]]:
        works = [Work(1, 1, read, axis=step.axis) for read, step in zip(reads, manifest.steps, strict=True)]
        return [waits_of(works, side) for side in ("cpu", "gpu")]

    return waits(manifest.reads()), waits(data)


@pytest.mark.one_runtime
def test_where_waits_are_dear_nobody_waits_for_memory(model: onnx.ModelProto, device: Device) -> None:
    apart = open_device(device.info.name, mechanism="event")
    built = tvm_coexec.package(model, apart.facts(), split=0.5)
    shared, needed = waits_with_and_without_memory(built.manifest)
    assert shared == needed


def test_where_waits_are_cheap_they_save_memory(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    if device.mechanism != "svm":
        pytest.skip(f"{device.info.name} has no fine-grained SVM with atomics")
    model = NETWORKS["mobilenet_v2"](**SMALL["mobilenet_v2"])
    inputs = random_inputs(model)
    (expected,) = run_onnx(model, inputs).values()
    module = divided_at_random(model, device, seed=0, lines=1.0)
    shared, needed = waits_with_and_without_memory(module.manifest)
    assert sum(map(len, shared)) > sum(map(len, needed))
    assert error(module, inputs, expected) < 1e-4
    assert error(module, inputs, expected) < 1e-4, "the second run finds what the first one left"
    monkeypatch.setattr(buffers, "_WAITING_WORDS", 1 << 40)
    without = divided_at_random(model, device, seed=0, lines=1.0)
    assert without.memory.activation_bytes > module.memory.activation_bytes


@pytest.mark.parametrize(
    "name",
    ["mobilenet_v2", *(pytest.param(name, marks=pytest.mark.one_runtime) for name in ("resnet18", "inception_v3"))],
)
def test_layers_divided_by_lines_and_by_channels_follow_each_other(name: str, device: Device) -> None:
    model = NETWORKS[name](**SMALL[name])
    inputs = random_inputs(model)
    (expected,) = run_onnx(model, inputs).values()
    module = divided_at_random(model, device, seed=0)
    assert {"lines", "channels"} <= {step.axis for step in module.manifest.steps}
    assert error(module, inputs, expected) < 1e-4
    assert error(module, inputs, expected) < 1e-4, "the second run finds what the first one left"


def test_lines_are_exchanged_where_memory_is_not_shared(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    apart = open_device(device.info.name, mechanism="event")
    monkeypatch.setattr(apart, "info", replace(apart.info, unified_memory=False))
    model = NETWORKS["squeezenet"](**SMALL["squeezenet"])
    inputs = random_inputs(model)
    (expected,) = run_onnx(model, inputs).values()
    assert error(divided_at_random(model, apart, seed=0), inputs, expected) < 1e-4


def test_cleared_halos_are_exchanged_where_memory_is_not_shared(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    apart = open_device(device.info.name, mechanism="event")
    monkeypatch.setattr(apart, "info", replace(apart.info, unified_memory=False))
    model = NETWORKS["mobilenet_v2"](**SMALL["mobilenet_v2"])
    inputs = random_inputs(model)
    (expected,) = run_onnx(model, inputs).values()
    module = divided_at_random(model, apart, seed=0, lines=1.0)
    manifest = module.manifest
    cleared = halos_to_clear(manifest.tensors)
    clearing = [step for step in manifest.steps if step.output in cleared]
    assert any(step.axis == "lines" for step in clearing)
    for side in ("cpu", "gpu"):
        module.set_splits(
            {step.name: step.units if (side == "cpu") == (step in clearing) else 0 for step in manifest.steps}
        )
        assert error(module, inputs, expected) < 1e-4, f"what clears halos is on the {side} alone, the rest is not"
