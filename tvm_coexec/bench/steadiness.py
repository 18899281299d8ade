"""Does the machine give both sides what it gives them at its best? Asked before and after a network is timed.

A host may move the cores of a virtual machine far from each other, for tenths of a second or for tens of seconds: what
one writes then reaches the other late, and a small network takes as long on both as on one. That says nothing about
what is timed, so that it is timed again. What tells is a chain of layers that is none of what is timed; the same is
asked for all that is compared, and what was put aside is counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import numpy as np

if TYPE_CHECKING:
    from tvm_coexec.timing.layers import Benchmark

_RUNS, _WARM_UPS = 15, 20
"""The latter take 4 ms or more: cores that were idle take up to twice as long at first."""
_SLOW_US, _FEW_RUNS, _FEW_LOOKS = 2e4, 2, 2
"""What takes a slow device so long needs no warm-up, and is timed less often."""
_SLOWER = 1.25
"""Times as long as at best, from which on the machine counts as unsteady; cores that are far apart make it 1.9."""
_FIRST_LOOKS = 10
"""Looks from whose best time on the machine is judged."""
_PAUSE_S = 0.2
"""Between looks, and before the next try: a host may move a virtual core when it wakes up."""

Taken = TypeVar("Taken")


class _Benchmarked(Protocol):
    def randomize_inputs(self) -> None: ...
    def benchmark(self, *, repeats: int, warmup: int) -> Benchmark: ...


class Canary:
    """Small layers, of which both sides compute a half each, and the shortest time that they took so far.

    Parameters
    ----------
    time_us
        Takes a number of runs of what :func:`tvm_coexec.compiler.probes.canary` makes, and returns their times.
    """

    def __init__(self, time_us: Callable[[int], Sequence[float]]) -> None:
        self._time_us = time_us
        is_slow = min(time_us(_FEW_RUNS)) > _SLOW_US
        self._runs, self._warm_ups = (_FEW_RUNS, 0) if is_slow else (_RUNS, _WARM_UPS)
        self._best_us = self._take_us()
        for _ in range((_FEW_LOOKS if is_slow else _FIRST_LOOKS) - 1):
            time.sleep(_PAUSE_S)
            self._best_us = min(self._best_us, self._take_us())

    @classmethod
    def of(cls, module: _Benchmarked) -> Canary:
        """The canary that is loaded as a module here."""
        module.randomize_inputs()
        return cls(lambda runs: module.benchmark(repeats=runs, warmup=0).latency_us)

    def is_steady(self) -> bool:
        """Whether the layers take about as long as they ever did."""
        taken_us = self._take_us()
        self._best_us = min(self._best_us, taken_us)
        return taken_us <= _SLOWER * self._best_us

    def _take_us(self) -> float:
        return float(np.median(self._time_us(self._warm_ups + self._runs)[self._warm_ups :]))


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
        Whether the machine was steady before and after what counts.
    """

    taken: Taken
    repeated: tuple[Taken, ...]
    put_off: int
    is_steady: bool


class Turns(Generic[Taken]):
    """Takes turns while the machine is steady, and again if it was not until the end.

    Parameters
    ----------
    is_steady
        Asked before and after each.
    patience_s
        What all turns together may spend on waiting and on what is repeated; then each counts, whatever the machine
        does.
    """

    def __init__(self, is_steady: Callable[[], bool], patience_s: float) -> None:
        self._is_steady = is_steady
        self._patience_s = patience_s

    @property
    def is_patient(self) -> bool:
        """Whether more may be spent on waiting."""
        return self._patience_s > 0

    def take(self, take: Callable[[], Taken]) -> Turn[Taken]:
        """Time something."""
        repeated: list[Taken] = []
        put_off = 0
        while self.is_patient:
            start_s = time.monotonic()
            if self._is_steady():
                taken = take()
                if self._is_steady():
                    return Turn(taken, tuple(repeated), put_off, is_steady=True)
                repeated.append(taken)
            else:
                put_off += 1
                time.sleep(_PAUSE_S)
            self._patience_s -= time.monotonic() - start_s
        before, taken = self._is_steady(), take()
        return Turn(taken, tuple(repeated), put_off, before and self._is_steady())
