"""Building a module from a model: the graph is read, every layer planned, every half compiled."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from . import schedules
from .compiler.packaging import package_plan
from .compiler.target import target_for
from .errors import InputError
from .frontends import to_graph
from .graph import Graph, Node
from .layers import AnyLayer, Hardware, ways_to_divide
from .planning.from_profile import planner
from .planning.measured import plan_measured
from .planning.network import assemble, plan_network
from .planning.plan import LayerPlan, Plan, no_gpu_kernels
from .planning.split import Overheads, Planner
from .prediction.noise import Disturbance
from .profile import Profile
from .profile.records import Sample
from .runtime.device import Device, open_device
from .runtime.executor import TIMEOUT_S
from .runtime.module import Module
from .tuning.splits import measure_splits

if TYPE_CHECKING:
    from .frontends import Model, Shapes

Split = str | float | Mapping[str, int | float]
_RULES = ("predicted", "measured", "cpu", "gpu")


def build(
    model: Model,
    *,
    device: Device | str | None = None,
    profile: str | os.PathLike[str] | None = None,
    split: Split = "predicted",
    cpu_cores: Sequence[int] | None = None,
    gpu_cores: Sequence[int] | None = None,
    timeout_s: float = TIMEOUT_S,
    yields: bool = False,
    check: bool = False,
    shapes: Shapes | None = None,
) -> Module:
    """Build a module whose layers run on the CPU and the GPU at the same time.

    Parameters
    ----------
    model
        Path of an ONNX or TFLite file, an ONNX model, a program of ``torch.export``, or a Relax module.
    device
        An open device, or any unambiguous part of a device's name.
    profile
        A profile that ``tvm-coexec tune`` made for this device.
    split
        How each layer is divided. ``"predicted"``: by the profile's predictors; a model that the profile was tuned for
        by the best plan that was rehearsed. ``"measured"``: every layer is measured at several splits, here and now;
        what the profile already holds is used. Both choose between channels and lines. ``"cpu"``, ``"gpu"``: all
        layers on one side. A number from 0 to 1: the CPU's share of every layer's channels. A dict from layer names to
        the CPU's tiles of channels (an int) or its share (a float); layers left out are predicted, or halved where
        there is no profile.
    cpu_cores, gpu_cores
        Cores for either side; see :func:`tvm_coexec.runtime.device.open_device`.
    timeout_s
        Bound on every wait of one processor for the other.
    yields
        Give up the CPU while waiting, at the price of a slower wake-up.
    check
        Run the module once on random inputs, and compare what it computes with an engine that shares no code with it:
        ONNX Runtime or ONNX's reference evaluator, LiteRT, or torch itself.
    shapes
        Shapes of inputs by name, where the model leaves dimensions open: ``{"x": (1, 3, 320, 320)}``.

    Raises
    ------
    ModelError
        The model holds what cannot be built, with operator and node named; or no engine can check it.
    InputError
        The split or the profile does not fit.
    KernelError
        The check finds an output that differs; the first node whose value differs is named.
    """
    if not isinstance(device, Device):
        device = open_device(device, cpu_cores=cpu_cores, gpu_cores=gpu_cores)
    graph = to_graph(model, shapes)
    module = build_graph(graph, device, profile=profile, split=split, timeout_s=timeout_s, yields=yields)
    if check:
        from .verification import NetworkCheck

        NetworkCheck(model, graph).verdict(module).raise_for_findings()
    return module


def build_graph(
    graph: Graph,
    device: Device,
    *,
    profile: str | os.PathLike[str] | None = None,
    split: Split = "predicted",
    timeout_s: float = TIMEOUT_S,
    yields: bool = False,
) -> Module:
    """Build a module of a graph that was read before; see :func:`build`."""
    facts = device.facts()
    plan = plan_graph(graph, device, profile=profile, split=split)
    built = package_plan(graph, plan, target_for(facts), facts, _progress)
    return Module(built, device, timeout_s=timeout_s, yields=yields)


def _progress(nodes: Any) -> Any:
    from tqdm import tqdm

    return tqdm(nodes, desc="compiling", unit="layer", leave=False)


def plan_graph(
    graph: Graph, device: Device, *, profile: str | os.PathLike[str] | None = None, split: Split = "predicted"
) -> Plan:
    """Divide every layer of a graph; see :func:`build`."""
    hardware = target_for(device.facts()).hardware
    found = _planner(profile, device)
    if split == "predicted" and found is not None:
        return plan_network(graph, found, device.label, device.mechanism)
    found = found and found.for_network(graph)
    rule = _rule(graph, device, hardware, found, split, profile)
    layers = [rule(node) for node in graph.nodes]
    overheads = found.overheads if found else Overheads(0.0)
    # What was measured here and now are medians already.
    disturbance = found.disturbance if found and split != "measured" else Disturbance()
    return assemble(graph, layers, overheads, device.label, device.mechanism, disturbance)


def _planner(profile: str | os.PathLike[str] | None, device: Device) -> Planner | None:
    if profile is None:
        return None
    with Profile.open(profile) as opened:
        opened.check_device(device.facts())
        return planner(opened, target_for(opened.facts).hardware)


def _rule(
    graph: Graph,
    device: Device,
    hardware: Hardware,
    found: Planner | None,
    split: Split,
    profile: str | os.PathLike[str] | None,
) -> Callable[[Node], LayerPlan]:
    """How to plan one node."""

    def fixed(node: Node, cpu_units: int) -> LayerPlan:
        if found is not None and found.knows(node.layer):
            return found.plan_split(node.name, node.layer, cpu_units)
        return _unpredicted(node, cpu_units, hardware, "chosen by the caller; nothing is known of its time")

    def predicted(node: Node) -> LayerPlan:
        if found is None:
            raise InputError(
                "split='predicted' needs a profile: make one with `tvm-coexec tune --out DIR` and give it as profile=, "
                "or use split='measured'"
            )
        return plan_node(node, found)

    if split == "predicted":
        return predicted
    if split == "measured":
        divisible = [node.layer for node in graph.nodes if _has_gpu_kernels(node.layer, hardware)]
        ways = [way for layer in divisible for way in ways_to_divide(layer)]
        samples, overheads = measure_splits(ways, device, profile)
        measured: dict[AnyLayer, list[Sample]] = {way: [] for way in ways}
        for sample in samples:
            if sample.layer in measured:
                measured[sample.layer].append(sample)
        return lambda node: (
            _best_measured(node, measured, overheads) if node.layer in measured else fixed(node, node.layer.units)
        )
    if isinstance(split, Mapping):
        units = _units_by_name(graph, split)
        rest = predicted if found is not None else lambda node: fixed(node, node.layer.units // 2)
        return lambda node: fixed(node, units[node.name]) if node.name in units else rest(node)
    if split in ("cpu", "gpu"):
        return lambda node: fixed(node, node.layer.units if split == "cpu" else 0)
    return lambda node: fixed(node, _share(split, node))


def _best_measured(node: Node, samples: Mapping[AnyLayer, Sequence[Sample]], overheads: Overheads) -> LayerPlan:
    """The best of all measured splits, along channels or lines; kernels may have failed along one of them."""
    ways = [way for way in ways_to_divide(node.layer) if samples[way]] or [node.layer]
    plans = (plan_measured(node.name, way, samples[way], overheads) for way in ways)
    return min(plans, key=lambda plan: plan.total_us)


def _has_gpu_kernels(layer: AnyLayer, hardware: Hardware) -> bool:
    return bool(schedules.family(layer).variants(layer, "gpu", hardware))


def plan_node(node: Node, planner: Planner) -> LayerPlan:
    """Divide a layer by what its profile learned; what the profile knows nothing of stays on the CPU."""
    if planner.knows(node.layer):
        return planner.plan_best_way(node.name, node.layer)
    reason = f"cpu alone: the profile is not tuned for {node.layer.op} layers"
    return _unpredicted(node, node.layer.units, planner.hardware, reason)


def _unpredicted(node: Node, cpu_units: int, hardware: Hardware, reason: str) -> LayerPlan:
    """Default variants and no expectation of time."""
    family = schedules.family(node.layer)
    if not _has_gpu_kernels(node.layer, hardware):
        cpu_units, reason = node.layer.units, no_gpu_kernels(node.layer)
    cpu = family.default_variant(node.layer, "cpu", hardware)
    gpu = family.default_variant(node.layer, "gpu", hardware) if cpu_units < node.layer.units else None
    return LayerPlan(
        name=node.name,
        layer=node.layer,
        cpu_units=cpu_units,
        cpu=cpu if cpu_units else None,
        gpu=gpu,
        cpu_us=0.0,
        gpu_us=0.0,
        total_us=0.0,
        reason=reason,
    )


def _units_by_name(graph: Graph, split: Mapping[str, int | float]) -> dict[str, int]:
    nodes = {node.name: node for node in graph.nodes}
    units = {}
    for name, value in split.items():
        if name not in nodes:
            raise InputError(f"the split names layer {name!r}, the model has {', '.join(nodes)}")
        is_count = isinstance(value, int) and not isinstance(value, bool)
        units[name] = int(value) if is_count else _share(value, nodes[name])
        if not 0 <= units[name] <= nodes[name].layer.units:
            raise InputError(f"layer {name!r} has {nodes[name].layer.units} units; the CPU cannot compute {value}")
    return units


def _share(value: Any, node: Node) -> int:
    """The CPU's units, from its share."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise InputError(f"split {value!r} is none of {', '.join(_RULES)}, a number from 0 to 1, or a dict of such")
    return round(value * node.layer.units)
