"""Watches how fast each side of a device is while a tuning lasts, by a canary: the same kernels again and again."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from tvm_coexec.compiler.probes import single_layer
from tvm_coexec.compiler.target import Target
from tvm_coexec.errors import KernelError, MeasurementError
from tvm_coexec.layers import AnyLayer, Linear
from tvm_coexec.profile.records import Point, PointTimes
from tvm_coexec.rpc.client import Session
from tvm_coexec.schedules import family

from .budget import Budget

_Result = TypeVar("_Result")

_LAYER = Linear(64, 512, 512, ("bias",))
"""It takes a server's core a third of a millisecond: long enough for a clock, and short for a measurement."""

_MODULE = "watch.module"
"""The canary has a name of its own there: it is sent and loaded once a session."""

_FRESH_S = 1.0
"""For so long a run of the canary tells how fast the device is; what is measured sooner needs no other one before."""
_MOST_SHARE = 0.2
"""The share of a tuning's time that the canary takes at most, of a slow device, or of one that measures little."""

_AGAIN_SHARE = 0.02
"""What takes a larger share of a tuning is not measured again."""

_REPEATS, _FEW_REPEATS, _SLOW_US = 9, 4, 1e5
"""A device that takes the canary so long repeats it less often."""

_USUAL_US = 600.0
"""What the canary takes a server's core."""

_LONG_US, _LONG_SHARE = 5e5, 1e-3
"""A layer takes long from so much on, or from such a share of a tuning's time on: twenty points of it take minutes."""

_QUANTILE = 0.1
"""The quantile of the canary's repetitions that counts, which predictors learn of other layers too."""


@dataclass(frozen=True)
class Watched(Generic[_Result]):
    """What was measured between two runs of the canary.

    Parameters
    ----------
    canary_us
        What it took each side, of both runs the less: whatever slowed the device down before and after was there
        meanwhile as well. Nothing where only one ran.
    change
        Logarithm of the ratio of both, of the side where they differ more; None where only one ran, and infinite where
        the session went on to another device.
    may_be_repeated
        Whether there is time to measure it again.
    """

    measured: _Result
    canary_us: Mapping[str, float]
    change: float | None
    may_be_repeated: bool


class Watch:
    """Runs the canary through a session, on either side alone.

    Parameters
    ----------
    budget
        How long the tuning lasts; None where that is not known.
    """

    def __init__(
        self, session: Session, target: Target, facts: Mapping[str, object], budget: Budget | None = None
    ) -> None:
        self._budget = budget or Budget(np.inf)
        minutes = self._budget.minutes
        self._long_us = min(_LONG_US, _LONG_SHARE * 60e6 * minutes)
        cpu, gpu = (family(_LAYER).default_variant(_LAYER, side, target.hardware) for side in ("cpu", "gpu"))
        self._session, self._module = session, single_layer(_LAYER, cpu, gpu, target, facts).to_bytes()
        self._again_s = _AGAIN_SHARE * 60 * minutes
        self._times_us, self._device = dict.fromkeys(("cpu", "gpu"), 0.0), session.address
        self._ran_s, self._cost_s = -np.inf, np.inf
        """When the canary ran last, and what it cost at least: it costs more when it is sent, or is disturbed."""
        self._due_s = -np.inf
        """When it may run again: what is measured until then pays for the last run together."""

    def look_once(self) -> None:
        """Run the canary a single time, to know how fast the device is about."""
        try:
            cpu, gpu = self._measure(1)
        except (KernelError, MeasurementError):
            return  # the next candidate meets whatever is the matter
        self._times_us = {"cpu": min(cpu.cpu_us), "gpu": min(gpu.gpu_us)}

    @property
    def slowness(self) -> float:
        """How many times as long as a server's core the slower side took for the canary; 1 at least."""
        return max(max(self._times_us.values()) / _USUAL_US, 1.0)

    def expected_us(self, layer: AnyLayer) -> float:
        """What the slower side takes a layer, if it computes as fast as the canary when that ran last; 0 before."""
        return max(self._times_us.values()) * layer.flops / _LAYER.flops

    def is_short(self, layer: AnyLayer) -> bool:
        """Whether the slower side takes a layer little time; what is as short as the canary is short."""
        return self.expected_us(layer) <= max(self._long_us, self.expected_us(_LAYER))

    def around(self, measure: Callable[[], _Result], *, surely: bool = False) -> Watched[_Result]:
        """Measure something between two runs of the canary, but for those that would cost too much.

        Parameters
        ----------
        surely
            Whether it runs after it whatever it costs.
        """
        before_us, device, began_s = self._recent_us(), self._session.address, time.monotonic()
        measured = measure()
        took_s = time.monotonic() - began_s
        may_be_repeated = took_s <= self._again_s and not self._budget.is_over(took_s)
        after_us = self._run() if surely or self._is_due else None
        if self._session.address != device:  # nobody knows on which one all was measured
            return Watched(measured, {}, np.inf, may_be_repeated)
        if before_us is None or after_us is None:
            return Watched(measured, {}, None, may_be_repeated)
        change = max(_log_ratio(after_us[side], before_us[side]) for side in before_us)
        least_us = {side: min(after_us[side], us) for side, us in before_us.items()}
        return Watched(measured, least_us, change, may_be_repeated)

    @property
    def _is_due(self) -> bool:
        return time.monotonic() >= self._due_s

    def _recent_us(self) -> dict[str, float] | None:
        """What the canary takes each side, as of a few seconds ago; None where that is not known."""
        is_fresh = time.monotonic() < self._ran_s + max(_FRESH_S, self._cost_s / _MOST_SHARE)
        if is_fresh and self._session.address == self._device:
            return self._times_us
        return self._run() if self._is_due else None

    def _run(self) -> dict[str, float] | None:
        """What the canary takes each side now; None where it fails: the next candidate meets whatever is the matter."""
        began_s = time.monotonic()
        repeats = _REPEATS if max(self._times_us.values()) < _SLOW_US else _FEW_REPEATS
        try:
            cpu, gpu = self._measure(repeats)
        except (KernelError, MeasurementError):
            failed_s = time.monotonic()
            self._due_s = failed_s + (failed_s - began_s) / _MOST_SHARE
            return None
        self._device = self._session.address  # a new lease may be of another device
        self._times_us = {
            "cpu": float(np.quantile(cpu.cpu_us, _QUANTILE)),
            "gpu": float(np.quantile(gpu.gpu_us, _QUANTILE)),
        }
        self._ran_s = time.monotonic()
        self._cost_s = min(self._cost_s, self._ran_s - began_s)
        self._due_s = self._ran_s + self._cost_s / _MOST_SHARE
        return self._times_us

    def _measure(self, repeats: int) -> tuple[PointTimes, ...]:
        points = [Point(_LAYER.units, 0, repeats), Point(0, _LAYER.units, repeats)]
        return self._session.measure(self._module, points, check=False, walls=False, name=_MODULE).points


def _log_ratio(one: float, other: float) -> float:
    """How far two times are from each other; 0 where one is unknown."""
    return abs(float(np.log(one / other))) if one > 0 and other > 0 else 0.0
