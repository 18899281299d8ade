"""Rehearsals: whole networks as they ran while the profile was tuned for them, by the plans of that time.

Of a network that was rehearsed it is known what halves take in it, which the next plan counts on, and is rehearsed in
turn.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from tvm_coexec.graph import Graph
from tvm_coexec.layers import layer_to_json

from .plan import LayerPlan, Plan
from .samples import NetworkTimes, Sample, Side


@dataclass(frozen=True)
class Rehearsal:
    """Runs of a network by one plan.

    Parameters
    ----------
    network
        The network's :func:`fingerprint`.
    rehearsed
        When, as ISO 8601; plans that ran turn by turn have the same.
    """

    network: str
    plan: Plan
    times: NetworkTimes
    rehearsed: str

    def __post_init__(self) -> None:
        if len(self.times.halves_us) != len(self.plan.layers) or not self.times.latency_us:
            raise ValueError(
                f"a rehearsal of {len(self.plan.layers)} layers has times of {len(self.times.halves_us)} in "
                f"{len(self.times.latency_us)} runs"
            )

    @property
    def usual_us(self) -> float:
        """The median of the runs."""
        return _median(self.times.latency_us)

    def is_by(self, plan: Plan) -> bool:
        """Whether the network ran by a plan that divides and computes all layers as another does."""
        return [(a.layer, a.cpu_units, a.cpu, a.gpu) for a in self.plan.layers] == [
            (b.layer, b.cpu_units, b.cpu, b.gpu) for b in plan.layers
        ]

    def to_json(self) -> dict[str, Any]:
        """All but the network and the time."""
        return {"plan": self.plan.to_json(), **asdict(self.times)}

    @classmethod
    def from_json(cls, network: str, rehearsed: str, values: Mapping[str, Any]) -> Rehearsal:
        """Inverse of :meth:`to_json`."""
        times = NetworkTimes.from_json(values)
        return cls(network, Plan.from_json(values["plan"]), times, rehearsed)

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

    Not the time of its least disturbed rehearsal: a user's runs are disturbed as well, and the least of several noisy
    figures is too small.
    """
    plan = rehearsals[-1].plan
    times = [rehearsal.times for rehearsal in rehearsals if rehearsal.is_by(plan)]
    layers = tuple(
        _as_it_ran(layer, *(_median(us for one in times for us in one.halves_us[number][place]) for place in (0, 1)))
        for number, layer in enumerate(plan.layers)
    )
    return replace(plan, layers=layers, total_us=_median(us for one in times for us in one.latency_us), rehearsed=True)


def _as_it_ran(layer: LayerPlan, cpu_us: float, gpu_us: float) -> LayerPlan:
    total_us = layer.total_us - max(layer.cpu_us, layer.gpu_us) + max(cpu_us, gpu_us)
    return replace(layer, cpu_us=cpu_us, gpu_us=gpu_us, total_us=total_us)


def _median(times_us: Iterable[float]) -> float:
    found = list(times_us)
    return float(np.median(found)) if found else 0.0


def fingerprint(graph: Graph) -> str:
    """Names a network by its layers and the tensors that join them; weights do not matter."""
    described = [
        [node.name, layer_to_json(node.layer), node.reads, node.output, graph.wholes(node.output)]
        for node in graph.nodes
    ]
    return hashlib.sha256(json.dumps([described, graph.inputs, graph.outputs]).encode()).hexdigest()
