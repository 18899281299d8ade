"""Entries by which a layer's kernel itself awaits the CPU's flag and stores the GPU's: one launch instead of two."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .manifest import LaunchSpec
from .sync import FLAGS_SOURCE

_FIRST_ITEM = "get_local_id(0) == 0 && get_local_id(1) == 0"
_STEP_PARAMETERS = "volatile __global int* flags, int awaited, int done, ulong limit"
_DECLARATION = re.compile(r"__kernel void (\w+)_kernel\((.*?)\)\s*\{")


@dataclass(frozen=True)
class SteppedSource:
    """A module's OpenCL source with an entry ``<symbol>_step`` for each kernel in ``symbols``.

    An entry takes the kernel's arguments, then the flags, the step to await, the step to report (0 for none) and the
    bound of the wait in spins.
    """

    text: str
    symbols: frozenset[str]


def add_steps(source: str, launches: Iterable[LaunchSpec]) -> SteppedSource:
    """Add an entry for every kernel that may be called like a function: one without local variables."""
    groups = {launch.symbol: launch.group for launch in launches}
    entries = {
        symbol: _entry(symbol, parameters, groups[symbol])
        for symbol, parameters in _callable_kernels(source).items()
        if symbol in groups
    }
    parts = [source, FLAGS_SOURCE.read_text(), *entries.values()] if entries else [source]
    return SteppedSource("\n".join(parts), frozenset(entries))


def _callable_kernels(source: str) -> Mapping[str, str]:
    """Parameters of each kernel that declares no local variables, since only such a one may be called."""
    found = {}
    for match in _DECLARATION.finditer(source):
        end = source.find("__kernel void", match.end())
        body = source[match.end() : end if end >= 0 else None]
        if not re.search(r"\b(__)?local\b", body):
            found[match[1]] = match[2]
    return found


def _entry(symbol: str, parameters: str, group: tuple[int, int]) -> str:
    """The barriers stand outside the conditions, where a CPU's compiler need not copy the layer for each branch."""
    names = ", ".join(parameter.replace("*", " ").split()[-1] for parameter in parameters.split(","))
    several = group != (1, 1)
    first = f"{_FIRST_ITEM} && " if several else ""
    barrier = "  COEXEC_GROUP_BARRIER;\n" if several else ""
    return (
        f"__kernel void {symbol}_step({parameters}, {_STEP_PARAMETERS}) {{\n"
        f"  if ({first}awaited) coexec_wait_for(flags, awaited, limit);\n"
        f"{barrier}  {symbol}_kernel({names});\n{barrier}"
        f"  if ({first}done) coexec_report(flags, done);\n}}\n"
    )
