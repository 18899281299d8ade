"""The plan of a whole network chooses splits and variants of all layers together.

A layer's best split depends on those around it: a channel-local layer follows the layer that it reads, as one of single
lines does along these, a small one stays where its input is, and one that follows an uneven layer may let the other
side catch up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from tvm_coexec.graph import Graph, Node
from tvm_coexec.graph.dependencies import Read, needs_other, network_reads
from tvm_coexec.layers import AnyLayer, along_partition_axes
from tvm_coexec.prediction.noise import Noise
from tvm_coexec.prediction.surroundings import NO_STRETCH, Stretch
from tvm_coexec.profile.trial_runs import TrialRun, fingerprint

from .chances import usual_factor
from .division import SYNC_MARGIN, Division, Overheads
from .expectation import expected_time
from .plan import LayerPlan, Plan, no_gpu_kernels
from .simulation import Option, Written, search
from .split import Planner
from .synchronisations import synchronisations
from .trial_runs import best_plan

_NEIGHBOURS = (0, -1, 1, -2, 2, -4, 4, -8, 8, -16, 16)
"""Places beside the balanced split, among a layer's splits, that are tried: uneven ones let a side catch up."""


@dataclass(frozen=True)
class _Step:
    """A node as the runtime will know it."""

    axis: str
    units: int
    inputs: tuple[str, ...]
    local_inputs: tuple[str, ...]
    output: str

    @classmethod
    def of(cls, node: Node) -> _Step:
        return cls(node.layer.axis, node.layer.units, node.reads, node.local_reads, node.output)


def reads_of(graph: Graph) -> list[tuple[Read, ...]]:
    """List by node the nodes, counted from 1, whose outputs it reads, and along which axes it does so unit by unit."""
    parents = {name: graph.parents(name) for name in graph.tensors}
    lines = [replace(node, layer=along_partition_axes(node.layer)[-1]) for node in graph.nodes]
    own, also = (network_reads([_Step.of(node) for node in nodes], parents) for nodes in (graph.nodes, lines))
    return [
        tuple(
            Read(read.step, tuple(dict.fromkeys((*read.local, *by_line.local))))
            for read, by_line in zip(*pair, strict=True)
        )
        for pair in zip(own, also, strict=True)
    ]


def plan_network(graph: Graph, planner: Planner, device: str, mechanism: str) -> Plan:
    """Divide all layers so that the network as a whole is expected to take the least time.

    Where the profile was tuned for this network, the plan is the best of its trial runs.

    Parameters
    ----------
    device, mechanism
        What the plan says of the device and of the way to synchronise.
    """
    tried = planner.trial_runs.get(fingerprint(graph), ()) if planner.trial_runs else ()
    usable = [trial_run for trial_run in tried if trial_run.plan.mechanism == mechanism]
    if usable:
        return replace(best_plan(usable), device=device)
    return plan_anew(graph, planner, device, mechanism)


def plan_anew(
    graph: Graph,
    planner: Planner,
    device: str,
    mechanism: str,
    trial_runs: Sequence[TrialRun] = (),
    untried: float = 1.0,
) -> Plan:
    """The plan that is expected to be the best, from what earlier plans' ``trial_runs`` taught of this network.

    With a factor below 1 for the times of kernels that are ``untried`` in the network, it tries those that may be
    better there than the ones that ran. Whether weights come from memory depends on the kernels that are chosen: where
    theirs do, all is planned anew.
    """
    planner = planner.for_network(graph)
    learned = planner.learning_from(trial_runs, untried)
    if len(graph.nodes) == 1 and planner.knows(graph.nodes[0].layer):
        layers: tuple[LayerPlan, ...] = (learned.plan_best_axis(graph.nodes[0].name, graph.nodes[0].layer),)
    else:
        layers = _plan_together(graph, learned)
        informed = planner.for_kernels(layers)
        if informed.streams_weights != planner.streams_weights:
            layers = _plan_together(graph, informed.learning_from(trial_runs, untried))
    return assemble(graph, layers, planner.overheads, device, mechanism, planner.noise, learned.surroundings.stretch)


def assemble(
    graph: Graph,
    layers: Sequence[LayerPlan],
    overheads: Overheads,
    device: str,
    mechanism: str,
    noise: Noise,
    stretch: Stretch = NO_STRETCH,
) -> Plan:
    """The plan of a network from those of its layers: with its time, and where a side waits for the other's results."""
    reads = reads_of(graph)
    time = expected_time(reads, layers, overheads.costs(), noise, stretch)
    syncs = tuple(synchronisations(layers, reads))
    return Plan(device, mechanism, tuple(layers), time.us, syncs, interval_us=time.interval_us)


def _plan_together(graph: Graph, planner: Planner) -> tuple[LayerPlan, ...]:
    nodes, overheads, reads = graph.nodes, planner.overheads, reads_of(graph)
    menus = {layer: _Menu(layer, planner) for layer in dict.fromkeys(node.layer for node in nodes)}
    chosen = search(
        reads,
        lambda number, written: menus[nodes[number - 1].layer].options(reads[number - 1], written),
        overheads.costs(SYNC_MARGIN),
    )
    writers = list(zip(nodes, chosen, strict=True))
    return tuple(
        menus[node.layer].plan(node, option, _Inputs(read, writers, option), planner)
        for node, option, read in zip(nodes, chosen, reads, strict=True)
    )


@dataclass(frozen=True)
class _Inputs:
    """Where a planned layer finds what it reads."""

    reads: Sequence[Read]
    writers: Sequence[tuple[Node, Option]]
    option: Option

    @property
    def waits(self) -> bool:
        """Whether a side needs what the other wrote."""
        return any(
            needs_other(side, self.option, self.writers[read.step - 1][1], read)
            for read in self.reads
            for side in ("cpu", "gpu")
        )

    @property
    def names(self) -> str:
        return " and ".join(repr(self.writers[read.step - 1][0].name) for read in self.reads)


class _Menu:
    """A layer's ways to be divided, along its channels or its lines, shared by all nodes of the same layer."""

    def __init__(self, layer: AnyLayer, planner: Planner) -> None:
        ways = (way for way in along_partition_axes(layer) if way == layer or planner.knows(way))
        self.layers = {way.axis: way for way in ways}
        self.layer = layer
        self.divisions = {axis: planner.divisions(one) for axis, one in self.layers.items()}
        self.known = planner.knows(layer)
        self._options = {
            axis: {units: _option(self.layers[axis], one) for units, one in divisions.items()}
            for axis, divisions in self.divisions.items()
        }
        self._usual = [*self._alone(), *(option for axis in self.layers for option in self._splits(axis))]

    def _alone(self) -> Iterator[Option]:
        options = self._options[self.layer.axis]
        return (options[units] for units in (0, self.layer.units) if units in options)

    def _splits(self, axis: str) -> Iterator[Option]:
        """Give the balanced split, and some near it."""
        options = self._options[axis]
        splits = [units for units, option in sorted(options.items()) if option.cpu_units and option.gpu_units]
        if splits:
            balanced = splits.index(self._balanced(axis).cpu_units)
            for position in dict.fromkeys(balanced + offset for offset in _NEIGHBOURS):
                if 0 <= position < len(splits):
                    yield options[splits[position]]

    def _balanced(self, axis: str) -> Division:
        split = [one for one in self.divisions[axis].values() if one.cpu and one.gpu]
        return min(split, key=lambda one: one.total_us)

    def options(self, reads: Sequence[Read], written: Mapping[int, Written]) -> list[Option]:
        """The usual ones, and the splits of the layers that this one would follow without a synchronisation."""
        followed = (written[read.step].option for read in reads if written[read.step].option.axis in read.local)
        ways = dict.fromkeys((one.axis, one.cpu_units) for one in followed)
        also = [self._options[axis][units] for axis, units in ways if units in self._options.get(axis, {})]
        return [*self._usual, *(option for option in also if option not in self._usual)]

    def plan(self, node: Node, option: Option, inputs: _Inputs, planner: Planner) -> LayerPlan:
        """The layer's plan, once its split is chosen."""
        division, overheads = self.divisions[option.axis][option.cpu_units], planner.overheads
        is_split = option.cpu_units > 0 and option.gpu_units > 0
        gpu_us, overhead_us = option.gpu_us, 0.0
        if inputs.waits or (is_split and not inputs.reads):
            overhead_us = overheads.split_us
        elif option.gpu_units:
            gpu_us = overheads.costs().launched_us(option.gpu_us)
        return LayerPlan(
            name=node.name,
            layer=self.layers[option.axis],
            cpu_units=option.cpu_units,
            cpu=division.cpu.variant if division.cpu else None,
            gpu=division.gpu.variant if division.gpu else None,
            cpu_us=option.cpu_us,
            gpu_us=option.gpu_us,
            cpu_interval_us=division.times[0].interval_us,
            gpu_interval_us=division.times[1].interval_us,
            total_us=max(option.cpu_us, gpu_us) + overhead_us,
            reason=self._reason(division, inputs, is_split, overheads, option.axis) + self._caveat(planner),
        )

    def _reason(self, division: Division, inputs: _Inputs, is_split: bool, overheads: Overheads, axis: str) -> str:
        if is_split and inputs.reads and not inputs.waits:
            return f"split as {inputs.names} is, of which it needs nothing that the other side computes"
        divisions = self.divisions[self.layer.axis]
        alone = [one for one in divisions.values() if not (one.cpu and one.gpu)]
        best = min(alone, key=lambda one: one.total_us)
        if is_split:
            side = "cpu" if best.gpu is None else "gpu"
            speedup = best.total_us / division.total_us
            along = " by lines" if axis == "lines" else ""
            return f"split{along}: {speedup:.2f} times as fast as the {side} alone ({best.total_us:.1f} us)"
        side = "cpu" if division.gpu is None else "gpu"
        if len(divisions) == 1:
            return no_gpu_kernels(self.layer)
        if len(self._usual) == len(alone):
            return f"{side} alone: one unit cannot be divided"
        split_us = min(self._balanced(one).total_us for one in self.layers if self.layers[one].units > 1)
        if split_us < division.total_us:
            where = f" where {inputs.names} is" if inputs.reads and not inputs.waits else ""
            return f"{side} alone{where}: a split ({split_us:.1f} us) would hold up the layers around it"
        return (
            f"{side} alone: the best split takes {split_us:.1f} us, {overheads.split_us:.1f} us of it synchronisation"
        )

    def _caveat(self, planner: Planner) -> str:
        if self.known:
            return ""
        if not planner.estimates:
            return f"; the profile is not tuned for {self.layer.op} layers"
        return f"; the times are estimates, since the profile is not tuned for {self.layer.op} layers"


def _option(layer: AnyLayer, division: Division) -> Option:
    cpu, gpu = division.times
    return Option(
        division.cpu_units, layer.units - division.cpu_units, cpu.us, gpu.us, layer.axis, usual_factor(cpu, gpu)
    )
