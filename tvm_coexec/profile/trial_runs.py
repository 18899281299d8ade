"""Trial runs: whole networks as they ran while the profile was tuned for them, by the plans of that time.

A network's trial runs show what halves take in it, which the next plan counts on, and is tried in
turn.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tvm_coexec.graph import Graph
from tvm_coexec.layers import layer_to_json
from tvm_coexec.planning.plan import Plan

from .records import NetworkTimes, Sample, Side


@dataclass(frozen=True)
class TrialRun:
    """Runs of a network by one plan.

    Parameters
    ----------
    network
        The network's :func:`fingerprint`.
    ran_at
        When, as ISO 8601; plans that ran turn by turn have the same.
    """

    network: str
    plan: Plan
    times: NetworkTimes
    ran_at: str

    def __post_init__(self) -> None:
        if len(self.times.halves_us) != len(self.plan.layers) or not self.times.latency_us:
            raise ValueError(
                f"a trial run of {len(self.plan.layers)} layers has times of {len(self.times.halves_us)} in "
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
        """Write all but the network and the time as JSON."""
        return {"plan": self.plan.to_json(), **asdict(self.times)}

    @classmethod
    def from_json(cls, network: str, ran_at: str, values: Mapping[str, Any]) -> TrialRun:
        """Read what :meth:`to_json` made."""
        times = NetworkTimes.from_json(values)
        return cls(network, Plan.from_json(values["plan"]), times, ran_at)

    def samples(self, side: Side) -> Iterator[tuple[int, Sample]]:
        """List a side's halves as they ran, with the number of their layer."""
        own, other = (0, 1) if side == "cpu" else (1, 0)
        for number, (layer, times_us) in enumerate(zip(self.plan.layers, self.times.halves_us, strict=True)):
            variants, units = (layer.cpu, layer.gpu), (layer.cpu_units, layer.gpu_units)
            variant = variants[own]
            if variant is not None and times_us[own]:
                yield (
                    number,
                    Sample(layer.layer, side, variant, units[own], units[other], times_us[own], variants[other]),
                )


def fingerprint(graph: Graph) -> str:
    """Names a network by its layers and the tensors that join them; weights do not matter."""
    described = [
        [node.name, layer_to_json(node.layer), node.reads, node.output, graph.parents(node.output)]
        for node in graph.nodes
    ]
    return hashlib.sha256(json.dumps([described, graph.inputs, graph.outputs]).encode()).hexdigest()
