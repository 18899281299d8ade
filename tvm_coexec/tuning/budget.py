"""The time that a tuning was given: what is left of it, and what it went to."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

_CLOSE = 1.1
"""A time is kept that is exceeded by no more than this."""


class Budget:
    """Time for measuring, which begins now.

    Parameters
    ----------
    minutes
        How much.
    """

    def __init__(self, minutes: float) -> None:
        self.minutes = minutes
        self.until = time.monotonic() + 60 * minutes
        """When it is over, by :func:`time.monotonic`."""
        self._spent_s: dict[str, float] = {}

    @property
    def left_s(self) -> float:
        """What is left of it, 0 at least."""
        return max(self.until - time.monotonic(), 0.0)

    def is_over(self, next_s: float = 0.0) -> bool:
        """Whether it is over, or what takes so long next would exceed it by more than it leaves unused otherwise."""
        return self.left_s <= next_s / 2

    @contextmanager
    def spend(self, what: str) -> Iterator[None]:
        """Account for what is done meanwhile."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._spent_s[what] = self._spent_s.get(what, 0.0) + time.monotonic() - began

    def summary(self) -> str:
        """What was spent, and on what, if that was more than was given."""
        spent_s = sum(self._spent_s.values())
        told = f"{spent_s / 60:.2g} of {self.minutes:.2g} minutes"
        if spent_s <= _CLOSE * 60 * self.minutes:
            return told
        parts = ", ".join(f"{what} {seconds:.0f} s" for what, seconds in self._spent_s.items())
        return f"{told}: this device needs that much for the least that is learnt of it ({parts})"
