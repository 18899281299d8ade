"""From a graph and a choice for each layer to a module's package: compiled code, packed constants, manifest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import schedules
from .errors import ModelError
from .graph import Graph, Node
from .kernels import Kernel, compile_half, link
from .layers import Linear, RowWise, Variant, layer_to_json
from .runtime.manifest import ArgumentSpec, ConstantSpec, HalfSpec, Manifest, StepSpec, TensorSpec
from .runtime.modulefile import Package
from .target import Target


def computable(node: Node) -> Linear | RowWise:
    """The node's layer, which modules must be able to hold.

    Raises
    ------
    ModelError
        They are not, naming the node.
    """
    if not isinstance(node.layer, Linear | RowWise):
        raise ModelError(
            f"node {node.name!r} is a {node.layer.op} layer, for which modules have no kernels; "
            "supported are linear and row-wise layers"
        )
    return node.layer


@dataclass(frozen=True)
class Choice:
    """How a layer is computed: the CPU's units, and each side's variant; None leaves that half out."""

    cpu_units: int
    cpu: Variant | None
    gpu: Variant | None


def package(
    graph: Graph,
    choices: Sequence[Choice],
    target: Target,
    device: Mapping[str, Any],
    plan: Mapping[str, Any],
    progress: Callable[[Iterable[Node]], Iterable[Node]] = iter,
) -> Package:
    """Compile every half and put the module together.

    Parameters
    ----------
    choices
        One for each node of the graph.
    progress
        Wraps the iteration over the nodes, as ``tqdm`` does.
    """
    kernels: list[Kernel] = []
    constants: dict[str, np.ndarray] = {}
    steps = []
    for index, node in enumerate(progress(graph.nodes)):
        choice = choices[index]
        packed = schedules.family(node.layer).pack(node.layer, node.params)
        constants.update({f"{node.name}.{role}": array for role, array in packed.items()})
        halves: dict[str, HalfSpec | None] = {}
        for side, variant in (("cpu", choice.cpu), ("gpu", choice.gpu)):
            halves[side] = None
            if variant is not None:
                kernels.append(compile_half(computable(node), side, variant, target))
                halves[side] = _half(node, side, variant, kernels[-1])
        steps.append(_step(node, choice, halves))
    manifest = Manifest(
        device=dict(device),
        tensors=tuple(TensorSpec(t.name, tuple(t.shape), t.channel_axes) for t in graph.tensors.values()),
        constants=tuple(ConstantSpec(name, array.shape) for name, array in constants.items()),
        inputs=tuple(graph.inputs),
        outputs=tuple(graph.outputs),
        steps=tuple(steps),
        plan=dict(plan),
    )
    return Package(manifest, link(k for k in kernels if k.side == "cpu"), _opencl(kernels), constants)


def _opencl(kernels: Sequence[Kernel]) -> str:
    sources = {kernel.symbol: kernel.code.decode() for kernel in kernels if kernel.side == "gpu"}
    return "\n".join(sources.values())


def _half(node: Node, side: str, variant: Variant, kernel: Kernel) -> HalfSpec:
    family = schedules.family(node.layer)
    sources = {"input": node.input, "residual": node.residual, "output": node.output}
    arguments = tuple(
        ArgumentSpec(role, sources.get(role) or f"{node.name}.{role}", shape)
        for role, shape in zip(family.operand_names(node.layer), kernel.shapes, strict=True)
    )
    launch = family.dispatch(node.layer, side, variant)
    return HalfSpec(kernel.symbol, arguments, variant.to_json(), launch.grid, launch.group, launch.unit_axis)


def _step(node: Node, choice: Choice, halves: Mapping[str, HalfSpec | None]) -> StepSpec:
    inputs = tuple(name for name in (node.input, node.residual) if name is not None)
    return StepSpec(
        name=node.name,
        layer=layer_to_json(node.layer),
        units=node.layer.units,
        axis="channels" if isinstance(node.layer, Linear) else "rows",
        cpu_units=choice.cpu_units,
        inputs=inputs,
        output=node.output,
        cpu=halves["cpu"],
        gpu=halves["gpu"],
    )


def single_layer(
    layer: Linear | RowWise, cpu: Variant, gpu: Variant, target: Target, device: Mapping[str, Any], seed: int = 1
) -> Package:
    """A module of one layer with random constants, for measuring; both halves are in it."""
    names = ["x", *(["r"] if "residual" in layer.epilogue else [])]
    columns = {"x": layer.k if isinstance(layer, Linear) else layer.n, "r": layer.n, "y": layer.n}
    kernels = [compile_half(layer, side, variant, target) for side, variant in (("cpu", cpu), ("gpu", gpu))]
    node = Node("layer", layer, "x", "r" if "r" in names else None, "y", {})
    halves = {
        kernel.side: _half(node, kernel.side, variant, kernel)
        for kernel, variant in zip(kernels, (cpu, gpu), strict=True)
    }
    step = _step(node, Choice(layer.units, cpu, gpu), halves)
    constants = tuple(
        ConstantSpec(argument.source, argument.shape, seed)
        for argument in halves["cpu"].arguments
        if argument.source.startswith("layer.")
    )
    tensors = tuple(TensorSpec(name, (layer.m, columns[name])) for name in [*names, "y"])
    manifest = Manifest(dict(device), tensors, constants, tuple(names), ("y",), (step,), {})
    return Package(manifest, link(kernels[:1]), kernels[1].code.decode(), {})
