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
_MOST_SHARE = 0.1
"""The share of a tuning's time that the canary takes at most: of a slow device."""

_REPEATS, _FEW_REPEATS, _SLOW_US = 18, 4, 1e5
"""A device that takes the canary so long repeats it less often."""

_LONG_US = 5e5
_QUANTILE = 0.1
"""The quantile of the canary's repetitions that counts, which predictors learn of other layers too."""


class Watch:
    """Runs the canary through a session, on either side alone."""

    def __init__(self, session: Session, target: Target, facts: Mapping[str, object]) -> None:
        cpu, gpu = (family(_LAYER).default_variant(_LAYER, side, target.hardware) for side in ("cpu", "gpu"))
        self._session, self._module = session, single_layer(_LAYER, cpu, gpu, target, facts).to_bytes()
        self._next_s, self._times_us = -np.inf, dict.fromkeys(("cpu", "gpu"), 0.0)

    def look_once(self) -> None:
        """Run the canary a single time, to know how fast the device is about."""
        points = [Point(_LAYER.units, 0, 1), Point(0, _LAYER.units, 1)]
        try:
            cpu, gpu = self._session.measure(self._module, points, check=False, walls=False).points
        except (KernelError, MeasurementError):
            return  # as below
        self._times_us = {"cpu": min(cpu.cpu_us), "gpu": min(gpu.gpu_us)}

    def is_short(self, layer: AnyLayer) -> bool:
        """Whether the slower side takes a layer little time, if it computes as fast as the canary when that ran last.

        Twenty points of one that takes half a second would take minutes. What is as short as the canary is short.
        """
        canary_us = max(self._times_us.values())
        return canary_us * layer.flops / _LAYER.flops < max(_LONG_US, 2 * canary_us)

    def canary_us(self) -> dict[str, float]:
        """What the canary takes each side, as of a few seconds ago; 0 where it could not be measured."""
        began_s = time.monotonic()
        if began_s >= self._next_s:
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
