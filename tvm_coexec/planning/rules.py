"""The rules by which a caller may divide a model: what is predicted or measured, one side, shares, or a plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from tvm_coexec import schedules
from tvm_coexec.errors import InputError, readable
from tvm_coexec.graph import Graph, Node
from tvm_coexec.layers import AnyLayer, Hardware, Variant, along_partition_axes
from tvm_coexec.prediction.noise import Noise
from tvm_coexec.prediction.surroundings import NO_STRETCH
from tvm_coexec.profile.records import Sample

from .division import Overheads
from .measured import plan_measured
from .network import assemble, plan_network
from .plan import LayerPlan, Plan, no_gpu_kernels
from .split import Planner

Split = str | float | Mapping[str, int | float] | Plan
_RULES = ("predicted", "measured", "cpu", "gpu")

Measure = Callable[[Sequence[AnyLayer]], tuple[Sequence[Sample], Overheads]]
"""Measures some splits of each layer, and what joining halves takes."""


def check_split(split: Split, has_profile: bool) -> None:
    """Refuse what is no rule, as far as that takes no model, and the rule that needs a profile where there is none.

    Raises
    ------
    InputError
        The message names the rules there are, or the remedies.
    """
    if isinstance(split, Plan):
        return
    if split == "predicted" and not has_profile:
        raise InputError(
            "split='predicted' needs a profile: make one with `tvm-coexec tune --out DIR` and give it as profile= "
            "(--profile), or use split='measured' (--split measured)"
        )
    for value in split.values() if isinstance(split, Mapping) else [split]:
        is_count = isinstance(split, Mapping) and _is_count(value)
        if not (is_count or _is_share(value)) and (isinstance(split, Mapping) or value not in _RULES):
            raise InputError(f"split {value!r} is none of {', '.join(_RULES)}, a number from 0 to 1, or a dict of such")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def plan_by_rule(
    graph: Graph,
    split: Split,
    facts: Mapping[str, Any],
    hardware: Hardware,
    found: Planner | None,
    measure: Measure,
) -> Plan:
    """Divide every layer of a graph by a rule; see :func:`tvm_coexec.api.build`.

    Parameters
    ----------
    facts, hardware
        What the device says of itself, and what its kernels are chosen by.
    found
        The planner of a profile, if there is one.
    measure
        Called for the rule ``"measured"`` alone.
    """
    check_split(split, found is not None)
    for node in graph.nodes:
        schedules.check_has_kernels(node.layer, f"layer {node.name!r} ({node.layer.op})")
    label, mechanism = facts["label"], facts["mechanism"]
    if isinstance(split, Plan):
        _check_fit(split, graph, mechanism)
        _check_variants(split, hardware)
        return replace(split, device=label)
    if split == "predicted" and found is not None:
        return plan_network(graph, found, label, mechanism)
    found = found and found.for_network(graph)
    rule = _rule(graph, split, hardware, found, measure)
    layers = [rule(node) for node in graph.nodes]
    overheads = found.overheads if found else Overheads(0.0)
    # What was measured here and now are medians already.
    noise = found.noise if found and split != "measured" else Noise()
    stretch = found.elsewhere.stretch if found and found.in_network and split != "measured" else NO_STRETCH
    return assemble(graph, layers, overheads, label, mechanism, noise, stretch)


def _check_fit(plan: Plan, graph: Graph, mechanism: str) -> None:
    """Refuse a plan that is of another model, or of another way to synchronise."""
    if plan.mechanism != mechanism:
        raise InputError(f"the plan is for the mechanism {plan.mechanism!r}, the device has {mechanism!r}; plan again")
    if len(plan.layers) != len(graph.nodes):
        raise InputError(f"the plan has {len(plan.layers)} layers, the model {len(graph.nodes)}; plan this model again")
    for planned, node in zip(plan.layers, graph.nodes, strict=True):
        if planned.name != node.name or planned.layer not in along_partition_axes(node.layer):
            raise InputError(
                f"the plan's layer {planned.name!r} is not the model's {node.name!r}; plan this model again"
            )


def _check_variants(plan: Plan, hardware: Hardware) -> None:
    """Refuse kernels that are no candidates: of others compilers make wrong ones, or work on them for hours."""
    for planned in plan.layers:
        for side, variant in (("cpu", planned.cpu), ("gpu", planned.gpu)):
            if variant is not None and variant.kernel not in _candidates(planned.layer, side, hardware):
                raise InputError(
                    f"the plan's variant {variant} of layer {readable(planned.name)!r} is none that the {side} of this "
                    "device has; plan again"
                )


@lru_cache(maxsize=4096)
def _candidates(layer: AnyLayer, side: str, hardware: Hardware) -> frozenset[Variant]:
    """List what a planner may choose from."""
    return frozenset(schedules.family(layer).variants(layer, side, hardware))


def _rule(
    graph: Graph, split: Split, hardware: Hardware, found: Planner | None, measure: Measure
) -> Callable[[Node], LayerPlan]:
    """Say how one node is planned."""

    def fixed(node: Node, cpu_units: int) -> LayerPlan:
        if found is not None and found.knows(node.layer):
            return found.plan_split(node.name, node.layer, cpu_units)
        reason = "chosen by the caller; nothing is known of its time"
        return _unpredicted(node, cpu_units, hardware, reason, found)

    def predicted(node: Node) -> LayerPlan:
        assert found is not None
        return plan_node(node, found)

    if split == "predicted":
        return predicted
    if split == "measured":
        divisible = [node.layer for node in graph.nodes if _has_gpu_kernels(node.layer, hardware)]
        ways = [way for layer in divisible for way in along_partition_axes(layer)]
        samples, overheads = measure(ways)
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
    ways = [way for way in along_partition_axes(node.layer) if samples[way]] or [node.layer]
    plans = (plan_measured(node.name, way, samples[way], overheads) for way in ways)
    return min(plans, key=lambda plan: plan.total_us)


def _has_gpu_kernels(layer: AnyLayer, hardware: Hardware) -> bool:
    return _default_variant(layer, "gpu", hardware) is not None


def plan_node(node: Node, planner: Planner) -> LayerPlan:
    """Divide a layer by what its profile learned; what the profile knows nothing of stays on the CPU."""
    if planner.knows(node.layer):
        return planner.plan_best_axis(node.name, node.layer)
    reason = f"cpu alone: the profile is not tuned for {node.layer.op} layers"
    return _unpredicted(node, node.layer.units, planner.hardware, reason, planner)


def _unpredicted(node: Node, cpu_units: int, hardware: Hardware, reason: str, planner: Planner | None) -> LayerPlan:
    """Default variants, unless the profile knows that they fail, and no expectation of time."""
    cpu, gpu = (_usual_variant(node.layer, side, hardware, planner) for side in ("cpu", "gpu"))
    if not _has_gpu_kernels(node.layer, hardware):
        cpu_units, reason = node.layer.units, no_gpu_kernels(node.layer)
    elif gpu is None:
        cpu_units, reason = node.layer.units, "cpu alone: the gpu's kernels failed when they were measured"
    return LayerPlan(
        name=node.name,
        layer=node.layer,
        cpu_units=cpu_units,
        cpu=cpu if cpu_units else None,
        gpu=gpu if cpu_units < node.layer.units else None,
        cpu_us=0.0,
        gpu_us=0.0,
        total_us=0.0,
        reason=reason,
    )


def _usual_variant(layer: AnyLayer, side: str, hardware: Hardware, planner: Planner | None) -> Variant | None:
    return _default_variant(layer, side, hardware) if planner is None else planner.usual_variant(layer, side)


@lru_cache(maxsize=1024)
def _default_variant(layer: AnyLayer, side: str, hardware: Hardware) -> Variant | None:
    """None where a side has no kernels; networks repeat many of their layers."""
    return next(iter(schedules.family(layer).variants(layer, side, hardware)), None)


def _units_by_name(graph: Graph, split: Mapping[str, int | float]) -> dict[str, int]:
    nodes = {node.name: node for node in graph.nodes}
    units = {}
    for name, value in split.items():
        if name not in nodes:
            raise InputError(f"the split names layer {name!r}, the model has {', '.join(nodes)}")
        units[name] = int(value) if _is_count(value) else _share(value, nodes[name])
        if not 0 <= units[name] <= nodes[name].layer.units:
            raise InputError(f"layer {name!r} has {nodes[name].layer.units} units; the CPU cannot compute {value}")
    return units


def _share(value: Any, node: Node) -> int:
    """The CPU's units, from its share."""
    return round(value * node.layer.units)
