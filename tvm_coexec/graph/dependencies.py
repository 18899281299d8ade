"""Which steps wait for which: what each reads and overwrites, and where one processor needs the other's half for it.

Steps are numbered from 1 as the flags count them. A side waits for the other before it reads what the other wrote, or
overwrites memory that the other used. A side that reads only what it wrote itself, as a chain of channel-local steps
does, or one of pointwise steps by lines, waits for nobody's results.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


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


def network_reads(
    steps: Sequence[Step], parents: Mapping[str, Sequence[str]], memory: Mapping[str, Hashable] | None = None
) -> list[tuple[Read, ...]]:
    """List for each step the steps whose outputs it reads, and those that used the memory that it overwrites.

    Parameters
    ----------
    parents
        What a tensor is a slice of, the innermost first: whoever reads such a parent reads what many steps wrote.
    memory
        What tells each tensor's memory from that of others, where tensors share some.
    """
    writers: dict[str, list[int]] = {}
    for number, step in enumerate(steps, 1):
        for name in (step.output, *parents.get(step.output, ())):
            writers.setdefault(name, []).append(number)

    def local(reader: Step, name: str, writer: Step) -> tuple[str, ...]:
        alike = (reader.axis, reader.units) == (writer.axis, writer.units)
        # Units of lines are the same in a parent and in its slices, those of channels are not.
        same_units = name == writer.output or reader.axis == "lines"
        return (reader.axis,) if name in reader.local_inputs and same_units and alike else ()

    overwrites = _overwrites(steps, parents, memory) if memory else [set() for _ in steps]
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
    steps: Sequence[Step], parents: Mapping[str, Sequence[str]], memory: Mapping[str, Hashable]
) -> list[set[int]]:
    """List for each step those that wrote or read what was in the memory of its output before.

    Slices of one parent do not overwrite each other: each of them overwrites what was there before the first.
    """
    contents: dict[Hashable, str] = {}
    users: dict[Hashable, set[int]] = {}
    before: dict[Hashable, set[int]] = {}
    overwrites = []
    for number, step in enumerate(steps, 1):
        block, content = memory[step.output], (step.output, *parents.get(step.output, ()))[-1]
        if contents.get(block) != content:
            contents[block], before[block], users[block] = content, users.get(block, set()), set()
        overwrites.append(before[block])
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
    """List by step (from 1) before which side ``waiting`` has to wait: the other side's step that it waits for."""
    waits: dict[int, int] = {}
    known = 0
    for number, step in enumerate(steps, 1):
        needed = max(crossing_reads(steps, step, waiting), default=0)
        # The other side's steps end in order, so that this flag tells of all before it as well.
        if needed > known:
            waits[number] = known = needed
    return waits


def crossing_reads(steps: Sequence[Work], step: Work, side: str) -> list[int]:
    """The steps of which a side needs the other's half to be done."""
    return [read.step for read in step.reads if needs_other(side, step, steps[read.step - 1], read)]
