"""Rehearsals: whole networks as they ran while the profile was tuned for them, by the plans of that time.

Of a network that was rehearsed it is known what halves take in it, which the next plan counts on, and is rehearsed in
turn.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from tvm_coexec.graph import Graph
from tvm_coexec.layers import layer_to_json

from .plan import LayerPlan, Plan
from .samples import HalvesUs, NetworkTimes, Sample, Side


@dataclass(frozen=True)
class Rehearsal:
    """Runs of a network by one plan.

    Parameters
    ----------
    network
        The network's :func:`fingerprint`.
    rehearsed_at
        When, as ISO 8601; plans that ran turn by turn have the same.
    """

    network: str
    plan: Plan
    times: NetworkTimes
    rehearsed_at: str

    def __post_init__(self) -> None:
        if len(self.times.halves_us) != len(self.plan.layers) or not self.times.latency_us:
            raise ValueError(
                f"a rehearsal of {len(self.plan.layers)} layers has times of {len(self.times.halves_us)} in "
                f"{len(self.times.latency_us)} runs"
            )

    @property
    def usual_us(self) -> float:
        """The median of the runs."""
        return float(np.median(self.times.latency_us))

    def is_by(self, plan: Plan) -> bool:
        """Whether the network ran by a plan that divides and computes all layers as another does."""
        return [(a.layer, a.cpu_units, a.cpu, a.gpu) for a in self.plan.layers] == [
            (b.layer, b.cpu_units, b.cpu, b.gpu) for b in plan.layers
        ]

    def to_json(self) -> dict[str, Any]:
        """All but the network and the time."""
        return {"plan": self.plan.to_json(), **asdict(self.times)}

    @classmethod
    def from_json(cls, network: str, rehearsed_at: str, values: Mapping[str, Any]) -> Rehearsal:
        """Inverse of :meth:`to_json`."""
        times = NetworkTimes.from_json(values)
        return cls(network, Plan.from_json(values["plan"]), times, rehearsed_at)

    def samples(self, side: Side) -> Iterator[tuple[int, Sample]]:
        """A side's halves as they ran, with the number of their layer."""
        own, other = (0, 1) if side == "cpu" else (1, 0)
        for number, (layer, times_us) in enumerate(zip(self.plan.layers, self.times.halves_us, strict=True)):
            variants, units = (layer.cpu, layer.gpu), (layer.cpu_units, layer.gpu_units)
            variant = variants[own]
            if variant is not None and times_us[own]:
                yield (
                    number,
                    Sample(layer.layer, side, variant, units[own], units[other], times_us[own], variants[other]),
                )


def best_plan(rehearsals: Sequence[Rehearsal]) -> Plan:
    """The plan of the last of some rehearsals, expected to take the median of all runs by it, and each half likewise.

    Not the time of its least disturbed rehearsal: other programs disturb a user's runs as well, and the least of
    several noisy figures is too small. Its runs are taken as if the machine had been as fast as it usually was while
    the network was rehearsed, since some plans happen to run when it is slow.
    """
    plan = rehearsals[-1].plan
    slowness = _slowness(rehearsals)
    times = [one.times.faster(slowness[one.rehearsed_at]) for one in rehearsals if one.is_by(plan)]
    layers = tuple(
        _as_it_ran(layer, [one.halves_us[number] for one in times]) for number, layer in enumerate(plan.layers)
    )
    total_us = float(np.median([us for one in times for us in one.latency_us]))
    return replace(plan, layers=layers, total_us=total_us, rehearsed=True)


def _slowness(rehearsals: Sequence[Rehearsal]) -> dict[str, float]:
    """How many times as long as usual runs took, at each moment that can be compared with that of the last rehearsal.

    Plans that ran turn by turn at one moment tell it from others at which one of them ran, too, and so on from these.
    """
    plans: list[tuple[Rehearsal, dict[str, float]]] = []
    for one in rehearsals:
        log_us = next((known for other, known in plans if one.is_by(other.plan)), None)
        if log_us is None:
            plans.append((one, log_us := {}))
        log_us[one.rehearsed_at] = float(np.log(one.usual_us))
    slower = {rehearsals[-1].rehearsed_at: 0.0}
    compare_moments([log_us for _, log_us in plans], slower)
    median = float(np.median(list(slower.values())))
    return {moment: float(np.exp(log_factor - median)) for moment, log_factor in slower.items()}


def compare_moments(took: Sequence[Mapping[str, float]], slower: dict[str, float]) -> dict[int, float]:
    """Tell how slow the machine was at some moments from what ran at these and at others, and so on from these.

    Parameters
    ----------
    took
        Logarithms of times, by the moment, of whatever ran at several.
    slower
        Logarithms of how slow the machine was at the moments to begin with; those that can be compared are added.

    Returns
    -------
    dict
        By number and in the order found, the logarithm at a moment of 0 of each entry of ``took`` that can be compared.
    """
    found: dict[int, float] = {}
    unknown = dict(enumerate(took))
    while (number := next((number for number, one in unknown.items() if slower.keys() & one.keys()), None)) is not None:
        one = unknown.pop(number)
        found[number] = float(np.mean([log - slower[moment] for moment, log in one.items() if moment in slower]))
        for moment, log in one.items():
            slower.setdefault(moment, log - found[number])
    return found


def _as_it_ran(layer: LayerPlan, halves_us: Sequence[HalvesUs]) -> LayerPlan:
    """A layer with the medians of its halves' times, where these were taken."""
    planned = (layer.cpu_us, layer.gpu_us)
    taken = ([us for one in halves_us for us in one[side]] for side in range(len(planned)))
    cpu_us, gpu_us = (float(np.median(us)) if us else plan for us, plan in zip(taken, planned, strict=True))
    longer_us = max(cpu_us, gpu_us) - max(planned)
    return replace(layer, cpu_us=cpu_us, gpu_us=gpu_us, total_us=layer.total_us + longer_us)


def fingerprint(graph: Graph) -> str:
    """Names a network by its layers and the tensors that join them; weights do not matter."""
    described = [
        [node.name, layer_to_json(node.layer), node.reads, node.output, graph.wholes(node.output)]
        for node in graph.nodes
    ]
    return hashlib.sha256(json.dumps([described, graph.inputs, graph.outputs]).encode()).hexdigest()
