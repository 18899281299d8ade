"""The search for a layer's split: how many units the CPU computes, and by which variant each side computes its half."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

import numpy as np

from tvm_coexec import schedules
from tvm_coexec.errors import InputError, MeasurementError
from tvm_coexec.graph import Graph
from tvm_coexec.layers import AnyLayer, Hardware, Variant, along_partition_axes, by_threads
from tvm_coexec.prediction.base_time import BaseTime
from tvm_coexec.prediction.estimates import estimate_us
from tvm_coexec.prediction.features import Halves
from tvm_coexec.prediction.memory_model import MemoryModel, packed_bytes, packing
from tvm_coexec.prediction.noise import Noise
from tvm_coexec.prediction.predictors import LatencyPredictor
from tvm_coexec.prediction.surroundings import Surroundings
from tvm_coexec.profile.records import VariantSets
from tvm_coexec.profile.trial_runs import TrialRun

from .chances import NO_TIME, Time
from .division import Division, Half, Overheads, decide, side_alone, side_of
from .plan import LayerPlan

_SHORTLIST = 2
"""Variants of a side, the best at an even split, that are tried at every split."""

_GRID = 17
"""Splits spread over a range in a step of the search: few enough for a fraction of a millisecond."""

_WINDOW = 8
"""Splits on either side of the expected balance that the first step of the search tries too, and often ends with."""


_PROMISING = 4
"""A GPU's kernels that are considered of a layer, besides those that were measured: the first ones of the search,
which an analytic bound orders. On an H200 one of the first three was within 10 % of the best of all, whereas the least
prediction of hundreds is one that is too small: learned of 90 layers, it took kernels that were 2 to 6 times slower."""

_UNMEASURED_FACTOR = 1.1
"""Factor on a variant's time, on a layer of which others were measured. The best of many predictions is
the one that errs most in its favour; what was measured is known."""

_OTHER_KERNEL_GAIN = 1.1
"""Where nothing was measured of a layer, a kernel has to be so many times as fast as the first of the search: the
least of many predictions is often one that is too small. On held-out layers of an H200 and of the CPU beside it, the
kernels of least prediction were slower by over 3 % than the first for 6 and 4 % of the layers, and up to 1.2 and 2.2
times; with this gain asked for none and 1 % are. The mean over all layers is as short, also on a bench device: less
is gained on the H200 by its events (0.3 %), and nothing by its clock, where divided sums gain less than events tell."""

_FEWER_THREADS_GAIN = 1.02
"""A CPU's kernel has to be so many times as fast by fewer threads than there are cores as the best by all of them, on a
layer for which it was not measured so. Of 16 layers on eight x86 cores all eight threads were best, or as good; for one
of them four were predicted to be faster by 0.2 %, and were 1.8 times too slow."""

_MOST_SPLITS = 127
"""Splits of a layer that a network's plan chooses from; layers of more units are divided more coarsely."""


@dataclass(frozen=True)
class _Survey:
    """Each side alone, each side's best variants at an even split, in the order of the search, and the CPU's units that
    would balance these."""

    cpu_alone: Half
    gpu_alone: Half
    shortlists: dict[str, list[Variant]]
    balance: int


@dataclass(frozen=True)
class Planner:
    """Plans layers for one device, from what its predictors learned.

    Parameters
    ----------
    hardware
        Decides which variants are candidates.
    estimates
        For each side, what stands in for layers that the predictors know nothing of; without it they stay on the CPU.
    memory_model
        What halves take longer in a network.
    in_network, streams_weights
        Whether layers are in one, and whether its weights come from memory; a layer by itself finds everything in a
        cache.
    noise
        What halves take longer on average than the predictors say; it chooses nothing.
    measured, failed
        The variants that were measured, and those that could not be, of each layer that was tried.
    trial_runs
        Those of networks, by their fingerprints; the last one of each is by the best plan.
    surroundings
        What is known from them of the network at hand.
    elsewhere
        What is known from the trial runs of other networks.
    untried
        Factor on the times of kernels that were measured, but never ran in it: below 1, plans try them.
    threads
        Numbers of the CPU's threads to choose from, as :class:`Variant` has them.
    """

    cpu: LatencyPredictor
    gpu: LatencyPredictor
    hardware: Hardware
    overheads: Overheads
    estimates: Mapping[str, BaseTime] = field(default_factory=dict)
    memory_model: MemoryModel | None = None
    in_network: bool = False
    streams_weights: bool = False
    noise: Noise = field(default_factory=Noise)
    measured: VariantSets = field(default_factory=dict)
    failed: VariantSets = field(default_factory=dict)
    trial_runs: Mapping[str, Sequence[TrialRun]] = field(default_factory=dict)
    surroundings: Surroundings = field(default_factory=Surroundings)
    elsewhere: Surroundings = field(default_factory=Surroundings)
    untried: float = 1.0
    threads: tuple[int, ...] = (0,)

    def for_network(self, graph: Graph) -> Planner:
        """This planner for the layers of one network; those of a network of a single layer are on their own."""
        if len(graph.nodes) == 1:
            return self
        return replace(self, in_network=True)._reading(sum(node.layer.weight_bytes for node in graph.nodes))

    def for_kernels(self, layers: Iterable[LayerPlan]) -> Planner:
        """This planner where the kernels of such a plan are used: the weights that they read may outgrow the cache.

        A plan that is made for that case may come to read less again; it then expects too long a time, never too short.
        """
        if not self.in_network:
            return self
        return self._reading(sum(_read_bytes(layer) for layer in layers))

    def _reading(self, weight_bytes: float) -> Planner:
        streams_weights = self.memory_model is not None and self.memory_model.streams_weights(weight_bytes)
        return replace(self, streams_weights=self.streams_weights or streams_weights)

    def learning_from(self, trial_runs: Sequence[TrialRun], untried: float = 1.0) -> Planner:
        """This planner where it is known what halves took in the same network, or in others if it never ran."""
        if not trial_runs:
            return replace(self, surroundings=self.elsewhere if self.in_network else Surroundings(), untried=untried)
        plain = replace(self, surroundings=Surroundings(), untried=1.0)
        return replace(self, surroundings=Surroundings.of(trial_runs, plain.expect_us), untried=untried)

    def learn_from_networks(self) -> Surroundings:
        """What all networks that ran teach of one that did not."""
        networks = []
        for trial_runs in self.trial_runs.values():
            plain = replace(self, in_network=True, surroundings=Surroundings(), untried=1.0)
            networks.append((trial_runs, plain.for_kernels(trial_runs[-1].plan.layers).expect_us))
        return Surroundings.elsewhere(networks)

    def expect_us(self, side: str, layer: AnyLayer, variant: Variant, units: int, other_units: int) -> float:
        """What a half is expected to take; 0 where nothing is known of it."""
        predictor = self.cpu if side == "cpu" else self.gpu
        if self.knows(layer) and predictor.knows(layer, variant):
            own, other = np.array([float(units)]), np.array([float(other_units)])
            return float(self._times_us(side, layer, [variant], own, other)[0, 0])
        if side in self.estimates:
            return float(self._estimate_us(side, layer, variant, np.array([units]))[0])
        return 0.0

    def knows(self, layer: AnyLayer) -> bool:
        """Whether both predictors have learned from kernels that could compute the layer."""
        return all(self._known_variants(layer, side) for side in ("cpu", "gpu"))

    def plan_layer(self, name: str, layer: AnyLayer) -> LayerPlan:
        """The split with the least predicted time, or one side alone where splitting does not pay."""
        survey = self._survey(layer)
        alone = self._better_alone(layer, survey)
        if layer.units == 1:
            return alone.to_plan(name, layer, f"{side_of(alone)} alone: one unit cannot be divided")
        split = self._search(layer, survey)
        return decide(name, layer, split, alone, self.overheads)

    def _better_alone(self, layer: AnyLayer, survey: _Survey) -> Division:
        """The side that takes less on average: other work lengthens one side's times more than the other's."""
        halves, noise = (("cpu", survey.cpu_alone), ("gpu", survey.gpu_alone)), self.noise.factors(is_split=False)
        alone = {side: side_alone(side, layer, half, self.overheads) for side, half in halves}
        return alone[min(alone, key=lambda side: alone[side].total_us * noise[side])]

    def plan_best_axis(self, name: str, layer: AnyLayer) -> LayerPlan:
        """The better plan of the layer divided by channels and, where the predictors know of it, by lines."""
        ways = (way for way in along_partition_axes(layer) if way == layer or self.knows(way))
        return min((self.plan_layer(name, way) for way in ways), key=lambda plan: plan.total_us)

    def plan_split(self, name: str, layer: AnyLayer, cpu_units: int) -> LayerPlan:
        """Choose the best variants for a split that somebody else chose."""
        if not 0 <= cpu_units <= layer.units:
            raise InputError(
                f"layer {name!r} has {layer.units} units, the CPU cannot compute {cpu_units}; choose 0 to {layer.units}"
            )
        if cpu_units in (0, layer.units):
            survey = self._survey(layer)
            side, half = ("cpu", survey.cpu_alone) if cpu_units else ("gpu", survey.gpu_alone)
            split = side_alone(side, layer, half, self.overheads)
        else:
            variants = {side: self._variants(layer, side) for side in ("cpu", "gpu")}
            split = self._best(layer, variants, np.array([cpu_units]))
        return split.to_plan(name, layer, "chosen by the caller")

    def _known_variants(self, layer: AnyLayer, side: str) -> list[Variant]:
        predictor = self.cpu if side == "cpu" else self.gpu
        variants: list[Variant] = schedules.family(layer).variants(layer, side, self.hardware)
        failed = self.failed.get((side, layer), frozenset())
        known = [variant for variant in variants if variant not in failed and predictor.knows(layer, variant)]
        if side == "cpu":
            return by_threads(known, self.threads)
        if self.hardware.opencl_type != "gpu":
            return known
        measured = self.measured.get((side, layer), frozenset())
        return [variant for position, variant in enumerate(known) if position < _PROMISING or variant in measured]

    def _variants(self, layer: AnyLayer, side: str) -> list[Variant]:
        """List the candidates of a side: of a kernel that was never measured nothing can be said."""
        found = self._known_variants(layer, side)
        if not found:
            raise MeasurementError(
                f"the {side} predictor has learned of no kernel for {layer.op} layers; tune this family too"
            )
        return found

    def usual_variant(self, layer: AnyLayer, side: str) -> Variant | None:
        """The kernel of a side where nothing is known of the layer's times; None if the GPU has none that works.

        A failure names kernels of both sides. Where all have failed, the GPU's are given up: one side has to go on.
        """
        failed = self.failed.get((side, layer), frozenset())
        variants: list[Variant] = schedules.family(layer).variants(layer, side, self.hardware)
        return next((one for one in variants if one not in failed), variants[0] if side == "cpu" else None)

    def _survey(self, layer: AnyLayer) -> _Survey:
        halves, shortlists, even_us = {}, {}, {}
        half = layer.units / 2
        for side in ("cpu", "gpu"):
            variants = self._variants(layer, side)
            times_us = self._times_us(side, layer, variants, np.array([layer.units, half]), np.array([0.0, half]))
            (halves[side],) = self._best_halves(
                side, layer, variants, times_us[:, :1], np.array([layer.units]), np.zeros(1)
            )
            best_first = [variants[index] for index in times_us[:, 1].argsort(kind="stable")]
            shortlists[side] = sorted(_shortlist(best_first), key=variants.index)
            even_us[side] = float(times_us[:, 1].min())
        balance = round(layer.units * even_us["gpu"] / (even_us["cpu"] + even_us["gpu"]))
        return _Survey(halves["cpu"], halves["gpu"], shortlists, balance)

    def _times_us(
        self, side: str, layer: AnyLayer, variants: list[Variant], own: np.ndarray, other: np.ndarray
    ) -> np.ndarray:
        """Predict the times of a side's halves ``[variants, splits]``, from the units of this side and of the other."""
        predictor = self.cpu if side == "cpu" else self.gpu
        times_us = predictor.predict(Halves.grid(layer, variants, own, other)).reshape(len(variants), len(own))
        measured = self.measured.get((side, layer), frozenset())
        times_us = _without_small_gains(variants, times_us, measured)
        if measured:
            times_us *= np.array([[1.0 if variant in measured else _UNMEASURED_FACTOR] for variant in variants])
            tried = [variant not in measured or self.surroundings.has_run(side, layer, variant) for variant in variants]
            times_us *= np.where(tried, 1.0, self.untried)[:, None]
        if self.memory_model is not None and self.streams_weights:
            rows = zip(variants, times_us, strict=True)
            times_us = np.stack(
                [self.memory_model.read_weights(side, layer, variant, us, own, other) for variant, us in rows]
            )
        if self.memory_model is not None and self.in_network:
            times_us = times_us + self.memory_model.hand_over_us(side, layer, own, other)
        return times_us * self.surroundings.factors(side, layer, variants)[:, None]

    def _best_halves(
        self,
        side: str,
        layer: AnyLayer,
        variants: list[Variant],
        times_us: np.ndarray,
        own: np.ndarray,
        other: np.ndarray,
    ) -> list[Half]:
        """Find at each split the best of some variants, from the times of all, with what its time may be off by."""
        predictor = self.cpu if side == "cpu" else self.gpu
        kernels, best, best_us = (
            [(layer, variant) for variant in variants],
            times_us.argmin(axis=0),
            times_us.min(axis=0),
        )
        bounds = predictor.log_bounds(Halves(kernels, best, np.asarray(own, float), np.asarray(other, float)))
        factors = self.surroundings.uncertainty_factors(side, layer, variants)[best]
        low_us, high_us = (best_us * np.exp(factors * bound) for bound in bounds)
        times = zip(best, best_us.tolist(), low_us.tolist(), high_us.tolist(), strict=True)
        return [Half(variants[choice], Time(*limits_us)) for choice, *limits_us in times]

    def _search(self, layer: AnyLayer, survey: _Survey) -> Division:
        """Try some splits, then ever more of those beside the best, until its neighbours have been tried.

        Moving units over shortens one half and lengthens the other, so the longer half falls and then rises.
        """
        low, high = 1, layer.units - 1
        candidates = _spread(max(low, survey.balance - _WINDOW), min(high, survey.balance + _WINDOW), 2 * _WINDOW + 1)
        candidates = np.union1d(candidates, _spread(low, high, _GRID))
        while True:
            best = self._best(layer, survey.shortlists, candidates)
            position = int(np.searchsorted(candidates, best.cpu_units))
            low, high = int(candidates[max(position - 1, 0)]), int(candidates[min(position + 1, len(candidates) - 1)])
            if np.isin(np.arange(low, high + 1), candidates).all():
                return best
            candidates = _spread(low, high, _GRID)

    def _best(self, layer: AnyLayer, variants: dict[str, list[Variant]], cpu_units: np.ndarray) -> Division:
        """Choose the best of some splits, each side with its best variant."""
        return min(self._divide(layer, variants, cpu_units), key=lambda division: division.total_us)

    def _divide(self, layer: AnyLayer, variants: dict[str, list[Variant]], cpu_units: np.ndarray) -> list[Division]:
        """Divide the layer at some splits, each side with its best variant."""
        gpu_units = layer.units - cpu_units
        halves: dict[str, list[Half]] = {}
        for side, own, other in (("cpu", cpu_units, gpu_units), ("gpu", gpu_units, cpu_units)):
            times_us = self._times_us(side, layer, variants[side], own, other)
            halves[side] = self._best_halves(side, layer, variants[side], times_us, own, other)
        return [
            Division(int(units), cpu, gpu, max(cpu.us, gpu.us) + self.overheads.split_us)
            for units, cpu, gpu in zip(cpu_units, halves["cpu"], halves["gpu"], strict=True)
        ]

    def divisions(self, layer: AnyLayer) -> dict[int, Division]:
        """List either side alone and every split, or many, by the CPU's units; without any knowledge the CPU alone."""
        splits = _spread(1, layer.units - 1, _MOST_SPLITS) if layer.units > 1 else np.array([], int)
        if not self.knows(layer):
            return self._estimated_divisions(layer, splits)
        survey = self._survey(layer)
        found = {0: side_alone("gpu", layer, survey.gpu_alone, self.overheads)}
        if len(splits):
            found |= {one.cpu_units: one for one in self._divide(layer, survey.shortlists, splits)}
        return found | {layer.units: side_alone("cpu", layer, survey.cpu_alone, self.overheads)}

    def _estimated_divisions(self, layer: AnyLayer, splits: np.ndarray) -> dict[int, Division]:
        units = layer.units
        cpu, gpu = (self.usual_variant(layer, side) for side in ("cpu", "gpu"))
        assert cpu is not None
        if "cpu" not in self.estimates or "gpu" not in self.estimates:
            return {units: side_alone("cpu", layer, Half(cpu, NO_TIME), self.overheads)}

        def whole(side: str, variant: Variant) -> Half:
            return Half(variant, Time.sure(float(self._estimate_us(side, layer, variant, np.array([units]))[0])))

        found = {units: side_alone("cpu", layer, whole("cpu", cpu), self.overheads)}
        if gpu is None:
            return found
        found[0] = side_alone("gpu", layer, whole("gpu", gpu), self.overheads)
        cpu_us = self._estimate_us("cpu", layer, cpu, splits)
        gpu_us = self._estimate_us("gpu", layer, gpu, units - splits)
        for split, own_us, other_us in zip(splits, cpu_us, gpu_us, strict=True):
            halves = Half(cpu, Time.sure(float(own_us))), Half(gpu, Time.sure(float(other_us)))
            found[int(split)] = Division(int(split), *halves, float(max(own_us, other_us)) + self.overheads.split_us)
        return found

    def _estimate_us(self, side: str, layer: AnyLayer, variant: Variant, units: np.ndarray) -> np.ndarray:
        """The times of so many units of a layer that the predictors do not know."""
        return estimate_us(self.estimates[side], layer, units) * self.surroundings.factors(side, layer, [variant])


def _read_bytes(plan: LayerPlan) -> float:
    """Count the weights that a layer's kernels read: each half those of its own channels, by lines all of its kind."""
    halves = ((plan.cpu, plan.cpu_units), (plan.gpu, plan.gpu_units))
    read = [(variant, packed_bytes(plan.layer, variant), units) for variant, units in halves if variant]
    if plan.layer.axis == "lines":
        return sum({packing(plan.layer, variant): all_bytes for variant, all_bytes, _ in read}.values())
    return sum(all_bytes * units / plan.layer.units for _, all_bytes, units in read)


def _without_small_gains(variants: Sequence[Variant], times_us: np.ndarray, measured: Set[Variant]) -> np.ndarray:
    """Times that keep what was not measured from being chosen for a small gain: another kernel, or fewer threads."""
    unmeasured = np.array([variant not in measured for variant in variants])
    by_all = np.array([variant.threads == 0 for variant in variants])
    if not measured:
        others = np.array([replace(variant, threads=variants[0].threads) != variants[0] for variant in variants])
        times_us = _unless_faster(times_us, others, times_us[0], _OTHER_KERNEL_GAIN)
    if not by_all.all() and by_all.any():
        best_us = times_us[by_all].min(axis=0)
        times_us = _unless_faster(times_us, ~by_all & unmeasured, best_us, _FEWER_THREADS_GAIN)
    return times_us


def _unless_faster(times_us: np.ndarray, doubted: np.ndarray, usual_us: np.ndarray, gain: float) -> np.ndarray:
    """Times ``[variants, splits]``, where those in doubt are longer than what is usual if they gain less."""
    small = doubted[:, None] & (times_us * gain > usual_us)
    return np.where(small, np.maximum(times_us, np.nextafter(usual_us, np.inf)), times_us)


def _shortlist(variants: Sequence[Variant]) -> list[Variant]:
    """The first ones, and of each number of threads the first: a small half may want fewer than a large one."""
    first_by_threads = {variant.threads: variant for variant in reversed(variants)}
    return list(dict.fromkeys([*variants[:_SHORTLIST], *first_by_threads.values()]))


def _spread(low: int, high: int, count: int) -> np.ndarray:
    """Choose up to ``count`` whole numbers from ``low`` to ``high``, evenly spread."""
    return np.unique(np.linspace(low, high, min(count, high - low + 1)).round().astype(int))
