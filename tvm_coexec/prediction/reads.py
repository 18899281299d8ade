"""How fast a side reads again what it has read, by the amount, alone and while the other side does: caches show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Reads:
    """Rates of one side as they were measured.

    Parameters
    ----------
    amount_bytes
        Amounts that were read again and again, ascending; none where nothing was measured.
    alone, concurrent
        Bytes a microsecond at each amount: while the other side idles, and while it reads as much of its own.
    """

    amount_bytes: tuple[float, ...] = ()
    alone: tuple[float, ...] = ()
    concurrent: tuple[float, ...] = ()

    @classmethod
    def of(cls, amount_bytes: Sequence[float], alone_us: Sequence[float], concurrent_us: Sequence[float]) -> Reads:
        """Learn from the times that reading took."""
        amounts = np.asarray(amount_bytes, float)
        return cls(tuple(amounts.tolist()), *(_rates(amounts, np.asarray(us)) for us in (alone_us, concurrent_us)))

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Reads:
        """Inverse of :func:`dataclasses.asdict`; raises ``TypeError`` or ``ValueError`` where the fields do not fit."""
        found = cls(**{name: tuple(map(float, values)) for name, values in fields.items()})
        if not len(found.amount_bytes) == len(found.alone) == len(found.concurrent):
            raise ValueError("rates and amounts that were read are not as many")
        return found

    def us(self, read_bytes: np.ndarray, other_units: np.ndarray) -> np.ndarray:
        """Time to read so much, where it is read again and again; 0 where nothing was measured."""
        if not self.amount_bytes:
            return np.zeros(len(read_bytes))
        wanted, known = np.log(np.maximum(read_bytes, 1.0)), np.log(self.amount_bytes)
        rates = (np.exp(np.interp(wanted, known, np.log(rates))) for rates in (self.alone, self.concurrent))
        alone, concurrent = rates
        return read_bytes / np.where(other_units > 0, concurrent, alone)

    @property
    def cached_bytes(self) -> float:
        """How much caches hold while the other side reads as much: its rate is nearer to the best than to memory's.

        Where memory is as fast as any cache it does not matter what a cache holds: everything, then.
        """
        rates = np.array(self.concurrent)
        fast = rates >= np.sqrt(rates.max() * rates[-1])
        return self.amount_bytes[int(np.flatnonzero(fast)[-1])]


def _rates(amounts: np.ndarray, times_us: np.ndarray) -> tuple[float, ...]:
    """Bytes a microsecond, without what a kernel takes that reads nothing, as far as the two smallest amounts tell."""
    growth = (times_us[1] - times_us[0]) / (amounts[1] - amounts[0])
    start_us = np.clip(times_us[0] - growth * amounts[0], 0.0, times_us[0] / 2)
    return tuple((amounts / np.maximum(times_us - start_us, 1e-3)).tolist())
