"""Entries by which a layer's kernel itself awaits the CPU's flag and stores the GPU's: one launch instead of two."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .manifest import LaunchSpec
from .sync import FLAGS_SOURCE

_FIRST_ITEM = "get_local_id(0) == 0 && get_local_id(1) == 0"
_STEP_PARAMETERS = "volatile __global int* flags, int awaited, int done, ulong limit, int columns, int lines"
_KERNEL = re.compile(r"__kernel void (\w+)_kernel\((.*?)\)\s*(;|\{)")


@dataclass(frozen=True)
class SteppedSource:
    """A module's OpenCL source with an entry ``<symbol>_step`` in the place of each kernel in ``symbols``.

    An entry takes the kernel's arguments, then the flags, the step to await, the step to report (0 for none), the
    bound of the wait in spins, and the kernel's work-groups on both axes. Those that take groups ``in_turn`` are
    launched with one work-group, which computes them all.
    """

    text: str
    symbols: frozenset[str]
    in_turn: bool

    def launched(self, symbol: str, grid: tuple[int, int]) -> tuple[int, int]:
        """Work-groups to launch on both axes for a kernel of ``grid`` work-groups."""
        return (1, 1) if self.in_turn and symbol in self.symbols else grid


def add_steps(source: str, launches: Iterable[LaunchSpec], *, in_turn: bool) -> SteppedSource:
    """Turn every kernel that may be called like a function, one without local variables, into an entry."""
    groups = {launch.symbol: launch.group for launch in launches}
    parts, symbols = [], set()
    for symbol, parameters, text in _kernels(source):
        if symbol not in groups or re.search(r"\b(__)?local\b", text):
            parts.append(text)
            continue
        symbols.add(symbol)
        parts += [_function(symbol, parameters, text), _entry(symbol, parameters, groups[symbol], in_turn)]
    if symbols:
        parts.insert(0, FLAGS_SOURCE.read_text())
    return SteppedSource("\n".join(parts), frozenset(symbols), in_turn)


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


def _entry(symbol: str, parameters: str, group: tuple[int, int], in_turn: bool) -> str:
    """The barriers stand outside the conditions, where a CPU's compiler need not copy the layer for each branch."""
    names = ", ".join(parameter.replace("*", " ").split()[-1] for parameter in parameters.split(","))
    several = group != (1, 1)
    first = f"{_FIRST_ITEM} && " if several else ""
    barrier = "  COEXEC_GROUP_BARRIER;\n" if several else ""
    loops = "for (int y = 0; y < lines; ++y) for (int x = 0; x < columns; ++x) " if in_turn else ""
    place = "x, y" if in_turn else "get_group_id(0), get_group_id(1)"
    return (
        f"__kernel void {symbol}_step({parameters}, {_STEP_PARAMETERS}) {{\n"
        f"  if ({first}awaited) coexec_wait_for(flags, awaited, limit);\n"
        f"{barrier}  {loops}{symbol}_group({names}, {place});\n{barrier}"
        f"  if ({first}done) coexec_report(flags, done);\n}}\n"
    )
