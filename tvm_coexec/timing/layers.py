"""Times programs: one layer as it runs inside a network, and the timeline of both sides."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from tvm_coexec.errors import InputError

from .programs import AnyLoaded, AnyProgram, Span

_GPU_CHAIN_US = 2000.0
"""What a chain of layers takes the GPU that is compared with a single one: long enough for the mean of its layers."""

_MOST_CHAINED = 300
"""Layers of such a chain at most."""

MOST_RUNS = 1_000_000
"""The most runs that one call times: each keeps its time in memory."""

_WARM_UP_NS = 3_000_000
"""For so long a program runs before the run that counts: cores that were idle take up to twice as long at first."""


@dataclass(frozen=True)
class Benchmark:
    """Latencies of whole runs, inputs and outputs staying where they are."""

    latency_us: tuple[float, ...]
    threads_ran_on: tuple[int | None, ...] = ()
    """See :meth:`Device.threads_ran_on`."""

    @property
    def median_us(self) -> float:
        return float(np.median(self.latency_us))

    def __str__(self) -> str:
        low, high = np.percentile(self.latency_us, [10, 90])
        return f"{self.median_us:.1f} us (10 %: {low:.1f}, 90 %: {high:.1f}, {len(self.latency_us)} runs)"


@dataclass
class Event:
    """One thing that a side did in a run, for the timeline; times from the start of the run."""

    side: str
    kind: str
    step: str
    start_us: float
    end_us: float


@dataclass(frozen=True)
class StepTimes:
    """Times of one layer, one entry a repetition.

    ``cpu_us`` and ``gpu_us`` are the halves' own times, while the other side works on its half; empty where the side
    has none. ``wall_us`` is from one point at which both sides are done to the next, synchronisation included; where
    the GPU works alone, an entry is what each further layer of a chain adds to a run.
    """

    cpu_us: list[float]
    gpu_us: list[float]
    wall_us: list[float]


def check_runs(repeats: int, warmup: int) -> None:
    """Refuse numbers of runs that give no times, or more than memory holds."""
    for name, count, least in (("repeats", repeats, 1), ("warmup", warmup, 0)):
        if not isinstance(count, int | np.integer) or not least <= count <= MOST_RUNS:
            raise InputError(f"{name} must be a whole number from {least} to {MOST_RUNS}, got {count!r}")


def time_step(
    loaded: AnyLoaded, step: int, cpu_units: int, gpu_units: int, *, repeats: int, warmup: int, walls: bool = True
) -> StepTimes:
    """See :meth:`Module.time_step`.

    Walls are of programs as they run in earnest; where the GPU's own times need an event for each kernel, they have a
    run of their own.
    """
    check_runs(repeats, warmup)

    def chain(count: int, *, timeline: bool = False) -> AnyProgram:
        return loaded.chain(step, cpu_units, gpu_units, count, timeline=timeline)

    gpu_us: list[float] = []
    timed = chain(warmup + repeats, timeline=True) if gpu_units else None
    if timed:
        timed.run_for(_WARM_UP_NS)
        gpu_us = list(_gpu_times_us(timed.spans()).values())[warmup:]
    if not cpu_units and not walls:
        return StepTimes([], gpu_us, [])
    if not cpu_units:
        further = min(_MOST_CHAINED, math.ceil(_GPU_CHAIN_US / max(float(np.median(gpu_us)), 1e-3)))
        single_us, chain_us = (_gpu_runs_us(chain(count), repeats, warmup) for count in (1, 1 + further))
        return StepTimes([], gpu_us, _added_us(single_us, chain_us, further))
    if timed and timed.timeline_is_faithful:
        program = timed
    else:
        program = chain(warmup + repeats)
        program.run_for(_WARM_UP_NS)
    spans = [span for span in program.spans() if span.side == "cpu"]
    calls = [span for span in spans if span.action == "call"]
    ends_us = [call.end_us for call in calls]
    for span in spans:
        if span.action in ("wait", "transfer") and span.step:
            ends_us[span.step - 1] = span.end_us
    walls_us = np.diff(ends_us, prepend=0.0)
    cpu_us = [call.end_us - call.start_us for call in calls]
    return StepTimes(cpu_us[warmup:], gpu_us, [float(wall) for wall in walls_us[warmup:]])


def _gpu_runs_us(program: AnyProgram, repeats: int, warmup: int) -> list[float]:
    """Wall times of several runs in which only the GPU works, so that nobody looks at the steps between."""
    runs = program.run_often(warmup + repeats)
    return [max(span.end_us for span in spans if span.side == "cpu") for spans in runs[warmup:]]


def _added_us(single_us: Sequence[float], chain_us: Sequence[float], further: int) -> list[float]:
    """What each of the ``further`` steps adds to a run of a single one, an entry for each run of the chain.

    A run hands over its inputs and its result, which takes a device with memory of its own a millisecond.
    """
    ends_us = float(np.median(single_us))
    return [max((run_us - ends_us) / further, 1e-3) for run_us in chain_us]


def _cpu_times_us(spans: list[Span]) -> dict[int, float]:
    """Read the CPU halves' own times, by their steps."""
    return {span.step: span.end_us - span.start_us for span in spans if (span.side, span.action) == ("cpu", "call")}


def _gpu_times_us(spans: Iterable[Span]) -> dict[int, float]:
    """The GPU halves' own times, by their steps: of each from its first start to its last end."""
    ends_us: dict[int, tuple[float, float]] = {}
    for span in spans:
        if (span.side, span.action) == ("gpu", "kernel"):
            ends_us[span.step] = (ends_us.get(span.step, (span.start_us, 0.0))[0], span.end_us)
    return {step: end_us - start_us for step, (start_us, end_us) in ends_us.items()}


def timeline(loaded: AnyLoaded, program: AnyProgram) -> list[Event]:
    """Events of both sides of the last run, in order of their start."""

    def name(step: int) -> str:
        return loaded.manifest.steps[step - 1].name if step else "inputs"

    events, last_us = [], 0.0
    for span in program.spans():
        if span.side == "gpu":
            if span.awaited and span.action == "kernel" and span.start_us > last_us:
                events.append(Event("gpu", "wait", name(span.awaited), last_us, span.start_us))
            last_us = span.end_us
        events.append(Event(span.side, span.action, name(span.step), span.start_us, span.end_us))
    return sorted(events, key=lambda event: event.start_us)


def time_halves(program: AnyProgram, steps: int, *, repeats: int, warmup: int) -> list[tuple[list[float], list[float]]]:
    """See :meth:`Module.time_halves`; the program must have a timeline."""
    check_runs(repeats, warmup)
    found: list[tuple[list[float], list[float]]] = [([], []) for _ in range(steps)]
    for _ in range(repeats):
        program.run_warm(warmup)
        spans = list(program.spans())
        for side, times_us in enumerate((_cpu_times_us(spans), _gpu_times_us(spans))):
            for step, half_us in times_us.items():
                found[step - 1][side].append(half_us)
    return found
