"""From a graph and a choice for each layer to a module's package: compiled code, packed constants, manifest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from . import schedules
from .graph import Graph, Node, Tensor
from .kernels import Kernel, compile_clearing, compile_half, link
from .layers import (
    SCRATCH,
    AnyLayer,
    ImageLayer,
    ImageLayout,
    ImageLayouts,
    Linear,
    Opaque,
    Variant,
    layer_to_json,
    line_block,
    reads_locally,
    unit_channels,
)
from .layouts import image_layouts, node_layouts
from .planning.synchronisations import synchronisations
from .runtime.manifest import ArgumentSpec, ConstantSpec, HalfSpec, LaunchSpec, Manifest, Source, StepSpec, TensorSpec
from .runtime.modulefile import Package
from .schedules.halo import Halo
from .slots import assign_slots, halos_to_clear
from .target import Target

if TYPE_CHECKING:
    from .planning.plan import Plan


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
    progress: Callable[[Iterable[Node]], Iterable[Node]] = iter,
    seed: int | None = None,
) -> Package:
    """Compile every half and put the module together.

    Parameters
    ----------
    choices
        One for each node of the graph.
    seed
        If given, random numbers stand for the parameters of all layers but opaque ones: the module is for measuring,
        and light enough to be sent.
    progress
        Wraps the iteration over the nodes, as ``tqdm`` does.
    """
    constants: dict[Source, np.ndarray] = {}
    layouts = image_layouts(graph)
    tensors = {name: _tensor_spec(tensor, layouts.get(name), graph) for name, tensor in graph.tensors.items()}
    nodes = []
    for node, choice in zip(progress(graph.nodes), choices, strict=True):
        own_seed = None if isinstance(node.layer, Opaque) else seed
        halves = _Halves(node.name, node.layer, _roles(node), node_layouts(node, layouts), own_seed)
        for side, variant in (("cpu", choice.cpu), ("gpu", choice.gpu)):
            if variant is not None:
                halves.add(side, variant, target)
                if halves.seed is None:
                    packed = schedules.family(node.layer).pack(node.layer, node.params, variant)
                    constants |= {Source.constant(node.name, role): array for role, array in packed.items()}
        nodes.append(halves)
    steps = [halves.step(choice.cpu_units) for halves, choice in zip(nodes, choices, strict=True)]
    manifest = Manifest(
        device=dict(device),
        tensors=tuple(tensors.values()),
        constants=tuple(
            ConstantSpec(source.owner, source.role, array.shape, str(array.dtype))
            for source, array in constants.items()
        ),
        inputs=tuple(graph.inputs),
        outputs=tuple(graph.outputs),
        steps=tuple(steps),
        plan={},
    )
    kept, may_wait = {*graph.inputs, *graph.outputs}, device["mechanism"] == "svm"
    slotted = assign_slots(manifest.tensors, steps, manifest.tensor_words(), kept, may_wait=may_wait)
    to_clear = halos_to_clear(slotted)
    for halves in nodes:
        if (output := halves.tensors["output"]) in to_clear:
            halves.clear_halo(tensors[output], target)
    steps = [halves.step(choice.cpu_units) for halves, choice in zip(nodes, choices, strict=True)]
    kernels = [kernel for halves in nodes for kernel in halves.kernels]
    return _package(replace(manifest, tensors=slotted, steps=tuple(steps)), kernels, constants)


def package_plan(
    graph: Graph,
    plan: Plan,
    target: Target,
    device: Mapping[str, Any],
    progress: Callable[[Iterable[Node]], Iterable[Node]] = iter,
    seed: int | None = None,
) -> Package:
    """The module of a graph whose layers are divided as planned; see :func:`package`.

    Its plan lists those synchronisations, too, that are there since tensors share memory.
    """
    choices = [Choice(layer.cpu_units, layer.cpu, layer.gpu) for layer in plan.layers]
    divided = [replace(node, layer=layer.layer) for node, layer in zip(graph.nodes, plan.layers, strict=True)]
    built = package(replace(graph, nodes=divided), choices, target, device, progress, seed)
    listed = replace(plan, syncs=tuple(synchronisations(plan.layers, built.manifest.reads())))
    return replace(built, manifest=replace(built.manifest, plan=listed.to_json()))


def _roles(node: Node) -> dict[str, str | None]:
    """The tensors of a node by their roles."""
    others = {f"input{place}": name for place, name in enumerate(node.others, 1)}
    return {"input": node.input, **others, "residual": node.residual, "output": node.output}


def _tensor_spec(tensor: Tensor, layout: ImageLayout | None, graph: Graph) -> TensorSpec:
    return TensorSpec(
        tensor.name,
        tuple(tensor.shape),
        tensor.channel_axes,
        layout,
        tensor.image,
        tensor.channels_first,
        tensor.dtype,
        wholes=graph.wholes(tensor.name),
    )


def _package(manifest: Manifest, kernels: Sequence[Kernel], constants: Mapping[Source, np.ndarray]) -> Package:
    sources = {kernel.symbol: kernel.code.decode() for kernel in kernels if kernel.side == "gpu"}
    return Package(manifest, link(k for k in kernels if k.side == "cpu"), "\n".join(sources.values()), constants)


class _Halves:
    """The halves of a layer as they are compiled.

    ``tensors`` maps the roles of activations to their names, those of inputs in order and the residual's behind them.
    With a ``seed`` the parameters are random numbers, which the module does not hold.
    """

    def __init__(
        self,
        name: str,
        layer: AnyLayer,
        tensors: Mapping[str, str | None],
        layouts: ImageLayouts | None = None,
        seed: int | None = None,
    ) -> None:
        self.name, self.layer, self.layouts, self.seed = name, layer, layouts, seed
        self.tensors = {role: tensor for role, tensor in tensors.items() if tensor is not None}
        self.kernels: list[Kernel] = []
        self._specs: dict[str, HalfSpec] = {}

    def add(self, side: str, variant: Variant, target: Target) -> None:
        """Compile a half."""
        kernels = compile_half(self.layer, side, variant, target, self.layouts)
        self._specs[side] = HalfSpec(variant.to_json(), self._launches(kernels))

    def clear_halo(self, output: TensorSpec, target: Target) -> None:
        """Let the halves that were added end with the clearing of the halo beside what they write."""
        assert output.image is not None and output.layout is not None
        halo = Halo(output.image, output.layout, self.layer.units, self.layer.axis)
        for side, spec in self._specs.items():
            launches = self._launches(compile_clearing(halo, side, target))
            self._specs[side] = replace(spec, launches=(*spec.launches, *launches))

    def _launches(self, kernels: Sequence[Kernel]) -> tuple[LaunchSpec, ...]:
        self.kernels += kernels
        return tuple(self._launch(kernel) for kernel in kernels)

    def _launch(self, kernel: Kernel) -> LaunchSpec:
        arguments = tuple(
            ArgumentSpec(role, self._source(role, kernel.side), shape, dtype) for role, shape, dtype in kernel.operands
        )
        dispatch = kernel.dispatch
        return LaunchSpec(kernel.symbol, arguments, dispatch.grid, dispatch.group, dispatch.unit_axis)

    def _source(self, role: str, side: str) -> Source:
        if role.startswith(SCRATCH):
            return Source.scratch(side, role)
        return Source.tensor(self.tensors[role]) if role in self.tensors else Source.constant(self.name, role)

    def step(self, cpu_units: int) -> StepSpec:
        return StepSpec(
            name=self.name,
            layer=layer_to_json(self.layer),
            units=self.layer.units,
            axis=self.layer.axis,
            cpu_units=cpu_units,
            inputs=tuple(dict.fromkeys(tensor for role, tensor in self.tensors.items() if role != "output")),
            output=self.tensors["output"],
            cpu=self._specs.get("cpu"),
            gpu=self._specs.get("gpu"),
            seed=self.seed,
            local_inputs=tuple(self._local_inputs()),
            unit_channels=unit_channels(self.layer),
            unit_lines=line_block(self.layer.output_size[1]) if self.layer.axis == "lines" else None,
        )

    def _local_inputs(self) -> Iterator[str]:
        """Tensors that are read locally in every role that they have."""
        roles = [role for role in self.tensors if role != "output"]
        whole = {self.tensors[role] for role in roles if not reads_locally(self.layer, role)}
        yield from dict.fromkeys(self.tensors[role] for role in roles if self.tensors[role] not in whole)


def single_layer(
    layer: AnyLayer, cpu: Variant, gpu: Variant, target: Target, device: Mapping[str, Any], seed: int = 1
) -> Package:
    """A module of one layer with random parameters, for measuring; both halves are in it."""
    tensors = _own_tensors(layer)
    layouts = _own_layouts(layer)
    halves = _Halves("layer", layer, {role: tensor.name for role, tensor in tensors.items()}, layouts, seed)
    halves.add("cpu", cpu, target)
    halves.add("gpu", gpu, target)
    step = halves.step(layer.units)
    manifest = Manifest(dict(device), tuple(tensors.values()), (), step.inputs, (step.output,), (step,), {})
    return _package(manifest, halves.kernels, {})


def package_halved(graph: Graph, target: Target, device: Mapping[str, Any]) -> Package:
    """A module for measuring, each of whose layers is halved as far as its units allow, by the default variants."""
    choices = []
    for node in graph.nodes:
        family = schedules.family(node.layer)
        cpu, gpu = (family.default_variant(node.layer, side, target.hardware) for side in ("cpu", "gpu"))
        choices.append(Choice(node.layer.units // 2, cpu, gpu))
    return package(graph, choices, target, device, seed=1)


def halved_chain(layer: Linear, depth: int, target: Target, device: Mapping[str, Any]) -> Package:
    """A module for measuring: equal layers in a chain, each as wide as its input, half of it on either side."""
    names = [f"t{place}" for place in range(depth + 1)]
    tensors = {name: Tensor(name, (layer.m, layer.n)) for name in names}
    nodes = [Node(f"layer{place}", layer, names[place], None, names[place + 1], {}) for place in range(depth)]
    return package_halved(Graph(tensors, names[:1], names[-1:], nodes), target, device)


_YARDSTICK_LAYER, _YARDSTICK_DEPTH = Linear(512, 64, 64), 8
"""Work for some 0.2 ms on two cores of a server, half of which each hands over to the other."""


def yardstick(target: Target, device: Mapping[str, Any]) -> Package:
    """A chain of layers by which :class:`tvm_coexec.runtime.steadiness.Yardstick` sees how fast the machine is.

    Each side computes half of every layer and reads what both have just computed: how fast cores compute by themselves
    says nothing of a machine whose cores may lie far from each other.
    """
    return halved_chain(_YARDSTICK_LAYER, _YARDSTICK_DEPTH, target, device)


def _own_layouts(layer: AnyLayer) -> ImageLayouts | None:
    """Those of a layer that is measured by itself; None where its activations are no images."""
    return ImageLayouts.alone(layer) if isinstance(layer, ImageLayer) else None


def _own_tensors(layer: AnyLayer) -> dict[str, TensorSpec]:
    """The activations of a network that consists of one layer, by their roles."""
    layouts = _own_layouts(layer)
    tensors = {}
    for place, size in enumerate(layer.input_sizes):
        number = str(place) if place else ""
        layout = layouts.inputs[place] if layouts else None
        tensors[f"input{number}"] = TensorSpec.of_size(f"x{number}", size, layout)
    if "residual" in layer.epilogue:
        tensors["residual"] = TensorSpec.of_size("r", layer.output_size, layouts.residual if layouts else None)
    return tensors | {"output": TensorSpec.of_size("y", layer.output_size, layouts.output if layouts else None)}
