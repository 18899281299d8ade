"""Does the machine give both sides what it gives them at its best? Asked before and after whatever is timed.

The cores of a virtual machine may share one of its host's, for some tenths of a second or for many: whatever works on
both then takes as long as on one. That says nothing about what is compared, so such a turn is repeated. What tells is
a layer of its own, which favours nobody.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from linear_model import linear_model
from reporting import median_us

import tvm_coexec
from tvm_coexec.layers import Linear
from tvm_coexec.runtime.device import Device

_LAYER = Linear(64, 512, 512, ("bias",))
"""Takes some 0.2 ms on both sides of a laptop, from their own caches."""
_RUNS = 15
_SLOWER = 1.25
"""Times as long as at best, from which on the machine counts as unsteady; a core that is shared makes it 1.5 to 2."""
_FIRST_LOOKS = 10
MOST_TRIES = 5
"""Times that a turn is taken; the last one counts as it is."""
_PAUSE_S = 0.2
"""Before the next try: the host moves a virtual core when it wakes up."""

Timer = Callable[[int], Sequence[float]]


class Yardstick:
    """A small layer, half of it on each side, and the shortest time that it took so far."""

    def __init__(self, device: Device) -> None:
        self._module = tvm_coexec.build(linear_model(_LAYER), device=device, split=0.5)
        self._best_us = min(self._take_us() for _ in range(_FIRST_LOOKS))

    def is_steady(self) -> bool:
        """Whether the layer takes about as long as it ever did."""
        taken_us = self._take_us()
        self._best_us = min(self._best_us, taken_us)
        return taken_us <= _SLOWER * self._best_us

    def _take_us(self) -> float:
        return median_us(self._module.benchmark(repeats=_RUNS, warmup=2).latency_us)


@dataclass
class Turns:
    """What one contender took, turn by turn.

    Parameters
    ----------
    samples_us
        Of the turns that count.
    repeated_us
        Of each that was taken again, since the machine was unsteady afterwards.
    unsteady
        Turns that count although it was.
    """

    samples_us: list[float] = field(default_factory=list)
    repeated_us: list[list[float]] = field(default_factory=list)
    unsteady: int = 0

    def take(self, timer: Timer, repeats: int, is_steady: Callable[[], bool]) -> None:
        """Take one more turn of so many runs."""
        for tries_left in reversed(range(MOST_TRIES)):
            steady = is_steady()
            if not steady and tries_left:
                time.sleep(_PAUSE_S)
                continue
            taken_us = list(timer(repeats))
            if (steady := steady and is_steady()) or not tries_left:
                self.samples_us += taken_us
                self.unsteady += not steady
                return
            self.repeated_us.append(taken_us)
