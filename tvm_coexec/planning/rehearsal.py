"""Rehearsals: whole networks as they ran while the profile was tuned for them, by the plans of that time.

In a network halves take other times than by themselves: what surrounds them decides where their data are. Of a network
that was rehearsed it is known by how much. The next plan counts on it, and is rehearsed in turn.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tvm_coexec.graph import Graph
from tvm_coexec.layers import AnyLayer, Variant, layer_to_json

from .plan import LayerPlan, Plan
from .predictors import labels_us
from .remembered import Remembered
from .samples import Sample, Side

_SIDES: tuple[Side, ...] = ("cpu", "gpu")

HalvesUs = tuple[tuple[float, ...], tuple[float, ...]]
"""Of one layer, what its CPU half and its GPU half took, an entry a run; empty where a side has none."""

Expect = Callable[[str, AnyLayer, Variant, int, int], float]
"""From side, layer, variant, own units and the other side's: the microseconds that are expected, 0 where none are."""


@dataclass(frozen=True)
class Rehearsal:
    """Runs of a network by one plan.

    Parameters
    ----------
    network
        The network's :func:`fingerprint`.
    latency_us
        Whole runs.
    halves_us
        Of each layer of the plan, in runs of their own that have timelines.
    """

    network: str
    plan: Plan
    latency_us: tuple[float, ...]
    halves_us: tuple[HalvesUs, ...]

    @property
    def median_us(self) -> float:
        return statistics.median(self.latency_us)

    def to_json(self) -> dict[str, Any]:
        """All but the network."""
        return {"plan": self.plan.to_json(), "latency_us": self.latency_us, "halves_us": self.halves_us}

    @classmethod
    def from_json(cls, network: str, values: Mapping[str, Any]) -> Rehearsal:
        """Inverse of :meth:`to_json`."""
        halves_us = tuple((tuple(cpu_us), tuple(gpu_us)) for cpu_us, gpu_us in values["halves_us"])
        return cls(network, Plan.from_json(values["plan"]), tuple(values["latency_us"]), halves_us)

    def as_planned(self) -> Plan:
        """The plan, which now is known to take as long as it did."""
        return replace(self.plan, total_us=self.median_us, rehearsed=True)

    def samples(self) -> list[Sample]:
        """The halves, each as it ran beside the other."""
        return [
            Sample(layer.layer, side, variant, units, other_units, times_us)
            for layer, halves in zip(self.plan.layers, self.halves_us, strict=True)
            for side, variant, units, other_units, times_us in _halves(layer, halves)
        ]


def _halves(layer: LayerPlan, halves_us: HalvesUs) -> list[tuple[Side, Variant, int, int, tuple[float, ...]]]:
    both = (layer.cpu, layer.cpu_units, layer.gpu_units), (layer.gpu, layer.gpu_units, layer.cpu_units)
    return [
        (side, variant, units, other_units, times_us)
        for side, (variant, units, other_units), times_us in zip(_SIDES, both, halves_us, strict=True)
        if variant is not None and times_us
    ]


def fingerprint(graph: Graph) -> str:
    """Names a network by its layers and the tensors that join them; weights do not matter."""
    described = [
        [node.name, layer_to_json(node.layer), node.reads, node.output, graph.wholes(node.output)]
        for node in graph.nodes
    ]
    return hashlib.sha256(json.dumps([described, graph.inputs, graph.outputs]).encode()).hexdigest()


@dataclass(frozen=True)
class Surroundings:
    """By what factor halves take longer in one network than expected, from its rehearsals.

    Parameters
    ----------
    usual
        Of each side, the logarithm of the median half's factor.
    remembered
        What is left, of the very kernels and layers that ran.
    """

    usual: Mapping[str, float] = field(default_factory=dict)
    remembered: Mapping[str, Remembered] = field(default_factory=dict)

    @classmethod
    def of(cls, rehearsals: Sequence[Rehearsal], expect: Expect) -> Surroundings:
        """Compare what halves took with what is expected of them without this knowledge."""
        usual: dict[str, float] = {}
        remembered: dict[str, Remembered] = {}
        samples = [sample for rehearsal in rehearsals for sample in rehearsal.samples()]
        for side in _SIDES:
            own = [sample for sample in samples if sample.side == side]
            expected_us = np.array([expect(side, one.layer, one.variant, one.units, one.other_units) for one in own])
            known = np.flatnonzero(expected_us > 0)
            if len(known):
                log_errors = np.log(labels_us(own)[known] / expected_us[known])
                usual[side] = float(np.median(log_errors))
                known_samples = [own[place] for place in known]
                remembered[side] = Remembered.of(known_samples, log_errors - usual[side], np.ones(len(known)))
        return cls(usual, remembered)

    def factors(self, side: str, layer: AnyLayer, variants: Sequence[Variant]) -> np.ndarray:
        """By what the expected times of a layer's halves are to be multiplied, an entry a variant."""
        if side not in self.usual:
            return np.ones(len(variants))
        own: np.ndarray = self.remembered[side].factors([(layer, variant) for variant in variants])
        return np.exp(self.usual[side]) * own
