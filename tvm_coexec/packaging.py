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
from .layers import SCRATCH, AnyLayer, Conv2d, ImageLayouts, Linear, Opaque, RowWise, Variant, layer_to_json
from .runtime.manifest import ArgumentSpec, ConstantSpec, HalfSpec, LaunchSpec, Manifest, StepSpec, TensorSpec
from .runtime.modulefile import Package
from .target import Target


def computable(node: Node) -> Linear | RowWise | Opaque:
    """The node's layer, which modules must be able to hold.

    Raises
    ------
    ModelError
        They are not, naming the node.
    """
    if not isinstance(node.layer, Linear | RowWise | Opaque):
        raise ModelError(
            f"node {node.name!r} is a {node.layer.op} layer, for which modules have no kernels; "
            "supported are linear, row-wise and opaque layers"
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
        others = {f"input{number}": name for number, name in enumerate(node.others, 1)}
        roles = {"input": node.input, **others, "residual": node.residual, "output": node.output}
        halves = _Halves(node.name, node.layer, roles)
        choice = choices[index]
        for side, variant in (("cpu", choice.cpu), ("gpu", choice.gpu)):
            if variant is not None:
                halves.add(side, variant, target)
                packed = schedules.family(node.layer).pack(node.layer, node.params, variant)
                constants.update({halves.constant(role): array for role, array in packed.items()})
        kernels += halves.kernels
        steps.append(halves.step(choice.cpu_units))
    manifest = Manifest(
        device=dict(device),
        tensors=tuple(
            TensorSpec(t.name, tuple(t.shape), t.channel_axes, dtype=t.dtype) for t in graph.tensors.values()
        ),
        constants=tuple(ConstantSpec(name, array.shape, str(array.dtype)) for name, array in constants.items()),
        inputs=tuple(graph.inputs),
        outputs=tuple(graph.outputs),
        steps=tuple(steps),
        plan=dict(plan),
    )
    return _package(manifest, kernels, constants)


def _package(manifest: Manifest, kernels: Sequence[Kernel], constants: Mapping[str, np.ndarray]) -> Package:
    sources = {kernel.symbol: kernel.code.decode() for kernel in kernels if kernel.side == "gpu"}
    return Package(manifest, link(k for k in kernels if k.side == "cpu"), "\n".join(sources.values()), constants)


class _Halves:
    """The halves of a layer as they are compiled; ``tensors`` maps the roles of activations to their names."""

    def __init__(
        self,
        name: str,
        layer: AnyLayer,
        tensors: Mapping[str, str | None],
        layouts: ImageLayouts | None = None,
    ) -> None:
        self.name, self.layer, self.layouts = name, layer, layouts
        self.tensors = {role: tensor for role, tensor in tensors.items() if tensor is not None}
        self.kernels: list[Kernel] = []
        self._specs: dict[str, HalfSpec] = {}

    def constant(self, role: str) -> str:
        return f"{self.name}.{role}"

    def add(self, side: str, variant: Variant, target: Target) -> None:
        """Compile a half."""
        kernels = compile_half(self.layer, side, variant, target, self.layouts)
        self.kernels += kernels
        launches = tuple(self._launch(kernel) for kernel in kernels)
        self._specs[side] = HalfSpec(variant.to_json(), launches)

    def _launch(self, kernel: Kernel) -> LaunchSpec:
        arguments = tuple(
            ArgumentSpec(role, self._source(role, kernel.side), shape, dtype) for role, shape, dtype in kernel.operands
        )
        dispatch = kernel.dispatch
        return LaunchSpec(kernel.symbol, arguments, dispatch.grid, dispatch.group, dispatch.unit_axis)

    def _source(self, role: str, side: str) -> str:
        """Scratch is a half's own, constants are read by both."""
        if role.startswith(SCRATCH):
            return f"{self.name}.{side}.{role}"
        return self.tensors.get(role) or self.constant(role)

    def step(self, cpu_units: int, seed: int | None = None) -> StepSpec:
        return StepSpec(
            name=self.name,
            layer=layer_to_json(self.layer),
            units=self.layer.units,
            axis=self.layer.axis,
            cpu_units=cpu_units,
            inputs=tuple(name for role, name in self.tensors.items() if role != "output"),
            output=self.tensors["output"],
            cpu=self._specs.get("cpu"),
            gpu=self._specs.get("gpu"),
            seed=seed,
        )


def single_layer(
    layer: AnyLayer, cpu: Variant, gpu: Variant, target: Target, device: Mapping[str, Any], seed: int = 1
) -> Package:
    """A module of one layer with random parameters, for measuring; both halves are in it."""
    tensors = _own_tensors(layer)
    layouts = ImageLayouts.alone(layer) if isinstance(layer, Conv2d) else None
    halves = _Halves("layer", layer, {role: tensor.name for role, tensor in tensors.items()}, layouts)
    halves.add("cpu", cpu, target)
    halves.add("gpu", gpu, target)
    step = halves.step(layer.units, seed)
    manifest = Manifest(dict(device), tuple(tensors.values()), (), step.inputs, (step.output,), (step,), {})
    return _package(manifest, halves.kernels, {})


def _own_tensors(layer: AnyLayer) -> dict[str, TensorSpec]:
    """The activations of a network that consists of one layer, by their roles."""
    layouts = ImageLayouts.alone(layer) if isinstance(layer, Conv2d) else None
    tensors = {
        "input": TensorSpec("x", layer.input_sizes[0], layout=layouts.input if layouts else None),
        "residual": TensorSpec("r", layer.output_size, layout=layouts.residual if layouts else None),
        "output": TensorSpec("y", layer.output_size, layout=layouts.output if layouts else None),
    }
    if "residual" not in layer.epilogue:
        del tensors["residual"]
    return tensors
