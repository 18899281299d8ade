"""Modules that are made for measuring: single layers, halved networks, and the canary that tells a steady machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tvm_coexec import schedules
from tvm_coexec.graph import Graph, Node, Tensor
from tvm_coexec.layers import (
    AnyLayer,
    ImageLayouts,
    Linear,
    Variant,
)
from tvm_coexec.module.manifest import Manifest
from tvm_coexec.module.package import Package
from tvm_coexec.module.tensors import TensorSpec

from .packaging import Choice, Halves, linked, package
from .target import Target


def single_layer(
    layer: AnyLayer, cpu: Variant, gpu: Variant, target: Target, device: Mapping[str, Any], seed: int = 1
) -> Package:
    """A module of one layer with random parameters, for measuring; both halves are in it."""
    tensors = _own_tensors(layer)
    layouts = _own_layouts(layer)
    halves = Halves("layer", layer, {role: tensor.name for role, tensor in tensors.items()}, layouts, seed)
    halves.add("cpu", cpu, target)
    halves.add("gpu", gpu, target)
    step = halves.step(layer.units)
    manifest = Manifest(dict(device), tuple(tensors.values()), (), step.inputs, (step.output,), (step,), {})
    return linked(manifest, halves.kernels, {}, target)


def package_halved(graph: Graph, target: Target, device: Mapping[str, Any]) -> Package:
    """A module for measuring, each of whose layers is halved as far as its units allow, by the default variants."""
    choices = []
    for node in graph.nodes:
        family = schedules.family(node.layer)
        cpu, gpu = (family.default_variant(node.layer, side, target.hardware) for side in ("cpu", "gpu"))
        choices.append(Choice(node.layer.units // 2, cpu, gpu))
    return package(graph, choices, target, device, seed=1)


def halved_chain(layer: Linear, depth: int, target: Target, device: Mapping[str, Any]) -> Package:
    """Build a module for measuring: equal layers in a chain, each as wide as its input, half of it on either side."""
    names = [f"t{index}" for index in range(depth + 1)]
    tensors = {name: Tensor(name, (layer.m, layer.n)) for name in names}
    nodes = [Node(f"layer{index}", layer, names[index], None, names[index + 1], {}) for index in range(depth)]
    return package_halved(Graph(tensors, names[:1], names[-1:], nodes), target, device)


_CANARY_LAYER, _CANARY_DEPTH = Linear(512, 64, 64), 8
"""Work for some 0.2 ms on two cores of a server, half of which each hands over to the other."""


def canary(target: Target, device: Mapping[str, Any]) -> Package:
    """A chain of layers by which :class:`tvm_coexec.bench.steadiness.Canary` sees how fast the machine is.

    Each side computes half of every layer and reads what both have just computed: how fast cores compute by themselves
    says nothing of a machine whose cores may lie far from each other.
    """
    return halved_chain(_CANARY_LAYER, _CANARY_DEPTH, target, device)


def _own_layouts(layer: AnyLayer) -> ImageLayouts | None:
    """Those of a layer that is measured by itself; None where its activations are no images."""
    return ImageLayouts.alone(layer) if len(layer.output_size) == 4 else None


def _own_tensors(layer: AnyLayer) -> dict[str, TensorSpec]:
    """The activations of a network that consists of one layer, by their roles."""
    layouts = _own_layouts(layer)
    tensors = {}
    for index, size in enumerate(layer.input_sizes):
        number = str(index) if index else ""
        layout = layouts.inputs[index] if layouts else None
        tensors[f"input{number}"] = TensorSpec.of_size(f"x{number}", size, layout)
    if "residual" in layer.epilogue:
        tensors["residual"] = TensorSpec.of_size("r", layer.output_size, layouts.residual if layouts else None)
    return tensors | {"output": TensorSpec.of_size("y", layer.output_size, layouts.output if layouts else None)}
