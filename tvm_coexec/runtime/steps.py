"""Entries by which layers' kernels themselves await the CPU's flag and store the GPU's: one launch instead of three.

An entry ``<symbol>_step`` is for one kernel. Where a device has nothing to gain from its kernels being launched one by
one, all of them are in one entry, which goes through a table of steps: a whole network is a single launch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from .manifest import LaunchSpec
from .sync import FLAGS_SOURCE

CHAIN_ENTRY = "coexec_chain"

_FIRST_ITEM = "get_local_id(0) == 0 && get_local_id(1) == 0"
_STEP_PARAMETERS = "volatile __global int* flags, int awaited, int done, ulong limit"
_KERNEL = re.compile(r"__kernel void (\w+)_kernel\((.*?)\)\s*(;|\{)")
_HEAD_WORDS = 5
"""Of a row of the table: the kernel's number, the step to await, the step to report, work-groups on both axes."""

_CHAIN = """
__kernel __attribute__((reqd_work_group_size(1, 1, 1))) void {entry}(
    __global const ulong* restrict table, int first, int last, volatile __global int* flags, ulong limit) {{
  for (int number = first; number < last; ++number) {{
    __global const ulong* row = table + number * {row_words};
    int awaited = (int)row[1], done = (int)row[2], columns = (int)row[3], lines = (int)row[4];
    if (awaited) coexec_wait_for(flags, awaited, limit);
    if (!COEXEC_LOAD(flags + COEXEC_ABORT)) switch ((int)row[0]) {{
{cases}    }}
    if (done) coexec_report(flags, done);
  }}
}}
"""
_CASE = """      case {number}:
        for (int y = 0; y < lines; ++y)
          for (int x = 0; x < columns; ++x) {symbol}_group({arguments}, x, y);
        break;
"""


@dataclass(frozen=True)
class SteppedSource:
    """A module's OpenCL source with entries in the place of kernels.

    ``<symbol>_step``, for each kernel in ``own``, takes the kernel's arguments, then the flags, the step to await, the
    step to report (0 for none) and the bound of the wait in spins. The one entry of all kernels in ``chained`` takes
    a table, the rows to compute, the flags and the bound; once a wait was given up it computes nothing more.
    """

    text: str
    own: frozenset[str]
    chained: tuple[str, ...]
    row_words: int

    @property
    def symbols(self) -> frozenset[str]:
        """Kernels that can await and report steps."""
        return self.own | set(self.chained)

    def row(self, symbol: str, steps: tuple[int, int], grid: tuple[int, int], arguments: Sequence[int]) -> list[int]:
        """A row of the table: addresses and numbers that a chained kernel takes, and the steps to await and report."""
        row = [self.chained.index(symbol), *steps, *grid, *arguments]
        return row + [0] * (self.row_words - len(row))


def add_steps(source: str, launches: Iterable[LaunchSpec], *, chains: bool) -> SteppedSource:
    """Turn every kernel that may be called like a function, one without local variables, into an entry.

    With ``chains``, those of work-groups of a single work-item share one.
    """
    groups = {launch.symbol: launch.group for launch in launches}
    parts, own, chained = [], set(), {}
    for symbol, parameters, text in _kernels(source):
        if symbol not in groups or re.search(r"\b(__)?local\b", text):
            parts.append(text)
            continue
        parts.append(_function(symbol, parameters, text))
        if chains and groups[symbol] == (1, 1):
            chained[symbol] = parameters.split(",")
        else:
            own.add(symbol)
            parts.append(_entry(symbol, parameters, groups[symbol]))
    row_words = _HEAD_WORDS + max(map(len, chained.values()), default=0)
    if chained:
        parts.append(_chain(chained, row_words))
    if own or chained:
        parts.insert(0, FLAGS_SOURCE.read_text())
    return SteppedSource("\n".join(parts), frozenset(own), tuple(chained), row_words)


def _kernels(source: str) -> Iterator[tuple[str, str, str]]:
    """Symbol, parameters and text of each kernel, its declaration included; first what stands before them all."""
    definitions = [match for match in _KERNEL.finditer(source) if match[3] == "{"]
    starts = [*(source.find(f"__kernel void {match[1]}_kernel") for match in definitions), len(source)]
    yield "", "", source[: starts[0]]
    for match, start, end in zip(definitions, starts, starts[1:], strict=False):
        yield match[1], match[2], source[start:end]


def _function(symbol: str, parameters: str, text: str) -> str:
    """What one work-group of a kernel does."""
    *_, body = _KERNEL.split(text, maxsplit=2 if f"{symbol}_kernel({parameters});" in text else 1)
    for axis in (0, 1):
        body = body.replace(f"get_group_id({axis})", f"group_{axis}")
    return f"void {symbol}_group({parameters}, int group_0, int group_1) {{{body}"


def _entry(symbol: str, parameters: str, group: tuple[int, int]) -> str:
    """The barriers stand outside the conditions, where a CPU's compiler need not copy the layer for each branch."""
    names = ", ".join(parameter.replace("*", " ").split()[-1] for parameter in parameters.split(","))
    several = group != (1, 1)
    first = f"{_FIRST_ITEM} && " if several else ""
    barrier = "  COEXEC_GROUP_BARRIER;\n" if several else ""
    return (
        f"__kernel void {symbol}_step({parameters}, {_STEP_PARAMETERS}) {{\n"
        f"  if ({first}awaited) coexec_wait_for(flags, awaited, limit);\n"
        f"{barrier}  {symbol}_group({names}, get_group_id(0), get_group_id(1));\n{barrier}"
        f"  if ({first}done) coexec_report(flags, done);\n}}\n"
    )


def _chain(kernels: Mapping[str, Sequence[str]], row_words: int) -> str:
    """The entry of all these kernels, each with the types of its arguments."""
    cases = "".join(
        _CASE.format(
            number=number,
            symbol=symbol,
            arguments=", ".join(
                f"({_type(parameter)})row[{place}]" for place, parameter in enumerate(parameters, _HEAD_WORDS)
            ),
        )
        for number, (symbol, parameters) in enumerate(kernels.items())
    )
    return _CHAIN.format(entry=CHAIN_ENTRY, row_words=row_words, cases=cases)


def _type(parameter: str) -> str:
    """The type of a parameter, as ``__global float*`` in ``__global float* restrict p00_input_ptr``."""
    return parameter.replace("restrict", "").rpartition(parameter.rsplit(maxsplit=1)[-1])[0].strip()
