"""Rehearsals: whole networks as they ran while the profile was tuned for them, by the plans of that time.

In a network halves take other times than by themselves: what surrounds them decides where their data are. Of a network
that was rehearsed it is known by how much. The next plan counts on it, and is rehearsed in turn.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from tvm_coexec.graph import Graph
from tvm_coexec.layers import AnyLayer, Variant, layer_to_json

from .plan import Plan
from .predictors import labels_us, undisturbed, weights
from .remembered import Remembered
from .samples import NetworkTimes, Sample, Side

_SIDES: tuple[Side, ...] = ("cpu", "gpu")

Expect = Callable[[str, AnyLayer, Variant, int, int], float]
"""From side, layer, variant, own units and the other side's: the microseconds that are expected, 0 where none are."""


@dataclass(frozen=True)
class Rehearsal:
    """Runs of a network by one plan.

    Parameters
    ----------
    network
        The network's :func:`fingerprint`.
    """

    network: str
    plan: Plan
    times: NetworkTimes

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
        """All but the network."""
        return {"plan": self.plan.to_json(), **asdict(self.times)}

    @classmethod
    def from_json(cls, network: str, values: Mapping[str, Any]) -> Rehearsal:
        """Inverse of :meth:`to_json`."""
        times = NetworkTimes.from_json(values)
        return cls(network, Plan.from_json(values["plan"]), times)

    def samples(self) -> Iterator[tuple[int, Sample]]:
        """The halves as they ran, with the number of their layer."""
        for number, (layer, times_us) in enumerate(zip(self.plan.layers, self.times.halves_us, strict=True)):
            variants, units = (layer.cpu, layer.gpu), (layer.cpu_units, layer.gpu_units)
            for place, (side, variant) in enumerate(zip(_SIDES, variants, strict=True)):
                if variant is not None and times_us[place]:
                    other = 1 - place
                    yield (
                        number,
                        Sample(
                            layer.layer, side, variant, units[place], units[other], times_us[place], variants[other]
                        ),
                    )


def best_plan(rehearsals: Sequence[Rehearsal]) -> Plan:
    """The plan of the last of some rehearsals, expected to take the median of all runs by it.

    Not the time of its least disturbed rehearsal: a user's runs are disturbed as well, and the least of several noisy
    figures is too small.
    """
    plan = rehearsals[-1].plan
    runs_us = [us for rehearsal in rehearsals if rehearsal.is_by(plan) for us in rehearsal.times.latency_us]
    return replace(plan, total_us=float(np.median(runs_us)), rehearsed=True)


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
        Of each side, the logarithm of the factor that half of its time is below.
    remembered
        What is left, of the very kernels and layers that ran.
    """

    usual: Mapping[str, float] = field(default_factory=dict)
    remembered: Mapping[str, Remembered] = field(default_factory=dict)

    @classmethod
    def of(cls, rehearsals: Iterable[Rehearsal], expect: Expect) -> Surroundings:
        """Compare what halves took with what is expected of them without this knowledge."""
        usual: dict[str, float] = {}
        remembered: dict[str, Remembered] = {}
        samples = _undisturbed(rehearsals)
        for side in _SIDES:
            own = [sample for sample in samples if sample.side == side]
            expected_us = np.array([expect(side, one.layer, one.variant, one.units, one.other_units) for one in own])
            known = np.flatnonzero((expected_us > 0) & (labels_us(own) > 0))
            if len(known):
                samples_known = [own[place] for place in known]
                log_errors = np.log(labels_us(samples_known) / expected_us[known])
                usual[side] = _weighted_median(log_errors, expected_us[known])
                remembered[side] = Remembered.of(samples_known, log_errors - usual[side], weights(samples_known))
        return cls(usual, remembered)

    def factors(self, side: str, layer: AnyLayer, variants: Sequence[Variant]) -> np.ndarray:
        """By what the expected times of a layer's halves are to be multiplied, an entry a variant."""
        if side not in self.usual:
            return np.ones(len(variants))
        own: np.ndarray = self.remembered[side].factors([(layer, variant) for variant in variants])
        return np.exp(self.usual[side]) * own


def _undisturbed(rehearsals: Iterable[Rehearsal]) -> list[Sample]:
    """The undisturbed samples of each layer of the network; equal layers at two places in it stay two.

    The best plan has run many times, and a machine that was busy once must not be believed for ever.
    """
    by_layer: dict[int, list[Sample]] = {}
    for rehearsal in rehearsals:
        for number, sample in rehearsal.samples():
            by_layer.setdefault(number, []).append(sample)
    return [sample for samples in by_layer.values() for sample in undisturbed(samples)]


def _weighted_median(values: np.ndarray, shares: np.ndarray) -> float:
    """The value that half of the shares lie below: short halves, of which clocks tell little, count for little."""
    order = np.argsort(values)
    passed = np.cumsum(shares[order])
    return float(values[order][np.searchsorted(passed, passed[-1] / 2)])
