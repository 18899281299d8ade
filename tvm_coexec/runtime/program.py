"""Lowers the steps of a module, with a split for each, to the stitch's two programs.

Steps are numbered from 1 as the flags count them. A side waits for the other before it reads what the other wrote, or
overwrites memory that the other used, and a side signals only where it is waited for. A side that reads only what it
wrote itself, as a chain of channel-local steps does, or one of pointwise steps by lines, waits for nobody's results.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Protocol

LOOKAHEAD = 2
"""Steps whose GPU commands are enqueued before the CPU half of the current one: enough to keep the queue from idling,
few enough that the CPU's first half starts at once."""


class Divided(Protocol):
    """Something that the GPU computes the first units along an axis of, and the CPU the others."""

    @property
    def axis(self) -> str: ...
    @property
    def cpu_units(self) -> int: ...
    @property
    def gpu_units(self) -> int: ...


class Step(Protocol):
    """A step as far as the tensors matter that it reads and writes."""

    @property
    def axis(self) -> str: ...
    @property
    def units(self) -> int: ...
    @property
    def inputs(self) -> tuple[str, ...]: ...
    @property
    def local_inputs(self) -> tuple[str, ...]: ...
    @property
    def output(self) -> str: ...


@dataclass(frozen=True)
class Read:
    """The number of a step whose result another reads, or which used the memory that it ``overwrites``.

    Where both are divided along one of the axes in ``local``, each unit reads the same unit.
    """

    step: int
    local: tuple[str, ...] = ()
    overwrites: bool = False


@dataclass(frozen=True)
class Work:
    """One step as far as its order matters: who computes it, and the steps whose results it reads (or overwrites).

    A half may be several kernels, one after the other: ``cpu_launches`` and ``gpu_launches`` count them. With
    ``gpu_steps`` the GPU's kernels can await and report steps themselves.
    """

    cpu_units: int
    gpu_units: int
    reads: tuple[Read, ...] = ()
    is_output: bool = False
    cpu_launches: int = 1
    gpu_launches: int = 1
    gpu_steps: bool = False
    axis: str = "channels"


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


def network_reads(
    steps: Sequence[Step], wholes: Mapping[str, Sequence[str]], memory: Mapping[str, Hashable] | None = None
) -> list[tuple[Read, ...]]:
    """For each step the steps whose outputs it reads, and those that used the memory that it overwrites.

    Parameters
    ----------
    wholes
        What a tensor is part of, the innermost first: whoever reads such a whole reads what many steps wrote.
    memory
        What tells each tensor's memory from that of others, where tensors share some.
    """
    writers: dict[str, list[int]] = {}
    for number, step in enumerate(steps, 1):
        for name in (step.output, *wholes.get(step.output, ())):
            writers.setdefault(name, []).append(number)

    def local(reader: Step, name: str, writer: Step) -> tuple[str, ...]:
        alike = (reader.axis, reader.units) == (writer.axis, writer.units)
        # Units of lines are the same in a whole and in its parts, those of channels are not.
        same_units = name == writer.output or reader.axis == "lines"
        return (reader.axis,) if name in reader.local_inputs and same_units and alike else ()

    overwrites = _overwrites(steps, wholes, memory) if memory else [set() for _ in steps]
    return [
        (
            *(
                Read(number, local(step, name, steps[number - 1]))
                for name in step.inputs
                for number in writers.get(name, ())
            ),
            *(Read(number, overwrites=True) for number in sorted(users)),
        )
        for step, users in zip(steps, overwrites, strict=True)
    ]


def _overwrites(
    steps: Sequence[Step], wholes: Mapping[str, Sequence[str]], memory: Mapping[str, Hashable]
) -> list[set[int]]:
    """For each step those that wrote or read what was in the memory of its output before.

    Parts of one whole do not overwrite each other: each of them overwrites what was there before the first.
    """
    contents: dict[Hashable, str] = {}
    users: dict[Hashable, set[int]] = {}
    before: dict[Hashable, set[int]] = {}
    overwrites = []
    for number, step in enumerate(steps, 1):
        place, content = memory[step.output], (step.output, *wholes.get(step.output, ()))[-1]
        if contents.get(place) != content:
            contents[place], before[place], users[place] = content, users.get(place, set()), set()
        overwrites.append(before[place])
        for name in (step.output, *step.inputs):
            users.setdefault(memory[name], set()).add(number)
    return overwrites


def needs_other(side: str, reader: Divided, writer: Divided, read: Read) -> bool:
    """Whether the half of one side reads what the other side's half wrote, or overwrites what it used."""
    local = reader.axis == writer.axis and reader.axis in read.local
    if side == "cpu":
        return bool(reader.cpu_units and writer.gpu_units) and (not local or reader.gpu_units < writer.gpu_units)
    return bool(reader.gpu_units and writer.cpu_units) and (not local or reader.gpu_units > writer.gpu_units)


def waits_of(steps: Sequence[Work], waiting: str) -> dict[int, int]:
    """For each step (from 1) before which side ``waiting`` has to wait: the other side's step that it waits for."""
    waits: dict[int, int] = {}
    known = 0
    for number, step in enumerate(steps, 1):
        needed = max(_crossing_reads(steps, step, waiting), default=0)
        if needed > known:
            waits[number] = known = needed
    return waits


def _crossing_reads(steps: Sequence[Work], step: Work, side: str) -> list[int]:
    """The steps of which a side needs the other's half to be done."""
    return [read.step for read in step.reads if needs_other(side, step, steps[read.step - 1], read)]


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
    crossing = {read for step in steps for side in ("cpu", "gpu") for read in _crossing_reads(steps, step, side)}
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
