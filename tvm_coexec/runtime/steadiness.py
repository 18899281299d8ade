"""Does the machine give both sides what it gives them at its best? Asked before and after a network is timed.

The cores of a virtual machine may share one of its host's, for some tenths of a second or for many: whatever works on
both then takes as long as on one. That says nothing about what is timed, so that it is timed again. What tells is a
layer that is none of what is timed; the same is asked for all that is compared, and what was put aside is counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np

if TYPE_CHECKING:
    from .module import Module

_RUNS, _WARM_UPS = 15, 20
"""The latter take 4 ms or more: cores that were idle take up to twice as long at first."""
_SLOWER = 1.25
"""Times as long as at best, from which on the machine counts as unsteady; a core that is shared makes it 1.5 to 2."""
_FIRST_LOOKS = 10
MOST_TRIES = 5
"""In the last one something is timed, and counts, whatever the machine does."""
_PAUSE_S = 0.2
"""Between looks, and before the next try: a host may move a virtual core when it wakes up."""

Taken = TypeVar("Taken")


class Yardstick:
    """A small layer of which each side computes half, and the shortest time that it took so far.

    Parameters
    ----------
    module
        What :func:`tvm_coexec.packaging.yardstick` makes, loaded: as of any layer by itself, all of it is the CPU's.
    """

    def __init__(self, module: Module) -> None:
        module.set_splits({name: units // 2 for name, units in module.splits.items()})
        self._module = module
        self._best_us = self._take_us()
        for _ in range(_FIRST_LOOKS - 1):
            time.sleep(_PAUSE_S)
            self._best_us = min(self._best_us, self._take_us())

    def is_steady(self) -> bool:
        """Whether the layer takes about as long as it ever did."""
        taken_us = self._take_us()
        self._best_us = min(self._best_us, taken_us)
        return taken_us <= _SLOWER * self._best_us

    def _take_us(self) -> float:
        return float(np.median(self._module.benchmark(repeats=_RUNS, warmup=_WARM_UPS).latency_us))


@dataclass(frozen=True)
class Turn(Generic[Taken]):
    """What was timed.

    Parameters
    ----------
    taken
        What counts.
    repeated
        What was timed again, since the machine was unsteady afterwards.
    put_off
        Times that the machine was unsteady before anything was timed.
    is_steady
        Whether the machine was steady before and after what counts; it was not in any of ``MOST_TRIES`` tries, if not.
    """

    taken: Taken
    repeated: tuple[Taken, ...]
    put_off: int
    is_steady: bool


def take_turn(take: Callable[[], Taken], is_steady: Callable[[], bool]) -> Turn[Taken]:
    """Time something while the machine is steady, and again if it was not until the end."""
    repeated: list[Taken] = []
    put_off = 0
    for _ in range(MOST_TRIES - 1):
        if not is_steady():
            put_off += 1
            time.sleep(_PAUSE_S)
            continue
        taken = take()
        if is_steady():
            return Turn(taken, tuple(repeated), put_off, is_steady=True)
        repeated.append(taken)
    before, taken = is_steady(), take()
    return Turn(taken, tuple(repeated), put_off, before and is_steady())
