"""The C library's lowering of steps to the two sides' programs, for tests: see ``libcoexec/lowering.h``."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

from c_internals import internals

from tvm_coexec.graph.dependencies import Work
from tvm_coexec.module.table import AXES
from tvm_coexec.runtime.library import ACTIONS

LOOKAHEAD = 2
TO_CPU, TO_GPU = 1, 2
_int = ctypes.c_int32


class _Read(ctypes.Structure):
    _fields_ = (("step", ctypes.c_uint32), ("local", ctypes.c_uint32))


class _Work(ctypes.Structure):
    _fields_ = (
        *((name, _int) for name in ("cpu_units", "gpu_units", "cpu_launches", "gpu_launches")),
        *(("axis", ctypes.c_uint32), ("is_output", _int), ("steps_itself", _int)),
        *(("reads", ctypes.POINTER(_Read)), ("read_count", _int)),
    )


class _Operation(ctypes.Structure):
    _fields_ = tuple((name, _int) for name in ("kind", "step", "first", "last"))


class _Command(ctypes.Structure):
    _fields_ = tuple((name, _int) for name in ("kind", "step", "done", "launch", "awaited"))


class _Lowered(ctypes.Structure):
    _fields_ = (
        *(("operations", ctypes.POINTER(_Operation)), ("commands", ctypes.POINTER(_Command))),
        *((name, _int) for name in ("operation_count", "command_count", "call_count")),
    )


@dataclass(frozen=True)
class Operation:
    """What the CPU does; a transfer's ``first`` is the number of its transfer."""

    kind: str
    step: int
    first: int
    last: int


@dataclass(frozen=True)
class Command:
    """What the GPU does: a kernel, or a signal or wait of its own."""

    kind: str
    step: int
    done: int
    launch: int
    awaited: int


@dataclass(frozen=True)
class Lowered:
    """Both programs, and at how many points one side may wait for the other."""

    operations: list[Operation]
    commands: list[Command]
    sync_count: int


READY, AHEAD, CHAINED = range(3)
"""When the GPU's commands are enqueued."""


def lower(steps: Sequence[Work], mechanism: str, inputs: int = 0, *, when: int = AHEAD) -> Lowered:
    """The programs of some steps."""
    works = (_Work * len(steps))(*map(_work, steps))
    found = _Lowered()
    assert not internals().lower(works, len(steps), mechanism == "svm", inputs, when, ctypes.byref(found))
    operations = [
        Operation(ACTIONS[one.kind], one.step, one.first, one.last) for one in found.operations[: found.operation_count]
    ]
    commands = [
        Command(ACTIONS[one.kind], one.step, one.done, one.launch, one.awaited)
        for one in found.commands[: found.command_count]
    ]
    sync_count = internals().count_syncs(ctypes.byref(found))
    internals().release_lowered(ctypes.byref(found))
    return Lowered(operations, commands, sync_count)


def _work(step: Work) -> _Work:
    reads = (_Read * len(step.reads))(
        *((read.step, sum(1 << AXES.index(axis) for axis in read.local)) for read in step.reads)
    )
    numbers = step.cpu_units, step.gpu_units, step.cpu_launches, step.gpu_launches
    return _Work(*numbers, AXES.index(step.axis), step.is_output, step.gpu_steps, reads, len(reads))
