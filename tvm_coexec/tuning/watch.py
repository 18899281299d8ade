"""Watches how fast each side of a device is while a tuning lasts, by a canary: the same kernels from time to time."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np

from tvm_coexec.compiler.probes import single_layer
from tvm_coexec.compiler.target import Target
from tvm_coexec.errors import KernelError, MeasurementError
from tvm_coexec.layers import AnyLayer, Linear
from tvm_coexec.profile.records import Point
from tvm_coexec.rpc.client import Session
from tvm_coexec.schedules import family

_LAYER = Linear(64, 512, 512, ("bias",))
"""It takes a server's core a third of a millisecond: long enough for a clock, and short for a measurement."""

_EVERY_S = 4.0
"""How often the canary runs."""
_MOST_SHARE = 0.1
"""The share of a tuning's time that the canary takes at most: of a slow device."""

_REPEATS, _FEW_REPEATS, _SLOW_US = 18, 4, 1e5
"""A device that takes the canary so long repeats it less often."""

_USUAL_US = 600.0
"""What the canary takes a server's core."""

_LONG_US, _LONG_SHARE = 5e5, 1e-3
"""A layer takes long from so much on, or from such a share of a tuning's time on: twenty points of it take minutes."""

_QUANTILE = 0.1
"""The quantile of the canary's repetitions that counts, which predictors learn of other layers too."""


class Watch:
    """Runs the canary through a session, on either side alone.

    Parameters
    ----------
    minutes
        How long the tuning lasts.
    """

    def __init__(self, session: Session, target: Target, facts: Mapping[str, object], minutes: float = np.inf) -> None:
        self._long_us = min(_LONG_US, _LONG_SHARE * 60e6 * minutes)
        cpu, gpu = (family(_LAYER).default_variant(_LAYER, side, target.hardware) for side in ("cpu", "gpu"))
        self._session, self._module = session, single_layer(_LAYER, cpu, gpu, target, facts).to_bytes()
        self._next_s, self._times_us, self._device = -np.inf, dict.fromkeys(("cpu", "gpu"), 0.0), session.address

    def look_once(self) -> None:
        """Run the canary a single time, to know how fast the device is about."""
        points = [Point(_LAYER.units, 0, 1), Point(0, _LAYER.units, 1)]
        try:
            cpu, gpu = self._session.measure(self._module, points, check=False, walls=False).points
        except (KernelError, MeasurementError):
            return  # as below
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

    def canary_us(self) -> dict[str, float]:
        """What the canary takes each side, as of a few seconds ago; 0 where it could not be measured."""
        began_s = time.monotonic()
        if began_s >= self._next_s or self._session.address != self._device:  # a new lease may be of another device
            self._device = self._session.address
            repeats = _REPEATS if max(self._times_us.values()) < _SLOW_US else _FEW_REPEATS
            points = [Point(_LAYER.units, 0, repeats), Point(0, _LAYER.units, repeats)]
            try:
                cpu, gpu = self._session.measure(self._module, points, check=False, walls=False).points
            except (KernelError, MeasurementError):
                return self._times_us  # whatever is the matter, the next candidate will meet it
            self._times_us = {
                "cpu": float(np.quantile(cpu.cpu_us, _QUANTILE)),
                "gpu": float(np.quantile(gpu.gpu_us, _QUANTILE)),
            }
            now_s = time.monotonic()
            self._next_s = now_s + max(_EVERY_S, (now_s - began_s) / _MOST_SHARE)
        return self._times_us
