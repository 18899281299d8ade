"""Turns a graph and a choice for each layer into a module's package: compiled code, packed constants, manifest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tvm_coexec import schedules
from tvm_coexec.errors import KernelError, readable
from tvm_coexec.graph import Graph, Node, Tensor
from tvm_coexec.graph.layouts import image_layouts, node_layouts
from tvm_coexec.layers import (
    SCRATCH,
    AnyLayer,
    ImageLayout,
    ImageLayouts,
    Opaque,
    Variant,
    layer_to_json,
    line_block,
)
from tvm_coexec.module.manifest import ArgumentSpec, HalfSpec, LaunchSpec, Manifest, StateSpec, StepSpec
from tvm_coexec.module.package import Package
from tvm_coexec.module.tensors import ConstantSpec, Source, TensorSpec
from tvm_coexec.planning.synchronisations import synchronisations
from tvm_coexec.schedules.halo import Halo
from tvm_coexec.schedules.packing import Stored

from .buffers import assign_buffers, halos_to_clear
from .entry_points import add_steps, chains_kernels
from .kernels import Kernel, compile_clearing, compile_half
from .target import Target
from .toolchain import link

if TYPE_CHECKING:
    from tvm_coexec.planning.plan import Plan


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
    stored: dict[Source, Stored] = {}
    layouts = image_layouts(graph)
    tensors = {name: _tensor_spec(tensor, layouts.get(name), graph) for name, tensor in graph.tensors.items()}
    nodes = []
    for node, choice in zip(progress(graph.nodes), choices, strict=True):
        own_seed = None if isinstance(node.layer, Opaque) else seed
        halves = Halves(node.name, node.layer, _roles(node), node_layouts(node, layouts), own_seed)
        for side, variant in (("cpu", choice.cpu), ("gpu", choice.gpu)):
            if variant is not None:
                halves.add(side, variant, target)
                if halves.seed is None:
                    packed = schedules.store(node.layer, node.params, variant)
                    stored |= {Source.constant(node.name, role): constant for role, constant in packed.items()}
        nodes.append(halves)
    steps = [halves.step(choice.cpu_units) for halves, choice in zip(nodes, choices, strict=True)]
    manifest = Manifest(
        device=dict(device),
        tensors=tuple(tensors.values()),
        constants=tuple(
            ConstantSpec(source.owner, source.role, one.array.shape, str(one.array.dtype), one.winograd)
            for source, one in stored.items()
        ),
        inputs=tuple(graph.inputs),
        outputs=tuple(graph.outputs),
        steps=tuple(steps),
        plan={},
        states=tuple(StateSpec.of(name, state.output, state.initial) for name, state in graph.states.items()),
    )
    kept, may_wait = {*graph.inputs, *graph.outputs}, device["mechanism"] != "event"
    assigned = assign_buffers(manifest.tensors, steps, manifest.tensor_words(), kept, may_wait=may_wait)
    to_clear = halos_to_clear(assigned)
    for halves in nodes:
        if (output := halves.tensors["output"]) in to_clear:
            halves.clear_halo(tensors[output], target)
    steps = [halves.step(choice.cpu_units) for halves, choice in zip(nodes, choices, strict=True)]
    kernels = [kernel for halves in nodes for kernel in halves.kernels]
    constants = {source: one.array for source, one in stored.items()}
    return linked(replace(manifest, tensors=assigned, steps=tuple(steps)), kernels, constants, target)


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
    """List the tensors of a node by their roles."""
    others = {f"input{index}": name for index, name in enumerate(node.others, 1)}
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
        parents=graph.parents(tensor.name),
        counted_by=tensor.counted_by,
    )


def linked(
    manifest: Manifest, kernels: Sequence[Kernel], constants: Mapping[Source, np.ndarray], target: Target
) -> Package:
    """The package of what was compiled."""
    sources = {kernel.symbol: kernel.code.decode() for kernel in kernels if kernel.side == "gpu"}
    library = link((kernel for kernel in kernels if kernel.side == "cpu"), target.triple)
    launches = [launch for step in manifest.steps if step.gpu is not None for launch in step.gpu.launches]
    stepped = add_steps("\n".join(sources.values()), launches, chains=chains_kernels(manifest.device))
    entered = replace(manifest, steps=tuple(map(stepped.entered, manifest.steps)))
    return Package(entered, library, stepped.text, constants)


class Halves:
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
        """Compile a half; a :class:`KernelError` names the layer."""
        try:
            kernels = compile_half(self.layer, side, variant, target, self.layouts)
        except KernelError as error:
            raise KernelError(f"layer {readable(self.name)!r} on the {side}: {error}") from error
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
            ArgumentSpec(role, self._source(role, kernel.side), shape, dtype, is_image)
            for role, shape, dtype, is_image in kernel.operands
        )
        if kernel.side == "cpu":
            return LaunchSpec(kernel.symbol, arguments, entry="cpu")
        dispatch = kernel.dispatch
        return LaunchSpec(
            kernel.symbol, arguments, dispatch.grid, dispatch.group, dispatch.unit_axis, dispatch.together
        )

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
            unit_channels=self.layer.unit_channels,
            unit_lines=line_block(self.layer.output_size[1]) if self.layer.axis == "lines" else None,
        )

    def _local_inputs(self) -> Iterator[str]:
        """Tensors that are read locally in every role that they have."""
        roles = [role for role in self.tensors if role != "output"]
        whole = {self.tensors[role] for role in roles if not self.layer.reads_locally(role)}
        yield from dict.fromkeys(self.tensors[role] for role in roles if self.tensors[role] not in whole)
