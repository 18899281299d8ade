"""What a module is seen to do: its latency and that of each side alone, a run's timeline, and its halves' times."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from tvm_coexec.errors import KernelError
from tvm_coexec.module.usage import MemoryUse
from tvm_coexec.planning.plan import Plan
from tvm_coexec.runtime.module import Module
from tvm_coexec.timing.layers import Benchmark, Event

COMPUTES = frozenset({"call", "kernel"})
"""Kinds of events in which a side does work of the network."""

_ROUNDS, _HALVES, _TIMELINES = 5, 7, 5
"""Turns of every division, repetitions of every half, and runs of which the median's timeline is shown."""


@dataclass(frozen=True)
class Half:
    """One side's part of a layer in a run: its units, and microseconds; 0 where the side has no units."""

    units: int
    predicted_us: float
    measured_us: float


@dataclass(frozen=True)
class LayerObservation:
    """A layer as it was planned and as it ran."""

    name: str
    operator: str
    axis: str
    cpu: Half
    gpu: Half
    reason: str


@dataclass(frozen=True)
class Observation:
    """All that a report shows.

    Parameters
    ----------
    latencies
        Those of whole runs, interleaved: ``co-executed`` as planned, and ``CPU alone`` and ``GPU alone`` where the
        module has all kernels of that side.
    events
        What both sides did in a warm run, the median in length of some.
    """

    label: str
    mechanism: str
    plan: Plan
    latencies: dict[str, Benchmark]
    layers: tuple[LayerObservation, ...]
    events: tuple[Event, ...]
    memory: MemoryUse

    def waited_us(self, side: str) -> float:
        """How long a side waited in the run of the timeline."""
        return sum(event.end_us - event.start_us for event in self.events if event.side == side and _waits(event))


def _waits(event: Event) -> bool:
    return "wait" in event.kind


def observe(module: Module, *, repeats: int, progress: Callable[[Sequence[int]], Iterable[int]] = iter) -> Observation:
    """Run a module on random inputs, as it is divided now and by each side alone.

    Parameters
    ----------
    repeats
        Runs of each in each of five rounds.
    progress
        Wraps the iteration over the rounds, as ``tqdm`` does.
    """
    module.randomize_inputs()
    latencies = _latencies(module, repeats, progress)
    halves = module.time_halves(repeats=_HALVES)
    runs = sorted((module.profile() for _ in range(_TIMELINES)), key=lambda events: max(one.end_us for one in events))
    return Observation(
        label=module.device.label,
        mechanism=module.mechanism,
        plan=module.plan,
        latencies=latencies,
        layers=tuple(_layers(module, halves)),
        events=tuple(runs[len(runs) // 2]),
        memory=module.memory,
    )


def _latencies(
    module: Module, repeats: int, progress: Callable[[Sequence[int]], Iterable[int]]
) -> dict[str, Benchmark]:
    """Whole runs by every division that the module has kernels for, in turn."""
    planned, units = module.splits, {layer.name: layer.layer.units for layer in module.plan.layers}
    divisions = {"co-executed": planned, "CPU alone": units, "GPU alone": dict.fromkeys(units, 0)}
    found: dict[str, list[float]] = {}
    try:
        for name, splits in divisions.items():
            module.set_splits(splits)
            try:
                module.run()
            except KernelError:  # a half of some layer is not in the module
                continue
            found[name] = []
        for _ in progress(range(_ROUNDS)):
            for name in found:
                module.set_splits(divisions[name])
                found[name] += module.benchmark(repeats=repeats).latency_us
    finally:
        module.set_splits(planned)
    return {name: Benchmark(tuple(latency_us)) for name, latency_us in found.items()}


def _layers(module: Module, halves: Sequence[tuple[list[float], list[float]]]) -> Iterable[LayerObservation]:
    for planned, (cpu_us, gpu_us) in zip(module.plan.layers, halves, strict=True):
        cpu_units = module.splits[planned.name]
        yield LayerObservation(
            name=planned.name,
            operator=planned.layer.op,
            axis=planned.layer.axis,
            cpu=Half(cpu_units, planned.cpu_us, _median(cpu_us)),
            gpu=Half(planned.layer.units - cpu_units, planned.gpu_us, _median(gpu_us)),
            reason=planned.reason,
        )


def _median(times_us: Sequence[float]) -> float:
    return float(np.median(times_us)) if times_us else 0.0
