"""How far two arrays that should hold the same lie apart, and how far they may."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_BOUNDS = {"float16": 1e-2, "float32": 1e-4, "float64": 1e-4}
"""Largest difference of floats, relative to the largest value; weights are float32 where a model has float64."""

_STEPS = 1
"""Units by which quantised numbers may differ, since those that lie between two are rounded to either."""

_SLACK = 1e-3
"""What a unit may be longer, since scales are rounded too."""

_UNEQUAL_SHARE = 5e-3
"""The part of whole numbers that may differ: an index chooses either of two values that are nearly equal."""

_TIMES_NOISE = 3
"""How much more may differ than what a model makes of inputs that differ by rounding: every layer rounds anew."""

_LARGEST_BOUND = 3e-2
"""What a model may make of rounding at most; one that makes more of it cannot be judged."""


@dataclass(frozen=True)
class Difference:
    """The largest difference of two arrays.

    Attributes
    ----------
    size
        For floats relative to the largest finite value expected; infinite where just one of both is not finite. For
        other types the part of the elements that differ.
    is_allowed
        Whether rounding explains it.
    where
        The element that differs most.
    found, expected
        What stands there.
    """

    size: float
    is_allowed: bool
    where: tuple[int, ...]
    found: float
    expected: float

    def __str__(self) -> str:
        return f"{self.size:.1e}, at {list(self.where)}: {self.found:.6g} instead of {self.expected:.6g}"


def difference(
    found: np.ndarray, expected: np.ndarray, noise: float = 0.0, step: float = 0.0, rounding: float = 0.0
) -> Difference:
    """Compare two arrays of one shape and type.

    Parameters
    ----------
    noise
        The size of the difference that as much rounding of the model's inputs makes as there is in a layer.
    step
        For floats that integers stand for, how far neighbours lie apart; 0 for others.
    rounding
        How far what is expected is off itself.
    """
    if not expected.size:
        return Difference(0.0, True, (), 0.0, 0.0)
    distances = np.maximum(_distances(found, expected) - rounding, 0.0)
    position = int(np.argmax(distances))
    where = tuple(int(index) for index in np.unravel_index(position, expected.shape))
    largest = float(distances[position])
    if expected.dtype.kind == "f" and not step:
        finite = np.abs(expected[np.isfinite(expected)])
        size = largest / (float(finite.max(initial=0.0)) or 1.0)
        bound = _BOUNDS.get(str(expected.dtype), _BOUNDS["float32"])
    else:
        unit = step or (1 if expected.dtype.itemsize == 1 and expected.dtype.kind in "iu" else 0)
        size = float(np.mean(distances > (_STEPS + _SLACK) * unit))
        bound = _UNEQUAL_SHARE
    is_allowed = size <= max(bound, min(_TIMES_NOISE * noise, _LARGEST_BOUND))
    return Difference(size, is_allowed, where, float(found[where]), float(expected[where]))


def _distances(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """The distance of each pair of elements; equal infinities, and two that are no number, lie 0 apart."""
    x, y = found.reshape(-1).astype(np.float64), expected.reshape(-1).astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        distances = np.abs(x - y)
    distances[(x == y) | (np.isnan(x) & np.isnan(y))] = 0.0
    return np.nan_to_num(distances, nan=np.inf, posinf=np.inf)
