"""These entries let kernels of layers await the CPU's flag and store the GPU's themselves: one launch instead of three.

An entry ``<symbol>_step`` is for one kernel. Where a device has nothing to gain from its kernels being launched one by
one, all of them are in one entry, which goes through a table of steps: a whole network is a single launch. It writes
down when each step began and ended, since such a launch has one event for all. The runtime puts before the source what
awaits and stores flags; for a device without flags it defines ``COEXEC_EVENTS``, and the entries are plain kernels.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tvm_coexec.module.manifest import HalfSpec, LaunchSpec, StepSpec

CHAIN_ENTRY = "coexec_chain"

_FIRST_ITEM = "get_local_id(0) == 0 && get_local_id(1) == 0"
_STEP_PARAMETERS = "volatile __global int* flags, int awaited, int done, uint limit"
_KERNEL = re.compile(r"__kernel void (\w+)_kernel\(([^)]*)\)\s*(;|\{)")
_NOT_CALLABLE = re.compile(r"\b(__local|local|get_global_id|get_global_size|get_num_groups|get_group_id\(2\))")
_HEAD_WORDS = 7
"""A row of the table begins with the kernel's number, the step to await, the step to report, work-groups on both axes,
and the processor's ticks at the begin and at the end of the kernel."""

_BEGIN_STAMP, _END_STAMP = 5, 6
"""Indices of the ticks in a row."""

_CHAIN = """
#ifndef COEXEC_EVENTS
__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void {entry}(
    __global ulong* restrict table, int first, int last, volatile __global int* flags, uint limit) {{
  for (int number = first; number < last; ++number) {{
    __global ulong* row = table + number * {row_words};
    int awaited = (int)row[1], done = (int)row[2], columns = (int)row[3], lines = (int)row[4];
    if (awaited) coexec_wait_for(flags, awaited, limit);
    row[{begin_stamp}] = __builtin_readcyclecounter();
    if (!COEXEC_LOAD(flags + COEXEC_ABORT)) switch ((int)row[0]) {{
{cases}    }}
    row[{end_stamp}] = __builtin_readcyclecounter();
    if (done) coexec_report(flags, done);
  }}
}}
#endif
"""
_CASE = "      case {number}: {symbol}_groups(row, columns, lines); break;\n"
_GROUPS = """
__attribute__((noinline)) void {symbol}_groups(__global ulong* restrict row, int columns, int lines) {{
  for (int y = 0; y < lines; ++y)
    for (int x = 0; x < columns; ++x) {symbol}_group({arguments}, x, y);
}}
"""
"""A function of its own, whose variables leave the stack when it is done: those of a whole network overflow it."""


@dataclass(frozen=True)
class SteppedSource:
    """A module's OpenCL source with entries in the place of kernels.

    ``<symbol>_step``, for each kernel in ``own``, takes the kernel's arguments, then the flags, the step to await, the
    step to report (0 for none) and the bound of the wait in rounds. The one entry of all kernels in ``chained`` takes
    a table whose rows have ``row_words``, the rows to compute, the flags and the bound; once a wait was given up it
    computes nothing more.
    """

    text: str
    own: frozenset[str]
    chained: tuple[str, ...]
    row_words: int

    def entered(self, step: StepSpec) -> StepSpec:
        """The step, whose GPU kernels are called by these entries."""
        if step.gpu is None:
            return step
        return replace(step, gpu=HalfSpec(step.gpu.variant, tuple(map(self._entered, step.gpu.launches))))

    def _entered(self, launch: LaunchSpec) -> LaunchSpec:
        if launch.symbol in self.chained:
            return replace(launch, entry="chained", chained=self.chained.index(launch.symbol))
        return replace(launch, entry="step" if launch.symbol in self.own else "kernel")


def add_steps(source: str, launches: Iterable[LaunchSpec], *, chains: bool) -> SteppedSource:
    """Make entries of all kernels that may be called like functions; see :attr:`_Kernel.is_callable`.

    With ``chains``, those of work-groups of a single work-item share one.
    """
    groups = {launch.symbol: launch.group for launch in launches}
    pieces, own, chained = [], set(), {}
    for kernel in _kernels(source):
        if kernel.symbol not in groups or not kernel.is_callable:
            pieces.append(kernel.text)
            continue
        pieces.append(kernel.function())
        if chains and groups[kernel.symbol] == (1, 1):
            chained[kernel.symbol] = kernel
            with_flags = kernel.groups()
        else:
            own.add(kernel.symbol)
            with_flags = kernel.entry(groups[kernel.symbol])
        pieces.append(f"#ifdef COEXEC_EVENTS\n{kernel.plain_entry()}#else\n{with_flags}#endif\n")
    row_words = _HEAD_WORDS + max((len(kernel.parameters) for kernel in chained.values()), default=0)
    if chained:
        pieces.append(_chain(list(chained.values()), row_words))
    return SteppedSource("\n".join(pieces), frozenset(own), tuple(chained), row_words if chained else 0)


def chains_kernels(device: Mapping[str, Any]) -> bool:
    """Whether to chain a device's kernels: a CPU device of one compute unit computes groups one after the other, and
    each launch costs it 2 to 6 us. Chained kernels are timed by the processor's counter, which other machines keep to
    themselves, and take addresses, which memory that is mapped has none of.
    """
    if device["mechanism"] == "mapped":
        return False
    is_one_core = device["device_type"] == "cpu" and device["compute_units"] == 1
    return is_one_core and device["machine"] in ("x86_64", "AMD64")


def _chain(kernels: list[_Kernel], row_words: int) -> str:
    cases = "".join(_CASE.format(number=number, symbol=kernel.symbol) for number, kernel in enumerate(kernels))
    return _CHAIN.format(
        entry=CHAIN_ENTRY, row_words=row_words, cases=cases, begin_stamp=_BEGIN_STAMP, end_stamp=_END_STAMP
    )


@dataclass(frozen=True)
class _Kernel:
    """A kernel as TVM writes it: all its text, its parameters as ``(type, name)``, and where its body begins.

    What stands before all kernels is one without a symbol.
    """

    text: str
    symbol: str = ""
    parameters: tuple[tuple[str, str], ...] = ()
    body_begin: int = 0

    @property
    def is_callable(self) -> bool:
        """Whether it may be a function of its work-group: without local variables, and without asking for the grid."""
        return not _NOT_CALLABLE.search(self.text)

    def function(self) -> str:
        """What one work-group does."""
        body = self.text[self.body_begin :]
        for axis in (0, 1):
            body = body.replace(f"get_group_id({axis})", f"coexec_group_{axis}")
        return f"void {self.symbol}_group({self._parameters}, int coexec_group_0, int coexec_group_1) {{{body}"

    @property
    def _parameters(self) -> str:
        return ", ".join(" ".join(parameter) for parameter in self.parameters)

    @property
    def _call(self) -> str:
        """The call of the function for the work-group that asks."""
        names = ", ".join(name for _, name in self.parameters)
        return f"{self.symbol}_group({names}, get_group_id(0), get_group_id(1));"

    def plain_entry(self) -> str:
        """Write the entry for devices without flags."""
        return f"__kernel void {self.symbol}_step({self._parameters}) {{ {self._call} }}\n"

    def entry(self, group: tuple[int, int]) -> str:
        """The barriers stand outside the conditions, where a CPU's compiler need not copy the layer for each branch."""
        several = group != (1, 1)
        first = f"{_FIRST_ITEM} && " if several else ""
        barrier = "  COEXEC_GROUP_BARRIER;\n" if several else ""
        return (
            f"__kernel void {self.symbol}_step({self._parameters}, {_STEP_PARAMETERS}) {{\n"
            f"  if ({first}awaited) coexec_wait_for(flags, awaited, limit);\n"
            f"{barrier}  {self._call}\n{barrier}"
            f"  if ({first}done) coexec_report(flags, done);\n}}\n"
        )

    def groups(self) -> str:
        """What all work-groups do, one after the other, with arguments from a row of the table."""
        arguments = ", ".join(
            f"({kind.replace('restrict', '').strip()})row[{word}]"
            for word, (kind, _) in enumerate(self.parameters, _HEAD_WORDS)
        )
        return _GROUPS.format(symbol=self.symbol, arguments=arguments)


def _kernels(source: str) -> Iterator[_Kernel]:
    """What stands before the kernels, then each with its declaration, if it has one, before its definition."""
    definitions = [match for match in _KERNEL.finditer(source) if match[3] == "{"]
    starts = [*(source.find(f"__kernel void {match[1]}_kernel(") for match in definitions), len(source)]
    yield _Kernel(source[: starts[0]])
    for match, start, end in zip(definitions, starts, starts[1:], strict=False):
        parameters = tuple(_typed(parameter) for parameter in match[2].split(","))
        yield _Kernel(source[start:end], match[1], parameters, match.end() - start)


def _typed(parameter: str) -> tuple[str, str]:
    """Split a parameter into type and name: ``__global float* restrict`` and ``p00_input_ptr``."""
    kind, name = re.fullmatch(r"\s*(.*?)(\w+)\s*", parameter).groups()  # type: ignore[union-attr]
    return kind.strip(), name
