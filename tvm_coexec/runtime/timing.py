"""Times programs: whole runs, one layer as it runs inside a network, and the timeline of both sides."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tvm_coexec.graph.dependencies import Read

from .executor import Event, Executor
from .prepared import Prepared
from .program import Operation

_GPU_CHAIN_US = 2000.0
"""What a chain of layers takes the GPU that is compared with a single one: long enough for the mean of its layers."""

_MOST_CHAINED = 300
"""Layers of such a chain at most."""

_WARM_UP_NS = 3_000_000
"""For so long a program runs before the run that counts: cores that were idle take up to twice as long at first."""


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


def time_runs(program: Prepared, *, repeats: int, warmup: int) -> list[float]:
    """Wall time of each run in microseconds."""
    for _ in range(warmup):
        program.run()
    times_us = []
    for _ in range(repeats):
        start = time.perf_counter_ns()
        program.run()
        times_us.append((time.perf_counter_ns() - start) / 1e3)
    return times_us


def time_step(
    executor: Executor, step: int, cpu_units: int, gpu_units: int, *, repeats: int, warmup: int, walls: bool = True
) -> StepTimes:
    """See :meth:`Module.time_step`.

    Walls are of programs as they run in earnest; where the GPU's own times need an event for each kernel, they have a
    run of their own.
    """
    part = replace(executor.manifest.steps[step], units=cpu_units + gpu_units)

    def chain(count: int, *, timeline: bool = False) -> Prepared:
        reads = [()] + [(Read(number),) for number in range(1, count)]
        return executor.prepare([(part, cpu_units)] * count, reads, timeline=timeline)

    gpu_us: list[float] = []
    timed = chain(warmup + repeats, timeline=True) if gpu_units else None
    if timed:
        _run_warm(timed)
        gpu_us = list(_gpu_times_us(timed).values())[warmup:]
    if not cpu_units and not walls:
        return StepTimes([], gpu_us, [])
    if not cpu_units:
        further = min(_MOST_CHAINED, math.ceil(_GPU_CHAIN_US / max(float(np.median(gpu_us)), 1e-3)))
        single_us, chain_us = (_gpu_runs_us(chain(count), repeats, warmup) for count in (1, 1 + further))
        return StepTimes([], gpu_us, _added_us(single_us, chain_us, further))
    if timed and timed.keeps_time:
        program = timed
    else:
        program = chain(warmup + repeats)
        _run_warm(program)
    calls_ns = [times for operation, times in _timed(program) if operation.kind == "call"]
    ends_us = [end_ns / 1e3 for _, end_ns in calls_ns]
    for operation, (_, end_ns) in _timed(program):
        if operation.kind in ("wait", "exchange") and operation.step:
            ends_us[operation.step - 1] = end_ns / 1e3
    cpu_us = [(end_ns - start_ns) / 1e3 for start_ns, end_ns in calls_ns]
    walls_us = np.diff(ends_us, prepend=0.0)
    return StepTimes(cpu_us[warmup:], gpu_us, [float(wall) for wall in walls_us[warmup:]])


def _run_warm(program: Prepared) -> None:
    start_ns = time.perf_counter_ns()
    program.run()
    while time.perf_counter_ns() - start_ns < _WARM_UP_NS:
        program.take_events()
        program.run()


def _timed(program: Prepared) -> Iterator[tuple[Operation, tuple[int, int]]]:
    """Each operation of the last run with its start and end in nanoseconds."""
    for operation, (start_ns, end_ns) in zip(program.lowered.operations, program.operation_ns, strict=True):
        yield operation, (int(start_ns), int(end_ns))


def _gpu_runs_us(program: Prepared, repeats: int, warmup: int) -> list[float]:
    """Wall times of several runs in which only the GPU works, so that nobody looks at the steps between."""
    runs_us = []
    for _ in range(warmup + repeats):
        program.run()
        runs_us.append(max(end_ns for _, (_, end_ns) in _timed(program)) / 1e3)
    return runs_us[warmup:]


def _added_us(single_us: Sequence[float], chain_us: Sequence[float], further: int) -> list[float]:
    """What each of the ``further`` steps adds to a run of a single one, an entry for each run of the chain.

    A run hands over its inputs and its result, which takes a device with memory of its own a millisecond.
    """
    ends_us = float(np.median(single_us))
    return [max((run_us - ends_us) / further, 1e-3) for run_us in chain_us]


def _cpu_times_us(program: Prepared) -> dict[int, float]:
    """The CPU halves' own times in the last run of a program, by their steps."""
    return {
        operation.step: (end_ns - start_ns) / 1e3
        for operation, (start_ns, end_ns) in _timed(program)
        if operation.kind == "call"
    }


def _gpu_times_us(program: Prepared) -> dict[int, float]:
    """The GPU halves' own times in the last run of a program with a timeline, by their steps: of each from its first
    start to its last end."""
    spans_us: dict[int, tuple[float, float]] = {}
    for command, (start_us, end_us) in zip(program.lowered.commands, program.gpu_spans_us(), strict=True):
        if command.kind == "kernel":
            spans_us[command.step] = (spans_us.get(command.step, (start_us, end_us))[0], end_us)
    return {step: end_us - start_us for step, (start_us, end_us) in spans_us.items()}


def timeline(program: Prepared) -> list[Event]:
    """Events of both sides of the last run, in order of their start."""
    events = []
    for operation, (start_ns, end_ns) in _timed(program):
        step = program.steps[operation.step - 1].name if operation.step else "inputs"
        events.append(Event("cpu", operation.kind, step, start_ns / 1e3, end_ns / 1e3))
    last_us = 0.0
    for command, (start_us, end_us) in zip(program.lowered.commands, program.gpu_spans_us(), strict=True):
        if command.awaited and start_us > last_us:
            events.append(Event("gpu", "wait", program.steps[command.awaited - 1].name, last_us, start_us))
        events.append(Event("gpu", command.kind, program.steps[command.step - 1].name, start_us, end_us))
        last_us = end_us
    return sorted(events, key=lambda event: event.start_us)


def time_halves(program: Prepared, *, repeats: int, warmup: int) -> list[tuple[list[float], list[float]]]:
    """See :meth:`Module.time_halves`; the program must have a timeline."""
    found: list[tuple[list[float], list[float]]] = [([], []) for _ in program.steps]
    for _ in range(repeats):
        run_timeline(program, warmup)
        for side, times_us in enumerate((_cpu_times_us(program), _gpu_times_us(program))):
            for step, half_us in times_us.items():
                found[step - 1][side].append(half_us)
    return found


def run_timeline(program: Prepared, warmup: int) -> None:
    """Run a program with a timeline, warm: reading the events of a run before lets caches and queue go cold."""
    for _ in range(warmup):
        program.run()
        program.take_events()
    program.run()
