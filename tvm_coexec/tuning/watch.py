"""Watches how fast each side of a device is while a tuning lasts, by a canary: the same kernels from time to time."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np

from tvm_coexec.compiler.probes import single_layer
from tvm_coexec.compiler.target import Target
from tvm_coexec.errors import KernelError, MeasurementError
from tvm_coexec.layers import Linear
from tvm_coexec.profile.records import Point
from tvm_coexec.rpc.client import Session
from tvm_coexec.schedules import family

_LAYER = Linear(64, 512, 512, ("bias",))
"""It takes a server's core a third of a millisecond: long enough for a clock, and short for a measurement."""

_EVERY_S = 4.0
_REPEATS = 18
_QUANTILE = 0.1
"""The quantile of the canary's repetitions that counts, which predictors learn of other layers too."""


class Watch:
    """Runs the canary through a session, on either side alone."""

    def __init__(self, session: Session, target: Target, facts: Mapping[str, object]) -> None:
        cpu, gpu = (family(_LAYER).default_variant(_LAYER, side, target.hardware) for side in ("cpu", "gpu"))
        self._session, self._module = session, single_layer(_LAYER, cpu, gpu, target, facts).to_bytes()
        self._last_s, self._times_us = -np.inf, dict.fromkeys(("cpu", "gpu"), 0.0)

    def canary_us(self) -> dict[str, float]:
        """What the canary takes each side, as of a few seconds ago; 0 where it could not be measured."""
        if time.monotonic() - self._last_s >= _EVERY_S:
            points = [Point(_LAYER.units, 0, _REPEATS), Point(0, _LAYER.units, _REPEATS)]
            try:
                cpu, gpu = self._session.measure(self._module, points, check=False, walls=False).points
            except (KernelError, MeasurementError):
                return self._times_us  # whatever is the matter, the next candidate will meet it
            self._times_us = {
                "cpu": float(np.quantile(cpu.cpu_us, _QUANTILE)),
                "gpu": float(np.quantile(gpu.gpu_us, _QUANTILE)),
            }
            self._last_s = time.monotonic()
        return self._times_us
