"""Lowers the steps of a module, with a split for each, to the stitch's two programs.

Steps are numbered from 1 as the flags count them. A side signals only where it is waited for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

from tvm_coexec.graph.dependencies import Work, crossing_reads, waits_of

LOOKAHEAD = 2
"""Steps whose GPU commands are enqueued before the CPU half of the current one: enough to keep the queue from idling,
few enough that the CPU's first half starts at once."""


@dataclass(frozen=True)
class Operation:
    """An operation of the CPU program; ``kind`` as in stitch.h. ``step`` counts from 1."""

    kind: str
    step: int
    first: int = 0
    last: int = 0


@dataclass(frozen=True)
class Command:
    """A command of the GPU program: one of a layer's kernels, or a flag kernel.

    ``kind`` is ``kernel``, ``signal``, ``wait`` or ``signal_wait``; ``done`` is the step that a signal reports,
    ``step`` the one that a wait is for, ``launch`` the kernel's number in its half. A kernel may itself await a step of
    the CPU before it starts, ``awaited``, and report ``done`` at its end; 0 is none.
    """

    kind: str
    step: int
    done: int = 0
    launch: int = 0
    awaited: int = 0


@dataclass(frozen=True)
class Call:
    """A call of the CPU program: one of a layer's kernels, ``launch`` being its number in its half."""

    step: int
    launch: int = 0


@dataclass
class Lowered:
    """Both programs, and where each synchronisation is."""

    operations: list[Operation] = field(default_factory=list)
    commands: list[Command] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)

    def call(self, number: int, step: Work) -> None:
        """Let the CPU compute its half of a step."""
        first = len(self.calls)
        self.calls += [Call(number, launch) for launch in range(step.cpu_launches)]
        self.operations.append(Operation("call", number, first, len(self.calls)))

    @property
    def sync_count(self) -> int:
        """Points at which one side may wait for the other."""
        cpu = sum(operation.kind in ("wait", "exchange") for operation in self.operations)
        return cpu + sum(command.kind in ("wait", "signal_wait") or command.awaited > 0 for command in self.commands)


def lower(steps: Sequence[Work], mechanism: str, inputs: int = 0, *, chains: bool = False) -> Lowered:
    """The programs of ``steps`` for the mechanism ``svm`` or ``event``.

    An exchange names its tensor by the step that writes it, counted from 0, and after all steps the ``inputs``. With
    ``chains``, the GPU's commands of many steps are enqueued at once, since one launch computes them.
    """
    return _lower_flags(steps, chains) if mechanism == "svm" else _lower_events(steps, inputs)


def _lower_flags(steps: Sequence[Work], chains: bool) -> Lowered:
    cpu_waits, gpu_waits = waits_of(steps, "cpu"), waits_of(steps, "gpu")
    last_gpu = max((number for number, step in enumerate(steps, 1) if step.gpu_units), default=0)
    gpu_signals = set(cpu_waits.values()) | ({last_gpu} if last_gpu else set())
    lowered = Lowered()
    ends = _gpu_program(steps, gpu_waits, gpu_signals, lowered.commands)
    cpu_signals = set(gpu_waits.values())
    together = _together(steps) if chains else range(1, len(steps) + 1)
    enqueued = 0
    for number, step in enumerate(steps, 1):
        ahead = ends[together[min(number + LOOKAHEAD, len(steps)) - 1] - 1]
        if ahead > enqueued:
            lowered.operations.append(Operation("enqueue", number, enqueued, ahead))
            enqueued = ahead
        if step.cpu_units:
            if number in cpu_waits:
                lowered.operations.append(Operation("wait", cpu_waits[number]))
            lowered.call(number, step)
            if number in cpu_signals:
                lowered.operations.append(Operation("signal", number))
    if last_gpu and last_gpu not in cpu_waits.values():
        lowered.operations.append(Operation("wait", last_gpu))
    return lowered


def _together(steps: Sequence[Work]) -> list[int]:
    """For each step the last one up to which the GPU's commands are enqueued with its own.

    Not across many steps of the CPU alone: the GPU would wait for all of these, and its waits are bounded.
    """
    ends = list(range(1, len(steps) + 1))
    on_gpu = [number for number, step in enumerate(steps, 1) if step.gpu_units]
    for number, following in reversed(list(pairwise(on_gpu))):
        if following - number <= LOOKAHEAD + 1:
            ends[number - 1] = ends[following - 1]
    return list(accumulate(ends, max))


def _gpu_program(steps: Sequence[Work], waits: dict[int, int], signals: set[int], commands: list[Command]) -> list[int]:
    """Append the GPU's commands; returns, for each step, the number of commands up to its end."""
    ends = []
    for number, step in enumerate(steps, 1):
        if step.gpu_units and step.gpu_steps:
            commands += _kernels(number, step, waits.get(number, 0), number if number in signals else 0)
        elif step.gpu_units:
            if number in waits:
                if commands and commands[-1].kind == "signal":
                    commands[-1] = Command("signal_wait", waits[number], commands[-1].done)
                else:
                    commands.append(Command("wait", waits[number]))
            commands += _kernels(number, step)
            if number in signals:
                commands.append(Command("signal", number, number))
        ends.append(len(commands))
    return ends


def _kernels(number: int, step: Work, awaited: int = 0, done: int = 0) -> list[Command]:
    """The first kernel awaits, the last one reports."""
    last = step.gpu_launches - 1
    return [
        Command("kernel", number, done if launch == last else 0, launch, awaited if launch == 0 else 0)
        for launch in range(step.gpu_launches)
    ]


def _lower_events(steps: Sequence[Work], inputs: int) -> Lowered:
    """A blocking exchange after each step that the other side awaits; the queue cannot run ahead of it.

    Unlike a flag, an exchange makes only its own tensor visible, so every tensor that crosses has one.
    """
    crossing = {read for step in steps for side in ("cpu", "gpu") for read in crossing_reads(steps, step, side)}
    lowered = Lowered()
    if any(step.gpu_units for step in steps):
        lowered.operations += [Operation("exchange", 0, len(steps) + index) for index in range(inputs)]
    for number, step in enumerate(steps, 1):
        if step.gpu_units:
            first = len(lowered.commands)
            lowered.commands += _kernels(number, step)
            lowered.operations.append(Operation("enqueue", number, first, len(lowered.commands)))
        if step.cpu_units:
            lowered.call(number, step)
        if number in crossing or (step.is_output and step.gpu_units):
            lowered.operations.append(Operation("exchange", number, number - 1))
    return lowered
