"""Modules of one layer, and chains of linear layers, for tests of what runs them."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from tvm_coexec import schedules
from tvm_coexec.compiler.packaging import Choice, package
from tvm_coexec.compiler.probes import single_layer
from tvm_coexec.compiler.target import target_for
from tvm_coexec.graph import Graph, Node, Tensor
from tvm_coexec.layers import TILE, AnyLayer, Hardware, Linear
from tvm_coexec.module.package import Package
from tvm_coexec.module.tensors import TAPS, ConstantSpec
from tvm_coexec.runtime.device import Device
from tvm_coexec.verification.reference import evaluate


def one_layer(layer: AnyLayer, device: Device, gpu: Hardware | None = None) -> Package:
    """A module of a layer in its default variants; the GPU's is for some other ``gpu``, if one is given."""
    facts = device.facts()
    target, family = target_for(facts), schedules.family(layer)
    cpu_variant = family.default_variant(layer, "cpu", target.hardware)
    gpu_variant = family.default_variant(layer, "gpu", gpu or target.hardware)
    return single_layer(layer, cpu_variant, gpu_variant, target, facts)


def with_cut_waits(built: Package) -> Package:
    """The module whose GPU gives up every wait for what is not there yet."""
    waits = "coexec_wait_for(flags, awaited, limit);"
    gives_up = "COEXEC_STORE(flags + COEXEC_GPU_GAVE_UP, awaited); COEXEC_STORE(flags + COEXEC_ABORT, 1);"
    at_once = f"if (COEXEC_LOAD(flags + COEXEC_CPU_DONE) < awaited) {{ {gives_up} }}"
    assert waits in built.opencl_source
    return replace(built, opencl_source=built.opencl_source.replace(waits, at_once))


def with_constants(built: Package, **constants: np.ndarray) -> Package:
    """The package with constants that nothing reads."""
    return with_stored(
        built, {ConstantSpec("nothing", role, one.shape, str(one.dtype)): one for role, one in constants.items()}
    )


def with_stored(built: Package, constants: Mapping[ConstantSpec, np.ndarray]) -> Package:
    """The package with further constants, of which its file says whatever it is to say."""
    manifest = replace(built.manifest, constants=(*built.manifest.constants, *constants))
    return replace(
        built, manifest=manifest, constants={**built.constants, **{spec.source: one for spec, one in constants.items()}}
    )


def with_kernels(built: Package, tiles: int = 2, in_channels: int = 4) -> Package:
    """The package with 3×3 kernels, of which weights of Winograd's are made that nothing reads."""
    shape = (tiles, TAPS, in_channels, TILE)
    kernels = np.random.default_rng(0).standard_normal(shape, np.float32)
    return with_stored(built, {ConstantSpec("nothing", f"kernels{m}", shape, winograd=m): kernels for m in (2, 4)})


def chain(device: Device, depth: int, m: int, width: int) -> tuple[Package, list[Node]]:
    """A module of such layers, and its nodes."""
    graph, choices = chain_of(device, depth, m, width)
    return package(graph, choices, target_for(device.facts()), device.facts()), graph.nodes


def chain_of(device: Device, depth: int, m: int, width: int) -> tuple[Graph, list[Choice]]:
    """Layers with a residual over every second one, so that dependencies reach back; each divided in the middle."""
    rng = np.random.default_rng(3)
    target = target_for(device.facts())
    tensors = {f"t{i}": Tensor(f"t{i}", (m, width)) for i in range(depth + 1)}
    nodes = []
    for i in range(depth):
        residual = f"t{i - 1}" if i % 2 else None
        layer = Linear(m, width, width, ("bias", *(["residual"] if residual else []), "relu"))
        params = {
            "weights": rng.standard_normal((width, width), np.float32) / 8,
            "bias": rng.standard_normal(width, np.float32),
        }
        nodes.append(Node(f"layer{i}", layer, f"t{i}", residual, f"t{i + 1}", params))
    graph = Graph(tensors, ["t0"], [f"t{depth}"], nodes)
    graph.validate()
    family = schedules.family(nodes[0].layer)
    choices = [
        Choice(
            node.layer.units // 2,
            *(family.default_variant(node.layer, side, target.hardware) for side in ("cpu", "gpu")),
        )
        for node in nodes
    ]
    return graph, choices


def expected(nodes: list[Node], x: np.ndarray) -> np.ndarray:
    values: dict[str, Any] = {"t0": x}
    for node in nodes:
        operands = {"input": values[node.input], **node.params}
        if node.residual:
            operands["residual"] = values[node.residual]
        values[node.output] = evaluate(node.layer, operands)
    return values[nodes[-1].output]
