"""What is likely where the times of halves are uncertain: how long a split takes, and whether it is a gain."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from tvm_coexec.prediction.uncertainty import TAILS

_TAIL = NormalDist().inv_cdf(TAILS[1])
"""Standard deviations from the middle to either end of an interval."""

_POINTS = 24
"""Values of each of two times, of which all pairs are compared."""

_NORMAL = np.array([NormalDist().inv_cdf((index + 0.5) / _POINTS) for index in range(_POINTS)])
"""Points of a normal distribution that are equally likely."""


@dataclass(frozen=True)
class Time:
    """An expected time, and the interval that most measurements are in; all are the same where nothing is uncertain.

    The logarithm of a measured time is taken to be normally distributed on either side of the expected one.
    """

    us: float
    low_us: float
    high_us: float

    @classmethod
    def sure(cls, us: float) -> Time:
        """A time that is known."""
        return cls(us, us, us)

    @property
    def interval_us(self) -> tuple[float, float]:
        """The interval's ends."""
        return self.low_us, self.high_us

    def plus(self, us: float) -> Time:
        """The time of the same with something after it that takes a known time."""
        return Time(self.us + us, self.low_us + us, self.high_us + us)

    def at(self, points: np.ndarray) -> np.ndarray:
        """Give the times at some points of a normal distribution, in standard deviations."""
        if self.us <= 0:
            return np.zeros_like(points)
        bounds_us = np.where(points < 0, self.low_us, self.high_us)
        return self.us * (bounds_us / self.us) ** (np.abs(points) / _TAIL)


NO_TIME = Time.sure(0.0)


def usual_factor(cpu: Time, gpu: Time) -> float:
    """How much longer a split takes on average than expected: the later half decides, and either may be late."""
    longer_us = max(cpu.us, gpu.us)
    later_us = np.maximum.outer(cpu.at(_NORMAL), gpu.at(_NORMAL)).mean()
    return float(later_us / longer_us) if longer_us > 0 else 1.0


def chance_of_gain(halves: tuple[Time, Time], added_us: float, alone: Time, side: int) -> float:
    """How likely a split is to be faster than one side alone.

    Parameters
    ----------
    halves
        The CPU's and the GPU's.
    added_us
        What the split takes on top of the longer half.
    alone, side
        The time of one side alone, and which of the two it is. What that side's times are off by is mostly the same for
        a half and for the whole layer.
    """
    split_us = np.maximum.outer(halves[side].at(_NORMAL), halves[1 - side].at(_NORMAL)) + added_us
    return float((split_us < alone.at(_NORMAL)[:, None]).mean())
